# SPDX-License-Identifier: Apache-2.0
"""What the executor tells the policy, its clients and whoever looks."""

from __future__ import annotations

from qwen_vla_ros.action import ExecuteTask
from qwen_vla_ros.msg import ExecutorStatus, Task

from . import qos
from .goals import ActiveTask
from .lifecycle import BodyNode


class Announcer:
    """Publishers of `task` and `executor_status`, and the feedback of goals.

    Attributes:
        status_topic: resolved name.
    """

    def __init__(self, node: BodyNode):
        self._node = node
        self._tasks = node.create_publisher(Task, "task", qos.LATCHED)
        self._states = node.create_publisher(ExecutorStatus, "executor_status", qos.STATE)
        self.status_topic = self._states.topic_name

    def destroy(self) -> None:
        self._node.destroy_publisher(self._tasks)
        self._node.destroy_publisher(self._states)

    def task(self, task: ActiveTask | None, active: bool, stamp: float) -> None:
        """A task, or none yet, has begun or ended at `stamp` [s]."""
        message = Task(
            task_id=0 if task is None else task.task_id,
            active=active,
            instruction="" if task is None else task.instruction,
        )
        message.header.stamp = self._node.stamp(stamp)
        self._tasks.publish(message)

    def status(self, message: ExecutorStatus, stamp: float) -> None:
        message.header.stamp = self._node.stamp(stamp)
        self._states.publish(message)

    def feedback(self, task: ActiveTask, state: int, capture_to_command: float, now: float) -> None:
        task.goal.publish_feedback(
            ExecuteTask.Feedback(
                elapsed=now - task.began,
                chunks=task.chunks,
                inference_time=task.inference_time,
                capture_to_command=capture_to_command,
                state=state,
            )
        )
