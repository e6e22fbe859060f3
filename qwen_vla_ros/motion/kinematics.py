# SPDX-License-Identifier: Apache-2.0
"""Where a tip is for given joints, and the joints that bring it somewhere."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Protocol

import numpy as np

from . import rotations
from .stop import Limits

# Damping of the least squares: how far singular directions are given up [m] and [rad].
DAMPING = 0.03

# Steps of the search per call: from one period to the next the solution moves little.
ITERATIONS = 3

# What is left of a pose when the search ends [m] and [rad].
CLOSE = 1e-6

# Share of the way to the posture at rest that a redundant arm goes per call where the task leaves it free.
POSTURE = 0.02


class KinematicsError(ValueError):
    """A robot description that cannot be used; the text names file, what was found and what was expected."""


class Kinematics(Protocol):
    """Forward kinematics of a chain of n joints."""

    def pose(self, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position [m], shape (3,), and quaternion (w, x, y, z), shape (4,), of the tip in the base frame.

        Args:
            joints: [rad] or [m]. Shape (n,).
        """
        ...

    def jacobian(self, joints: np.ndarray) -> np.ndarray:
        """Velocity of the tip, linear above angular, axes of the base, per joint velocity. Shape (6, n)."""
        ...

    def transforms(self, path: np.ndarray) -> np.ndarray:
        """Poses of the tip along a path, shape (k, n), as matrices. Shape (k, 4, 4)."""
        ...


