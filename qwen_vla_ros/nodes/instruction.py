# SPDX-License-Identifier: Apache-2.0
"""Tasks by topic: a string becomes a goal of execute_task, an empty one cancels it."""

from __future__ import annotations

from typing import Any

from rclpy.action import ActionClient
from rclpy.node import Node
from std_msgs.msg import String

from qwen_vla_ros.action import ExecuteTask

from . import qos

FIRST_ERROR = ExecuteTask.Result.INVALID_INSTRUCTION


class InstructionTopic:
    """`~/instruction` of a node that serves `execute_task`: a goal as any other, its end in the log."""

    def __init__(self, node: Node):
        self._node = node
        self._goal: Any = None
        self._client = ActionClient(node, ExecuteTask, "execute_task")
        self._subscription = node.create_subscription(String, "~/instruction", self._hear, qos.RELIABLE)

    def destroy(self) -> None:
        self._node.destroy_subscription(self._subscription)
        self._client.destroy()

    def _hear(self, message: String) -> None:
        if message.data.strip():
            goal = ExecuteTask.Goal(instruction=message.data)
            self._client.send_goal_async(goal).add_done_callback(self._accepted)
        elif self._goal is not None:
            self._goal.cancel_goal_async()

    def _accepted(self, future: Any) -> None:
        self._goal = goal = future.result()
        goal.get_result_async().add_done_callback(lambda result: self._ended(goal, result.result().result))

    def _ended(self, goal: Any, result: ExecuteTask.Result) -> None:
        if self._goal is goal:
            self._goal = None
        if result.code >= FIRST_ERROR:
            self._node.get_logger().warning(
                f"instruction by topic ended with code {result.code}: {result.message}"
            )
