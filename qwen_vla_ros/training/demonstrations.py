# SPDX-License-Identifier: Apache-2.0
"""Demonstrations: pictures of a robot's states, each with what the expert does for several goals there.

A folder holds `meta.json`, `statistics.json` and shards `shard-00000.npz`, of n pictures, v views, at most
g goals and o objects:

    images        uint8 (n, v, h, w, 3)     RGB, views in the embodiment's order
    tasks         int8 (n, g)               index into meta.json's tasks, -1 where the picture has fewer goals
    instructions  str (n, g)                empty where there is no goal
    actions       float32 (n, g, horizon, c) physical units, NaN where there is no goal
    targets       int8 (n, g, 2)            indices of the objects named, first and second, -1 without one
    focus         int8 (n,)                 the goal that the robot was after
    classes       int8 (n, o)               index into meta.json's classes, -1 where there are fewer objects;
                                            the robot's hands come last
    pixels        float32 (n, v, o, 2)      centre of each object, (column, row) as a share of the picture
    visible       bool (n, v, o)            whether the centre is inside the picture (it may be hidden)
    places        float32 (n, o, 3)         centre of each object from the robot's base [m]
    state         float32 (n, j)            joints in the order of meta.json's joints [rad, m]
    scenes        int64 (n,)                seed of World.reset()

States are those of the expert with errors (sim.visits), or those that a policy comes through (`policy`).

A shard depends on the seed and its own number alone, so an interrupted run goes on where it stopped. A shard
appears under its name when it is whole and on the disk. Pictures beyond meta.json's `samples` do not count: a
longer shard begins as a shorter one does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np

from qwen_vla_ros.embodiment import Embodiment, Statistics
from qwen_vla_ros.training.errors import TrainingError
from qwen_vla_ros.training.seeds import training_scene

if TYPE_CHECKING:
    from qwen_vla_ros.sim import World
    from qwen_vla_ros.sim.visits import Visitor

FORMAT = "qwen_vla_ros demonstrations"
VERSION = 3
# A picture of the setting `full` comes with at most so many goals: the one in focus and others at random.
_GOALS = 8
# What a picture without a goal or an object holds in its place.
_FILL: dict[str, Any] = {
    "tasks": -1,
    "instructions": "",
    "actions": np.nan,
    "targets": -1,
    "classes": -1,
    "pixels": -1.0,
    "visible": False,
    "places": 0.0,
}
_QUANTILES = {"minimum": 0.0, "q001": 0.001, "q01": 0.01, "q99": 0.99, "q999": 0.999, "maximum": 1.0}
# Arms of a body and what their ends are called.
HANDS = {None: "hand", "left": "left hand", "right": "right hand"}
# The axis along which they are counted, after that of pictures.
_RAGGED = {name: 1 if name in ("pixels", "visible") else 0 for name in _FILL}
_FIELDS = (
    "images",
    "tasks",
    "instructions",
    "actions",
    "targets",
    "focus",
    "classes",
    "pixels",
    "visible",
    "places",
    "state",
    "scenes",
)


@dataclass(frozen=True)
class Meta:
    """What all shards of a folder have in common; the content of meta.json."""

    embodiment: str
    setting: str
    tasks: list[str]
    seed: int
    samples: int
    shard_size: int
    states_per_scene: int
    views: list[str]
    image_size: list[list[int]]
    channels: list[str]
    joints: list[str]
    classes: list[str]
    horizon: int
    step: float
    policy: str = ""  # the checkpoint that moved the robot, and the first digits of its weights' SHA-256
    format: str = FORMAT
    version: int = VERSION

    @property
    def shards(self) -> int:
        return -(-self.samples // self.shard_size)

    def size_of(self, shard: int) -> int:
        """Pictures in a shard."""
        return min(self.shard_size, self.samples - shard * self.shard_size)


def make(
    embodiment: Embodiment,
    folder: Path,
    samples: int,
    seed: int = 0,
    shard_size: int = 256,
    states_per_scene: int | None = None,
    progress: Callable[[int], None] | None = None,
    setting: str = "easy",
    tasks: Sequence[str] | None = None,
    policy: Path | None = None,
    jobs: int = 1,
) -> Meta:
    """Write `samples` pictures into a folder; go on where an earlier call stopped.

    setting: of the world; `easy+full` takes them in turn, shard by shard, with the words of `full`, and
    `easy+full+full` the second twice as often. tasks: by default the body's first in the setting `easy`, else
    all of them, in each setting those that it has; one that is named twice comes twice as often.
    states_per_scene: by default 2 in `easy`, else 4; the fewer, the more scenes. policy: a checkpoint that
    moves the robot from state to state, in place of the expert with errors. progress: called with the number
    of pictures that are there. jobs: processes that share the shards; what is written is the same.

    Raises TrainingError when the folder holds demonstrations of other settings, and when it cannot be
    written; what is there then stays as it is, and another call goes on from it.
    """
    from qwen_vla_ros.sim import SimulationError
    from qwen_vla_ros.sim.scene import classes

    with _worlds(embodiment, setting) as worlds:
        world = worlds[-1]
        known = list(dict.fromkeys(task for each in worlds for task in each.tasks))
        chosen = list(tasks or (known[:1] if setting == "easy" else known))
        unknown = [task for task in chosen if task not in known]
        if unknown:
            raise SimulationError(f"tasks: found {unknown[0]!r}, expected some of {', '.join(known)}")
        for each in worlds:
            if not set(chosen) & set(each.tasks):
                raise SimulationError(
                    f"tasks: found {', '.join(chosen)}, none of them in the setting {each.setting}: expected "
                    f"one of {', '.join(each.tasks)}"
                )
        meta = Meta(
            embodiment=embodiment.name,
            setting=setting,
            tasks=chosen,
            seed=seed,
            samples=samples,
            shard_size=shard_size,
            states_per_scene=states_per_scene or (2 if setting == "easy" else 4),
            views=[camera.view for camera in embodiment.cameras],
            image_size=[list(camera.size) for camera in embodiment.cameras],
            channels=list(embodiment.layout.names),
            joints=list(world.joint_names),
            classes=[*classes(), *HANDS.values()],
            horizon=embodiment.horizon,
            step=1.0 / embodiment.control_rate,
            policy="" if policy is None else _digest(policy),
        )
        visitor = _visitor(policy, embodiment)  # one that cannot be used leaves no folder
        _claim(folder, meta)
        missing = [shard for shard in range(meta.shards) if _length(folder, shard) < meta.size_of(shard)]
        there = samples - sum(map(meta.size_of, missing))
        if jobs == 1:
            made: Iterator[int] = (_make_shard(worlds, folder, meta, shard, visitor) for shard in missing)
        else:
            made = _made_by(jobs, (embodiment, folder, meta, policy), missing)
        if progress is not None:
            progress(there)
        for count in made:
            there += count
            if progress is not None:
                progress(there)
    quantities = quantiles(folder, meta)
    # Without statistics.json a reader computes them: at no moment does it find those of other samples.
    (folder / "statistics.json").unlink(missing_ok=True)
    _write_json(folder / "meta.json", asdict(meta))
    _write_json(folder / "statistics.json", quantities)
    return meta


@contextlib.contextmanager
def _worlds(embodiment: Embodiment, setting: str) -> Iterator[list[World]]:
    """A world for each part of the setting."""
    from qwen_vla_ros.sim import make_world

    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(make_world(embodiment, each)) for each in setting.split("+")]


def _make_shard(worlds: Sequence[World], folder: Path, meta: Meta, shard: int, visitor: Visitor) -> int:
    """Write a shard; returns how many pictures it has."""
    arrays = _shard(worlds[shard % len(worlds)], meta, shard, visitor)
    _write(shard_path(folder, shard), partial(np.savez, **arrays))  # type: ignore[arg-type]
    return meta.size_of(shard)


# What makes shards in a process of _made_by, and what is open there until it ends.
_maker: Callable[[int], int]
_open = contextlib.ExitStack()


def _start_maker(embodiment: Embodiment, folder: Path, meta: Meta, policy: Path | None) -> None:
    global _maker
    Thread(target=_end_with_parent, daemon=True).start()
    worlds = _open.enter_context(_worlds(embodiment, meta.setting))
    visitor = _visitor(policy, embodiment)
    _maker = lambda shard: _make_shard(worlds, folder, meta, shard, visitor)  # noqa: E731


def _end_with_parent() -> None:
    # One that is killed does not end its pool, whose processes would wait for work for ever.
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call_maker(shard: int) -> int:
    return _maker(shard)


def _made_by(jobs: int, maker: tuple[Any, ...], shards: Sequence[int]) -> Iterator[int]:
    """Make shards in several processes; yields the size of each that is done."""
    # A fork would share what torch, mujoco and the driver hold.
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), _start_maker, maker)
    try:
        for future in as_completed([pool.submit(_call_maker, shard) for shard in shards]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.npz"


def read_meta(folder: Path) -> Meta:
    """meta.json of a folder. Raises TrainingError naming the file and the fault."""
    path = folder / "meta.json"
    if not path.is_file():
        raise TrainingError(f"{path}: no such file; expected demonstrations made by `qwen-vla data make`")
    try:
        content = json.loads(path.read_text())
        meta = Meta(**content)
    except (ValueError, TypeError) as error:
        raise TrainingError(f"{path}: not a description of demonstrations: {error}") from error
    if (meta.format, meta.version) != (FORMAT, VERSION):
        raise TrainingError(
            f"{path}: found format {meta.format!r} version {meta.version}, "
            f"expected {FORMAT!r} version {VERSION}; `qwen-vla data make` into another folder makes them anew"
        )
    return meta


def folders_of(data: Path, embodiment: str) -> list[Path]:
    """The folder of that name, and after it the others in `data` that hold demonstrations of the body."""
    first = data / embodiment
    others = sorted(path.parent for path in data.glob("*/meta.json") if path.parent != first)
    return [first, *(path for path in others if read_meta(path).embodiment == embodiment)]


def read_shard(
    folder: Path, meta: Meta, shard: int, fields: Sequence[str] = _FIELDS
) -> dict[str, np.ndarray]:
    """Arrays of a shard, as described above. Raises TrainingError if missing, damaged or misshapen."""
    path = shard_path(folder, shard)
    if not path.is_file():
        raise TrainingError(
            f"{path}: no such file; `qwen-vla data make` with the same options completes the folder"
        )
    arrays = _load(path, fields)
    count = meta.size_of(shard)
    for name, array in arrays.items():
        if len(array) < count:
            raise TrainingError(f"{path}: {name} has {len(array)} rows, expected {count}")
        arrays[name] = array[:count]
    if "actions" in arrays:
        found = arrays["actions"].shape[2:]
        if found != (meta.horizon, len(meta.channels)):
            raise TrainingError(
                f"{path}: actions {found}, expected {(meta.horizon, len(meta.channels))} (horizon, channels)"
            )
        if not np.isfinite(arrays["actions"][arrays["tasks"] >= 0]).all():
            raise TrainingError(f"{path}: found actions that are not finite")
    return arrays


def _load(path: Path, fields: Sequence[str]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in fields}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise TrainingError(
            f"{path}: damaged shard ({error}); delete it and run `qwen-vla data make` again"
        ) from error


def _length(folder: Path, shard: int) -> int:
    """Pictures that a shard has, 0 where it is missing."""
    path = shard_path(folder, shard)
    return len(_load(path, ("scenes",))["scenes"]) if path.is_file() else 0


def read_all(folder: Path) -> tuple[Meta, dict[str, np.ndarray]]:
    """All shards of a folder in one, see `join`."""
    meta = read_meta(folder)
    return meta, join([read_shard(folder, meta, shard) for shard in range(meta.shards)])


def join(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Pictures of several parts in one, with as many goals and objects per picture as the largest scene has.

    The parts are emptied, so that pictures are not held twice.
    """
    arrays: dict[str, np.ndarray] = {}
    count = sum(len(part["tasks"]) for part in parts)
    for name in list(parts[0]):
        first = parts[0][name]
        shape = [count, *first.shape[1:]]
        if name in _RAGGED:
            axis = 1 + _RAGGED[name]
            shape[axis] = max(part[name].shape[axis] for part in parts)
            arrays[name] = np.full(shape, _FILL[name], dtype=first.dtype)
        else:
            arrays[name] = np.empty(shape, dtype=first.dtype)
        start = 0
        for each in parts:
            part = each.pop(name)
            inside = (slice(start, start + len(part)), *(slice(0, length) for length in part.shape[1:]))
            arrays[name][inside] = part
            start += len(part)
    return arrays


