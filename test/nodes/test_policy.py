# SPDX-License-Identifier: Apache-2.0
"""The policy node: images in, chunks out, and every fault it must report."""

from __future__ import annotations

import shutil
from itertools import pairwise

import numpy as np
import pytest

from qwen_vla_ros.embodiment import load_embodiment

pytest.importorskip("rclpy", reason="needs ROS 2")

from diagnostic_msgs.msg import DiagnosticArray
from qwen_vla_ros.action import ExecuteTask
from qwen_vla_ros.msg import PolicyStatus, Task
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from qwen_vla_ros import resources
from qwen_vla_ros.nodes import qos
from qwen_vla_ros.nodes.images import depth_to_message, rgb_to_encoding
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


def test_camera_without_a_publisher_fails_configure(stack):
    policy = stack.policy_double("sound", camera_timeout=0.5, use_sim_time=False)
    policy.wait_for_output(
        rf"configure failed: camera ego: nobody publishes sensor_msgs/msg/Image on {stack.name(CAMERA)} "
        r"\(waited 0.5 s\)"
    )
    assert policy.returncode is None
    assert policy.end() == 0


def test_depth_reaches_the_policy_and_is_missed_like_an_image(stack, tmp_path):
    text = (resources.embodiments_directory() / "franka_panda.yaml").read_text()
    body = tmp_path / "franka_panda.yaml"
    body.write_text(text.replace(f"topic: {CAMERA}", f"topic: {CAMERA}\n    depth: camera/ego/depth"))
    width, height = PANDA.cameras[0].size
    publish = {
        name: stack.node.create_publisher(Image, stack.name(name), qos.IMAGE).publish
        for name in (CAMERA, "camera/ego/depth")
    }
    rgb = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    depth = np.full((height, width), 0.75, dtype=np.float32)

    def show() -> None:
        header = Header(stamp=stack.node.get_clock().now().to_msg())
        publish[CAMERA](rgb_to_encoding(rgb, "rgb8", header))
        if "camera/ego/depth" in publish:
            publish["camera/ego/depth"](depth_to_message(depth, header))

    stack.node.call_in_loop(lambda: stack.node.create_timer(0.05, show))
    tasks = stack.node.create_publisher(Task, stack.name("task"), qos.LATCHED)
    policy = stack.policy_double("depth", str(body), use_sim_time=False)
    stack.wait_for(lambda: stack.policy, 40.0, "policy_status")
    task = Task(task_id=7, active=True, instruction="go")
    task.header.stamp = stack.node.get_clock().now().to_msg()
    tasks.publish(task)
    faults = lambda: [status for status in stack.policy if status.state == State.STATE_FAULT]  # noqa: E731
    stack.wait_for(lambda: len(stack.chunks) >= 2 or faults(), 20.0, "chunks")
    assert not faults(), faults()[0].message
    del publish["camera/ego/depth"]
    fault = stack.wait_for(faults, 20.0, "a fault")[0]
    assert fault.code == Result.CAMERA_STALE
    assert fault.message.startswith("depth of camera ego on camera/ego/depth: newest image is")
    assert policy.end() == 0


def show_images(stack, period: float) -> list[float]:
    """Publish another picture every so often. Returns the stamps [s], a growing list."""
    width, height = PANDA.cameras[0].size
    camera = stack.node.create_publisher(Image, stack.name(CAMERA), qos.IMAGE)
    rng, sent = np.random.default_rng(0), []

    def show() -> None:
        header = Header(stamp=stack.node.get_clock().now().to_msg())
        rgb = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        camera.publish(rgb_to_encoding(rgb, "rgb8", header))
        sent.append(seconds(header.stamp))

    stack.node.call_in_loop(lambda: stack.node.create_timer(period, show))
    return sent


def begin_task(stack) -> None:
    tasks = stack.node.create_publisher(Task, stack.name("task"), qos.LATCHED)
    stack.wait_for(lambda: stack.policy, 40.0, "policy_status")
    task = Task(task_id=7, active=True, instruction="go")
    task.header.stamp = stack.node.get_clock().now().to_msg()
    tasks.publish(task)


def test_images_that_no_chunk_is_made_of_are_not_decoded(stack):
    """Many more come than a slow model takes."""
    sent = show_images(stack, 0.02)
    policy = stack.policy_double("slow", use_sim_time=False)
    begin_task(stack)
    stack.wait_for(lambda: len(stack.chunks) >= 6, 30.0, "chunks")
    home = np.array([PANDA.home[joint] for joint in PANDA.joints])
    # The double's statistics are 0.2 to both sides of home.
    ready = [
        round(100 * float(np.mean(np.reshape(c.data, (c.horizon, -1)) - home)) / 0.2) for c in stack.chunks
    ]
    stamps = [seconds(c.header.stamp) for c in stack.chunks]
    came = [sum(a < s <= b for s in sent) for a, b in pairwise(stamps)]
    assert all(1 <= used < came / 3 for used, came in zip(ready[1:], came, strict=True)), (ready, came)
    assert policy.end() == 0


def test_an_image_that_was_waited_for_calls_the_model(stack, tmp_path):
    text = (resources.embodiments_directory() / "franka_panda.yaml").read_text()
    body = tmp_path / "franka_panda.yaml"
    # A chunk is due 0.1 s after the last one's image, an image comes 0.25 s after it.
    body.write_text(text.replace(f"execute_steps: {PANDA.execute_steps}", "execute_steps: 1"))
    sent = show_images(stack, 0.25)
    policy = stack.policy_double("patient", str(body), use_sim_time=False)
    begin_task(stack)
    stack.wait_for(lambda: len(stack.chunks) >= 6, 30.0, "chunks")
    stamps = [seconds(c.header.stamp) for c in stack.chunks]
    assert len(set(stamps)) == len(stamps)
    assert set(stamps) <= set(sent)
    assert policy.end() == 0


def test_camera_that_publishes_the_other_type_is_named(stack):
    stack.node.create_publisher(CompressedImage, stack.name(f"{CAMERA}/compressed"), qos.IMAGE)
    policy = stack.policy_double("sound", camera_timeout=4.0, use_sim_time=False)
    policy.wait_for_output(
        r"test_node publishes sensor_msgs/msg/CompressedImage on \S+/compressed: set transport: compressed"
    )


def test_wrong_checkpoint_fails_configure_and_names_it(stack, tmp_path):
    policy = stack.start("policy", embodiment="franka_panda", checkpoint=str(tmp_path), use_sim_time=False)
    policy.wait_for_output(rf"configure failed: .*{tmp_path}", timeout=60.0)
