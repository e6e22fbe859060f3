# SPDX-License-Identifier: Apache-2.0
"""What ros2_control's controllers do with commands: refuse, replace, interpolate, time out.

Defaults are those of ros2_controllers in Jazzy and Kilted. All times are in seconds of one clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen_vla_ros.motion.base import BaseTracker


class ControllerError(ValueError):
    """A command that the controller refuses; what it did before goes on."""


@dataclass(frozen=True)
class TrajectoryPoint:
    """trajectory_msgs/JointTrajectoryPoint: [s] from the trajectory's start, [rad] or [m], and per second."""

    time_from_start: float
    positions: Sequence[float]
    velocities: Sequence[float] = ()
    accelerations: Sequence[float] = ()


class JointTrajectoryController:
    """joint_trajectory_controller with a position command interface.

    Between two points: linear, cubic where both have velocities, quintic where both have accelerations too.
    A new trajectory replaces the one before at once and starts from the measured state, or from the last
    set-point with `interpolate_from_desired_state`, which streams of short trajectories need.
    After the last point it holds.

    Args:
        joints: names (n,), the order of sample().
        positions: where the joints are; they are held until the first trajectory. Shape (n,).
        allow_partial_joints_goal: accept some of the joints; the others stay where they are measured.
        allow_nonzero_velocity_at_trajectory_end: accept a last point that moves.
    """

    def __init__(
        self,
        joints: Sequence[str],
        positions: Sequence[float] | np.ndarray,
        *,
        allow_partial_joints_goal: bool = False,
        interpolate_from_desired_state: bool = False,
        allow_nonzero_velocity_at_trajectory_end: bool = False,
    ) -> None:
        self.joints = tuple(joints)
        self._partial = allow_partial_joints_goal
        self._from_desired = interpolate_from_desired_state
        self._moving_end = allow_nonzero_velocity_at_trajectory_end
        self.hold(positions)

    def hold(self, positions: Sequence[float] | np.ndarray) -> None:
        """Drop the trajectory and hold `positions` (n,)."""
        hold = np.array(positions, dtype=float)
        if hold.shape != (len(self.joints),):
            raise ControllerError(f"{len(self.joints)} joints need as many positions; found {hold.shape}")
        self._times = np.array([-np.inf])
        # Position, velocity, acceleration per point; NaN where a point does not give one. Shape (m, 3, n).
        self._states = np.zeros((1, 3, len(self.joints)))
        self._states[0, 0] = hold

    def accept(
        self,
        joints: Sequence[str],
        points: Sequence[TrajectoryPoint],
        stamp: float,
        now: float,
        positions: Sequence[float] | np.ndarray,
        velocities: Sequence[float] | np.ndarray | None = None,
    ) -> None:
        """Replace what is being followed. stamp: when the trajectory starts, 0 for now.

        positions, velocities: measured, shape (n,). Raises ControllerError.
        """
        columns = self._columns(joints)
        self._check(joints, points, stamp, now)
        if self._from_desired:
            before = self._state(now)
        else:
            before = np.zeros((3, len(self.joints)))
            before[0] = positions
            before[1] = 0.0 if velocities is None else velocities
            before[2] = np.nan
        start = now if stamp == 0.0 else stamp
        states = np.zeros((len(points) + 1, 3, len(self.joints)))
        states[:, 0] = positions
        states[0] = before
        for state, point in zip(states[1:], points, strict=True):
            for row, values in enumerate((point.positions, point.velocities, point.accelerations)):
                state[row, columns] = values if len(values) else np.nan
        times = np.array([now, *(start + point.time_from_start for point in points)])
        # A first point that is already past leaves no time to go to it from the state before.
        first = 1 if times[1] <= now else 0
        self._times, self._states = times[first:], states[first:]

    def sample(self, t: float) -> np.ndarray:
        """Set-points (n,) at time t [rad or m]."""
        return self._state(t)[0]

    def _state(self, t: float) -> np.ndarray:
        """Position, velocity and acceleration at time t, shape (3, n)."""
        index = int(np.searchsorted(self._times, t, side="right"))
        if index == len(self._times):
            end = self._states[-1].copy()
            end[1:] = 0.0
            return end
        index = max(index, 1)
        a, b = self._states[index - 1], self._states[index]
        whole = self._times[index] - self._times[index - 1]
        return _interpolate(a, b, whole, float(np.clip(t - self._times[index - 1], 0.0, whole)))

    def _columns(self, joints: Sequence[str]) -> list[int]:
        if not joints:
            raise ControllerError("trajectory without joint names")
        unknown = [name for name in joints if name not in self.joints]
        if unknown:
            raise ControllerError(f"unknown joints {unknown}; the controller has {list(self.joints)}")
        if len(set(joints)) != len(joints):
            raise ControllerError(f"a joint is named twice: {list(joints)}")
        missing = [name for name in self.joints if name not in joints]
        if missing and not self._partial:
            raise ControllerError(f"joints {missing} are missing, and partial goals are not allowed")
        return [self.joints.index(name) for name in joints]

    def _check(
        self, joints: Sequence[str], points: Sequence[TrajectoryPoint], stamp: float, now: float
    ) -> None:
        if not points:
            raise ControllerError("empty trajectory")
        before = -np.inf
        for index, point in enumerate(points):
            if len(point.positions) != len(joints):
                raise ControllerError(
                    f"point {index}: {len(point.positions)} positions for {len(joints)} joints"
                )
            for what in ("velocities", "accelerations"):
                values = getattr(point, what)
                if len(values) not in (0, len(joints)):
                    raise ControllerError(f"point {index}: {len(values)} {what} for {len(joints)} joints")
            values = [point.time_from_start, *point.positions, *point.velocities, *point.accelerations]
            if not np.isfinite(values).all():
                raise ControllerError(f"point {index}: a number is not finite")
            if point.time_from_start < 0.0 or point.time_from_start <= before:
                raise ControllerError(
                    f"point {index}: time_from_start {point.time_from_start:g} s does not follow {before:g} s"
                )
            before = point.time_from_start
        if any(points[-1].velocities) and not self._moving_end:
            raise ControllerError("the last point has a velocity other than zero")
        if stamp != 0.0 and stamp + before < now:
            raise ControllerError(f"the trajectory ended {now - stamp - before:.3f} s ago")


