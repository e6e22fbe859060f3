# SPDX-License-Identifier: Apache-2.0
"""From the newest image of each camera to an observation, or to the reason why there is none."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qwen_vla_ros.action import ExecuteTask
from qwen_vla_ros.embodiment import Embodiment
from qwen_vla_ros.embodiment.schema import Camera

from .frozen import same_picture
from .images import Depth, ImageError, Rgb, encoding_of, to_depth, to_rgb
from .lifecycle import seconds

CAMERA_STALE = ExecuteTask.Result.CAMERA_STALE
IMAGE_INVALID = ExecuteTask.Result.IMAGE_INVALID


class NotObserved(Exception):
    """There is no observation now.

    Attributes:
        code: one of ExecuteTask.Result's.
        lasting: waiting does not help.
    """

    def __init__(self, code: int, message: str, lasting: bool = False):
        super().__init__(message)
        self.code = code
        self.lasting = lasting


@dataclass(frozen=True)
class Views:
    """Newest images that belong together.

    Attributes:
        messages: by view, in the embodiment's order.
        oldest, newest: capture times [s].
        depths: by view, of cameras that have a depth topic.
    """

    messages: dict[str, Any]
    oldest: float
    newest: float
    depths: dict[str, Any] = field(default_factory=dict)

    @property
    def skew(self) -> float:
        """[s]"""
        return self.newest - self.oldest


class Inbox:
    """The newest image and depth of every camera. `keep` and `compare` are for one thread."""

    def __init__(self, embodiment: Embodiment):
        self._embodiment = embodiment
        self._lock = threading.Lock()
        self._newest: dict[str, Any] = {}
        self._before: dict[str, Any] = {}
        self._depths: dict[str, Any] = {}
        self._frames = {camera.view: 0 for camera in embodiment.cameras}
        # Capture time of the first message with the newest picture [s].
        self._drawn: dict[str, float] = {}
        self._frozen: dict[str, str] = {}

    def keep(self, view: str, message: Any) -> None:
        """An image came; `compare` is to follow."""
        with self._lock:
            self._before[view] = self._newest.get(view)
            self._newest[view] = message
            self._frames[view] += 1

    def compare(self, view: str) -> None:
        """Find out whether the newest image shows another picture than the one before. It takes its time."""
        before, message = self._before.pop(view), self._newest[view]
        if before is None or not same_picture(before, message):
            with self._lock:
                self._drawn[view] = seconds(message.header.stamp)
                self._frozen.pop(view, None)

    def keep_depth(self, view: str, message: Any) -> None:
        with self._lock:
            self._depths[view] = message

    @property
    def unheard(self) -> bool:
        """A required camera has sent nothing yet, or no depth."""
        with self._lock:
            return any(
                not self._frames[camera.view]
                or (camera.depth is not None and camera.view not in self._depths)
                for camera in self._embodiment.cameras
                if camera.required
            )

    def unchanged(self) -> dict[str, tuple[float, float]]:
        """First and last capture time [s] under which each view sent its newest picture."""
        with self._lock:
            return {v: (self._drawn[v], seconds(m.header.stamp)) for v, m in self._newest.items()}

    def freeze(self, view: str, reason: str) -> None:
        """Use no image of a view until it shows another picture."""
        with self._lock:
            self._frozen[view] = reason

    def clear(self) -> None:
        """Forget images and counts."""
        with self._lock:
            self._newest.clear()
            self._before.clear()
            self._depths.clear()
            self._frames = dict.fromkeys(self._frames, 0)
            self._drawn.clear()
            self._frozen.clear()

    def counts(self, now: float) -> tuple[list[str], list[int], list[float]]:
        """Views in the YAML's order, frames received, capture age of the newest [s] (NaN without one)."""
        with self._lock:
            newest, frames = dict(self._newest), dict(self._frames)
        views = list(frames)
        ages = [now - seconds(newest[v].header.stamp) if v in newest else math.nan for v in views]
        return views, [frames[v] for v in views], ages

    def views(self, now: float, began: float) -> Views:
        """Images captured after `began` [s], none older or newer than its camera allows, none frozen, all
        captured together. Depth counts as an image: a view has both, or is left out if it is optional.

        Raises:
            NotObserved: CAMERA_STALE, naming camera, topic and what is wrong.
        """
        with self._lock:
            newest, depths, frozen = dict(self._newest), dict(self._depths), dict(self._frozen)
        # Capture times by view: of the image, then of depth.
        stamps: dict[str, list[float]] = {}
        for camera in self._embodiment.cameras:
            parts = [(f"camera {camera.view} on {camera.topic}", newest.get(camera.view))]
            if camera.depth is not None:
                parts.append((f"depth of camera {camera.view} on {camera.depth}", depths.get(camera.view)))
            found = []
            for place, (name, message) in enumerate(parts):
                trouble = _stale(message, now, began, camera.max_age)
                if trouble is None and not place:
                    trouble = frozen.get(camera.view)
                if trouble is None:
                    found.append(seconds(message.header.stamp))
                elif camera.required:
                    raise NotObserved(CAMERA_STALE, f"{name}: {trouble}")
            if len(found) == len(parts):
                stamps[camera.view] = found
        self._drop_skewed_optional(stamps)
        oldest, latest = min(map(min, stamps.values())), max(map(max, stamps.values()))
        if latest - oldest > self._embodiment.max_camera_skew:
            slow = min(stamps, key=lambda view: min(stamps[view]))
            part = "depth of camera" if stamps[slow].index(oldest) else "camera"
            raise NotObserved(
                CAMERA_STALE,
                f"{part} {slow} lags {latest - oldest:.3f} s behind the newest, "
                f"allowed {self._embodiment.max_camera_skew} s",
            )
        return Views(
            {view: newest[view] for view in stamps},
            oldest,
            latest,
            {view: depths[view] for view, times in stamps.items() if len(times) > 1},
        )

    def _drop_skewed_optional(self, stamps: dict[str, list[float]]) -> None:
        required = [stamp for c in self._embodiment.cameras if c.required for stamp in stamps[c.view]]
        limit = self._embodiment.max_camera_skew
        for camera in self._embodiment.cameras:
            if camera.required or camera.view not in stamps:
                continue
            times = [*required, *stamps[camera.view]]
            if max(times) - min(times) > limit:
                del stamps[camera.view]


