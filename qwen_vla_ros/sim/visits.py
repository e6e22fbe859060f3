# SPDX-License-Identifier: Apache-2.0
"""States for demonstrations of the setting `full`: what a policy that errs will meet.

Where nothing is moved, states are teleported. Where things are moved, the expert runs in physics from a state
in the middle of its work, with errors added to what it does, and the states on its way are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from qwen_vla_ros.sim.errors import SimulationError
from qwen_vla_ros.sim.experts import TOOL_TASKS, joint_chunk, sample_states
from qwen_vla_ros.sim.manipulation import CARRY, LOWEST
from qwen_vla_ros.sim.tasks import Goal
from qwen_vla_ros.sim.world import World

# Puts a world into some states of a scene: (world, task, scene, rng, states) to the goal of each.
Visitor = Callable[[World, str, int, np.random.Generator, int], Iterator[Goal]]

_EVERY = 0.5  # time between two states of a run [s]
_SUBSTEP = 0.02  # [s]
_JOINT_ERROR = (0.0, 0.010, 0.03)  # what a run adds to all rows of a chunk, one of them per chunk [rad]
_WRONG_GRIPPER = 0.04  # share of chunks in which the gripper does the opposite
_TILT = (0.0, 0.02, 0.08)  # joint noise of the first state, one of them [rad]


def visit(world: World, task: str, seed: int, rng: np.random.Generator, count: int) -> Iterator[Goal]:
    """Put the world into `count` states of one scene; yields, in each, the goal that the robot was after."""
    world.reset(task, seed)
    goals = world.goals()
    if task not in TOOL_TASKS:
        for _ in range(count):
            goal = goals[int(rng.integers(len(goals)))]
            (state,) = sample_states(world, goal, rng, 1)
            world.teleport(state.joints, state.base_pose)
            yield goal
        return
    goal = goals[int(rng.integers(len(goals)))]
    try:
        _begin(world, goal, rng)
        for index in range(count):
            if index:
                _err(world, goal, rng)
            yield goal
    except SimulationError:
        # Things were put into one another, and flew: the states before that are good.
        return


def _begin(world: World, goal: Goal, rng: np.random.Generator) -> None:
    """Somewhere in the work: far away, over the thing, or with it in hand."""
    arm, thing = world.arm(goal.arm), world.things[goal.target]
    centre = world.objects[goal.target][0]
    postures = world.postures(goal.arm)
    widest = arm.opening[1] - arm.opening[0]
    start = rng.random()
    opening = widest if rng.random() < 0.8 else float(rng.uniform(0.0, widest))
    held = False
    # Placing is little else than carrying.
    in_hand, above = (0.55, 0.80) if goal.other_target else (0.35, 0.70)
    if goal.task != "push" and start < in_hand:
        # In hand, perhaps on the way to the pad.
        held = True
        place = centre[:2] + rng.normal(0.0, 0.03, 2) * (rng.random() < 0.7)
        if goal.other_target and rng.random() < 0.75:
            pad = world.objects[goal.other_target][0][:2]
            place = place + rng.random() ** 0.5 * (pad - place) + rng.normal(0.0, 0.02, 2)
        point = np.array([*place, rng.uniform(max(LOWEST, thing.height), CARRY + 0.02)])
        if rng.random() < 0.2:
            point[2] = max(LOWEST, thing.height)
        opening = thing.width
    elif start < above:
        aside = rng.normal(0.0, rng.choice([0.006, 0.03]), 2)
        point = np.array([*(centre[:2] + aside), centre[2] + rng.uniform(0.0, 0.14)])
        if np.abs(aside).max() > 0.007 or opening < thing.width + 0.01:
            point[2] = max(point[2], centre[2] + thing.height + 0.02)
    else:
        assert arm.space is not None
        lower, upper = np.array(arm.space)
        point = rng.uniform(lower + 0.05, upper - 0.05)
        point[2] = rng.uniform(0.12, 0.33)
    if goal.task == "push" and rng.random() < 0.8:
        opening = 0.0
    angles = postures.at(point)[0]
    if not np.isfinite(angles).all():
        angles = np.array([world.home[name] for name in arm.joints])
        held, opening = False, widest
    elif not held:
        angles = angles + rng.normal(0.0, rng.choice(_TILT), len(angles))
    joints = dict(zip(arm.joints, angles.tolist(), strict=True))
    if arm.gripper is not None:
        joints[arm.gripper] = arm.opening[0] + opening
    if held:
        others = [position[:2] for name, (position, _) in world.objects.items() if name != goal.target]
        if point[2] < 0.08 and min(np.linalg.norm(other - point[:2]) for other in others) < 0.075:
            point[2] = CARRY
            joints |= dict(zip(arm.joints, postures.at(point)[0].tolist(), strict=True))
        slip = np.array([rng.uniform(-0.006, 0.006), 0.0, rng.uniform(-0.006, 0.006)])
        if point[2] < thing.height + 0.01:
            slip[2] = max(slip[2], thing.height - point[2])
        world.move_object(goal.target, point + slip)
    world.teleport(joints)
    if held and arm.gripper is not None:
        world.set_joint_targets({arm.gripper: arm.opening[0]})
    world.step(0.06)


def _err(world: World, goal: Goal, rng: np.random.Generator) -> None:
    """Follow the expert for a while in physics, with an error."""
    arm, channels = world.arm(goal.arm), world.body.channels
    rows = joint_chunk(world, goal, round(_EVERY / 0.1), 0.1)
    moved = np.array([name in arm.joints for name in channels])
    error = moved * rng.normal(0.0, rng.choice(_JOINT_ERROR), len(channels))
    if arm.gripper is not None and rng.random() < _WRONG_GRIPPER:
        column = channels.index(arm.gripper)
        rows[:, column] = arm.opening[0] + arm.opening[1] - rows[:, column]
    lower, upper = world.joint_ranges.T
    order = [world.joint_names.index(name) for name in channels]
    now = world.joint_positions[order]
    grippers = np.array([any(name == each.gripper for each in world.body.arms) for name in channels])
    for index, row in enumerate(rows):
        share = (index + 1) / len(rows)
        target = np.clip(row + share * error, lower[order] + 0.01 * moved, upper[order] - 0.01 * moved)
        for part in range(round(0.1 / _SUBSTEP)):
            along = (part + 1) * _SUBSTEP / 0.1
            command = np.where(grippers, target, now + along * (target - now))
            world.set_joint_targets(dict(zip(channels, command.tolist(), strict=True)))
            world.step(_SUBSTEP)
        now = target
