# SPDX-License-Identifier: Apache-2.0
"""The policy node: images in, chunks out, and every fault it must report."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from qwen_vla_ros.embodiment import load_embodiment

pytest.importorskip("rclpy", reason="needs ROS 2")

from diagnostic_msgs.msg import DiagnosticArray
from qwen_vla_ros.action import ExecuteTask
from qwen_vla_ros.msg import PolicyStatus
from sensor_msgs.msg import CompressedImage, Image

from qwen_vla_ros.nodes import qos
from qwen_vla_ros.nodes.lifecycle import seconds

Result = ExecuteTask.Result
State = PolicyStatus
PANDA = load_embodiment("franka_panda")
CAMERA = "camera/ego/image_raw"


def test_pixels_move_the_robot(robot, checkpoint):
    robot.run_executor()
    policy = robot.start("policy", embodiment="franka_panda", checkpoint=str(checkpoint), seed=3)
    robot.wait_ready(timeout=90.0)
    health = {}
    robot.node.create_subscription(
        DiagnosticArray,
        "/diagnostics",
        lambda message: health.update({part.name: part for part in message.status}),
        qos.RELIABLE,
    )
    result = robot.send("reach the red cube", time_limit=3.0).result(60.0)
    assert result.code == Result.TIME_LIMIT, result.message
    assert result.chunks >= 3
    name = f"{robot.namespace.lstrip('/')}/policy: "
    robot.wait_for(lambda: name + "model" in health, 10.0, "the policy's diagnostics")
    figures = {v.key: v.value for part in ("model", "cameras") for v in health[name + part].values}
    assert float(figures["inference p50 [s]"]) > 0.0
    assert int(figures["ego frames"]) > 10
    assert float(figures["ego rate [Hz]"]) > 0.0

    chunk = robot.chunks[-1]
    assert chunk.embodiment == "franka_panda"
    assert tuple(chunk.channels) == PANDA.layout.names
    data = np.array(chunk.data).reshape(chunk.horizon, -1)
    home = np.array([PANDA.home[joint] for joint in PANDA.joints])
    assert (np.abs(data - home) <= 0.1 + 1e-6).all(), "not within the checkpoint's statistics"
    assert [c.sequence for c in robot.chunks] == list(range(1, len(robot.chunks) + 1))
    stamps = [seconds(c.header.stamp) for c in robot.chunks]
    due = PANDA.execute_steps / PANDA.control_rate
    # Asked for when that time has passed; the newest image is older by a frame and its way here.
    assert (np.diff(stamps) >= due - 0.4).all()
    assert 0 < chunk.inference_time < 5.0
    assert 0 <= chunk.observation_age < 1.0
    status = robot.policy[-1]
    assert list(status.views) == ["ego"]
    assert status.frames[0] > 10
    assert policy.end() == 0
    assert "Traceback" not in policy.output


def test_model_with_nan_weights_is_reported_and_publishes_nothing(stack, checkpoint, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    weights = load_file(broken / "model.safetensors")
    name = next(key for key in weights if "action_expert" in key and key.endswith("weight"))
    weights[name] = torch.full_like(weights[name], float("nan"))
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    policy = stack.start("policy", embodiment="franka_panda", checkpoint=str(broken))
    policy.wait_for_output(r"configure failed: .*not finite", timeout=90.0)
    assert not stack.chunks


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
    robot.run_executor()
    robot.policy_double(mode)
    robot.wait_ready()
    result = robot.send(time_limit=60.0).result()
    assert result.code == Result.MODEL_FAULT
    assert text in result.message
    # Two good chunks were published; word of the fault may overtake them.
    robot.wait_for(lambda: len(robot.chunks) == 2, 20.0, "the chunks before the fault")
    assert result.chunks <= 2


def test_heartbeat_goes_on_while_the_model_hangs(robot):
    robot.run_executor(chunk_timeout=4.0)
    robot.policy_double("hangs")
    robot.wait_ready()
    task = robot.running(robot.send(time_limit=60.0))
    result = task.result()
    # The robot stops because chunks stay away, not because the policy seems dead.
    assert result.code == Result.CHUNK_STALE, result.message
    stamps = [seconds(s.header.stamp) for s in robot.policy if s.task_id]
    assert len(stamps) / (stamps[-1] - stamps[0]) >= 20.0


def test_camera_that_stops_during_a_task(robot):
    relay = robot.relay(Image, CAMERA, "relayed")
    robot.run_executor()
    robot.policy_double("sound", remap={CAMERA: "relayed"})
    robot.wait_ready()
    task = robot.running(robot.send(time_limit=60.0))
    relay.change = None
    result = task.result()
    assert result.code == Result.CAMERA_STALE
    assert "camera ego on camera/ego/image_raw" in result.message
    assert "allowed 0.5 s" in result.message
    # The result may come before the heartbeat that made it.
    faults = robot.wait_for(lambda: [s for s in robot.policy if s.state == State.STATE_FAULT], 5.0, "a fault")
    before = robot.policy[: robot.policy.index(faults[0])]
    assert any(s.state == State.STATE_WAITING and s.task_id == faults[0].task_id for s in before)
    assert any(s.stop_duration < 0.3 for s in robot.executor if s.code == Result.CAMERA_STALE)

    relay.change = lambda message: message
    assert robot.send(time_limit=2.0).result().code == Result.TIME_LIMIT


def test_image_of_another_encoding_or_size(robot):
    relay = robot.relay(Image, CAMERA, "relayed")
    robot.run_executor()
    robot.policy_double("sound", remap={CAMERA: "relayed"})
    robot.wait_ready()

    def grey(message: Image) -> Image:
        message.encoding, message.step = "mono8", message.width
        message.data = message.data[: message.width * message.height]
        return message

    def half(message: Image) -> Image:
        message.height //= 2
        message.data = message.data[: message.step * message.height]
        return message

    def torn(message: Image) -> Image:
        message.data = message.data[:-1]
        return message

    for change, text in (
        (grey, "encoding mono8, expected rgb8 or bgr8"),
        (half, "size 128x64, expected 128x128"),
        (torn, "49151 bytes in rows of 384 for 128x128 rgb8"),
    ):
        relay.change = change
        # The clocks of the nodes may differ by a step: no good image may be as new as the task.
        robot.wait_for(lambda: relay.passed >= 5, 20.0, "changed images")
        result = robot.send(time_limit=60.0).result()
        assert result.code == Result.IMAGE_INVALID, result.message
        assert text in result.message
        assert result.chunks == 0


def test_camera_without_a_publisher_fails_configure(stack):
    policy = stack.policy_double("sound", camera_timeout=0.5, use_sim_time=False)
    policy.wait_for_output(
        rf"configure failed: camera ego: nobody publishes sensor_msgs/msg/Image on {stack.name(CAMERA)} "
        r"\(waited 0.5 s\)"
    )
    assert policy.returncode is None
    assert policy.end() == 0


def test_camera_that_publishes_the_other_type_is_named(stack):
    stack.node.create_publisher(CompressedImage, stack.name(f"{CAMERA}/compressed"), qos.IMAGE)
    policy = stack.policy_double("sound", camera_timeout=2.0, use_sim_time=False)
    policy.wait_for_output(
        r"test_node publishes sensor_msgs/msg/CompressedImage on \S+/compressed: set transport: compressed"
    )


def test_wrong_checkpoint_fails_configure_and_names_it(stack, tmp_path):
    policy = stack.start("policy", embodiment="franka_panda", checkpoint=str(tmp_path), use_sim_time=False)
    policy.wait_for_output(rf"configure failed: .*{tmp_path}", timeout=60.0)
