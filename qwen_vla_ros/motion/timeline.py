# SPDX-License-Identifier: Apache-2.0
"""Where chunks lie in time, and the set-point at any moment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


class ChunkRefused(ValueError):
    """A chunk that must not be followed; the text says why.

    `late` is true when the chunk is sound but came too late to be of use.
    """

    def __init__(self, reason: str, late: bool = False):
        super().__init__(reason)
        self.late = late


@dataclass(frozen=True)
class Setpoint:
    """Position and velocity of each channel, in the channel's unit and per second. Shapes (c,)."""

    position: np.ndarray
    velocity: np.ndarray


class Timeline:
    """The newest chunk, placed at its capture time.

    Row k is due at `stamp + (k + 1) * step`; the origin (where the robot was at `stamp`) is due at `stamp`.
    Rows whose time has passed are skipped. Between rows a monotone cubic is followed: velocity is continuous,
    no row is overshot. A newer chunk replaces the older one; what the two differ by at the hand-over is faded
    out over `blend`, so that the set-point never jumps. Held channels (grippers) take the value of the row
    being approached and are neither interpolated nor faded.

    Every method takes the time; nothing here reads a clock.

    Args:
        channels: number of channels c.
        blend: time over which a hand-over is faded [s].
        held: channels that are not interpolated. Shape (c,), bool.
        max_age: oldest chunk accepted, capture to now [s].
        max_future: how far ahead of now a capture time may lie [s].
    """

    def __init__(
        self, channels: int, blend: float, held=None, max_age: float = np.inf, max_future: float = 0.05
    ):
        self._held = np.zeros(channels, dtype=bool) if held is None else np.array(held, dtype=bool)
        if self._held.shape != (channels,):
            raise ValueError(f"held has shape {self._held.shape}, expected ({channels},)")
        self._channels = channels
        self._blend = blend
        self._max_age = max_age
        self._max_future = max_future
        self.clear(np.zeros(channels))

    def clear(self, position) -> None:
        """Forget the chunk; the set-point rests at `position`. Shape (c,)."""
        position = np.array(position, dtype=float)
        if position.shape != (self._channels,) or not np.isfinite(position).all():
            raise ValueError(f"position must be {self._channels} finite values, found {position.tolist()}")
        self._knots = np.array([-np.inf])
        self._values = position[None]
        self._slopes = np.zeros_like(self._values)
        self._offset = np.zeros(self._channels)
        self._offset_start = -np.inf
        self._stamp = -np.inf
        self.sequence = 0

    def offer(self, rows, origin, stamp: float, step: float, now: float, sequence: int = 0) -> int:
        """Follow a chunk from now on.

        Args:
            rows: absolute set-points. Shape (h, c).
            origin: where the robot was at `stamp`. Shape (c,).
            stamp: capture time [s].
            step: time between rows [s].
            now: [s].
            sequence: number of the chunk, kept for `sequence`.

        Returns:
            How many rows were skipped because their time has passed.

        Raises:
            ChunkRefused: when the chunk is malformed, not finite, not newer than the one followed, from the
                future, too old, or wholly passed. The timeline is unchanged.
        """
        rows = np.asarray(rows, dtype=float)
        origin = np.asarray(origin, dtype=float)
        if rows.ndim != 2 or rows.shape[1] != self._channels or not len(rows):
            raise ChunkRefused(f"chunk has shape {rows.shape}, expected (rows, {self._channels})")
        if origin.shape != (self._channels,):
            raise ChunkRefused(f"origin has shape {origin.shape}, expected ({self._channels},)")
        if not np.isfinite([stamp, step]).all() or step <= 0:
            raise ChunkRefused(f"stamp {stamp} s and step {step} s must be finite, the step positive")
        if not np.isfinite(rows).all():
            row, channel = np.argwhere(~np.isfinite(rows))[0]
            raise ChunkRefused(f"chunk holds {rows[row, channel]} in row {row}, channel {channel}")
        if not np.isfinite(origin).all():
            raise ChunkRefused(f"origin is not finite: {origin.tolist()}")
        if stamp > now + self._max_future:
            raise ChunkRefused(f"captured {stamp - now:.3f} s in the future; are all clocks the same?")
        if stamp <= self._stamp:
            raise ChunkRefused(
                f"captured {self._stamp - stamp:.3f} s before the chunk being followed, or the same one",
                late=True,
            )
        age = now - stamp
        if age > self._max_age:
            raise ChunkRefused(f"captured {age:.3f} s ago, allowed {self._max_age:.3f} s", late=True)
        knots = stamp + step * np.arange(len(rows) + 1)
        skipped = int((knots[1:] <= now).sum())
        if skipped == len(rows):
            raise ChunkRefused(f"last row was due {now - knots[-1]:.3f} s ago", late=True)

        committed = self.sample(now).position
        self._knots = knots
        self._values = np.vstack([origin, rows])
        self._slopes = _monotone_slopes(self._values, step)
        self._stamp = stamp
        self.sequence = sequence
        self._offset = np.zeros(self._channels)
        self._offset = np.where(self._held, 0.0, committed - self.sample(now).position)
        self._offset_start = now
        return skipped

    def sample(self, now: float) -> Setpoint:
        """The set-point at `now` [s]. Past the last row it rests there."""
        i = int(np.searchsorted(self._knots, now, side="right")) - 1
        if i < 0:
            position, velocity = self._values[0], np.zeros(self._channels)
            ahead = self._values[min(1, len(self._values) - 1)]
        elif i >= len(self._knots) - 1:
            position, velocity = self._values[-1], np.zeros(self._channels)
            ahead = position
        else:
            width = self._knots[i + 1] - self._knots[i]
            position, velocity = _hermite(
                (now - self._knots[i]) / width,
                width,
                self._values[i],
                self._values[i + 1],
                self._slopes[i],
                self._slopes[i + 1],
            )
            ahead = self._values[i + 1]
        fade, fade_rate = self._fade(now)
        position = position + fade * self._offset
        velocity = velocity + fade_rate * self._offset
        return Setpoint(np.where(self._held, ahead, position), np.where(self._held, 0.0, velocity))

    def remaining(self, now: float) -> float:
        """Time until the last row is due [s]; negative past it, -inf without a chunk."""
        return float(self._knots[-1] - now)

    @property
    def stamp(self) -> float:
        """Capture time of the chunk being followed [s]; -inf without one."""
        return self._stamp

    def _fade(self, now: float) -> tuple[float, float]:
        if self._blend <= 0 or now >= self._offset_start + self._blend:
            return 0.0, 0.0
        u = max(0.0, (now - self._offset_start) / self._blend)
        return 1 - u * u * (3 - 2 * u), -6 * u * (1 - u) / self._blend


