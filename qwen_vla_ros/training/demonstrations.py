# SPDX-License-Identifier: Apache-2.0
"""Demonstrations: pictures of teleported states, each with what the expert does for every goal of its scene.

A folder holds `meta.json`, `statistics.json` and shards `shard-00000.npz`, of n pictures, v views, at most
g goals and o objects:

    images        uint8 (n, v, h, w, 3)     RGB, views in the embodiment's order
    instructions  str (n, g)                empty where the scene has fewer goals
    actions       float32 (n, g, horizon, c) physical units, NaN where there is no goal
    targets       int8 (n, g)               index of the object that is meant, -1 where there is no goal
    colours       int8 (n, o)               index into meta.json's colours
    pixels        float32 (n, v, o, 2)      centre of each object, (column, row) as a share of the picture
    visible       bool (n, v, o)            whether the centre is inside the picture (it may be hidden)
    places        float32 (n, o, 3)         centre of each object from the robot's base [m]
    state         float32 (n, j)            joints in the order of meta.json's joints [rad, m]
    scenes        int64 (n,)                seed of World.reset()

A shard depends on the seed and its own number alone, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen_vla_ros.embodiment import Embodiment, Statistics
from qwen_vla_ros.training.errors import TrainingError
from qwen_vla_ros.training.seeds import training_scene

FORMAT = "qwen_vla_ros demonstrations"
VERSION = 1
_FIELDS = (
    "images",
    "instructions",
    "actions",
    "targets",
    "colours",
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
    task: str
    seed: int
    samples: int
    shard_size: int
    states_per_scene: int
    views: list[str]
    image_size: list[list[int]]
    channels: list[str]
    joints: list[str]
    colours: list[str]
    horizon: int
    step: float
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
    states_per_scene: int = 2,
    progress: Callable[[int], None] | None = None,
) -> Meta:
    """Write `samples` pictures of the body's first task into a folder; go on where an earlier call stopped.

    progress: called with the number of pictures that are there.

    Raises TrainingError when the folder holds demonstrations of other settings.
    """
    from qwen_vla_ros.sim import make_world
    from qwen_vla_ros.sim.scene import COLOURS

    with make_world(embodiment) as world:
        meta = Meta(
            embodiment=embodiment.name,
            task=world.tasks[0],
            seed=seed,
            samples=samples,
            shard_size=shard_size,
            states_per_scene=states_per_scene,
            views=[camera.view for camera in embodiment.cameras],
            image_size=[list(camera.size) for camera in embodiment.cameras],
            channels=list(embodiment.layout.names),
            joints=list(world.joint_names),
            colours=list(COLOURS),
            horizon=embodiment.horizon,
            step=1.0 / embodiment.control_rate,
        )
        folder.mkdir(parents=True, exist_ok=True)
        _claim(folder, meta)
        for shard in range(meta.shards):
            path = shard_path(folder, shard)
            if not path.is_file():
                _write(path, _shard(world, meta, shard))
            if progress is not None:
                progress(shard * shard_size + meta.size_of(shard))
    quantities = quantiles(folder, meta)
    _replace(folder / "statistics.json", json.dumps(quantities, indent=1) + "\n")
    return meta


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
            f"expected {FORMAT!r} version {VERSION}"
        )
    return meta


def read_shard(folder: Path, meta: Meta, shard: int) -> dict[str, np.ndarray]:
    """Arrays of a shard, as described above. Raises TrainingError if missing, damaged or misshapen."""
    path = shard_path(folder, shard)
    if not path.is_file():
        raise TrainingError(
            f"{path}: no such file; `qwen-vla data make` with the same options completes the folder"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in _FIELDS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise TrainingError(
            f"{path}: damaged shard ({error}); delete it and run `qwen-vla data make` again"
        ) from error
    count = meta.size_of(shard)
    for name, array in arrays.items():
        if len(array) != count:
            raise TrainingError(f"{path}: {name} has {len(array)} rows, expected {count}")
    found = arrays["actions"].shape[2:]
    if found != (meta.horizon, len(meta.channels)):
        raise TrainingError(
            f"{path}: actions {found}, expected {(meta.horizon, len(meta.channels))} (horizon, channels)"
        )
    return arrays


def read_all(folder: Path) -> tuple[Meta, dict[str, np.ndarray]]:
    """All shards of a folder in one, with as many goals per picture as the largest scene has."""
    meta = read_meta(folder)
    shards = [read_shard(folder, meta, shard) for shard in range(meta.shards)]
    goals = max(shard["targets"].shape[1] for shard in shards)
    for shard in shards:
        missing = goals - shard["targets"].shape[1]
        if missing:
            for name, fill in (("instructions", ""), ("actions", np.nan), ("targets", -1)):
                widths = [(0, 0), (0, missing)] + [(0, 0)] * (shard[name].ndim - 2)
                shard[name] = np.pad(shard[name], widths, constant_values=fill)
    return meta, {name: np.concatenate([shard[name] for shard in shards]) for name in _FIELDS}


def quantiles(folder: Path, meta: Meta) -> dict[str, Any]:
    """Quantiles of the actions per channel, physical units: statistics.json."""
    rows = np.concatenate([_rows(read_shard(folder, meta, shard)) for shard in range(meta.shards)])
    levels = {"minimum": 0.0, "q001": 0.001, "q01": 0.01, "q99": 0.99, "q999": 0.999, "maximum": 1.0}
    found = np.quantile(rows, list(levels.values()), axis=0)
    return {
        "channels": meta.channels,
        **{name: row.tolist() for name, row in zip(levels, found, strict=True)},
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
        if len(content["q01"]) != len(meta.channels):
            raise ValueError(f"{len(content['q01'])} channels, expected {len(meta.channels)}")
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path}: not statistics of these demonstrations: {error!r}") from error
    return content


def _rows(shard: dict[str, np.ndarray]) -> np.ndarray:
    return shard["actions"][shard["targets"] >= 0].reshape(-1, shard["actions"].shape[-1]).astype(float)


def _claim(folder: Path, meta: Meta) -> None:
    """Write meta.json, or check that the folder's is the same but for the number of samples."""
    path = folder / "meta.json"
    if path.is_file():
        found, wanted = asdict(read_meta(folder)), asdict(meta)
        differing = [name for name in wanted if name != "samples" and found[name] != wanted[name]]
        if differing:
            name = differing[0]
            raise TrainingError(
                f"{path}: other demonstrations are here: {name} is {found[name]!r}, expected {wanted[name]!r}"
            )
        if found["samples"] != meta.samples:
            # The last shard may have been cut short.
            last = shard_path(folder, read_meta(folder).shards - 1)
            if found["samples"] % meta.shard_size and last.is_file():
                last.unlink()
            (folder / "statistics.json").unlink(missing_ok=True)
    _replace(path, json.dumps(asdict(meta), indent=1) + "\n")


