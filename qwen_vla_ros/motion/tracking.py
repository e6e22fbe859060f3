# SPDX-License-Identifier: Apache-2.0
"""Jerk-limited tracking of a moving set-point."""

from __future__ import annotations

import math

import numpy as np
import ruckig

from .stop import AxisState, Brake, Limits, MotionError

# Targets stay this far inside velocity limits, so that the planner never starts on a bound [fraction].
VELOCITY_MARGIN = 0.98

# A position may miss its bound by rounding of the planner.
POSITION_TOLERANCE = 1e-7


class JointTracker:
    """Follows set-points within position, velocity, acceleration and jerk limits.

    Every step keeps one promise: from the state reached, the brake comes to rest inside the position limits.
    A step that would break it is replaced by a step of the brake, so the promise holds for ever.

    Each axis is planned for itself, to arrive at the set-point `horizon` from now with its velocity, and not
    earlier: no lag behind a feasible set-point, little of a noisy one's noise. Where limits do not allow
    that, it meets the set-point on its way as soon as they do.

    Args:
        limits: shapes (n,).
        period: time between steps [s].
        horizon: how far ahead the set-point given to `step` lies [s].
    """

    def __init__(self, limits: Limits, period: float, horizon: float):
        if not 0 < period <= horizon:
            raise ValueError(f"period {period} s must be positive and at most the horizon {horizon} s")
        self.limits = limits
        self.period = period
        self.horizon = horizon
        self.clamps = np.zeros(len(limits), dtype=int)
        self._brake = Brake(limits)
        self._planner = ruckig.Ruckig(1)
        self._plan = ruckig.Trajectory(1)
        self._inputs = [self._axis_input(i) for i in range(len(limits))]
        self._target_velocity = limits.velocity * VELOCITY_MARGIN
        self.reset(np.clip(np.zeros(len(limits)), limits.lower, limits.upper))

    def _axis_input(self, axis: int) -> ruckig.InputParameter:
        parameters = ruckig.InputParameter(1)
        parameters.max_velocity = [self.limits.velocity[axis]]
        parameters.max_acceleration = [self.limits.acceleration[axis]]
        parameters.max_jerk = [self.limits.jerk[axis]]
        parameters.target_acceleration = [0.0]
        return parameters

    def reset(self, position) -> None:
        """Start at rest from a measured position, even one outside the limits: it is never jumped inside.

        Args:
            position: shape (n,).

        Raises:
            ValueError: on a wrong shape or a value that is not finite.
        """
        position = np.array(position, dtype=float)
        if position.shape != self.limits.lower.shape or not np.isfinite(position).all():
            raise ValueError(
                f"start position must be {len(self.limits)} finite values, found {position.tolist()}"
            )
        self.state = AxisState.at_rest(position)

    def step(self, position, velocity=None) -> AxisState:
        """Move one period towards a set-point.

        Args:
            position: set-point at now + horizon. Shape (n,).
            velocity: its velocity, zero when left out. Shape (n,).

        Raises:
            ValueError: when the set-point is not finite; the state is unchanged.
            MotionError: when not even braking can be computed.
        """
        position = np.asarray(position, dtype=float)
        velocity = np.zeros_like(position) if velocity is None else np.asarray(velocity, dtype=float)
        if position.shape != self.limits.lower.shape or velocity.shape != position.shape:
            raise ValueError(
                f"set-point shapes {position.shape}, {velocity.shape}, expected ({len(self.limits)},)"
            )
        if not (np.isfinite(position).all() and np.isfinite(velocity).all()):
            raise ValueError(f"set-point is not finite: {position.tolist()}, {velocity.tolist()}")
        inside = np.clip(position, self.limits.lower, self.limits.upper)
        slow = np.clip(velocity, -self._target_velocity, self._target_velocity)
        # At a position bound the only velocity that stays inside is zero.
        slow = np.where(inside == position, slow, 0.0)
        self.clamps += (inside != position) | (slow != velocity)

        before = self.state
        braking = self._brake.step(before, self.period)
        after = AxisState(before.position.copy(), before.velocity.copy(), before.acceleration.copy())
        for axis in range(len(self.limits)):
            step = self._step_axis(axis, inside[axis], slow[axis])
            after.position[axis], after.velocity[axis], after.acceleration[axis] = (
                step if step is not None else self._of(braking, axis)
            )
        # Bounds widen to where the robot already is, and narrow again as it moves inside.
        _, lowest, highest = self._brake.plan(after)
        lower = np.minimum(self.limits.lower, before.position) - POSITION_TOLERANCE
        upper = np.maximum(self.limits.upper, before.position) + POSITION_TOLERANCE
        for axis in np.flatnonzero((lowest < lower) | (highest > upper)).tolist():
            after.position[axis], after.velocity[axis], after.acceleration[axis] = self._of(braking, axis)
            self.clamps[axis] += 1
        self.state = after
        return after

    def brake(self) -> AxisState:
        """Move one period towards rest, as fast as acceleration and jerk limits allow."""
        self.state = self._brake.step(self.state, self.period)
        return self.state

    @staticmethod
    def _of(state: AxisState, axis: int) -> tuple[float, float, float]:
        return state.position[axis], state.velocity[axis], state.acceleration[axis]

    def _arrived(self, axis: int, position: float) -> bool:
        # Plans for distances near the rounding of numbers are unsound, and the approach is exponential: the
        # brake ends it.
        state = self.state
        return (
            abs(position - state.position[axis]) < 1e-8
            and abs(state.velocity[axis]) < 1e-6
            and abs(state.acceleration[axis]) < 1e-3
        )

    def _step_axis(self, axis: int, position: float, velocity: float) -> tuple[float, float, float] | None:
        """State of one axis one period on, or None when the planner finds no way."""
        if velocity == 0 and self._arrived(axis, position):
            return None
        parameters = self._inputs[axis]
        parameters.minimum_duration = self.horizon
        if self._plan_axis(axis, position, velocity, 0.0) and self._plan.duration <= self.horizon * (
            1 + 1e-9
        ):
            return self._reached(axis, 0.0)
        # Too late for that. The fastest plan to a state in motion may back away from it for a run-up; so the
        # set-point is met on its way, planned in the frame that moves with it.
        parameters.minimum_duration = None
        position -= velocity * self.horizon
        if self._plan_axis(axis, position, 0.0, velocity) and self._plan.duration >= self.period:
            return self._reached(axis, velocity)
        return None

    def _plan_axis(self, axis: int, position: float, velocity: float, frame: float) -> bool:
        """Plan to a position and velocity in a frame that moves with velocity `frame` and is at 0 now."""
        limit, state = self.limits.velocity[axis], self.state
        parameters = self._inputs[axis]
        parameters.max_velocity, parameters.min_velocity = [limit - frame], [-limit - frame]
        parameters.current_position = [state.position[axis]]
        parameters.current_velocity = [state.velocity[axis] - frame]
        parameters.current_acceleration = [state.acceleration[axis]]
        parameters.target_position, parameters.target_velocity = [position], [velocity]
        try:
            result = self._planner.calculate(parameters, self._plan)
        except ruckig.RuckigError:
            return False
        return result in (ruckig.Result.Working, ruckig.Result.Finished)

    def _reached(self, axis: int, frame: float) -> tuple[float, float, float] | None:
        """The state that the plan reaches one period on; None if it breaks a limit."""
        position, velocity, acceleration = (value[0] for value in self._plan.at_time(self.period))
        position, velocity = position + frame * self.period, velocity + frame
        limits = self.limits
        if (
            math.isfinite(position)
            and abs(velocity) <= limits.velocity[axis]
            and abs(acceleration) <= limits.acceleration[axis] * (1 + 1e-9)
        ):
            return position, velocity, acceleration
        return None


__all__ = ["AxisState", "JointTracker", "Limits", "MotionError"]
