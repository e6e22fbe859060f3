# SPDX-License-Identifier: Apache-2.0
"""All action groups of a body together: chunks in, commands out, rest on request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen_vla_ros.embodiment import Embodiment

from .base import BaseTracker, History, VelocityRamp, compose
from .stop import Limits, MotionError
from .timeline import ChunkRefused, Timeline
from .tracking import JointTracker

JOINT_KINDS = ("joint_position", "gripper", "hand")

# Set-points are looked at this far ahead: it smooths what a model says, and lags nothing [s].
LOOK_AHEAD = 0.05

# A command may miss its limit by rounding [fraction].
ROUNDING = 1e-6


class UnsupportedGroup(ValueError):
    """An action group that this version cannot move; the text says which and why."""


@dataclass(frozen=True)
class JointCommand:
    """What a controller is told.

    Attributes:
        group: name of the action group.
        position: set-point one period from now. Shape (n,).
        velocity: its velocity. Shape (n,).
    """

    group: str
    position: np.ndarray
    velocity: np.ndarray


@dataclass(frozen=True)
class BaseCommand:
    """What a base is told.

    Attributes:
        group: name of the action group.
        velocity: v [m/s] and w [rad/s]. Shape (2,).
    """

    group: str
    velocity: np.ndarray


Command = JointCommand | BaseCommand


class Follower:
    """Follows chunks within the limits of an embodiment.

    Fed with measured joints and odometry by stamp, and with chunks as they come; asked for commands once a
    period. The methods take the time; nothing here reads a clock. After `MotionError` write nothing.

    Args:
        embodiment: its action groups, limits, rates and `stop`.

    Raises:
        UnsupportedGroup: for a group that needs kinematics or units that are not measured.
    """

    def __init__(self, embodiment: Embodiment):
        self.embodiment = embodiment
        self.period = 1.0 / embodiment.command_rate
        self._look_ahead = max(LOOK_AHEAD, 3 * self.period)
        self._groups = [_make_group(group, self.period, self._look_ahead) for group in embodiment.actions]
        count = embodiment.layout.count
        held = np.zeros(count, dtype=bool)
        self._part = {}
        for group in self._groups:
            self._part[group.name] = embodiment.layout.slice_of(group.name)
            held[self._part[group.name]] = group.held
        step = 1.0 / embodiment.control_rate
        self.timeline = Timeline(count, blend=step, held=held, max_age=embodiment.stop.chunk_max_age)
        span = embodiment.stop.chunk_max_age + embodiment.horizon * step
        self.joints = History(len(embodiment.joints), span)
        self.pose = History(3, span, angles=[False, False, True])

    @property
    def needs_odometry(self) -> bool:
        return any(group.needs_pose for group in self._groups)

    @property
    def clamped(self) -> int:
        """Set-points, counted per channel and period, that a limit changed."""
        return sum(group.clamped for group in self._groups)

    @property
    def resting(self) -> bool:
        return all(group.resting for group in self._groups)

    def start(self, now: float) -> None:
        """Rest where the robot was last measured.

        Raises:
            ValueError: when joints or, where needed, a pose have not been measured.
        """
        measured = self._measured(now)
        for group in self._groups:
            group.start(measured[self._part[group.name]])
        self.timeline.clear(measured)

    def offer(self, data: Any, stamp: float, step: float, now: float, sequence: int = 0) -> int:
        """Follow a chunk in the embodiment's units and references from now on.

        Args:
            data: shape (h, c).
            stamp: capture time [s].
            step: between rows [s].

        Returns:
            Rows skipped because their time has passed.

        Raises:
            ChunkRefused: see `Timeline.offer`; what is being followed goes on.
        """
        data = np.asarray(data, dtype=float)
        count = self.embodiment.layout.count
        if data.ndim != 2 or data.shape[1] != count or not 1 <= len(data) <= self.embodiment.horizon:
            raise ChunkRefused(
                f"chunk has shape {data.shape}, expected (1 to {self.embodiment.horizon}, {count})"
            )
        if not np.isfinite(data).all():
            row, channel = np.argwhere(~np.isfinite(data))[0]
            name = self.embodiment.layout.names[channel]
            raise ChunkRefused(f"chunk holds {data[row, channel]} in row {row}, channel {name}")
        origin = self._measured(stamp)
        rows = np.empty_like(data)
        for group in self._groups:
            part = self._part[group.name]
            rows[:, part], origin[part] = group.resolve(data[:, part], origin[part])
        return self.timeline.offer(rows, origin, stamp, step, now, sequence)

    def step(self, now: float) -> list[Command]:
        """Commands for the next period on the way along the chunk.

        Raises:
            MotionError: no motion within the limits could be computed.
        """
        ahead = self.timeline.sample(now + self._look_ahead)
        here = self.timeline.sample(now + self.period)
        newest = self.pose.newest
        pose = None if newest is None else newest[1]
        commands = []
        for group in self._groups:
            part = self._part[group.name]
            setpoint = ahead if group.looks_ahead else here
            commands.append(group.step(setpoint.position[part], setpoint.velocity[part], pose))
        return self._checked(commands)

    def brake(self) -> list[Command]:
        """Commands for the next period on the fastest way to rest that the limits allow.

        Raises:
            MotionError: no motion within the limits could be computed.
        """
        return self._checked([group.brake() for group in self._groups])

    def _checked(self, commands: list[Command]) -> list[Command]:
        # The last look before the motors.
        for group, command in zip(self._groups, commands, strict=True):
            group.check(command)
        return commands

    def _measured(self, stamp: float) -> np.ndarray:
        joints = self.joints.at(stamp)
        if joints is None:
            joints = np.full(len(self.embodiment.joints), np.nan)
        pose = self.pose.at(stamp)
        values, used = [], 0
        for group in self._groups:
            n = len(group.joints)
            values.append(group.measured(joints[used : used + n], pose))
            used += n
        measured = np.concatenate(values)
        if not np.isfinite(measured).all():
            missing = [
                name
                for name, value in zip(self.embodiment.layout.names, measured, strict=True)
                if not np.isfinite(value)
            ]
            raise ValueError(f"not measured yet: {', '.join(missing)}")
        return measured


class _JointGroup:
    needs_pose = False
    looks_ahead = True

    def __init__(self, group: Any, period: float, look_ahead: float):
        if group.unit == "fraction":
            raise UnsupportedGroup(
                f"group {group.name}: unit fraction, expected rad or m, as in joint states"
            )
        self.name, self.joints, self.held = group.name, group.joints, group.kind == "gripper"
        self._reference = group.reference
        self._threshold = getattr(group, "threshold", None)
        limits = group.limits
        self._limits = Limits(
            limits.position[:, 0], limits.position[:, 1], limits.velocity, limits.acceleration, limits.jerk
        )
        self._tracker = JointTracker(self._limits, period, look_ahead)
        self._lowest, self._highest = self._limits.lower, self._limits.upper

    @property
    def clamped(self) -> int:
        return self._tracker.clamped

    @property
    def resting(self) -> bool:
        return self._tracker.state.resting

    def measured(self, joints: np.ndarray, pose: np.ndarray | None) -> np.ndarray:
        return joints

    def start(self, position: np.ndarray) -> None:
        self._tracker.reset(position)
        # A robot that stands outside its limits starts there and moves inside.
        self._lowest = np.minimum(self._limits.lower, position)
        self._highest = np.maximum(self._limits.upper, position)

    def resolve(self, rows: np.ndarray, origin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._threshold is not None:
            rows = np.where(rows > self._threshold, self._limits.upper, self._limits.lower)
        elif self._reference == "chunk_start":
            rows = rows + origin
        elif self._reference == "previous_step":
            rows = np.cumsum(rows, axis=0) + origin
        return rows, origin

    def step(self, position: np.ndarray, velocity: np.ndarray, pose: np.ndarray | None) -> JointCommand:
        state = self._tracker.step(position, velocity)
        return JointCommand(self.name, state.position, state.velocity)

    def brake(self) -> JointCommand:
        state = self._tracker.brake()
        return JointCommand(self.name, state.position, state.velocity)

    def check(self, command: JointCommand) -> None:
        limits = self._limits
        slack = ROUNDING * np.maximum(1.0, limits.upper - limits.lower)
        for joint, ok in zip(
            self.joints,
            np.isfinite(command.position)
            & np.isfinite(command.velocity)
            & (command.position >= self._lowest - slack)
            & (command.position <= self._highest + slack)
            & (np.abs(command.velocity) <= limits.velocity * (1 + ROUNDING)),
            strict=True,
        ):
            if not ok:
                raise MotionError(f"command of joint {joint} would leave its limits: {command}")


class _Base:
    joints: tuple[str, ...] = ()
    held = False
    looks_ahead = False

    def __init__(self, group: Any):
        self.name = group.name
        limits = group.limits
        self._limit = np.array([limits.linear.velocity, limits.angular.velocity])
        self._acceleration = np.array([limits.linear.acceleration, limits.angular.acceleration])
        self._jerk = np.array([limits.linear.jerk, limits.angular.jerk])

    def check(self, command: BaseCommand) -> None:
        if not (np.abs(command.velocity) <= self._limit * (1 + ROUNDING)).all():  # false for NaN too
            raise MotionError(f"command of base {self.name} would leave its limits: {command}")


class _WaypointGroup(_Base):
    needs_pose = True

    def __init__(self, group: Any, period: float):
        super().__init__(group)
        self._tracker = BaseTracker(self._limit, self._acceleration, self._jerk, period)

    @property
    def clamped(self) -> int:
        return self._tracker.ramp.clamped

    @property
    def resting(self) -> bool:
        return self._tracker.ramp.resting

    def measured(self, joints: np.ndarray, pose: np.ndarray | None) -> np.ndarray:
        return np.full(3, np.nan) if pose is None else pose

    def start(self, pose: np.ndarray) -> None:
        self._tracker.ramp.reset()

    def resolve(self, rows: np.ndarray, origin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return compose(origin, rows), origin

    def step(self, position: np.ndarray, velocity: np.ndarray, pose: np.ndarray | None) -> BaseCommand:
        if pose is None:
            raise MotionError(f"base {self.name}: no odometry")
        return BaseCommand(self.name, self._tracker.step(position, velocity, pose))

    def brake(self) -> BaseCommand:
        return BaseCommand(self.name, self._tracker.brake())


class _BaseVelocityGroup(_Base):
    needs_pose = False

    def __init__(self, group: Any, period: float):
        super().__init__(group)
        self._ramp = VelocityRamp(self._limit, self._acceleration, self._jerk, period)

    @property
    def clamped(self) -> int:
        return self._ramp.clamped

    @property
    def resting(self) -> bool:
        return self._ramp.resting

    def measured(self, joints: np.ndarray, pose: np.ndarray | None) -> np.ndarray:
        return self._ramp.velocity.copy()

    def start(self, velocity: np.ndarray) -> None:
        self._ramp.reset()

    def resolve(self, rows: np.ndarray, origin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return rows, rows[0]

    def step(self, position: np.ndarray, velocity: np.ndarray, pose: np.ndarray | None) -> BaseCommand:
        return BaseCommand(self.name, self._ramp.step(position))

    def brake(self) -> BaseCommand:
        return BaseCommand(self.name, self._ramp.brake())


def _make_group(group: Any, period: float, look_ahead: float):
    if group.kind in JOINT_KINDS:
        return _JointGroup(group, period, look_ahead)
    if group.kind == "waypoint":
        return _WaypointGroup(group, period)
    if group.kind == "base_velocity":
        return _BaseVelocityGroup(group, period)
    raise UnsupportedGroup(
        f"group {group.name}: kind {group.kind} needs inverse kinematics, which this version does not have; "
        f"expected one of {', '.join([*JOINT_KINDS, 'waypoint', 'base_velocity'])}"
    )


__all__ = [
    "BaseCommand",
    "ChunkRefused",
    "Command",
    "Follower",
    "JointCommand",
    "MotionError",
    "UnsupportedGroup",
]
