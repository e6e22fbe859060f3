# SPDX-License-Identifier: Apache-2.0
"""What the executor does, period by period: its states, and how it goes from one to another."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from rclpy.impl.rcutils_logger import RcutilsLogger

from qwen_vla_ros.action import ExecuteTask
from qwen_vla_ros.motion.follower import ChunkRefused, Command, Follower, JointCommand, MotionError
from qwen_vla_ros.msg import ActionChunk, ExecutorStatus

from .announcer import Announcer
from .constants import State
from .controllers import Writer
from .executor_health import ExecutorHealth
from .goals import ActiveTask, end_goal
from .lifecycle import BodyNode, seconds
from .watchdog import Trouble, Watchdog

Result = ExecuteTask.Result

# How long the clock may stand still during a task, wall time [s].
CLOCK_PATIENCE = 5.0

# How long the process lives on after the result of a task [s].
RESULT_PATIENCE = 0.2

# Codes below it are ordinary ends of a task.
FIRST_ERROR = 100

# How much longer than planned the way home may take [s].
HOMING_PATIENCE = 3.0

# How long a robot that rests may take to stand still before it goes on [s].
SETTLING_PATIENCE = 0.5

# At rest, and no goal is taken.
CLOSED = (State.STATE_FAULT, State.STATE_HALTED, State.STATE_YIELDED)

# Missing at the start, these may still appear in time.
_APPEARING = (Result.CONTROLLER_LOST, Result.JOINT_STATE_INVALID)


@dataclass(frozen=True)
class Patience:
    """How long is waited for what a task needs: at its start, for a chunk, for trouble to pass [s]."""

    start: float
    chunk: float
    recovery: float


class Conductor:
    """Moves the robot for one task at a time, or home; stops it when in doubt.

    Not for two threads at once: whoever calls holds the node's lock.

    Args:
        node: its clock and log.
        writers: by action group; empty in a dry run.

    Attributes:
        state: one of ExecutorStatus's.
        trouble: why it stops or rests, or None.
        rest_state: where the next stop leads.
        rest_reason: why no goal is taken, or will be once the robot rests; or None.
        task: the active one, or None.
        hold: the task is paused.
        stop_duration: of the last ramp to rest [s].
        commands: how many periods were written.
    """

    def __init__(
        self,
        node: BodyNode,
        follower: Follower,
        watchdog: Watchdog,
        writers: Mapping[str, Writer],
        health: ExecutorHealth,
        announcer: Announcer,
        patience: Patience,
    ):
        self._node, self._writers = node, writers
        self._stamped = any(writer.stamped for writer in writers.values())
        self._body = follower.embodiment
        self.follower, self.watchdog = follower, watchdog
        self._health, self._announcer, self._patience = health, announcer, patience
        self.state, self.trouble = State.STATE_IDLE, None
        self.rest_state, self.rest_reason = State.STATE_IDLE, None
        self.task: ActiveTask | None = None
        self.hold = False
        self.stop_duration = math.nan
        self.commands = 0
        # The chunk that is looked at next, and a newer one where that has to wait.
        self._pending: ActionChunk | None = None
        self._newer: tuple[ActionChunk, float] | None = None
        self._stop_began = self._rested_at = math.nan
        # When joints were told anything last, and since when there is trouble at rest.
        self._wrote, self._troubled_at = -math.inf, math.nan
        # Since when it has been waited that the robot stands.
        self._asked_at = math.nan
        # Share of the limits, until the way home has begun, and periods left to come there.
        self._home_share: float | None = None
        self._home_left = 0
        self._last = -math.inf
        self._hold_began = math.nan
        self._capture_to_command = math.nan
        self._clock_seen = math.nan, 0.0
        self._ended = -math.inf

    @property
    def now(self) -> float:
        return self._node.now

    @property
    def refusal(self) -> Trouble | None:
        """Why no goal is taken."""
        return self.trouble if self.state == State.STATE_FAULT else self.rest_reason

    @property
    def closed(self) -> bool:
        """At rest, and no goal is taken."""
        return self.state in CLOSED

    @property
    def idle(self) -> bool:
        """Nothing to do but to listen."""
        return self.task is None and self.at_rest and (self.state == State.STATE_IDLE or self.closed)

    @property
    def at_rest(self) -> bool:
        """Nothing moves: all that was written has been reached, and there is nothing to write."""
        return self.follower.resting and not any(writer.pending for writer in self._writers.values())

    @property
    def lingers(self) -> bool:
        """A result that was decided needs a few turns of the loop to reach the client."""
        return time.monotonic() < self._ended + RESULT_PATIENCE

    def hear_chunk(self, message: ActionChunk) -> None:
        # The newest counts whose place is known; it is looked at when the robot may follow it.
        if self._pending is None or self._measured(self._pending):
            self._pending, self._pending_at, self._newer = message, self.now, None
        else:
            self._newer = message, self.now

    def _chunk_waits(self) -> bool:
        """There is a chunk that may be followed."""
        if self._newer is not None and self._measured(self._newer[0]):
            (self._pending, self._pending_at), self._newer = self._newer, None
        return self._pending is not None and self._measured(self._pending)

    def _drop_chunks(self) -> None:
        self._pending = self._newer = None

    def _measured(self, chunk: ActionChunk) -> bool:
        """It is known where the robot was when the picture was taken, or the picture is from no time past.

        Joint states may be late: rows that count from that place wait for them.
        """
        stamp = seconds(chunk.header.stamp)
        return stamp > self.now or self.follower.knows(stamp)

    def begin(self, task: ActiveTask) -> None:
        """A goal was accepted; whatever was done for another ends."""
        if self.task is not None:
            self._finish(self.task, Trouble(Result.PREEMPTED, "a newer goal took over"))
        self.task = task
        self.watchdog.begin()
        self._drop_chunks()
        self.hold = False
        self._capture_to_command = math.nan
        self._announcer.task(task, True, task.began)
        # A robot that still moves for the task before comes to rest first: the new one starts from rest.
        self.set_state(State.STATE_WAITING if self.at_rest else State.STATE_STOPPING, None)
        self._stop_began = self._rested_at = task.began
        self._log.info(f"task {task.task_id}: {task.instruction!r}, at most {task.time_limit} s")

    # The loop

    def tick(self) -> None:
        """One period."""
        now = self.now
        if now < self._last:
            self._shift(now - self._last)
        self._last = now
        task = self.task
        if task is not None and task.began == 0.0:
            # The goal came before the first /clock: the task begins now.
            task.began = self._rested_at = now
            self._announcer.task(task, True, now)
        try:
            if task is not None:
                self._watch(task, now)
            if self.state == State.STATE_WAITING:
                self._wait(task, now)
            elif self.state == State.STATE_RUNNING:
                self._run(task, now)
            elif self.state == State.STATE_HOMING:
                self._go_home(now)
            elif self.state == State.STATE_HOLDING:
                self.follower.settle(self._wrote)
            if self.state == State.STATE_STOPPING:
                self._stop(now)
            elif self.state == State.STATE_STOPPED:
                self._stay(task, now)
        except MotionError as error:
            self._fault(str(error))
            return
        if not (self.follower.placed or self.follower.resting) and self.state != State.STATE_STOPPING:
            # After a fault, or a clock that stood: what is told velocities comes to rest.
            self._write(self.follower.halt(), now)

    def _shift(self, step: float) -> None:
        """The clock went back: what is counted from its past goes with it."""
        self._log.warning(f"the clock went back by {-step:.2f} s")
        # What has begun since the clock went back is right already.
        now = self._last + step
        shifted = lambda time: time + step if time > now else time  # noqa: E731
        for name in ("_rested_at", "_hold_began", "_stop_began", "_wrote", "_troubled_at", "_asked_at"):
            setattr(self, name, shifted(getattr(self, name)))
        if -step > self._body.state.max_age:
            # What was measured then would count as fresh when the clock comes round to it.
            self.watchdog.forget_joints()
            self.follower.joints.clear()
            self.follower.pose.clear()
        if self.task is not None:
            self.task.began = shifted(self.task.began)
            self._announcer.task(self.task, True, self.task.began)

    def _watch(self, task: ActiveTask, now: float) -> None:
        """Decide whether the task must end, or the robot stop."""
        if task.verdict is not None:
            return
        if task.goal.is_cancel_requested:
            self._decide(Trouble(Result.CANCELLED, "cancelled"))
            return
        if self.hold:
            return  # the robot rests or is about to; time does not count
        if now - task.began - task.held >= task.time_limit:
            self._decide(Trouble(Result.TIME_LIMIT, f"ran to its time limit of {task.time_limit:.1f} s"))
            return
        trouble = self._find_trouble(task, now)
        if not task.ready:
            # At the start everything gets time to appear.
            if trouble is None:
                task.ready = True
            elif now - task.began > self._patience.start or not (
                trouble.passing or trouble.code in _APPEARING
            ):
                self._decide(trouble)
            return
        if trouble is None:
            return
        if not trouble.passing:
            self._decide(trouble)
        elif self.state == State.STATE_RUNNING:
            self.begin_stop(trouble, now)
        elif self.state == State.STATE_WAITING:
            self._rest(trouble, now)

    def _rest(self, trouble: Trouble, now: float) -> None:
        """At rest within the task, for a reason that may pass."""
        self._rested_at, self._troubled_at = now, math.nan
        self.set_state(State.STATE_STOPPED, trouble)

    def _find_trouble(self, task: ActiveTask, now: float) -> Trouble | None:
        return self.watchdog.find(task.task_id, task.chunks, now)

    def _wait(self, task: ActiveTask, now: float) -> None:
        """At rest at the start of a task: move with the first usable chunk."""
        if task.ready and self._may_start:
            self._start_moving(task, now)
        elif task.ready and now - self._rested_at > self._patience.chunk:
            waited = f"no chunk within {now - self._rested_at:.1f} s"
            self._decide(Trouble(Result.CHUNK_STALE, waited))

    @property
    def stands(self) -> bool:
        """It lags behind its last set-point no more, or that was asked for long enough."""
        if self.follower.settle(self._wrote):
            return True
        if math.isnan(self._asked_at):
            self._asked_at = self.now
        return self.now - self._asked_at >= SETTLING_PATIENCE

    @property
    def _may_start(self) -> bool:
        return self._chunk_waits() and self.stands

    def _start_moving(self, task: ActiveTask, now: float) -> None:
        # Within a task the controllers hold the last set-point; before it, others may have moved the robot.
        if task.moved:
            if moved := self.follower.go_on(now):
                self._log.warning(f"{', '.join(moved)}: moved by others meanwhile; goes on from where it is")
                # Until a command says so, that is where nobody was told to be: another start measures again.
                task.moved = False
        else:
            self.follower.start(now)
        if self._accept(task, now):
            self.set_state(State.STATE_RUNNING, None)
            self._move(task, now)

    def _run(self, task: ActiveTask, now: float) -> None:
        if self._chunk_waits():
            self._accept(task, now)
        if self.state != State.STATE_RUNNING:
            return
        remaining = self.follower.timeline.remaining(now)
        if remaining < 0:
            age = now - self.follower.timeline.stamp
            message = f"chunks stopped: the newest was captured {age:.2f} s ago and its last row has passed"
            self.begin_stop(Trouble(Result.CHUNK_STALE, message, passing=True), now)
            return
        self._move(task, now)

    def _move(self, task: ActiveTask, now: float) -> None:
        task.moved = True
        self._write(self.follower.step(now), now)
        if math.isnan(self._capture_to_command):
            written = self.now
            self._capture_to_command = written - self.follower.timeline.stamp
            self._health.commanded(self._capture_to_command, written)
            self.say_status()
        self.follower.prepare(now + self.follower.period)

    def _accept(self, task: ActiveTask, now: float) -> bool:
        """Take the waiting chunk; False, with the reason dealt with, when it cannot be followed."""
        message, heard = self._pending, self._pending_at
        self._pending = None
        if self._newer is not None:
            (self._pending, self._pending_at), self._newer = self._newer, None
        if message.task_id != task.task_id:
            return False  # of the task before
        names = self._body.layout.names
        count = len(names)
        try:
            if message.embodiment != self._body.name or tuple(message.channels) != names:
                raise ChunkRefused(
                    f"chunk of {message.embodiment} with channels {list(message.channels)}, "
                    f"expected {self._body.name} with {list(names)}"
                )
            if len(message.data) != message.horizon * count:
                raise ChunkRefused(
                    f"chunk holds {len(message.data)} values, expected {message.horizon} rows of {count}"
                )
            rows = np.asarray(message.data).reshape(message.horizon, count)
            self.follower.offer(rows, seconds(message.header.stamp), message.step, now, message.sequence)
        except ChunkRefused as error:
            self._health.refused += 1
            if error.late:
                # Not a fault: the chunk being followed goes on, and its end is watched.
                self._log.warning(f"chunk {message.sequence} refused: {error}", throttle_duration_sec=1.0)
            else:
                self._decide(Trouble(Result.CHUNK_INVALID, f"chunk {message.sequence} refused: {error}"))
            return False
        task.chunks += 1
        task.inference_time = message.inference_time
        self._health.accepted(message, heard, now)
        self._capture_to_command = math.nan
        return True

    def _stop(self, now: float) -> None:
        if not self.follower.resting:
            self._write(self.follower.brake(), now)
        if self.follower.resting:
            self._complete()
        if not self.at_rest:
            return
        self.stop_duration = now - self._stop_began
        task, self._rested_at = self.task, now
        if task is not None and task.verdict is not None:
            self._finish(task, task.verdict)
        elif task is not None and self.hold:
            self.set_state(State.STATE_HOLDING, None)
        elif task is not None and self.trouble is not None:
            self._rest(self.trouble, now)
        elif task is not None:
            self.set_state(State.STATE_WAITING, None)
        else:
            self._settle(self.trouble)

    def _stay(self, task: ActiveTask, now: float) -> None:
        """At rest within a task: go on when the reason has passed, else end."""
        self.follower.settle(self._wrote)
        trouble = self._find_trouble(task, now)
        if trouble is None and self._may_start:
            # The chunk came after the stop began: all that it depends on works again.
            self._start_moving(task, now)
            return
        # For trouble from its own beginning: it need not be what stopped the robot.
        if trouble is None:
            self._troubled_at = math.nan
        elif math.isnan(self._troubled_at):
            self._troubled_at = now
        if trouble is not None and now - self._troubled_at > self._patience.recovery:
            self._decide(trouble)
        elif trouble is None and now - self._rested_at > self._patience.chunk:
            waited = f"no chunk within {now - self._rested_at:.1f} s; stopped by: {self.trouble.message}"
            self._decide(Trouble(Result.CHUNK_STALE, waited))

    def _go_home(self, now: float) -> None:
        trouble = self.watchdog.find_in_robot(now)
        if trouble is None and self._home_share is not None:
            if not self.stands:
                return
            self._lead_home(self._home_share)
            self._home_share = None
        self._home_left -= 1
        if trouble is None and self._home_left < 0:
            trouble = Trouble(Result.TRACKING_LOST, "home is not reached in time: a limit is in the way")
        if trouble is not None:
            self.begin_stop(trouble, now)
            return
        if not self.follower.homed:
            self._write(self.follower.step_home(), now)
            return
        self._complete()
        if self.at_rest:
            self.set_state(State.STATE_IDLE, None)

    # From one state to another

    def set_state(self, state: int, trouble: Trouble | None) -> None:
        changed = (state, trouble) != (self.state, self.trouble)
        if state != self.state:
            self._asked_at = math.nan
        if (
            trouble is not None
            and trouble != self.trouble
            and state in (State.STATE_STOPPING, State.STATE_STOPPED)
        ):
            self._log.warning(f"stop: {trouble.message}")
        self.state, self.trouble = state, trouble
        if changed:
            self.say_status()

    def begin_stop(self, trouble: Trouble | None, now: float) -> None:
        self._stop_began = now
        self._drop_chunks()
        self.set_state(State.STATE_STOPPING, trouble)

    def come_to_rest(self, state: int, reason: Trouble) -> None:
        """End what is being done, ramp to rest, and stay there in `state`."""
        self.rest_state = state
        self.rest_reason = None if state == State.STATE_IDLE else reason
        self.hold = False
        if self.task is not None:
            if self.task.verdict is None:
                self._decide(reason)
        elif self.state == State.STATE_FAULT:
            pass  # nothing is written in it
        elif not self.at_rest:
            self.begin_stop(reason, self.now)
        else:
            self._settle(None)

    def open(self) -> None:
        """Take goals again."""
        self.rest_state, self.rest_reason = State.STATE_IDLE, None
        self.set_state(State.STATE_IDLE, None)

    def pause(self) -> None:
        """Come to rest within the task."""
        self.hold, self._hold_began = True, self.now
        if self.state == State.STATE_RUNNING:
            self.begin_stop(None, self.now)
        elif self.state != State.STATE_STOPPING:
            self.set_state(State.STATE_HOLDING, None)

    def resume(self) -> None:
        """Go on, after `pause`, with the next chunk."""
        self.hold = False
        self.task.held += self.now - self._hold_began
        self._drop_chunks()
        self.watchdog.begin()
        if self.state == State.STATE_HOLDING:
            self._rested_at = self.now
            self.set_state(State.STATE_WAITING, None)

    def start_home(self, share: float) -> float:
        """Go home at a share of the limits, once the robot stands; about how long it will take [s]."""
        duration = self._lead_home(share)
        self._home_share = share
        self.set_state(State.STATE_HOMING, None)
        return duration

    def _lead_home(self, share: float) -> float:
        duration = self.follower.start_home(self.now, share)
        self._home_left = round((duration + HOMING_PATIENCE) / self.follower.period)
        return duration

    def end_at_once(self, reason: Trouble) -> None:
        """Ramp to rest here and now: the loop has been stopped."""
        while not self.follower.resting:
            try:
                self._write(self.follower.brake(), self.now)
            except MotionError as error:
                self._fault(str(error))
            self._flush(rest=False)
            time.sleep(self.follower.period)
        self._flush(rest=True)
        if self.task is not None:
            self._finish(self.task, reason)
        if self.state != State.STATE_FAULT:
            self._settle(None)

    def _complete(self) -> None:
        for writer in self._writers.values():
            writer.complete()

    def _flush(self, rest: bool) -> None:
        for writer in self._writers.values():
            writer.flush(rest)

    def _decide(self, verdict: Trouble) -> None:
        """The task ends; the robot comes to rest first."""
        self.task.verdict = verdict
        if self.at_rest and self.state != State.STATE_RUNNING:
            self._finish(self.task, verdict)
            return
        reason = verdict if verdict.code >= FIRST_ERROR else None
        if self.state == State.STATE_STOPPING:
            self.set_state(State.STATE_STOPPING, reason)
        else:
            self.begin_stop(reason, self.now)

    def _finish(self, task: ActiveTask, verdict: Trouble) -> None:
        self.task, self.hold = None, False
        elapsed = self.now - task.began
        text = f"task {task.task_id} ended with code {verdict.code}: {verdict.message}"
        # One call each: rclpy ties a severity to the line that logs.
        if verdict.code < FIRST_ERROR:
            self._log.info(text)
        else:
            self._log.warning(text)
        self._announcer.task(task, False, self.now)
        self._settle(verdict if verdict.code >= FIRST_ERROR else None)
        end_goal(task.goal, verdict.code, verdict.message, elapsed, task.chunks)
        self._ended = time.monotonic()

    def _settle(self, trouble: Trouble | None) -> None:
        """Nothing is left to do."""
        self.set_state(self.rest_state, self.rest_reason or trouble)

    def _fault(self, reason: str) -> None:
        trouble = Trouble(Result.CHUNK_INVALID, reason)
        self._log.error(f"refusing to move until ~/reset: {reason}")
        self._write(self.follower.halt(), self.now)
        if self.task is not None:
            self._finish(self.task, trouble)
        # Whatever the stop was to lead to: the fault has a way out of its own.
        self.rest_state, self.rest_reason = State.STATE_IDLE, None
        self.set_state(State.STATE_FAULT, trouble)

    def _write(self, commands: list[Command], now: float) -> None:
        self.watchdog.note(commands, now)
        if any(isinstance(command, JointCommand) for command in commands):
            self._wrote = now
        if not self._writers or not commands:
            return  # a dry run, or nothing new to say
        stamp = self._node.stamp(now) if self._stamped else None
        for command in commands:
            self._writers[command.group].write(command, stamp)
        self.commands += 1

    # What is said

    def say(self) -> None:
        """How things are. Ends a task whose clock has stopped: the loop, which runs by it, cannot."""
        now, wall = self.now, time.monotonic()
        # A task is not told of the time before it.
        if now != self._clock_seen[0] or self.task is None:
            self._clock_seen = now, wall
        elif wall - self._clock_seen[1] > CLOCK_PATIENCE:
            message = f"the clock has stood at {now:.2f} s for {CLOCK_PATIENCE:.0f} s; is /clock published?"
            self._write(self.follower.halt(), now)
            self._finish(self.task, Trouble(Result.JOINT_STATE_STALE, message))
        task, policy = self.task, self.watchdog.policy
        if task is not None and policy is not None and policy.task_id != task.task_id:
            # A policy that has just started may have missed it.
            self._announcer.task(task, True, task.began)
        self.say_status()

    def say_status(self) -> None:
        now, task = self.now, self.task
        timeline = self.follower.timeline
        following = self.state == State.STATE_RUNNING
        message = ExecutorStatus(
            state=self.state,
            code=0 if self.trouble is None else self.trouble.code,
            message="" if self.trouble is None else self.trouble.message,
            embodiment=self._body.name,
            task_id=0 if task is None else task.task_id,
            sequence=timeline.sequence if following else 0,
            remaining=timeline.remaining(now) if following else 0.0,
            capture_to_command=self._capture_to_command,
            commands=self.commands,
            clamped=self.follower.clamped,
            stop_duration=self.stop_duration,
            dry_run=not self._writers,
        )
        self._announcer.status(message, now)
        if task is not None:
            self._announcer.feedback(task, self.state, self._capture_to_command, now)

    @property
    def _log(self) -> RcutilsLogger:
        return self._node.get_logger()
