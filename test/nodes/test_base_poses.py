# SPDX-License-Identifier: Apache-2.0
"""A base whose pose comes as PoseStamped or PoseWithCovarianceStamped in place of odometry."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped, Quaternion, Twist
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from qwen_vla_ros.action import ExecuteTask

from qwen_vla_ros import resources
from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.embodiment.checkup import Subject
from qwen_vla_ros.embodiment.live_checkup import examine_live
from qwen_vla_ros.embodiment.live_topics import POSES
from qwen_vla_ros.nodes import qos
from qwen_vla_ros.nodes.base_pose import MESSAGES, flat_pose, from_odometry, pose_of
from qwen_vla_ros.nodes.graph_checkup import look

Result = ExecuteTask.Result
TOPIC, RELAYED, DRIVE = "localisation/pose", "relayed", "mobile_base_controller/cmd_vel_unstamped"
BASE = load_embodiment("tiago_base")


def embodiment(folder: Path, kind: str, by_path: bool = False) -> str:
    """TIAGo's base, placed by poses."""
    text = (resources.embodiments_directory() / "tiago_base.yaml").read_text()
    changes = {"odometry: mobile_base_controller/odom": f"pose: {{topic: {TOPIC}, type: {kind}}}"}
    if by_path:
        changes[f"{{type: diff_drive, topic: {DRIVE}, stamped: false}}"] = "{type: path, topic: plan}"
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "tiago_base.yaml"
    path.write_text(text)
    return str(path)


def moved(message, ahead: float):
    pose_of(message).position.x += ahead
    message.header.frame_id = "map"
    return message


def test_drives_by_poses_within_limits_when_they_jump_and_stops_without_them(stack, tmp_path):
    body = embodiment(tmp_path, "pose_stamped")
    off, poses, speeds, sequence = [0.0], [], [], []

    def keep(message: Twist, info: dict) -> None:
        speeds.append([message.linear.x, message.angular.z])
        sequence.append(info["publication_sequence_number"])

    relay = stack.relay(PoseStamped, TOPIC, RELAYED, lambda message: moved(message, off[0]))
    stack.node.create_subscription(PoseStamped, stack.name(TOPIC), poses.append, qos.SENSOR)
    stack.node.create_subscription(Twist, stack.name(DRIVE), keep, qos.RELIABLE)
    stack.sim(body)
    executor = stack.run_executor(body, remap={TOPIC: RELAYED})
    stack.fake_policy("wave", body)
    stack.wait_ready()
    task = stack.running(stack.send(time_limit=60.0), chunks=2)
    stack.wait_for(lambda: pose_of(poses[-1]).position.x > 0.3, 20.0, "the base to go ahead")
    for jump in (1.0, 0.0):
        count, off[0] = len(speeds), jump
        stack.wait_for(lambda count=count: len(speeds) > count + 50, 20.0, "commands after the jump")
        # It was felt: by a metre is more than the plan goes in a second.
        assert np.ptp([speed for speed, _ in speeds[count:]]) > 0.3
    assert not task.done
    count = len(sequence)  # more may come
    rows, periods = np.array(speeds[:count]), np.diff(sequence[:count])
    limits = BASE.actions[0].limits
    assert (np.abs(rows) <= [limits.linear.velocity, limits.angular.velocity]).all()
    rises = np.abs(np.diff(rows, axis=0)) * BASE.command_rate / periods[:, None]
    assert (rises <= np.array([limits.linear.acceleration, limits.angular.acceleration]) * 1.001).all()

    # What is not finite does not count, so the last one grows old.
    relay.change = lambda message: moved(message, math.nan)
    result = task.result()
    assert result.code == Result.ODOMETRY_STALE
    assert f"the pose of the base on {TOPIC} is" in result.message
    assert f"the pose of the base on {TOPIC} is [nan" in executor.output


def test_paths_lie_in_the_frame_of_the_pose(stack, tmp_path):
    body = embodiment(tmp_path, "pose_with_covariance_stamped", by_path=True)
    paths: list = []
    stack.relay(PoseWithCovarianceStamped, TOPIC, RELAYED, lambda message: moved(message, 3.0))
    stack.node.create_subscription(PathMessage, stack.name("plan"), paths.append, qos.RELIABLE)
    stack.sim(body)
    stack.run_executor(body, remap={TOPIC: RELAYED})
    stack.fake_policy("wave", body)
    stack.wait_ready()
    task = stack.running(stack.send(time_limit=60.0), chunks=1)
    stack.wait_for(lambda: paths, 5.0, "a path")
    assert {paths[0].header.frame_id, *(pose.header.frame_id for pose in paths[0].poses)} == {"map"}
    assert paths[0].poses[0].pose.position.x == pytest.approx(3.0, abs=0.1)
    # The doctor hears the same: a pose in a frame, often enough, and nothing is said against it.
    graph, _ = look(load_embodiment(body), stack.namespace, duration=1.0)
    assert graph.odometry.frame == "odom"
    assert len(graph.odometry.stamps) >= 2
    subject = Subject(load_embodiment(body), graph=graph)
    assert not [str(f) for f in examine_live(subject) if f.code.startswith("ODOMETRY")]
    task.cancel()
    assert task.result().code == Result.CANCELLED


@pytest.mark.parametrize("kind", MESSAGES)
def test_every_message_holds_the_same_pose(kind):
    odometry = Odometry(child_frame_id="base")
    odometry.header.frame_id = "map"
    odometry.pose.pose.position.x, odometry.pose.pose.position.y = 1.0, 2.0
    # Twice as long as it should be: the turn is the same.
    odometry.pose.pose.orientation.z = odometry.pose.pose.orientation.w = math.sqrt(2.0)
    message = from_odometry(odometry, kind)
    module, _, name = POSES[kind].partition("/msg/")
    assert (type(message).__module__.split(".")[0], type(message).__name__) == (module, name)
    assert message.header.frame_id == "map"
    assert flat_pose(message) == pytest.approx([1.0, 2.0, math.pi / 2])
    # An orientation that nobody set is none, and not one of 0.
    odometry.pose.pose.orientation = Quaternion(x=0.0, y=0.0, z=0.0, w=0.0)
    assert math.isnan(flat_pose(from_odometry(odometry, kind))[2])


def test_there_is_a_message_for_every_type():
    assert list(MESSAGES) == list(POSES)
