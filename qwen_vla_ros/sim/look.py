# SPDX-License-Identifier: Apache-2.0
"""How a scene looks: light, cameras and surfaces, drawn anew for each episode of the setting `full`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mujoco
import numpy as np

from qwen_vla_ros.sim import scene


@dataclass(frozen=True)
class LookRange:
    """By how much the look varies.

    light: factor of every light, and of each colour of it. ambient: range of the light from nowhere.
    direction: of the sun, about its own [rad]. camera_turn: about each axis [rad].
    shade: range of the brightness of table and floor. tint: of their colour.
    """

    light: tuple[float, float] = (0.6, 1.3)
    warmth: float = 0.10
    ambient: tuple[float, float] = (0.22, 0.45)
    direction: float = 0.6
    camera_turn: float = 0.012
    shade: tuple[float, float] = (0.30, 0.95)
    tint: float = 0.12


class Look:
    """Draws the look of a model; every draw starts from how the model was built.

    Args:
        model: Changed in place.
        moved: Cameras that are jittered, and by how much along each axis, either way [m].
    """

    def __init__(self, model: mujoco.MjModel, moved: Mapping[str, float], ranges: LookRange) -> None:
        self._model, self._ranges = model, ranges
        self._cameras = {model.camera(name).id: shift for name, shift in moved.items()}
        self._built = {
            name: getattr(model, name).copy()
            for name in ("light_dir", "light_diffuse", "cam_pos", "cam_quat")
        }
        self._tables = [
            model.geom(name).id
            for name in ("table_top", "room_floor")
            if _has(model, mujoco.mjtObj.mjOBJ_GEOM, name)
        ]
        self._surfaces = [model.material(f"surface_{name}").id for name in scene.SURFACES]

    def draw(self, rng: np.random.Generator) -> None:
        model, ranges = self._model, self._ranges
        for name, value in self._built.items():
            getattr(model, name)[:] = value
        for light in range(model.nlight):
            model.light_diffuse[light] *= rng.uniform(*ranges.light) * (
                1.0 + rng.uniform(-ranges.warmth, ranges.warmth, 3)
            )
            turned = model.light_dir[light] + rng.uniform(-ranges.direction, ranges.direction, 3) * (
                1,
                1,
                0.3,
            )
            model.light_dir[light] = turned / np.linalg.norm(turned)
        model.vis.headlight.ambient[:] = rng.uniform(*ranges.ambient) * (
            1.0 + rng.uniform(-0.5, 0.5, 3) * ranges.warmth
        )
        for camera, shift in self._cameras.items():
            model.cam_pos[camera] += rng.uniform(-shift, shift, 3)
            turn = rng.uniform(-ranges.camera_turn, ranges.camera_turn, 3)
            mujoco.mju_quatIntegrate(model.cam_quat[camera], turn, 1.0)
        # Two geoms may not share a material: each would take the other's colour.
        surfaces = rng.permutation(self._surfaces)
        for geom, surface in zip(self._tables, surfaces, strict=False):
            model.geom_matid[geom] = surface
            shade = rng.uniform(*ranges.shade) * (1.0 + rng.uniform(-ranges.tint, ranges.tint, 3))
            model.mat_rgba[surface, :3] = np.clip(shade, 0.0, 1.0)


def _has(model: mujoco.MjModel, kind: mujoco.mjtObj, name: str) -> bool:
    return mujoco.mj_name2id(model, kind, name) >= 0
