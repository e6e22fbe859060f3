# SPDX-License-Identifier: Apache-2.0
"""States of an episode, written to a file from which it can be drawn again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class StateLog:
    """States of one episode.

    Attributes:
        task: Task of the episode; with `seed` it decides the scene.
        times: Since the world began [s]. Shape (n,).
        qpos: MuJoCo's positions. Shape (n, nq).
    """

    task: str
    seed: int
    times: NDArray[np.float64]
    qpos: NDArray[np.float64]

    def save(self, path: Path) -> None:
        with path.open("wb") as stream:
            np.savez(stream, task=self.task, seed=self.seed, times=self.times, qpos=self.qpos)

    @classmethod
    def load(cls, path: Path) -> StateLog:
        with np.load(path, allow_pickle=False) as archive:
            return cls(str(archive["task"]), int(archive["seed"]), archive["times"], archive["qpos"])


class StateRecorder:
    """Writes `episode_0000.npz`, `episode_0001.npz`, ... into a folder, one per `begin`.

    Args:
        folder: Made if it is missing.
        period: Least time between states [s].
    """

    def __init__(self, folder: Path, period: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._period = period
        self._count = 0
        self._task: str | None = None
        self._seed = 0
        self._times: list[float] = []
        self._qpos: list[NDArray[np.float64]] = []

    def begin(self, task: str, seed: int) -> None:
        """Write the episode before, and start another."""
        self.end()
        self._task, self._seed = task, seed

    def add(self, time: float, qpos: NDArray[np.float64]) -> None:
        """Keep a state, unless the one before is younger than the period."""
        if not self._times or time - self._times[-1] >= self._period - 1e-9:
            self._times.append(time)
            self._qpos.append(qpos.copy())

    def end(self) -> None:
        """Write the present episode."""
        if self._task is None or not self._times:
            return
        log = StateLog(self._task, self._seed, np.asarray(self._times), np.stack(self._qpos))
        log.save(self._folder / f"episode_{self._count:04d}.npz")
        self._count += 1
        self._task, self._times, self._qpos = None, [], []
