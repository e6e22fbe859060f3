# SPDX-License-Identifier: Apache-2.0
"""How even the executor's commands are while the policy process is busy, and what they cost."""

from __future__ import annotations

import itertools
import os
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen_vla_ros import resources
from qwen_vla_ros.bench import BenchResult, _image_traffic
from qwen_vla_ros.embodiment import load_embodiment

SECONDS = 20.0
START = 60.0
# Without a task [s].
IDLE = 5.0


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        rate: of commands [Hz].
        deviation: of the period, 99th percentile, that is allowed [ms].
        share: of a core that the executor may take; None for any.
    """

    body: str
    rate: float
    deviation: float
    share: float | None


CASES = (Case("franka_panda", 100.0, 3.0, None), Case("aloha_viperx", 250.0, 2.0, 25.0))


@dataclass(frozen=True)
class Measured:
    """stamps: of the commands, by the middleware [s]; idle, moving: share of a core."""

    stamps: np.ndarray
    chunks: int
    idle: float
    moving: float


def run() -> list[BenchResult]:
    """Real `policy` and `executor` processes; a robot that obeys; inference without a pause."""
    return [result for case in CASES for result in measure(case)]


def measure(case: Case) -> list[BenchResult]:
    environment = _image_traffic.private_environment()
    os.environ.update(
        {name: environment[name] for name in ("ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE")}
    )
    with tempfile.TemporaryDirectory(prefix="qwen_vla_bench_") as folder:
        busy = Path(folder) / f"{case.body}.yaml"
        text = (resources.embodiments_directory() / busy.name).read_text()
        # A chunk is due with every row: the policy is at work all the time.
        for field, value in (("execute_steps", 1), ("command_rate", case.rate)):
            text = re.sub(f"^{field}: .*$", f"{field}: {value}", text, flags=re.MULTILINE)
        busy.write_text(text)
        found = _measure(busy, Path(folder))
    deviation = np.abs(np.diff(found.stamps) - 1 / case.rate) * 1e3
    what = f"executor of {case.body} at {case.rate:g} Hz, policy busy"
    return [
        BenchResult(
            f"{what}: deviation of the period, p99",
            float(np.percentile(deviation, 99)),
            "ms",
            target=case.deviation,
            detail={
                "p50": float(np.median(deviation)),
                "worst": float(deviation.max()),
                "commands": len(found.stamps),
                "chunks": found.chunks,
            },
        ),
        BenchResult(
            f"{what}: processor, moving", 100 * found.moving, "% of a core", case.share, detail=_machine()
        ),
        BenchResult(f"{what}: processor, at rest", 100 * found.idle, "% of a core", case.share),
    ]


def _machine() -> dict[str, Any]:
    return {"load": os.getloadavg()[0], "cores": len(os.sched_getaffinity(0))}


def _processor_time(process: int) -> float:
    """Of all threads of a process, those that have ended left out [s]."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) * 1e-9


def _measure(path: Path, folder: Path) -> Measured:
    import rclpy
    from rclpy.action import ActionClient
    from sensor_msgs.msg import Image, JointState
    from std_msgs.msg import Float64MultiArray
    from trajectory_msgs.msg import JointTrajectory

    from qwen_vla_ros.action import ExecuteTask
    from qwen_vla_ros.demo.processes import NodeGroup
    from qwen_vla_ros.msg import PolicyStatus
    from qwen_vla_ros.nodes import qos

    body = load_embodiment(path)
    parameters: dict[str, dict[str, object]] = {
        "executor": {"embodiment": path},
        "policy": {"embodiment": path, "camera_timeout": START},
    }
    rclpy.init()
    node = rclpy.create_node("robot", namespace="bench")
    position = dict(body.home)
    stamps: list[int] = []
    policy: list[PolicyStatus] = []
    # Two in turn: a camera that repeats one picture while the robot moves counts as frozen.
    images = itertools.cycle(
        Image(height=128, width=128, step=384, encoding="rgb8", data=bytes([shade]) * (128 * 128 * 3))
        for shade in (0, 1)
    )

    def obey(group: Any, told: Any) -> None:
        position.update(zip(group.joints, told, strict=True))

    def note(info: dict) -> None:
        stamps.append(info["source_timestamp"])

    def state() -> None:
        message = JointState(name=list(position), position=list(position.values()))
        message.header.stamp = node.get_clock().now().to_msg()
        joints.publish(message)

    def picture() -> None:
        image = next(images)
        image.header.stamp = node.get_clock().now().to_msg()
        camera.publish(image)

    joints = node.create_publisher(JointState, body.state.joint_states[0], qos.RELIABLE)
    camera = node.create_publisher(Image, body.cameras[0].topic, qos.IMAGE)
    timed = body.actions[0]
    for group in body.actions:
        kind = JointTrajectory if group.controller.type == "joint_trajectory" else Float64MultiArray

        def hear(message: Any, info: dict, group: Any = group) -> None:
            if group is timed:
                note(info)
            points = getattr(message, "points", None)
            obey(group, points[0].positions if points else message.data)

        # Each command counts: what is late here must not be lost here.
        node.create_subscription(kind, group.controller.topic, hear, qos.RELIABLE)
    node.create_subscription(PolicyStatus, "policy_status", policy.append, qos.RELIABLE)
    node.create_timer(0.01, state)
    node.create_timer(1 / 30, picture)
    client = ActionClient(node, ExecuteTask, "execute_task")

    def wait(condition: Any, timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            rclpy.spin_once(node, timeout_sec=0.05)
            nodes.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout} s for {what}")

    def share(condition: Any, timeout: float, what: str) -> float:
        """Of a core, that the executor takes until something is so."""
        process = nodes.process_id("executor")
        before, began = _processor_time(process), time.monotonic()
        wait(condition, timeout, what)
        return (_processor_time(process) - before) / (time.monotonic() - began)

    try:
        with NodeGroup("bench", parameters, folder) as nodes:
            wait(lambda: policy and client.server_is_ready(), START, "policy and executor")
            rested = time.monotonic() + IDLE
            idle = share(lambda: time.monotonic() > rested, 2 * IDLE, "the time at rest")
            goal = ExecuteTask.Goal(instruction="reach the red cube", time_limit=SECONDS)
            sent = client.send_goal_async(goal)
            wait(sent.done, 10.0, "the goal to be accepted")
            result = sent.result().get_result_async()
            wait(lambda: stamps or result.done(), 20.0, "the first command")
            moving = share(result.done, SECONDS + 20.0, "the end of the task")
            outcome = result.result().result
    finally:
        node.destroy_node()
        rclpy.shutdown()
    if outcome.code != ExecuteTask.Result.TIME_LIMIT:
        raise RuntimeError(f"the task ended with code {outcome.code}: {outcome.message}")
    return Measured(np.array(stamps) * 1e-9, int(outcome.chunks), idle, moving)
