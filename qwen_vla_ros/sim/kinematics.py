# SPDX-License-Identifier: Apache-2.0
"""Inverse kinematics by damped least squares on MuJoCo's Jacobians."""

from __future__ import annotations

import mujoco
import numpy as np

_ITERATIONS = 80
_DAMPING = 0.02  # [m]
_LONGEST_STEP = 0.2  # per iteration [rad]
_LIMIT_MARGIN = 0.02  # kept to each joint limit [rad]


def solve(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    site: str,
    qpos: np.ndarray,
    qvel: np.ndarray,
    ranges: np.ndarray,
    point: np.ndarray,
    down: float,
) -> tuple[np.ndarray, float]:
    """Angles (n,) [rad] that bring `site` to `point` (3,) [m], searched from the posture in `data`.

    qpos, qvel: addresses of the n joints. ranges: shape (n, 2) [rad].
    down: weight [m/rad] of a site z axis that points down; 0 leaves the orientation free.
    Returns the angles and the distance that is left [m]; `data` keeps the posture found.
    """
    index = model.site(site).id
    jacobian = np.zeros((3, model.nv))
    rotation = np.zeros((3, model.nv))
    angles = data.qpos[qpos].copy()
    lower, upper = ranges[:, 0] + _LIMIT_MARGIN, ranges[:, 1] - _LIMIT_MARGIN
    for _ in range(_ITERATIONS):
        data.qpos[qpos] = angles
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_jacSite(model, data, jacobian, rotation, index)
        error = point - data.site_xpos[index]
        matrix = jacobian[:, qvel]
        if down > 0.0:
            axis = data.site_xmat[index].reshape(3, 3)[:, 2]
            error = np.concatenate([error, down * np.cross(axis, [0.0, 0.0, -1.0])])
            matrix = np.vstack([matrix, down * rotation[:, qvel]])
        if np.linalg.norm(error) < 1e-5:
            break
        square = matrix @ matrix.T + _DAMPING**2 * np.eye(len(error))
        step = matrix.T @ np.linalg.solve(square, error)
        longest = np.abs(step).max()
        if longest > _LONGEST_STEP:
            step *= _LONGEST_STEP / longest
        angles = np.clip(angles + step, lower, upper)
    data.qpos[qpos] = angles
    mujoco.mj_kinematics(model, data)
    return angles, float(np.linalg.norm(point - data.site_xpos[index]))


def solve_down(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    site: str,
    qpos: np.ndarray,
    qvel: np.ndarray,
    ranges: np.ndarray,
    point: np.ndarray,
    approach: int,
    heading: np.ndarray | None,
) -> float:
    """Bring `site` to `point` (3,) [m] with its axis `approach` (0, 1, 2) straight down; `data` stays there.

    heading: direction (3,) of its y axis, or None where the joints leave no choice.
    Returns what is left of position and orientation together [m, a radian counting as 0.3 m].
    """
    index = model.site(site).id
    jacobian, rotation = np.zeros((3, model.nv)), np.zeros((3, model.nv))
    angles = data.qpos[qpos].copy()
    lower, upper = ranges[:, 0] + _LIMIT_MARGIN, ranges[:, 1] - _LIMIT_MARGIN
    weight = 0.3
    error, before = np.zeros(6), np.inf
    for iteration in range(_ITERATIONS):
        data.qpos[qpos] = angles
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_jacSite(model, data, jacobian, rotation, index)
        axes = data.site_xmat[index].reshape(3, 3)
        # Cross products with straight down and with the heading, written out.
        turn = np.array([-axes[1, approach], axes[0, approach], 0.0])
        if heading is not None:
            turn[2] = axes[0, 1] * heading[1] - axes[1, 1] * heading[0]
        error = np.concatenate([point - data.site_xpos[index], weight * turn])
        left = float(np.linalg.norm(error))
        if left < 1e-4:
            break
        if iteration % 8 == 7:
            if left > 0.8 * before:
                break  # out of reach
            before = left
        matrix = np.vstack([jacobian[:, qvel], weight * rotation[:, qvel]])
        square = matrix @ matrix.T + 1e-4 * np.eye(6)
        step = matrix.T @ np.linalg.solve(square, error)
        longest = np.abs(step).max()
        if longest > _LONGEST_STEP:
            step *= _LONGEST_STEP / longest
        angles = np.clip(angles + step, lower, upper)
    return float(np.linalg.norm(error))
