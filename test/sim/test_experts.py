# SPDX-License-Identifier: Apache-2.0
"""The scripted experts succeed in physics and keep their promises to the learner."""

from __future__ import annotations

import os

import numpy as np
import pytest

from qwen_vla_ros.embodiment import Embodiment, load_embodiment
from qwen_vla_ros.sim import expert_chunk, expert_path, make_world, sample_states
from qwen_vla_ros.sim.bodies import BODIES

ALL = tuple(BODIES)
ARMS = ("panda", "aloha", "g1")
SEEDS = range(int(os.environ.get("QWEN_VLA_SIM_SEEDS", "4")))


def chunk_of(world, goal=None):
    return expert_chunk(world, goal, world.embodiment.horizon, 1.0 / world.embodiment.control_rate)


@pytest.mark.parametrize("body", ALL)
def test_the_expert_succeeds_in_physics(world_of, follow, body):
    world = world_of(body)
    for seed in SEEDS:
        episode = world.reset(world.tasks[0], seed)
        start = world.time
        while not world.outcome().success and world.time - start < episode.time_limit:
            follow(world, chunk_of(world))
        assert world.outcome().success, f"seed {seed}: {world.outcome()}"


@pytest.mark.parametrize("body", ARMS)
def test_no_joint_moves_more_than_a_step_may(world_of, body):
    world = world_of(body)
    world.reset(world.tasks[0], 0)
    arm = np.array([name in world._arm_joints() for name in world.body.channels])
    for goal in world.goals():
        chunk = chunk_of(world, goal)
        assert chunk.shape == (16, len(world.body.channels))
        measured = dict(zip(world.joint_names, world.joint_positions, strict=True))
        rows = np.vstack([[measured[name] for name in world.body.channels], chunk])
        assert np.abs(np.diff(rows[:, arm], axis=0)).max() <= 0.08 + 1e-9


@pytest.mark.parametrize("body", ["aloha", "g1"])
def test_the_arm_that_is_not_named_goes_home(world_of, body):
    world = world_of(body)
    world.reset(world.tasks[0], 0)
    named = next(goal for goal in world.goals() if goal.arm == "left")
    other = next(goal for goal in world.goals() if goal.arm == "right")
    world.teleport(joints=dict(zip(world.body.channels, expert_path(world, other)[-1], strict=True)))
    last = dict(zip(world.body.channels, expert_path(world, named)[-1], strict=True))
    for joint in world.body.arms[1].joints:
        assert last[joint] == pytest.approx(world.home[joint])


@pytest.mark.parametrize("body", ARMS)
def test_where_an_arm_ends_depends_on_the_target_alone(world_of, body):
    world = world_of(body)
    world.reset(world.tasks[0], 0)
    goal = world.goal
    end = expert_path(world, goal)[-1]
    for state in sample_states(world, goal, np.random.default_rng(0), 5):
        world.teleport(joints=state.joints)
        assert expert_path(world, goal)[-1] == pytest.approx(end, abs=1e-12)


@pytest.mark.parametrize("body", ALL)
def test_sampled_states_are_varied_and_the_expert_knows_what_to_do(world_of, body):
    world = world_of(body)
    world.reset(world.tasks[0], 0)
    states = sample_states(world, world.goal, np.random.default_rng(1), 40)
    again = sample_states(world, world.goal, np.random.default_rng(1), 40)
    seen = []
    for state, same in zip(states, again, strict=True):
        world.teleport(joints=state.joints, base_pose=state.base_pose)
        seen.append(world.base_pose if world.body.base else world.joint_positions)
        assert np.isfinite(chunk_of(world)).all()
        if world.body.base is None:
            assert state.joints == same.joints
            ranges = world.joint_ranges
            assert (seen[-1] >= ranges[:, 0] - 1e-9).all()
            assert (seen[-1] <= ranges[:, 1] + 1e-9).all()
        else:
            assert (state.base_pose == same.base_pose).all()
    assert np.std(seen, axis=0).max() > 0.1


@pytest.mark.parametrize("reference", ["chunk_start", "previous_step"])
def test_joints_relative_to_what_the_embodiment_says(reference):
    absolute = load_embodiment("aloha_viperx")
    document = absolute.model_dump(mode="json", by_alias=True, exclude_unset=True)
    for group in document["actions"]:
        if group["kind"] == "joint_position":
            group["reference"] = reference
    relative = Embodiment.model_validate(document)
    chunks = []
    for body in (absolute, relative):
        with make_world(body) as world:
            world.reset("reach_with_arm", 3)
            now, names = world.joint_positions, world.joint_names
            chunks.append(chunk_of(world))
    now = now[[names.index(name) for name in absolute.joints]]
    rows, changes = chunks
    arms = np.array(["finger" not in name for name in absolute.joints])
    expected = rows - now if reference == "chunk_start" else np.diff(np.vstack([now, rows]), axis=0)
    np.testing.assert_allclose(changes, np.where(arms, expected, rows), atol=1e-9)


def test_waypoints_are_poses_relative_to_the_base_now(world_of):
    world = world_of("tiago")
    world.reset("drive", 0)
    goal = world.goal
    path = expert_path(world, goal)
    chunk = chunk_of(world, goal)
    assert chunk.shape == (8, 3)
    # At the world's origin both frames are one.
    assert chunk[0] == pytest.approx(path[1], abs=1e-6)
    # Moving the world under the robot changes nothing that the robot can see.
    turn = 1.1
    c, s = np.cos(turn), np.sin(turn)
    for name, (position, colour) in world.objects.items():
        x, y, _ = position
        world.place(name, (c * x - s * y + 0.5, s * x + c * y - 0.2, 0.0), colour)
    world.teleport(base_pose=(0.5, -0.2, turn))
    assert chunk_of(world, goal) == pytest.approx(chunk, abs=1e-6)


@pytest.mark.parametrize("bearing", [1.0, 2.5, -1.0, -2.5])
def test_a_pillar_far_to_the_side_is_always_turned_to_by_the_left(world_of, bearing):
    world = world_of("tiago")
    world.reset("drive", 0)
    x, y, _ = world.task.point(world, world.goal)
    world.teleport(base_pose=(0.0, 0.0, np.arctan2(y, x) - bearing))
    first = chunk_of(world)[0]
    assert first[2] > 0.2
    assert np.hypot(*first[:2]) < 0.05


def test_the_expert_stays_where_it_has_arrived(world_of):
    world = world_of("tiago")
    world.reset("drive", 0)
    world.teleport(base_pose=expert_path(world)[-1])
    assert np.abs(chunk_of(world)).max() < 0.01
