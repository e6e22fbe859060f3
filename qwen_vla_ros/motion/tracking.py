# SPDX-License-Identifier: Apache-2.0
"""Jerk-limited tracking of a moving set-point."""

from __future__ import annotations

import math

import numpy as np
import ruckig

from .stop import AxisState, Brake, Limits, MotionError

# Targets stay this far inside velocity limits, so that the planner never starts on a bound [fraction].
VELOCITY_MARGIN = 0.98

# A plan is followed for so long before the next is made [s]: to plan is most of what a period costs, and a
# fast loop need not do it in each.
PLAN_PERIOD = 0.008

# A position may miss its bound by what the planner may miss its target by, once and not anew at every step.
POSITION_TOLERANCE = 1e-8


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
        # All axes in one call where it serves, each for itself where one of them needs another plan.
        n = len(limits)
        self._all_planner, self._all_plan = ruckig.Ruckig(n), ruckig.Trajectory(n)
        self._all_input = _input(limits)
        self._all_input.minimum_duration = horizon
        self._in_time = horizon * (1 + 1e-9)
        # How often plans are followed, how often they have been, for which axes, and to which state.
        self._most_steps = max(1, int(PLAN_PERIOD / period * (1 + 1e-9)))
        self._steps, self._covered = 0, np.zeros(n, dtype=bool)
        self._stepped: AxisState | None = None
        # Axes with a plan of their own, and how fast the frame moves in which it is.
        self._planner, self._plans = ruckig.Ruckig(1), [ruckig.Trajectory(1) for _ in range(n)]
        self._own: dict[int, float] = {}
        self._inputs = [_input(limits, slice(axis, axis + 1)) for axis in range(n)]
        self._target_velocity = limits.velocity * VELOCITY_MARGIN
        self._most_acceleration = limits.acceleration * (1 + 1e-9)
        self.reset(np.clip(np.zeros(n), limits.lower, limits.upper))

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
        # The sum is quick, and may overflow.
        if not math.isfinite(position.sum() + velocity.sum()) and not (
            np.isfinite(position).all() and np.isfinite(velocity).all()
        ):
            raise ValueError(f"set-point is not finite: {position.tolist()}, {velocity.tolist()}")
        inside = np.minimum(np.maximum(position, self.limits.lower), self.limits.upper)
        slow = np.minimum(np.maximum(velocity, -self._target_velocity), self._target_velocity)
        # At a position bound the only velocity that stays inside is zero.
        slow = np.where(inside == position, slow, 0.0)
        self.clamps += (inside != position) | (slow != velocity)

        before = self.state
        after, found = self._towards(inside, slow)
        # Bounds widen to where the robot already is, and narrow again as it moves inside.
        lower = np.minimum(self.limits.lower - POSITION_TOLERANCE, before.position)
        upper = np.maximum(self.limits.upper + POSITION_TOLERANCE, before.position)
        if not found.all():
            after = self._or_brake(after, found)
        _, lowest, highest = self._brake.plan(after)
        astray = (lowest < lower) | (highest > upper)
        if astray.any():
            after = self._or_brake(after, ~astray)
            self.clamps += astray
            self._steps = 0
        self.state = self._stepped = after
        return after

    def brake(self) -> AxisState:
        """Move one period towards rest, as fast as acceleration and jerk limits allow."""
        self.state = self._brake.step(self.state, self.period)
        return self.state

    def _or_brake(self, after: AxisState, kept: np.ndarray) -> AxisState:
        """`after` in the axes that are kept, in the others the next step of the brake."""
        state = self.state
        moves = (state.velocity != 0) | (state.acceleration != 0)
        braking = self._brake.step(state, self.period) if (moves & ~kept).any() else state
        return AxisState(
            np.where(kept, after.position, braking.position),
            np.where(kept, after.velocity, braking.velocity),
            np.where(kept, after.acceleration, braking.acceleration),
        )

    def _towards(self, position: np.ndarray, velocity: np.ndarray) -> tuple[AxisState, np.ndarray]:
        """The state one period on, and for which axes a way to it was found. Shape (n,)."""
        if 0 < self._steps < self._most_steps and self.state is self._stepped:
            self._steps += 1
            after, sound = self._along(self._covered)
            if (sound == self._covered).all() and self._along_own(after, sound):
                return after, sound
        self._steps, self._own = 1, {}
        state = self.state
        arrived = np.zeros(len(position), dtype=bool)
        for axis in np.flatnonzero(velocity == 0).tolist():
            arrived[axis] = self._arrived(axis, position[axis])
        todo, late = ~arrived, np.zeros_like(arrived)
        found, after = np.zeros_like(arrived), state
        if todo.any() and self._plan_all(todo, position, velocity):
            if self._all_plan.duration > self._in_time:
                late = todo & (np.array(self._all_plan.independent_min_durations) > self._in_time)
                todo = todo & ~late
                # Without a late axis some duration is impossible to one of them: each for itself.
                again = late.any() and todo.any() and self._plan_all(todo, position, velocity)
                in_time = again and self._all_plan.duration <= self._in_time
            else:
                in_time = True
            if in_time:
                after, found = self._along(todo)
        self._covered = found.copy()
        if after is state:
            after = AxisState(state.position.copy(), state.velocity.copy(), state.acceleration.copy())
        for axis in np.flatnonzero(~(arrived | found)).tolist():
            frame = self._plan_own(axis, position[axis], velocity[axis], bool(late[axis]))
            if frame is not None:
                self._own[axis] = frame
        self._along_own(after, found)
        if not (arrived | found).all():
            self._steps = 0  # some axis brakes, and looks for a way again in the next period
        return after, found

    def _along_own(self, after: AxisState, found: np.ndarray) -> bool:
        """Put axes with plans of their own on them; whether all of these are within the limits there."""
        time = self._steps * self.period
        for axis, frame in self._own.items():
            plan = self._plans[axis]
            position, velocity, acceleration = (value[0] for value in plan.at_time(time))
            position, velocity = position + frame * time, velocity + frame
            found[axis] = sound = (
                plan.duration >= time
                and math.isfinite(position)
                and abs(velocity) <= self.limits.velocity[axis]
                and abs(acceleration) <= self._most_acceleration[axis]
            )
            if sound:
                after.position[axis], after.velocity[axis], after.acceleration[axis] = (
                    position,
                    velocity,
                    acceleration,
                )
        return all(found[axis] for axis in self._own)

    def _along(self, axes: np.ndarray) -> tuple[AxisState, np.ndarray]:
        """The state on the plan of all axes, and in which of `axes` it is within the limits. Shape (n,)."""
        after = AxisState(*map(np.array, self._all_plan.at_time(self._steps * self.period)))
        # False for NaN, too.
        sound = (
            axes
            & (np.abs(after.velocity) <= self.limits.velocity)
            & (np.abs(after.acceleration) <= self._most_acceleration)
            & (np.abs(after.position) < np.inf)
        )
        return after, sound

    def _arrived(self, axis: int, position: float) -> bool:
        # Plans for distances near the rounding of numbers are unsound, and the approach is exponential: the
        # brake ends it.
        state = self.state
        return (
            abs(position - state.position[axis]) < 1e-8
            and abs(state.velocity[axis]) < 1e-6
            and abs(state.acceleration[axis]) < 1e-3
        )

    def _plan_all(self, axes: np.ndarray, position: np.ndarray, velocity: np.ndarray) -> bool:
        """Plan some axes together, to arrive at the horizon or as soon after as all of them can."""
        parameters, state = self._all_input, self.state
        parameters.enabled = axes.tolist()
        parameters.current_position = state.position.tolist()
        parameters.current_velocity = state.velocity.tolist()
        parameters.current_acceleration = state.acceleration.tolist()
        parameters.target_position, parameters.target_velocity = position.tolist(), velocity.tolist()
        return _calculated(self._all_planner, parameters, self._all_plan)

    def _plan_own(self, axis: int, position: float, velocity: float, late: bool) -> float | None:
        """Plan one axis for itself; how fast the plan's frame moves, or None when no way is found.

        late: it is known that the set-point cannot be met in time.
        """
        parameters, plan = self._inputs[axis], self._plans[axis]
        parameters.minimum_duration = self.horizon
        if not late and self._plan_axis(axis, position, velocity, 0.0) and plan.duration <= self._in_time:
            return 0.0
        # Too late for that. The fastest plan to a state in motion may back away from it for a run-up; so the
        # set-point is met on its way, planned in the frame that moves with it.
        parameters.minimum_duration = None
        position -= velocity * self.horizon
        return velocity if self._plan_axis(axis, position, 0.0, velocity) else None

    def _plan_axis(self, axis: int, position: float, velocity: float, frame: float) -> bool:
        """Plan to a position and velocity in a frame that moves with velocity `frame` and is at 0 now."""
        limit, state = self.limits.velocity[axis], self.state
        parameters = self._inputs[axis]
        parameters.max_velocity, parameters.min_velocity = [limit - frame], [-limit - frame]
        parameters.current_position = [state.position[axis]]
        parameters.current_velocity = [state.velocity[axis] - frame]
        parameters.current_acceleration = [state.acceleration[axis]]
        parameters.target_position, parameters.target_velocity = [position], [velocity]
        return _calculated(self._planner, parameters, self._plans[axis])


def _input(limits: Limits, axes: slice = slice(None)) -> ruckig.InputParameter:
    """Parameters of a plan that comes to its end without acceleration."""
    velocity = limits.velocity[axes].tolist()
    parameters = ruckig.InputParameter(len(velocity))
    parameters.max_velocity = velocity
    parameters.max_acceleration = limits.acceleration[axes].tolist()
    parameters.max_jerk = limits.jerk[axes].tolist()
    parameters.target_acceleration = [0.0] * len(velocity)
    return parameters


def _calculated(planner: ruckig.Ruckig, parameters: ruckig.InputParameter, plan: ruckig.Trajectory) -> bool:
    try:
        result = planner.calculate(parameters, plan)
    except ruckig.RuckigError:
        return False
    return result in (ruckig.Result.Working, ruckig.Result.Finished)


__all__ = ["AxisState", "JointTracker", "Limits", "MotionError"]
