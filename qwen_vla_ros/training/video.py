# SPDX-License-Identifier: Apache-2.0
"""Single frames of video files, found by their exact time stamps."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_vla_ros.training.errors import TrainingError

_OPEN_FILES = 8  # per thread


@dataclass(frozen=True)
class VideoIndex:
    """Frames of a file in the order of display.

    Attributes:
        stamps: In ticks of the stream. Shape (n,).
        seconds: Shape (n,).
        keys: Stamps of the frames that decoding can start from. Shape (k,).
    """

    stamps: NDArray[np.int64]
    seconds: NDArray[np.float64]
    keys: NDArray[np.int64]


def index_video(path: Path) -> VideoIndex:
    """Time stamps of all frames, without decoding one.

    Raises TrainingError when the file is missing, holds no video or breaks off.
    """
    import av

    if not path.is_file():
        raise TrainingError(f"{path}: no such file; copy the whole dataset again")
    stamps, keys = [], []
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise TrainingError(f"{path}: found no video stream, expected one")
            stream = container.streams.video[0]
            promised, base = stream.frames, stream.time_base
            for packet in container.demux(stream):
                if packet.pts is None or packet.is_corrupt:
                    continue
                stamps.append(packet.pts)
                if packet.is_keyframe:
                    keys.append(packet.pts)
    except av.error.FFmpegError as error:
        raise TrainingError(
            f"{path}: damaged or cut short ({error.strerror}); copy the file again"
        ) from error
    if len(stamps) < promised or not stamps or base is None:
        raise TrainingError(
            f"{path}: cut short: found {len(stamps)} frames, expected {promised}; copy the file again"
        )
    ordered = np.sort(np.array(stamps, dtype=np.int64))
    return VideoIndex(ordered, np.multiply(ordered, float(base)), np.sort(np.array(keys, dtype=np.int64)))


class Videos:
    """Decodes frames; every thread has files of its own open."""

    def __init__(self) -> None:
        self._local = threading.local()

    def frame(self, path: Path, index: VideoIndex, stamp: int) -> NDArray[np.uint8]:
        """RGB of the frame with this stamp, shape (h, w, 3). Raises TrainingError if it cannot be decoded."""
        readers: OrderedDict[Path, _Reader] = self._local.__dict__.setdefault("readers", OrderedDict())
        reader = readers.pop(path, None) or _Reader(path, index)
        readers[path] = reader
        while len(readers) > _OPEN_FILES:
            readers.popitem(last=False)[1].close()
        return reader.frame(stamp)


class _Reader:
    def __init__(self, path: Path, index: VideoIndex) -> None:
        import av

        self._path, self._index = path, index
        self._container = av.open(str(path))
        self._stream = self._container.streams.video[0]
        self._stream.codec_context.thread_count = 1
        self._frames: Any = iter(())
        self._last: int | None = None

    def frame(self, stamp: int) -> NDArray[np.uint8]:
        import av

        try:
            if self._must_seek(stamp):
                self._container.seek(stamp, stream=self._stream)
                self._frames = self._container.decode(self._stream)
            for frame in self._frames:
                if frame.pts is None:
                    continue
                self._last = frame.pts
                if frame.pts == stamp:
                    return frame.to_ndarray(format="rgb24")
                if frame.pts > stamp:
                    break
        except av.error.FFmpegError as error:
            self._last = None
            raise TrainingError(
                f"{self._path}: the frame at tick {stamp} cannot be decoded ({error.strerror}); "
                "copy the file again"
            ) from error
        self._last = None
        raise TrainingError(f"{self._path}: no frame comes out at tick {stamp}; copy the file again")

    def _must_seek(self, stamp: int) -> bool:
        """False where going on with decoding is the shorter way."""
        if self._last is None or stamp <= self._last:
            return True
        keys = self._index.keys
        return bool(np.searchsorted(keys, stamp, "right") > np.searchsorted(keys, self._last, "right"))

    def close(self) -> None:
        self._container.close()
