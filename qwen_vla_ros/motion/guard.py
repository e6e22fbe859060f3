# SPDX-License-Identifier: Apache-2.0
"""The last look before the motors: every command against the limits, from the commands alone."""

from __future__ import annotations

import numpy as np

from .stop import Limits, MotionError

# What a command may miss its limits by. The planner takes a plan whose end is this far from its target
# (ruckig: 1e-8 in position and velocity), and the differences of positions show it: 3 of them make a jerk.
PRECISION = 1e-8

# And by rounding [fraction of the limit].
ROUNDING = 1e-6


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
        self._slack = [
            slack(limit, order, period)
            for order, limit in enumerate((finite, limits.velocity, limits.acceleration, limits.jerk))
        ]
        self.start(np.zeros(len(limits)))

    def start(self, position) -> None:
        """Begin at rest. A robot that stands outside its limits may come inside. Shape (n,)."""
        self._past = np.repeat(np.array(position, dtype=float)[None], 3, axis=0)
        self._lower = np.minimum(self._limits.lower, position)
        self._upper = np.maximum(self._limits.upper, position)

    def check(self, position) -> None:
        """Raises MotionError if the next set-point, shape (n,), breaks a limit."""
        position = np.asarray(position, dtype=float)
        if not np.isfinite(position).all():
            raise MotionError(f"command of {', '.join(self._names)} is not finite: {position.tolist()}")
        path = np.vstack([self._past, position])
        excess = [np.maximum(self._lower - position, position - self._upper)]
        bounds = (self._limits.velocity, self._limits.acceleration, self._limits.jerk)
        for order, bound in enumerate(bounds, start=1):
            quotient = np.diff(path[-order - 1 :], n=order, axis=0)[0] / self._period**order
            excess.append(np.abs(quotient) - bound)
        for what, over, allowed in zip(
            ("position", "velocity", "acceleration", "jerk"), excess, self._slack, strict=True
        ):
            if (over > allowed).any():
                worst = int(np.argmax(over - allowed))
                raise MotionError(
                    f"command of joint {self._names[worst]} exceeds its {what} limit by {over[worst]:.3g} "
                    f"(position {position[worst]:.6g})"
                )
        self._past = path[1:]


class BaseGuard:
    """Velocities, and acceleration and jerk as difference quotients of the last velocities.

    Args:
        name: for messages.
        velocity, acceleration, jerk: limits per axis. Shape (n,).
        period: time between commands [s].
    """

    def __init__(self, name: str, velocity, acceleration, jerk, period: float):
        self._name, self._period = name, period
        self._bounds = [np.array(bound, dtype=float) for bound in (velocity, acceleration, jerk)]
        self._slack = [slack(bound, order, period) for order, bound in enumerate(self._bounds)]
        self.start(np.zeros(len(self._bounds[0])))

    def start(self, velocity) -> None:
        """Begin without acceleration. Shape (n,)."""
        self._past = np.repeat(np.array(velocity, dtype=float)[None], 2, axis=0)

    def check(self, velocity) -> None:
        """Raises MotionError if the next velocity, shape (n,), breaks a limit."""
        path = np.vstack([self._past, velocity])
        if not np.isfinite(path).all():
            raise MotionError(f"command of base {self._name} is not finite: {path[-1].tolist()}")
        for order, what in enumerate(("velocity", "acceleration", "jerk")):
            quotient = np.diff(path[-order - 1 :], n=order, axis=0)[0] / self._period**order
            over = np.abs(quotient) - self._bounds[order]
            if (over > self._slack[order]).any():
                raise MotionError(
                    f"command of base {self._name} exceeds its {what} limit by {over.max():.3g}: "
                    f"{path[-1].tolist()}"
                )
        self._past = path[1:]