def quantiles(folder: Path, meta: Meta) -> dict[str, Any]:
    """Quantiles of the actions per channel, physical units: statistics.json."""
    rows = np.concatenate(
        [_rows(read_shard(folder, meta, shard, ("tasks", "actions"))) for shard in range(meta.shards)]
    )
    found = np.quantile(rows, list(_QUANTILES.values()), axis=0)
    return {
        "channels": meta.channels,
        **{name: row.tolist() for name, row in zip(_QUANTILES, found, strict=True)},
        "rows": len(rows),
    }


def statistics(
    quantities: dict[str, Any], lower: str = "q01", upper: str = "q99", floor: float = 0.01
) -> Statistics:
    """Normalisation from statistics.json.

    lower, upper: names of the quantiles that become -1 and 1. floor: least width of a channel; a channel
    that is constant (a gripper that stays open) is widened evenly to it [rad or m].
    """
    low, high = np.asarray(quantities[lower], dtype=float), np.asarray(quantities[upper], dtype=float)
    missing = np.maximum(0.0, floor - (high - low)) / 2
    return Statistics(low - missing, high + missing)


def read_statistics(folder: Path, meta: Meta) -> dict[str, Any]:
    """statistics.json of a folder; computed again when it is missing."""
    path = folder / "statistics.json"
    if not path.is_file():
        return quantiles(folder, meta)
    try:
        content = json.loads(path.read_text())
        if content["channels"] != meta.channels:
            raise ValueError(f"channels: found {content['channels']}, expected {meta.channels}")
        for name in _QUANTILES:
            row = np.asarray(content[name], dtype=float)
            if row.shape != (len(meta.channels),) or not np.isfinite(row).all():
                raise ValueError(
                    f"{name}: found {content[name]}, expected {len(meta.channels)} finite numbers"
                )
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise TrainingError(f"{path}: not statistics of these demonstrations: {what}") from error
    return content