def _interpolate(a: np.ndarray, b: np.ndarray, whole: float, t: float) -> np.ndarray:
    """State (3, n) at t of the lowest polynomial that meets what both states (3, n) give."""
    given = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    if not given[1]:
        rate = (b[0] - a[0]) / whole
        return np.stack([a[0] + rate * t, rate, np.zeros_like(rate)])
    known = 3 if given[2] else 2
    # Unknown: coefficients of s^0, s^1, ... with s = t / whole. Rows: derivatives at s = 0, then at s = 1.
    degree = 2 * known
    powers = np.arange(degree)
    matrix = np.zeros((degree, degree))
    values = np.zeros((degree, a.shape[1]))
    factor = np.ones(degree)
    derivatives = []
    for order in range(3):
        derivatives.append(factor.copy())
        if order < known:
            matrix[order, order] = factor[order]
            matrix[known + order] = factor
            values[order] = a[order] * whole**order
            values[known + order] = b[order] * whole**order
        factor = factor * np.clip(powers - order, 0, None)
    coefficients = np.linalg.solve(matrix, values)
    s = t / whole
    state = np.zeros((3, a.shape[1]))
    for order in range(3):
        exponents = np.clip(powers - order, 0, None)
        state[order] = (derivatives[order] * s**exponents) @ coefficients / whole**order
    return state


class ForwardCommandController:
    """forward_command_controller: one number per joint, kept until the next.

    Args:
        joints: names (n,).
        positions: set-points until the first command. Shape (n,).
    """

    def __init__(self, joints: Sequence[str], positions: Sequence[float] | np.ndarray) -> None:
        self.joints = tuple(joints)
        self._command = np.zeros(len(self.joints))
        self.accept(positions)

    def accept(self, data: Sequence[float] | np.ndarray) -> None:
        """std_msgs/Float64MultiArray.data, shape (n,). Raises ControllerError."""
        command = np.array(data, dtype=float)
        if command.shape != self._command.shape:
            raise ControllerError(f"{command.size} numbers for {len(self.joints)} joints {list(self.joints)}")
        if not np.isfinite(command).all():
            raise ControllerError(f"a number is not finite: {command.tolist()}")
        self._command = command

    def sample(self, t: float) -> np.ndarray:
        """Set-points (n,) at time t [rad or m]."""
        return self._command.copy()


