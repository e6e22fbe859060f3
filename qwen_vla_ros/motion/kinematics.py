# SPDX-License-Identifier: Apache-2.0
"""Where a tip is for given joints, and the joints that bring it somewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from . import rotations
from .stop import Limits

# Damping of the least squares: how far singular directions are given up [m] and [rad].
DAMPING = 0.03

# Steps of the search per call: from one period to the next the solution moves little.
ITERATIONS = 3

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
    lower, upper = np.minimum(limits.lower, start), np.maximum(limits.upper, start)
    joints = start
    for _ in range(ITERATIONS):
        at, turned = kinematics.pose(joints)
        turn = rotations.to_vector(rotations.multiply(quaternion, rotations.inverse(turned)))
        error = np.concatenate([position - at, turn])
        jacobian = kinematics.jacobian(joints)
        # The nearer the goal, the less damping is needed for a bounded step.
        damping = DAMPING**2 * min(1.0, float(np.linalg.norm(error)) / 0.1) + 1e-8
        square = jacobian @ jacobian.T + damping * np.eye(6)
        step = jacobian.T @ np.linalg.solve(square, error)
        if rest is not None and len(joints) > 6:
            lean = POSTURE * (rest - joints)
            step = step + lean - jacobian.T @ np.linalg.solve(square, jacobian @ lean)
        joints = np.clip(np.clip(joints + step, start - reach, start + reach), lower, upper)
    return joints