def _stale(message: Any, now: float, began: float, max_age: float) -> str | None:
    """Why an image is of no use now, or None."""
    if message is None:
        return "nothing received"
    stamp = seconds(message.header.stamp)
    if stamp < began:
        return "no image captured since the task began"
    if now - stamp > max_age:
        return f"newest image is {now - stamp:.2f} s old, allowed {max_age} s"
    if stamp - now > max_age:
        return f"newest image is stamped {stamp - now:.2f} s ahead of the clock, allowed {max_age} s"
    return None


def decode(camera: Camera, message: Any) -> Rgb:
    """RGB pixels of an image, checked and turned as the embodiment says. Shape (height, width, 3).

    Raises:
        NotObserved: IMAGE_INVALID, naming camera, found and expected.
    """
    width, height = camera.size
    where = f"camera {camera.view} on {camera.topic}"
    encoding = encoding_of(message)
    if encoding not in camera.encodings:
        raise NotObserved(
            IMAGE_INVALID,
            f"{where}: encoding {encoding}, expected {' or '.join(camera.encodings)}",
            lasting=True,
        )
    try:
        rgb = to_rgb(message)
    except ImageError as error:
        raise NotObserved(IMAGE_INVALID, f"{where}: {error}", lasting=True) from error
    if rgb.shape[:2] != (height, width):
        raise NotObserved(
            IMAGE_INVALID,
            f"{where}: size {rgb.shape[1]}x{rgb.shape[0]}, expected {width}x{height}",
            lasting=True,
        )
    return _turned(rgb, camera)


def decode_depth(camera: Camera, message: Any) -> Depth:
    """Depth [m], NaN where it is unknown, checked and turned as its image. Shape (height, width).

    Raises:
        NotObserved: IMAGE_INVALID, naming camera, found and expected.
    """
    width, height = camera.size
    where = f"depth of camera {camera.view} on {camera.depth}"
    try:
        depth = to_depth(message)
    except ImageError as error:
        raise NotObserved(IMAGE_INVALID, f"{where}: {error}", lasting=True) from error
    if depth.shape != (height, width):
        raise NotObserved(
            IMAGE_INVALID,
            f"{where}: size {depth.shape[1]}x{depth.shape[0]}, expected {width}x{height}, "
            "registered to the image",
            lasting=True,
        )
    return _turned(depth, camera)


def _turned(pixels: Any, camera: Any) -> Any:
    return np.ascontiguousarray(np.rot90(pixels, -camera.rotate // 90)) if camera.rotate else pixels


def check_chunk(chunk: np.ndarray, embodiment: Embodiment) -> None:
    """Raises ValueError unless a normalised chunk is finite, of shape (horizon, c), and within [-1, 1]."""
    expected = (embodiment.horizon, embodiment.layout.count)
    if np.shape(chunk) != expected:
        raise ValueError(f"the model gave shape {np.shape(chunk)}, expected {expected}")
    if not np.isfinite(chunk).all():
        row, channel = np.argwhere(~np.isfinite(chunk))[0]
        name = embodiment.layout.names[channel]
        raise ValueError(f"the model gave {chunk[row, channel]} in row {row}, channel {name}")
    if np.abs(chunk).max() > 1 + 1e-5:
        raise ValueError(f"the model gave {np.abs(chunk).max():.3g}, expected values within [-1, 1]")
