# SPDX-License-Identifier: Apache-2.0
"""Where chunks lie in time, and the set-point at any moment."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np

from . import rotations

# How the next chunk takes over; see `Timeline`.
MODES = ("replace", "ensemble", "rtc")

# Chunks that an ensemble keeps.
MEMBERS = 8


class ChunkRefused(ValueError):
    """A chunk that must not be followed; the text says why.

    `late` is true when the chunk is sound but came too late to be of use.
    """

    def __init__(self, reason: str, late: bool = False):
        super().__init__(reason)
        self.late = late


@dataclass(frozen=True)
class Setpoint:
    """Position and velocity of each channel, in the channel's unit and per second. Shapes (c,).

    Quaternions have no velocity here: theirs is 0.
    """

    position: np.ndarray
    velocity: np.ndarray


class Timeline:
    """Chunks placed at their capture time.

    Row k is due at `stamp + (k + 1) * step`; the origin (where the robot was at `stamp`) is due at `stamp`.
    Rows whose time has passed are skipped. Between rows a monotone cubic is followed: velocity is continuous,
    no row is overshot. Quaternions are turned at constant speed by the shorter way. Held channels (grippers)
    take the value of the row being approached and are neither interpolated nor blended.

    A chunk that arrives at `now` takes over at `now + lead`: what lies before is committed and does not
    change. By mode:

    - replace, rtc: the newer chunk alone counts. A quintic, added to it over `blend`, starts with the
      difference of position, velocity and acceleration at the hand-over and ends with none: the set-point is
      C2 there. With rtc the policy was told what is committed, and there is little to add.
    - ensemble: the mean of all chunks that cover the moment, weighted `exp(-decay * n)`, n counting chunks
      from the oldest (Zhao et al. 2023, temporal ensembling). A chunk's weight grows from 0 over `blend`
      and shrinks to 0 before its last row.

    Every method takes the time; nothing here reads a clock.

    Args:
        channels: number of channels c.
        blend: time over which a hand-over is blended [s].
        held: channels that are not interpolated. Shape (c,), bool.
        quaternions: where blocks of 4 channels (w, x, y, z) begin.
        mode: one of `MODES`.
        lead: how far ahead of now set-points are committed [s].
        decay: of the ensemble's weights; positive lets older chunks count more, as in the source.
        max_age: oldest chunk accepted, capture to now [s].
        max_future: how far ahead of now a capture time may lie [s].
    """

    def __init__(
        self,
        channels: int,
        blend: float,
        held=None,
        quaternions: tuple[int, ...] = (),
        mode: str = "replace",
        lead: float = 0.0,
        decay: float = 0.1,
        max_age: float = np.inf,
        max_future: float = 0.05,
    ):
        if mode not in MODES:
            raise ValueError(f"mode: found {mode!r}, expected one of {', '.join(MODES)}")
        self._held = np.zeros(channels, dtype=bool) if held is None else np.array(held, dtype=bool)
        if self._held.shape != (channels,):
            raise ValueError(f"held has shape {self._held.shape}, expected ({channels},)")
        self._holds = bool(self._held.any())
        self.mode = mode
        self._channels = channels
        self._blend = blend
        self._turns = [slice(start, start + 4) for start in quaternions]
        self._lead = lead
        self._decay = decay
        self._max_age = max_age
        self._max_future = max_future
        rest = np.zeros(channels)
        for turn in self._turns:
            rest[turn] = rotations.IDENTITY
        self.clear(rest)

    def clear(self, position) -> None:
        """Forget all chunks; the set-point rests at `position`. Shape (c,)."""
        position = np.array(position, dtype=float)
        if position.shape != (self._channels,) or not np.isfinite(position).all():
            raise ValueError(f"position must be {self._channels} finite values, found {position.tolist()}")
        self._curves = [_Curve.rest(position, self._turns)]
        self._stamp = -np.inf
        self.sequence = 0

    def offer(self, rows, origin, stamp: float, step: float, now: float, sequence: int = 0) -> int:
        """Follow a chunk from `now + lead` on.

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

        begin = now + self._lead
        curve = _Curve(knots, np.vstack([origin, rows]), step, begin, self._turns)
        if self.mode != "ensemble" or len(self._curves) == 1:
            # What rests before the first chunk is no member of an ensemble: it is spliced to.
            curve.splice(self._at(begin), self._blend, self._held)
        if self.mode == "ensemble":
            self._curves = [*self._curves[-MEMBERS + 1 :], curve]
        else:
            begun = sum(old.begin <= now for old in self._curves)
            self._curves = [*self._curves[max(0, begun - 1) :], curve]
        self._stamp = stamp
        self.sequence = sequence
        return skipped

    def sample(self, now: float) -> Setpoint:
        """The set-point at `now` [s]. Past the last row it rests there."""
        position, velocity, _ = self._at(now)
        if self._holds:
            np.copyto(position, self._begun(now)[-1].approached(now), where=self._held)
            np.copyto(velocity, 0.0, where=self._held)
        return Setpoint(position, velocity)

    def remaining(self, now: float) -> float:
        """Time until the last row is due [s]; negative past it, -inf without a chunk."""
        return float(self._curves[-1].knots[-1] - now)

    def ahead(self, now: float) -> np.ndarray:
        """When the rows of the newest chunk that have not passed are due [s]. Shape (n,)."""
        due = self._curves[-1].knots[1:]
        return due[due > now]

    @property
    def stamp(self) -> float:
        """Capture time of the newest chunk [s]; -inf without one."""
        return self._stamp

    def _begun(self, now: float) -> list[_Curve]:
        return [curve for curve in self._curves if curve.begin <= now] or self._curves[:1]

    def _at(self, now: float) -> np.ndarray:
        """Position, velocity and acceleration of the blend of chunks. Shape (3, c)."""
        begun = self._begun(now)
        if self.mode != "ensemble":
            return begun[-1].evaluate(now)
        members = begun[1:] if begun[0].resting and len(begun) > 1 else begun
        weights, rates = self._weights(members, now)
        if len(members) == 1:
            return members[0].evaluate(now)
        states = [member.evaluate(now) for member in members]
        positions, velocities = (np.array([state[i] for state in states]) for i in (0, 1))
        total, change = weights.sum(), rates.sum()
        position = weights @ positions / total
        velocity = (weights @ velocities + rates @ positions - change * position) / total
        for turn in self._turns:
            position[turn] = rotations.mean(positions[:, turn], weights)
            velocity[turn] = 0.0
        return np.array([position, velocity, np.zeros(self._channels)])

    def _weights(self, members: list[_Curve], now: float) -> tuple[np.ndarray, np.ndarray]:
        """Weight of each member, and its time derivative."""
        weights, rates = np.empty(len(members)), np.empty(len(members))
        for i, member in enumerate(members):
            grow, growth = _rise(now - member.begin, self._blend) if i else (1.0, 0.0)
            fade, fading = _rise(member.knots[-1] - now, self._blend) if i < len(members) - 1 else (1.0, 0.0)
            scale = np.exp(-self._decay * i)
            weights[i] = scale * grow * fade
            rates[i] = scale * (growth * fade - grow * fading)
        if not weights.sum() > 0:
            # All others have ended while the newest had just begun.
            weights[-1], rates[-1] = 1.0, 0.0
        return weights, rates


