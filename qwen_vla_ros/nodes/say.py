# SPDX-License-Identifier: Apache-2.0
"""`qwen-vla say`: send one instruction, watch it, cancel it with Ctrl-C."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from .ending import Ending

FIRST_ERROR = 100
CANCELLED = 2


def say(
    instruction: Annotated[str, typer.Argument(help="What to do, in words.")],
    time_limit: Annotated[float, typer.Option(min=0.0, help="Seconds; 0 for the executor's default.")] = 0.0,
    namespace: Annotated[str, typer.Option(help="ROS namespace of the robot.")] = "",
    wait: Annotated[float, typer.Option(min=0.0, help="How long to wait for the executor, in s.")] = 10.0,
) -> None:
    """Make the robot follow an instruction; Ctrl-C cancels it and the robot comes to rest.

    Exit status: 0 when the task ran to its time limit or was cancelled, else 1.
    """
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    # Ctrl-C must reach this program, not end the connection to the executor.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        result = _execute(rclpy.create_node("say", namespace=namespace), instruction, time_limit, wait)
    finally:
        rclpy.try_shutdown()
    raise typer.Exit(1 if result is None or result.code >= FIRST_ERROR else 0)


def _execute(node: Any, instruction: str, time_limit: float, wait: float) -> Any:
    import rclpy
    from rclpy.action import ActionClient
    from rich.console import Console

    from qwen_vla_ros.action import ExecuteTask

    console = Console(stderr=True, highlight=False)
    client = ActionClient(node, ExecuteTask, "execute_task")
    name = node.resolve_service_name("execute_task")
    seen: list = []
    asked = Ending()

    def on_signal(number: int, frame: Any) -> None:
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the second one leaves at once

    def spin_until(done: Callable[[], bool], seconds: float = math.inf) -> bool:
        deadline = time.monotonic() + seconds
        while not done() and time.monotonic() < deadline:
            rclpy.spin_once(node, timeout_sec=0.1)
        return done()

    signal.signal(signal.SIGINT, on_signal)
    if not spin_until(lambda: asked.is_set() or client.server_is_ready(), wait):
        console.print(
            f"nobody serves {name} (waited {wait:g} s); is the executor running, in this namespace and with "
            "this ROS_DOMAIN_ID?"
        )
        return None
    if asked.is_set():
        return None
    request = ExecuteTask.Goal(instruction=instruction, time_limit=time_limit)
    sent = client.send_goal_async(request, lambda message: seen.append(message.feedback))
    if not spin_until(sent.done, wait):
        console.print(f"{name} does not answer")
        return None
    goal = sent.result()
    future = goal.get_result_async()
    with console.status(f"{instruction}: sent") as line:

        def told() -> bool:
            if seen:
                line.update(f"{instruction}: {_describe(seen[-1])}")
            return future.done() or asked.is_set()

        spin_until(told)
        if not future.done():
            line.update(f"{instruction}: cancelling")
            goal.cancel_goal_async()
            spin_until(future.done, wait)
    if not future.done():
        console.print(f"{name} did not end the task within {wait:g} s")
        return None
    result = future.result().result
    style = "red" if result.code >= FIRST_ERROR else "yellow" if result.code == CANCELLED else "green"
    text = f"{result.message} (code {result.code}; {result.elapsed:.1f} s, {result.chunks} chunks)"
    console.print(text, style=style, markup=False)
    return result


def _describe(feedback: Any) -> str:
    from qwen_vla_ros.msg import ExecutorStatus

    states = {
        getattr(ExecutorStatus, name): name.removeprefix("STATE_").lower()
        for name in dir(ExecutorStatus)
        if name.startswith("STATE_")
    }
    text = f"{states.get(feedback.state, feedback.state)}, {feedback.elapsed:.1f} s, {feedback.chunks} chunks"
    if math.isfinite(feedback.inference_time):
        text += f", inference {1000 * feedback.inference_time:.0f} ms"
    if math.isfinite(feedback.capture_to_command):
        text += f", capture to command {1000 * feedback.capture_to_command:.0f} ms"
    return text