class UrdfKinematics:
    """Kinematics from a URDF, by Pinocchio. Joints that are not named stay at 0.

    Args:
        file: URDF.
        joints: the n joints that move, in order; revolute, continuous or prismatic.
        tip: link that moves.
        base: link whose frame poses are in; the root without it.

    Raises:
        KinematicsError: Pinocchio is absent, the file is unreadable, or a joint or link is not in it.
    """

    def __init__(self, file: str | Path, joints: tuple[str, ...], tip: str, base: str | None = None):
        try:
            import pinocchio
        except ImportError as error:
            raise KinematicsError(f"{file}: needs Pinocchio (pip: pin, apt: ros-*-pinocchio)") from error
        if not Path(file).is_file():
            raise KinematicsError(f"{file}: no such file, expected a URDF")
        try:
            model = pinocchio.buildModelFromUrdf(str(file))
        except (RuntimeError, ValueError) as error:
            raise KinematicsError(f"{file}: not a usable URDF: {error}") from error
        for name in joints:
            if not model.existJointName(name):
                raise KinematicsError(
                    f"{file}: no joint {name}; there are {', '.join(list(model.names)[1:])}"
                )
        for name in (tip, *([base] if base else [])):
            if not model.existFrame(name):
                frames = ", ".join(
                    frame.name for frame in model.frames if frame.name not in list(model.names)
                )
                raise KinematicsError(f"{file}: no link {name}; there are {frames}")
        fixed = [model.getJointId(name) for name in list(model.names)[1:] if name not in joints]
        model = pinocchio.buildReducedModel(model, fixed, pinocchio.neutral(model))
        self._pin, self._model, self._data = pinocchio, model, model.createData()
        self._tip = model.getFrameId(tip)
        self._base = model.getFrameId(base) if base else None
        if self._base is not None and model.frames[self._base].parentJoint != 0:
            raise KinematicsError(
                f"{file}: link {base} moves with the joints, expected one that stands still"
            )
        self._screws: tuple[np.ndarray, ...] | None = None
        # Pinocchio keeps its own order, and a continuous joint as cosine and sine.
        ids = [model.getJointId(name) for name in joints]
        self._columns = [model.joints[i].idx_v for i in ids]
        self._places = [(model.joints[i].idx_q, model.joints[i].nq) for i in ids]
        for name, i in zip(joints, ids, strict=True):
            if model.joints[i].nv != 1:
                raise KinematicsError(f"{file}: joint {name} has {model.joints[i].nv} axes, expected 1")

    def _place(self, joints: np.ndarray) -> np.ndarray:
        q = np.empty(self._model.nq)
        for (start, size), value in zip(self._places, joints, strict=True):
            q[start : start + size] = value if size == 1 else (np.cos(value), np.sin(value))
        return q

    def _relative(self):
        tip = self._data.oMf[self._tip]
        return tip if self._base is None else self._data.oMf[self._base].actInv(tip)

    def pose(self, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self._pin.framesForwardKinematics(self._model, self._data, self._place(joints))
        pose = self._relative()
        x, y, z, w = self._pin.Quaternion(pose.rotation).coeffs()
        return pose.translation.copy(), np.array([w, x, y, z])

    def jacobian(self, joints: np.ndarray) -> np.ndarray:
        pin = self._pin
        frames = pin.computeFrameJacobian(
            self._model, self._data, self._place(joints), self._tip, pin.ReferenceFrame.LOCAL_WORLD_ALIGNED
        )
        if self._base is not None:
            pin.updateFramePlacements(self._model, self._data)
            turn = self._data.oMf[self._base].rotation.T
            frames = np.vstack([turn @ frames[:3], turn @ frames[3:]])
        return frames[:, self._columns]

    def transforms(self, path: np.ndarray) -> np.ndarray:
        # A product of exponentials (Brockett 1984), all rows at once: Pinocchio takes one row a call.
        if self._screws is None:
            self._screws = self._zero()
        turns, squares, shifts, slides, home = self._screws
        angle = path[:, :, None, None]
        step = np.zeros((*path.shape, 4, 4))
        step[..., :3, :3] = np.eye(3) + np.sin(angle) * turns + (1 - np.cos(angle)) * squares
        step[..., :3, 3] = (
            shifts - np.einsum("knij,nj->kni", step[..., :3, :3], shifts) + path[:, :, None] * slides
        )
        step[..., 3, 3] = 1.0
        product = step[:, 0]
        for joint in range(1, path.shape[1]):
            product = product @ step[:, joint]
        return product @ home

    def _zero(self) -> tuple[np.ndarray, ...]:
        """Per joint: its axis as a cross product, the square of that, a point on the axis, and the way that a
        unit of it goes along; and the pose of the tip, all with the joints at 0."""
        zero = np.zeros(len(self._columns))
        position, quaternion = self.pose(zero)
        home = np.eye(4)
        home[:3, :3], home[:3, 3] = rotations.to_matrix(quaternion), position
        linear, axes = np.split(self.jacobian(zero), 2)
        turning = np.linalg.norm(axes, axis=0) > 0.5
        cross = np.array([np.cross(axis, np.eye(3)).T for axis in axes.T])
        # The tip moves by axis x (tip - point): the nearest point of the axis.
        points = np.where(turning[:, None], position + np.cross(axes.T, linear.T), 0.0)
        return cross, cross @ cross, points, np.where(turning[:, None], 0.0, linear.T), home


def approach(
    kinematics: Kinematics,
    position: np.ndarray,
    quaternion: np.ndarray,
    start: np.ndarray,
    limits: Limits,
    reach: np.ndarray,
    rest: np.ndarray | None = None,
) -> np.ndarray:
    """Joints nearer to a pose of the tip than `start`, by damped least squares.

    Args:
        position, quaternion: of the tip. Shapes (3,), (4,).
        start: where the search begins. Shape (n,).
        limits: joints stay inside their position limits.
        reach: how far each joint may go from `start`. Shape (n,).
        rest: posture that a redundant arm leans to. Shape (n,).

    Returns:
        Shape (n,).
    """
    lower = np.maximum(np.minimum(limits.lower, start), start - reach)
    upper = np.minimum(np.maximum(limits.upper, start), start + reach)
    joints = start
    for _ in range(ITERATIONS):
        at, turned = kinematics.pose(joints)
        error = np.concatenate([position - at, rotations.between(turned, quaternion)])
        distance = math.sqrt(error @ error)
        if distance < CLOSE:
            break
        jacobian = kinematics.jacobian(joints)
        # The nearer the goal, the less damping is needed for a bounded step.
        square = jacobian @ jacobian.T + (DAMPING**2 * min(1.0, distance / 0.1) + 1e-8) * np.eye(6)
        step = jacobian.T @ np.linalg.solve(square, error)
        if rest is not None and len(joints) > 6:
            lean = POSTURE * (rest - joints)
            step = step + lean - jacobian.T @ np.linalg.solve(square, jacobian @ lean)
        joints = np.minimum(np.maximum(joints + step, lower), upper)
    return joints
