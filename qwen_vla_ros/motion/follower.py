# SPDX-License-Identifier: Apache-2.0
"""All action groups of a body together: chunks in, commands out, rest on request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen_vla_ros.embodiment import Embodiment

from .base import wrap
from .groups import (
    STILL,
    BaseCommand,
    Command,
    JointCommand,
    JointGroup,
    PathCommand,
    PathGroup,
    TipGroup,
    UnsupportedGroup,
    join,
    make_groups,
)
from .guard import BaseGuard, JointGuard, PathGuard
from .homing import Passage
from .kinematics import Kinematics
from .measured import Measured
from .stop import Limits, MotionError
from .timeline import ChunkRefused, Timeline

# Set-points are looked at this far ahead: it smooths what a model says, and lags nothing [s].
LOOK_AHEAD = 0.05

# At home, a joint is this near [its unit].
HOME_TOLERANCE = 1e-3

# No action is larger than this, in any unit; arithmetic stays far from overflow.
LARGEST = 1e6

# A row is looked at this much before it is due: held channels change then, and its time may be rounded [s].
EDGE = 1e-6

# The step of a chunk may differ from the control rate's by this share.
STEP_TOLERANCE = 0.01


@dataclass(frozen=True)
class Plan:
    """What is going to be done, as a chunk captured at `stamp` would say it.

    Attributes:
        stamp: [s].
        rows: in the embodiment's units and references; NaN beyond what is planned. Shape (horizon, c).
        known: leading rows that are planned.
    """

    stamp: float
    rows: np.ndarray
    known: int


class Follower:
    """Follows chunks within the limits of an embodiment.

    Fed with measured joints and poses of a base by stamp, and with chunks as they come; asked for commands
    once a period. The methods take the time; nothing here reads a clock. After `MotionError` write nothing.

    Args:
        embodiment: its action groups, limits, rates, `motion` and `stop`.
        mode: how chunks take over, in place of the embodiment's `motion.mode`.
        kinematics: of end-effector groups, by name, in place of their URDF.

    Raises:
        UnsupportedGroup: for a group that cannot be moved as it is described.
    """

    def __init__(
        self,
        embodiment: Embodiment,
        mode: str | None = None,
        kinematics: Mapping[str, Kinematics] | None = None,
    ):
        self.embodiment = embodiment
        self.period = 1.0 / embodiment.command_rate
        self._look_ahead = max(LOOK_AHEAD, 3 * self.period)
        self._groups = make_groups(embodiment, self.period, self._look_ahead, kinematics or {})
        self._part: list[slice] = []  # columns in a chunk
        self._inner: list[slice] = []  # channels of the timeline
        width = 0
        for group in self._groups:
            self._part.append(embodiment.layout.slice_of(group.name))
            self._inner.append(slice(width, width + group.width))
            width = self._inner[-1].stop
        self._joint_groups = [group for group in self._groups if isinstance(group, JointGroup | TipGroup)]
        self._base_groups = [group for group in self._groups if not isinstance(group, JointGroup | TipGroup)]
        self._moved = join(self._groups, self.period, self._look_ahead)
        others = [group for group in self._groups if not isinstance(group, JointGroup)]
        # What is asked where to once a period, and what of it while joints go on along their plan.
        self._asked = list(zip(self._groups, self._inner, strict=True))
        self._asked_meanwhile = [part for part in self._asked if part[0] in others]
        self._movers = [*([self._moved] if self._moved else []), *others]
        self._path_groups = [group for group in self._base_groups if isinstance(group, PathGroup)]
        self._path_guards = {group.name: PathGuard(group.name, group.velocity) for group in self._path_groups}
        self._driven = [group for group in self._base_groups if not isinstance(group, PathGroup)]
        self._guards = [
            BaseGuard(group.name, group.velocity, group.acceleration, group.jerk, self.period)
            for group in self._driven
        ]
        self._joint_guard = JointGuard(
            tuple(joint for group in self._joint_groups for joint in group.joints),
            Limits.joined([group.limits for group in self._joint_groups]),
            self.period,
        )
        step = 1.0 / embodiment.control_rate
        self.timeline = Timeline(
            width,
            blend=step,
            held=np.concatenate([group.held for group in self._groups]),
            quaternions=tuple(
                inner.start + start
                for inner, group in zip(self._inner, self._groups, strict=True)
                for start in group.quaternions
            ),
            mode=mode or embodiment.motion.mode,
            lead=self._look_ahead,
            decay=embodiment.motion.decay,
            max_age=embodiment.stop.chunk_max_age,
        )
        span = embodiment.stop.chunk_max_age + embodiment.horizon * step
        measured = self._measured = Measured(self._groups, span)
        self.joints, self.pose, self._used = measured.joints, measured.pose, measured.used
        for group in self._path_groups:
            group.watch(self.pose)
        self._all_ahead = all(group.looks_ahead for group in self._groups)
        self._now = -np.inf
        self._placed = False
        # Where all joints came to stand after the last motion; None before.
        self._stood: np.ndarray | None = None
        # Of the bases that are driven, with the last commands.
        self._told = [base.ramp.state for base in self._driven]
        self.clock_jumps = 0

    @property
    def needs_pose(self) -> bool:
        return any(group.needs_pose for group in self._groups)

    @property
    def clamps(self) -> dict[str, int]:
        """Set-points that a limit changed, counted per period, by group."""
        return {group.name: int(group.clamps.sum()) for group in self._groups}

    @property
    def clamped(self) -> int:
        """Set-points, counted per channel and period, that a limit changed."""
        return sum(self.clamps.values())

    @property
    def placed(self) -> bool:
        """It is known where the joints are: commands may lead on from the last ones."""
        return self._placed

    @property
    def resting(self) -> bool:
        return all(mover.resting for mover in (self._movers if self._placed else self._base_groups))

    def kinematics(self, group: str) -> Kinematics:
        """Kinematics of an end-effector group. Raises KeyError when there is no such group."""
        return {g.name: g.kinematics for g in self._groups if isinstance(g, TipGroup)}[group]

    def start(self, now: float) -> None:
        """Rest where the robot was last measured.

        Raises:
            ValueError: when joints or, where needed, a pose have not been measured.
        """
        joints, pose = self._measured.now(now)
        measured = self._observed(joints, pose)
        for group, used in zip(self._groups, self._used, strict=True):
            group.start(joints[used], pose)
        self._joint_guard.start(self._commanded_joints())
        for base, guard in zip(self._driven, self._guards, strict=True):
            guard.start(base.commanded)
        self.timeline.clear(measured)
        self._now = now
        self._placed, self._stood = True, None
        self._told = [base.ramp.state for base in self._driven]

    def settle(self, since: float) -> bool:
        """Whether the robot stands, by what was measured; where a group first does after a motion is kept.

        Args:
            since: when joints were told anything last: what was measured before tells nothing [s].
        """
        history = self._measured.joints
        last = history.stamps.min(initial=np.inf)
        if last - STILL < since:
            return False
        here, before, latest = history.at(last), history.at(last - STILL), history.latest
        if self._stood is None:
            self._stood = np.full(len(here), np.nan)
        stand = True
        for group, used in zip(self._groups, self._used, strict=True):
            if not isinstance(group, JointGroup | TipGroup):
                continue
            if not group.stands(here[used], before[used]):
                stand = False
            elif np.isnan(self._stood[used]).any():
                self._stood[used] = latest[used]
        return stand

    def go_on(self, now: float) -> list[str]:
        """Rest where the last command left the robot, which its controllers hold since.

        What is measured differs from it by their error, so to start there would be a jump. A group that is
        far off, or has shifted since it stood (`settle`), was moved by others, by hand or by a driver that
        was restarted: it rests where it is.

        Returns:
            Names of groups that were moved.

        Raises:
            ValueError: a pose that is needed has not been measured.
        """
        if not self._placed:
            self.start(now)
            return []
        joints, pose = self._measured.now(now)
        stood = np.full(len(joints), np.nan) if self._stood is None else self._stood
        moved = [
            (group, joints[used])
            for group, used in zip(self._groups, self._used, strict=True)
            if isinstance(group, JointGroup | TipGroup) and group.was_moved(joints[used], stood[used])
        ]
        for mover in self._movers:
            mover.forget()
        for group, where in moved:
            group.start(where, pose)
        if moved:
            self._joint_guard.start(self._commanded_joints())
        here = np.concatenate([group.here(pose) for group in self._groups])
        if not np.isfinite(here).all():
            raise ValueError("not measured yet: the pose of the base")
        self.timeline.clear(here)
        self._now = now
        return [group.name for group, _ in moved]

    def knows(self, stamp: float) -> bool:
        """It has been measured where all was at `stamp` that a chunk's rows count from."""
        newest = self.pose.newest
        for group, used in zip(self._groups, self._used, strict=True):
            if group.relative and not (self.joints.stamps[used] >= stamp).all():
                return False
            if group.relative and group.needs_pose and not (newest is not None and newest[0] >= stamp):
                return False
        return True

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
        names = self.embodiment.layout.names
        if data.ndim != 2 or data.shape[1] != len(names) or not 1 <= len(data) <= self.embodiment.horizon:
            raise ChunkRefused(
                f"chunk has shape {data.shape}, expected (1 to {self.embodiment.horizon}, {len(names)})"
            )
        if not (np.abs(data) <= LARGEST).all():  # false for NaN too
            row, channel = np.argwhere(~(np.abs(data) <= LARGEST))[0]
            raise ChunkRefused(f"chunk holds {data[row, channel]} in row {row}, channel {names[channel]}")
        expected = 1.0 / self.embodiment.control_rate
        if not abs(step - expected) <= STEP_TOLERANCE * expected:
            raise ChunkRefused(
                f"chunk has a step of {step} s, expected {expected:g} s, as the control rate says"
            )
        if not (np.isfinite(stamp) and np.isfinite(now)):
            raise ChunkRefused(f"stamp {stamp} s and time {now} s must be finite")
        self._watch(now)
        try:
            origin = self._seen(stamp)
        except ValueError as error:
            raise ChunkRefused(str(error)) from error
        here = self.timeline.sample(now).position
        rows = np.empty((len(data), len(origin)))
        for group, part, inner in zip(self._groups, self._part, self._inner, strict=True):
            rows[:, inner], origin[inner] = group.resolve(data[:, part], origin[inner], here[inner])
        return self.timeline.offer(rows, origin, stamp, step, now, sequence)

    def start_home(self, now: float, share: float) -> float:
        """Begin to go to the home posture from where the robot is measured; bases stay.

        Args:
            share: of the limits of the joints that is used, in (0, 1].

        Returns:
            How long it will take, if no bound of a tip is in the way [s].

        Raises:
            ValueError: joints have not been measured.
        """
        self.start(now)
        joints, _ = self._measured.now(now)
        self._passages: dict[str, Passage] = {}
        for group, used in zip(self._groups, self._used, strict=True):
            if isinstance(group, JointGroup | TipGroup):
                here = group.inside(joints[used])
                # As limits are, home is in the unit of the group: fractions are not what the robot counts.
                home = self.embodiment.home
                there = np.array(
                    [home.get(name, value) for name, value in zip(group.joints, here, strict=True)]
                )
                way = np.clip(there, group.limits.lower, group.limits.upper) - here
                way = np.where(group.continuous, wrap(way), way)
                self._passages[group.name] = Passage(here, here + way, group.limits, share)
        duration = max((passage.duration for passage in self._passages.values()), default=0.0)
        for passage in self._passages.values():
            passage.duration = duration
        self._home_time = self._look_ahead
        return duration

    def step_home(self) -> list[Command]:
        """Commands for the next period on the way home; `homed` tells when it is over.

        Periods count, not the clock: what it skips is not caught up at a speed that nobody asked for.

        Raises:
            MotionError: no motion within the limits could be computed.
        """
        self._home_time += self.period
        for group in self._joint_groups:
            group.lead(*self._passages[group.name].sample(self._home_time))
        for base in self._base_groups:
            base.brake()
        return self._commands()

    @property
    def homed(self) -> bool:
        """The way that `start_home` began is over: all joints rest at its end."""
        return self.resting and all(
            np.abs(group.commanded - self._passages[group.name].target).max() < HOME_TOLERANCE
            for group in self._joint_groups
        )

    def plan(self, stamp: float) -> Plan:
        """What is planned from `stamp` on, for a policy that continues it.

        Rows that are relative count from where the robot was measured then, as those of a chunk will: it lags
        behind its set-points, and what continues them must not fall back by that.

        Raises:
            ValueError: joints or, where needed, a pose have not been measured.
        """
        body = self.embodiment
        step = 1.0 / body.control_rate
        times = stamp + step * np.arange(1, body.horizon + 1)
        known = int((times <= stamp + self.timeline.remaining(stamp) + EDGE).sum())
        origin = self._seen(stamp)
        inside = np.array([self.timeline.sample(time - EDGE).position for time in times[:known]])
        rows = np.full((body.horizon, body.layout.count), np.nan)
        for group, part, inner in zip(self._groups, self._part, self._inner, strict=True):
            if known:
                rows[:known, part] = group.express(inside[:, inner], origin[inner])
        return Plan(stamp, rows, known)

    def step(self, now: float) -> list[Command]:
        """Commands for the next period on the way along the chunk; a path only when there is a new one.

        A clock that goes back forgets the chunk: where it lies in time is unknown then.

        Raises:
            MotionError: no motion within the limits could be computed, or the time is not finite.
        """
        if not math.isfinite(now):
            raise MotionError(f"the time is {now}")
        self._watch(now)
        goes_on = self._moved is not None and self._moved.go_on()
        asked = self._asked_meanwhile if goes_on else self._asked
        if asked:
            ahead = self.timeline.sample(now + self._look_ahead)
            here = ahead if self._all_ahead else self.timeline.sample(now + self.period)
            newest = self.pose.newest
            pose = None if newest is None else newest[1]
            for group, inner in asked:
                if isinstance(group, PathGroup):
                    group.follow(self.timeline, inner, now, pose)
                    continue
                setpoint = ahead if group.looks_ahead else here
                group.step(setpoint.position[inner], setpoint.velocity[inner], pose)
        return self._commands()

    def prepare(self, now: float) -> None:
        """Plan what the joints will do in a `step` at `now`, a period from here: it then is quick.

        Where it is not called, `step` plans. What comes between counts from the next plan on: a chunk takes
        over behind the look-ahead, where it continues the one before; a gripper follows it by so much later.

        Raises:
            MotionError: see `step`.
        """
        if self._moved is None or self._moved.goes_on:
            return
        ahead = self.timeline.sample(now + self._look_ahead)
        for group, inner in self._asked:
            if isinstance(group, JointGroup):
                group.lead(ahead.position[inner], ahead.velocity[inner])
        self._moved.prepare()

    def brake(self) -> list[Command]:
        """Commands for the next period on the fastest way to rest that the limits allow.

        Raises:
            MotionError: no motion within the limits could be computed.
        """
        if not self._placed:
            return self.halt()
        for group in self._groups:
            group.brake()
        return self._commands()

    def halt(self) -> list[Command]:
        """Commands for the next period when none can be computed for joints, or nobody knows where they are.

        Controllers hold the last set-points of joints. What is told velocities would go on with them: bases
        brake, tips are told to stand; whoever drives a path is told to stay. Until all of these rest, this is
        what there is to write; then nothing is, before `start`.
        """
        if self._placed:
            # A period that failed may have led bases on, and nobody was told.
            for base, state in zip(self._driven, self._told, strict=True):
                base.ramp.restore(state)
            self._placed = False
        commands: list[Command | None] = []
        for base, guard in zip(self._driven, self._guards, strict=True):
            try:
                base.brake()
                guard.check(base.commanded)
            except MotionError:
                base.start(np.zeros(0), None)
                guard.start(base.commanded)
            if base.resting:
                base.start(np.zeros(0), None)  # to the last digit
            commands.append(base.command())
        for group in self._path_groups:
            group.brake()
            commands.append(group.command())
        commands += [group.halt() for group in self._groups if isinstance(group, TipGroup)]
        return [command for command in commands if command is not None]

    def _watch(self, now: float) -> None:
        if now < self._now:
            self.clock_jumps += 1
            self.timeline.clear(self.timeline.sample(self._now).position)
        self._now = now

    def _commands(self) -> list[Command]:
        """What all groups are told now, after the last look."""
        if self._moved is not None:
            self._moved.advance()
        self._joint_guard.check(self._commanded_joints())
        for base, guard in zip(self._driven, self._guards, strict=True):
            guard.check(base.commanded)
        commands = [command for group in self._groups if (command := group.command()) is not None]
        if self._path_groups:
            for command in commands:
                if isinstance(command, PathCommand):
                    self._path_guards[command.group].check(command.poses, command.times)
        self._told = [base.ramp.state for base in self._driven]
        self._stood = None
        return commands

    def _commanded_joints(self) -> np.ndarray:
        if self._moved is not None and len(self._joint_groups) == self._moved.groups:
            return self._moved.tracker.state.position
        return np.concatenate([np.zeros(0), *(group.commanded for group in self._joint_groups)])

    def _seen(self, stamp: float) -> np.ndarray:
        """Where the robot was, in the channels of the timeline. Shape (width,)."""
        return self._observed(*self._measured.at(stamp))

    def _observed(self, joints: np.ndarray, pose: np.ndarray | None) -> np.ndarray:
        """Measurements in the channels of the timeline; ValueError names what is missing. Shape (width,)."""
        missing, values = [], []
        for group, used in zip(self._groups, self._used, strict=True):
            values.append(group.observe(joints[used], pose))
            if not np.isfinite(values[-1]).all():
                lacking = [
                    name
                    for name, value in zip(group.joints, joints[used], strict=True)
                    if not np.isfinite(value)
                ]
                missing += [f"{group.name}/{name}" for name in lacking] or [f"{group.name} (its pose)"]
        if missing:
            raise ValueError(f"not measured yet: {', '.join(missing)}")
        return np.concatenate(values)


__all__ = [
    "BaseCommand",
    "ChunkRefused",
    "Command",
    "Follower",
    "JointCommand",
    "MotionError",
    "PathCommand",
    "Plan",
    "UnsupportedGroup",
]
