# SPDX-License-Identifier: Apache-2.0
"""Pictures of a world, and where points fall in them."""

from __future__ import annotations

import os
import threading

import mujoco
import numpy as np

from qwen_vla_ros.sim import scene
from qwen_vla_ros.sim.bodies import Camera
from qwen_vla_ros.sim.errors import SimulationError

# Pictures for people are drawn this many times as large and averaged; in software, multisampling costs more.
_FINER = 2

# Nothing is seen from this share of the far clipping plane on: there is the background.
_FAR = 0.99


def _check_context() -> None:
    """mujoco aborts the process when it draws through a window system that is not there."""
    context = getattr(mujoco, "GLContext", None)
    windowed = context is not None and "glfw" in context.__module__
    if context is None or (windowed and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))):
        raise SimulationError(
            f"mujoco cannot render here with MUJOCO_GL={os.environ.get('MUJOCO_GL')}: set it to egl or "
            "osmesa before Python starts, or import qwen_vla_ros.sim before mujoco"
        )


class Pictures:
    """Renderers of a model, made on demand; they belong to the thread that first draws."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self._model = model
        self._renderers: dict[tuple[int, int, bool], mujoco.Renderer] = {}
        self._thread: int | None = None

    def draw(self, data: mujoco.MjData, view: str, camera: Camera) -> np.ndarray:
        """uint8 RGB, shape (height, width, 3). SimulationError in any thread but the first that drew."""
        picture = self._prepared(data, view, camera).render()
        if not camera.spectator:
            return picture
        width, height = camera.size
        blocks = picture.reshape(height, _FINER, width, _FINER, 3)
        return blocks.mean(axis=(1, 3), dtype=np.float32).round().astype(np.uint8)

    def depth(self, data: mujoco.MjData, view: str, camera: Camera) -> np.ndarray:
        """Distance along the optical axis [m] of the pixels of a view that is not for people. Shape (height,
        width), float32; NaN where there is nothing. Errors as in draw()."""
        renderer = self._prepared(data, view, camera)
        renderer.enable_depth_rendering()
        try:
            depth = renderer.render().astype(np.float32)
        finally:
            renderer.disable_depth_rendering()
        depth[depth >= _FAR * self._model.vis.map.zfar * self._model.stat.extent] = np.nan
        return depth

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
        self._thread = None

    def _prepared(self, data: mujoco.MjData, view: str, camera: Camera) -> mujoco.Renderer:
        """The renderer of a view, about to draw it."""
        thread = threading.get_ident()
        if self._thread is None:
            self._thread = thread
        elif self._thread != thread:
            raise SimulationError("a world is rendered and closed by one thread: the one that first rendered")
        renderer = self._renderer(data, view, camera)
        self._update(renderer, data, view, camera)
        return renderer

    def _renderer(self, data: mujoco.MjData, view: str, camera: Camera) -> mujoco.Renderer:
        width, height = camera.size
        key = (width, height, camera.spectator)
        if key not in self._renderers:
            if camera.spectator:
                width, height = _FINER * width, _FINER * height
            # The context takes its quality and its buffer's size from the model when it is made.
            visual = self._model.vis
            visual.quality.shadowsize = 2048 if camera.spectator else 0
            visual.quality.offsamples = 0
            visual.global_.offwidth, visual.global_.offheight = width, height
            _check_context()
            renderer = mujoco.Renderer(self._model, height=height, width=width)
            self._update(renderer, data, view, camera)
            renderer.render()  # the first frame of a software renderer can be wrong
            self._renderers[key] = renderer
        return self._renderers[key]

    @staticmethod
    def _update(renderer: mujoco.Renderer, data: mujoco.MjData, view: str, camera: Camera) -> None:
        option = mujoco.MjvOption()
        option.geomgroup[:] = 0
        option.geomgroup[scene.SHARED] = 1
        option.geomgroup[scene.SPECTATOR_ONLY if camera.spectator else scene.POLICY_ONLY] = 1
        option.sitegroup[:] = 0
        renderer.update_scene(data, camera=view, scene_option=option)
        flags = renderer.scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = camera.spectator
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        flags[mujoco.mjtRndFlag.mjRND_HAZE] = camera.spectator


def project(
    model: mujoco.MjModel, data: mujoco.MjData, view: str, size: tuple[int, int], points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, 2) (column, row; (0, 0) is the corner of the first pixel) of world points (n, 3) [m],
    and whether each lies in front of the camera (n,)."""
    camera = data.camera(view)
    local = (np.atleast_2d(points) - camera.xpos) @ camera.xmat.reshape(3, 3)
    in_front = local[:, 2] < -1e-6
    depth = np.where(in_front, -local[:, 2], np.nan)
    width, height = size
    focal = 0.5 * height / np.tan(0.5 * np.deg2rad(model.camera(view).fovy[0]))
    pixels = np.column_stack(
        [width / 2 + focal * local[:, 0] / depth, height / 2 - focal * local[:, 1] / depth]
    )
    return pixels, in_front
