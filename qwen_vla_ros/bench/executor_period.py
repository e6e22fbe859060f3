# SPDX-License-Identifier: Apache-2.0
"""How even the executor's commands are while the policy process is busy, and what they cost."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen_vla_ros import resources
from qwen_vla_ros.bench import BenchResult, _image_traffic
from qwen_vla_ros.embodiment import load_embodiment

SECONDS = 20.0
START = 60.0
# Of the robot [s].
PERIOD = 0.01
# Of the robot's process; the executor's is 50.
PRIORITY = 40
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
    """What was found.

    Attributes:
        stamps: of the commands, by the middleware [s].
        changes: when the executor's state changed [s].
        idle, moving: share of a core, by kind of thread.
    """

    stamps: np.ndarray
    changes: np.ndarray
    chunks: int
    idle: dict[str, float]
    moving: dict[str, float]


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
    # From a stop to the next motion there are no commands, as should be.
    passed = np.searchsorted(found.changes, found.stamps)
    one_motion = np.diff(passed) == 0
    deviation = np.abs(np.diff(found.stamps) - 1 / case.rate)[one_motion] * 1e3
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
                "stops": int((~one_motion).sum()),
                "chunks": found.chunks,
            },
        ),
        *(
            BenchResult(
                f"{what}: processor, {when}",
                100 * sum(shares.values()),
                "% of a core",
                case.share,
                detail=_machine() | {kind: round(100 * share, 2) for kind, share in shares.items()},
            )
            for when, shares in (("moving", found.moving), ("at rest", found.idle))
        ),
    ]


def _machine() -> dict[str, Any]:
    return {"load": os.getloadavg()[0], "cores": len(os.sched_getaffinity(0))}


def _processor_time(process: int) -> Counter[str]:
    """Of all threads of a process by their kind, those that have ended left out [s]."""
    spent: Counter[str] = Counter()
    for task in Path(f"/proc/{process}/task").iterdir():
        # Ports and other numbers end the names of the threads of the middleware.
        kind = "main" if int(task.name) == process else (task / "comm").read_text().strip(".0123456789\n")
        spent[kind] += int((task / "schedstat").read_text().split()[0]) * 1e-9
    return spent


def _measure(path: Path, folder: Path) -> Measured:
    import rclpy
    from rclpy.action import ActionClient
    from rclpy.qos import QoSProfile
    from sensor_msgs.msg import Image, JointState
    from std_msgs.msg import Float64MultiArray
    from trajectory_msgs.msg import JointTrajectory

    from qwen_vla_ros.action import ExecuteTask
    from qwen_vla_ros.demo.processes import NodeGroup
    from qwen_vla_ros.msg import ExecutorStatus, PolicyStatus
    from qwen_vla_ros.nodes import inbox, qos
    from qwen_vla_ros.nodes.lifecycle import seconds
    from qwen_vla_ros.nodes.priority import run_first

    body = load_embodiment(path)
    parameters: dict[str, dict[str, object]] = {
        "executor": {"embodiment": path},
        "policy": {"embodiment": path, "camera_timeout": START},
    }
    rclpy.init()
    node = rclpy.create_node("robot", namespace="bench")
    position = dict(body.home)
    stamps: list[int] = []
    due, periods = time.monotonic(), 0
    policy: list[PolicyStatus] = []
    states: list[tuple[int, float]] = []
    # Two in turn: a camera that repeats one picture while the robot moves counts as frozen.
    images = itertools.cycle(
        Image(height=128, width=128, step=384, encoding="rgb8", data=bytes([shade]) * (128 * 128 * 3))
        for shade in (0, 1)
    )

    def obey(group: Any, message: Any, info: dict) -> None:
        if group is body.actions[0]:
            stamps.append(info["source_timestamp"])
        points = getattr(message, "points", None)
        position.update(zip(group.joints, points[0].positions if points else message.data, strict=True))

    def take(subscription: Any) -> Iterator[tuple[Any, dict]]:
        while (taken := subscription.handle.take_message(subscription.msg_type, False)) is not None:
            yield taken

    def publish(publisher: Any, message: Any) -> None:
        message.header.stamp = node.get_clock().now().to_msg()
        publisher.publish(message)

    def live() -> None:
        """One period of the robot; messages do not wake it, or it would take more than what it measures."""
        nonlocal due, periods
        due = max(due + PERIOD, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
        periods += 1
        for subscription, group in commanded:
            for message, info in take(subscription):
                obey(group, message, info)
        publish(joints, JointState(name=list(position), position=list(position.values())))
        if periods % 3 == 0:
            publish(camera, next(images))
        if periods % 10 == 0:
            states.extend((m.state, seconds(m.header.stamp)) for m, _ in take(status))
            policy.extend(m for m, _ in take(heartbeat))
            for _ in range(5):
                rclpy.spin_once(node, timeout_sec=0)

    joints = node.create_publisher(JointState, body.state.joint_states[0], qos.RELIABLE)
    camera = node.create_publisher(Image, body.cameras[0].topic, qos.IMAGE)
    # None of the commands is lost here, however late they are read.
    deep = QoSProfile(depth=10_000, reliability=qos.COMMAND.reliability)
    alone = inbox.LeftAlone()
    commanded = []
    for group in body.actions:
        kind = JointTrajectory if group.controller.type == "joint_trajectory" else Float64MultiArray
        subscription = node.create_subscription(
            kind, group.controller.topic, lambda message: None, deep, callback_group=alone
        )
        commanded.append((subscription, group))
    status, heartbeat = (
        node.create_subscription(kind, topic, lambda message: None, deep, callback_group=alone)
        for kind, topic in ((ExecutorStatus, "executor_status"), (PolicyStatus, "policy_status"))
    )
    client = ActionClient(node, ExecuteTask, "execute_task")

    def wait(condition: Any, timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            live()
            if periods % 10 == 0:
                nodes.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout} s for {what}")

    def share(condition: Any, timeout: float, what: str) -> dict[str, float]:
        """Of a core, that the executor's threads take until something is so."""
        process = nodes.process_id("executor")
        before, began = _processor_time(process), time.monotonic()
        wait(condition, timeout, what)
        spent, lasted = _processor_time(process) - before, time.monotonic() - began
        return {kind: time_s / lasted for kind, time_s in spent.most_common()}

    try:
        with NodeGroup("bench", parameters, folder) as nodes:
            with contextlib.suppress(OSError):  # as the driver of a robot does, where it may
                run_first(PRIORITY)  # not before: the nodes would inherit it
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
    changes = [b[1] for a, b in itertools.pairwise(states) if a[0] != b[0]]
    return Measured(np.array(stamps) * 1e-9, np.array(changes), int(outcome.chunks), idle, moving)
