# SPDX-License-Identifier: Apache-2.0
"""Robots from model files behind the real nodes: simulation, scripted policy, executor."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from nav_msgs.msg import Odometry
from qwen_vla_ros.srv import ResetWorld
from sensor_msgs.msg import JointState

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.nodes import qos
from qwen_vla_ros.sim import SimulationError, make_world


@pytest.mark.parametrize(
    ("name", "instruction", "moving"),
    [("mobile_aloha", "base, right_arm", ("base", "right_arm")), ("so101", "elbow_flex", ("elbow_flex",))],
)
def test_a_robot_from_a_file_is_brought_up_by_the_scripted_policy(stack, name, instruction, moving):
    body = load_embodiment(name)
    try:
        make_world(body).close()
    except SimulationError as error:
        pytest.skip(str(error))
    nodes = [
        stack.sim(name, camera_rate=4.0),
        stack.start("policy", embodiment=name, backend="scripted", camera_timeout=60.0),
        stack.run_executor(name),
    ]
    states: list = []
    odometry: list = []
    stack.node.create_subscription(JointState, stack.name("joint_states"), states.append, qos.SENSOR)
    stack.node.create_subscription(Odometry, stack.name("odom"), odometry.append, qos.SENSOR)
    stack.wait_ready(timeout=90.0)
    assert stack.call(ResetWorld, "reset_world", ResetWorld.Request(instruction="any words")).success
    stack.wait_for(lambda: states, 20.0, "joint states")
    start = dict(zip(states[-1].name, states[-1].position, strict=True))
    task = stack.send(instruction, time_limit=20.0)

    def swing() -> dict[str, float]:
        rows = np.array([message.position for message in states])
        return dict(zip(states[0].name, np.ptp(rows, axis=0).tolist(), strict=True))

    named = {
        joint
        for group in body.actions
        for joint in getattr(group, "joints", ())
        if group.name in moving or joint in moving
    }

    def moved() -> bool:
        assert not task.done, task.result()
        base = "base" not in moving or np.ptp([m.pose.pose.position.x for m in odometry]) > 0.02
        return base and max(swing()[joint] for joint in named) > 0.08

    stack.wait_for(moved, 60.0, f"{moving} to move; {swing()}")
    still = {joint: value for joint, value in swing().items() if joint not in named}
    assert max(still.values()) < 5e-3, still
    task.cancel()
    task.result()
    assert stack.call(ResetWorld, "reset_world", ResetWorld.Request(seed=1)).success
    begin = len(states)
    stack.wait_for(lambda: len(states) > begin + 3, 20.0, "joint states after the reset")
    now = dict(zip(states[-1].name, states[-1].position, strict=True))
    assert now == pytest.approx(start, abs=0.01)
    assert not stack.world[-1].success
    assert [node.end() for node in reversed(nodes)] == [0, 0, 0]
