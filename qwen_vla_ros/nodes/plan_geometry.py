# SPDX-License-Identifier: Apache-2.0
"""Where a chunk would bring the tips of the arms, the joints and the base."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen_vla_ros.embodiment import Embodiment
from qwen_vla_ros.motion import rotations
from qwen_vla_ros.motion.base import compose

# Colours of time, from now to the end of the horizon: red, green, blue in 0..1, also for the colour-blind.
TIME_COLOURS = np.array([[0.99, 0.80, 0.15], [0.88, 0.39, 0.38], [0.62, 0.10, 0.63], [0.15, 0.05, 0.55]])


class DescriptionError(ValueError):
    """A robot description that cannot be used; the text says what was found and what was expected."""


class RobotModel:
    """Forward kinematics of all links of a URDF, by Pinocchio.

    Args:
        urdf: the XML.
        source: where it came from, for messages.

    Attributes:
        root: link that everything is relative to.
        joints: names of the joints with one axis.
        bones: pairs of links (parent, child) to be drawn as lines.

    Raises:
        DescriptionError: Pinocchio is absent, or the text is no URDF.
    """

    def __init__(self, urdf: str, source: str):
        try:
            import pinocchio as pin
        except ImportError as error:
            raise DescriptionError("paths of arms need Pinocchio (pip: pin, apt: ros-*-pinocchio)") from error
        try:
            model = pin.buildModelFromXML(urdf)
        except (RuntimeError, ValueError) as error:
            raise DescriptionError(f"{source}: not a usable URDF: {error}") from error
        self.source = source
        self._pin, self._model, self._data = pin, model, model.createData()
        self._links = {
            frame.name: index for index, frame in enumerate(model.frames) if frame.type == pin.FrameType.BODY
        }
        names = list(model.names)
        self._places = {
            name: (model.joints[i].idx_q, model.joints[i].nq)
            for i, name in enumerate(names)
            if i > 0 and model.joints[i].nv == 1
        }
        self.joints = tuple(self._places)
        self._above: dict[str, str] = {}
        for name, index in self._links.items():
            parent = model.frames[index].parentFrame
            while parent > 0 and model.frames[parent].type != pin.FrameType.BODY:
                parent = model.frames[parent].parentFrame
            if parent > 0 and model.frames[parent].name != name:
                self._above[name] = model.frames[parent].name
        self.root = next(name for name in self._links if name not in self._above)
        # A root that several arms are fixed to is a place, no part of a robot.
        still = [
            child
            for child, parent in self._above.items()
            if parent == self.root and model.frames[self._links[child]].parentJoint == 0
        ]
        self.bones = tuple(
            (parent, child) for child, parent in self._above.items() if len(still) < 2 or child not in still
        )

    def has_link(self, name: str) -> bool:
        return name in self._links

    def tips(self, joints: Iterable[str]) -> tuple[str, ...]:
        """Links at the ends of the chains that `joints` make, past fixed joints up to a fork.

        Joints that are not in the URDF are passed over.
        """
        ids = [self._model.getJointId(name) for name in joints if name in self._places]
        ends = [i for i in ids if not any(i != j and i in list(self._model.supports[j]) for j in ids)]
        return tuple(self._end_of(i) for i in ends)

    def absent(self, joints: Iterable[str]) -> str | None:
        """What to say of joints that are not in the URDF; None where all are."""
        absent = [name for name in joints if name not in self._places]
        if not absent:
            return None
        return f"{self.source}: no joint {', '.join(absent)}; there are {', '.join(self.joints)}"

    def _end_of(self, joint: int) -> str:
        below: dict[str, list[str]] = {}
        for child, parent in self._above.items():
            below.setdefault(parent, []).append(child)
        moved = [name for name, i in self._links.items() if self._model.frames[i].parentJoint == joint]
        link = next(name for name in moved if self._above.get(name) not in moved)
        while len(fixed := [child for child in below.get(link, ()) if child in moved]) == 1:
            link = fixed[0]
        return link

    def poses(self, positions: Mapping[str, float], links: Iterable[str]) -> np.ndarray:
        """Poses of links relative to the root: x, y, z [m], w, x, y, z. Shape (n, 7).

        Args:
            positions: of joints [rad] or [m]; those that are not given stay at 0, others are passed over.
        """
        q = self._pin.neutral(self._model)
        for name, value in positions.items():
            start, size = self._places.get(name, (0, 0))
            if size:
                q[start : start + size] = value if size == 1 else (np.cos(value), np.sin(value))
        self._pin.framesForwardKinematics(self._model, self._data, q)
        root = self._data.oMf[self._links[self.root]]
        rows = []
        for link in links:
            pose = root.actInv(self._data.oMf[self._links[link]])
            x, y, z, w = self._pin.Quaternion(pose.rotation).coeffs()
            rows.append([*pose.translation, w, x, y, z])
        return np.array(rows).reshape(-1, 7)


@dataclass(frozen=True)
class Plan:
    """A chunk of h rows in space.

    Attributes:
        tips: by group/link: x, y, z [m], w, x, y, z relative to the link in `frames`. Shapes (h, 7).
        frames: by the same keys, the root link.
        base: x, y [m], yaw [rad] of the base, in the frame of the odometry. Shape (h, 3), or None.
        joints: by name, as in joint states, and the parts of virtual ones. Shapes (h,).
    """

    tips: dict[str, np.ndarray]
    frames: dict[str, str]
    base: np.ndarray | None
    joints: dict[str, np.ndarray]


def joint_rows(group: Any, rows: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """What rows of a group of joints mean, as joint states count. Shape (h, n).

    Args:
        rows: in the unit and reference of the group. Shape (h, n).
        origin: joints at the observation, as joint states count. Shape (n,).
    """
    closed, scale = np.zeros(rows.shape[1]), np.ones(rows.shape[1])
    if group.unit == "fraction":
        closed, opened = group.opening.T
        scale = opened - closed
    if getattr(group, "threshold", None) is not None:
        low, high = group.limits.position.T
        rows = np.where(rows > group.threshold, high, low)
    elif group.reference == "chunk_start":
        rows = rows + (origin - closed) / scale
    elif group.reference == "previous_step":
        rows = np.cumsum(rows, axis=0) + (origin - closed) / scale
    return closed + scale * rows


def shares(embodiment: Embodiment, positions: Mapping[str, Any]) -> dict[str, Any]:
    """What the virtual joints in `positions` mean for the joints of the URDF that they are sums of."""
    return {
        part: positions[name] / len(parts)
        for group in embodiment.actions
        for name, parts in getattr(group, "virtual", {}).items()
        if name in positions
        for part in parts
    }


def tip_rows(group: Any, rows: np.ndarray, origin: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Poses of a tip that rows of an `eef_delta` group mean. Shape (h, 7).

    Args:
        rows: Shape (h, c).
        origin: pose at the observation: x, y, z [m], w, x, y, z. Shape (7,).
        turn: from the axes of `group.frame` to those of `origin`'s frame. Shape (4,).
    """
    turns = rotations.FROM[group.rotation](rows[:, 3:])
    poses = np.empty((len(rows), 7))
    position, quaternion = origin[:3], origin[3:]
    for k, (shift, change) in enumerate(zip(rows[:, :3], turns, strict=True)):
        # Written in the axes of the tip itself, or in those of a frame that does not move.
        axes = quaternion if group.frame == group.tip else turn
        turned = rotations.multiply(rotations.multiply(axes, change), rotations.inverse(axes))
        poses[k, :3] = position + rotations.to_matrix(axes) @ shift
        turned = rotations.multiply(turned, quaternion)
        poses[k, 3:] = turned / np.linalg.norm(turned)
        if group.reference == "previous_step":
            position, quaternion = poses[k, :3], poses[k, 3:]
    return poses


