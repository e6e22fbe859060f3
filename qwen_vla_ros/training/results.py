# SPDX-License-Identifier: Apache-2.0
"""Results of evaluations: what is counted, and the JSON file that holds them."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from qwen_vla_ros.training.errors import TrainingError

FORMAT = "qwen_vla_ros evaluation"
VERSION = 2
_JERK_STEP = 0.04  # [s]


@dataclass(frozen=True)
class EpisodeResult:
    """One episode.

    Attributes:
        scene: Seed of World.reset().
        named: The robot ended at the object that the instruction names.
        distance: From the judged goal at the end [m].
        seconds: Until success or the time limit.
        rms_jerk: Of the commanded path, [rad/s^3] of joints, [m/s^3] of a base.
        frames: Positions of the simulation at the start, half-way and at the end, of the first episodes only.
    """

    scene: int
    instruction: str
    success: bool
    named: bool
    distance: float
    seconds: float
    rms_jerk: float
    detail: str
    frames: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class Entry:
    """One body and task under one setting, wording and control.

    Attributes:
        through: `lock-step` or `ros`.
        seed: Scene of the first episode; the others follow.
        latency: From picture to chunk [s], in lock-step.
        interval: Of the rate, Wilson score, 95 %.
        seconds: Median of the successful episodes.
        rms_jerk: Median.
        distance: Median [m].
    """

    embodiment: str
    task: str
    setting: str
    wording: str
    control: str
    through: str
    seed: int
    latency: float
    successes: int
    named: int
    rate: float
    interval: tuple[float, float]
    seconds: float | None
    rms_jerk: float
    distance: float
    episodes: list[EpisodeResult]

    @property
    def asked(self) -> tuple[str, ...]:
        """What the robot was asked to do, and under which conditions."""
        return (self.embodiment, self.task, self.setting, self.wording, self.control)

    @property
    def key(self) -> tuple[object, ...]:
        """What it is a result of."""
        return (*self.asked, self.through, self.latency)

    @property
    def conditions(self) -> str:
        """What the episodes ran through, and the latency where it was given."""
        return f"{self.through}, {1000 * self.latency:.0f} ms" if self.latency else self.through

    def summary(self) -> str:
        """One line."""
        low, high = self.interval
        text = (
            f"{self.embodiment} {self.task}: {self.successes}/{len(self.episodes)} = {100 * self.rate:.0f} % "
            f"(95 %: {100 * low:.0f} to {100 * high:.0f} %), median distance {100 * self.distance:.1f} cm"
        )
        if self.seconds is not None:
            text += f", {self.seconds:.1f} s"
        if self.control != "none":
            text += f", control {self.control}, {self.named} ended at the object that was named"
        return text


@dataclass(frozen=True)
class Swap:
    """Of two conventions in the same scenes, which one came out, by the sentence.

    Attributes:
        pair: Names of two embodiments.
        right: Trials in which the chunk was nearer to the expert's in the convention of the sentence.
        by_sentence: The same, by embodiment whose sentence was given.
        distance: Median of the mean distance to the expert's chunk in the sentence's convention, and in the
            other one [normalised].
        channels: Leading channels that were compared.
    """

    pair: tuple[str, str]
    task: str
    setting: str
    seed: int
    trials: int
    right: int
    by_sentence: dict[str, int]
    rate: float
    interval: tuple[float, float]
    distance: tuple[float, float]
    channels: int

    def summary(self) -> str:
        """One line."""
        low, high = self.interval
        own, other = self.distance
        return (
            f"{' / '.join(self.pair)} {self.task}: the sentence's convention in {self.right}/{self.trials} = "
            f"{100 * self.rate:.0f} % (95 %: {100 * low:.0f} to {100 * high:.0f} %), distance {own:.3f}, "
            f"to the other {other:.3f}"
        )


@dataclass
class Evaluation:
    """Content of a result file. parameters: of the model; 0 where none ran."""

    checkpoint: str
    parameters: int = 0
    machine: str = ""
    entries: list[Entry] = field(default_factory=list)
    conventions: list[Swap] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write the file whole. Raises TrainingError when it cannot be written."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        partial = path.with_name(path.name + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(content, indent=1) + "\n")
            os.replace(partial, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise TrainingError(f"{path}: cannot be written: {error}") from error


def gather(evaluations: Iterable[Evaluation]) -> list[Entry]:
    """All entries by body and task, what is easier first; of those about the same, the last one counts."""
    from qwen_vla_ros.sim.phrases import WORDINGS

    def place(entry: Entry) -> tuple[object, ...]:
        wording = WORDINGS.index(entry.wording)
        return (entry.embodiment, entry.task, entry.setting, wording, *entry.key[4:])

    return sorted({entry.key: entry for each in evaluations for entry in each.entries}.values(), key=place)


def read_evaluation(path: Path) -> Evaluation:
    """Read a result file. Raises TrainingError naming the file and the fault."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path}: cannot be read: {error}") from error
    found = (content.get("format"), content.get("version")) if isinstance(content, dict) else (None, None)
    if found != (FORMAT, VERSION):
        raise TrainingError(f"{path}: found {found}, expected {FORMAT!r} version {VERSION}")
    try:
        entries = [
            Entry(
                **{
                    **entry,
                    "interval": tuple(entry["interval"]),
                    "episodes": [EpisodeResult(**episode) for episode in entry["episodes"]],
                }
            )
            for entry in content["entries"]
        ]
        swaps = [
            Swap(**{**swap, **{name: tuple(swap[name]) for name in ("pair", "interval", "distance")}})
            for swap in content["conventions"]
        ]
        known = {each.name for each in fields(Evaluation)} - {"entries", "conventions"}
        return Evaluation(**{name: content[name] for name in known}, entries=entries, conventions=swaps)
    except (TypeError, KeyError, ValueError) as error:
        raise TrainingError(f"{path}: not results of an evaluation: {error!r}") from error


