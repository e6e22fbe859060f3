# SPDX-License-Identifier: Apache-2.0
"""The action groups of a body: what rows of a chunk mean, and how each kind is driven."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen_vla_ros.embodiment import Embodiment

from . import rotations
from .base import BaseTracker, History, VelocityRamp, compose, relative_to, wrap
from .kinematics import Kinematics, KinematicsError, UrdfKinematics, approach
from .route import REACTION, PathCommand, Route
from .stop import AxisState, Escape, Limits, MotionError
from .timeline import ChunkRefused, Timeline
from .tracking import JointTracker

JOINT_KINDS = ("joint_position", "gripper", "hand")
# What holds an object is off its command, and must stay so.
GRIPPING = ("gripper", "hand")

# A joint that rests further from its command was moved by others [rad], [m]; less may be droop and backlash.
# So was one that stood, and then stands somewhere else.
MOVED_BY = {"rad": 0.3, "m": 0.06}
SHIFTED_BY = {"rad": 0.05, "m": 0.01}

# A joint stands that moved less than this in `STILL` [s]: what it still goes is then far less than a shift.
STILL, STANDING = 0.1, {"rad": 0.01, "m": 0.001}

# Share of the speed limit at which a tip is led: the joints that follow it may be faster than it.
LEAD_SPEED = 0.8

# A tip is led this far inside its box, since the joints that follow stray a little from a straight line; one
# that starts outside may stray as far before it comes in [m].
STRAY = 0.005

# A box or a position may be missed by rounding [m] or [rad].
ROUNDING = 1e-9


class UnsupportedGroup(ValueError):
    """An action group that cannot be moved as it is described; the text says which, why and what it needs."""


@dataclass(frozen=True)
class JointCommand:
    """What a controller of joints is told.

    Attributes:
        group: name of the action group.
        position: set-point one period from now, as in joint states. Shape (n,).
        velocity: its velocity. Shape (n,).
        pose: of the tip, where the group has one: x, y, z [m], w, x, y, z. Shape (7,).
        twist: of the tip, from the pose of the command before: linear [m/s], angular [rad/s]. Shape (6,).
    """

    group: str
    position: np.ndarray
    velocity: np.ndarray
    pose: np.ndarray | None = None
    twist: np.ndarray | None = None


@dataclass(frozen=True)
class BaseCommand:
    """What a base is told.

    Attributes:
        group: name of the action group.
        velocity: v [m/s] and w [rad/s], shape (2,); of an omnidirectional base vx, vy, w, shape (3,).
    """

    group: str
    velocity: np.ndarray


Command = JointCommand | BaseCommand | PathCommand


class Joints:
    """The joints of all groups that are told joints: one plan for all costs little more than one for each.

    Groups say where to, or `go_on` that they need not; `advance` goes there.

    Args:
        limits: of each group.

    Attributes:
        groups: how many there are.
    """

    def __init__(self, limits: Sequence[Limits], period: float, look_ahead: float):
        self.groups = len(limits)
        self.tracker = JointTracker(Limits.joined(limits), period, look_ahead)
        self._position, self._velocity = np.zeros((2, len(self.tracker.limits)))
        self._next: Callable[[], object] = self.tracker.brake

    @property
    def resting(self) -> bool:
        return self.tracker.state.resting

    @property
    def goes_on(self) -> bool:
        return self.tracker.goes_on

    def start(self, part: slice, position: np.ndarray) -> None:
        """A group rests at a position. Shape (n,)."""
        whole = self.tracker.state.position.copy()
        whole[part] = position
        self.tracker.reset(whole)

    def aim(self, part: slice, position: np.ndarray, velocity: np.ndarray) -> None:
        """Where a group is to be after the look-ahead, and how fast. Shapes (n,)."""
        self._position[part], self._velocity[part] = position, velocity
        self._next = self._step

    def forget(self) -> None:
        """Plan anew, from where the last command led."""
        self.tracker.forget()

    def go_on(self) -> bool:
        """Go on along the plan next, where it lasts: no group need say where to, and none would be heard."""
        if self.goes_on:
            self._next = self.tracker.go_on
            return True
        return False

    def brake(self) -> None:
        """All joints go one period towards rest next."""
        self._next = self.tracker.brake

    def advance(self) -> None:
        """One period on.

        Raises:
            MotionError: not even braking can be computed.
        """
        self._next()

    def prepare(self) -> None:
        """Plan the next period, as the groups aim now. Raises as `advance` does."""
        self.tracker.prepare(self._position, self._velocity)

    def _step(self) -> None:
        self.tracker.step(self._position, self._velocity)


class JointGroup:
    """Joints, grippers and hands.

    Inside, values are in the unit of the group; joint states and commands are in that of the joints.
    """

    needs_pose = False
    looks_ahead = True
    quaternions: tuple[int, ...] = ()

    def __init__(self, group: Any):
        self.name, self.joints = group.name, group.joints
        self.width = len(group.joints)
        self.held = np.full(self.width, group.kind == "gripper")
        self._grips = group.kind in GRIPPING
        units = ["m" if unit == "m" else "rad" for unit in group.units]
        self._near, self._steady, self._still = (
            np.array([bounds[unit] for unit in units]) for bounds in (MOVED_BY, SHIFTED_BY, STANDING)
        )
        self.continuous = np.array([joint in getattr(group, "continuous", ()) for joint in group.joints])
        self._reference = group.reference
        self._threshold = getattr(group, "threshold", None)
        # Whether rows count from where the group was when it was seen.
        self.relative = self._threshold is None and self._reference != "absolute"
        self._hysteresis = getattr(group, "hysteresis", 0.0)
        self._offset, self._scale = np.zeros(self.width), np.ones(self.width)
        self._scaled = group.unit == "fraction"
        if self._scaled:
            closed, opened = group.opening.T
            self._offset, self._scale = closed, opened - closed
        self.limits = joint_limits(group.limits, self.continuous)

    def join(self, joints: Joints, part: slice) -> None:
        """Be moved as a part of all joints."""
        self._moved, self._part = joints, part

    @property
    def clamps(self) -> np.ndarray:
        return self._moved.tracker.clamps[self._part]

    @property
    def commanded(self) -> np.ndarray:
        """Last set-point, in the unit of the limits. Shape (n,)."""
        return self._moved.tracker.state.position[self._part]

    def observe(self, joints: np.ndarray, pose: np.ndarray | None) -> np.ndarray:
        return (joints - self._offset) / self._scale

    def here(self, pose: np.ndarray | None) -> np.ndarray:
        """Where the last command leaves the group, in the channels of the timeline. Shape (width,)."""
        return self.commanded

    def start(self, joints: np.ndarray, pose: np.ndarray | None) -> None:
        self._moved.start(self._part, self.observe(joints, pose))

    def stands(self, joints: np.ndarray, before: np.ndarray) -> bool:
        """Whether the group does not move; one that grips may. joints, before: as measured, `STILL` apart,
        NaN where unknown. Shapes (n,)."""
        way = joints - before
        return self._grips or bool((np.abs(np.where(self.continuous, wrap(way), way)) < self._still).all())

    def was_moved(self, joints: np.ndarray, stood: np.ndarray) -> bool:
        """Whether others moved the group since its last set-point. joints: as measured; stood: where it came
        to stand then, NaN where it did not. Shapes (n,)."""
        off, shift = joints - self.command().position, joints - stood
        off, shift = (np.abs(np.where(self.continuous, wrap(way), way)) for way in (off, shift))
        return not self._grips and bool(((off > self._near) | (shift > self._steady)).any())

    def resolve(self, rows: np.ndarray, origin: np.ndarray, here: np.ndarray):
        """Absolute set-points of a chunk's rows, and its origin, in the frame of `here`, the present one."""
        if self._threshold is not None:
            return self._switched(rows, here), origin
        if self._reference == "chunk_start":
            rows = rows + origin
        elif self._reference == "previous_step":
            rows = np.cumsum(rows, axis=0) + origin
        if self.continuous.any():
            turned = here + wrap(origin - here)
            path = np.vstack([turned, rows])
            path = turned + np.vstack([np.zeros(self.width), np.cumsum(wrap(np.diff(path, axis=0)), axis=0)])
            rows = np.where(self.continuous, path[1:], rows)
            origin = np.where(self.continuous, turned, origin)
        return rows, origin

    def _switched(self, rows: np.ndarray, here: np.ndarray) -> np.ndarray:
        """A binary gripper: it changes sides beyond the threshold and the hysteresis only."""
        lower, upper = self.limits.lower, self.limits.upper
        opened = here > (lower + upper) / 2
        switched = np.empty_like(rows)
        for k, row in enumerate(rows):
            opened = row > self._threshold + np.where(opened, -self._hysteresis, self._hysteresis)
            switched[k] = np.where(opened, upper, lower)
        return switched

    def express(self, rows: np.ndarray, origin: np.ndarray) -> np.ndarray:
        """The inverse of `resolve`: rows of a chunk whose observation saw `origin`."""
        if self._threshold is not None or self._reference == "absolute":
            return np.where(self.continuous, wrap(rows), rows)
        if self._reference == "chunk_start":
            return rows - origin
        return np.diff(np.vstack([origin, rows]), axis=0)

    def step(self, position: np.ndarray, velocity: np.ndarray, pose: np.ndarray | None) -> None:
        self.lead(position, velocity)

    def inside(self, joints: np.ndarray) -> np.ndarray:
        """Joints in the unit of the limits. Shape (n,)."""
        return self.observe(joints, None)

    def lead(self, position: np.ndarray, velocity: np.ndarray) -> None:
        """Follow a path of the joints, given in the unit of the limits. Shapes (n,)."""
        self._moved.aim(self._part, position, velocity)

    def brake(self) -> None:
        self._moved.brake()

    def command(self) -> JointCommand:
        state = self._moved.tracker.state
        position, velocity = state.position[self._part], state.velocity[self._part]
        if self._scaled:
            position, velocity = self._offset + self._scale * position, self._scale * velocity
        return JointCommand(self.name, position, velocity)


