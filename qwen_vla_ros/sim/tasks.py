# SPDX-License-Identifier: Apache-2.0
"""Tasks: how a scene is laid out, what can be asked for in it, and when it is done.

A new task is a subclass of Task and an entry in TASKS; how hard it is, is in its Randomisation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from qwen_vla_ros.sim.bodies import FULL, OBJECTS, SETTINGS
from qwen_vla_ros.sim.errors import SimulationError
from qwen_vla_ros.sim.layout import Table, lay_balls, lay_pillars, lay_table
from qwen_vla_ros.sim.phrases import CANONICAL, phrases

if TYPE_CHECKING:
    from qwen_vla_ros.sim.world import World

_TRIES = 2000


@dataclass(frozen=True)
class Goal:
    """One instruction in one scene.

    target: name of the object, empty where none is named. arm: None where there is but one. kind: of the
    object. other, other_target: colour and name of the pad or the second pillar. direction: left or right.
    """

    instruction: str
    target: str
    colour: str
    arm: str | None = None
    task: str = ""
    kind: str = ""
    other: str = ""
    other_target: str = ""
    direction: str = ""

    def same(self, goal: Goal) -> bool:
        """Whether it asks for the same, in whatever words."""
        return replace(self, instruction="") == replace(goal, instruction="")


def make_goal(task: str, target: str, colour: str, kind: str, **more: Any) -> Goal:
    """A goal in plain words."""
    goal = Goal("", target, colour, task=task, kind=kind, **more)
    return replace(goal, instruction=phrases(goal, CANONICAL)[0])


@dataclass(frozen=True)
class Outcome:
    """success: the goal has been reached and held. distance: from the goal now [m]."""

    success: bool
    distance: float
    detail: str


@dataclass
class Hold:
    """Counts for how long a goal has been held without a break [s]; once reached, it stays so."""

    held: float = 0.0
    reached: bool = False

    def update(self, near: bool, elapsed: float, needed: float) -> None:
        self.held = self.held + elapsed if near else 0.0
        self.reached = self.reached or self.held >= needed - 1e-9


@dataclass(frozen=True)
class Randomisation:
    """What changes from seed to seed.

    first, second: ranges of the objects' placement, of x and y [m], or of distance [m] and bearing [rad].
    height: of the objects' centres [m]. separation: least distance of two objects' centres [m].
    yaw: range of an object's heading [rad]. joint_noise: start posture, about home [rad].
    """

    first: tuple[float, float]
    second: tuple[float, float]
    height: float
    separation: float
    yaw: tuple[float, float] = (0.0, 0.0)
    joint_noise: float = 0.03
    colours: tuple[str, ...] = ("red", "green", "blue", "yellow")


class Task(ABC):
    """time_limit: of an episode [s]. hold: how long success must last [s]. tolerance: what is near [m]."""

    name: str
    time_limit: float
    hold: float = 0.3
    tolerance: float
    randomisation: Randomisation
    full_joint_noise: float = 0.10
    settings: tuple[str, ...] = SETTINGS

    def start_pose(self, rng: np.random.Generator) -> tuple[float, float, float]:
        """Where a base starts in the setting `full`: (x, y, yaw) [m, m, rad]."""
        return (0.0, 0.0, 0.0)

    def begin(self, world: World) -> None:  # noqa: B027 (nothing to begin is the usual case)
        """Called when a goal is set."""

    def place_full(self, world: World, rng: np.random.Generator) -> None:
        """Lay out a scene of the setting `full`."""
        for _ in range(_TRIES):
            positions = self.lay(world, rng)
            if positions is not None and self.usable(world, positions):
                return
        raise SimulationError(f"task {self.name!r} found no scene in {_TRIES} tries")

    def lay(self, world: World, rng: np.random.Generator) -> list[np.ndarray] | None:
        """Place what a scene of the setting `full` holds; returns where the objects are, each (3,) [m].

        None: what was drawn leaves no way, and nothing was placed.
        """
        raise NotImplementedError

    def place(self, world: World, rng: np.random.Generator) -> None:
        """Lay out the scene: three objects of different colours."""
        colours = rng.permutation(self.randomisation.colours)[: len(OBJECTS)]
        for _ in range(_TRIES):
            positions = [self.position(rng) for _ in OBJECTS]
            if self.clear(positions):
                for name, position, colour in zip(OBJECTS, positions, colours, strict=True):
                    yaw = float(rng.uniform(*self.randomisation.yaw))
                    world.place(name, tuple(position), str(colour), yaw)
                if self.usable(world, positions):
                    return
        raise SimulationError(f"task {self.name!r} found no scene in {_TRIES} tries: {self.randomisation}")

    def position(self, rng: np.random.Generator) -> np.ndarray:
        """A place (3,) for an object [m]."""
        spread = self.randomisation
        return np.array([rng.uniform(*spread.first), rng.uniform(*spread.second), spread.height])

    def clear(self, positions: list[np.ndarray]) -> bool:
        return all(
            np.linalg.norm(a - b) >= self.randomisation.separation
            for i, a in enumerate(positions)
            for b in positions[:i]
        )

    def usable(self, world: World, positions: list[np.ndarray]) -> bool:
        """Whether the scene that was placed has a goal."""
        world.settle()
        return bool(self.goals(world))

    @abstractmethod
    def goals(self, world: World) -> list[Goal]:
        """Every goal of the present scene that can be reached."""

    @abstractmethod
    def point(self, world: World, goal: Goal) -> np.ndarray:
        """Where the end effector or the base has to go, shape (3,) [m]."""

    def reaches(self, world: World, goal: Goal) -> dict[str | None, np.ndarray]:
        """Where each arm goes that is named: arm to point (3,) [m]."""
        return {goal.arm: self.point(world, goal)}

    @abstractmethod
    def distance(self, world: World, goal: Goal) -> float:
        """From the goal now [m]."""

    def near(self, world: World, goal: Goal) -> bool:
        return self.distance(world, goal) <= self.tolerance

    def judge(self, world: World, goal: Goal, reached: bool) -> Outcome:
        distance = self.distance(world, goal)
        if reached:
            return Outcome(True, distance, f"held within {100 * self.tolerance:.0f} cm for {self.hold:g} s")
        nearest = min(world.goals(), key=lambda other: self.distance(world, other))
        detail = f"{100 * distance:.1f} cm from the goal"
        if nearest.target != goal.target and self.near(world, nearest):
            detail += f"; it is at the {nearest.colour} object instead"
        elif nearest.arm != goal.arm and self.near(world, nearest):
            detail += f"; the {nearest.arm} arm is there instead"
        return Outcome(False, distance, detail)


class _ArmTask(Task):
    """An end effector goes to a point near an object."""

    offset: ClassVar[Mapping[str | None, tuple[float, float, float]]]
    table: ClassVar[Table]
    pads = False  # whether pads, not things, are gone to
    # What inverse kinematics may leave for a goal to count as reachable [m].
    reachable = 0.005

    def goals(self, world: World) -> list[Goal]:
        return [
            goal
            for target, thing in world.things.items()
            if (thing.kind == "pad") == self.pads
            for goal in self._candidates(world, target, thing.colour, thing.kind)
            if all(
                world.reach(arm, point)[1] <= self.reachable
                for arm, point in self.reaches(world, goal).items()
            )
        ]

    def lay(self, world: World, rng: np.random.Generator) -> list[np.ndarray] | None:
        return lay_table(world, rng, self.table, self.pads)

    def usable(self, world: World, positions: list[np.ndarray]) -> bool:
        """Whether each object can be a target."""
        # Object poses were written but not computed yet: judge the positions themselves.
        return all(
            any(
                world.reach(arm.name, np.round(position + self.offset[arm.name], 4))[1] <= self.reachable
                for arm in world.body.arms
            )
            for position in positions
        )

    def point(self, world: World, goal: Goal) -> np.ndarray:
        # Rounded so that an object that settles by micrometres does not move the goal.
        return np.round(world.data.body(goal.target).xpos + self.offset[goal.arm], 4)

    def distance(self, world: World, goal: Goal) -> float:
        offset = world.data.body(goal.target).xpos + self.offset[goal.arm] - world.tool(goal.arm)
        return float(np.linalg.norm(offset))

    def _candidates(self, world: World, target: str, colour: str, kind: str) -> list[Goal]:
        return [make_goal(self.name, target, colour, kind, arm=arm.name) for arm in world.body.arms]


PANDA_TABLE = Table((0.38, -0.26), (0.60, 0.26))
ALOHA_TABLE = Table((-0.22, 0.38), (0.22, 0.62), yaw=0.1, pads=0.0)


class Reach(_ArmTask):
    """The Panda's fingertips within 4 cm of a point 10 cm above a cube's centre."""

    name = "reach"
    time_limit = 12.0
    tolerance = 0.04
    offset: ClassVar = {None: (0.0, 0.0, 0.10)}
    randomisation = Randomisation(first=(0.36, 0.62), second=(-0.28, 0.28), height=0.03, separation=0.14)
    table = PANDA_TABLE


class ReachPad(Reach):
    """The same above a pad."""

    name = "reach_pad"
    settings = (FULL,)
    pads = True
    usable = Task.usable


class ReachWithArm(_ArmTask):
    """The fingertips of the arm that is named within 4 cm of a point 9 cm above a cube's centre."""

    name = "reach_with_arm"
    time_limit = 12.0
    tolerance = 0.04
    offset: ClassVar = {"left": (0.0, 0.0, 0.09), "right": (0.0, 0.0, 0.09)}
    randomisation = Randomisation(first=(-0.22, 0.22), second=(0.34, 0.66), height=0.03, separation=0.14)
    table = ALOHA_TABLE


