# SPDX-License-Identifier: Apache-2.0
"""A mobile base: where it was, where its waypoints lie, and the velocity that follows them."""

from __future__ import annotations

from collections import deque

import numpy as np
import ruckig

from .stop import MotionError


def compose(pose, relative) -> np.ndarray:
    """Poses `relative` to `pose`, in the frame of `pose`.

    Args:
        pose: x, y [m], yaw [rad]. Shape (3,).
        relative: shape (..., 3). Yaw is added, not wrapped: a path stays continuous.
    """
    pose, relative = np.asarray(pose, dtype=float), np.asarray(relative, dtype=float)
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    x, y, yaw = np.moveaxis(relative, -1, 0)
    return np.stack([pose[0] + cos * x - sin * y, pose[1] + sin * x + cos * y, pose[2] + yaw], axis=-1)


def relative_to(pose, poses) -> np.ndarray:
    """`poses` in the frame of `pose`: the inverse of `compose`. Shapes (3,), (..., 3)."""
    pose, poses = np.asarray(pose, dtype=float), np.asarray(poses, dtype=float)
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    x, y, yaw = np.moveaxis(poses - pose, -1, 0)
    return np.stack([cos * x + sin * y, cos * y - sin * x, yaw], axis=-1)


def wrap(angle):
    """The same angle in [-pi, pi). Any shape."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


class History:
    """Values by stamp, for looking back.

    Args:
        width: length n of a value.
        span: how far back is kept [s].
        angles: entries that are angles and are unwrapped as they come. Shape (n,), bool.
    """

    def __init__(self, width: int, span: float, angles=None):
        self._width = width
        self._span = span
        self._angles = np.zeros(width, dtype=bool) if angles is None else np.array(angles, dtype=bool)
        self._turning = bool(self._angles.any())
        self._entries: deque[tuple[float, np.ndarray]] = deque()

    def clear(self) -> None:
        self._entries.clear()

    def add(self, stamp: float, value) -> None:
        """Keep a value, shape (n,). Stamps that go back drop what lies after them (a clock that was reset).

        Raises:
            ValueError: on a wrong shape, or a stamp or value that is not finite.
        """
        value = np.array(value, dtype=float)
        if value.shape != (self._width,) or not np.isfinite(value).all() or not np.isfinite(stamp):
            raise ValueError(f"expected {self._width} finite values, found {value.tolist()} at {stamp} s")
        while self._entries and self._entries[-1][0] >= stamp:
            self._entries.pop()
        if self._entries and self._turning:
            last = self._entries[-1][1]
            turn = value - last
            value = np.where(self._angles, last + (turn + np.pi) % (2 * np.pi) - np.pi, value)
        self._entries.append((stamp, value))
        while self._entries[0][0] < stamp - self._span:
            self._entries.popleft()

    @property
    def newest(self) -> tuple[float, np.ndarray] | None:
        """Stamp [s] and value, or None."""
        return self._entries[-1] if self._entries else None

    def at(self, stamp: float) -> np.ndarray | None:
        """The value at `stamp`, interpolated; the nearest end outside of what is kept; None when empty."""
        if not self._entries:
            return None
        after = None
        for time, value in reversed(self._entries):
            if time <= stamp:
                if after is None:
                    return value.copy()
                share = (stamp - time) / (after[0] - time)
                return value + share * (after[1] - value)
            after = (time, value)
        return self._entries[0][1].copy()


class VelocityRamp:
    """Velocities that reach their targets within velocity, acceleration and jerk limits.

    Args:
        velocity, acceleration, jerk: limits per axis. Shape (n,).
        period: time between steps [s].
    """

    def __init__(self, velocity, acceleration, jerk, period: float):
        self._limit = np.array(velocity, dtype=float)
        n = len(self._limit)
        self.period = period
        self.clamps = np.zeros(n, dtype=int)
        self._planner = ruckig.Ruckig(n)
        self._plan = ruckig.Trajectory(n)
        self._input = ruckig.InputParameter(n)
        self._input.control_interface = ruckig.ControlInterface.Velocity
        self._input.synchronization = ruckig.Synchronization.No
        self._input.max_acceleration = list(map(float, acceleration))
        self._input.max_jerk = list(map(float, jerk))
        self._input.current_position = [0.0] * n
        self._input.target_acceleration = [0.0] * n
        self.reset()

    def reset(self, velocity=None) -> None:
        """Start from a velocity, zero when left out, with no acceleration. Shape (n,)."""
        self.velocity = np.zeros_like(self._limit) if velocity is None else np.array(velocity, dtype=float)
        self.acceleration = np.zeros_like(self._limit)

    @property
    def state(self) -> tuple[np.ndarray, np.ndarray]:
        """Velocity and acceleration. Shapes (n,)."""
        return self.velocity, self.acceleration

    def restore(self, state: tuple[np.ndarray, np.ndarray]) -> None:
        """Be as before: a `state` that was kept."""
        self.velocity, self.acceleration = state

    @property
    def resting(self) -> bool:
        return bool((np.abs(self.velocity) < 1e-6).all() and (np.abs(self.acceleration) < 1e-4).all())

    def step(self, target) -> np.ndarray:
        """Velocity one period on, towards `target`. Shape (n,).

        Raises:
            ValueError: when the target is not finite; the state is unchanged.
            MotionError: when no ramp can be computed.
        """
        target = np.asarray(target, dtype=float)
        if target.shape != self._limit.shape or not np.isfinite(target).all():
            raise ValueError(
                f"target velocity must be {len(self._limit)} finite values, found {target.tolist()}"
            )
        inside = np.clip(target, -self._limit, self._limit)
        self.clamps += inside != target
        self._input.current_velocity = self.velocity.tolist()
        self._input.current_acceleration = self.acceleration.tolist()
        self._input.target_velocity = inside.tolist()
        try:
            result = self._planner.calculate(self._input, self._plan)
        except ruckig.RuckigError as error:
            raise MotionError(f"no velocity ramp: {error}") from error
        if result not in (ruckig.Result.Working, ruckig.Result.Finished):
            raise MotionError(
                f"no velocity ramp to {inside.tolist()} from {self.velocity.tolist()}: {result}"
            )
        durations = np.array(self._plan.independent_min_durations)
        _, velocity, acceleration = (np.array(value) for value in self._plan.at_time(self.period))
        done = durations <= self.period
        # The ramp of the velocity interface may pass its target while acceleration dies out; the limit holds.
        self.velocity = np.clip(np.where(done, inside, velocity), -self._limit, self._limit)
        self.acceleration = np.where(done, 0.0, acceleration)
        return self.velocity

    def brake(self) -> np.ndarray:
        """Velocity one period on, towards rest. Shape (n,)."""
        return self.step(np.zeros_like(self._limit))


class BaseTracker:
    """Velocity of a base that follows poses in the odometry frame: (v, w), or (vx, vy, w) of one that is
    omnidirectional.

    Feed-forward of the reference's velocity plus feedback: for a differential drive that of Kanayama et al.
    (ICRA 1990), else in proportion.

    Args:
        velocity, acceleration, jerk: limits of v [m/s] and w [rad/s], shape (2,), or vx, vy, w, shape (3,).
        period: time between steps [s].
        along, across, turn: feedback gains [1/s], [1/m^2], [1/m].
    """

    def __init__(
        self,
        velocity,
        acceleration,
        jerk,
        period: float,
        along: float = 1.5,
        across: float = 6.0,
        turn: float = 4.0,
    ):
        self.ramp = VelocityRamp(velocity, acceleration, jerk, period)
        self._gains = along, across, turn

    @property
    def velocity(self) -> np.ndarray:
        """Commanded v [m/s] and w [rad/s]. Shape (2,) or (3,)."""
        return self.ramp.velocity

    def step(self, reference, reference_velocity, measured) -> np.ndarray:
        """One period on.

        Args:
            reference: x, y [m], yaw [rad] in the odometry frame. Shape (3,).
            reference_velocity: its time derivative. Shape (3,).
            measured: pose from odometry. Shape (3,).

        Returns:
            v [m/s], w [rad/s]. Shape (2,) or (3,).

        Raises:
            ValueError: when an argument is not finite; the state is unchanged.
        """
        values = [np.asarray(value, dtype=float) for value in (reference, reference_velocity, measured)]
        if not all(value.shape == (3,) and np.isfinite(value).all() for value in values):
            raise ValueError(f"reference, its velocity and pose must be 3 finite values each, found {values}")
        reference, rate, measured = values
        cos, sin = np.cos(measured[2]), np.sin(measured[2])
        dx, dy = reference[:2] - measured[:2]
        ahead, left = cos * dx + sin * dy, -sin * dx + cos * dy
        turn = wrap(reference[2] - measured[2])
        v_ff = rate[0] * np.cos(reference[2]) + rate[1] * np.sin(reference[2])
        along, across, turning = self._gains
        if len(self.velocity) == 3:
            forward, sideways = cos * rate[0] + sin * rate[1], cos * rate[1] - sin * rate[0]
            return self.ramp.step([forward + along * ahead, sideways + along * left, rate[2] + along * turn])
        v = v_ff * np.cos(turn) + along * ahead
        # Regulating the heading must not depend on moving, or a turn on the spot would never end.
        w = rate[2] + v_ff * across * left + turning * max(abs(v_ff), 0.5) * np.sin(turn)
        return self.ramp.step([v, w])

    def brake(self) -> np.ndarray:
        """Velocity one period on, towards rest. Shape (2,) or (3,)."""
        return self.ramp.brake()
