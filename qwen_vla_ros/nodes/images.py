# SPDX-License-Identifier: Apache-2.0
"""Image messages to RGB arrays and back: cv_bridge where it is installed, else numpy and OpenCV."""

from __future__ import annotations

import array
import os
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from sensor_msgs.msg import CompressedImage, Image

try:
    # Ubuntu 24.04's is built for numpy 1. Beside numpy 2 from pip it is imported, with a warning of numpy,
    # and ends the process at the first image.
    if int(np.__version__.partition(".")[0]) > 1 and os.environ.get("ROS_DISTRO") in ("jazzy", "kilted"):
        raise ImportError("cv_bridge is for numpy 1")
    from cv_bridge import CvBridge, CvBridgeError

    # Converts colours.
    from cv_bridge.boost import cv_bridge_boost  # noqa: F401
except (ImportError, AttributeError):
    from .cv_bridge_adapter import CvBridge, CvBridgeError  # type: ignore[assignment]

Rgb = npt.NDArray[np.uint8]
Depth = npt.NDArray[np.float32]

RAW_ENCODINGS = ("rgb8", "bgr8", "rgba8", "bgra8", "mono8")

# Of depth, and how a pixel is written.
DEPTH_ENCODINGS = {"16UC1": "u2", "32FC1": "f4"}

_bridge = CvBridge()

# An image of a camera is too small to share among cores: waiting for a busy one costs more than it saves.
cv2.setNumThreads(1)


class ImageError(ValueError):
    """An image that cannot be used; the text says what was found and what was expected."""


def encoding_of(message: Any) -> str:
    """`rgb8` and the like of an Image; `jpeg`, `png` or the given format of a CompressedImage."""
    if isinstance(message, Image):
        return message.encoding
    # "jpeg", or as image_transport writes it: "rgb8; jpeg compressed bgr8".
    text = message.format.lower()
    for name, marks in (("jpeg", ("jpeg", "jpg")), ("png", ("png",))):
        if any(mark in text for mark in marks):
            return name
    return message.format


def to_rgb(message: Any) -> Rgb:
    """RGB pixels of an Image or a CompressedImage. Shape (height, width, 3), contiguous, uint8.

    Raises:
        ImageError: an encoding that is not supported, too few bytes, or bytes that are not an image.
    """
    encoding = encoding_of(message)
    try:
        if isinstance(message, CompressedImage):
            if encoding not in ("jpeg", "png"):
                raise ImageError(f"format {message.format!r}, expected jpeg or png")
            return np.ascontiguousarray(_bridge.compressed_imgmsg_to_cv2(message, "rgb8"))
        if encoding not in RAW_ENCODINGS:
            raise ImageError(f"encoding {encoding!r}, expected one of {', '.join(RAW_ENCODINGS)}")
        needed = message.step * message.height
        width = message.width * (3 if encoding in ("rgb8", "bgr8") else 1 if encoding == "mono8" else 4)
        if not message.height or not message.width or message.step < width or len(message.data) < needed:
            raise ImageError(
                f"{len(message.data)} bytes in rows of {message.step} for {message.width}x{message.height} "
                f"{encoding}, expected at least {message.height} rows of {width}"
            )
        return np.ascontiguousarray(_bridge.imgmsg_to_cv2(message, "rgb8"))
    except (CvBridgeError, cv2.error) as error:
        raise ImageError(f"{encoding} image cannot be decoded: {error}") from error


def to_depth(message: Image) -> Depth:
    """Depth [m] of an Image, NaN where it is unknown. Shape (height, width), contiguous, float32.

    By REP 118: 16UC1 in mm with 0 for unknown; 32FC1 in m with NaN for it, and infinities out of range.

    Raises:
        ImageError: another encoding, or too few bytes.
    """
    encoding = message.encoding
    if encoding not in DEPTH_ENCODINGS:
        raise ImageError(f"encoding {encoding!r}, expected {' or '.join(DEPTH_ENCODINGS)}")
    kind = np.dtype(DEPTH_ENCODINGS[encoding]).newbyteorder(">" if message.is_bigendian else "<")
    row, needed = message.width * kind.itemsize, message.step * message.height
    if not message.height or not message.width or message.step < row or len(message.data) < needed:
        raise ImageError(
            f"{len(message.data)} bytes in rows of {message.step} for {message.width}x{message.height} "
            f"{encoding}, expected at least {message.height} rows of {row}"
        )
    shape, strides = (message.height, message.width), (message.step, kind.itemsize)
    pixels = np.ndarray(shape, kind, buffer=message.data, strides=strides).astype(np.float32)
    if encoding == "16UC1":
        pixels *= np.float32(1e-3)
    # Nothing is nearer than the camera, whatever a driver writes for what it does not know.
    pixels[~((pixels > 0) & (pixels < np.inf))] = np.nan
    return pixels


def depth_to_message(depth: Depth, header: Any) -> Image:
    """A 32FC1 Image of depths [m]. Shape (height, width)."""
    height, width = depth.shape
    data = np.ascontiguousarray(depth, dtype="<f4").tobytes()
    return Image(
        header=header,
        height=height,
        width=width,
        encoding="32FC1",
        step=4 * width,
        data=array.array("B", data),
    )


def rgb_to_encoding(rgb: Rgb, encoding: str, header: Any) -> Image:
    """An Image in one of `RAW_ENCODINGS` of pixels (height, width, 3)."""
    image = _bridge.cv2_to_imgmsg(rgb, "rgb8")
    if encoding != "rgb8":
        image = _bridge.cv2_to_imgmsg(_bridge.imgmsg_to_cv2(image, encoding), encoding)
    image.header = header
    return image


def rgb_to_jpeg(rgb: Rgb, header: Any, quality: int = 90) -> CompressedImage:
    """A jpeg CompressedImage of pixels (height, width, 3). `cv_bridge` offers no choice of quality."""
    return _encode(rgb, header, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality])


def rgb_to_png(rgb: Rgb, header: Any) -> CompressedImage:
    """A png CompressedImage of pixels (height, width, 3)."""
    return _encode(rgb, header, ".png", [])


def _encode(rgb: Rgb, header: Any, suffix: str, options: list[int]) -> CompressedImage:
    done, data = cv2.imencode(suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise ImageError(f"encoding as {suffix} failed")
    name = {".jpg": "jpeg", ".png": "png"}[suffix]
    return CompressedImage(
        header=header, format=f"rgb8; {name} compressed bgr8", data=array.array("B", data.tobytes())
    )
