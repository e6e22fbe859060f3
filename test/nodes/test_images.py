# SPDX-License-Identifier: Apache-2.0
"""Images and rotations, as cv_bridge and tf_transformations have them."""

from __future__ import annotations

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from geometry_msgs.msg import Quaternion
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from qwen_vla_ros.nodes.cv_bridge_adapter import CvBridge, CvBridgeError
from qwen_vla_ros.nodes.images import (
    ImageError,
    depth_to_message,
    encoding_of,
    rgb_to_encoding,
    rgb_to_jpeg,
    rgb_to_png,
    to_depth,
    to_rgb,
)
from qwen_vla_ros.nodes.transforms import euler_from_quaternion, quaternion_from_euler, yaw_of

RGB = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
SMOOTH = np.stack([*np.meshgrid(np.arange(64), np.arange(48)), np.full((48, 64), 90)], axis=-1).astype(
    np.uint8
)


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8"])
def test_colour_encodings_come_back_unchanged(encoding):
    message = rgb_to_encoding(RGB, encoding, Header(frame_id="eye"))
    assert (message.encoding, message.height, message.width) == (encoding, 7, 5)
    assert message.header.frame_id == "eye"
    back = to_rgb(message)
    assert back.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(back, RGB)


@pytest.mark.parametrize("big", [False, True])
def test_depth_in_mm_and_in_m_is_nan_where_it_is_unknown(big):
    order = ">" if big else "<"
    mm = np.array([[0, 1, 65535], [750, 0, 20]], dtype=f"{order}u2")
    # Rows may be longer than their pixels.
    rows = b"".join(row.tobytes() + b"xy" for row in mm)
    message = Image(height=2, width=3, step=8, encoding="16UC1", is_bigendian=big, data=rows)
    depth = to_depth(message)
    assert depth.dtype == np.float32
    assert depth.flags["C_CONTIGUOUS"]
    np.testing.assert_allclose(depth, [[np.nan, 0.001, 65.535], [0.75, np.nan, 0.02]], rtol=1e-6)

    m = np.array([[np.nan, np.inf, 0.5], [-np.inf, 0.0, -1.0]], dtype=f"{order}f4")
    message = Image(height=2, width=3, step=12, encoding="32FC1", is_bigendian=big, data=m.tobytes())
    np.testing.assert_array_equal(to_depth(message), np.float32([[np.nan, np.nan, 0.5], [np.nan] * 3]))


def test_depth_that_cannot_be_read_is_refused():
    depth = np.float32([[0.5, 1.5]])
    message = depth_to_message(depth, Header(frame_id="eye"))
    np.testing.assert_array_equal(to_depth(message), depth)
    message.encoding = "mono16"
    with pytest.raises(ImageError, match="encoding 'mono16', expected 16UC1 or 32FC1"):
        to_depth(message)
    message.encoding, message.height = "32FC1", 2
    with pytest.raises(ImageError, match="8 bytes in rows of 8 for 2x2 32FC1, expected at least 2 rows of 8"):
        to_depth(message)


def test_channel_order():
    pixel = np.array([[[10, 20, 30]]], dtype=np.uint8)
    assert bytes(rgb_to_encoding(pixel, "bgr8", Header()).data) == bytes([30, 20, 10])
    assert bytes(rgb_to_encoding(pixel, "bgra8", Header()).data) == bytes([30, 20, 10, 255])
    assert bytes(rgb_to_encoding(pixel, "rgba8", Header()).data) == bytes([10, 20, 30, 255])


def test_mono8_gives_three_equal_channels():
    message = Image(height=2, width=3, step=3, encoding="mono8", data=bytes(range(6)))
    rgb = to_rgb(message)
    assert rgb.shape == (2, 3, 3)
    assert (rgb == np.arange(6).reshape(2, 3, 1)).all()


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "mono8", "rgba8"])
def test_padding_at_the_end_of_rows_is_skipped(encoding):
    tight = rgb_to_encoding(RGB, encoding, Header())
    rows = np.frombuffer(bytes(tight.data), np.uint8).reshape(7, tight.step)
    padded = Image(height=7, width=5, encoding=encoding, step=tight.step + 4)
    padded.data = np.hstack([rows, np.full((7, 4), 255, np.uint8)]).tobytes()
    np.testing.assert_array_equal(to_rgb(padded), to_rgb(tight))


