# SPDX-License-Identifier: Apache-2.0
"""Serves ExecuteTask: follows chunks within limits, watches everything, stops the robot when in doubt."""

from __future__ import annotations

import math
import sys
import threading
import time
from functools import partial
from typing import Any

import numpy as np
from rclpy.action import ActionServer, CancelResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.clock import Clock, ClockType
from sensor_msgs.msg import JointState

from qwen_vla_ros.action import ExecuteTask
from qwen_vla_ros.embodiment import Embodiment, InstructionError, check_instruction
from qwen_vla_ros.motion.follower import Follower, UnsupportedGroup
from qwen_vla_ros.msg import ActionChunk, ExecutorStatus, PolicyStatus

from . import qos
from .announcer import Announcer
from .base_pose import MESSAGES, flat_pose
from .cdr import JointStateReader, PolicyStatusReader
from .conductor import Conductor, Patience
from .configuration_checkup import check_executor
from .constants import State
from .controllers import UnsupportedController, Writer, make_writer
from .diagnostics import Diagnostics, Health
from .executor_health import ExecutorHealth
from .goals import ActiveTask, end_goal, refuse_to_run
from .inbox import Inbox
from .instruction import InstructionTopic
from .lifecycle import BodyNode, ConfigurationError, declare, run, seconds
from .pace import Pace
from .priority import claim
from .rivals import Rivals
from .services import Services
from .watchdog import Trouble, Watchdog

Result = ExecuteTask.Result

STATUS_PERIOD = 0.1