def _shard(world: Any, meta: Meta, shard: int) -> dict[str, np.ndarray]:
    samples: list[dict[str, np.ndarray]] = []
    pictures = _pictures(world, meta, shard)
    while len(samples) < meta.size_of(shard):
        samples.append(next(pictures))
    goals = max(len(sample["targets"]) for sample in samples)
    count = len(samples)
    arrays = {
        "instructions": np.full((count, goals), "", dtype="U96"),
        "actions": np.full((count, goals, meta.horizon, len(meta.channels)), np.nan, dtype=np.float32),
        "targets": np.full((count, goals), -1, dtype=np.int8),
    }
    for row, sample in enumerate(samples):
        for name, array in arrays.items():
            array[row, : len(sample[name])] = sample[name]
    for name in _FIELDS:
        if name not in arrays:
            arrays[name] = np.stack([sample[name] for sample in samples])
    return arrays


def _pictures(world: Any, meta: Meta, shard: int) -> Iterator[dict[str, np.ndarray]]:
    from qwen_vla_ros.sim import expert_chunk, sample_states

    rng = np.random.default_rng([meta.seed, shard])
    index = shard * meta.shard_size
    while True:
        scene = training_scene(meta.seed, index)
        index += 1
        world.reset(meta.task, scene)
        goals = world.goals()
        objects = list(world.objects)
        for _ in range(meta.states_per_scene):
            goal = goals[int(rng.integers(len(goals)))]
            (state,) = sample_states(world, goal, rng, 1)
            world.teleport(state.joints, state.base_pose)
            chunks = [expert_chunk(world, goal, meta.horizon, meta.step) for goal in goals]
            yield {
                "images": np.stack([world.render(view) for view in meta.views]),
                "instructions": np.array([goal.instruction for goal in goals]),
                "actions": np.stack(chunks).astype(np.float32),
                "targets": np.array([objects.index(goal.target) for goal in goals], dtype=np.int8),
                **_grounding(world, meta),
                "state": world.joint_positions.astype(np.float32),
                "scenes": np.int64(scene),
            }


def _grounding(world: Any, meta: Meta) -> dict[str, np.ndarray]:
    centres = np.stack([position for position, _ in world.objects.values()])
    pixels, visible = [], []
    for view, size in zip(meta.views, meta.image_size, strict=True):
        found, in_front = world.project(view, centres)
        share = np.where(in_front[:, None], found / size, -1.0)
        pixels.append(share.astype(np.float32))
        visible.append(((share >= 0.0) & (share < 1.0)).all(axis=1))
    x, y, yaw = world.base_pose
    turn = np.array([[np.cos(yaw), np.sin(yaw), 0.0], [-np.sin(yaw), np.cos(yaw), 0.0], [0.0, 0.0, 1.0]])
    return {
        "colours": np.array(
            [meta.colours.index(colour) for _, colour in world.objects.values()], dtype=np.int8
        ),
        "pixels": np.stack(pixels),
        "visible": np.stack(visible),
        "places": ((centres - (x, y, 0.0)) @ turn.T).astype(np.float32),
    }


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    os.replace(partial, path)


def _replace(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, path)