class ReachWithBoth(ReachWithArm):
    """The fingertips of both arms within 4 cm of points 9 cm above and 8 cm to either side of an object."""

    name = "reach_with_both"
    offset: ClassVar = {"left": (-0.08, 0.0, 0.09), "right": (0.08, 0.0, 0.09), "both": (0.0, 0.0, 0.09)}
    usable = Task.usable

    def reaches(self, world: World, goal: Goal) -> dict[str | None, np.ndarray]:
        centre = world.data.body(goal.target).xpos
        return {arm.name: np.round(centre + self.offset[arm.name], 4) for arm in world.body.arms}

    def distance(self, world: World, goal: Goal) -> float:
        """That of the arm that is farther [m]."""
        return max(
            float(np.linalg.norm(point - world.tool(arm))) for arm, point in self.reaches(world, goal).items()
        )

    def _candidates(self, world: World, target: str, colour: str, kind: str) -> list[Goal]:
        return [make_goal(self.name, target, colour, kind, arm="both")]


class Touch(_ArmTask):
    """The hand that is named within 4 cm of a point at the outer side of a ball, 8 cm from its centre.

    From the side, because a hand that covers the ball would hide it from the camera in the head.
    """

    name = "touch"
    time_limit = 12.0
    tolerance = 0.04
    offset: ClassVar = {"left": (0.0, 0.08, 0.0), "right": (0.0, -0.08, 0.0)}
    randomisation = Randomisation(first=(0.32, 0.46), second=(-0.24, 0.24), height=0.90, separation=0.13)

    def lay(self, world: World, rng: np.random.Generator) -> list[np.ndarray] | None:
        return lay_balls(world, rng, self.randomisation.first, self.randomisation.second)


