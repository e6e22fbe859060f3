# SPDX-License-Identifier: Apache-2.0
"""Datasets in the LeRobot format, versions 2.0, 2.1 and 3.0, read from a folder.

All keep `meta/info.json` (rate, features, patterns of paths), numbers in parquet and pictures in mp4 files or
in parquet. Versions 2 have one file per episode and JSON lines about episodes and tasks; version 3 has many
episodes in a file, and parquet about episodes and tasks.
Source: https://huggingface.co/docs/lerobot/lerobot-dataset-v3
"""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_vla_ros.training.errors import TrainingError
from qwen_vla_ros.training.video import VideoIndex, Videos, index_video

VERSIONS = ("v2.0", "v2.1", "v3.0")
_CAMERAS = ("video", "image")
_AGAIN = "copy the whole dataset again"
_ROW_GROUPS = 8  # of pictures, kept in memory
# Periods that a frame may be off its place after the one before. Twice the rate is half a period, which
# float32 rounds.
_JITTER = 0.49
# Share by which the rate of an episode may be another than fps.
_DRIFT = 0.1


@dataclass(frozen=True)
class Feature:
    """A column of the dataset. names: of its entries, as many as `width`, where the dataset says them."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] | None

    @property
    def camera(self) -> bool:
        return self.dtype in _CAMERAS

    @property
    def width(self) -> int:
        """Entries of a row."""
        return int(np.prod(self.shape)) if self.shape else 1


@dataclass(frozen=True)
class Clip:
    """Frames of one episode in a video. stamps: in ticks of the file. Shape (length,)."""

    path: Path
    index: VideoIndex
    stamps: NDArray[np.int64]


@dataclass
class Episode:
    """One recording.

    Attributes:
        index: Its number in the dataset.
        length: Frames.
        path: Parquet file that holds its numbers.
        videos: File and time of the first frame [s], by feature.
        columns: Numbers by feature, after `LeRobotFolder.read`. Each (length, width).
        clips: Frames by feature, after `LeRobotFolder.read`.
        first_row: Row of its first frame in `path`.
    """

    index: int
    length: int
    path: Path
    videos: dict[str, tuple[Path, float]]
    columns: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    clips: dict[str, Clip] = field(default_factory=dict)
    first_row: int = 0


class LeRobotFolder:
    """A dataset.

    Attributes:
        fps: Frames per second.
        features: By name.
        episodes: In order.
        tasks: Instruction by task index.

    Raises:
        TrainingError: The folder is missing, half-written or of another version; names file, found, expected.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise TrainingError(f"{folder}: no such folder; expected a LeRobot dataset with meta/info.json")
        self._info_path = folder / "meta" / "info.json"
        info = self._info()
        self.version: str = info["codebase_version"]
        self.fps = float(info["fps"])
        self.features = {
            name: _feature(name, entry, self._info_path) for name, entry in info["features"].items()
        }
        self._info_content = info
        self.tasks = self._tasks()
        self.episodes = self._episodes()
        self._check_totals()
        self._videos = Videos()
        self._pictures = _Pictures(folder)

    @property
    def cameras(self) -> list[str]:
        """Names of the features that hold pictures."""
        return [name for name, feature in self.features.items() if feature.camera]

    def read(self, numbers: Iterable[str], cameras: Iterable[str]) -> None:
        """Read the columns of all episodes and find all frames of these cameras.

        Raises TrainingError where a file is missing, damaged, too short or holds a value that is not finite.
        """
        names, cameras = list(dict.fromkeys(numbers)), list(cameras)
        inside = [camera for camera in cameras if self.features[camera].dtype != "video"]
        by_file: dict[Path, list[Episode]] = {}
        for episode in self.episodes:
            by_file.setdefault(episode.path, []).append(episode)
        for path, episodes in by_file.items():
            self._read_file(path, episodes, names, inside)
        indices: dict[Path, VideoIndex] = {}
        for camera in cameras:
            if self.features[camera].dtype == "video":
                for episode in self.episodes:
                    episode.clips[camera] = self._clip(episode, camera, indices)

    def picture(self, episode: Episode, camera: str, frame: int) -> NDArray[np.uint8]:
        """RGB of a frame. Shape (h, w, 3)."""
        if self.features[camera].dtype == "video":
            clip = episode.clips[camera]
            return self._videos.frame(clip.path, clip.index, int(clip.stamps[frame]))
        return self._pictures.read(episode.path, camera, episode.first_row + frame)

    def statistics_faults(self) -> list[str]:
        """Where the dataset's own statistics contradict its features."""
        path = self.folder / "meta" / "stats.json"
        if not path.is_file():
            return []
        faults = []
        for name, entry in _read_json(path).items():
            feature = self.features.get(name)
            if feature is None or feature.camera or not isinstance(entry, dict):
                continue
            found = np.size(entry.get("min", []))
            if found not in (0, feature.width):
                faults.append(f"{path}: {name}: min: found {found} entries, expected {feature.width}")
        return faults

    # Meta

    def _info(self) -> dict[str, Any]:
        path = self._info_path
        if not path.is_file():
            raise TrainingError(f"{path}: no such file; expected a LeRobot dataset, or {_AGAIN}")
        info = _read_json(path)
        version = info.get("codebase_version")
        if version not in VERSIONS:
            raise TrainingError(
                f"{path}: codebase_version: found {version!r}, expected one of {', '.join(VERSIONS)}; "
                "LeRobot has scripts that convert other versions"
            )
        absent = [key for key in ("fps", "features", "data_path") if not info.get(key)]
        if absent or not isinstance(info["features"], dict):
            raise TrainingError(f"{path}: found no {', '.join(absent) or 'features'}; {_AGAIN}")
        if not isinstance(info["fps"], (int, float)) or not 0 < info["fps"] <= 1000:
            raise TrainingError(f"{path}: fps: found {info['fps']!r}, expected a positive number")
        return info

    def _tasks(self) -> dict[int, str]:
        if self.version == "v3.0":
            path = self.folder / "meta" / "tasks.parquet"
            table = _read_table(path)
            texts = [
                name
                for name, column in zip(table.column_names, table.columns, strict=True)
                if "string" in str(column.type)
            ]
            if "task_index" not in table.column_names or not texts:
                raise TrainingError(
                    f"{path}: found columns {table.column_names}, expected task_index and a text"
                )
            key = texts[0]
            rows = list(zip(table["task_index"].to_pylist(), table[key].to_pylist(), strict=True))
        else:
            path, key = self.folder / "meta" / "tasks.jsonl", "task"
            rows = [(_entry(line, "task_index", path), _entry(line, key, path)) for line in _lines(path)]
        return {
            _whole(index, f"{path}: row {k}: task_index"): _text(task, f"{path}: row {k}: {key}")
            for k, (index, task) in enumerate(rows)
        }

    def _episodes(self) -> list[Episode]:
        found = self._episodes_v3() if self.version == "v3.0" else self._episodes_v2()
        found.sort(key=lambda episode: episode.index)
        if not found:
            raise TrainingError(f"{self.folder / 'meta'}: found no episodes, expected at least one")
        return found

    def _episodes_v2(self) -> list[Episode]:
        path = self.folder / "meta" / "episodes.jsonl"
        size = _whole(self._info_content.get("chunks_size", 1000), f"{self._info_path}: chunks_size", 1)
        episodes = []
        for k, line in enumerate(_lines(path)):
            index = _whole(_entry(line, "episode_index", path), f"{path}: row {k}: episode_index")
            length = _whole(_entry(line, "length", path), f"{path}: episode {index}: length", 1)
            place = {"episode_chunk": index // size, "episode_index": index}
            videos = {
                name: (self._path("video_path", video_key=name, **place), 0.0)
                for name in self.cameras
                if self.features[name].dtype == "video"
            }
            episodes.append(Episode(index, length, self._path("data_path", **place), videos))
        return episodes

    def _episodes_v3(self) -> list[Episode]:
        folder = self.folder / "meta" / "episodes"
        paths = sorted(folder.glob("*/*.parquet"))
        if not paths:
            raise TrainingError(
                f"{folder}: found no parquet file, expected chunk-000/file-000.parquet; {_AGAIN}"
            )
        cameras = [name for name in self.cameras if self.features[name].dtype == "video"]
        wanted = ["episode_index", "length", "data/chunk_index", "data/file_index"]
        for name in cameras:
            wanted += [f"videos/{name}/{part}" for part in ("chunk_index", "file_index", "from_timestamp")]
        episodes = []
        for path in paths:
            for k, row in enumerate(_read_table(path, wanted).to_pylist()):
                index = _whole(row["episode_index"], f"{path}: row {k}: episode_index")
                where = f"{path}: episode {index}"
                length = _whole(row["length"], f"{where}: length", 1)
                videos = {}
                for name in cameras:
                    part = f"videos/{name}"
                    video = self._path("video_path", video_key=name, **_place(row, part, where))
                    start = row[f"{part}/from_timestamp"]
                    videos[name] = video, _seconds(start, f"{where}: {part}/from_timestamp")
                data = self._path("data_path", **_place(row, "data", where))
                episodes.append(Episode(index, length, data, videos))
        return episodes

    def _path(self, key: str, **place: Any) -> Path:
        pattern = self._info_content.get(key)
        try:
            path = Path(str(pattern).format(**place))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise TrainingError(
                f"{self._info_path}: {key}: found {pattern!r}, expected a pattern with {', '.join(place)}"
            ) from error
        if pattern is None or path.is_absolute() or ".." in path.parts:
            raise TrainingError(
                f"{self._info_path}: {key}: found {pattern!r}, expected a path in the dataset"
            )
        return self.folder / path

    def _check_totals(self) -> None:
        info = self._info_content
        found = {
            "total_episodes": len(self.episodes),
            "total_frames": sum(episode.length for episode in self.episodes),
        }
        for key, count in found.items():
            expected = info.get(key, count)
            if count != expected:
                raise TrainingError(
                    f"{self.folder / 'meta'}: half-written: found {key} {count}, {self._info_path.name} says "
                    f"{expected}; {_AGAIN}"
                )

    # Numbers and frames

    def _read_file(self, path: Path, episodes: list[Episode], names: list[str], pictures: list[str]) -> None:
        wanted = [*names, "episode_index", "frame_index", "task_index", "timestamp"]
        # Pictures are decoded when they are drawn.
        table = _read_table(path, list(dict.fromkeys(wanted)), pictures)
        owner = np.asarray(table["episode_index"])
        columns = {name: _matrix(table[name], self.features.get(name), name, path) for name in wanted}
        for episode in episodes:
            rows = np.flatnonzero(owner == episode.index)
            if len(rows) != episode.length:
                raise TrainingError(
                    f"{path}: half-written: found {len(rows)} rows of episode {episode.index}, expected "
                    f"{episode.length}; {_AGAIN}"
                )
            episode.first_row = int(rows[0]) if len(rows) else 0
            part = slice(episode.first_row, episode.first_row + episode.length)
            if not np.array_equal(columns["frame_index"][part, 0], np.arange(episode.length)):
                raise TrainingError(
                    f"{path}: episode {episode.index}: frame_index: expected 0 to "
                    f"{episode.length - 1} in order"
                )
            episode.columns = {name: columns[name][part] for name in wanted}
            for name in [*names, "timestamp"]:
                _check_finite(episode, self.features.get(name), name, path)
            self._check_stamps(episode, path)
            unknown = set(episode.columns["task_index"][:, 0].astype(int)) - set(self.tasks)
            if unknown:
                raise TrainingError(
                    f"{path}: episode {episode.index}: task_index: found {sorted(unknown)[0]}, meta has "
                    f"{len(self.tasks)} tasks"
                )

    def _check_stamps(self, episode: Episode, path: Path) -> None:
        """Frames that were dropped, or another fps than was recorded with, would teach another speed."""
        stamps, period = episode.columns["timestamp"][:, 0], 1.0 / self.fps
        expected = np.concatenate(([0.0], stamps[:-1] + period))
        bad = np.abs(stamps - expected) > _JITTER * period
        last = episode.length - 1
        if not bad.any():
            expected[last] = stamps[0] + last * period
            bad[last] = abs(stamps[last] - expected[last]) > max(_JITTER, _DRIFT * last) * period
        if bad.any():
            frame = int(bad.argmax())
            raise TrainingError(
                f"{path}: episode {episode.index}, frame {frame}: timestamp: found {stamps[frame]:.3f} s, "
                f"expected {expected[frame]:.3f} s at the {self.fps:g} fps of {self._info_path.name}; frames "
                "were dropped, or fps is wrong"
            )

    def _clip(self, episode: Episode, camera: str, indices: dict[Path, VideoIndex]) -> Clip:
        path, start = episode.videos[camera]
        if path not in indices:
            indices[path] = index_video(path)
        index = indices[path]
        wanted = start + episode.columns["timestamp"][:, 0]
        right = np.searchsorted(index.seconds, wanted).clip(1, max(1, len(index.seconds) - 1))
        right = np.minimum(right, len(index.seconds) - 1)
        left = np.maximum(right - 1, 0)
        nearer = np.where(
            np.abs(index.seconds[left] - wanted) <= np.abs(index.seconds[right] - wanted), left, right
        )
        off = np.abs(index.seconds[nearer] - wanted)
        if off.max() > 0.5 / self.fps:
            frame = int(off.argmax())
            raise TrainingError(
                f"{path}: episode {episode.index}: no frame {frame} at {wanted[frame]:.3f} s; the video has "
                f"{len(index.stamps)} frames and ends at {index.seconds[-1]:.3f} s; {_AGAIN}"
            )
        return Clip(path, index, index.stamps[nearer])


class _Pictures:
    """Pictures that lie in parquet; the last row groups stay in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._groups: OrderedDict[tuple[Path, str, int], Any] = OrderedDict()
        self._starts: dict[Path, NDArray[np.int64]] = {}

    def read(self, path: Path, camera: str, row: int) -> NDArray[np.uint8]:
        import cv2

        value = self._value(path, camera, row)
        content = value.get("bytes") if isinstance(value, dict) else None
        if content is None:
            file = self._folder / str(value.get("path") if isinstance(value, dict) else value)
            try:
                content = file.read_bytes()
            except OSError as error:
                raise TrainingError(f"{path}: {camera}: row {row}: no picture: {error}; {_AGAIN}") from error
        picture = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_COLOR)
        if picture is None:
            raise TrainingError(f"{path}: {camera}: row {row}: not a picture that can be decoded; {_AGAIN}")
        return np.ascontiguousarray(picture[:, :, ::-1], dtype=np.uint8)

    def _value(self, path: Path, camera: str, row: int) -> Any:
        import pyarrow.parquet as parquet

        with self._lock, _reading(path):
            if path not in self._starts:
                meta = parquet.read_metadata(path)
                sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
                self._starts[path] = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
            starts = self._starts[path]
            group = int(np.searchsorted(starts, row, "right")) - 1
            key = (path, camera, group)
            column = self._groups.pop(key, None)
            if column is None:
                column = parquet.ParquetFile(path).read_row_group(group, columns=[camera])[camera]
            self._groups[key] = column
            while len(self._groups) > _ROW_GROUPS:
                self._groups.popitem(last=False)
            return column[row - int(starts[group])].as_py()


def _feature(name: str, entry: Any, path: Path) -> Feature:
    try:
        shape = tuple(int(side) for side in entry["shape"])
        feature = Feature(name, str(entry["dtype"]), shape, None)
        names = _names(entry.get("names"))
    except (TypeError, KeyError, ValueError) as error:
        raise TrainingError(f"{path}: features.{name}: found {entry!r}, expected dtype and shape") from error
    # Those of pictures, and one for a whole vector, are names of axes.
    if names is None or feature.camera or len(shape) > 1 or len(names) == 1 < feature.width:
        return feature
    if len(names) != feature.width:
        raise TrainingError(
            f"{path}: features.{name}.names: found {len(names)} names, {', '.join(names)}, expected "
            f"{feature.width}, one for each entry of shape {list(shape)}"
        )
    return replace(feature, names=names)


def _names(names: Any) -> tuple[str, ...] | None:
    """Names as a list, as {axis: list}, or as {name: column}."""
    if isinstance(names, dict):
        values = list(names.values())
        if len(values) == 1 and isinstance(values[0], list):
            names = values[0]
        elif values and all(isinstance(value, int) for value in values):
            names = sorted(names, key=names.__getitem__)
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return tuple(names) or None
    return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path}: cannot be read: {error}; {_AGAIN}") from error
    if not isinstance(content, dict):
        raise TrainingError(f"{path}: found {type(content).__name__}, expected an object")
    return content


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path}: cannot be read: {error}; {_AGAIN}") from error


def _entry(line: Any, key: str, path: Path) -> Any:
    if not isinstance(line, dict) or key not in line:
        raise TrainingError(f"{path}: found {line!r}, expected an entry {key!r}")
    return line[key]


def _place(row: dict[str, Any], part: str, where: str) -> dict[str, int]:
    """Which file holds this part of an episode."""
    names = ("chunk_index", "file_index")
    return {name: _whole(row[f"{part}/{name}"], f"{where}: {part}/{name}") for name in names}


def _whole(value: Any, where: str, least: int = 0) -> int:
    """The value as a whole number. where: file and field, for the error."""
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if not whole or value < least:
        raise TrainingError(f"{where}: found {value!r}, expected a whole number of at least {least}")
    return int(value)


def _seconds(value: Any, where: str) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TrainingError(f"{where}: found {value!r}, expected a time [s]")
    return float(value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise TrainingError(f"{where}: found {value!r}, expected a text")
    return value


def _read_table(path: Path, columns: list[str] | None = None, others: Iterable[str] = ()) -> Any:
    """Columns of a file, or all; `others` must be there, too."""
    import pyarrow.parquet as parquet

    if not path.is_file():
        raise TrainingError(f"{path}: no such file; {_AGAIN}")
    with _reading(path):
        present = parquet.read_schema(path).names
        missing = [name for name in (*(columns or ()), *others) if name not in present]
        if missing:
            raise TrainingError(f"{path}: found no column {missing[0]!r}, there are {', '.join(present)}")
        return parquet.read_table(path, columns=columns, partitioning=None)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (OSError, pyarrow.ArrowException) as error:
        raise TrainingError(f"{path}: damaged or cut short ({_first_line(error)}); {_AGAIN}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _matrix(column: Any, feature: Feature | None, name: str, path: Path) -> NDArray[np.float64]:
    """A column of numbers or of lists of numbers. Shape (rows, width)."""
    import pyarrow

    width = feature.width if feature is not None else 1
    rows = len(column)
    if column.null_count:
        raise TrainingError(f"{path}: {name}: found {column.null_count} empty rows, expected numbers")
    flat = column.combine_chunks()
    while pyarrow.types.is_list(flat.type) or pyarrow.types.is_fixed_size_list(flat.type):
        flat = flat.flatten()
    try:
        values = flat.to_numpy(zero_copy_only=False).astype(np.float64)
    except (ValueError, TypeError, pyarrow.ArrowException) as error:
        raise TrainingError(f"{path}: {name}: found {flat.type}, expected numbers") from error
    if values.size != rows * width:
        raise TrainingError(
            f"{path}: {name}: found {values.size} numbers in {rows} rows, expected {width} in each"
        )
    return values.reshape(rows, width)


def _check_finite(episode: Episode, feature: Feature | None, name: str, path: Path) -> None:
    bad = np.argwhere(~np.isfinite(episode.columns[name]))
    if len(bad):
        frame, entry = (int(value) for value in bad[0])
        label = (
            feature.names[entry] if feature and feature.names and entry < len(feature.names) else str(entry)
        )
        raise TrainingError(
            f"{path}: episode {episode.index}, frame {frame}: {name}[{label}]: found "
            f"{episode.columns[name][frame, entry]}, expected a finite number"
        )
