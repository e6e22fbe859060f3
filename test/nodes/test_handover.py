# SPDX-License-Identifier: Apache-2.0
"""How chunks take over, as the nodes are told."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from qwen_vla_ros.embodiment import load_embodiment

pytest.importorskip("rclpy", reason="needs ROS 2")

from nav_msgs.msg import Odometry
from qwen_vla_ros.action import ExecuteTask

from qwen_vla_ros.motion.outlook import Outlook
from qwen_vla_ros.nodes import qos
from qwen_vla_ros.nodes.base_pose import flat_pose
from qwen_vla_ros.nodes.lifecycle import seconds

PANDA, TIAGO = load_embodiment("franka_panda"), load_embodiment("tiago_base")


def compare(chunks, outlook) -> tuple[np.ndarray, np.ndarray]:
    """How far the first rows are from what the chunks before say, and rows from each other. Shapes (n, c)."""
    apart, spread = [], []
    for before, after in pairwise(chunks):
        one, other = (np.array(chunk.data).reshape(chunk.horizon, -1) for chunk in (before, after))
        outlook.note(one, seconds(before.header.stamp))
        plan = outlook.plan(seconds(after.header.stamp))
        apart.append(np.abs(plan.rows[0] - other[0]))
        spread.append(np.abs(np.diff(other, axis=0)).mean(axis=0))
    return np.array(apart), np.array(spread)


def test_with_rtc_each_chunk_continues_the_one_before(robot, checkpoint):
    robot.run_executor(handover="rtc")
    policy = robot.start(
        "policy", embodiment="franka_panda", checkpoint=str(checkpoint), seed=3, handover="rtc"
    )
    robot.wait_ready(timeout=90.0)
    result = robot.send("reach the red cube", time_limit=4.0).result(60.0)
    assert result.code == ExecuteTask.Result.TIME_LIMIT, result.message
    assert len(robot.chunks) >= 3
    # The random weights of this checkpoint give chunks far apart, unless the sampler is led by the plan.
    apart, spread = compare(robot.chunks, Outlook(PANDA))
    assert apart[:, :7].mean() < 0.5 * spread[:, :7].mean()
    assert policy.end() == 0
    assert "Traceback" not in policy.output


def test_with_rtc_waypoints_are_continued_from_where_the_base_is(stack):
    poses = []
    hear = lambda message: poses.append((seconds(message.header.stamp), flat_pose(message)))  # noqa: E731
    stack.node.create_subscription(Odometry, stack.name(TIAGO.state.base.topic), hear, qos.SENSOR)
    stack.sim("tiago_base")
    stack.run_executor("tiago_base", handover="rtc")
    # The checkpoint that comes with the package takes rows over as they are.
    policy = stack.start("policy", embodiment="tiago_base", handover="rtc")
    stack.wait_ready(timeout=90.0)
    result = stack.send("drive to the red pillar", time_limit=4.5).result(60.0)
    assert result.code == ExecuteTask.Result.TIME_LIMIT, result.message
    assert len(stack.chunks) >= 4
    outlook, last = Outlook(TIAGO), seconds(stack.chunks[-1].header.stamp)
    for stamp, pose in poses:
        if stamp <= last + 0.1:
            outlook.pose.add(stamp, pose)
    apart, spread = compare(stack.chunks, outlook)
    assert spread[:, 0].max() > 0.1, "it hardly drives"
    assert apart.max() < 0.005
    assert policy.end() == 0
    assert "Traceback" not in policy.output


def test_an_unknown_hand_over_is_refused(stack):
    executor = stack.run_executor(handover="jump", use_sim_time=False)
    executor.wait_for_output(
        r"configure failed: .*mode: found 'jump', expected one of replace, ensemble, rtc"
    )
    executor.end()
    assert "Traceback" not in executor.output
