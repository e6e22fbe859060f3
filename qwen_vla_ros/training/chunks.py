# SPDX-License-Identifier: Apache-2.0
"""Action chunks of an embodiment from recorded frames.

Row k of a chunk at frame t is the set-point to be reached (k + 1) steps later, a step being a whole number of
frames. A command recorded at frame j is reached at frame j + 1; a measurement at frame j was reached there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen_vla_ros.embodiment import Embodiment, Statistics
from qwen_vla_ros.embodiment.schema import EefDeltaGroup, Group, JointGroup, WaypointGroup
from qwen_vla_ros.training.errors import TrainingError
from qwen_vla_ros.training.lerobot import Episode, LeRobotFolder
from qwen_vla_ros.training.mapping import Array, Mapping, Source, is_joint

_STATISTICS_ROWS = 200_000
# Shares of a channel's values that may lie outside what the embodiment says.
_OUTSIDE = 0.1
# How much quicker than the robot a change from row to row may be: people who teach are quicker.
_HASTE = 3.0


@dataclass(frozen=True)
class Chunker:
    """Cuts chunks out of episodes. stride: frames per step."""

    embodiment: Embodiment
    mapping: Mapping
    stride: int

    def frames_for(self, rows: int) -> int:
        """Frames of the shortest episode that holds a chunk of so many rows."""
        return rows * self.stride + any(source.measured for source in self.mapping.sources)

    def beginnings(self, episode: Episode) -> int:
        """How many frames, from the first on, have a chunk of at least one row within the episode."""
        return max(0, episode.length - self.frames_for(1) + 1)

    def chunks(self, episode: Episode, frames: NDArray[np.int64]) -> tuple[Array, NDArray[np.bool_]]:
        """Chunks that begin at `frames` (n,).

        Returns:
            Physical units, shape (n, horizon, c), and which rows lie within the episode, shape (n, horizon).
            Rows beyond its end repeat the last one within.
        """
        steps = (np.arange(self.embodiment.horizon) + 1) * self.stride
        # Frame at which each row is reached.
        reached = frames[:, None] + steps
        parts, valid = [], np.ones(reached.shape, dtype=bool)
        for source in self.mapping.sources:
            last = episode.length - 1 if source.measured else episode.length
            valid &= reached <= last
            parts.append(self._rows(source, episode, frames, np.minimum(reached, last)))
        return np.concatenate(parts, axis=2), valid

    def _rows(
        self, source: Source, episode: Episode, frames: NDArray[np.int64], reached: NDArray[np.int64]
    ) -> Array:
        values = source.values(episode.columns)
        own = getattr(source.group, "reference", "absolute")
        algebra = _algebra(source)
        if source.reference == "absolute":
            rows = values[reached if source.measured else reached - 1]
            if own == "absolute":
                return rows
            start = source.states(episode.columns)[frames][:, None]
            before = start if own == "chunk_start" else np.concatenate((start, rows[:, :-1]), axis=1)
            return algebra.between(before, rows)
        if own == "previous_step" and self.stride == 1:
            return values[reached - 1]
        # Changes from frame to frame: sum them up from the start of the chunk, or of the row.
        whole = algebra.integrate(values)
        if own == "chunk_start":
            return algebra.between(whole[frames][:, None], whole[reached])
        start = np.concatenate((frames[:, None], reached[:, :-1]), axis=1)
        return algebra.between(whole[start], whole[reached])

    def state(self, episode: Episode, frame: int) -> Array:
        """Measured state in the units of the channels. Shape (c,)."""
        return np.concatenate([source.states(episode.columns)[frame] for source in self.mapping.sources])


class _Vector:
    """Joints: changes add up."""

    def between(self, before: Array, after: Array) -> Array:
        return after - before

    def integrate(self, changes: Array) -> Array:
        return np.concatenate((np.zeros((1, changes.shape[1])), np.cumsum(changes, axis=0)))


class _Planar:
    """Poses (x, y, theta) in the ground plane, changes in the frame of the pose before."""

    def between(self, before: Array, after: Array) -> Array:
        difference = after - before
        cos, sin = np.cos(before[..., 2]), np.sin(before[..., 2])
        x = cos * difference[..., 0] + sin * difference[..., 1]
        y = cos * difference[..., 1] - sin * difference[..., 0]
        return np.stack(np.broadcast_arrays(x, y, _wrapped(difference[..., 2])), axis=-1)

    def integrate(self, changes: Array) -> Array:
        heading = np.concatenate(([0.0], np.cumsum(changes[:, 2])))
        cos, sin = np.cos(heading[:-1]), np.sin(heading[:-1])
        steps = np.stack(
            (cos * changes[:, 0] - sin * changes[:, 1], sin * changes[:, 0] + cos * changes[:, 1]), axis=1
        )
        return np.column_stack((np.concatenate((np.zeros((1, 2)), np.cumsum(steps, axis=0))), heading))


class _Pose:
    """Poses of an end effector in fixed axes: translations add up, rotations multiply from the left."""

    def __init__(self, rotation: str) -> None:
        self._rotation = rotation

    def between(self, before: Array, after: Array) -> Array:
        turn = self._matrices(after) @ np.swapaxes(self._matrices(before), -1, -2)
        moved = np.broadcast_to(after[..., :3] - before[..., :3], (*turn.shape[:-2], 3))
        return np.concatenate((moved, self._vector(turn)), axis=-1)

    def integrate(self, changes: Array) -> Array:
        turns = [np.eye(3)]
        for turn in self._matrices(changes):
            turns.append(turn @ turns[-1])
        moved = np.concatenate((np.zeros((1, 3)), np.cumsum(changes[:, :3], axis=0)))
        return np.concatenate((moved, self._vector(np.stack(turns))), axis=-1)

    def _matrices(self, poses: Array) -> Array:
        from scipy.spatial.transform import Rotation

        part = poses[..., 3:]
        flat = part.reshape(-1, part.shape[-1])
        if self._rotation == "rpy":
            turns = Rotation.from_euler("xyz", flat).as_matrix()
        elif self._rotation == "axis_angle":
            turns = Rotation.from_rotvec(flat).as_matrix()
        else:
            first = flat[:, :3] / np.linalg.norm(flat[:, :3], axis=1, keepdims=True)
            second = flat[:, 3:] - (first * flat[:, 3:]).sum(axis=1, keepdims=True) * first
            second /= np.linalg.norm(second, axis=1, keepdims=True)
            turns = np.stack((first, second, np.cross(first, second)), axis=2)
        return turns.reshape(*part.shape[:-1], 3, 3)

    def _vector(self, turns: Array) -> Array:
        from scipy.spatial.transform import Rotation

        flat = turns.reshape(-1, 3, 3)
        if self._rotation == "rpy":
            out = Rotation.from_matrix(flat).as_euler("xyz")
        elif self._rotation == "axis_angle":
            out = Rotation.from_matrix(flat).as_rotvec()
        else:
            out = np.concatenate((flat[:, :, 0], flat[:, :, 1]), axis=1)
        return out.reshape(*turns.shape[:-2], -1)


def _algebra(source: Source) -> _Vector | _Planar | _Pose:
    if isinstance(source.group, WaypointGroup):
        return _Planar()
    if isinstance(source.group, EefDeltaGroup):
        return _Pose(source.group.rotation)
    return _Vector()


def _wrapped(angle: Array) -> Array:
    return (angle + np.pi) % (2 * np.pi) - np.pi


def stride_of(dataset: LeRobotFolder, embodiment: Embodiment) -> int:
    """Frames per step. Raises TrainingError unless the rates are whole multiples."""
    ratio = dataset.fps / embodiment.control_rate
    stride = round(ratio)
    if stride < 1 or abs(ratio - stride) > 1e-6 * ratio:
        whole = [f"{dataset.fps / n:g}" for n in range(1, 7)]
        raise TrainingError(
            f"{dataset.folder}: fps: found {dataset.fps:g}, expected a whole multiple of the control rate of "
            f"{embodiment.name!r}, {embodiment.control_rate:g} Hz; control rates that fit: {', '.join(whole)}"
        )
    return stride


def check_lengths(dataset: LeRobotFolder, chunker: Chunker) -> None:
    """Raises TrainingError that names an episode without one whole chunk."""
    needed = chunker.frames_for(chunker.embodiment.horizon)
    short = [episode for episode in dataset.episodes if episode.length < needed]
    if short:
        raise TrainingError(
            f"{dataset.folder}: episode {short[0].index}: found {short[0].length} frames, expected at least "
            f"{needed}, one chunk of {chunker.embodiment.horizon} rows ({len(short)} such episodes); shorten "
            "the horizon, or set short_episodes to `mask` or `skip`"
        )


def split(episodes: list[Episode], share: float, seed: int) -> tuple[list[Episode], list[Episode]]:
    """Episodes for training and for validation; at least one of each where there are two."""
    count = min(round(share * len(episodes)) or (1 if share > 0 else 0), len(episodes) - 1)
    chosen = set(np.random.default_rng(seed).permutation(len(episodes))[:count].tolist())
    return (
        [episode for i, episode in enumerate(episodes) if i not in chosen],
        [episode for i, episode in enumerate(episodes) if i in chosen],
    )


def sample_rows(chunker: Chunker, episodes: list[Episode]) -> Array:
    """Rows of chunks from all over the episodes, for statistics. Shape (n, c)."""
    frames = sum(episode.length for episode in episodes)
    every = max(1, frames * chunker.embodiment.horizon // _STATISTICS_ROWS)
    rows = []
    for episode in episodes:
        found, valid = chunker.chunks(episode, np.arange(0, episode.length, every))
        rows.append(found[valid])
    return np.concatenate(rows)


def check_rows(rows: Array, embodiment: Embodiment, dataset: LeRobotFolder) -> None:
    """Compare values with what the embodiment says of them: a dataset in degrees must not pass as radians.

    Raises TrainingError naming each channel that does not fit.
    """
    faults = []
    for group in embodiment.actions:
        values = rows[:, embodiment.layout.slice_of(group.name)]
        if group.normalisation is not None:
            pair = (np.array(group.normalisation.q01), np.array(group.normalisation.q99))
            faults += _outside(group, values, "", "normalisation", *pair, 0.5 * (pair[1] - pair[0]))
        if is_joint(group) and getattr(group, "reference", "") == "absolute":
            faults += _outside_positions(group, values, "")
        if getattr(group, "reference", "") == "previous_step":
            most = _HASTE * _speeds(group) / embodiment.control_rate
            name = f"changes at {_HASTE:g} x limits.velocity at most,"
            faults += _outside(group, values, "", name, -most, most, np.zeros(group.count))
    _refuse(faults, embodiment, dataset)


def check_positions(chunker: Chunker, episodes: list[Episode], dataset: LeRobotFolder) -> None:
    """Compare the positions that relative rows of joints are computed from with the joints' limits.

    Differences are small in any unit, so the rows themselves do not tell degrees from radians. Raises as
    `check_rows`.
    """
    faults = []
    for source in chunker.mapping.sources:
        relative = getattr(source.group, "reference", "absolute") != "absolute"
        if not (is_joint(source.group) and relative and source.reference == "absolute"):
            continue
        for feature, read in {source.feature: source.values, source.state: source.states}.items():
            values = np.concatenate([read(episode.columns) for episode in episodes])
            faults += _outside_positions(source.group, values, f" in {feature!r}")
    _refuse(faults, chunker.embodiment, dataset)


def _outside_positions(group: Group, values: Array, where: str) -> list[str]:
    low, high = group.limits.position.T  # type: ignore[attr-defined]
    return _outside(group, values, where, "limits.position", low, high, 0.02 * (high - low))


def _outside(
    group: Group, values: Array, where: str, name: str, low: Array, high: Array, margin: Array
) -> list[str]:
    """A line for each channel that often is further than a margin (c,) beyond low or high. values: (n, c)."""
    outside = ((values < low - margin) | (values > high + margin)).mean(axis=0)
    return [
        f"{group.name}/{group.channels[k]}: found values of {values[:, k].min():.4g} to "
        f"{values[:, k].max():.4g}{where}, expected {name} of {low[k]:.4g} to {high[k]:.4g} "
        f"[{group.units[k]}]"
        for k in np.flatnonzero(outside > _OUTSIDE)
    ]


def _refuse(faults: list[str], embodiment: Embodiment, dataset: LeRobotFolder) -> None:
    if faults:
        listed = "\n  ".join(faults)
        raise TrainingError(
            f"{dataset.folder}: the actions do not fit embodiment {embodiment.name!r}; other units or "
            "another order (mapping.actions.<group>.unit, .scale, .names), or positions where changes from "
            f"frame to frame are expected (.reference: absolute)?\n  {listed}"
        )


def _speeds(group: Group) -> Array:
    """Velocity limit of each channel, infinite of angles that are not joints: they wrap. Shape (c,)."""
    if isinstance(group, JointGroup):
        return group.limits.velocity
    linear = group.limits.linear.velocity  # type: ignore[attr-defined]
    return np.array([linear if unit == "m" else np.inf for unit in group.units])


def quantile_statistics(rows: Array, embodiment: Embodiment, floor: float) -> Statistics:
    """q01 and q99 per channel, at least `floor` apart; a group's own `normalisation` in its place.

    Of a channel that hardly moves but for rare values, such as a gripper that seldom closes, the smallest and
    the largest value stand in their place: what is clipped cannot be learnt.
    """
    low, high = np.quantile(rows, 0.01, axis=0), np.quantile(rows, 0.99, axis=0)
    least, most = rows.min(axis=0), rows.max(axis=0)
    rare = (high - low < floor) & (most - least >= floor)
    low, high = np.where(rare, least, low), np.where(rare, most, high)
    missing = np.maximum(0.0, floor - (high - low)) / 2
    low, high = low - missing, high + missing
    for group in embodiment.actions:
        if group.normalisation is not None:
            part = embodiment.layout.slice_of(group.name)
            low[part], high[part] = group.normalisation.q01, group.normalisation.q99
    return Statistics(low, high)
