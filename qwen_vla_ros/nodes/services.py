# SPDX-License-Identifier: Apache-2.0
"""What people may ask of the executor: stop, reset, pause, resume, home, take over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from std_srvs.srv import SetBool, Trigger

from qwen_vla_ros.action import ExecuteTask

from .conductor import CLOSED, Conductor
from .constants import State
from .lifecycle import BodyNode
from .watchdog import Trouble

Result = ExecuteTask.Result
Answer = tuple[bool, str]


class Services:
    """The services of a node; each is answered while `lock` is held.

    Args:
        home_speed: share of the joints' limits that `~/home` uses.
    """

    def __init__(self, node: BodyNode, conductor: Conductor, home_speed: float, lock: threading.RLock):
        self._node, self._conductor, self._home_speed, self._lock = node, conductor, home_speed, lock
        self._services = [
            node.create_service(kind, f"~/{name}", self._answering(answer))
            for name, kind, answer in (
                ("stop", Trigger, self._stop),
                ("reset", Trigger, self._reset),
                ("pause", Trigger, self._pause),
                ("resume", Trigger, self._resume),
                ("home", Trigger, self._home),
                ("take_over", SetBool, self._take_over),
            )
        ]

    def destroy(self) -> None:
        for service in self._services:
            self._node.destroy_service(service)
        self._services = []

    def _answering(self, answer: Callable[[Any], Answer]) -> Callable[[Any, Any], Any]:
        def call(request: Any, response: Any) -> Any:
            with self._lock:
                if self._node.active:
                    response.success, response.message = answer(request)
                else:
                    response.success = False
                    response.message = "the executor is not active: activate it first"
            return response

        return call

    def _stop(self, request: Trigger.Request) -> Answer:
        if self._conductor.state == State.STATE_YIELDED:
            return False, "the robot is in other hands: stop it there; the executor commands nothing"
        reason = Trouble(Result.STOP_REQUESTED, "stopped by ~/stop; call ~/reset to go on")
        self._conductor.come_to_rest(State.STATE_HALTED, reason)
        return True, "at rest" if self._conductor.closed else "stopping"

    def _reset(self, request: Trigger.Request) -> Answer:
        conductor = self._conductor
        if State.STATE_YIELDED in (conductor.state, conductor.rest_state):
            return False, "the robot is in other hands: call ~/take_over with false"
        if conductor.state not in CLOSED and conductor.rest_state != State.STATE_IDLE:
            return False, "the robot still moves: call again when it rests"
        if conductor.state == State.STATE_FAULT:
            if not conductor.at_rest:
                return False, "the base still comes to rest: call again"
            try:
                # The fault left the planner where it was, the robot may be elsewhere.
                conductor.follower.start(conductor.now)
            except ValueError as error:
                return False, str(error)
        if conductor.closed:
            conductor.open()
        return True, "ready"

    def _pause(self, request: Trigger.Request) -> Answer:
        conductor = self._conductor
        if conductor.task is None or conductor.task.verdict is not None:
            return False, "no task to pause"
        if not conductor.hold:
            conductor.pause()
        return True, "holding" if conductor.state == State.STATE_HOLDING else "stopping"

    def _resume(self, request: Trigger.Request) -> Answer:
        if not self._conductor.hold:
            return False, "nothing is paused"
        self._conductor.resume()
        return True, "going on with the next chunk"

    def _home(self, request: Trigger.Request) -> Answer:
        conductor = self._conductor
        if conductor.task is not None or conductor.state != State.STATE_IDLE:
            return False, "the robot is busy or stopped: home is for a robot without a task"
        if not conductor.at_rest:
            return False, "the robot still comes to rest: call again"
        conductor.watchdog.begin()
        trouble = conductor.watchdog.find_in_robot(conductor.now)
        if trouble is not None:
            return False, trouble.message
        return True, f"home in {conductor.start_home(self._home_speed):.1f} s"

    def _take_over(self, request: SetBool.Request) -> Answer:
        conductor = self._conductor
        if request.data:
            halted = State.STATE_HALTED in (conductor.state, conductor.rest_state)
            if halted or conductor.state == State.STATE_FAULT:
                return False, "the robot is stopped: call ~/reset first"
            reason = Trouble(Result.TAKEN_OVER, "in other hands; call ~/take_over with false to give it back")
            conductor.come_to_rest(State.STATE_YIELDED, reason)
            at_rest = conductor.state == State.STATE_YIELDED
            return True, "yours" if at_rest else "stopping; yours in state YIELDED"
        if conductor.state != State.STATE_YIELDED:
            return False, "the robot is not in other hands"
        # The next motion starts from where the robot is then.
        conductor.open()
        return True, "taken back"
