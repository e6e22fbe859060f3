# SPDX-License-Identifier: Apache-2.0
"""MuJoCo worlds, tasks, scripted experts and controller models; knows nothing of ROS."""

import os

# Read by mujoco when it is first imported; EGL needs no display.
os.environ.setdefault("MUJOCO_GL", "egl")

from qwen_vla_ros.sim.errors import SimulationError
from qwen_vla_ros.sim.experts import expert_chunk, expert_path, sample_states
from qwen_vla_ros.sim.tasks import Goal, Outcome
from qwen_vla_ros.sim.visits import visit
from qwen_vla_ros.sim.world import Episode, World, make_world

__all__ = [
    "Episode",
    "Goal",
    "Outcome",
    "SimulationError",
    "World",
    "expert_chunk",
    "expert_path",
    "make_world",
    "sample_states",
    "visit",
]