class _Drive:
    """A limited velocity that stops when commands stay away.

    speed, acceleration: greatest, of each of its n parts. Shape (n,).
    timeout: how long a command lasts [s].
    """

    def __init__(self, speed: Sequence[float], acceleration: Sequence[float], timeout: float) -> None:
        self._speed = np.array(speed, dtype=float)
        self._acceleration = np.array(acceleration, dtype=float)
        self._timeout = timeout
        self._command = np.zeros(len(self._speed))
        self._until = -np.inf
        self._velocity = np.zeros(len(self._speed))
        self._sampled: float | None = None
        self._measured: float | None = None
        self.pose = np.zeros(3)

    def _accept(self, command: Sequence[float], now: float, stamp: float | None) -> None:
        if not np.isfinite(command).all():
            raise ControllerError(f"velocity {tuple(command)} is not finite")
        sent = stamp or now
        if now - sent > self._timeout:
            raise ControllerError(f"command is {now - sent:.3f} s old; the timeout is {self._timeout:g} s")
        self._command = np.array(command, dtype=float)
        self._until = sent + self._timeout

    def _sample(self, t: float) -> np.ndarray:
        wanted = self._command if t <= self._until else np.zeros(len(self._command))
        wanted = np.clip(wanted, -self._speed, self._speed)
        elapsed = 0.0 if self._sampled is None else max(0.0, t - self._sampled)
        if elapsed > 0.0:
            change = self._acceleration * elapsed
            self._velocity = self._velocity + np.clip(wanted - self._velocity, -change, change)
        self._sampled = t
        return self._velocity


class DiffDriveController(_Drive):
    """diff_drive_controller: a limited velocity that stops when commands stay away, and wheel odometry.

    Args:
        wheel_radius, wheel_separation: [m].
        linear, angular: greatest speed and acceleration: [m/s], [m/s^2]; [rad/s], [rad/s^2].
        timeout: how long a command lasts [s].
    """

    def __init__(
        self,
        wheel_radius: float,
        wheel_separation: float,
        linear: tuple[float, float] = (np.inf, np.inf),
        angular: tuple[float, float] = (np.inf, np.inf),
        timeout: float = 0.5,
    ) -> None:
        super().__init__((linear[0], angular[0]), (linear[1], angular[1]), timeout)
        self._radius = wheel_radius
        self._separation = wheel_separation
        self._wheels: np.ndarray | None = None
        self.twist = np.zeros(2)

    def accept(self, v: float, w: float, now: float, stamp: float | None = None) -> None:
        """A forward speed [m/s] and a turning rate [rad/s]. stamp: of a TwistStamped; 0 and None mean now."""
        self._accept((v, w), now, stamp)

    def sample(self, t: float) -> tuple[float, float]:
        """Forward speed and turning rate to drive with at time t, which must not run back [m/s, rad/s]."""
        v, w = self._sample(t)
        return float(v), float(w)

    def update_odometry(self, left: float, right: float, t: float) -> None:
        """Advance pose (x, y, yaw) [m, rad] and twist (v, w) by wheel angles [rad] measured at time t."""
        wheels = np.array([left, right])
        if self._wheels is not None and self._measured is not None and t > self._measured:
            travel = (wheels - self._wheels) * self._radius
            forward = travel.mean()
            turn = (travel[1] - travel[0]) / self._separation
            # Exact for a constant velocity: the chord of the arc, at half its turn.
            chord = forward * np.sinc(turn / (2 * np.pi))
            heading = self.pose[2] + turn / 2
            self.pose = self.pose + np.array([chord * np.cos(heading), chord * np.sin(heading), turn])
            self.twist = np.array([forward, turn]) / (t - self._measured)
        if self._measured is None or t > self._measured:
            self._wheels, self._measured = wheels, t