class Drive(Task):
    """The base at rest in front of a pillar: 0.5 to 0.95 m from its centre, facing it within 0.35 rad."""

    name = "drive"
    time_limit = 25.0
    tolerance = 0.225
    standoff = 0.725
    bearing = 0.35
    slow = (0.15, 0.3)  # [m/s], [rad/s]
    # Nothing stands nearer than this to the straight way to a pillar [m].
    clearance = 0.65
    # Driving stops this far from a pillar's centre [m].
    stop = 0.70
    randomisation = Randomisation(
        first=(1.5, 2.8), second=(-0.62, 0.62), height=0.0, separation=0.75, joint_noise=0.0
    )

    def start_pose(self, rng: np.random.Generator) -> tuple[float, float, float]:
        x, y, yaw = rng.uniform(-1.0, 1.0, 3) * (0.1, 0.1, 0.2)
        return float(x), float(y), float(yaw)

    def lay(self, world: World, rng: np.random.Generator) -> list[np.ndarray] | None:
        positions = [self.position(rng) for _ in OBJECTS]
        if not self.clear(positions):
            return None
        lay_pillars(world, rng, positions)
        return positions

    def position(self, rng: np.random.Generator) -> np.ndarray:
        spread = self.randomisation
        distance, bearing = rng.uniform(*spread.first), rng.uniform(*spread.second)
        return np.array([distance * np.cos(bearing), distance * np.sin(bearing), spread.height])

    def clear(self, positions: list[np.ndarray]) -> bool:
        if not super().clear(positions):
            return False
        for target in positions:
            length = np.linalg.norm(target)
            along = target / length
            for other in positions:
                if other is not target:
                    nearest = np.clip(other @ along, 0.0, length - self.stop) * along
                    if np.linalg.norm(other - nearest) < self.clearance:
                        return False
        return True

    def goals(self, world: World) -> list[Goal]:
        return [
            make_goal(self.name, target, thing.colour, thing.kind) for target, thing in world.things.items()
        ]

    def point(self, world: World, goal: Goal) -> np.ndarray:
        return world.data.body(goal.target).xpos.copy()

    def distance(self, world: World, goal: Goal) -> float:
        """Difference from the standoff, and more where the pillar is not ahead [m]."""
        distance, bearing = self._polar(world, goal)
        return abs(distance - self.standoff) + max(0.0, abs(bearing) - self.bearing) * self.standoff

    def near(self, world: World, goal: Goal) -> bool:
        v, w = np.abs(world.base_velocity)
        return super().near(world, goal) and v <= self.slow[0] and w <= self.slow[1]

    def _polar(self, world: World, goal: Goal) -> tuple[float, float]:
        x, y, yaw = world.base_pose
        offset = self.point(world, goal)[:2] - (x, y)
        bearing = np.arctan2(offset[1], offset[0]) - yaw
        return float(np.linalg.norm(offset)), float((bearing + np.pi) % (2 * np.pi) - np.pi)