class _Curve:
    """One chunk as a function of time."""

    def __init__(self, knots: np.ndarray, values: np.ndarray, step: float, begin: float, turns: list[slice]):
        self.knots, self.begin, self._turns = knots, begin, turns
        self.resting = False
        self._times = knots.tolist()
        self._values = values
        slopes = _monotone_slopes(values, step)
        # At both ends of each interval. Shape (h, 4, c).
        self._corners = np.stack([values[:-1], values[1:], slopes[:-1], slopes[1:]], axis=1)
        self._vectors = [
            rotations.to_vector(rotations.multiply(values[1:, turn], rotations.inverse(values[:-1, turn])))
            for turn in turns
        ]
        self._added = np.zeros((3, values.shape[1]))
        self._turned = [np.zeros(3) for _ in turns]
        self._blend = 0.0

    @classmethod
    def rest(cls, position: np.ndarray, turns: list[slice]) -> _Curve:
        curve = cls(np.array([-np.inf, -np.inf]), np.vstack([position, position]), 1.0, -np.inf, turns)
        curve.resting = True
        return curve

    def splice(self, before: np.ndarray, blend: float, held: np.ndarray) -> None:
        """Begin where `before` is, and be oneself after `blend` [s].

        Args:
            before: position, velocity, acceleration. Shape (3, c).
        """
        after = self._bare(self.begin)
        self._blend = blend
        offset = np.where(held, 0.0, before - after)
        # The first three of a quintic in Bernstein's form; the others are 0.
        starts = [[1.0, 0.0, 0.0], [1.0, blend / 5, 0.0], [1.0, 2 * blend / 5, blend**2 / 20]]
        self._added = np.array(starts) @ offset
        for i, turn in enumerate(self._turns):
            self._added[:, turn] = 0.0
            turned = rotations.multiply(before[0][turn], rotations.inverse(after[0][turn]))
            self._turned[i] = rotations.to_vector(turned)

    def evaluate(self, now: float) -> np.ndarray:
        """Position, velocity, acceleration at `now` [s]. Shape (3, c)."""
        state = self._bare(now)
        if not self._blend > 0 or now >= self.begin + self._blend:
            return state
        since = max(0.0, now - self.begin)
        factors = _quintic(since, self._blend)
        for turn, vector in zip(self._turns, self._turned, strict=True):
            # What is left of an offset of position.
            left = rotations.from_vector(factors[0].sum() * vector)
            state[0, turn] = rotations.multiply(left, state[0, turn])
        state += factors @ self._added
        return state

    def approached(self, now: float) -> np.ndarray:
        """The row that is due next. Shape (c,)."""
        i = bisect.bisect_right(self._times, now)
        return self._values[min(max(i, 1), len(self._values) - 1)]

    def _bare(self, now: float) -> np.ndarray:
        """As `evaluate`, without what was spliced."""
        i = bisect.bisect_right(self._times, now) - 1
        if i < 0 or i >= len(self._times) - 1:
            state = np.zeros((3, self._values.shape[1]))
            state[0] = self._values[0 if i < 0 else -1]
            return state
        width = self._times[i + 1] - self._times[i]
        u = (now - self._times[i]) / width
        state = _hermite(u, width) @ self._corners[i]
        for turn, vectors in zip(self._turns, self._vectors, strict=True):
            state[0, turn] = rotations.multiply(rotations.from_vector(u * vectors[i]), self._values[i, turn])
            state[1:, turn] = 0.0
        return state


