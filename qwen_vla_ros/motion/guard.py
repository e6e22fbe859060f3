# SPDX-License-Identifier: Apache-2.0
"""The last look before the motors: every command against the limits, from the commands alone."""

from __future__ import annotations

import math

import numpy as np

from .stop import Limits, MotionError

# What a command may miss its limits by. The planner takes a plan whose end is this far from its target
# (ruckig: 1e-8 in position and velocity), and the differences of positions show it: 3 of them make a jerk.
PRECISION = 1e-8

# And by rounding [fraction of the limit].
ROUNDING = 1e-6

ORDERS = ("position", "velocity", "acceleration", "jerk")


def slack(limit, order: int, period: float) -> np.ndarray:
    """What the `order`-th difference quotient of positions may exceed its limit by.

    A value that is off by `PRECISION` enters the difference `2 ** order` times at most.

    Args:
        limit: shape (n,).
        order: 0 position, 1 velocity, 2 acceleration, 3 jerk.
        period: time between commands [s].
    """
    return ROUNDING * np.abs(limit) + 2**order * PRECISION / period**order


class JointGuard:
    """Positions, and velocity, acceleration and jerk as difference quotients of the last positions.

    The quotients are means of what moves in between, so motion within the limits is within them here.

    Args:
        names: of the joints, for messages.
        limits: shapes (n,).
        period: time between commands [s].
    """

    def __init__(self, names: tuple[str, ...], limits: Limits, period: float):
        self._names, self._limits, self._period = names, limits, period
        finite = np.where(np.isfinite(limits.upper - limits.lower), limits.upper - limits.lower, 1.0)
        bounds = limits.velocity, limits.acceleration, limits.jerk
        # By order of the difference quotient: position, velocity, acceleration, jerk. Shape (4, n).
        self._slack = np.array([slack(limit, k, period) for k, limit in enumerate((finite, *bounds))])
        self._bounds = np.array([np.zeros(len(limits)), *bounds])
        self._allowed = self._bounds + self._slack
        self._quotients = _quotients(3, period)
        self.start(np.zeros(len(limits)))

    def start(self, position) -> None:
        """Begin at rest. A robot that stands outside its limits may come inside. Shape (n,)."""
        # Relative to the newest position before: differences of small numbers lose nothing to rounding.
        self._path = np.repeat(np.array(position, dtype=float)[None], 4, axis=0)
        self._lower = np.minimum(self._limits.lower, position)
        self._upper = np.maximum(self._limits.upper, position)

    def check(self, position) -> None:
        """Raises MotionError if the next set-point, shape (n,), breaks a limit."""
        path = np.empty_like(self._path)
        path[:3], path[3] = self._path[1:], position
        used = np.abs(self._quotients @ (path - path[2]))
        used[0] = np.maximum(self._lower - path[3], path[3] - self._upper)
        if np.count_nonzero(used <= self._allowed) != used.size:  # so for NaN, too
            if not np.isfinite(path[3]).all():
                raise MotionError(f"command of {', '.join(self._names)} is not finite: {path[3].tolist()}")
            order = int(np.argmax((used > self._allowed).any(axis=1)))
            over = used[order] - self._bounds[order]
            worst = int(np.argmax(over - self._slack[order]))
            raise MotionError(
                f"command of joint {self._names[worst]} exceeds its {ORDERS[order]} limit by "
                f"{over[worst]:.3g} (position {path[3, worst]:.6g})"
            )
        self._path = path


class BaseGuard:
    """Velocities, and acceleration and jerk as difference quotients of the last velocities.

    Args:
        name: for messages.
        velocity, acceleration, jerk: limits per axis. Shape (n,).
        period: time between commands [s].
    """

    def __init__(self, name: str, velocity, acceleration, jerk, period: float):
        self._name, self._period = name, period
        self._bounds = np.array([velocity, acceleration, jerk], dtype=float)
        self._slack = np.array([slack(bound, order, period) for order, bound in enumerate(self._bounds)])
        self._allowed = self._bounds + self._slack
        self._quotients = _quotients(2, period)
        self.start(np.zeros(self._bounds.shape[1]))

    def start(self, velocity) -> None:
        """Begin without acceleration. Shape (n,)."""
        self._path = np.repeat(np.array(velocity, dtype=float)[None], 3, axis=0)

    def check(self, velocity) -> None:
        """Raises MotionError if the next velocity, shape (n,), breaks a limit."""
        path = np.empty_like(self._path)
        path[:2], path[2] = self._path[1:], velocity
        if not np.isfinite(path[2]).all():
            raise MotionError(f"command of base {self._name} is not finite: {path[2].tolist()}")
        used = np.abs(self._quotients @ path)
        if (used > self._allowed).any():
            order = int(np.argmax((used > self._allowed).any(axis=1)))
            over = used[order] - self._bounds[order]
            raise MotionError(
                f"command of base {self._name} exceeds its {ORDERS[order + 1]} limit by {over.max():.3g}: "
                f"{path[2].tolist()}"
            )
        self._path = path


class PathGuard:
    """Poses of a path: numbers, none further from the one before than the base may go in the time between.

    Args:
        name: for messages.
        velocity: limits of the way [m/s] and of the turn [rad/s]. Shape (2,).
    """

    def __init__(self, name: str, velocity):
        self._name, self._velocity = name, np.array(velocity, dtype=float)

    def check(self, poses, times) -> None:
        """Raises MotionError if poses, shape (n, 3), due at times [s], shape (n,), break a limit."""
        if not (np.isfinite(poses).all() and np.isfinite(times).all()):
            raise MotionError(
                f"path of base {self._name} is not finite: {poses.tolist()} at {times.tolist()}"
            )
        spans, ways = np.diff(times), np.diff(poses, axis=0)
        if (spans < 0).any():
            raise MotionError(f"path of base {self._name} goes back in time: {times.tolist()}")
        far = np.column_stack([np.hypot(ways[:, 0], ways[:, 1]), np.abs(ways[:, 2])])
        most = spans[:, None] * self._velocity
        over = far - most
        if (over > ROUNDING * self._velocity + PRECISION).any():
            raise MotionError(
                f"path of base {self._name} exceeds its velocity limit: a pose is {over.max():.3g} too far "
                "from the one before"
            )


def _quotients(order: int, period: float) -> np.ndarray:
    """Rows that make, of the newest `order + 1` samples, difference quotients of order 0 to `order`."""
    rows = np.zeros((order + 1, order + 1))
    for k in range(order + 1):
        rows[k, order - k :] = [(-1) ** (k - j) * math.comb(k, j) for j in range(k + 1)]
        rows[k] /= period**k
    return rows
