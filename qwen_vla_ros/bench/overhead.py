# SPDX-License-Identifier: Apache-2.0
"""What everything that is not the model costs: three 640x480 rgb8 cameras at 30 Hz, real policy and executor.

The policy's model takes a constant time, which is taken off; decoding and resizing are not. Beside it the
plainest subscriber that rclpy allows, for the same images.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from qwen_vla_ros import resources
from qwen_vla_ros.bench import BenchResult, _image_traffic, _timed_policy
from qwen_vla_ros.embodiment import load_embodiment

SECONDS = 15.0
START = 60.0
# How long images come in without a task [s], and how long processes have before that to find each other.
REST, SETTLE = 5.0, 3.0
# Of the robot [s].
PERIOD = 0.01
BODY = "aloha_viperx"
RATES = (500.0, 250.0, 100.0)
STAGES = (
    "image made ready, to the model's thread",
    "to the model",
    "check and publish",
    "published to first command",
)
TARGET = 5.0  # [ms], for the first of them: the period that a command waits for counts


def run() -> list[BenchResult]:
    """Overhead at several command rates, delivery and processor time per camera."""
    environment = _image_traffic.private_environment()
    os.environ.update(
        {name: environment[name] for name in ("ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE")}
    )
    results = []
    for rate in RATES:
        with tempfile.TemporaryDirectory(prefix="qwen_vla_bench_") as folder:
            results += _overhead(rate, Path(folder), environment)
    with (
        _image_traffic.process("receive", REST, environment) as receiver,
        _image_traffic.process("send", REST, environment) as sender,
    ):
        timeout = _image_traffic.DISCOVERY + 3 * REST
        sent = _image_traffic.report(sender, timeout)["sent"]
        plain = _image_traffic.report(receiver, timeout)
    results += [
        BenchResult(
            "plainest subscriber: image frames delivered",
            100.0 * plain["received"] / sent,
            "%",
            higher_is_better=True,
        ),
        BenchResult("plainest subscriber: capture to image callback, p99", plain["p99"], "ms"),
        BenchResult("plainest subscriber: processor per camera", plain["share"], "% of a core"),
    ]
    return results


def _body(rate: float, folder: Path) -> Path:
    content = yaml.safe_load((resources.embodiments_directory() / f"{BODY}.yaml").read_text())
    camera = content["cameras"][0]
    content["cameras"] = [
        {
            **camera,
            "view": view,
            "topic": f"/{_image_traffic.topic(view)}",
            "size": [_image_traffic.WIDTH, _image_traffic.HEIGHT],
        }
        for view in _image_traffic.VIEWS
    ]
    # Rows of 10 ms: the next chunk is always due, and no image waits for that.
    content |= {"command_rate": rate, "control_rate": 100.0, "execute_steps": 1}
    # The robot of this benchmark may be late on a busy machine; only the figure should tell.
    content["state"]["max_age"] = 2.0
    path = folder / f"{BODY}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def _processor_time(process: int) -> float:
    """[s]"""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _overhead(rate: float, folder: Path, environment: dict[str, str]) -> list[BenchResult]:
    import rclpy
    from rclpy.action import ActionClient
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import JointState
    from std_msgs.msg import Float64MultiArray
    from trajectory_msgs.msg import JointTrajectory

    from qwen_vla_ros.action import ExecuteTask
    from qwen_vla_ros.demo.processes import NodeGroup, NodeProcess
    from qwen_vla_ros.msg import ActionChunk, ExecutorStatus, PolicyStatus
    from qwen_vla_ros.nodes import inbox, qos
    from qwen_vla_ros.nodes.lifecycle import seconds

    path = _body(rate, folder)
    body = load_embodiment(path)
    rclpy.init()
    node = rclpy.create_node("robot", namespace="bench")
    position = {name: body.posture().get(name, 0.0) for name in body.joints}
    due, periods = time.monotonic(), 0
    policy: list[PolicyStatus] = []
    stamps: dict[int, float] = {}
    reached: dict[int, float] = {}

    def obey(group: Any, message: Any) -> None:
        points = getattr(message, "points", None)
        position.update(zip(group.joints, points[0].positions if points else message.data, strict=True))

    def listen(kind: Any, topic: str, depth: int, hear: Any) -> None:
        """Hear messages when the robot has time for them; none of them wakes it."""
        profile = QoSProfile(depth=depth, reliability=ReliabilityPolicy.RELIABLE)
        subscription = node.create_subscription(
            kind, topic, lambda message: None, profile, callback_group=alone
        )
        heard.append((subscription, hear))

    def live() -> None:
        """One period of the robot, which takes less than what it measures."""
        nonlocal due, periods
        due = max(due + PERIOD, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
        periods += 1
        for subscription, hear in heard:
            while (taken := subscription.handle.take_message(subscription.msg_type, False)) is not None:
                hear(taken[0])
        if periods % 10 == 0:
            for _ in range(5):
                rclpy.spin_once(node, timeout_sec=0)
        message = JointState(name=list(position), position=list(position.values()))
        message.header.stamp = node.get_clock().now().to_msg()
        joints.publish(message)

    def follow(message: ExecutorStatus) -> None:
        if message.sequence and np.isfinite(message.capture_to_command):
            reached.setdefault(int(message.sequence), float(message.capture_to_command))

    def note(message: ActionChunk) -> None:
        stamps[int(message.sequence)] = seconds(message.header.stamp)

    joints = node.create_publisher(JointState, body.state.joint_states[0], qos.RELIABLE)
    alone, heard = inbox.LeftAlone(), []
    for group in body.actions:
        kind = JointTrajectory if group.controller.type == "joint_trajectory" else Float64MultiArray
        listen(kind, group.controller.topic, 1, partial(obey, group))
    listen(ExecutorStatus, "executor_status", 100, follow)
    listen(ActionChunk, "action_chunk", 100, note)
    listen(PolicyStatus, "policy_status", 100, policy.append)
    client = ActionClient(node, ExecuteTask, "execute_task")

    def wait(condition: Any, timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            live()
            if periods % 10 == 0:
                nodes.check()
                timed.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout} s for {what}")

    def pause(length: float) -> None:
        ended = time.monotonic() + length
        wait(lambda: time.monotonic() > ended, 2 * length + 1.0, "time to pass")

    out = folder / "timed.json"
    command = [sys.executable, "-m", _timed_policy.__name__, str(out), "--ros-args", "-r", "__ns:=/bench"]
    for name, value in (("embodiment", path), ("camera_timeout", START)):
        command += ["-p", f"{name}:={value}"]
    try:
        with (
            _image_traffic.process("send", START + 4 * SECONDS, environment) as sender,
            NodeGroup("bench", {"executor": {"embodiment": path}}, folder) as nodes,
        ):
            timed = NodeProcess("policy", command, folder / "policy.log", dict(os.environ))
            try:
                wait(
                    lambda: policy and all(policy[-1].frames) and client.server_is_ready(),
                    START,
                    "policy, executor and images",
                )
                pause(SETTLE)
                busy, began = _processor_time(timed.process_id), time.monotonic()
                before = list(policy[-1].frames)
                pause(REST)
                busy, span = _processor_time(timed.process_id) - busy, time.monotonic() - began
                frames = sum(policy[-1].frames) - sum(before)
                goal = ExecuteTask.Goal(instruction="reach the red cube", time_limit=SECONDS)
                sent = client.send_goal_async(goal)
                wait(sent.done, 10.0, "the goal to be accepted")
                result = sent.result().get_result_async()
                wait(result.done, SECONDS + 20.0, "the end of the task")
                outcome = result.result().result
                sender.terminate()
                sender.wait(10.0)
                pause(1.0)
                quiet, began = _processor_time(timed.process_id), time.monotonic()
                pause(REST)
                quiet, silence = _processor_time(timed.process_id) - quiet, time.monotonic() - began
            finally:
                timed.end()
    finally:
        node.destroy_node()
        rclpy.shutdown()
    if outcome.code != ExecuteTask.Result.TIME_LIMIT:
        raise RuntimeError(f"the task ended with code {outcome.code}: {outcome.message}")
    arrivals, chunks = _timed_policy.read(out)
    stages = []
    for sequence, latency in reached.items():
        stamp = stamps.get(sequence)
        if stamp is not None and (chunk := chunks.get(_timed_policy.microseconds(stamp))):
            moved = stamp + latency
            stages.append(
                [
                    chunk.begun - chunk.called,
                    chunk.ready - chunk.begun,
                    chunk.sent - chunk.done,
                    moved - chunk.sent,
                ]
            )
    if not stages:
        raise RuntimeError("no chunk reached the robot")
    parts = 1e3 * np.array(stages)
    overheads = parts.sum(axis=1)
    first = rate == RATES[0]
    share = 100.0 * (busy / span - quiet / silence) / len(_image_traffic.VIEWS)
    results = [
        BenchResult(
            f"last image's callback to first command at {rate:g} Hz, less the model, p99",
            float(np.percentile(overheads, 99)),
            "ms",
            target=TARGET if first else None,
            detail={
                "p50": float(np.median(overheads)),
                "worst": float(overheads.max()),
                **{
                    f"{name}, p50 and p99": [round(float(np.percentile(part, q)), 2) for q in (50, 99)]
                    for name, part in zip(STAGES, parts.T, strict=True)
                },
                "chunks": len(overheads),
                "of them the wait for the executor's period, at most [ms]": 1e3 / rate,
                "load": os.getloadavg()[0],
            },
        )
    ]
    if first:
        results += [
            BenchResult(
                "policy: image frames taken, of 30 Hz",
                100.0 * frames / (_image_traffic.RATE * span * len(_image_traffic.VIEWS)),
                "%",
                higher_is_better=True,
            ),
            BenchResult(
                "policy: capture to image callback, p99", float(np.percentile(arrivals, 99)) * 1e3, "ms"
            ),
            BenchResult("policy: processor per camera", share, "% of a core"),
        ]
    return results
