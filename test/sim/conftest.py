# SPDX-License-Identifier: Apache-2.0
"""Worlds, made once per body, and a follower of chunks without ROS."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from qwen_vla_ros.sim import World, make_world


@pytest.fixture(scope="session")
def world_of() -> Iterator[Callable[[str], World]]:
    worlds: dict[str, World] = {}

    def get(body: str) -> World:
        if body not in worlds:
            worlds[body] = make_world(body)
        return worlds[body]

    yield get
    for world in worlds.values():
        world.close()


@pytest.fixture(scope="session")
def follow() -> Callable[[World, np.ndarray], None]:
    """Follow the first execute_steps rows of a chunk in physics, with ideal controllers."""

    def run(world: World, chunk: np.ndarray) -> None:
        (_follow_joints if world.body.base is None else _follow_base)(world, chunk)

    return run


def _follow_joints(world: World, chunk: np.ndarray) -> None:
    step = 1.0 / world.embodiment.control_rate
    measured = dict(zip(world.joint_names, world.joint_positions, strict=True))
    rows = np.vstack([[measured[name] for name in world.body.channels], chunk])
    for a, b in itertools.pairwise(rows[: world.embodiment.execute_steps + 1]):
        for share in np.linspace(0.1, 1.0, 10):
            row = a + share * (b - a)
            world.set_joint_targets(dict(zip(world.body.channels, row.tolist(), strict=True)))
            world.step(step / 10)


def _follow_base(world: World, chunk: np.ndarray) -> None:
    step = 1.0 / world.embodiment.control_rate
    x, y, yaw = world.base_pose
    c, s = np.cos(yaw), np.sin(yaw)
    rows = np.vstack([np.zeros(3), chunk])
    rows = np.column_stack(
        [x + c * rows[:, 0] - s * rows[:, 1], y + s * rows[:, 0] + c * rows[:, 1], yaw + rows[:, 2]]
    )
    for a, b in itertools.pairwise(rows[: world.embodiment.execute_steps + 1]):
        for share in np.arange(20) / 20:
            wanted = a + share * (b - a)
            px, py, heading = world.base_pose
            c, s = np.cos(heading), np.sin(heading)
            ahead = c * (wanted[0] - px) + s * (wanted[1] - py)
            aside = -s * (wanted[0] - px) + c * (wanted[1] - py)
            turn = (wanted[2] - heading + np.pi) % (2 * np.pi) - np.pi
            v = np.hypot(*(b - a)[:2]) / step + 1.5 * ahead
            world.set_base_velocity(v, (b - a)[2] / step + 2.0 * turn + 2.0 * aside * max(v, 0.0))
            world.step(step / 20)
