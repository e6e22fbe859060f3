# SPDX-License-Identifier: Apache-2.0
"""The calls of cv_bridge that this package uses, for machines that have no cv_bridge."""

from __future__ import annotations

import array
import sys
from typing import Any

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image

CHANNELS = {"mono8": 1, "rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4}

_CODES = {
    (a, b): getattr(cv2, f"COLOR_{a_name}2{b_name}")
    for a, a_name in (
        ("mono8", "GRAY"),
        ("rgb8", "RGB"),
        ("bgr8", "BGR"),
        ("rgba8", "RGBA"),
        ("bgra8", "BGRA"),
    )
    for b, b_name in (
        ("mono8", "GRAY"),
        ("rgb8", "RGB"),
        ("bgr8", "BGR"),
        ("rgba8", "RGBA"),
        ("bgra8", "BGRA"),
    )
    if a != b
}


class CvBridgeError(TypeError):
    """A conversion that is not possible."""


class CvBridge:
    """Image messages to OpenCV arrays and back, with cv_bridge's names, defaults and results."""

    def imgmsg_to_cv2(self, img_msg: Image, desired_encoding: str = "passthrough") -> np.ndarray:
        """Pixels of an 8-bit Image. Shape (height, width, channels), (height, width) for mono8.

        The result shares memory with the message where no conversion is needed.
        """
        channels = _channels(img_msg.encoding)
        shape = (img_msg.height, img_msg.width, channels)
        pixels = np.ndarray(shape, np.uint8, buffer=img_msg.data, strides=(img_msg.step, channels, 1))
        if channels == 1:
            pixels = pixels[..., 0]
        return _convert(pixels, img_msg.encoding, desired_encoding)

    def compressed_imgmsg_to_cv2(
        self, cmprs_img_msg: CompressedImage, desired_encoding: str = "passthrough"
    ) -> np.ndarray:
        """Pixels of an encoded image: bgr8 unless asked otherwise, as cv_bridge has it."""
        data = np.frombuffer(cmprs_img_msg.data, np.uint8)
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
        if pixels is None:
            raise CvBridgeError(f"{data.size} bytes of format {cmprs_img_msg.format!r} are not an image")
        return _convert(pixels, "bgr8", desired_encoding)

    def cv2_to_imgmsg(self, cvim: np.ndarray, encoding: str = "passthrough", header: Any = None) -> Image:
        """An Image of uint8 pixels (height, width, channels) or (height, width)."""
        found = 1 if cvim.ndim == 2 else cvim.shape[2]
        if cvim.dtype != np.uint8 or _channels(encoding) != found:
            raise CvBridgeError(f"{cvim.dtype} pixels with {found} channels are not {encoding}")
        message = Image(
            height=cvim.shape[0],
            width=cvim.shape[1],
            encoding=encoding,
            is_bigendian=sys.byteorder == "big",
            step=cvim.shape[1] * found,
        )
        # An array.array is taken as it is; a list or bytes would be checked byte by byte.
        message.data = array.array("B", np.ascontiguousarray(cvim).tobytes())
        if header is not None:
            message.header = header
        return message


def _channels(encoding: str) -> int:
    if encoding not in CHANNELS:
        raise CvBridgeError(f"encoding {encoding!r} is not one of {', '.join(CHANNELS)}")
    return CHANNELS[encoding]


def _convert(pixels: np.ndarray, found: str, wanted: str) -> np.ndarray:
    if wanted in ("passthrough", found):
        return pixels
    _channels(wanted)
    return cv2.cvtColor(pixels, _CODES[found, wanted])
