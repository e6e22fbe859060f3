# SPDX-License-Identifier: Apache-2.0
"""More tasks of a humanoid's hands: point at a ball, wave."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from qwen_vla_ros.sim.tasks import Goal, Outcome, Randomisation, Touch, make_goal

if TYPE_CHECKING:
    from qwen_vla_ros.sim.world import World


class Point(Touch):
    """The palm of the hand that is named within 4 cm of a point 15 cm before a ball's centre."""

    name = "point"
    offset: ClassVar = {"left": (-0.15, 0.0, 0.02), "right": (-0.15, 0.0, 0.02)}
    randomisation = Randomisation(first=(0.34, 0.46), second=(-0.24, 0.24), height=0.90, separation=0.13)


class Wave(Touch):
    """The hand that is named raised, and its forearm swung from side to side twice."""

    name = "wave"
    hold = 0.01
    time_limit = 12.0
    tolerance = 0.0
    # A raised left arm in the middle of its swing, in sight; roll and yaw turn over on the right.
    raised: ClassVar = {"shoulder_pitch": -0.60, "shoulder_roll": 0.25, "shoulder_yaw": -0.35, "elbow": 0.3}
    # The hand goes round: yaw by the first, elbow by the second [rad], in that time [s]. So wide that a small
    # picture of the arm tells the phase.
    swing = (0.45, 0.35)
    period = 3.6
    # What the hand travels from one side to the other [m].
    width = 0.25
    # How far to each side counts, and how far from raised the shoulder may be [rad]. turns: each side twice.
    side = 0.2
    loose = 0.3
    turns = 4

    def goals(self, world: World) -> list[Goal]:
        return [make_goal(self.name, "", "", "", arm=arm.name) for arm in world.body.arms]

    def point(self, world: World, goal: Goal) -> np.ndarray:
        return world.tool(goal.arm)

    def begin(self, world: World) -> None:
        world.memory = {"turns": 0, "side": 0}

    def distance(self, world: World, goal: Goal) -> float:
        """How much of the hand's way from side to side is missing [m]."""
        return self.width * (self.turns - (world.memory["turns"] if goal.same(world.goal) else 0))

    def near(self, world: World, goal: Goal) -> bool:
        if not goal.same(world.goal):
            return False
        joints = dict(zip(world.joint_names, world.joint_positions, strict=True))
        pitch = joints[f"{goal.arm}_shoulder_pitch_joint"] - self.raised["shoulder_pitch"]
        yaw = joints[f"{goal.arm}_shoulder_yaw_joint"] - _sign(goal.arm) * self.raised["shoulder_yaw"]
        memory = world.memory
        if abs(pitch) > self.loose:
            memory["turns"] = memory["side"] = 0
        elif abs(yaw) > self.side and np.sign(yaw) != memory["side"]:
            memory["side"] = int(np.sign(yaw))
            memory["turns"] += 1
        return bool(memory["turns"] >= self.turns)

    def judge(self, world: World, goal: Goal, reached: bool) -> Outcome:
        missing = 0.0 if reached else self.distance(world, goal)
        return Outcome(reached, missing, "waved" if reached else f"{missing / self.width:.0f} swings missing")

    def posture(self, arm: str, phase: float, size: float = 1.0) -> dict[str, float]:
        """Joints of a waving arm at a phase [rad], on a way around of that size."""
        angles = dict.fromkeys(
            (f"{arm}_{joint}_joint" for joint in ("wrist_roll", "wrist_pitch", "wrist_yaw")), 0.0
        )
        for joint, value in self.raised.items():
            angles[f"{arm}_{joint}_joint"] = value * (
                _sign(arm) if joint in ("shoulder_roll", "shoulder_yaw") else 1.0
            )
        angles[f"{arm}_shoulder_yaw_joint"] += size * self.swing[0] * np.cos(phase)
        angles[f"{arm}_elbow_joint"] += size * self.swing[1] * np.sin(phase)
        return angles

    def phase(self, arm: str, yaw: float, elbow: float) -> float:
        """Where on its way around a posture is [rad].

        In the middle a hair would decide; there the way leads out to one side.
        """
        along = (yaw - _sign(arm) * self.raised["shoulder_yaw"]) / self.swing[0]
        across = (elbow - self.raised["elbow"]) / self.swing[1]
        along += max(0.0, 0.5 - np.hypot(along, across))
        return float(np.arctan2(across, along))


def _sign(arm: str | None) -> float:
    return 1.0 if arm == "left" else -1.0
