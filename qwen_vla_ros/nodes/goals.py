# SPDX-License-Identifier: Apache-2.0
"""A goal of execute_task that was accepted, and how its end is reported."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rclpy.action.server import ServerGoalHandle
from rclpy.impl.implementation_singleton import rclpy_implementation

from qwen_vla_ros.action import ExecuteTask

from .watchdog import Trouble

Result = ExecuteTask.Result


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


def refuse_to_run(goal: ServerGoalHandle) -> ExecuteTask.Result:
    raise RuntimeError("goals are ended by end_goal")


def end_goal(goal: ServerGoalHandle, code: int, message: str, elapsed: float = 0.0, chunks: int = 0) -> None:
    """Report the result of a goal.

    `execute` is called only here, when the result is known: a coroutine that waited for it would keep the
    executors of rclpy 7 busy.
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

    try:
        goal.execute(report)
    except rclpy_implementation.RCLError:
        # A cancel came between rclpy's look at the goal and its transition; now it is seen.
        goal.execute(report)
