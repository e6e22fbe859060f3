# SPDX-License-Identifier: Apache-2.0
"""Faults of cameras and of the model, injected into one running robot: each has its state and message.

docs/nodes.md lists them.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from qwen_vla_ros.action import ExecuteTask
from qwen_vla_ros.msg import ExecutorStatus, PolicyStatus
from sensor_msgs.msg import Image

from qwen_vla_ros.nodes.frozen import same_picture
from qwen_vla_ros.nodes.lifecycle import seconds

Result = ExecuteTask.Result
State = PolicyStatus
CAMERA = "camera/ego/image_raw"


def _same(message: Image) -> Image:
    return message


@pytest.fixture(scope="module")
def seeing(module_stack):
    """A Panda whose images pass through the test, with the real policy node around a changeable model."""
    stack = module_stack
    stack.relay_of_images = stack.relay(Image, CAMERA, "relayed")
    stack.sim()
    stack.run_executor(chunk_timeout=1.5)
    stack.policy_double("sound", remap={CAMERA: "relayed"}, frozen_after=0.6)
    stack.wait_ready()
    return stack


@pytest.fixture
def robot(seeing):
    seeing.relay_of_images.change = _same
    seeing.set_mode("wave")
    seeing.wait_for(lambda: seeing.relay_of_images.passed > 2, 20.0, "images")
    return seeing


def _freezer() -> tuple[list[Image], Any]:
    """What it saw, and a change that shows the first picture for ever."""
    seen: list[Image] = []

    def freeze(message: Image) -> Image:
        seen.append(message)
        message.data = seen[0].data
        return message

    return seen, freeze


def test_camera_stops(robot, record_property):
    relay = robot.relay_of_images
    task = robot.running(robot.send(time_limit=60.0))
    begin, before = len(robot.executor), len(robot.policy)
    relay.change = None
    result = task.result()
    assert result.code == Result.CAMERA_STALE
    assert "camera ego on camera/ego/image_raw" in result.message
    assert "allowed 0.5 s" in result.message
    # The result may come before the heartbeat that made it.
    faults = lambda: [s for s in robot.policy[before:] if s.state == State.STATE_FAULT]  # noqa: E731
    fault = robot.wait_for(faults, 10.0, "a fault")[0]
    waited = [s for s in robot.policy[before:] if s.state == State.STATE_WAITING]
    assert waited
    assert waited[0].task_id == fault.task_id
    stops = [s for s in robot.executor[begin:] if s.code == Result.CAMERA_STALE]
    assert any(s.stop_duration < 0.3 for s in stops)
    record_property("time to safe [s]", round(max(waited[0].ages) + stops[-1].stop_duration, 3))

    relay.change = _same
    assert robot.send(time_limit=1.0).result().code == Result.TIME_LIMIT


def test_camera_sends_the_same_picture_while_the_robot_moves(robot, record_property):
    frozen, freeze = _freezer()
    task = robot.running(robot.send(time_limit=60.0))
    begin = len(robot.executor)
    robot.relay_of_images.change = freeze
    result = task.result()
    assert result.code == Result.CAMERA_STALE, result.message
    assert "camera ego on camera/ego/image_raw: sent the same picture for" in result.message
    assert "s while panda_joint" in result.message
    assert "is it frozen?" in result.message
    rest = (ExecutorStatus.STATE_STOPPED, ExecutorStatus.STATE_IDLE)
    at_rest = next(s for s in robot.executor[begin:] if s.state in rest and s.code)
    record_property(
        "time to safe [s]", round(seconds(at_rest.header.stamp) - seconds(frozen[0].header.stamp), 3)
    )


def test_same_picture_of_a_robot_that_rests_is_no_fault(robot):
    robot.set_mode("sound")
    robot.send(time_limit=3.0).result()  # long enough to be where it will stay, on a busy machine too
    _, freeze = _freezer()
    robot.relay_of_images.change = freeze
    result = robot.send(time_limit=2.0).result()
    assert result.code == Result.TIME_LIMIT, result.message


def test_pictures_are_told_apart():
    one = Image(data=bytes(np.arange(100_000) % 251))
    other = copy.deepcopy(one)
    assert same_picture(one, other)
    other.data[12_345] ^= 1  # beside what is looked at first
    assert not same_picture(one, other)
    assert not same_picture(one, Image(data=bytes(100)))
    assert not same_picture(Image(), Image())


def test_camera_stamps_ahead_of_the_clock(robot):
    def ahead(message: Image) -> Image:
        message.header.stamp.sec += 3
        return message

    task = robot.running(robot.send(time_limit=60.0))
    robot.relay_of_images.change = ahead
    result = task.result()
    assert result.code == Result.CAMERA_STALE
    assert "s ahead of the clock, allowed 0.5 s" in result.message


def _grey(message: Image) -> Image:
    message.encoding, message.step = "mono8", message.width
    message.data = message.data[: message.width * message.height]
    return message


def _half(message: Image) -> Image:
    message.height //= 2
    message.data = message.data[: message.step * message.height]
    return message


def _torn(message: Image) -> Image:
    message.data = message.data[:-1]
    return message


@pytest.mark.parametrize(
    ("change", "text"),
    [
        pytest.param(_grey, "encoding mono8, expected rgb8 or bgr8", id="encoding"),
        pytest.param(_half, "size 128x64, expected 128x128", id="size"),
        pytest.param(_torn, "49151 bytes in rows of 384 for 128x128 rgb8", id="torn"),
    ],
)
def test_image_of_another_kind(robot, change, text):
    relay = robot.relay_of_images
    relay.change = change
    # The clocks of the nodes may differ by a step: no good image may be as new as the task.
    robot.wait_for(lambda: relay.passed >= 5, 20.0, "changed images")
    result = robot.send(time_limit=60.0).result()
    assert result.code == Result.IMAGE_INVALID, result.message
    assert text in result.message
    assert result.chunks == 0


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        ("nan", "the model gave nan in row 3, channel arm/panda_joint3"),
        ("shape", r"the model gave shape (15, 8), expected (16, 8)"),
        ("range", "the model gave 7, expected values within [-1, 1]"),
        ("raises", "ZeroDivisionError: a defect of the model"),
    ],
)
def test_what_a_model_does_wrong_ends_the_task_and_is_not_published(robot, mode, text):
    robot.set_mode(mode)
    robot.chunks.clear()
    result = robot.send(time_limit=60.0).result()
    assert result.code == Result.MODEL_FAULT
    assert text in result.message
    assert result.chunks == len(robot.chunks) == 2


def test_heartbeat_goes_on_while_the_model_hangs(robot):
    robot.set_mode("hangs")
    before = len(robot.policy)
    result = robot.send(time_limit=60.0).result()
    # The robot stops because chunks stay away, not because the policy seems dead.
    assert result.code == Result.CHUNK_STALE, result.message
    stamps = [seconds(s.header.stamp) for s in robot.policy[before:] if s.task_id]
    assert len(stamps) / (stamps[-1] - stamps[0]) >= 20.0
