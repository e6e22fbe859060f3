# SPDX-License-Identifier: Apache-2.0
"""Images as the policy takes them, made ready before it asks for them where there is time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qwen_vla_ros.embodiment import Embodiment

from .images import Depth, Rgb
from .observing import Views, decode, decode_depth


@dataclass(frozen=True)
class _Made:
    """What became of a message: pixels, or the reason why there are none."""

    message: Any
    pixels: Any = None
    error: Exception | None = None


class Inputs:
    """Decodes, turns and resizes each message once: when it comes, or when it is asked for.

    For several threads: whoever asks for what another is making waits for it.

    Args:
        resize: the policy's; see `Policy.resize`.
    """

    def __init__(self, embodiment: Embodiment, resize: Callable[[str, Rgb], Rgb]):
        self._cameras = {camera.view: camera for camera in embodiment.cameras}
        self._resize = resize
        self._lock = threading.Lock()
        self._images: dict[str, _Made] = {}
        self._depths: dict[str, _Made] = {}

    def image(self, view: str, message: Any) -> None:
        """Make an image ready. What is wrong with it is told by `of`, should it ever be used."""
        with self._lock:
            self._make(self._images, view, message, self._image)

    def depth(self, view: str, message: Any) -> None:
        """`image`, for depth."""
        with self._lock:
            self._make(self._depths, view, message, self._depth)

    def of(self, views: Views) -> tuple[dict[str, Rgb], dict[str, Depth]]:
        """Images at the policy's size, shapes (height, width, 3), and depths [m], (height, width), by view.

        Raises:
            NotObserved, ObservationError: A message that cannot be used; see `decode` and `Policy.resize`.
        """
        with self._lock:
            images = {v: self._make(self._images, v, m, self._image) for v, m in views.messages.items()}
            depths = {v: self._make(self._depths, v, m, self._depth) for v, m in views.depths.items()}
        for made in (*images.values(), *depths.values()):
            if made.error is not None:
                raise made.error
        return {v: m.pixels for v, m in images.items()}, {v: m.pixels for v, m in depths.items()}

    def clear(self) -> None:
        with self._lock:
            self._images.clear()
            self._depths.clear()

    def _make(
        self, kept: dict[str, _Made], view: str, message: Any, convert: Callable[[str, Any], Any]
    ) -> _Made:
        made = kept.get(view)
        if made is None or made.message is not message:
            try:
                made = _Made(message, convert(view, message))
            except Exception as error:  # a callback has no use for it
                made = _Made(message, error=error)
            kept[view] = made
        return made

    def _image(self, view: str, message: Any) -> Rgb:
        return self._resize(view, decode(self._cameras[view], message))

    def _depth(self, view: str, message: Any) -> Depth:
        return decode_depth(self._cameras[view], message)
