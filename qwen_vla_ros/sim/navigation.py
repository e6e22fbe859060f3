# SPDX-License-Identifier: Apache-2.0
"""More tasks of a base among pillars: stop in front of one, go between two."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

from qwen_vla_ros.sim.tasks import Drive, Goal, Outcome, make_goal

if TYPE_CHECKING:
    from qwen_vla_ros.sim.world import World


class StopInFront(Drive):
    """The base at rest 0.98 to 1.42 m from a pillar's centre, facing it within 0.35 rad."""

    name = "stop_in_front"
    standoff = 1.2
    tolerance = 0.22
    stop = 1.2
    clearance = 0.55


class GoBetween(Drive):
    """The base between two pillars, within 0.35 m of the middle."""

    name = "go_between"
    tolerance = 0.35
    # Distance of the two, and how far a third stays from the way [m].
    gap = (1.0, 2.2)
    clearance = 0.6

    def goals(self, world: World) -> list[Goal]:
        found = []
        things = world.things
        for first, second in itertools.permutations(things, 2):
            if self._passable(world, first, second):
                found.append(
                    make_goal(
                        self.name,
                        first,
                        things[first].colour,
                        things[first].kind,
                        other=things[second].colour,
                        other_target=second,
                    )
                )
        return found

    def point(self, world: World, goal: Goal) -> np.ndarray:
        return 0.5 * (world.data.body(goal.target).xpos + world.data.body(goal.other_target).xpos)

    def distance(self, world: World, goal: Goal) -> float:
        """From the middle of the two [m]."""
        return float(np.linalg.norm(self.point(world, goal)[:2] - world.base_pose[:2]))

    def near(self, world: World, goal: Goal) -> bool:
        return self.distance(world, goal) <= self.tolerance

    def judge(self, world: World, goal: Goal, reached: bool) -> Outcome:
        distance = self.distance(world, goal)
        return Outcome(reached, distance, "went through" if reached else f"{distance:.2f} m from the middle")

    def carrot(self, world: World, goal: Goal, x: float, y: float) -> tuple[float, float, float]:
        """Where a base at (x, y) steers, and how far it is from the middle along the way through [m].

        The point lies on the line through the middle, square to that between the pillars, and comes nearer
        to the middle as the base does; behind the middle the way goes straight on.
        """
        a, b = world.data.body(goal.target).xpos, world.data.body(goal.other_target).xpos
        mx, my = 0.5 * (a[0] + b[0]), 0.5 * (a[1] + b[1])
        nx, ny = b[1] - a[1], a[0] - b[0]
        length = math.hypot(nx, ny)
        nx, ny = nx / length, ny / length
        # Pillars lie ahead of where a base starts, the world's origin.
        if mx * nx + my * ny < 0.0:
            nx, ny = -nx, -ny
        along = (x - mx) * nx + (y - my) * ny
        ahead = 0.4 * along if along < -0.3 else along + 0.4
        return mx + ahead * nx, my + ahead * ny, along

    def _passable(self, world: World, first: str, second: str) -> bool:
        a, b = world.data.body(first).xpos[:2], world.data.body(second).xpos[:2]
        apart = float(np.linalg.norm(a - b))
        middle = 0.5 * (a + b)
        if not self.gap[0] <= apart <= self.gap[1] or np.linalg.norm(middle) < 1.3:
            return False
        normal = np.array([b[1] - a[1], a[0] - b[0]]) / apart
        normal *= np.sign(normal @ middle)
        # Seen edge on, two pillars leave no way that shows.
        if normal @ middle < 0.75 * np.linalg.norm(middle):
            return False
        for name in world.things:
            if name in (first, second):
                continue
            other = world.data.body(name).xpos[:2]
            for start, end in (
                (np.zeros(2), middle - 0.4 * normal),
                (middle - 0.4 * normal, middle + normal),
            ):
                share = np.clip((other - start) @ (end - start) / ((end - start) @ (end - start)), 0.0, 1.0)
                if np.linalg.norm(other - start - share * (end - start)) < self.clearance:
                    return False
        return True
