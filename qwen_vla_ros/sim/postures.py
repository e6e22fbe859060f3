# SPDX-License-Identifier: Apache-2.0
"""Postures of an arm whose tool points straight down, as a smooth function of where the tool is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mujoco
import numpy as np

from qwen_vla_ros.sim.bodies import Arm
from qwen_vla_ros.sim.kinematics import solve_down

_SPACING = 0.05  # [m]
_CORNERS = np.array(list(np.ndindex(2, 2, 2)))
_ALLOWED = 0.004  # what inverse kinematics may leave at a node [m]


class Postures:
    """Joint angles over a box of tool positions: inverse kinematics on a grid, linear between its nodes.

    Args:
        data: Scratch state with the arm in its seed posture and everything else at home.
        arm: Which has a `space`.
        qpos, qvel: Addresses of the arm's n joints. ranges: Shape (n, 2) [rad].
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        arm: Arm,
        qpos: np.ndarray,
        qvel: np.ndarray,
        ranges: np.ndarray,
    ) -> None:
        assert arm.space is not None
        lower, upper = np.array(arm.space)
        self._lower = lower
        self._shape = np.ceil((upper - lower) / _SPACING).astype(int) + 1
        free = np.array([joint not in arm.rigid for joint in arm.joints])
        seed = np.array(list(arm.seed.values()))
        data.qpos[qpos] = seed
        mujoco.mj_kinematics(model, data)
        heading = data.site(arm.site).xmat.reshape(3, 3)[:, 1].copy() if free.all() else None
        table = np.full((*self._shape, len(seed)), np.nan)
        for index in np.ndindex(*self._shape):
            # From the node before it, which is near; from the seed where there is none.
            near = [tuple(np.subtract(index, step)) for step in np.eye(3, dtype=int)[::-1]]
            start = (table[node] for node in near if min(node) >= 0 and np.isfinite(table[node][0]))
            data.qpos[qpos] = next(start, seed)
            point = lower + _SPACING * np.array(index)
            left = solve_down(
                model, data, arm.site, qpos[free], qvel[free], ranges[free], point, arm.approach, heading
            )
            if left < _ALLOWED:
                table[index] = data.qpos[qpos]
        self._table = table.reshape(-1, len(seed))
        good: np.ndarray = np.isfinite(table[..., 0])
        corners = [good[i:, j:, k:][tuple(slice(0, n - 1) for n in self._shape)] for i, j, k in _CORNERS]
        self._good = np.all(corners, axis=0)
        strides = np.array([self._shape[1] * self._shape[2], self._shape[2], 1])
        self._strides, self._offsets = strides, _CORNERS @ strides

    def at(self, points: np.ndarray) -> np.ndarray:
        """Angles (m, n) of tool positions (m, 3) [m]; NaN where the arm cannot reach."""
        scaled = (np.atleast_2d(points) - self._lower) / _SPACING
        scaled = np.clip(scaled, 0.0, self._shape - 1.000001)
        cell = scaled.astype(int)
        share = scaled - cell
        weights = np.prod(np.where(_CORNERS == 1, share[:, None], 1.0 - share[:, None]), axis=2)
        angles = self._table[(cell @ self._strides)[:, None] + self._offsets]
        return np.einsum("mk,mkn->mn", weights, angles)

    def inside(self, point: Sequence[float] | np.ndarray) -> bool:
        """Whether the arm can be there with its tool down."""
        cell = [math.floor((value - low) / _SPACING) for value, low in zip(point, self._lower, strict=True)]
        if min(cell) < 0 or any(c >= n - 1 for c, n in zip(cell, self._shape, strict=True)):
            return False
        return bool(self._good[tuple(cell)])
