# SPDX-License-Identifier: Apache-2.0
"""A base whose waypoints are handed over as nav_msgs/Path: it arrives, and is told to stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from qwen_vla_ros.action import ExecuteTask
from sensor_msgs.msg import Image

from qwen_vla_ros import resources
from qwen_vla_ros.nodes import qos
from qwen_vla_ros.nodes.images import to_depth
from qwen_vla_ros.nodes.lifecycle import seconds

Result = ExecuteTask.Result
TOPIC, ODOMETRY, DEPTH = "navigation/path", "mobile_base_controller/odom", "camera/ego/depth"


def embodiment(folder: Path) -> str:
    """TIAGo's base behind a navigation stack, with a camera of depth."""
    text = (resources.embodiments_directory() / "tiago_base.yaml").read_text()
    drive = "{type: diff_drive, topic: mobile_base_controller/cmd_vel_unstamped, stamped: false}"
    assert drive in text
    path = folder / "tiago_base.yaml"
    text = text.replace("size: [128, 128]", f"size: [128, 128]\n    depth: {DEPTH}")
    path.write_text(text.replace(drive, f"{{type: path, topic: {TOPIC}}}"))
    return str(path)


def test_drives_to_the_pillar_by_path_and_stays(stack, tmp_path):
    body = embodiment(tmp_path)
    paths, odometry, depths = [], [], []
    stack.sim(body, camera_rate=1.0, seed=2)
    executor = stack.run_executor(body, recovery_timeout=0.0)
    policy = stack.fake_policy("expert", body)
    stack.node.create_subscription(PathMessage, stack.name(TOPIC), paths.append, qos.RELIABLE)
    stack.node.create_subscription(Odometry, stack.name(ODOMETRY), odometry.append, qos.SENSOR)
    stack.node.create_subscription(Image, stack.name(DEPTH), depths.append, qos.IMAGE)
    stack.wait_ready()
    stack.wait_for(lambda: odometry, 20.0, "odometry")
    assert not stack.world[-1].success
    task = stack.running(stack.send("drive to the pillar", time_limit=60.0), chunks=1)
    stack.wait_for(lambda: stack.world[-1].success, 60.0, "the base to arrive")
    # Above the floor the pillar is nearest.
    before, after = (np.nanmin(to_depth(depths[k])[:64]) for k in (0, -1))
    assert after < before - 0.2
    went = odometry[-1].pose.pose.position
    assert np.hypot(went.x, went.y) > 0.3
    task.cancel()
    assert task.result().code == Result.CANCELLED
    # Told once, by a pose alone, and then nothing; it is at rest when the executor says so.
    stack.wait_for(lambda: len(paths[-1].poses) == 1, 5.0, "the word to stay")
    twist = odometry[-1].twist.twist
    assert abs(twist.linear.x) < 0.05
    assert sum(len(path.poses) == 1 for path in paths) == 1
    frame = odometry[0].header.frame_id
    for path in paths:
        stamps = [seconds(pose.header.stamp) for pose in path.poses]
        assert {path.header.frame_id, *(pose.header.frame_id for pose in path.poses)} == {frame}
        assert stamps[0] == seconds(path.header.stamp)
        assert len(stamps) == 1 or (np.diff(stamps) > 0).all()
    # By chunks, and when a waypoint has passed: no stream.
    stamps = [seconds(path.header.stamp) for path in paths]
    assert np.median(np.diff(stamps)) >= 0.1

    # The policy dies: it is told to stay, where it was measured last.
    task = stack.running(stack.send("drive to the pillar", time_limit=60.0), chunks=1)
    paths.clear()
    policy.kill()
    assert task.result().code == Result.POLICY_LOST
    stack.wait_for(lambda: paths and len(paths[-1].poses) == 1, 5.0, "the word to stay")
    assert executor.end() == 0
