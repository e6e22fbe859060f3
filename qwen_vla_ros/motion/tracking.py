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
        # All axes in one call where it serves, those that are late in another, what is left each for itself.
        n = len(limits)
        self._all_planner, self._all_plan = ruckig.Ruckig(n), ruckig.Trajectory(n)
        self._all_input = _input(limits)
        self._all_input.minimum_duration = horizon
        self._late_plan, self._late_input = ruckig.Trajectory(n), _input(limits)
        self._late_input.synchronization = ruckig.Synchronization.No
        self._planner, self._plan = ruckig.Ruckig(1), ruckig.Trajectory(1)
        self._inputs = [_input(limits, slice(axis, axis + 1)) for axis in range(n)]
        self._in_time = horizon * (1 + 1e-9)
        # How long after a plan the states are due for which it is followed. Shape (m, 1).
        most = max(1, int(PLAN_PERIOD / period * (1 + 1e-9)))
        self._times = period * np.arange(1, most + 1)[:, None]
        self._due = self._times[:, 0].tolist()
        # Those that are left, the next one last; the one that was taken; what of the set-point was clamped.
        self._ahead: list[AxisState] = []
        self._stepped: AxisState | None = None
        self._clamped = np.zeros(n, dtype=bool)
        self._lowest, self._highest = limits.lower - POSITION_TOLERANCE, limits.upper + POSITION_TOLERANCE
        # Of set-points: position and velocity. Shapes (2, n).
        slow = limits.velocity * VELOCITY_MARGIN
        self._low, self._high = np.array([limits.lower, -slow]), np.array([limits.upper, slow])
        # Of states: any number, velocity and acceleration. Shape (3, n).
        numbers = np.full(n, np.finfo(float).max)
        self._most = np.array([numbers, limits.velocity, limits.acceleration * (1 + 1e-9)])
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
        target = self._within_limits(position, velocity)
        if not self.goes_on:
            self._plan_to(target)
        return self.go_on()

    def prepare(self, position, velocity) -> None:
        """Do what `step` towards the same set-point would, but move: it then only takes what was planned.

        Raises as `step` does.
        """
        self._plan_to(self._within_limits(position, velocity))

    def _within_limits(self, position, velocity) -> np.ndarray:
        """A set-point, clamped. Shape (2, n).

        Bounds widen to where the robot already is: what begins outside comes in as fast as it is asked to.
        """
        position = np.asarray(position, dtype=float)
        velocity = np.zeros_like(position) if velocity is None else np.asarray(velocity, dtype=float)
        if position.shape != self.limits.lower.shape or velocity.shape != position.shape:
            raise ValueError(
                f"set-point shapes {position.shape}, {velocity.shape}, expected ({len(self.limits)},)"
            )
        asked = np.array([position, velocity])
        # The sum is quick, and may overflow.
        if not math.isfinite(np.add.reduce(asked, axis=None)) and not np.isfinite(asked).all():
            raise ValueError(f"set-point is not finite: {position.tolist()}, {velocity.tolist()}")
        target = np.minimum(np.maximum(asked, self._low), self._high)
        here = self.state.position
        np.clip(position, np.minimum(self._low[0], here), np.maximum(self._high[0], here), out=target[0])
        # At a position bound the only velocity that stays inside is zero.
        np.copyto(target[1], 0.0, where=target[0] != position)
        self._clamped = np.logical_or.reduce(target != asked)
        return target

    def _plan_to(self, target: np.ndarray) -> None:
        states = self._safe(self._towards(target))
        self._ahead, self._stepped = [AxisState(*state) for state in states[::-1]], self.state

    @property
    def goes_on(self) -> bool:
        """Whether the next period has been planned."""
        return bool(self._ahead) and self.state is self._stepped

    def go_on(self) -> AxisState:
        """Move one period further along the plan, without a look at the set-point; only where `goes_on`."""
        self.clamps += self._clamped
        self.state = self._stepped = after = self._ahead.pop()
        return after

    def forget(self) -> None:
        """Follow no plan that was made before."""
        self._ahead = []

    def brake(self) -> AxisState:
        """Move one period towards rest, as fast as acceleration and jerk limits allow."""
        self.state = self._brake.step(self.state, self.period)
        return self.state

    def _or_brake(self, states: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """States to come, in the axes that are not kept those of the brake. Shape (m, 3, n).

        Only the next one where such an axis moves: it looks for a way again from there.
        """
        here = self._here
        if np.count_nonzero(here[1:, ~kept]):
            braking = self._brake.step(self.state, self.period)
            here = np.array([braking.position, braking.velocity, braking.acceleration])
            states = states[:1]
        return np.where(kept, states, here)

    def _safe(self, states: np.ndarray) -> np.ndarray:
        """As many of the states to come as the brake keeps inside the bounds from, one at least."""
        reach = self._brake.reach(states[:, 1], states[:, 2])
        inside = (states[:, 0] - reach >= self._lowest) & (states[:, 0] + reach <= self._highest)
        if np.count_nonzero(inside) == inside.size:
            return states
        before = self.state.position
        for k, state in enumerate(states):
            # Bounds widen to where the robot already is, and narrow again as it moves inside.
            lower, upper = np.minimum(self._lowest, before), np.maximum(self._highest, before)
            _, lowest, highest = self._brake.plan(AxisState(*state))
            astray = (lowest < lower) | (highest > upper)
            if astray.any():
                if k:
                    return states[:k]
                self.clamps += astray
                return self._or_brake(states[:1], ~astray)
            before = state[0]
        return states

    def _towards(self, target: np.ndarray) -> np.ndarray:
        """States on the way to a position and velocity, shape (2, n), a period from one to the next.

        Shape (m, 3, n).
        """
        state = self.state
        self._here = np.array([state.position, state.velocity, state.acceleration])
        # Numbers and truths of few axes are quicker as lists.
        goals, speeds = target.tolist()
        now = self._now = self._here.tolist()
        # Plans for distances near the rounding of numbers are unsound, and the approach is exponential: the
        # brake ends it.
        arrived = [
            v == 0.0 and abs(p - at) < 1e-8 and abs(moves) < 1e-6 and abs(speeds_up) < 1e-3
            for p, v, at, moves, speeds_up in zip(goals, speeds, *now, strict=True)
        ]
        todo, late, in_time = [not done for done in arrived], [False] * len(arrived), False
        if not all(arrived):
            parameters, plan = self._all_input, self._all_plan
            (
                parameters.current_position,
                parameters.current_velocity,
                parameters.current_acceleration,
            ) = now
            parameters.target_position, parameters.target_velocity = goals, speeds
            if self._plan_all(todo):
                in_time = plan.duration <= self._in_time
                if not in_time:
                    late = [
                        asked and needs > self._in_time
                        for asked, needs in zip(todo, plan.independent_min_durations, strict=True)
                    ]
                    todo = [asked and not too for asked, too in zip(todo, late, strict=True)]
                    # Without a late axis some duration is impossible to one of them: each for itself.
                    in_time = (
                        any(late) and any(todo) and self._plan_all(todo) and plan.duration <= self._in_time
                    )
        if in_time:
            states, sought = self._along(plan), np.array(todo)
        else:
            states, sought = np.repeat(self._here[None], len(self._times), axis=0), np.zeros(len(todo), bool)
        if any(late) and self._plan_late(late, target):
            states, lasts = self._catching_up(states, np.array(late), target[1])
            sound = self._within(states) & (sought | lasts)
        else:
            sound = self._within(states) & sought
        if np.count_nonzero(sound) == sound.size:
            return states
        for axis, found in enumerate(sound[0].tolist()):
            if not (found or arrived[axis]):
                self._alone(axis, goals[axis], speeds[axis], late[axis], states, sound)
        found = sound[0]
        if len(states) > 1:
            lost = (sound != found).any(axis=1)
            if not (arrived | found).all():
                states = states[:1]
            elif lost.any():
                states = states[: int(np.argmax(lost))]
        return self._or_brake(states, found)

    def _catching_up(
        self, states: np.ndarray, late: np.ndarray, frame: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """States with those of `_plan_late`, and where that lasts. Shapes (m, 3, n), (m, n)."""
        way = self._along(self._late_plan)
        way[:, 0] += frame * self._times
        way[:, 1] += frame
        lasts = np.array(self._late_plan.independent_min_durations) >= self._times
        return np.where(late, way, states), late & lasts

    def _alone(
        self, axis: int, position: float, velocity: float, late: bool, states: np.ndarray, sound: np.ndarray
    ) -> None:
        """Fill in states of an axis by a plan for it alone, where there is one, and where they are sound."""
        frame = self._plan_own(axis, position, velocity, late)
        if frame is not None:
            way, times = self._along(self._plan)[:, :, 0], self._times[:, 0]
            way[:, 0] += frame * times
            way[:, 1] += frame
            states[:, :, axis] = way
            sound[:, axis] = (self._plan.duration >= times) & self._within(states)[:, axis]

    def _along(self, plan: ruckig.Trajectory) -> np.ndarray:
        """What a plan says for the times when states are due. Shape (m, 3, n)."""
        return np.array([plan.at_time(time) for time in self._due])

    def _within(self, states: np.ndarray) -> np.ndarray:
        """Where states, shape (m, 3, n), are finite and keep velocity and acceleration. Shape (m, n)."""
        # False for NaN, too.
        return np.logical_and.reduce(np.abs(states) <= self._most, axis=1)

    def _plan_all(self, axes: list[bool]) -> bool:
        """Plan some axes together, to arrive at the horizon or as soon after as all of them can."""
        self._all_input.enabled = axes
        return _calculated(self._all_planner, self._all_input, self._all_plan)

    def _plan_late(self, axes: list[bool], target: np.ndarray) -> bool:
        """Plan axes that cannot meet their set-points in time, as soon as each can.

        The fastest plan to a state in motion may back away from it for a run-up; so the set-point is met on
        its way, planned in the frame that moves with it.
        """
        parameters, limit, (position, velocity) = self._late_input, self.limits.velocity, target
        parameters.enabled = axes
        parameters.max_velocity = (limit - velocity).tolist()
        parameters.min_velocity = (-limit - velocity).tolist()
        parameters.current_position, _, parameters.current_acceleration = self._now
        parameters.current_velocity = (self._here[1] - velocity).tolist()
        parameters.target_position = (position - velocity * self.horizon).tolist()
        return _calculated(self._all_planner, parameters, self._late_plan)

    def _plan_own(self, axis: int, position: float, velocity: float, late: bool) -> float | None:
        """Plan one axis for itself; how fast the plan's frame moves, or None when no way is found.

        late: it is known that the set-point cannot be met in time.
        """
        parameters = self._inputs[axis]
        parameters.minimum_duration = self.horizon
        if (
            not late
            and self._plan_axis(axis, position, velocity, 0.0)
            and self._plan.duration <= self._in_time
        ):
            return 0.0
        # As `_plan_late` does it.
        parameters.minimum_duration = None
        position -= velocity * self.horizon
        return velocity if self._plan_axis(axis, position, 0.0, velocity) else None

    def _plan_axis(self, axis: int, position: float, velocity: float, frame: float) -> bool:
        """Plan to a position and velocity in a frame that moves with velocity `frame` and is at 0 now."""
        limit, (at, moves, speeds_up) = self.limits.velocity[axis], self._here[:, axis]
        parameters = self._inputs[axis]
        parameters.max_velocity, parameters.min_velocity = [limit - frame], [-limit - frame]
        parameters.current_position, parameters.current_velocity = [at], [moves - frame]
        parameters.current_acceleration = [speeds_up]
        parameters.target_position, parameters.target_velocity = [position], [velocity]
        return _calculated(self._planner, parameters, self._plan)


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