def _rows(shard: dict[str, np.ndarray]) -> np.ndarray:
    return shard["actions"][shard["tasks"] >= 0].reshape(-1, shard["actions"].shape[-1]).astype(float)


def _digest(checkpoint: Path) -> str:
    path = checkpoint / "model.safetensors"
    try:
        return f"{checkpoint.resolve().name} {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read: {error}") from error


def _visitor(checkpoint: Path | None, embodiment: Embodiment) -> Visitor:
    if checkpoint is None:
        from qwen_vla_ros.sim import visit

        return visit
    from qwen_vla_ros.training.on_policy import make_visitor

    return make_visitor(checkpoint, embodiment)


def _claim(folder: Path, meta: Meta) -> None:
    """Write meta.json, or check that the folder's is the same but for the number of samples.

    That number stays until as many are there.
    """
    path = folder / "meta.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be made: {error}") from error
    if path.is_file():
        found, wanted = asdict(read_meta(folder)), asdict(meta)
        differing = [name for name in wanted if name != "samples" and found[name] != wanted[name]]
        if differing:
            name = differing[0]
            raise TrainingError(
                f"{path}: other demonstrations are here: {name} is {found[name]!r}, expected {wanted[name]!r}"
            )
    else:
        _write_json(path, asdict(meta))


