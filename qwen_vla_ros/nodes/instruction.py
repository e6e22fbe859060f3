# SPDX-License-Identifier: Apache-2.0
"""Tasks by topic: a string becomes a goal of execute_task, an empty one cancels it."""

from __future__ import annotations

from typing import Any

from rclpy.action import ActionClient
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from std_msgs.msg import String

from qwen_vla_ros.action import ExecuteTask

from . import qos

FIRST_ERROR = ExecuteTask.Result.INVALID_INSTRUCTION

# How often it is looked whether the node's own server has been discovered [s].
LOOK_PERIOD = 0.01


class InstructionTopic:
    """`~/instruction` of a node that serves `execute_task`: a goal as any other, its end in the log."""

    def __init__(self, node: Node):
        self._node = node
        self._goal: Any = None
        self._instruction = ""
        # Made with the first instruction: feedback of all goals wakes it.
        self._client: ActionClient | None = None
        self._subscription = node.create_subscription(String, "~/instruction", self._hear, qos.RELIABLE)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = node.create_timer(LOOK_PERIOD, self._send, clock=steady)
        self._timer.cancel()

    def destroy(self) -> None:
        self._node.destroy_timer(self._timer)
        self._node.destroy_subscription(self._subscription)
        if self._client is not None:
            self._client.destroy()

    def _hear(self, message: String) -> None:
        self._instruction = message.data
        if message.data.strip():
            self._client = self._client or ActionClient(self._node, ExecuteTask, "execute_task")
            self._timer.reset()
        elif self._goal is not None:
            self._goal.cancel_goal_async()

    def _send(self) -> None:
        """Send what was heard last, unless it was taken back, once the server is there."""
        assert self._client is not None
        if not self._instruction.strip():
            self._timer.cancel()
        elif self._client.server_is_ready():
            self._timer.cancel()
            goal = ExecuteTask.Goal(instruction=self._instruction)
            self._client.send_goal_async(goal).add_done_callback(self._accepted)

    def _accepted(self, future: Any) -> None:
        self._goal = goal = future.result()
        if not self._instruction.strip():
            goal.cancel_goal_async()  # taken back meanwhile
        goal.get_result_async().add_done_callback(lambda result: self._ended(goal, result.result().result))

    def _ended(self, goal: Any, result: ExecuteTask.Result) -> None:
        if self._goal is goal:
            self._goal = None
        if result.code >= FIRST_ERROR:
            self._node.get_logger().warning(
                f"instruction by topic ended with code {result.code}: {result.message}"
            )
