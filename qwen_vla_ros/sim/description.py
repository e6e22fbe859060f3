# SPDX-License-Identifier: Apache-2.0
"""The kinematics of a simulated robot as URDF, as robot_state_publisher would publish it."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree

import mujoco
import numpy as np

from qwen_vla_ros.sim.bodies import Body

ROOT = "world"


def urdf_of(model: mujoco.MjModel, body: Body) -> str:
    """URDF of the robot of a scene: links, joints and the sites of its tools; no shapes, no masses.

    Links have the names of MuJoCo's bodies and sites, joints those of ROS. A joint that is not the robot's to
    report (a free base, a caster) is fixed where the model starts.
    """
    names = {joint.mujoco: name for name, joint in body.joints.items()}
    followers = {
        follower: (joint.mujoco, factor)
        for joint in body.joints.values()
        for follower, factor in joint.followers.items()
    }
    roots = {model.body_rootid[model.joint(name).bodyid[0]] for name in names}
    robot = ElementTree.Element("robot", name=body.name)
    ElementTree.SubElement(robot, "link", name=ROOT)
    for index in range(1, model.nbody):
        if model.body_rootid[index] not in roots:
            continue
        link = model.body(index).name or f"body_{index}"
        parent = ROOT if model.body_parentid[index] == 0 else model.body(model.body_parentid[index]).name
        parent = parent or f"body_{model.body_parentid[index]}"
        _add_body(robot, model, index, parent, link, names, followers)
    for arm in body.arms:
        site = model.site(arm.site)
        parent = model.body(model.site_bodyid[site.id]).name
        _add_joint(robot, "fixed", f"{arm.site}_joint", parent, arm.site, site.pos, _matrix(site.quat))
    return ElementTree.tostring(robot, encoding="unicode")


def _add_body(
    robot: ElementTree.Element,
    model: mujoco.MjModel,
    index: int,
    parent: str,
    link: str,
    names: Mapping[str, str],
    followers: Mapping[str, tuple[str, float]],
) -> None:
    position, turn = np.array(model.body_pos[index]), _matrix(model.body_quat[index])
    start = model.body_jntadr[index]
    offset = np.zeros(3)
    for number in range(start, start + model.body_jntnum[index]):
        joint = model.joint(number)
        if joint.name not in names and joint.name not in followers:
            continue
        # A joint turns about its anchor; URDF has it at the origin of the link.
        anchor = np.array(joint.pos)
        position, offset = position + turn @ (anchor - offset), anchor
        between = f"{link}_{joint.name}".replace("/", "_")
        kind = "revolute" if model.jnt_type[number] == mujoco.mjtJoint.mjJNT_HINGE else "prismatic"
        low, high = model.jnt_range[number] if model.jnt_limited[number] else (-6.2832, 6.2832)
        element = _add_joint(
            robot, kind, names.get(joint.name, joint.name), parent, between, position, turn, joint.axis
        )
        ElementTree.SubElement(
            element, "limit", lower=f"{low:.9g}", upper=f"{high:.9g}", effort="0", velocity="0"
        )
        if joint.name in followers:
            leader, factor = followers[joint.name]
            ElementTree.SubElement(element, "mimic", joint=names[leader], multiplier=f"{factor:g}")
        # MuJoCo counts from the position in which the model is written.
        reference = float(model.qpos0[model.jnt_qposadr[number]])
        if kind == "revolute":
            position, turn = np.zeros(3), _about(joint.axis, -reference)
        else:
            position, turn = -reference * np.array(joint.axis), np.eye(3)
        parent = between
    _add_joint(robot, "fixed", f"{link}_fixed", parent, link, position - turn @ offset, turn)


def _add_joint(
    robot: ElementTree.Element,
    kind: str,
    name: str,
    parent: str,
    child: str,
    position: np.ndarray,
    turn: np.ndarray,
    axis: np.ndarray | None = None,
) -> ElementTree.Element:
    ElementTree.SubElement(robot, "link", name=child)
    joint = ElementTree.SubElement(robot, "joint", name=name, type=kind)
    ElementTree.SubElement(joint, "parent", link=parent)
    ElementTree.SubElement(joint, "child", link=child)
    ElementTree.SubElement(joint, "origin", xyz=_text(position), rpy=_text(_rpy(turn)))
    if axis is not None:
        ElementTree.SubElement(joint, "axis", xyz=_text(axis))
    return joint


def _text(values: np.ndarray) -> str:
    return " ".join(f"{value:.9g}" for value in values)


def _matrix(quaternion: np.ndarray) -> np.ndarray:
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, np.asarray(quaternion, dtype=float))
    return matrix.reshape(3, 3)


def _about(axis: np.ndarray, angle: float) -> np.ndarray:
    quaternion = np.empty(4)
    mujoco.mju_axisAngle2Quat(quaternion, np.asarray(axis, dtype=float), angle)
    return _matrix(quaternion)


def _rpy(turn: np.ndarray) -> np.ndarray:
    """Roll, pitch, yaw about fixed x, y, z."""
    pitch = np.arcsin(np.clip(-turn[2, 0], -1.0, 1.0))
    if abs(turn[2, 0]) > 1 - 1e-9:  # roll and yaw turn about one axis: all of it is given to roll
        return np.array([np.arctan2(-turn[1, 2], turn[1, 1]), pitch, 0.0])
    return np.array([np.arctan2(turn[2, 1], turn[2, 2]), pitch, np.arctan2(turn[1, 0], turn[0, 0])])
