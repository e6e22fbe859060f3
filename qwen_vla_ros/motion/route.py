# SPDX-License-Identifier: Apache-2.0
"""The part of a plan that lies ahead of a base, for whoever drives it: what is said of it, and when."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .base import History

# Poses that have passed are dropped no more often than this, unless a chunk takes over [s].
RENEWAL = 0.1

# A base stands when it went less than this [m], [rad] ...
STILL = 0.002, 0.005

# ... in this time [s].
STILL_SPAN = 0.1

# Whoever drives has noticed within it that the base is to stay [s].
REACTION = 0.5

# By how much a pose must be too far for it to be drawn back [fraction].
ROUNDING = 1e-9


@dataclass(frozen=True)
class PathCommand:
    """What a driver of paths is told.

    Attributes:
        group: name of the action group.
        poses: x, y [m], yaw [rad] in the odometry frame, the measured one first; it alone means "stay".
            Shape (n, 3).
        times: when each is due, from the command on [s]; the first is 0. Shape (n,).
    """

    group: str
    poses: np.ndarray
    times: np.ndarray


class Route:
    """Says a path when there is something new to say, with no pose further from the one before than the base
    may go in the time between them.

    Args:
        group: name of the action group.
        velocity: limits of the way [m/s] and of the turn [rad/s]. Shape (2,).
        patience: time after which the base counts as standing, once it was told to stay [s].
        period: time between commands [s].

    Attributes:
        resting: the base was told to stay, or nothing yet, and stands.
        clamps: poses that were drawn back: their way, their turn. Shape (2,).
    """

    def __init__(self, group: str, velocity, patience: float, period: float):
        self._group, self._velocity = group, np.array(velocity, dtype=float)
        self._patience, self._period = patience, period
        self.clamps = np.zeros(2, dtype=int)
        self.reset()

    def reset(self) -> None:
        """Nothing was said; the base stands."""
        self.resting = True
        self._waiting: PathCommand | None = None
        self._said = -np.inf, -np.inf, 0
        self._stayed = False

    def due(self, now: float, stamp: float, count: int) -> bool:
        """Whether the rest of a chunk is to be said.

        Args:
            stamp: of the chunk [s].
            count: rows of it that lie ahead.
        """
        said, of, left = self._said
        if self._stayed or stamp != of or not said <= now:
            return True
        return count != left and now - said >= RENEWAL

    def lead(self, now: float, stamp: float, times: np.ndarray, rows: np.ndarray, pose: np.ndarray) -> None:
        """Say the poses that lie ahead.

        Args:
            stamp: of the chunk [s].
            times: when they are due [s]. Shape (n,).
            rows: x, y [m], yaw [rad]. Shape (n, 3).
            pose: where the base is measured. Shape (3,).
        """
        poses = np.vstack([pose, rows])
        after = np.append(0.0, times - now)
        for k, most in enumerate(np.diff(after)[:, None] * self._velocity, start=1):
            way = poses[k] - poses[k - 1]
            far = np.array([np.hypot(*way[:2]), abs(way[2])])
            over = far > most * (1 + ROUNDING)
            if over.any():
                share = np.where(over, most / np.where(over, far, 1.0), 1.0)
                poses[k] = poses[k - 1] + way * share[[0, 0, 1]]
                self.clamps += over
        self._waiting = PathCommand(self._group, poses, after)
        self._said = now, stamp, len(times)
        self.resting = self._stayed = False

    def stay(self, odometry: History) -> None:
        """Tell the base, once, to stay where it is measured, and see whether it stands. Call every period."""
        newest = odometry.newest
        if self.resting or newest is None:
            return
        if not self._stayed:
            self._waiting = PathCommand(self._group, newest[1][None].copy(), np.zeros(1))
            self._stayed, self._since, self._braked = True, newest[0], 0.0
            return
        self._braked += self._period
        self.resting = self._braked >= self._patience or self._stands(odometry, *newest)

    def _stands(self, odometry: History, stamp: float, pose: np.ndarray) -> bool:
        if stamp - self._since < STILL_SPAN:
            return False
        way = pose - odometry.at(stamp - STILL_SPAN)
        return bool(np.hypot(*way[:2]) < STILL[0] and abs(way[2]) < STILL[1])

    def take(self) -> PathCommand | None:
        """What is to be said now, if anything."""
        waiting, self._waiting = self._waiting, None
        return waiting