def make_entry(episodes: list[EpisodeResult], **facts: Any) -> Entry:
    """An entry from its episodes; `facts`: the fields that say what was run."""
    successes = sum(episode.success for episode in episodes)
    times = [episode.seconds for episode in episodes if episode.success]
    return Entry(
        **facts,
        successes=successes,
        named=sum(episode.named for episode in episodes),
        rate=successes / len(episodes),
        interval=wilson(successes, len(episodes)),
        seconds=float(np.median(times)) if times else None,
        rms_jerk=float(np.median([episode.rms_jerk for episode in episodes])),
        distance=float(np.median([episode.distance for episode in episodes])),
        episodes=episodes,
    )


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927); z of 95 % by default.

    Raises ValueError unless 0 <= successes <= trials and trials > 0.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"expected 0 <= successes <= trials, found {successes} of {trials}")
    rate = successes / trials
    scale = 1.0 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def rms_jerk(paths: Iterable[tuple[Sequence[float], Sequence[np.ndarray], int]]) -> float:
    """Root mean square jerk of commands, over time and all channels, from samples at 25 Hz.

    A command arrives through the nodes at uneven times; finer samples would count that.

    Args:
        paths: Per group the times of its commands [s], the commands, each of shape (n,), and how many times
            they are differentiated to a jerk: 3 for positions, 2 for velocities.

    Returns:
        0 where the commands are too few.
    """
    squares = []
    for times, rows, order in paths:
        if len(rows) < 2:
            continue
        grid = np.arange(times[0], times[-1], _JERK_STEP)
        if len(grid) <= order:
            continue
        columns = [np.interp(grid, times, column) for column in np.stack(rows).T]
        squares.append((np.diff(columns, order, axis=1) / _JERK_STEP**order).ravel() ** 2)
    return float(np.sqrt(np.concatenate(squares).mean())) if squares else 0.0