def _shard(world: Any, meta: Meta, shard: int, visitor: Visitor) -> dict[str, np.ndarray]:
    samples: list[dict[str, np.ndarray]] = []
    pictures = _pictures(world, meta, shard, visitor)
    while len(samples) < meta.size_of(shard):
        samples.append(next(pictures))
    arrays = {}
    for name in _FIELDS:
        first = samples[0][name]
        if name not in _RAGGED:
            arrays[name] = np.stack([sample[name] for sample in samples])
            continue
        axis = _RAGGED[name]
        shape = list(first.shape)
        shape[axis] = max(sample[name].shape[axis] for sample in samples)
        dtype = "U96" if name == "instructions" else first.dtype
        arrays[name] = np.full((len(samples), *shape), _FILL[name], dtype=dtype)
        for row, sample in enumerate(samples):
            inside = tuple(slice(0, length) for length in sample[name].shape)
            arrays[name][row][inside] = sample[name]
    return arrays


def _pictures(world: Any, meta: Meta, shard: int, visitor: Visitor) -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng([meta.seed, shard])
    index = shard * meta.shard_size
    tasks = [task for task in meta.tasks if task in world.tasks]
    while True:
        scene = training_scene(meta.seed, index)
        index += 1
        task = tasks[int(rng.integers(len(tasks)))] if len(tasks) > 1 else tasks[0]
        for goal in visitor(world, task, scene, rng, meta.states_per_scene):
            yield _picture(world, meta, goal, scene, rng)


