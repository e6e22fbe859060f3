# SPDX-License-Identifier: Apache-2.0
"""Jerk-limited ramp to rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import ruckig

# By rounding [fraction].
_MORE = 1 + 1e-9


class MotionError(RuntimeError):
    """No motion within the limits could be computed. Whoever moves must stop sending commands."""


@dataclass(frozen=True)
class Limits:
    """Bounds per axis, in the axis' unit. Shapes (n,).

    Raises:
        ValueError: when a bound is not finite, not positive, or lower exceeds upper.
    """

    lower: np.ndarray
    upper: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    jerk: np.ndarray

    def __post_init__(self):
        for name in ("lower", "upper", "velocity", "acceleration", "jerk"):
            value = np.array(getattr(self, name), dtype=float)
            if value.shape != np.shape(self.lower) or value.ndim != 1:
                raise ValueError(f"limits: {name} has shape {value.shape}, expected {np.shape(self.lower)}")
            object.__setattr__(self, name, value)
        for name in ("velocity", "acceleration", "jerk"):
            value = getattr(self, name)
            if not (np.isfinite(value) & (value > 0)).all():
                raise ValueError(f"limits: {name} must be positive and finite, found {value.tolist()}")
        if np.isnan(self.lower).any() or np.isnan(self.upper).any() or (self.lower > self.upper).any():
            raise ValueError(f"limits: lower {self.lower.tolist()} exceeds upper {self.upper.tolist()}")

    def __len__(self) -> int:
        return len(self.lower)

    @classmethod
    def joined(cls, parts: Sequence[Limits]) -> Limits:
        """Of all axes of all parts, in their order; of no axis without parts."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([np.zeros(0), *(getattr(p, name) for p in parts)]) for name in names))


@dataclass
class AxisState:
    """Position, velocity and acceleration of each axis. Shapes (n,)."""

    position: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray

    @classmethod
    def at_rest(cls, position) -> AxisState:
        position = np.array(position, dtype=float)
        return cls(position, np.zeros_like(position), np.zeros_like(position))

    @property
    def resting(self) -> bool:
        return bool((np.abs(self.velocity) < 1e-6).all() and (np.abs(self.acceleration) < 1e-4).all())


class Brake:
    """The fastest jerk-limited way from a moving state to rest, each axis for itself.

    Args:
        limits: only acceleration and jerk matter here. Shape (n,).
    """

    def __init__(self, limits: Limits):
        n = len(limits)
        self._limits = limits
        self._planner = ruckig.Ruckig(n)
        self._input = ruckig.InputParameter(n)
        self._input.control_interface = ruckig.ControlInterface.Velocity
        self._input.synchronization = ruckig.Synchronization.No
        self._input.max_acceleration = limits.acceleration.tolist()
        self._input.max_jerk = limits.jerk.tolist()
        self._input.target_velocity = [0.0] * n
        self._input.target_acceleration = [0.0] * n
        # Planned from 0 and shifted: ruckig's extrema of a velocity plan always include 0.
        self._input.current_position = [0.0] * n
        self._plan = ruckig.Trajectory(n)

    def plan(self, state: AxisState) -> tuple[float, np.ndarray, np.ndarray]:
        """Time to rest [s], and the lowest and highest position passed on the way, shapes (n,)."""
        self._input.current_velocity = state.velocity.tolist()
        self._input.current_acceleration = state.acceleration.tolist()
        try:
            result = self._planner.calculate(self._input, self._plan)
        except ruckig.RuckigError as error:
            raise MotionError(f"no braking trajectory: {error}") from error
        if result not in (ruckig.Result.Working, ruckig.Result.Finished):
            raise MotionError(f"no braking trajectory from {state}: {result}")
        extrema = self._plan.position_extrema
        return (
            self._plan.duration,
            state.position + [bound.min for bound in extrema],
            state.position + [bound.max for bound in extrema],
        )

    def reach(self, velocity: np.ndarray, acceleration: np.ndarray) -> np.ndarray:
        """A quick bound of how far from its start `plan` may lead, either way. Shapes (..., n)."""
        limits = self._limits
        size = np.abs(acceleration)
        # Until the acceleration is gone the velocity may grow to a peak; from there the mean is half of it.
        fades = size / limits.jerk
        peak = np.abs(velocity) + 0.5 * fades * size
        return peak * (fades + 0.5 * (peak / limits.acceleration + limits.acceleration / limits.jerk)) * _MORE

    def step(self, state: AxisState, period: float) -> AxisState:
        """The state one period [s] later on the way to rest; rest stays rest."""
        duration, _, _ = self.plan(state)
        if duration <= period:
            return AxisState.at_rest(state.position + self._plan.at_time(duration)[0])
        shift, velocity, acceleration = (np.array(value) for value in self._plan.at_time(period))
        return AxisState(state.position + shift, velocity, acceleration)


class Escape:
    """One way to rest, planned once and then followed: all axes together, so that a tip they move slows down.

    Args:
        limits: only acceleration and jerk matter here. Shape (n,).
        state: where it begins.

    Raises:
        MotionError: there is none.
    """

    def __init__(self, limits: Limits, state: AxisState):
        n = len(limits)
        parameters = ruckig.InputParameter(n)
        parameters.control_interface = ruckig.ControlInterface.Velocity
        parameters.synchronization = ruckig.Synchronization.Time
        parameters.max_acceleration = limits.acceleration.tolist()
        parameters.max_jerk = limits.jerk.tolist()
        parameters.current_position = [0.0] * n
        parameters.current_velocity = state.velocity.tolist()
        parameters.current_acceleration = state.acceleration.tolist()
        parameters.target_velocity = parameters.target_acceleration = [0.0] * n
        self._plan, self._start, self._elapsed = ruckig.Trajectory(n), state.position, 0.0
        try:
            result = ruckig.Ruckig(n).calculate(parameters, self._plan)
        except ruckig.RuckigError as error:
            raise MotionError(f"no braking trajectory: {error}") from error
        if result not in (ruckig.Result.Working, ruckig.Result.Finished):
            raise MotionError(f"no braking trajectory from {state}: {result}")

    def path(self, period: float) -> np.ndarray:
        """Positions at every period [s] until rest, the start first. Shape (k, n)."""
        duration = self._plan.duration
        times = np.minimum(np.arange(np.ceil(duration / period) + 1) * period, duration)
        return self._start + np.array([self._plan.at_time(time)[0] for time in times])

    def advance(self, period: float) -> AxisState:
        """The state one period [s] further on; rest stays rest."""
        self._elapsed += period
        if self._elapsed >= self._plan.duration:
            return AxisState.at_rest(self._start + self._plan.at_time(self._plan.duration)[0])
        shift, velocity, acceleration = (np.array(value) for value in self._plan.at_time(self._elapsed))
        return AxisState(self._start + shift, velocity, acceleration)