class TipGroup:
    """The pose of an end effector, brought about by joints.

    The chunk's pose is led within the speed limit and the workspace; joints that bring it about are tracked
    within theirs. A step is taken only if from there on to rest, all joints braking together, the tip stays
    inside the workspace and below its speed limits at every command; else the way to rest that was found
    for the step before is followed.

    Inside: x, y, z [m] and the quaternion w, x, y, z of `tip` in the base frame.
    """

    needs_pose = False
    relative = True
    looks_ahead = True
    width = 7
    quaternions = (3,)
    held = np.zeros(7, dtype=bool)

    def __init__(
        self, group: Any, kinematics: Kinematics | None, home: Any, period: float, look_ahead: float
    ):
        if group.ik is None:
            raise UnsupportedGroup(
                f"group {group.name}: kind {group.kind} needs `ik`: the joints that move {group.tip}, their "
                "limits and a URDF"
            )
        self.name, self.joints = group.name, group.ik.joints
        self.continuous = np.zeros(len(self.joints), dtype=bool)
        self.kinematics = kinematics or _kinematics_of(group)
        self.limits = joint_limits(group.ik.limits, self.continuous)
        self._rotation, self._reference = group.rotation, group.reference
        # Written in the axes of the tip itself, or in those of a frame that does not move.
        self._own_axes = group.frame == group.tip
        self._speed = np.array([group.limits.linear.velocity, group.limits.angular.velocity])
        self._change = np.array([group.limits.linear.acceleration, group.limits.angular.acceleration])
        box = np.array(
            group.workspace if group.workspace is not None else [[-np.inf, np.inf]] * 3, dtype=float
        )
        self._box = self._bounds = box[:, 0], box[:, 1]
        stray = np.minimum(STRAY, (box[:, 1] - box[:, 0]) / 4)
        self._led_box = box[:, 0] + stray, box[:, 1] - stray
        self._period = period
        self._tracker = JointTracker(self.limits, period, look_ahead)
        rest = [home.get(joint) for joint in self.joints]
        self._rest = None if None in rest else np.array(rest, dtype=float)
        self._clamps = np.zeros(self.width, dtype=int)
        self._lead = np.zeros(len(self.joints))
        # The pose that is led, and its velocity: linear and angular.
        self._at = np.zeros(3), rotations.IDENTITY
        self._pace = np.zeros((2, 3))
        # The pose of the last command.
        self._told = np.concatenate(self._at)
        self._tells_twist = group.controller.type == "cartesian_twist"
        self._escape = Escape(self.limits, self._tracker.state)

    @property
    def clamps(self) -> np.ndarray:
        return self._clamps

    @property
    def resting(self) -> bool:
        return self._tracker.state.resting

    @property
    def commanded(self) -> np.ndarray:
        """Last set-point, in the unit of the limits. Shape (n,)."""
        return self._tracker.state.position

    def forget(self) -> None:
        """Plan anew, from where the last command led."""
        self._tracker.forget()

    def observe(self, joints: np.ndarray, pose: np.ndarray | None) -> np.ndarray:
        if not np.isfinite(joints).all():
            return np.full(self.width, np.nan)
        return np.concatenate(self.kinematics.pose(joints))

    def here(self, pose: np.ndarray | None) -> np.ndarray:
        """Where the last command leaves the group, in the channels of the timeline. Shape (width,)."""
        return np.concatenate(self.kinematics.pose(self.commanded))

    def start(self, joints: np.ndarray, pose: np.ndarray | None) -> None:
        self._tracker.reset(joints)
        self._escape = Escape(self.limits, self._tracker.state)
        self._lead = self._tracker.state.position
        self._at = self.kinematics.pose(self._lead)
        self._told = np.concatenate(self._at)
        self._pace = np.zeros((2, 3))
        low, high = self._box
        at = self._at[0]
        self._bounds = np.where(at < low, at - STRAY, low), np.where(at > high, at + STRAY, high)

    def resolve(self, rows: np.ndarray, origin: np.ndarray, here: np.ndarray):
        try:
            turns = rotations.FROM[self._rotation](rows[:, 3:])
        except ValueError as error:
            raise ChunkRefused(f"group {self.name}: {error}") from error
        poses = np.empty((len(rows), self.width))
        position, quaternion = origin[:3], origin[3:]
        for k, (shift, turn) in enumerate(zip(rows[:, :3], turns, strict=True)):
            if self._own_axes:
                shift = rotations.to_matrix(quaternion) @ shift
                turned = rotations.multiply(quaternion, turn)
            else:
                turned = rotations.multiply(turn, quaternion)
            poses[k, :3], poses[k, 3:] = position + shift, turned / np.linalg.norm(turned)
            if self._reference == "previous_step":
                position, quaternion = poses[k, :3], poses[k, 3:]
        return poses, origin

    def express(self, rows: np.ndarray, origin: np.ndarray) -> np.ndarray:
        """The inverse of `resolve`: rows of a chunk whose observation saw `origin`."""
        before = np.vstack([origin, rows[:-1]]) if self._reference == "previous_step" else origin[None]
        shift = rows[:, :3] - before[:, :3]
        back = rotations.inverse(before[:, 3:])
        if self._own_axes:
            shift = np.einsum("kij,kj->ki", rotations.to_matrix(back) * np.ones((len(rows), 1, 1)), shift)
            turn = rotations.multiply(back, rows[:, 3:])
        else:
            turn = rotations.multiply(rows[:, 3:], back)
        return np.hstack([shift, rotations.TO[self._rotation](turn)])

    def step(self, position: np.ndarray, velocity: np.ndarray, pose: np.ndarray | None) -> None:
        goal = self._led(position[:3], position[3:])
        before, lead = self._tracker.state, self._lead
        reach = self.limits.velocity * self._period
        self._lead = approach(self.kinematics, *goal, lead, self.limits, reach, self._rest)
        self._tracker.step(self._lead, (self._lead - lead) / self._period)
        self._take_or_brake(before)

    def inside(self, joints: np.ndarray) -> np.ndarray:
        """Joints in the unit of the limits. Shape (n,)."""
        return joints

    def lead(self, position: np.ndarray, velocity: np.ndarray) -> None:
        """Follow a path of the joints as far as the bounds of the tip allow. Shapes (n,)."""
        before = self._tracker.state
        self._lead = self._tracker.step(position, velocity).position
        self._take_or_brake(before)

    def _take_or_brake(self, before: AxisState) -> None:
        """Keep the step that was made if it is safe, else make one of the way to rest."""
        if self._safe(before):
            self._at = self.kinematics.pose(self._lead)
        else:
            self._clamps += 1
            self.brake()

    def brake(self) -> None:
        # The way found last. Axis by axis the brake of the tracker is no longer, so its promise holds on it.
        state = self._tracker.state = self._escape.advance(self._period)
        self._lead = state.position
        self._at = self.kinematics.pose(self._lead)
        self._pace = (self.kinematics.jacobian(self._lead) @ state.velocity).reshape(2, 3)

    def stands(self, joints: np.ndarray, before: np.ndarray) -> bool:
        """See JointGroup."""
        return bool((np.abs(joints - before) < STANDING["rad"]).all())

    def was_moved(self, joints: np.ndarray, stood: np.ndarray) -> bool:
        """See JointGroup."""
        off, shift = np.abs(joints - self.commanded), np.abs(joints - stood)
        return bool(((off > MOVED_BY["rad"]) | (shift > SHIFTED_BY["rad"])).any())

    def command(self) -> JointCommand:
        state, before = self._tracker.state, self._told
        self._told = pose = np.concatenate(self.kinematics.pose(state.position))
        turn = rotations.to_vector(rotations.multiply(pose[3:], rotations.inverse(before[3:])))
        twist = np.concatenate([pose[:3] - before[:3], turn]) / self._period
        if state.resting:
            twist = np.zeros(6)  # nothing follows that would end it
        return JointCommand(self.name, state.position, state.velocity, pose, twist)

    def halt(self) -> JointCommand | None:
        """What a controller of velocities is told when no others can be computed: to stand."""
        if not self._tells_twist:
            return None
        still = np.zeros(len(self.joints))
        return JointCommand(self.name, self.commanded, still, self._told, np.zeros(6))

    def _led(self, position: np.ndarray, quaternion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pose to bring about next: towards the set-point, inside the box, not too fast."""
        inside = np.clip(position, *self._led_box)
        here, turned = self._at
        goals = inside - here, rotations.between(turned, quaternion)
        # Position and turn at one pace, so that the path is that of the chunk.
        far = [math.sqrt(way @ way) for way in goals]
        paces = [
            min(distance / self._period, LEAD_SPEED * speed, math.sqrt(2 * LEAD_SPEED * change * distance))
            for distance, speed, change in zip(far, self._speed, self._change, strict=True)
        ]
        share = min([pace / way for pace, way in zip(paces, far, strict=True) if way > 0], default=0.0)
        for k, part in enumerate((slice(0, 3), slice(3, None))):
            wanted = share * goals[k] - self._pace[k]
            most = self._change[k] * self._period
            size = math.sqrt(wanted @ wanted)
            self._pace[k] = self._pace[k] + wanted * min(1.0, most / size if size > 0 else 1.0)
            self._clamps[part] += far[k] > LEAD_SPEED * self._speed[k] * self._period
        self._clamps[:3] += (position < self._box[0]) | (position > self._box[1])
        step = rotations.from_vector(self._period * self._pace[1])
        return here + self._period * self._pace[0], rotations.multiply(step, turned)

    def _safe(self, before: AxisState) -> bool:
        """Whether all bounds hold from `before` through the tracker's state on to rest; that way is kept."""
        escape = Escape(self.limits, self._tracker.state)
        path = np.vstack([before.position, escape.path(self._period)])
        lower, upper = (
            np.minimum(self.limits.lower, before.position),
            np.maximum(self.limits.upper, before.position),
        )
        if not ((path >= lower - ROUNDING) & (path <= upper + ROUNDING)).all():
            return False
        poses = self.kinematics.transforms(path)
        positions, matrices = poses[:, :3, 3], poses[:, :3, :3]
        low, high = self._bounds
        if not ((positions >= low - ROUNDING) & (positions <= high + ROUNDING)).all():
            return False
        most = self._speed * self._period
        if not (np.square(np.diff(positions, axis=0)).sum(axis=1) <= most[0] ** 2).all():
            return False
        # The trace of a rotation by angle a is 1 + 2 cos(a).
        traces = np.einsum("kij,kij->k", matrices[1:], matrices[:-1])
        if not (traces >= 1 + 2 * np.cos(min(most[1], np.pi))).all():
            return False
        self._escape = escape
        return True


class _Base:
    joints: tuple[str, ...] = ()
    continuous = np.zeros(0, dtype=bool)
    looks_ahead = False
    quaternions: tuple[int, ...] = ()
    width: int
    velocity: np.ndarray
    acceleration: np.ndarray
    jerk: np.ndarray

    def __init__(self, group: Any):
        self.name = group.name
        self.held = np.zeros(self.width, dtype=bool)
        omni = group.controller.type == "omni_drive"
        # Ahead and sideways together stay below the limit of the way they go.
        share = np.array([np.sqrt(0.5), np.sqrt(0.5), 1.0] if omni else [1.0, 1.0])
        for name in ("velocity", "acceleration", "jerk"):
            linear, angular = getattr(group.limits.linear, name), getattr(group.limits.angular, name)
            setattr(self, name, share * [*([linear] * (len(share) - 1)), angular])

    def forget(self) -> None:
        """Nothing is planned beyond the next command."""


class _DrivenBase(_Base):
    """A base that is told velocities.

    Attributes:
        ramp: what its velocity follows.
    """

    ramp: VelocityRamp

    @property
    def commanded(self) -> np.ndarray:
        """Last velocity. Shape (n,)."""
        return self.ramp.velocity

    @property
    def clamps(self) -> np.ndarray:
        return self.ramp.clamps

    @property
    def resting(self) -> bool:
        return self.ramp.resting

    def start(self, joints: np.ndarray, pose: np.ndarray | None) -> None:
        self.ramp.reset()

    def brake(self) -> None:
        self.ramp.brake()

    def command(self) -> BaseCommand:
        return BaseCommand(self.name, self.commanded)


class _Waypoints(_Base):
    """Waypoints of a base. Inside: x, y [m], yaw [rad] in the odometry frame."""

    needs_pose = True
    relative = True
    width = 3

    def observe(self, joints: np.ndarray, pose: np.ndarray | None) -> np.ndarray:
        return np.full(3, np.nan) if pose is None else pose

    def here(self, pose: np.ndarray | None) -> np.ndarray:
        """Where the base is measured. Shape (3,)."""
        return self.observe(np.zeros(0), pose)

    def resolve(self, rows: np.ndarray, origin: np.ndarray, here: np.ndarray):
        return compose(origin, rows), origin

    def express(self, rows: np.ndarray, origin: np.ndarray) -> np.ndarray:
        return relative_to(origin, rows)


class WaypointGroup(_Waypoints, _DrivenBase):
    """Waypoints that are followed by feedback on odometry."""

    def __init__(self, group: Any, period: float):
        super().__init__(group)
        self._tracker = BaseTracker(self.velocity, self.acceleration, self.jerk, period)
        self.ramp = self._tracker.ramp

    def step(self, position: np.ndarray, velocity: np.ndarray, pose: np.ndarray | None) -> None:
        if pose is None:
            raise MotionError(f"base {self.name}: its pose is not known")
        self._tracker.step(position, velocity, pose)


class PathGroup(_Waypoints):
    """Waypoints that are handed over as a path: somebody else drives.

    Only the velocity of the limits is ours to keep; the rest is the driver's.
    """

    def __init__(self, group: Any, period: float):
        super().__init__(group)
        braking = (self.velocity / self.acceleration + self.acceleration / self.jerk).max()
        self._route = Route(group.name, self.velocity, braking + REACTION, period)
        self._odometry, self._period = History(3, 0.0), period

    def watch(self, odometry: History) -> None:
        """Where the base is read from."""
        self._odometry = odometry

    @property
    def clamps(self) -> np.ndarray:
        return self._route.clamps

    @property
    def resting(self) -> bool:
        return self._route.resting

    def start(self, joints: np.ndarray, pose: np.ndarray | None) -> None:
        self._route.reset()

    def follow(self, timeline: Timeline, inner: slice, now: float, pose: np.ndarray | None) -> None:
        """Hand over the rows that lie ahead, where that says something new; past the last one, stay.

        Args:
            inner: own channels in the timeline.
            pose: where the base is measured. Shape (3,).
        """
        if pose is None:
            raise MotionError(f"base {self.name}: its pose is not known")
        times = timeline.ahead(now + self._period)
        if not len(times):
            self.brake()
        elif self._route.due(now, timeline.stamp, len(times)):
            rows = np.array([timeline.sample(time).position[inner] for time in times])
            self._route.lead(now, timeline.stamp, times, rows, pose)

    def brake(self) -> None:
        self._route.stay(self._odometry)

    def command(self) -> PathCommand | None:
        """What is to be said now, if anything."""
        return self._route.take()


class BaseVelocityGroup(_DrivenBase):
    """Velocity of a base. Inside: v, where it is omnidirectional also sideways [m/s], and w [rad/s]."""

    needs_pose = False
    relative = False

    def __init__(self, group: Any, period: float):
        self.width = group.count
        super().__init__(group)
        self.ramp = VelocityRamp(self.velocity, self.acceleration, self.jerk, period)

    def observe(self, joints: np.ndarray, pose: np.ndarray | None) -> np.ndarray:
        return self.ramp.velocity.copy()

    def here(self, pose: np.ndarray | None) -> np.ndarray:
        """The last velocity. Shape (width,)."""
        return self.observe(np.zeros(0), pose)

    def resolve(self, rows: np.ndarray, origin: np.ndarray, here: np.ndarray):
        return rows, rows[0]

    def express(self, rows: np.ndarray, origin: np.ndarray) -> np.ndarray:
        return rows

    def step(self, position: np.ndarray, velocity: np.ndarray, pose: np.ndarray | None) -> None:
        self.ramp.step(position)


AnyGroup = JointGroup | TipGroup | WaypointGroup | PathGroup | BaseVelocityGroup


def joint_limits(limits: Any, continuous: np.ndarray) -> Limits:
    """Limits of joints as commands keep them: positions by their margin inside, continuous joints without.

    Raises:
        UnsupportedGroup: a joint is left without room.
    """
    low, high = limits.position[:, 0] + limits.margin, limits.position[:, 1] - limits.margin
    if (low > high).any():
        raise UnsupportedGroup(f"margin {limits.margin} leaves no room between {limits.position.tolist()}")
    return Limits(
        np.where(continuous, -np.inf, low),
        np.where(continuous, np.inf, high),
        limits.velocity,
        limits.acceleration,
        limits.jerk,
    )


def make_groups(
    embodiment: Embodiment, period: float, look_ahead: float, kinematics: Mapping[str, Kinematics]
) -> Sequence[AnyGroup]:
    """Drivers of all action groups.

    Args:
        kinematics: by group, in place of the URDF that the embodiment names.

    Raises:
        UnsupportedGroup: see there.
    """
    groups: list[AnyGroup] = []
    for group in embodiment.actions:
        if group.kind in JOINT_KINDS:
            groups.append(JointGroup(group))
        elif group.kind == "waypoint":
            path = group.controller.type == "path"
            groups.append(PathGroup(group, period) if path else WaypointGroup(group, period))
        elif group.kind == "base_velocity":
            groups.append(BaseVelocityGroup(group, period))
        else:
            groups.append(TipGroup(group, kinematics.get(group.name), embodiment.home, period, look_ahead))
    return groups


def join(groups: Sequence[AnyGroup], period: float, look_ahead: float) -> Joints | None:
    """Let the groups that are told joints be moved together; None where there is none."""
    jointed = [group for group in groups if isinstance(group, JointGroup)]
    if not jointed:
        return None
    joints = Joints([group.limits for group in jointed], period, look_ahead)
    begin = 0
    for group in jointed:
        group.join(joints, slice(begin, begin + group.width))
        begin += group.width
    return joints


def _kinematics_of(group: Any) -> Kinematics:
    if group.ik.urdf is None:
        raise UnsupportedGroup(f"group {group.name}: ik.urdf is missing, and no kinematics were handed in")
    base = None if group.frame == group.tip else group.frame
    try:
        return UrdfKinematics(group.ik.urdf, group.ik.joints, group.tip, base)
    except KinematicsError as error:
        raise UnsupportedGroup(f"group {group.name}: {error}") from error