class ExecutorNode(BodyNode):
    """See docs/nodes.md for topics, parameters and states.

    The loop has a thread of its own, but in simulation; all else is done by rclpy's. What both touch is
    touched while the lock is held, by one period or one callback as a whole.
    """

    def __init__(self):
        super().__init__("executor")
        declare(self, "default_time_limit", 60.0, "Time limit of a goal that gives none [s]", 0.1, 86400.0)
        declare(self, "max_time_limit", 3600.0, "Longest time limit accepted [s]", 0.1, 86400.0)
        declare(
            self, "handover", "", "How chunks take over: replace, ensemble or rtc; empty as the YAML says"
        )
        declare(
            self,
            "start_timeout",
            5.0,
            "How long a new task waits for policy, joint states, odometry and controllers [s]",
            0.1,
            600.0,
        )
        declare(
            self,
            "chunk_timeout",
            10.0,
            "How long a new task, or one at rest, waits for a chunk while the policy reports no fault [s]",
            0.1,
            600.0,
        )
        declare(
            self,
            "recovery_timeout",
            2.0,
            "How long a stopped task waits for what made it stop to pass, before it ends [s]",
            0.0,
            600.0,
        )
        declare(
            self,
            "policy_lease",
            0.07,
            "Silence of a policy whose process gives no sign of life, before it counts as dead [s]",
            0.05,
            10.0,
        )
        declare(
            self,
            "realtime_priority",
            50,
            "SCHED_FIFO priority of the process, as controller_manager has it; 0 for none",
            0,
            99,
        )
        declare(
            self,
            "robot_description",
            "",
            "URDF, or path of a file with it, to compare with; empty for the topic robot_description",
        )
        declare(self, "dry_run", False, "Do everything but write to the controllers")
        declare(
            self,
            "home_speed",
            0.25,
            "Share of the joints' limits that ~/home uses",
            0.01,
            1.0,
        )
        declare(
            self,
            "max_tracking_error",
            0.5,
            "How far a joint that does not grip may be from its command, for 0.5 s [rad or m]; 0 for any",
            0.0,
            100.0,
        )
        declare(self, "exclusive", True, "Refuse to move while another node publishes on a command topic")
        declare(self, "warn_latency", 0.5, "Capture to command above which diagnostics warn [s]", 0.0, 3600.0)
        self._lock = threading.RLock()
        self.failed = False
        self._diagnostics: Diagnostics | None = None
        self._obeyed: Services | None = None
        self._inbox, self._twins = Inbox(self), Inbox(self)
        self._writers: dict[str, Writer] = {}
        self._announcer: Announcer | None = None
        self._server: ActionServer | None = None
        self._instruction: InstructionTopic | None = None
        self._pace: Pace | None = None
        self._status_timer = None
        self._next_task_id = time.time_ns()
        self._reported = 0.0

    # Lifecycle

    def configure(self, embodiment: Embodiment) -> None:
        try:
            self._follower = Follower(embodiment, self.value("handover") or None)
        except (UnsupportedGroup, ValueError) as error:
            raise ConfigurationError(f"embodiment {embodiment.name}: {error}") from error
        try:
            for group in embodiment.actions:
                self._writers[group.name] = make_writer(self, group, self._follower.period)
        except UnsupportedController as error:
            raise ConfigurationError(f"embodiment {embodiment.name}: {error}") from error
        self._path_writers = [writer for writer in self._writers.values() if writer.kind == "path"]
        dry_run = self.value("dry_run")
        check_executor(self, embodiment, dry_run)
        claim(self.value("realtime_priority"), self.get_logger())
        written = {} if dry_run else self._writers
        self._watchdog = Watchdog(
            embodiment,
            self._follower,
            written,
            0.0 if dry_run else self.value("max_tracking_error"),
            self.value("policy_lease"),
        )
        self._health = ExecutorHealth(
            embodiment, self._follower, self._watchdog, written, self.value("warn_latency")
        )
        self._announcer = Announcer(self)
        self._conductor = Conductor(
            self,
            self._follower,
            self._watchdog,
            written,
            self._health,
            self._announcer,
            Patience(
                self.value("start_timeout"), self.value("chunk_timeout"), self.value("recovery_timeout")
            ),
        )
        self._exclusive = self.value("exclusive") and not dry_run
        self._rivals = Rivals(self, self._writers.values(), self._announcer.status_topic)
        self._obeyed = Services(self, self._conductor, self.value("home_speed"), self._lock)
        self._listen(embodiment)
        self._server = ActionServer(
            self,
            ExecuteTask,
            "execute_task",
            execute_callback=refuse_to_run,
            handle_accepted_callback=self._on_goal,
            cancel_callback=lambda goal: CancelResponse.ACCEPT,
        )
        self._instruction = InstructionTopic(self)

    def activate(self) -> None:
        self._announcer.task(None, False, self.now)
        parts = {
            "motion": self._motion_health,
            "chunks": self._health.chunks,
            "robot": lambda: self._health.robot(self.now),
        }
        self._diagnostics = Diagnostics(self, self.embodiment.name, parts)
        self._conductor.say_status()
        # In simulation commands keep step with the simulated clock; on a robot they are as even as can be.
        simulated = self.value("use_sim_time")
        if simulated:
            # The loop stands while the clock does.
            steady = Clock(clock_type=ClockType.STEADY_TIME)
            self._status_timer = self.create_timer(STATUS_PERIOD, self._report, clock=steady)
        rests = lambda: self._conductor.idle  # noqa: E731
        self._pace = Pace(self, self._follower.period, self._beat, rests, self._lock, self._fail, simulated)

    def deactivate(self) -> None:
        if self._pace is not None:
            self._pace.stop()
            self._pace = None
        if self._diagnostics is not None:
            self._diagnostics.destroy()
            self._diagnostics = None
        if self._status_timer is not None:
            self.destroy_timer(self._status_timer)
            self._status_timer = None
        message = "the executor was deactivated during the task"
        self._conductor.end_at_once(Trouble(Result.EXECUTOR_SHUTDOWN, message))

    def cleanup(self) -> None:
        if self._instruction is not None:
            self._instruction.destroy()
            self._instruction = None
        if self._server is not None:
            self._server.destroy()
            self._server = None
        self._inbox.destroy()
        self._twins.destroy()
        if self._obeyed is not None:
            self._obeyed.destroy()
            self._obeyed = None
        for writer in self._writers.values():
            writer.destroy(self)
        self._writers = {}
        if self._announcer is not None:
            self._announcer.destroy()
            self._announcer = None

    @property
    def busy(self) -> bool:
        if not self.active:
            return False
        with self._lock:
            moving = self._conductor.task is not None or not self._conductor.at_rest
            # Without a loop it is `deactivate` that stops the robot.
            return (moving and self._pace.going) or self._conductor.lingers

    def prepare_end(self) -> None:
        if self.active:
            reason = Trouble(Result.EXECUTOR_SHUTDOWN, "the executor was asked to end during the task")
            with self._lock:
                self._conductor.come_to_rest(State.STATE_IDLE, reason)

    # The loop

    def _beat(self) -> None:
        if self._conductor.idle:
            self._health.rest()
        else:
            self._health.tick()
        self._watchdog.heartbeat.look()
        self._inbox.take()
        self._conductor.tick()
        if self._status_timer is None and time.monotonic() > self._reported + STATUS_PERIOD:
            self._report()

    def _fail(self, stack: str) -> None:
        """A defect; a robot that moves is stopped all the same."""
        self.get_logger().fatal(stack)
        self.failed = True
        self.ending.set()

    # What is heard

    def _listen(self, embodiment: Embodiment) -> None:
        inbox, watchdog = self._inbox, self._watchdog
        for topic in embodiment.state.joint_states:
            names = embodiment.state.joint_names.get(topic)
            hear = partial(watchdog.hear_joints, names=names)
            inbox.listen(JointState, topic, hear, qos.SENSOR, read=JointStateReader())
        base = embodiment.state.base
        if base is not None and self._follower.needs_pose:
            inbox.listen(MESSAGES[base.type], base.topic, self._on_pose, qos.SENSOR)
        inbox.listen(ActionChunk, "action_chunk", self._conductor.hear_chunk, qos.RELIABLE, urgent=True)
        inbox.listen(
            PolicyStatus,
            "policy_status",
            watchdog.hear_policy,
            qos.heartbeat_watched(self.value("policy_lease")),
            watchdog.heartbeat.count,
            read=PolicyStatusReader(),
        )
        # Who publishes counts, its own state too: see Rivals.
        self._twins.listen(
            ExecutorStatus, "executor_status", None, qos.STATE_WATCHED, self._rivals.count_executors
        )

    def _on_pose(self, message: Any) -> None:
        value = flat_pose(message)
        if np.isfinite(value).all():
            for writer in self._path_writers:
                writer.hear_frame(message.header.frame_id)
            self._follower.pose.add(seconds(message.header.stamp), value)
        else:
            topic = self.embodiment.state.base.topic
            self.get_logger().warning(
                f"the pose of the base on {topic} is {value}, dropped", throttle_duration_sec=1.0
            )

    # Goals

    def _on_goal(self, goal: ServerGoalHandle) -> None:
        if not self.active:
            end_goal(goal, Result.NOT_ACTIVE, "the executor is not active: activate it first")
            return
        try:
            instruction = check_instruction(goal.request.instruction)
        except InstructionError as error:
            end_goal(goal, Result.INVALID_INSTRUCTION, str(error))
            return
        limit = goal.request.time_limit
        longest = self.value("max_time_limit")
        if not (math.isfinite(limit) and 0 <= limit <= longest):
            message = f"time limit: found {limit} s, expected 0 to {longest} s"
            end_goal(goal, Result.INVALID_TIME_LIMIT, message)
            return
        limit = limit or self.value("default_time_limit")
        # A publisher that has gone since the last look must not be a reason to refuse.
        self._look_for_rivals()
        with self._lock:
            reason = self._conductor.refusal
            if reason is not None:
                end_goal(goal, reason.code, f"the executor refuses to move: {reason.message}")
                return
            self._next_task_id += 1
            self._conductor.begin(ActiveTask(goal, self._next_task_id, instruction, self.now, limit))

    # What is said

    def _motion_health(self) -> Health:
        with self._lock:
            conductor = self._conductor
            facts = {
                "state": _STATE_NAMES[conductor.state],
                "task": "" if conductor.task is None else conductor.task.instruction,
                "dry run": self.value("dry_run"),
                "commands": conductor.commands,
                "stop duration [s]": conductor.stop_duration,
            }
            trouble = "" if conductor.trouble is None else conductor.trouble.message
            closed = conductor.closed
        return self._health.motion(facts, trouble, closed)

    def _look_for_rivals(self) -> None:
        with self._lock:
            self._twins.take()
        rivals = self._rivals.look() if self._exclusive else {}
        with self._lock:
            self._watchdog.rivals = rivals

    def _report(self) -> None:
        self._reported = time.monotonic()
        self._look_for_rivals()
        with self._lock:
            self._inbox.take()
            self._conductor.say()


_STATE_NAMES = {
    value: name.removeprefix("STATE_").lower()
    for name, value in vars(State).items()
    if name.startswith("STATE_")
}


def main() -> int:
    """Run the executor."""
    return run(ExecutorNode)


if __name__ == "__main__":
    sys.exit(main())
