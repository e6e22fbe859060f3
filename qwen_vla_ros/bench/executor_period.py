# SPDX-License-Identifier: Apache-2.0
"""How even the executor's commands are while the policy process is busy."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from qwen_vla_ros import resources
from qwen_vla_ros.bench import BenchResult, _image_traffic
from qwen_vla_ros.embodiment import load_embodiment

SECONDS = 20.0
START = 60.0


def run() -> list[BenchResult]:
    """Real `policy` and `executor` processes at 100 Hz; a robot that obeys; inference without a pause."""
    environment = _image_traffic.private_environment()
    os.environ.update(
        {name: environment[name] for name in ("ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE")}
    )
    with tempfile.TemporaryDirectory(prefix="qwen_vla_bench_") as folder:
        busy = Path(folder) / "franka_panda.yaml"
        text = (resources.embodiments_directory() / busy.name).read_text()
        # A chunk is due with every row: the policy is at work all the time.
        busy.write_text(text.replace("execute_steps: 8", "execute_steps: 1"))
        stamps, chunks = _measure(busy, Path(folder))
    deviation = np.abs(np.diff(stamps) - 0.01) * 1e3
    return [
        BenchResult(
            "executor at 100 Hz, policy busy: deviation of the period, p99",
            float(np.percentile(deviation, 99)),
            "ms",
            target=3.0,
            detail={
                "p50": float(np.median(deviation)),
                "worst": float(deviation.max()),
                "commands": len(stamps),
                "chunks": chunks,
            },
        )
    ]


def _measure(path: Path, folder: Path) -> tuple[np.ndarray, int]:
    """When the commands were written [s], by the middleware's stamp, and how many chunks were followed."""
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
    arm, gripper = body.actions
    position = dict(body.home)
    stamps: list[int] = []
    policy: list[PolicyStatus] = []
    # Two in turn: a camera that repeats one picture while the robot moves counts as frozen.
    images = itertools.cycle(
        Image(height=128, width=128, step=384, encoding="rgb8", data=bytes([shade]) * (128 * 128 * 3))
        for shade in (0, 1)
    )

    def obey(message: JointTrajectory, info: dict) -> None:
        stamps.append(info["source_timestamp"])
        position.update(zip(message.joint_names, message.points[0].positions, strict=True))

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
    node.create_subscription(JointTrajectory, arm.controller.topic, obey, qos.RELIABLE)
    node.create_subscription(Float64MultiArray, gripper.controller.topic, lambda _: None, qos.RELIABLE)
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

    try:
        with NodeGroup("bench", parameters, folder) as nodes:
            wait(lambda: policy and client.server_is_ready(), START, "policy and executor")
            goal = ExecuteTask.Goal(instruction="reach the red cube", time_limit=SECONDS)
            sent = client.send_goal_async(goal)
            wait(sent.done, 10.0, "the goal to be accepted")
            result = sent.result().get_result_async()
            wait(result.done, SECONDS + 20.0, "the end of the task")
            outcome = result.result().result
    finally:
        node.destroy_node()
        rclpy.shutdown()
    if outcome.code != ExecuteTask.Result.TIME_LIMIT:
        raise RuntimeError(f"the task ended with code {outcome.code}: {outcome.message}")
    return np.array(stamps) * 1e-9, int(outcome.chunks)