def _picture(world: Any, meta: Meta, focus: Any, scene: int, rng: np.random.Generator) -> dict[str, Any]:
    from qwen_vla_ros.sim import expert_chunk

    goals, wording = world.goals(), None
    if meta.setting != "easy":
        from qwen_vla_ros.sim.phrases import SEEN, phrases

        others = [goal for goal in world.all_goals() if goal.task in meta.tasks and not goal.same(focus)]
        goals = [focus, *(others[i] for i in rng.permutation(len(others))[: _GOALS - 1])]
        wording = [(choice := phrases(goal, SEEN))[int(rng.integers(len(choice)))] for goal in goals]
    numbers = {name: number for number, name in enumerate(world.objects)}
    named = [(goal.target, goal.other_target) for goal in goals]
    chunks = [expert_chunk(world, goal, meta.horizon, meta.step) for goal in goals]
    return {
        "images": np.stack([world.render(view) for view in meta.views]),
        "tasks": np.array([meta.tasks.index(goal.task) for goal in goals], dtype=np.int8),
        "instructions": np.array(wording or [goal.instruction for goal in goals]),
        "actions": np.stack(chunks).astype(np.float32),
        "targets": np.array([[numbers.get(name, -1) for name in pair] for pair in named], dtype=np.int8),
        "focus": np.int8(next(i for i, goal in enumerate(goals) if goal.same(focus))),
        **_grounding(world, meta),
        "state": world.joint_positions.astype(np.float32),
        "scenes": np.int64(scene),
    }


def _grounding(world: Any, meta: Meta) -> dict[str, np.ndarray]:
    hands = [arm.name for arm in world.body.arms]
    centres = np.stack([*(position for position, _ in world.objects.values()), *map(world.tool, hands)])
    names = [f"{thing.colour} {thing.kind}" for thing in world.things.values()]
    names += [HANDS[hand] for hand in hands]
    pixels, visible = [], []
    for view, size in zip(meta.views, meta.image_size, strict=True):
        found, in_front = world.project(view, centres)
        share = np.where(in_front[:, None], found / size, -1.0)
        pixels.append(share.astype(np.float32))
        visible.append(((share >= 0.0) & (share < 1.0)).all(axis=1))
    x, y, yaw = world.base_pose
    turn = np.array([[np.cos(yaw), np.sin(yaw), 0.0], [-np.sin(yaw), np.cos(yaw), 0.0], [0.0, 0.0, 1.0]])
    return {
        "classes": np.array([meta.classes.index(name) for name in names], dtype=np.int8),
        "pixels": np.stack(pixels),
        "visible": np.stack(visible),
        "places": ((centres - (x, y, 0.0)) @ turn.T).astype(np.float32),
    }


def _write_json(path: Path, content: Any) -> None:
    _write(path, lambda file: file.write((json.dumps(content, indent=1) + "\n").encode()))


def _write(path: Path, fill: Callable[[Any], object]) -> None:
    """Write a file that is there whole or not at all."""
    unfinished = path.with_suffix(".partial")
    try:
        with unfinished.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise TrainingError(
            f"{path}: cannot be written: {error.strerror or error}; what was written before stays usable, "
            "and the same command goes on from there"
        ) from error