def test_jpeg_is_near_and_png_is_exact():
    jpeg, png = rgb_to_jpeg(SMOOTH, Header()), rgb_to_png(SMOOTH, Header())
    assert (encoding_of(jpeg), encoding_of(png)) == ("jpeg", "png")
    assert np.abs(to_rgb(jpeg).astype(int) - SMOOTH).max() < 12
    np.testing.assert_array_equal(to_rgb(png), SMOOTH)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (
            Image(height=2, width=2, step=6, encoding="rgb8", data=bytes(11)),
            "11 bytes in rows of 6 for 2x2 rgb8",
        ),
        (Image(height=2, width=2, step=5, encoding="rgb8", data=bytes(12)), "at least 2 rows of 6"),
        (Image(height=0, width=2, step=6, encoding="rgb8"), "0 bytes"),
        (
            Image(height=1, width=1, step=2, encoding="16UC1", data=bytes(2)),
            "encoding '16UC1', expected one of rgb8",
        ),
        (CompressedImage(format="jpeg", data=b"not a picture"), "cannot be decoded"),
        (CompressedImage(format="jpeg"), "cannot be decoded"),
        (CompressedImage(format="h264", data=b"x"), "format 'h264', expected jpeg or png"),
    ],
)
def test_bad_images_are_refused_with_a_reason(message, text):
    with pytest.raises(ImageError, match=text.replace("(", r"\(")):
        to_rgb(message)


@pytest.mark.parametrize("breaks", ["ImportError", "AttributeError"])
def test_a_cv_bridge_for_another_numpy_is_left_alone(breaks, tmp_path):
    boost = tmp_path / "cv_bridge" / "boost"
    boost.mkdir(parents=True)
    (boost.parent / "__init__.py").write_text("class CvBridge: pass\nclass CvBridgeError(TypeError): pass\n")
    (boost / "__init__.py").touch()
    (boost / "cv_bridge_boost.py").write_text(f"raise {breaks}('_ARRAY_API not found')\n")
    show = "from qwen_vla_ros.nodes import images; print(images.CvBridge.__module__)"
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}:{os.environ['PYTHONPATH']}",
        "ROS_DISTRO": "rolling",
    }
    said = subprocess.run([sys.executable, "-c", show], env=environment, capture_output=True, text=True)
    assert said.stdout.strip() == "qwen_vla_ros.nodes.cv_bridge_adapter", said.stderr


@pytest.mark.skipif(int(np.__version__.split(".")[0]) < 2, reason="needs numpy 2")
@pytest.mark.parametrize(
    ("distro", "taken"), [("jazzy", "qwen_vla_ros.nodes.cv_bridge_adapter"), ("rolling", "cv_bridge")]
)
def test_a_cv_bridge_for_numpy_1_is_left_alone_though_it_can_be_imported(distro, taken, tmp_path):
    """As that of Ubuntu 24.04 beside numpy 2: it would end the process at the first image."""
    boost = tmp_path / "cv_bridge" / "boost"
    boost.mkdir(parents=True)
    (boost.parent / "__init__.py").write_text("class CvBridge: pass\nclass CvBridgeError(TypeError): pass\n")
    (boost / "__init__.py").touch()
    (boost / "cv_bridge_boost.py").touch()
    show = "from qwen_vla_ros.nodes import images; print(images.CvBridge.__module__)"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ['PYTHONPATH']}", "ROS_DISTRO": distro}
    said = subprocess.run([sys.executable, "-c", show], env=environment, capture_output=True, text=True)
    assert said.stdout.strip() == taken, said.stderr


def test_a_transforms3d_for_another_numpy_is_named(tmp_path):
    (tmp_path / "tf_transformations.py").write_text("import transforms3d\n")
    (tmp_path / "transforms3d.py").write_text("import numpy\nnumpy.maximum_sctype(float)\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ['PYTHONPATH']}"}
    command = [sys.executable, "-c", "from qwen_vla_ros.nodes import transforms"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "pip install 'transforms3d>=0.4.2'" in said.stderr.splitlines()[-1]


def test_adapter_has_the_defaults_of_cv_bridge():
    bridge = CvBridge()
    message = rgb_to_encoding(RGB, "bgr8", Header())
    np.testing.assert_array_equal(bridge.imgmsg_to_cv2(message), RGB[..., ::-1])
    np.testing.assert_array_equal(bridge.imgmsg_to_cv2(message, "rgb8"), RGB)
    grey = bridge.imgmsg_to_cv2(message, "mono8")
    np.testing.assert_array_equal(grey, cv2.cvtColor(RGB, cv2.COLOR_RGB2GRAY))
    np.testing.assert_array_equal(bridge.compressed_imgmsg_to_cv2(rgb_to_png(RGB, Header())), RGB[..., ::-1])
    again = bridge.cv2_to_imgmsg(RGB[..., 0], "mono8")
    assert (again.step, bytes(again.data)) == (5, RGB[..., 0].tobytes())
    for bad in (lambda: bridge.cv2_to_imgmsg(RGB, "mono8"), lambda: bridge.imgmsg_to_cv2(message, "32FC1")):
        with pytest.raises(CvBridgeError):
            bad()


def test_quaternions_are_in_ros_order():
    x, y, z, w = quaternion_from_euler(0.0, 0.0, np.pi / 2)
    assert (x, y, z, w) == pytest.approx((0, 0, np.sqrt(0.5), np.sqrt(0.5)))
    assert euler_from_quaternion(quaternion_from_euler(0.1, -0.2, 0.3)) == pytest.approx((0.1, -0.2, 0.3))
    assert yaw_of(Quaternion(x=x, y=y, z=z, w=w)) == pytest.approx(np.pi / 2)