class SlidingDriveController(_Drive):
    """What stands for the driver of a base without wheels in its model; odometry is where the base is.

    Args:
        linear, angular: greatest speed and acceleration: [m/s], [m/s^2]; [rad/s], [rad/s^2].
        aside: whether it moves sideways.
        timeout: how long a command lasts [s].
    """

    def __init__(
        self,
        linear: tuple[float, float],
        angular: tuple[float, float],
        aside: bool,
        timeout: float = 0.5,
    ) -> None:
        sideways = linear[0] if aside else 0.0
        super().__init__((linear[0], sideways, angular[0]), (linear[1], linear[1], angular[1]), timeout)
        self.twist = np.zeros(3)

    def accept(self, velocity: Sequence[float], now: float, stamp: float | None = None) -> None:
        """(forward, to the left, turning) [m/s, m/s, rad/s]. stamp: 0 and None mean now."""
        self._accept(velocity, now, stamp)

    def sample(self, t: float) -> tuple[float, float, float]:
        """What to drive with at time t, which must not run back, as in accept()."""
        x, y, w = self._sample(t)
        return float(x), float(y), float(w)

    def update_odometry(self, pose: np.ndarray, t: float) -> None:
        """Take a pose (x, y, yaw) [m, m, rad] measured at time t, and the twist since the one before."""
        if self._measured is not None and t > self._measured:
            change = pose - self.pose
            change[2] = (change[2] + np.pi) % (2 * np.pi) - np.pi
            c, s = np.cos(pose[2]), np.sin(pose[2])
            ahead, left = c * change[0] + s * change[1], c * change[1] - s * change[0]
            self.twist = np.array([ahead, left, change[2]]) / (t - self._measured)
        if self._measured is None or t > self._measured:
            self.pose, self._measured = np.array(pose), t


class PathDriver:
    """What stands for a navigation stack: drives along a path, to be at each pose when it is due.

    A path of one pose, and the end of a path, mean to stay.

    Args:
        drive: takes the velocities, and knows where the base is.
        limits: of the base, as in the embodiment.
        period: between velocities [s].
    """

    def __init__(
        self, drive: DiffDriveController | SlidingDriveController, limits: Any, period: float
    ) -> None:
        linear, angular = limits.linear, limits.angular
        self._drive, self._period = drive, period
        self._tracker = BaseTracker(
            (linear.velocity, angular.velocity),
            (linear.acceleration, angular.acceleration),
            (linear.jerk, angular.jerk),
            period,
        )
        self._poses, self._times = np.zeros((0, 3)), np.zeros(0)
        self._due = -np.inf

    def accept(self, poses: np.ndarray, times: np.ndarray) -> None:
        """Follow a path from now on.

        Args:
            poses: x, y [m], yaw [rad], where the drive counts from. Shape (n, 3).
            times: when each is due [s]. Shape (n,).

        Raises:
            ControllerError: it is empty, not finite, or its times do not rise.
        """
        poses, times = np.array(poses, dtype=float).reshape(-1, 3), np.array(times, dtype=float)
        if not len(poses) or not (np.isfinite(poses).all() and np.isfinite(times).all()):
            raise ControllerError(f"path of {len(poses)} poses, expected some, all of numbers")
        if (np.diff(times) <= 0).any():
            raise ControllerError(f"times of a path do not rise: {times.tolist()}")
        poses[:, 2] = np.unwrap(poses[:, 2])
        self._poses, self._times = poses, times

    def step(self, t: float) -> None:
        """Tell the drive how fast to go at time t, which must not run back."""
        if t < self._due:
            return
        self._due = t + self._period - 1e-9
        if len(self._poses) > 1 and t < self._times[-1]:
            k = min(max(int(np.searchsorted(self._times, t)), 1), len(self._times) - 1)
            span = self._times[k] - self._times[k - 1]
            rate = (self._poses[k] - self._poses[k - 1]) / span
            v, w = self._tracker.step(
                self._poses[k - 1] + rate * (t - self._times[k - 1]), rate, self._drive.pose
            )
        else:
            v, w = self._tracker.brake()
        if isinstance(self._drive, SlidingDriveController):
            self._drive.accept((v, 0.0, w), t)
        else:
            self._drive.accept(v, w, t)
