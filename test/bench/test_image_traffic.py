# SPDX-License-Identifier: Apache-2.0
"""The cameras of the benchmarks send what a publisher of messages would."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from builtin_interfaces.msg import Time
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import Image

from qwen_vla_ros.bench._image_traffic import Serialised


def test_an_image_that_was_serialised_once_differs_by_its_stamp_alone():
    pixels = np.random.default_rng(0).integers(0, 256, 4 * 5 * 3, dtype=np.uint8)
    message = Image(height=4, width=5, step=15, encoding="rgb8", data=pixels.tobytes())
    ready = Serialised(message)
    for stamp in (Time(sec=1_700_000_000, nanosec=999_999_999), Time(sec=-1, nanosec=0)):
        message.header.stamp = stamp
        assert deserialize_message(ready.at(stamp), Image) == message
