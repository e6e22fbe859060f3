# SPDX-License-Identifier: Apache-2.0
"""What an embodiment says of inputs and outputs, as the nodes take it: turned images, names in messages."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from builtin_interfaces.msg import Time
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Header
from trajectory_msgs.msg import JointTrajectory

from qwen_vla_ros import resources
from qwen_vla_ros.embodiment import list_embodiments, load_embodiment
from qwen_vla_ros.motion.follower import Follower, JointCommand
from qwen_vla_ros.nodes.controllers import TopicWriter, UnsupportedController, make_writer
from qwen_vla_ros.nodes.images import depth_to_message, rgb_to_encoding
from qwen_vla_ros.nodes.observing import Inbox, NotObserved, decode, decode_depth

ACTIONS = ("follow_joint_trajectory", "gripper_command", "parallel_gripper_command")
RGB = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def with_camera(tmp_path, text):
    source = (resources.embodiments_directory() / "tiago_base.yaml").read_text()
    path = tmp_path / "tiago_base.yaml"
    path.write_text(source.replace("size: [128, 128]", f"size: [6, 4]{text}"))
    return load_embodiment(path)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_images_are_turned_clockwise(tmp_path, degrees):
    body = with_camera(tmp_path, f"\n    rotate: {degrees}")
    message = rgb_to_encoding(RGB, "rgb8", Header())
    seen = decode(body.cameras[0], message)
    assert seen.flags["C_CONTIGUOUS"]
    # The upper left corner of the published image, seen from the turned one.
    corner = {0: (0, 0), 90: (0, -1), 180: (-1, -1), 270: (-1, 0)}[degrees]
    np.testing.assert_array_equal(seen[corner], RGB[0, 0])
    assert seen.shape == ((4, 6, 3) if degrees % 180 == 0 else (6, 4, 3))


def test_depth_is_turned_as_its_image_and_refused_at_another_size(tmp_path):
    body = with_camera(tmp_path, "\n    depth: camera/ego/depth\n    rotate: 90")
    depth = np.arange(1, 25, dtype=np.float32).reshape(4, 6)
    message = depth_to_message(depth, Header())
    seen = decode_depth(body.cameras[0], message)
    np.testing.assert_array_equal(seen, np.rot90(depth, -1))
    small = depth_to_message(depth[:, :3], Header())
    with pytest.raises(NotObserved, match="depth of camera ego on camera/ego/depth: size 3x4, expected 6x4"):
        decode_depth(body.cameras[0], small)


def test_depth_is_as_fresh_as_its_image_or_there_is_no_observation(tmp_path):
    body = with_camera(tmp_path, "\n    depth: camera/ego/depth")
    inbox = Inbox(body)

    def taken(sec: float) -> Image:
        return Image(header=Header(stamp=Time(sec=int(sec), nanosec=round(sec % 1 * 1e9))))

    def refused() -> str:
        with pytest.raises(NotObserved) as refusal:
            inbox.views(10.3, 9.0)
        return str(refusal.value)

    inbox.keep("ego", taken(10.2))
    assert inbox.unheard
    assert refused() == "depth of camera ego on camera/ego/depth: nothing received"
    inbox.keep_depth("ego", taken(9.5))
    assert "depth of camera ego on camera/ego/depth: newest image is 0.80 s old" in refused()
    inbox.keep_depth("ego", taken(10.0))
    assert "depth of camera ego lags 0.200 s behind the newest" in refused()
    inbox.keep_depth("ego", taken(10.15))
    views = inbox.views(10.3, 9.0)
    assert not inbox.unheard
    assert (views.oldest, views.newest, list(views.depths)) == (10.15, 10.2, ["ego"])
    inbox.clear()
    assert inbox.unheard


def test_names_in_messages_are_those_of_the_controller():
    body = load_embodiment("mobile_aloha")
    sent = []
    publisher = SimpleNamespace(topic_name="t", handle=SimpleNamespace(publish_raw=sent.append))
    node = SimpleNamespace(create_publisher=lambda *_: publisher)
    writer = TopicWriter(node, body.actions[0], 0.01)
    writer.write(JointCommand("left_arm", np.zeros(6), np.zeros(6)), Time())
    assert deserialize_message(sent[0], JointTrajectory).joint_names == [
        "waist",
        "shoulder",
        "elbow",
        "forearm_roll",
        "wrist_angle",
        "wrist_rotate",
    ]


def test_a_set_point_that_is_held_is_said_again_now_and_then(monkeypatch):
    controllers = pytest.importorskip("qwen_vla_ros.nodes.controllers")
    now, sent = [0.0], []
    monkeypatch.setattr(controllers, "time", SimpleNamespace(monotonic=lambda: now[0]))
    handle = SimpleNamespace(publish_raw=lambda message: sent.append(now[0]))
    publisher = SimpleNamespace(topic_name="t", handle=handle)
    node = SimpleNamespace(create_publisher=lambda *_: publisher)
    writer = controllers.TopicWriter(node, load_embodiment("aloha_viperx").actions[0], 0.01)

    def say(position: float, times: int) -> None:
        for _ in range(times):
            writer.write(JointCommand("left_arm", np.full(6, position), np.zeros(6)), None)
            now[0] += 0.01

    say(0.5, 25)
    assert sent == pytest.approx([0.0, 0.1, 0.2], abs=0.011)
    say(0.6, 1)
    say(0.7, 1)
    say(0.6, 2)
    assert sent[3:] == pytest.approx([0.25, 0.26, 0.27])


def test_joint_states_that_share_names_are_told_apart_by_topic():
    watchdog = pytest.importorskip("qwen_vla_ros.nodes.watchdog")
    body = load_embodiment("mobile_aloha")
    follower = Follower(body)
    watch = watchdog.Watchdog(body, follower, {}, 0.0, 0.05)
    driver = [
        "waist",
        "shoulder",
        "elbow",
        "forearm_roll",
        "wrist_angle",
        "wrist_rotate",
        "gripper",
        "left_finger",
        "right_finger",
    ]
    values = {}
    for number, names in enumerate(body.state.joint_names.values(), 1):
        position = [0.01 * number + 0.001 * k for k in range(len(driver))]
        watch.hear_joints(JointState(name=driver, position=position), names=names)
        values.update(zip(names, position, strict=True))
    measured = follower.joints.latest
    np.testing.assert_allclose(measured, [values[name] for name in body.joints])
    assert watch.joint_age(1.0) == 1.0
    watch.hear_joints(JointState(name=[], position=[0.0]), names=names)
    assert "9 names and 1 positions" in watch.find_in_robot(0.0).message


def test_the_executor_writes_to_every_body_or_says_what_it_needs(ros_node):
    actions_here = importlib.util.find_spec("control_msgs") is not None
    written = 0
    for name in list_embodiments():
        body = load_embodiment(name)
        for group in body.actions:
            kind = group.controller.type
            if kind in ACTIONS and not actions_here:
                with pytest.raises(UnsupportedController, match="control_msgs"):
                    make_writer(ros_node, group, 1.0 / body.command_rate)
                continue
            writer = make_writer(ros_node, group, 1.0 / body.command_rate)
            assert writer.kind == kind
            assert writer.topic.endswith(group.controller.topic)
            writer.destroy(ros_node)
            written += 1
    assert written > 40
