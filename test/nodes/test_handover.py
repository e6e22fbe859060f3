# SPDX-License-Identifier: Apache-2.0
"""How chunks take over, as the nodes are told."""

from __future__ import annotations

import numpy as np
import pytest

from qwen_vla_ros.embodiment import load_embodiment

pytest.importorskip("rclpy", reason="needs ROS 2")

from qwen_vla_ros.action import ExecuteTask

from qwen_vla_ros.motion.outlook import Outlook
from qwen_vla_ros.nodes.lifecycle import seconds

PANDA = load_embodiment("franka_panda")


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
    outlook, apart, spread = Outlook(PANDA), [], []
    for before, after in zip(robot.chunks, robot.chunks[1:], strict=False):
        one, other = (np.array(chunk.data).reshape(chunk.horizon, -1) for chunk in (before, after))
        outlook.note(one, seconds(before.header.stamp))
        plan = outlook.plan(seconds(after.header.stamp))
        apart.append(np.abs(plan.rows[0] - other[0])[:7].mean())
        spread.append(np.abs(np.diff(other, axis=0))[:, :7].mean())
    assert np.mean(apart) < 0.5 * np.mean(spread)
    assert policy.end() == 0
    assert "Traceback" not in policy.output


def test_an_unknown_hand_over_is_refused(stack):
    executor = stack.run_executor(handover="jump", use_sim_time=False)
    executor.wait_for_output(
        r"configure failed: .*mode: found 'jump', expected one of replace, ensemble, rtc"
    )
    executor.end()
    assert "Traceback" not in executor.output
