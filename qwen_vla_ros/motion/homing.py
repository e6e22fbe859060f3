# SPDX-License-Identifier: Apache-2.0
"""The way from one posture to another, from rest to rest."""

from __future__ import annotations

import numpy as np

from .stop import Limits

# Greatest velocity, acceleration and jerk of the quintic 10 s^3 - 15 s^4 + 6 s^5 over unit time.
_PEAKS = 1.875, 10 / np.sqrt(3), 60.0


class Passage:
    """Straight in joint space, with a quintic in time: velocity and acceleration are zero at both ends.

    Args:
        start, target: shapes (n,).
        limits: of the joints.
        share: of the limits that is used, in (0, 1].

    Attributes:
        target: shape (n,).
        duration: [s]; may be made longer.
    """

    def __init__(self, start, target, limits: Limits, share: float):
        if not 0 < share <= 1:
            raise ValueError(f"share of the limits: found {share}, expected more than 0, at most 1")
        self._start = np.array(start, dtype=float)
        self.target = np.array(target, dtype=float)
        self._way = self.target - self._start
        bounds = limits.velocity, limits.acceleration, limits.jerk
        self.duration = max(
            float(((peak * np.abs(self._way) / (share * bound)) ** (1 / order)).max(initial=0.0))
            for order, (peak, bound) in enumerate(zip(_PEAKS, bounds, strict=True), start=1)
        )

    def sample(self, time: float) -> tuple[np.ndarray, np.ndarray]:
        """Position and velocity `time` [s] after the start. Shapes (n,)."""
        if time >= self.duration:
            return self.target, np.zeros_like(self._way)
        s = max(0.0, time) / self.duration
        position = s**3 * (10 - 15 * s + 6 * s**2)
        velocity = 30 * s**2 * (1 - s) ** 2 / self.duration
        return self._start + position * self._way, velocity * self._way
