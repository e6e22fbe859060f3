# SPDX-License-Identifier: Apache-2.0
"""Serves ExecuteTask: follows chunks within limits, watches everything, stops the robot when in doubt."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from nav_msgs.msg import Odometry
from rclpy.action import ActionServer, CancelResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
from rclpy.qos import QoSProfile
from rclpy.subscription import Subscription
from sensor_msgs.msg import JointState
from std_srvs.srv import SetBool, Trigger

from qwen_vla_ros.action import ExecuteTask
from qwen_vla_ros.embodiment import Embodiment, InstructionError, check_instruction
from qwen_vla_ros.motion.follower import ChunkRefused, Command, Follower, MotionError, UnsupportedGroup
from qwen_vla_ros.msg import ActionChunk, ExecutorStatus, PolicyStatus, Task

from . import qos
from .configuration_checkup import check_executor
from .controllers import UnsupportedController, Writer, make_writer
from .diagnostics import Diagnostics, Health
from .executor_health import ExecutorHealth
from .instruction import InstructionTopic
from .lifecycle import BodyNode, ConfigurationError, declare, run, seconds
from .priority import run_first
from .transforms import yaw_of
from .watchdog import Trouble, Watchdog

Result = ExecuteTask.Result
State = ExecutorStatus

STATUS_PERIOD = 0.1

# How long the clock may stand still during a task, wall time [s].
CLOCK_PATIENCE = 5.0

# How long the process lives on after the result of a task [s].
RESULT_PATIENCE = 0.2

# Codes below it are ordinary ends of a task.
FIRST_ERROR = 100

# How much longer than planned the way home may take [s].
HOMING_PATIENCE = 3.0

# At rest, and no goal is taken.
CLOSED = (State.STATE_FAULT, State.STATE_HALTED, State.STATE_YIELDED)


@dataclass
class ActiveTask:
    """One accepted goal."""

    goal: ServerGoalHandle
    task_id: int
    instruction: str
    began: float
    time_limit: float
    # Everything needed was there, and motion may start.
    ready: bool = False
    # Commands were written for it.
    moved: bool = False
    # Time spent on hold [s].
    held: float = 0.0
    chunks: int = 0
    inference_time: float = math.nan
    # The end that was decided; reported when the robot is at rest.
    verdict: Trouble | None = None


class ExecutorNode(BodyNode):
    """See docs/nodes.md for topics, parameters and states."""

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
            "How far a joint may be from its command, for half a second [rad or m]; 0 for any",
            0.0,
            100.0,
        )
        declare(self, "exclusive", True, "Refuse to move while another node publishes on a command topic")
        declare(self, "warn_latency", 0.5, "Capture to command above which diagnostics warn [s]", 0.0, 3600.0)
        self._diagnostics: Diagnostics | None = None
        self._entities: list = []
        self._obeyed: list = []
        self._writers: dict[str, Writer] = {}
        self._server: ActionServer | None = None
        self._instruction: InstructionTopic | None = None
        self._clockwork: list = []
        self._task: ActiveTask | None = None
        self._next_task_id = time.time_ns()
        self._ended = -math.inf
        self._commands = 0

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
        check_executor(self, embodiment, self.value("dry_run"))
        self._take_priority(self.value("realtime_priority"))
        self._dry_run = self.value("dry_run")
        self._watchdog = Watchdog(
            embodiment,
            self._follower,
            {} if self._dry_run else self._writers,
            0.0 if self._dry_run else self.value("max_tracking_error"),
        )
        self._pending: ActionChunk | None = None
        self._state, self._trouble = State.STATE_IDLE, None
        self._rest_state, self._rest_reason = State.STATE_IDLE, None
        self._hold = False
        self._stop_began = self._stop_duration = self._rested_at = self._home_until = math.nan
        self._capture_to_command = math.nan
        self._clock_seen = math.nan, 0.0
        self._commands = 0
        self._health = ExecutorHealth(
            embodiment,
            self._follower,
            self._watchdog,
            {} if self._dry_run else self._writers,
            self.value("warn_latency"),
        )
        self._executors = 1
        self._task_publisher = self.create_publisher(Task, "task", qos.LATCHED)
        self._status_publisher = self.create_publisher(ExecutorStatus, "executor_status", qos.STATE)
        for name, kind, call in (
            ("stop", Trigger, self._on_stop),
            ("reset", Trigger, self._on_reset),
            ("pause", Trigger, self._on_pause),
            ("resume", Trigger, self._on_resume),
            ("home", Trigger, self._on_home),
            ("take_over", SetBool, self._on_take_over),
        ):
            self._obeyed.append(self.create_service(kind, f"~/{name}", call))
        for topic in embodiment.state.joint_states:
            keep = partial(self._watchdog.hear_joints, names=embodiment.state.joint_names.get(topic))
            self._entities.append(self.create_subscription(JointState, topic, keep, qos.SENSOR))
        if embodiment.state.odometry and self._follower.needs_odometry:
            self._entities.append(
                self.create_subscription(Odometry, embodiment.state.odometry, self._on_odometry, qos.SENSOR)
            )
        self._entities.append(
            self.create_subscription(ActionChunk, "action_chunk", self._on_chunk, qos.RELIABLE)
        )
        watchdog = self._watchdog
        self._entities += [
            self._listen_for_life(
                PolicyStatus,
                "policy_status",
                watchdog.hear_policy,
                qos.HEARTBEAT_WATCHED,
                watchdog.heartbeat.count,
            ),
            # Its own state, too: by the name alone a twin could not be told from a dead one of before.
            self._listen_for_life(
                ExecutorStatus, "executor_status", _ignore, qos.STATE_WATCHED, self._count_executors
            ),
        ]
        self._server = ActionServer(
            self,
            ExecuteTask,
            "execute_task",
            execute_callback=_refuse_to_run,
            handle_accepted_callback=self._on_goal,
            cancel_callback=lambda goal: CancelResponse.ACCEPT,
        )
        self._instruction = InstructionTopic(self)

    def activate(self) -> None:
        self._publish_task(0, False, "", self.now)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        # In simulation commands keep step with the simulated clock; on a robot they are as even as can be.
        clock = self.get_clock() if self.value("use_sim_time") else steady
        self._clockwork = [
            self.create_timer(self._follower.period, self._tick, clock=clock),
            self.create_timer(STATUS_PERIOD, self._report, clock=steady),
        ]
        parts = {
            "motion": self._motion_health,
            "chunks": self._health.chunks,
            "robot": lambda: self._health.robot(self.now),
        }
        self._diagnostics = Diagnostics(self, self.embodiment.name, parts)
        self._publish_status()

    def deactivate(self) -> None:
        if self._diagnostics is not None:
            self._diagnostics.destroy()
            self._diagnostics = None
        for timer in self._clockwork:
            self.destroy_timer(timer)
        self._clockwork = []
        # Nothing else runs during a transition, so the ramp is written here.
        while not (self._follower.resting or self._state == State.STATE_FAULT):
            self._write(self._follower.brake(), self.now)
            time.sleep(self._follower.period)
        if self._task is not None:
            message = "the executor was deactivated during the task"
            self._finish(self._task, Trouble(Result.EXECUTOR_SHUTDOWN, message))
        self._settle(None)

    def cleanup(self) -> None:
        if self._instruction is not None:
            self._instruction.destroy()
            self._instruction = None
        if self._server is not None:
            self._server.destroy()
            self._server = None
        for entity in self._entities:
            self.destroy_subscription(entity)
        self._entities = []
        for service in self._obeyed:
            self.destroy_service(service)
        self._obeyed = []
        for writer in self._writers.values():
            writer.destroy(self)
        self._writers = {}
        for name in ("_task_publisher", "_status_publisher"):
            publisher = self.__dict__.pop(name, None)
            if publisher is not None:
                self.destroy_publisher(publisher)

    def _take_priority(self, priority: int) -> None:
        """Run all threads, those of the middleware too, before others that want the processor."""
        if not priority:
            return
        try:
            run_first(priority)
        except OSError as error:
            self.get_logger().info(
                f"runs without real-time priority {priority} ({error}); docs/nodes.md says how to allow it"
            )

    @property
    def busy(self) -> bool:
        if not self.active:
            return False
        moving = self._task is not None or not (self._follower.resting or self._state == State.STATE_FAULT)
        # A result that was decided needs a few turns of the loop to reach the client.
        return moving or time.monotonic() < self._ended + RESULT_PATIENCE

    def prepare_end(self) -> None:
        if self.active:
            reason = Trouble(Result.EXECUTOR_SHUTDOWN, "the executor was asked to end during the task")
            self._come_to_rest(State.STATE_IDLE, reason)

    # What is heard

    def _listen_for_life(
        self, kind: type, topic: str, hear: Callable, profile: QoSProfile, count: Callable[[int], None]
    ) -> Subscription:
        """Subscribe; `count` is told how many publishers are alive, where the middleware knows."""
        listen = partial(self.create_subscription, kind, topic, hear, profile)
        events = SubscriptionEventCallbacks(liveliness=lambda event: count(event.alive_count))
        try:
            return listen(event_callbacks=events)
        except UnsupportedEventTypeError:
            self.get_logger().info(f"this middleware does not tell when a publisher of {topic} dies")
            return listen()

    def _count_executors(self, alive: int) -> None:
        self._executors = alive

    def _on_odometry(self, message: Odometry) -> None:
        pose = message.pose.pose
        value = [pose.position.x, pose.position.y, yaw_of(pose.orientation)]
        if np.isfinite(value).all():
            self._follower.pose.add(seconds(message.header.stamp), value)
        else:
            self.get_logger().warning(f"odometry holds {value}, dropped", throttle_duration_sec=1.0)

    def _on_chunk(self, message: ActionChunk) -> None:
        # The newest counts; it is looked at when the robot may follow it.
        self._pending, self._pending_at = message, self.now

    # Goals

    def _on_goal(self, goal: ServerGoalHandle) -> None:
        now = self.now
        if not self.active:
            _end_goal(goal, Result.NOT_ACTIVE, "the executor is not active: activate it first", 0.0, 0)
            return
        try:
            instruction = check_instruction(goal.request.instruction)
        except InstructionError as error:
            _end_goal(goal, Result.INVALID_INSTRUCTION, str(error), 0.0, 0)
            return
        limit = goal.request.time_limit
        longest = self.value("max_time_limit")
        if not (math.isfinite(limit) and 0 <= limit <= longest):
            message = f"time limit: found {limit} s, expected 0 to {longest} s"
            _end_goal(goal, Result.INVALID_TIME_LIMIT, message, 0.0, 0)
            return
        reason = self._trouble if self._state == State.STATE_FAULT else self._rest_reason
        if reason is not None:
            message = f"the executor refuses to move: {reason.message}"
            _end_goal(goal, reason.code, message, 0.0, 0)
            return
        if self._task is not None:
            self._finish(self._task, Trouble(Result.PREEMPTED, "a newer goal took over"))
        self._next_task_id += 1
        self._task = ActiveTask(
            goal, self._next_task_id, instruction, now, limit or self.value("default_time_limit")
        )
        self._watchdog.begin()
        self._pending = None
        self._hold = False
        self._capture_to_command = math.nan
        self._publish_task(self._task.task_id, True, instruction, now)
        # A robot that still moves for the task before comes to rest first: the new one starts from rest.
        self._set_state(State.STATE_WAITING if self._follower.resting else State.STATE_STOPPING, None)
        self._stop_began = self._rested_at = now
        self.get_logger().info(
            f"task {self._task.task_id}: {instruction!r}, at most {self._task.time_limit} s"
        )

    # The loop

    def _tick(self) -> None:
        now = self.now
        self._health.tick()
        self._watchdog.heartbeat.look()
        task = self._task
        if task is not None and task.began == 0.0:
            # The goal came before the first /clock: the task begins now.
            task.began = self._rested_at = now
            self._publish_task(task.task_id, True, task.instruction, now)
        try:
            if task is not None:
                self._watch(task, now)
            if self._state == State.STATE_WAITING:
                self._wait(task, now)
            elif self._state == State.STATE_RUNNING:
                self._run(task, now)
            elif self._state == State.STATE_HOMING:
                self._go_home(now)
            if self._state == State.STATE_STOPPING:
                self._stop(now)
            elif self._state == State.STATE_STOPPED:
                self._stay(task, now)
        except MotionError as error:
            # Nothing is written any more: controllers hold their last set-point.
            self._fault(str(error))

    def _watch(self, task: ActiveTask, now: float) -> None:
        """Decide whether the task must end, or the robot stop."""
        if task.verdict is not None:
            return
        if task.goal.is_cancel_requested:
            self._decide(Trouble(Result.CANCELLED, "cancelled"))
            return
        if self._hold:
            return  # the robot rests or is about to; time does not count
        if now - task.began - task.held >= task.time_limit:
            self._decide(Trouble(Result.TIME_LIMIT, f"ran to its time limit of {task.time_limit:.1f} s"))
            return
        trouble = self._find_trouble(task, now)
        if not task.ready:
            # At the start everything gets time to appear.
            if trouble is None:
                task.ready = True
            elif now - task.began > self.value("start_timeout") or not (
                trouble.passing or trouble.code in _APPEARING
            ):
                self._decide(trouble)
            return
        if trouble is None:
            return
        if not trouble.passing:
            self._decide(trouble)
        elif self._state == State.STATE_RUNNING:
            self._begin_stop(trouble, now)
        elif self._state == State.STATE_WAITING:
            self._set_state(State.STATE_STOPPED, trouble)
            self._rested_at = now

    def _find_trouble(self, task: ActiveTask, now: float) -> Trouble | None:
        return self._watchdog.find(task.task_id, task.chunks, now)

    def _wait(self, task: ActiveTask, now: float) -> None:
        """At rest at the start of a task: move with the first usable chunk."""
        if task.ready and self._pending is not None:
            self._start_moving(task, now)
        elif task.ready and now - self._rested_at > self.value("chunk_timeout"):
            waited = f"no chunk within {now - self._rested_at:.1f} s"
            self._decide(Trouble(Result.CHUNK_STALE, waited))

    def _start_moving(self, task: ActiveTask, now: float) -> None:
        # Within a task the controllers hold the last set-point; before it, others may have moved the robot.
        if task.moved:
            self._follower.go_on(now)
        else:
            self._follower.start(now)
        if self._accept(task, now):
            self._set_state(State.STATE_RUNNING, None)
            self._move(task, now)

    def _run(self, task: ActiveTask, now: float) -> None:
        if self._pending is not None:
            self._accept(task, now)
        if self._state != State.STATE_RUNNING:
            return
        remaining = self._follower.timeline.remaining(now)
        if remaining < 0:
            age = now - self._follower.timeline.stamp
            message = f"chunks stopped: the newest was captured {age:.2f} s ago and its last row has passed"
            self._begin_stop(Trouble(Result.CHUNK_STALE, message, passing=True), now)
            return
        self._move(task, now)

    def _move(self, task: ActiveTask, now: float) -> None:
        task.moved = True
        self._write(self._follower.step(now), now)
        if math.isnan(self._capture_to_command):
            written = self.now
            self._capture_to_command = written - self._follower.timeline.stamp
            self._health.commanded(self._capture_to_command, written)
            self._publish_feedback(task)
            self._publish_status()

    def _accept(self, task: ActiveTask, now: float) -> bool:
        """Take the waiting chunk; False, with the reason dealt with, when it cannot be followed."""
        message, self._pending = self._pending, None
        if message.task_id != task.task_id:
            return False  # of the task before
        names = self.embodiment.layout.names
        count = len(names)
        try:
            if message.embodiment != self.embodiment.name or tuple(message.channels) != names:
                raise ChunkRefused(
                    f"chunk of {message.embodiment} with channels {list(message.channels)}, "
                    f"expected {self.embodiment.name} with {list(names)}"
                )
            if len(message.data) != message.horizon * count:
                raise ChunkRefused(
                    f"chunk holds {len(message.data)} values, expected {message.horizon} rows of {count}"
                )
            rows = np.asarray(message.data).reshape(message.horizon, count)
            self._follower.offer(rows, seconds(message.header.stamp), message.step, now, message.sequence)
        except ChunkRefused as error:
            self._health.refused += 1
            if error.late:
                # Not a fault: the chunk being followed goes on, and its end is watched.
                self.get_logger().warning(
                    f"chunk {message.sequence} refused: {error}", throttle_duration_sec=1.0
                )
            else:
                self._decide(Trouble(Result.CHUNK_INVALID, f"chunk {message.sequence} refused: {error}"))
            return False
        task.chunks += 1
        task.inference_time = message.inference_time
        self._health.accepted(message, self._pending_at, now)
        self._capture_to_command = math.nan
        return True

    def _stop(self, now: float) -> None:
        self._write(self._follower.brake(), now)
        if not self._follower.resting:
            return
        self._stop_duration = now - self._stop_began
        task, self._rested_at = self._task, now
        if task is not None and task.verdict is not None:
            self._finish(task, task.verdict)
        elif task is not None and self._hold:
            self._set_state(State.STATE_HOLDING, None)
        elif task is not None and self._trouble is not None:
            self._set_state(State.STATE_STOPPED, self._trouble)
        elif task is not None:
            self._set_state(State.STATE_WAITING, None)
        else:
            self._settle(self._trouble)

    def _stay(self, task: ActiveTask, now: float) -> None:
        """At rest within a task: go on when the reason has passed, else end."""
        trouble = self._find_trouble(task, now)
        if trouble is None and self._pending is not None:
            # It came after the stop began: all that it depends on works again.
            self._start_moving(task, now)
            return
        patience = self.value("recovery_timeout" if trouble is not None else "chunk_timeout")
        if now - self._rested_at > patience:
            self._decide(trouble or self._trouble)

    def _begin_stop(self, trouble: Trouble | None, now: float) -> None:
        self._stop_began = now
        self._pending = None
        self._set_state(State.STATE_STOPPING, trouble)

    def _decide(self, verdict: Trouble) -> None:
        """The task ends; the robot comes to rest first."""
        self._task.verdict = verdict
        if self._follower.resting and self._state != State.STATE_RUNNING:
            self._finish(self._task, verdict)
            return
        reason = verdict if verdict.code >= FIRST_ERROR else None
        if self._state == State.STATE_STOPPING:
            self._set_state(State.STATE_STOPPING, reason)
        else:
            self._begin_stop(reason, self.now)

    def _finish(self, task: ActiveTask, verdict: Trouble) -> None:
        self._task, self._hold = None, False
        elapsed = self.now - task.began
        text = f"task {task.task_id} ended with code {verdict.code}: {verdict.message}"
        # One call each: rclpy ties a severity to the line that logs.
        if verdict.code < FIRST_ERROR:
            self.get_logger().info(text)
        else:
            self.get_logger().warning(text)
        self._publish_task(task.task_id, False, task.instruction, self.now)
        self._settle(verdict if verdict.code >= FIRST_ERROR else None)
        _end_goal(task.goal, verdict.code, verdict.message, elapsed, task.chunks)
        self._ended = time.monotonic()

    def _settle(self, trouble: Trouble | None) -> None:
        """Nothing is left to do."""
        self._set_state(self._rest_state, self._rest_reason or trouble)

    def _come_to_rest(self, state: int, reason: Trouble) -> None:
        """End what is being done, ramp to rest, and stay there in `state`."""
        self._rest_state = state
        self._rest_reason = None if state == State.STATE_IDLE else reason
        self._hold = False
        if self._task is not None:
            if self._task.verdict is None:
                self._decide(reason)
        elif self._state == State.STATE_FAULT:
            pass  # nothing is written in it
        elif not self._follower.resting:
            self._begin_stop(reason, self.now)
        else:
            self._settle(None)

    # Services

    def _on_stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if refused := self._refusal():
            return _answer(response, False, refused)
        reason = Trouble(Result.STOP_REQUESTED, "stopped by ~/stop; call ~/reset to go on")
        self._come_to_rest(State.STATE_HALTED, reason)
        return _answer(response, True, "at rest" if self._state in CLOSED else "stopping")

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if refused := self._refusal():
            return _answer(response, False, refused)
        if self._state == State.STATE_YIELDED or self._rest_state == State.STATE_YIELDED:
            return _answer(response, False, "the robot is in other hands: call ~/take_over with false")
        if self._state not in CLOSED and self._rest_state != State.STATE_IDLE:
            return _answer(response, False, "the robot still moves: call again when it rests")
        if self._state == State.STATE_FAULT:
            try:
                # The fault left the planner where it was, the robot may be elsewhere.
                self._follower.start(self.now)
            except ValueError as error:
                return _answer(response, False, str(error))
        if self._state in CLOSED:
            self._open()
        return _answer(response, True, "ready")

    def _on_pause(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if refused := self._refusal():
            return _answer(response, False, refused)
        if self._task is None or self._task.verdict is not None:
            return _answer(response, False, "no task to pause")
        if not self._hold:
            self._hold, self._hold_began = True, self.now
            if self._state == State.STATE_RUNNING:
                self._begin_stop(None, self.now)
            elif self._state != State.STATE_STOPPING:
                self._set_state(State.STATE_HOLDING, None)
        return _answer(response, True, "holding" if self._state == State.STATE_HOLDING else "stopping")

    def _on_resume(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if refused := self._refusal():
            return _answer(response, False, refused)
        if not self._hold:
            return _answer(response, False, "nothing is paused")
        self._hold = False
        self._task.held += self.now - self._hold_began
        self._pending = None
        self._watchdog.begin()
        if self._state == State.STATE_HOLDING:
            self._rested_at = self.now
            self._set_state(State.STATE_WAITING, None)
        return _answer(response, True, "going on with the next chunk")

    def _on_home(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if refused := self._refusal():
            return _answer(response, False, refused)
        if self._task is not None or self._state != State.STATE_IDLE:
            return _answer(
                response, False, "the robot is busy or stopped: home is for a robot without a task"
            )
        now = self.now
        self._watchdog.begin()
        trouble = self._watchdog.find_in_robot(now)
        if trouble is not None:
            return _answer(response, False, trouble.message)
        duration = self._follower.start_home(now, self.value("home_speed"))
        self._home_until = now + duration + HOMING_PATIENCE
        self._set_state(State.STATE_HOMING, None)
        return _answer(response, True, f"home in {duration:.1f} s")

    def _on_take_over(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if refused := self._refusal():
            return _answer(response, False, refused)
        if request.data:
            if State.STATE_HALTED in (self._state, self._rest_state) or self._state == State.STATE_FAULT:
                return _answer(response, False, "the robot is stopped: call ~/reset first")
            reason = Trouble(Result.TAKEN_OVER, "in other hands; call ~/take_over with false to give it back")
            self._come_to_rest(State.STATE_YIELDED, reason)
            at_rest = self._state == State.STATE_YIELDED
            return _answer(response, True, "yours" if at_rest else "stopping; yours in state YIELDED")
        if self._state != State.STATE_YIELDED:
            return _answer(response, False, "the robot is not in other hands")
        # The next motion starts from where the robot is then.
        self._open()
        return _answer(response, True, "taken back")

    def _refusal(self) -> str:
        return "" if self.active else "the executor is not active: activate it first"

    def _open(self) -> None:
        self._rest_state, self._rest_reason = State.STATE_IDLE, None
        self._set_state(State.STATE_IDLE, None)

    def _go_home(self, now: float) -> None:
        trouble = self._watchdog.find_in_robot(now)
        if trouble is None and now > self._home_until:
            trouble = Trouble(Result.TRACKING_LOST, "home is not reached in time: a limit is in the way")
        if trouble is not None:
            self._begin_stop(trouble, now)
            return
        self._write(self._follower.step_home(now), now)
        if self._follower.homed:
            self._set_state(State.STATE_IDLE, None)

    def _fault(self, reason: str) -> None:
        trouble = Trouble(Result.CHUNK_INVALID, reason)
        self.get_logger().error(f"refusing to move until ~/reset: {reason}")
        if self._task is not None:
            self._finish(self._task, trouble)
        self._set_state(State.STATE_FAULT, trouble)

    def _write(self, commands: list[Command], now: float) -> None:
        stamp = self.stamp(now)
        for command in commands:
            self._watchdog.note(command)
            if not self._dry_run:
                self._writers[command.group].write(command, stamp)
        self._commands += not self._dry_run

    # What is said

    def _motion_health(self) -> Health:
        facts = {
            "state": _STATE_NAMES[self._state],
            "task": "" if self._task is None else self._task.instruction,
            "dry run": self._dry_run,
            "commands": self._commands,
            "stop duration [s]": self._stop_duration,
        }
        trouble = "" if self._trouble is None else self._trouble.message
        return self._health.motion(facts, trouble, self._state in CLOSED)

    def _set_state(self, state: int, trouble: Trouble | None) -> None:
        changed = (state, trouble) != (self._state, self._trouble)
        if (
            trouble is not None
            and trouble != self._trouble
            and state in (State.STATE_STOPPING, State.STATE_STOPPED)
        ):
            self.get_logger().warning(f"stop: {trouble.message}")
        self._state, self._trouble = state, trouble
        if changed:
            self._publish_status()

    def _publish_task(self, task_id: int, active: bool, instruction: str, stamp: float) -> None:
        message = Task(task_id=task_id, active=active, instruction=instruction)
        message.header.stamp = self.stamp(stamp)
        self._task_publisher.publish(message)

    def _report(self) -> None:
        """Say how things are, and end a task whose clock has stopped: the loop, which runs by it, cannot."""
        now, wall = self.now, time.monotonic()
        if now != self._clock_seen[0]:
            self._clock_seen = now, wall
        elif self._task is not None and wall - self._clock_seen[1] > CLOCK_PATIENCE:
            message = f"the clock has stood at {now:.2f} s for {CLOCK_PATIENCE:.0f} s; is /clock published?"
            self._finish(self._task, Trouble(Result.JOINT_STATE_STALE, message))
        self._look_for_rivals()
        task, policy = self._task, self._watchdog.policy
        if task is not None and policy is not None and policy.task_id != task.task_id:
            # A policy that has just started may have missed it.
            self._publish_task(task.task_id, True, task.instruction, task.began)
        self._publish_status()

    def _look_for_rivals(self) -> None:
        """Who else commands the robot; looked at here, because the graph is slow to ask."""
        if not self.value("exclusive") or self._dry_run:
            return
        own = self.get_name(), self.get_namespace()
        rivals = {}
        for writer in self._writers.values():
            if self.count_publishers(writer.topic) > 1:
                infos = self.get_publishers_info_by_topic(writer.topic)
                names = [(info.node_name, info.node_namespace) for info in infos]
                if names := [_full_name(*name) for name in names if name != own]:
                    rivals[writer.topic] = names
        if self._executors > 1:
            rivals[self._status_publisher.topic_name] = [f"another {self.get_fully_qualified_name()}"]
        self._watchdog.rivals = rivals

    def _publish_status(self) -> None:
        now, task = self.now, self._task
        timeline = self._follower.timeline
        following = self._state == State.STATE_RUNNING
        message = ExecutorStatus(
            state=self._state,
            code=0 if self._trouble is None else self._trouble.code,
            message="" if self._trouble is None else self._trouble.message,
            embodiment=self.embodiment.name,
            task_id=0 if task is None else task.task_id,
            sequence=timeline.sequence if following else 0,
            remaining=timeline.remaining(now) if following else 0.0,
            capture_to_command=self._capture_to_command,
            commands=self._commands,
            clamped=self._follower.clamped,
            stop_duration=self._stop_duration,
            dry_run=self._dry_run,
        )
        message.header.stamp = self.stamp(now)
        self._status_publisher.publish(message)
        if task is not None:
            self._publish_feedback(task)

    def _publish_feedback(self, task: ActiveTask) -> None:
        task.goal.publish_feedback(
            ExecuteTask.Feedback(
                elapsed=self.now - task.began,
                chunks=task.chunks,
                inference_time=task.inference_time,
                capture_to_command=self._capture_to_command,
                state=self._state,
            )
        )


_STATE_NAMES = {
    value: name.removeprefix("STATE_").lower()
    for name, value in vars(State).items()
    if name.startswith("STATE_")
}

# Missing at the start, these may still appear within `start_timeout`.
_APPEARING = (Result.CONTROLLER_LOST, Result.JOINT_STATE_INVALID)


def _refuse_to_run(goal: ServerGoalHandle) -> ExecuteTask.Result:
    raise RuntimeError("goals are ended by _end_goal")


def _full_name(name: str, namespace: str) -> str:
    # A publisher is discovered before the node that it belongs to.
    return "a new node" if "UNKNOWN" in name else f"{namespace.rstrip('/')}/{name}"


def _ignore(message: ExecutorStatus) -> None:
    pass


def _answer(response, success: bool, message: str):
    response.success, response.message = success, message
    return response


def _end_goal(goal: ServerGoalHandle, code: int, message: str, elapsed: float, chunks: int) -> None:
    """Report the result of a goal.

    `execute` is called only here, when the result is known: a coroutine that waited for it would keep the
    executors of rclpy 7 busy, and a thread would race with the loop.
    """
    result = ExecuteTask.Result(code=code, message=message, elapsed=elapsed, chunks=chunks)

    def report(handle: ServerGoalHandle) -> ExecuteTask.Result:
        if code == Result.TIME_LIMIT:
            handle.succeed()
        elif code == Result.CANCELLED and handle.is_cancel_requested:
            handle.canceled()
        else:
            handle.abort()
        return result

    goal.execute(report)


def main() -> int:
    """Run the executor."""
    return run(ExecutorNode)


if __name__ == "__main__":
    sys.exit(main())
