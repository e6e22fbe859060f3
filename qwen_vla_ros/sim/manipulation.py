# SPDX-License-Identifier: Apache-2.0
"""Tasks in which things are moved: push, pick up, place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qwen_vla_ros.sim.bodies import FULL
from qwen_vla_ros.sim.layout import lay_table
from qwen_vla_ros.sim.tasks import ALOHA_TABLE, PANDA_TABLE, Goal, Outcome, Randomisation, Task, make_goal

if TYPE_CHECKING:
    from qwen_vla_ros.sim.world import World

# The lowest that a tool goes above the table, so that its fingers do not touch it [m].
LOWEST = 0.018
# How high things are carried [m].
CARRY = 0.17
DIRECTIONS = {"left": np.array([0.0, 1.0]), "right": np.array([0.0, -1.0])}


def grasp_point(centre: np.ndarray, low: float = LOWEST) -> np.ndarray:
    """Where the tool takes a thing, shape (3,) [m]."""
    return np.array([centre[0], centre[1], max(low, centre[2])])


def is_held(world: World, arm: str | None, name: str) -> bool:
    """Whether a thing is between the fingers of an arm, and they touch it."""
    thing = world.things[name]
    offset = world.data.body(name).xpos - world.tool(arm)
    between = np.hypot(offset[0], offset[1]) < 0.022 and abs(offset[2]) < 0.03
    return bool(between and world.opening(arm) < thing.width + 0.006)


class _Manipulation(Task):
    """Things on a table, moved by one arm."""

    hold = 0.5
    time_limit = 20.0
    randomisation = Randomisation(first=(0.38, 0.60), second=(-0.25, 0.25), height=0.03, separation=0.14)

    table = PANDA_TABLE
    pads = False

    def lay(self, world: World, rng: np.random.Generator) -> list[np.ndarray] | None:
        return lay_table(world, rng, self.table, self.pads)

    def within(self, world: World, goal: Goal) -> bool:
        """Whether the arm can do it."""
        centre = world.data.body(goal.target).xpos
        map_ = world.postures(goal.arm)
        return map_.inside(grasp_point(centre)) and map_.inside((centre[0], centre[1], CARRY))

    def candidates(self, world: World) -> list[Goal]:
        raise NotImplementedError

    def goals(self, world: World) -> list[Goal]:
        return [goal for goal in self.candidates(world) if self.within(world, goal)]

    def point(self, world: World, goal: Goal) -> np.ndarray:
        return world.data.body(goal.target).xpos.copy()

    def judge(self, world: World, goal: Goal, reached: bool) -> Outcome:
        distance = self.distance(world, goal)
        if reached:
            return Outcome(True, distance, f"done, and so for {self.hold:g} s")
        for other in world.goals():
            if other.target != goal.target and self.near(world, other):
                return Outcome(False, distance, f"it was done to the {other.colour} {other.kind} instead")
        return Outcome(False, distance, f"{100 * distance:.1f} cm are missing")

    def _things(self, world: World) -> list[tuple[str, str, str]]:
        return [
            (name, thing.colour, thing.kind)
            for name, thing in world.things.items()
            if thing.kind not in ("pad", "pillar")
        ]


class PickUp(_Manipulation):
    """The thing 6 cm above where it lay, between the fingers."""

    name = "pick_up"
    tolerance = 0.0
    lift = 0.06

    def candidates(self, world: World) -> list[Goal]:
        return [
            make_goal(self.name, target, colour, kind, arm=arm.name)
            for target, colour, kind in self._things(world)
            for arm in world.body.arms
        ]

    def distance(self, world: World, goal: Goal) -> float:
        """What is missing of the lift [m]; the distance from the tool counts where it is not held."""
        centre = world.data.body(goal.target).xpos
        apart = max(0.0, float(np.linalg.norm(centre - world.tool(goal.arm))) - 0.035)
        rest = world.things[goal.target].height
        return max(0.0, self.lift - (centre[2] - rest)) + apart


class PickUpWithArm(PickUp):
    """The same, by the arm that is named."""

    name = "pick_up_with_arm"
    table = ALOHA_TABLE
    randomisation = Randomisation(first=(-0.18, 0.18), second=(0.40, 0.60), height=0.03, separation=0.14)


class Place(_Manipulation):
    """The thing at rest on the pad, let go."""

    name = "place"
    tolerance = 0.0
    time_limit = 25.0
    radius = 0.045
    pads = True
    settings = (FULL,)

    def candidates(self, world: World) -> list[Goal]:
        pads = [(name, thing.colour) for name, thing in world.things.items() if thing.kind == "pad"]
        return [
            make_goal(self.name, target, colour, kind, arm=arm.name, other=pad_colour, other_target=pad)
            for target, colour, kind in self._things(world)
            for pad, pad_colour in pads
            for arm in world.body.arms
        ]

    def within(self, world: World, goal: Goal) -> bool:
        pad = world.data.body(goal.other_target).xpos
        return super().within(world, goal) and world.postures(goal.arm).inside((pad[0], pad[1], CARRY))

    def distance(self, world: World, goal: Goal) -> float:
        """From the pad, beyond what is allowed, and what it is above it [m]; more while it is held."""
        centre = world.data.body(goal.target).xpos
        pad = world.data.body(goal.other_target).xpos
        aside = max(0.0, float(np.hypot(*(centre - pad)[:2])) - self.radius)
        above = max(0.0, float(centre[2]) - world.things[goal.target].height - 0.008)
        return aside + above + (0.01 if is_held(world, goal.arm, goal.target) else 0.0)


class Push(_Manipulation):
    """The thing moved by 6 cm to the robot's left or right, as named, and standing on the table."""

    name = "push"
    tolerance = 0.0
    far = 0.06
    aside = 0.04

    def candidates(self, world: World) -> list[Goal]:
        return [
            make_goal(self.name, target, colour, kind, arm=arm.name, direction=direction)
            for target, colour, kind in self._things(world)
            for arm in world.body.arms
            for direction in DIRECTIONS
        ]

    def within(self, world: World, goal: Goal) -> bool:
        """It must not run into another thing."""
        centre = world.data.body(goal.target).xpos
        along = DIRECTIONS[goal.direction]
        map_ = world.postures(goal.arm)
        for distance in (-0.10, 0.12):
            place = centre[:2] + distance * along
            if not (map_.inside((*place, LOWEST)) and map_.inside((*place, CARRY))):
                return False
        for name, (position, _) in world.objects.items():
            if name != goal.target and world.things[name].kind != "pad":
                offset = position[:2] - centre[:2]
                ahead = float(offset @ along)
                if -0.13 < ahead < 0.17 and abs(float(offset @ along[::-1])) < 0.085:
                    return False
        return True

    def distance(self, world: World, goal: Goal) -> float:
        """What is missing of the way, and what it went too far aside or up [m]."""
        moved = world.data.body(goal.target).xpos - world.start.get(goal.target, np.zeros(3))
        along = DIRECTIONS[goal.direction]
        aside = max(0.0, abs(float(moved[:2] @ along[::-1])) - self.aside)
        return max(0.0, self.far - float(moved[:2] @ along)) + aside + max(0.0, float(moved[2]) - 0.02)