def _rise(time: float, span: float) -> tuple[float, float]:
    """0 to 1 over `span` with no slope at the ends, and its derivative."""
    if time >= span or span <= 0:
        return float(time >= 0), 0.0
    u = max(0.0, time / span)
    return u * u * (3 - 2 * u), 6 * u * (1 - u) / span


def _quintic(time: float, span: float) -> np.ndarray:
    """Bernstein's polynomials 0, 1, 2 of degree 5 at `time` of `span`, and two derivatives.

    All are 0 at `span`, with their derivatives. Shape (3, 3): by derivative, by polynomial.
    """
    u = time / span
    r = 1 - u
    a, b = 1 / span, 1 / span**2
    return np.array(
        [
            [r**5, 5 * u * r**4, 10 * u**2 * r**3],
            [-5 * a * r**4, a * (5 * r**4 - 20 * u * r**3), a * (20 * u * r**3 - 30 * u**2 * r**2)],
            [
                20 * b * r**3,
                b * (60 * u * r**2 - 40 * r**3),
                b * (20 * r**3 - 120 * u * r**2 + 60 * u**2 * r),
            ],
        ]
    )


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


def _hermite(u: float, width: float) -> np.ndarray:
    """What makes, of the values and slopes at the ends, value and two derivatives at `u` in [0, 1].

    Of the cubic Hermite polynomial. Shape (3, 4): start, end, slope at the start, at the end.
    """
    v = 1 - u
    rise, bend = 6 * u * v / width, (6 - 12 * u) / width**2
    return np.array(
        [
            [(1 + 2 * u) * v * v, u * u * (3 - 2 * u), width * u * v * v, -width * u * u * v],
            [-rise, rise, v * (1 - 3 * u), u * (3 * u - 2)],
            [-bend, bend, (6 * u - 4) / width, (6 * u - 2) / width],
        ]
    )
