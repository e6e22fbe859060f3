# SPDX-License-Identifier: Apache-2.0
"""What is kept of one episode, and the figures of several."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Chunk:
    """One published chunk: `stamp` [s], `step` [s], `data` in physical units. Shape (horizon, c)."""

    stamp: float
    step: float
    data: NDArray[np.float64]

    @property
    def due(self) -> NDArray[np.float64]:
        """Times at which the rows are to be reached [s]. Shape (horizon,)."""
        return self.stamp + self.step * np.arange(1, len(self.data) + 1)


@dataclass
class Series:
    """Values over time: `times` [s] and rows of equal length."""

    times: list[float] = field(default_factory=list)
    rows: list[NDArray[np.float64]] = field(default_factory=list)

    def add(self, time: float, row: NDArray[np.float64]) -> None:
        self.times.append(time)
        self.rows.append(row)

    def arrays(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Times, shape (n,), and values, shape (n, width); (0,) and (0, 0) when empty."""
        if not self.rows:
            return np.empty(0), np.empty((0, 0))
        return np.asarray(self.times), np.stack(self.rows)


@dataclass
class Episode:
    """Everything recorded between the goal and its result.

    `measured` and `commanded` hold one Series per action group; for a base they hold (x, y, yaw) and (v, w).
    """

    embodiment: str
    instruction: str
    seed: int
    success: bool = False
    distance: float = float("nan")
    code: int = 0
    message: str = ""
    elapsed: float = 0.0
    started: float = 0.0
    chunks: list[Chunk] = field(default_factory=list)
    inference_times: list[float] = field(default_factory=list)
    capture_to_command: dict[int, float] = field(default_factory=dict)
    measured: dict[str, Series] = field(default_factory=dict)
    commanded: dict[str, Series] = field(default_factory=dict)
    frames_sent: int = 0
    frames_received: int = 0
    views: dict[str, NDArray[np.uint8]] = field(default_factory=dict)


@dataclass(frozen=True)
class Figures:
    """The figures of one body over its episodes; times in seconds, NaN where nothing was measured."""

    episodes: int
    successes: int
    chunks: int
    chunk_rate: float
    inference_p50: float
    inference_p99: float
    command_p50: float
    command_p99: float
    frames_sent: int
    frames_lost: int


def percentile(values: list[float], q: float) -> float:
    """The `q`-th percentile, or NaN for no values."""
    return float(np.percentile(values, q)) if values else float("nan")


def figures(episodes: list[Episode]) -> Figures:
    """Summarise the episodes of one body. The chunk rate is counted in the robot's time."""
    elapsed = sum(e.elapsed for e in episodes)
    chunks = sum(len(e.chunks) for e in episodes)
    inference = [t for e in episodes for t in e.inference_times]
    command = [t for e in episodes for t in e.capture_to_command.values()]
    return Figures(
        episodes=len(episodes),
        successes=sum(e.success for e in episodes),
        chunks=chunks,
        chunk_rate=chunks / elapsed if elapsed > 0 else float("nan"),
        inference_p50=percentile(inference, 50),
        inference_p99=percentile(inference, 99),
        command_p50=percentile(command, 50),
        command_p99=percentile(command, 99),
        frames_sent=sum(e.frames_sent for e in episodes),
        frames_lost=sum(e.frames_sent - e.frames_received for e in episodes),
    )
