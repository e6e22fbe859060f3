# SPDX-License-Identifier: Apache-2.0
"""What has been heard of robot and policy, and what in it forbids motion."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sensor_msgs.msg import JointState

from qwen_vla_ros.action import ExecuteTask
from qwen_vla_ros.embodiment import Embodiment
from qwen_vla_ros.motion.base import wrap
from qwen_vla_ros.motion.follower import Command, Follower, JointCommand
from qwen_vla_ros.motion.groups import GRIPPING
from qwen_vla_ros.msg import PolicyStatus

from .cdr import Joints, PolicyWord
from .constants import PolicyState
from .controllers import Writer
from .heartbeat import Heartbeat
from .lifecycle import seconds

Result = ExecuteTask.Result

# How long a joint may be off its command by more than it may [s].
TRACKING_PATIENCE = 0.5

# How long an answer about controllers counts [s].
LOOK_PERIOD = 0.02


# Which ones of an array.
Places = slice | np.ndarray


@dataclass(frozen=True)
class Trouble:
    """Why the robot must not move.

    Attributes:
        code: one of ExecuteTask.Result's.
        message: for people.
        passing: may go away by itself; the task then goes on, if that happens within `recovery_timeout`.
    """

    code: int
    message: str
    passing: bool = False


class Watchdog:
    """Judges freshness and soundness of all that a motion depends on.

    Args:
        embodiment: its joints, topics and ages.
        follower: receives measured joints; holds poses of the base.
        writers: by action group.
        max_tracking_error: of a joint, from its command, 0 for any [rad or m].

    Attributes:
        heartbeat: of the policy.
        policy: what the newest one said.
        rivals: who else publishes commands, by topic; empty lists are left out.
    """

    def __init__(
        self,
        embodiment: Embodiment,
        follower: Follower,
        writers: Mapping[str, Writer],
        max_tracking_error: float,
        policy_lease: float,
    ):
        self._embodiment, self._follower, self._writers = embodiment, follower, writers
        self._max_tracking_error = max_tracking_error
        joints = embodiment.joints
        # As measured, and the stamp of it; as commanded last. NaN while unknown. Shapes (n,).
        self._value, self._stamp, self._commanded = np.full((3, len(joints)), np.nan)
        # What was commanded when, as far back as a joint state may come from.
        self._commands: deque[tuple[float, np.ndarray]] = deque()
        self._oldest = self._newest = -math.inf if joints else math.inf
        # Where the joints of a message and of a group are among all.
        self._places: dict[tuple[str, ...], tuple[Places, Places]] = {}
        self._parts: dict[str, slice] = {}
        begin = 0
        for group in embodiment.actions:
            end = begin + len(getattr(group, "joints", ()))
            self._parts[group.name] = slice(begin, end)
            begin = end
        groups = [group for group in embodiment.actions if getattr(group, "joints", ())]
        self._gripping = np.array(
            [group.kind in GRIPPING for group in groups for _ in group.joints], dtype=bool
        )
        self._turning = np.array(
            [joint in getattr(group, "continuous", ()) for group in groups for joint in group.joints],
            dtype=bool,
        )
        self._joint_trouble: Trouble | None = None
        self._looked = -math.inf
        self._in_controllers: Trouble | None = None
        self._base = embodiment.state.base if follower.needs_pose else None
        self.heartbeat = Heartbeat(
            embodiment.stop.heartbeat_timeout, policy_lease, 1.0 / embodiment.command_rate
        )
        self._astray_since = math.nan
        self.policy: PolicyStatus | PolicyWord | None = None
        self.rivals: dict[str, list[str]] = {}

    # What is heard

    def hear_joints(self, message: JointState | Joints, names: Sequence[str] | None = None) -> None:
        """Take a joint state; names: of its positions, in place of the message's own."""
        names = tuple(message.name if names is None else names)
        if len(message.position) != len(names):
            if names and not set(names) & set(self._embodiment.joints):
                return  # of another device
            self._joint_trouble = Trouble(
                Result.JOINT_STATE_INVALID,
                f"joint states hold {len(names)} names and {len(message.position)} positions, "
                "expected as many of one as of the other",
            )
            return
        if names not in self._places:
            place = {name: k for k, name in enumerate(names)}
            known = [name for name in self._embodiment.joints if name in place]
            self._places[names] = (
                _compact([place[name] for name in known]),
                _compact([self._embodiment.joints.index(name) for name in known]),
            )
        chosen, places = self._places[names]
        if not _count(places):
            return  # of another device: nothing of ours
        values = np.asarray(message.position, dtype=float)[chosen]
        if not np.isfinite(values).all():
            broken = int(np.argmin(np.isfinite(values)))
            name = names[np.arange(len(names))[chosen][broken]]
            self._joint_trouble = Trouble(
                Result.JOINT_STATE_INVALID,
                f"position of joint {name} is {values[broken]}, expected a finite number; "
                "check the driver of the robot",
            )
            return
        stamp = seconds(message.header.stamp)
        self._value[places], self._stamp[places] = values, stamp
        oldest = float(self._stamp.min())
        if not math.isnan(oldest):
            self._oldest, self._newest = oldest, float(self._stamp.max())
        # With the stamp of those that it tells: others may be later, or were earlier.
        self._follower.joints.add(stamp, values, places)

    def forget_joints(self) -> None:
        """Nothing that was heard of joints counts any more."""
        self._stamp[:] = self._oldest = self._newest = -math.inf
        if not self._embodiment.joints:
            self._oldest = self._newest = math.inf
        self._astray_since, self._in_controllers = math.nan, None

    def hear_policy(self, message: PolicyStatus | PolicyWord) -> None:
        self.heartbeat.hear()
        self.policy = message

    def note(self, commands: Sequence[Command], now: float) -> None:
        """Commands that were written."""
        for command in commands:
            if isinstance(command, JointCommand):
                self._commanded[self._parts[command.group]] = command.position
        past = self._commands
        while past and past[-1][0] >= now:
            past.pop()  # the clock went back
        past.append((now, self._commanded.copy()))
        # One from before the oldest state that counts stays.
        while len(past) > 1 and past[1][0] <= now - self._embodiment.state.max_age:
            past.popleft()

    def begin(self) -> None:
        """A new task or motion: what was wrong before does not count."""
        self._joint_trouble = None
        self._commanded[:] = np.nan
        self._commands.clear()
        self._astray_since = math.nan
        self._looked, self._in_controllers = -math.inf, None

    def joint_age(self, now: float) -> float:
        """Age of the oldest joint's state [s]; infinite while one is missing, 0 without joints."""
        return now - self._oldest if self._embodiment.joints else 0.0

    # What forbids motion

    def find(self, task_id: int, chunks: int, now: float) -> Trouble | None:
        """The first thing that forbids motion in a task.

        Args:
            chunks: that were followed in the task.
        """
        return self._find_silence() or self.find_in_robot(now) or self._find_in_policy(task_id, chunks)

    def find_in_robot(self, now: float) -> Trouble | None:
        """The first thing that forbids any motion, with or without a policy."""
        wall = time.monotonic()
        if wall - self._looked > LOOK_PERIOD:
            self._looked = wall
            self._in_controllers = self._find_in_controllers() or self._find_astray()
        return self._find_in_joints(now) or self._find_in_pose(now) or self._in_controllers

    def _find_in_controllers(self) -> Trouble | None:
        for name, writer in self._writers.items():
            if not writer.connected:
                return Trouble(
                    Result.CONTROLLER_LOST,
                    f"nobody subscribes to {writer.topic}; is the {writer.kind} of {name} active?",
                )
        for topic, names in self.rivals.items():
            return Trouble(
                Result.CONTROLLER_CONTESTED,
                f"{', '.join(names)} also publishes on {topic}: two would command one controller; end it, or "
                "hand the robot over with ~/take_over",
            )
        return None

    def _find_silence(self) -> Trouble | None:
        silence = self.heartbeat.silence
        return Trouble(Result.POLICY_LOST, silence, passing=True) if silence else None

    def _find_in_joints(self, now: float) -> Trouble | None:
        if self._joint_trouble is not None:
            return self._joint_trouble
        body = self._embodiment
        allowed = body.state.max_age
        if now - allowed <= self._oldest and self._newest <= now + allowed:
            return None
        if not body.joints:
            return None
        topics = ", ".join(body.state.joint_states)
        unheard = np.isnan(self._stamp).tolist()
        if all(unheard):
            return Trouble(Result.JOINT_STATE_STALE, f"no joint states on {topics}", passing=True)
        if any(unheard):
            missing = [name for name, so in zip(body.joints, unheard, strict=True) if so]
            heard = [name for name, so in zip(body.joints, unheard, strict=True) if not so]
            return Trouble(
                Result.JOINT_STATE_INVALID,
                f"joint {', '.join(missing)} is missing from {topics}, which name {', '.join(sorted(heard))}",
            )
        if self._oldest == -math.inf:
            return Trouble(
                Result.JOINT_STATE_STALE,
                f"no joint states on {topics} since the clock went back",
                passing=True,
            )
        if now - self._oldest > allowed:
            oldest = body.joints[int(np.argmin(self._stamp))]
            return Trouble(
                Result.JOINT_STATE_STALE,
                f"joint states on {topics} stopped: {oldest} is {now - self._oldest:.2f} s old, "
                f"allowed {allowed} s",
                passing=True,
            )
        # They would pass for fresh long after they have stopped.
        return Trouble(
            Result.JOINT_STATE_STALE,
            f"joint states on {topics} are stamped {self._newest - now:.2f} s ahead of the clock, allowed "
            f"{allowed} s; are all clocks the same?",
            passing=True,
        )

    def _find_in_pose(self, now: float) -> Trouble | None:
        if self._base is None:
            return None
        allowed, newest, topic = self._embodiment.state.max_age, self._follower.pose.newest, self._base.topic
        if newest is None:
            return Trouble(Result.ODOMETRY_STALE, f"no pose of the base on {topic}", passing=True)
        age = now - newest[0]
        if abs(age) <= allowed:
            return None
        found = f"{age:.2f} s old" if age > 0 else f"stamped {-age:.2f} s ahead of the clock"
        return Trouble(
            Result.ODOMETRY_STALE,
            f"the pose of the base on {topic} is {found}, allowed {allowed} s",
            passing=True,
        )

    def _find_astray(self) -> Trouble | None:
        if not self._max_tracking_error or not self._embodiment.joints or self._oldest == -math.inf:
            return None
        error = self._commanded_at_stamps() - self._value
        # A driver may count turns, or not.
        error = np.abs(np.where(self._turning, wrap(error), error))
        # What grips is stopped by what it holds: that is its work.
        error[self._gripping] = np.nan
        # NaN where nothing was commanded.
        if not np.fmax.reduce(error) > self._max_tracking_error:
            self._astray_since = math.nan
            return None
        # By the robot's own time, that of its states: what comes late is not astray. A clock may go back.
        since = self._astray_since
        self._astray_since = self._oldest if math.isnan(since) else min(since, self._oldest)
        if self._oldest - self._astray_since <= TRACKING_PATIENCE:
            return None
        worst = int(np.nanargmax(error))
        return Trouble(
            Result.TRACKING_LOST,
            f"joint {self._embodiment.joints[worst]} is {error[worst]:.2f} from its command, allowed "
            f"{self._max_tracking_error} for {TRACKING_PATIENCE} s; is it blocked, or its controller not "
            "following?",
        )

    def _commanded_at_stamps(self) -> np.ndarray:
        """What each joint had been told when its state was measured, NaN where nothing. Shape (n,)."""
        found = np.full_like(self._value, np.nan)
        for stamp in {stamp for stamp in self._stamp.tolist() if not math.isnan(stamp)}:
            row = next((row for told, row in reversed(self._commands) if told <= stamp), None)
            if row is not None:
                np.copyto(found, row, where=self._stamp == stamp)
        return found

    def _find_in_policy(self, task_id: int, chunks: int) -> Trouble | None:
        policy, body = self.policy, self._embodiment
        if policy is None:
            return Trouble(Result.POLICY_LOST, "no heartbeat of the policy yet", passing=True)
        if policy.embodiment != body.name:
            return Trouble(
                Result.CHUNK_INVALID,
                f"the policy serves embodiment {policy.embodiment!r}, the executor {body.name!r}",
            )
        if policy.task_id == task_id:
            if policy.state == PolicyState.STATE_FAULT:
                return Trouble(policy.code or Result.MODEL_FAULT, policy.message)
            if policy.state == PolicyState.STATE_WAITING and chunks:
                return Trouble(policy.code or Result.CAMERA_STALE, policy.message, passing=True)
        return None


def _count(places: Places) -> int:
    return places.stop - places.start if isinstance(places, slice) else len(places)


def _compact(places: list[int]) -> Places:
    """The same places as a slice, which costs least, where they follow one another."""
    if places and places == list(range(places[0], places[0] + len(places))):
        return slice(places[0], places[0] + len(places))
    return np.array(places, dtype=int)
