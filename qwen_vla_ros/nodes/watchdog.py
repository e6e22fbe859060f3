# SPDX-License-Identifier: Apache-2.0
"""What has been heard of robot and policy, and what in it forbids motion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sensor_msgs.msg import JointState

from qwen_vla_ros.action import ExecuteTask
from qwen_vla_ros.embodiment import Embodiment
from qwen_vla_ros.motion.follower import Command, Follower, JointCommand
from qwen_vla_ros.msg import PolicyStatus

from .controllers import Writer
from .heartbeat import Heartbeat
from .lifecycle import seconds

Result = ExecuteTask.Result

# How long a joint may be off its command by more than it may [s].
TRACKING_PATIENCE = 0.5


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
        follower: receives measured joints; holds odometry.
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
    ):
        self._embodiment, self._follower, self._writers = embodiment, follower, writers
        self._max_tracking_error = max_tracking_error
        self._value: dict[str, float] = {}
        self._stamp: dict[str, float] = {}
        self._joint_trouble: Trouble | None = None
        self.heartbeat = Heartbeat(embodiment.stop.heartbeat_timeout)
        self._commanded: dict[str, float] = {}
        self._astray_since = math.nan
        self.policy: PolicyStatus | None = None
        self.rivals: dict[str, list[str]] = {}

    # What is heard

    def hear_joints(self, message: JointState, names: Sequence[str] | None = None) -> None:
        """Take a joint state; names: of its positions, in place of the message's own."""
        known = self._embodiment.joints
        names = message.name if names is None else names
        if len(message.position) != len(names):
            self._joint_trouble = Trouble(
                Result.JOINT_STATE_INVALID,
                f"joint states hold {len(names)} names and {len(message.position)} positions, "
                "expected as many of one as of the other",
            )
            return
        stamp = seconds(message.header.stamp)
        values = {n: p for n, p in zip(names, message.position) if n in known}  # noqa: B905 - same length
        broken = [name for name, position in values.items() if not math.isfinite(position)]
        if broken:
            self._joint_trouble = Trouble(
                Result.JOINT_STATE_INVALID,
                f"position of joint {broken[0]} is {values[broken[0]]}, expected a finite number; "
                "check the driver of the robot",
            )
            return
        self._value.update(values)
        self._stamp.update(dict.fromkeys(values, stamp))
        if len(self._value) == len(known):
            self._follower.joints.add(stamp, [self._value[name] for name in known])

    def hear_policy(self, message: PolicyStatus) -> None:
        self.heartbeat.hear()
        self.policy = message

    def note(self, command: Command) -> None:
        """A command that was written."""
        if isinstance(command, JointCommand):
            joints = self._joints_of(command.group)
            self._commanded.update(zip(joints, command.position.tolist(), strict=True))

    def begin(self) -> None:
        """A new task or motion: what was wrong before does not count."""
        self._joint_trouble = None
        self._commanded.clear()
        self._astray_since = math.nan

    def joint_age(self, now: float) -> float:
        """Age of the oldest joint's state [s]; infinite while one is missing, 0 without joints."""
        joints = self._embodiment.joints
        return max((now - self._stamp.get(joint, -math.inf) for joint in joints), default=0.0)

    # What forbids motion

    def find(self, task_id: int, chunks: int, now: float) -> Trouble | None:
        """The first thing that forbids motion in a task.

        Args:
            chunks: that were followed in the task.
        """
        return self._find_silence() or self.find_in_robot(now) or self._find_in_policy(task_id, chunks)

    def find_in_robot(self, now: float) -> Trouble | None:
        """The first thing that forbids any motion, with or without a policy."""
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
        return self._find_in_joints(now) or self._find_in_odometry(now) or self._find_astray(now)

    def _find_silence(self) -> Trouble | None:
        silence = self.heartbeat.silence
        return Trouble(Result.POLICY_LOST, silence, passing=True) if silence else None

    def _find_in_joints(self, now: float) -> Trouble | None:
        if self._joint_trouble is not None:
            return self._joint_trouble
        body = self._embodiment
        topics = ", ".join(body.state.joint_states)
        missing = [name for name in body.joints if name not in self._stamp]
        if missing and self._stamp:
            return Trouble(
                Result.JOINT_STATE_INVALID,
                f"joint {', '.join(missing)} is missing from {topics}, "
                f"which name {', '.join(sorted(self._stamp))}",
            )
        if missing:
            return Trouble(Result.JOINT_STATE_STALE, f"no joint states on {topics}", passing=True)
        if body.joints and self.joint_age(now) > body.state.max_age:
            oldest = min(body.joints, key=self._stamp.__getitem__)
            return Trouble(
                Result.JOINT_STATE_STALE,
                f"joint states on {topics} stopped: {oldest} is {now - self._stamp[oldest]:.2f} s old, "
                f"allowed {body.state.max_age} s",
                passing=True,
            )
        if (
            body.joints
            and (ahead := max(map(self._stamp.__getitem__, body.joints)) - now) > body.state.max_age
        ):
            # They would pass for fresh long after they have stopped.
            return Trouble(
                Result.JOINT_STATE_STALE,
                f"joint states on {topics} are stamped {ahead:.2f} s ahead of the clock, allowed "
                f"{body.state.max_age} s; are all clocks the same?",
                passing=True,
            )
        return None

    def _find_in_odometry(self, now: float) -> Trouble | None:
        if not self._follower.needs_odometry:
            return None
        state, newest = self._embodiment.state, self._follower.pose.newest
        age = math.inf if newest is None else now - newest[0]
        if abs(age) <= state.max_age:
            return None
        found = f"{age:.2f} s old" if age > 0 else f"stamped {-age:.2f} s ahead of the clock"
        return Trouble(
            Result.ODOMETRY_STALE,
            f"odometry on {state.odometry} is {found}, allowed {state.max_age} s",
            passing=True,
        )

    def _find_astray(self, now: float) -> Trouble | None:
        if not self._commanded or not self._max_tracking_error:
            return None
        error = {name: abs(value - self._value[name]) for name, value in self._commanded.items()}
        worst = max(error, key=error.__getitem__)
        if error[worst] <= self._max_tracking_error:
            self._astray_since = math.nan
            return None
        if math.isnan(self._astray_since):
            self._astray_since = now
        if now - self._astray_since <= TRACKING_PATIENCE:
            return None
        return Trouble(
            Result.TRACKING_LOST,
            f"joint {worst} is {error[worst]:.2f} from its command, allowed {self._max_tracking_error} for "
            f"{TRACKING_PATIENCE} s; is it blocked, or its controller not following?",
        )

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
            if policy.state == PolicyStatus.STATE_FAULT:
                return Trouble(policy.code or Result.MODEL_FAULT, policy.message)
            if policy.state == PolicyStatus.STATE_WAITING and chunks:
                return Trouble(policy.code or Result.CAMERA_STALE, policy.message, passing=True)
        return None

    def _joints_of(self, group: str) -> tuple[str, ...]:
        return next(part.joints for part in self._embodiment.actions if part.name == group)