def base_rows(group: Any, rows: np.ndarray, origin: np.ndarray, step: float) -> np.ndarray:
    """Poses of a base: x, y [m], yaw [rad]. Shape (h, 3).

    Args:
        rows: of a `waypoint` or `base_velocity` group. Shape (h, c).
        origin: pose at the observation. Shape (3,).
        step: between rows [s].
    """
    if group.kind == "waypoint":
        return compose(origin, rows)
    forward, turn = rows[:, 0], rows[:, -1]
    sideways = rows[:, 1] if rows.shape[1] == 3 else np.zeros(len(rows))
    pose, poses = np.asarray(origin, dtype=float), []
    for velocity in np.stack([forward, sideways, turn], axis=1):
        pose = compose(pose, velocity * step)
        poses.append(pose)
    return np.array(poses)


def make_plan(
    embodiment: Embodiment,
    models: Mapping[str, RobotModel],
    rows: np.ndarray,
    joints: Mapping[str, float],
    pose: np.ndarray,
    step: float,
) -> Plan:
    """Where the rows of a chunk bring the robot.

    Args:
        models: by group, for groups that move an arm and are to be drawn.
        rows: in the embodiment's units and references. Shape (h, c).
        joints: at the observation, as in joint states; all that turn its arms.
        pose: of the base at the observation: x, y [m], yaw [rad]. Shape (3,).
        step: between rows [s].
    """
    tips: dict[str, np.ndarray] = {}
    frames: dict[str, str] = {}
    moved: dict[str, np.ndarray] = {}
    base = None
    for group in embodiment.actions:
        part = rows[:, embodiment.layout.slice_of(group.name)]
        if group.kind in ("waypoint", "base_velocity"):
            base = base_rows(group, part, pose, step)
        elif group.kind == "eef_delta":
            if group.name not in models:
                continue
            model = models[group.name]
            frame = group.frame if model.has_link(group.frame) else model.root
            origin, axes = model.poses(joints, (group.tip, frame))
            tips[f"{group.name}/{group.tip}"] = tip_rows(group, part, origin, axes[3:])
            frames[f"{group.name}/{group.tip}"] = model.root
        else:
            origin = np.array([joints[name] for name in group.joints])
            moved.update(zip(group.joints, joint_rows(group, part, origin).T, strict=True))
    moved.update(shares(embodiment, moved))
    for group in embodiment.actions:
        if group.kind != "joint_position" or group.name not in models:
            continue
        model = models[group.name]
        links = model.tips(group.described)
        # All joints of a row together: an arm on a waist goes where both bring it.
        path = np.array(
            [
                model.poses({**joints, **{name: values[k] for name, values in moved.items()}}, links)
                for k in range(len(rows))
            ]
        )
        for index, link in enumerate(links):
            tips[f"{group.name}/{link}"] = path[:, index]
            frames[f"{group.name}/{link}"] = model.root
    return Plan(tips, frames, base, moved)


def colours(share: np.ndarray) -> np.ndarray:
    """Colours of times, 0 now and 1 the end of the horizon. Shapes (n,) to (n, 3)."""
    place = np.linspace(0.0, 1.0, len(TIME_COLOURS))
    return np.stack([np.interp(share, place, channel) for channel in TIME_COLOURS.T], axis=-1)
