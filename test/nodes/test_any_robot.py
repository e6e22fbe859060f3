# SPDX-License-Identifier: Apache-2.0
"""Robots from model files behind the real nodes: simulation, scripted policy, executor."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from nav_msgs.msg import Odometry
from qwen_vla_ros.srv import ResetWorld
from sensor_msgs.msg import JointState

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.nodes import qos


@pytest.mark.parametrize(
    ("name", "instruction", "moving"),
    [
        ("turtlebot4", "dx", ()),
        ("fourier_gr1_joints", "right_elbow_pitch_joint", ("right_elbow_pitch_joint",)),
        ("so101", "elbow_flex", ("elbow_flex",)),
        ("unitree_h1", "left_elbow_joint", ("left_elbow_joint",)),
    ],
)
def test_a_robot_from_a_file_is_brought_up_by_the_scripted_policy(stack, name, instruction, moving):
    body = load_embodiment(name)
    nodes = [
        stack.sim(name, camera_rate=4.0),
        stack.start("policy", embodiment=name, backend="scripted", camera_timeout=60.0),
        stack.run_executor(name),
    ]
    rows: dict[str, list[float]] = {joint: [] for joint in body.joints}
    odometry: list = []

    def keep(message: JointState, names: tuple[str, ...] | None) -> None:
        for joint, position in zip(names or message.name, message.position, strict=True):
            if joint in rows:
                rows[joint].append(position)

    for topic in body.state.joint_states:
        named_there = partial(keep, names=body.state.joint_names.get(topic))
        stack.node.create_subscription(JointState, stack.name(topic), named_there, qos.SENSOR)
    stack.node.create_subscription(Odometry, stack.name("odom"), odometry.append, qos.SENSOR)
    stack.wait_ready(timeout=90.0)
    assert stack.call(ResetWorld, "reset_world", ResetWorld.Request(instruction="any words")).success
    stack.wait_for(lambda: all(rows.values()), 20.0, "joint states")
    start = {joint: values[-1] for joint, values in rows.items()}
    task = stack.send(instruction, time_limit=20.0)

    def swing() -> dict[str, float]:
        return {joint: float(np.ptp(values)) for joint, values in rows.items()}

    def moved() -> bool:
        assert not task.done, task.result()
        if moving:
            return max(swing()[joint] for joint in moving) > 0.08
        return bool(odometry) and np.ptp([m.pose.pose.position.x for m in odometry]) > 0.02

    stack.wait_for(moved, 90.0, f"{instruction} to move")
    still = [value for joint, value in swing().items() if joint not in moving]
    assert max(still, default=0.0) < 5e-3, swing()
    task.cancel()
    task.result()
    assert stack.call(ResetWorld, "reset_world", ResetWorld.Request(seed=1)).success
    for values in rows.values():
        values.clear()

    def away() -> dict[str, float]:
        return {
            joint: values[-1] - start[joint] if values else np.nan
            for joint, values in rows.items()
            if not values or abs(values[-1] - start[joint]) >= 0.01
        }

    # What was measured before the reset may still be on its way.
    stack.wait_for(lambda: not away(), 20.0, lambda: f"the joints to be where they began: {away()}")
    assert not stack.world[-1].success
    assert [node.end() for node in reversed(nodes)] == [0, 0, 0]