def _monotone_slopes(values: np.ndarray, step: float) -> np.ndarray:
    """Slopes at evenly spaced knots that overshoot no value (Fritsch and Butland 1984). Shape of `values`."""
    slopes = np.zeros_like(values)
    secants = np.diff(values, axis=0) / step
    if len(secants) == 1:
        slopes[:] = secants[0]
        return slopes
    before, after = secants[:-1], secants[1:]
    total = before + after
    same_way = before * after > 0
    slopes[1:-1] = np.where(same_way, 2 * before * after / np.where(same_way, total, 1.0), 0.0)
    # The chunk begins as fast as its first step and ends at rest: nothing is known beyond the last row.
    slopes[0] = secants[0]
    return slopes


def _hermite(u, width, start, end, start_slope, end_slope):
    """Value and derivative of the cubic Hermite polynomial at `u` in [0, 1]."""
    a = (1 + 2 * u) * (1 - u) ** 2
    b = u * (1 - u) ** 2
    c = u * u * (3 - 2 * u)
    d = u * u * (u - 1)
    value = a * start + b * width * start_slope + c * end + d * width * end_slope
    rate = (
        6 * u * (u - 1) * (start - end) / width
        + (1 - u) * (1 - 3 * u) * start_slope
        + u * (3 * u - 2) * end_slope
    )
    return value, rate
