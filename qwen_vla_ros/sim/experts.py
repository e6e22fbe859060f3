# SPDX-License-Identifier: Apache-2.0
"""Scripted experts: what the robot should do next, from the scene's true state."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from qwen_vla_ros.sim.catalogue import TASKS
from qwen_vla_ros.sim.errors import SimulationError
from qwen_vla_ros.sim.gestures import Wave
from qwen_vla_ros.sim.navigation import GoBetween
from qwen_vla_ros.sim.tasks import Drive, Goal
from qwen_vla_ros.sim.tool_expert import tool_path
from qwen_vla_ros.sim.world import World

# Arms: the fastest joint moves at 0.08 rad per 0.1 s, the others in proportion.
JOINT_SPEED = 0.8  # [rad/s]

# Tasks in which the tool points down and follows a path; a posture that deviates from that comes back [s].
TOOL_TASKS = ("push", "pick_up", "place", "pick_up_with_arm")
_FADE = 0.4

# Base.
SPEED = 0.5  # [m/s]
TURN = 0.9  # [rad/s]
_TURN_GAIN = 2.0  # [1/s]
_SPEED_GAIN = 1.0  # [1/s]
_AHEAD = 0.5  # bearing beyond which the base turns on the spot [rad]
_ALWAYS_LEFT = 0.9  # bearing beyond which it turns left wherever the pillar is [rad]
_TICK = 0.05  # [s]
_THROUGH = 0.35  # speed between two pillars [m/s]
_BEYOND = 0.3  # behind the middle of two pillars it stops [m]


@dataclass(frozen=True)
class State:
    """Where World.teleport() puts a robot."""

    joints: dict[str, float] | None = None
    base_pose: np.ndarray | None = None


def expert_chunk(world: World, goal: Goal | None, horizon: int, step: float) -> np.ndarray:
    """What the expert does from the world's present state, shape (horizon, c), in the embodiment's channels.

    Row k is to be reached `(k + 1) * step` [s] from now. Joints are absolute [rad, m]; rows of waypoints are
    poses (dx, dy, dtheta) [m, m, rad] relative to the base now; end-effector rows are changes as the
    embodiment says [m, rad]. goal: None for the world's own.
    """
    goal = world.goal if goal is None else goal
    if world.body.base is not None:
        return _drive(world.base_pose, world, goal, horizon, step)
    return _as_actions(world, joint_chunk(world, goal, horizon, step))


def joint_chunk(world: World, goal: Goal, horizon: int, step: float) -> np.ndarray:
    """The same in absolute joints of the body's channels, shape (horizon, n) [rad, m]."""
    measured = dict(zip(world.joint_names, world.joint_positions, strict=True))
    now = np.array([measured[name] for name in world.body.channels])
    if goal.task in TOOL_TASKS:
        return _with_tool(world, goal, now, horizon, step)
    if goal.task == "wave":
        return _wave(world, goal, now, horizon, step)
    return _straight(world, now, expert_target(world, goal), horizon, step)


def _wave(world: World, goal: Goal, now: np.ndarray, horizon: int, step: float) -> np.ndarray:
    """The hand goes round on a closed way, so that its posture tells where it goes next.

    From elsewhere it goes to the nearest place of that way; the other arm goes home.
    """
    task = TASKS["wave"]
    assert isinstance(task, Wave)
    assert goal.arm is not None
    channels = world.body.channels
    yaw, elbow = (channels.index(f"{goal.arm}_{joint}_joint") for joint in ("shoulder_yaw", "elbow"))
    home = np.array([world.home[name] for name in channels])
    row, rows = now, []
    for _ in range(horizon):
        phase = task.phase(goal.arm, float(row[yaw]), float(row[elbow]))
        # Far from the way it goes to it first, and only then around.
        there = {**dict(zip(channels, home, strict=True)), **task.posture(goal.arm, phase)}
        left = float(np.abs(np.array([there[name] for name in channels]) - row).max())
        share = max(0.0, 1.0 - left / 0.3)
        phase += share * 2.0 * np.pi * step / task.period
        there |= task.posture(goal.arm, phase)
        row = _straight(world, row, np.array([there[name] for name in channels]), 1, step)[0]
        rows.append(row)
    return np.array(rows)


def _as_actions(world: World, rows: np.ndarray) -> np.ndarray:
    """Absolute joints (h, n) as the embodiment's groups have them, (h, c)."""
    now = [world.joint_positions[world.joint_names.index(name)] for name in world.body.channels]
    path = np.vstack([now, rows])
    parts = []
    for group in world.embodiment.actions:
        reference = getattr(group, "reference", "absolute")
        before = slice(0, -1) if reference == "previous_step" else slice(0, 1)
        if group.kind != "eef_delta":
            columns = np.array([world.body.channels.index(name) for name in getattr(group, "joints", ())])
            start = 0.0 if reference == "absolute" else path[before][:, columns]
            parts.append(rows[:, columns] - start)
            continue
        if group.rotation != "rpy":
            raise SimulationError(f"group {group.name}: the expert knows rotations as rpy only")
        positions, rotations = world.tool_poses(world.body.arms[0].name, path)
        turns = rotations[1:] @ rotations[before].transpose(0, 2, 1)
        rpy = np.column_stack(
            [
                np.arctan2(turns[:, 2, 1], turns[:, 2, 2]),
                -np.arcsin(np.clip(turns[:, 2, 0], -1.0, 1.0)),
                np.arctan2(turns[:, 1, 0], turns[:, 0, 0]),
            ]
        )
        parts.append(np.hstack([positions[1:] - positions[before], rpy]))
    return np.hstack(parts)


def _with_tool(world: World, goal: Goal, now: np.ndarray, horizon: int, step: float) -> np.ndarray:
    """The arm follows its tool's path with the tool pointing down; what it deviates from that fades."""
    arm = world.arm(goal.arm)
    points, openings = tool_path(world, goal, horizon, step)
    postures = world.postures(goal.arm)
    home = np.array([world.home[name] for name in world.body.channels])
    rows = _straight(world, now, home, horizon, step)
    columns = [world.body.channels.index(name) for name in arm.joints]
    found = postures.at(np.vstack([world.tool(goal.arm), points]))
    # Beyond what the arm can reach with its tool down it stays at the last place where it could.
    for row in range(len(found)):
        if not np.isfinite(found[row]).all():
            found[row] = found[row - 1] if row else now[columns]
    deviation = now[columns] - found[0]
    fade = np.exp(-np.arange(1, horizon + 1) * step / _FADE)[:, None]
    rows[:, columns] = found[1:] + fade * deviation
    if arm.gripper is not None:
        rows[:, world.body.channels.index(arm.gripper)] = arm.opening[0] + openings
    return rows


def expert_target(world: World, goal: Goal) -> np.ndarray:
    """Joints (c,) in which a goal is reached [rad, m]: the arm that is named reaches, all else is home."""
    reach: dict[str, float] = {}
    for arm, point in TASKS[goal.task].reaches(world, goal).items():
        joints, left = world.reach(arm, point)
        if left > 0.02:
            raise SimulationError(f"goal {goal.instruction!r} is out of reach by {100 * left:.1f} cm")
        reach |= joints
    return np.array([{**world.home, **reach}[name] for name in world.body.channels])


def expert_path(world: World, goal: Goal | None = None, step: float | None = None) -> np.ndarray:
    """The expert's whole way from the present state, which is its first row, shape (n, c), n >= 1.

    Joints are absolute; poses of a base are in the world. step: between rows [s], by default that of the
    control rate.
    """
    goal = world.goal if goal is None else goal
    step = 1.0 / world.embodiment.control_rate if step is None else step
    if world.body.base is not None:
        start = world.base_pose
        count = int(np.ceil(world.task.time_limit / step))
        rows = np.vstack([np.zeros(3), _drive(start, world, goal, count, step)])
        moving = np.abs(np.diff(rows, axis=0)).max(axis=1) > 1e-3
        rows = rows[: 1 + (int(np.flatnonzero(moving)[-1]) + 1 if moving.any() else 0)]
        return _to_world(start, rows)
    measured = dict(zip(world.joint_names, world.joint_positions, strict=True))
    now = np.array([measured[name] for name in world.body.channels])
    if goal.task in (*TOOL_TASKS, "wave"):
        raise SimulationError(f"task {goal.task!r}: the expert's way depends on what it meets")
    target = expert_target(world, goal)
    count = int(np.ceil(np.abs(target - now)[_rotary(world)].max() / (JOINT_SPEED * step)))
    return np.vstack([now, _straight(world, now, target, count, step)])


def sample_states(
    world: World,
    goal: Goal,
    rng: np.random.Generator,
    count: int,
    noise: tuple[float, ...] = (0.03, 0.12),
) -> list[State]:
    """States along and around the expert's ways to a goal, to be given to World.teleport().

    Ways start at home or, one in three, where another goal of the scene is reached. noise: standard
    deviations of joint noise [rad], one of which is drawn per state; a base gets as much in heading and half
    of the number in metres.
    """
    if world.body.base is not None:
        return _sample_base(world, goal, rng, count, noise)
    channels = world.body.channels
    home = np.array([world.home[name] for name in channels])
    waves = goal.task == "wave"
    others = [] if waves else [expert_target(world, other) for other in world.goals() if other != goal]
    ranges = dict(zip(world.joint_names, world.joint_ranges, strict=True))
    lower, upper = np.array([ranges[name] for name in channels]).T
    rotary = _rotary(world)
    states = []
    for _ in range(count):
        start = others[int(rng.integers(len(others)))] if others and rng.random() < 1 / 3 else home
        target = _waving(world, goal, rng) if waves else expert_target(world, goal)
        row = start + rng.beta(1.0, 0.8) * (target - start)
        row = row + rotary * rng.normal(0.0, rng.choice(noise), size=len(row))
        row = np.clip(row, lower, upper)
        states.append(State(joints=dict(zip(channels, row.tolist(), strict=True))))
    return states


def _waving(world: World, goal: Goal, rng: np.random.Generator) -> np.ndarray:
    """A posture on or near the way that a waving hand goes round."""
    task = TASKS["wave"]
    assert isinstance(task, Wave)
    assert goal.arm is not None
    posture = task.posture(goal.arm, rng.uniform(-np.pi, np.pi), rng.uniform(0.3, 1.2))
    return np.array([{**world.home, **posture}[name] for name in world.body.channels])


def _sample_base(
    world: World, goal: Goal, rng: np.random.Generator, count: int, noise: tuple[float, ...]
) -> list[State]:
    pillars = np.array([position[:2] for position, _ in world.objects.values()])
    states: list[State] = []
    while len(states) < count:
        start = np.array([rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3), rng.uniform(-0.9, 0.9)])
        if rng.random() < 0.5:
            start = np.zeros(3)
        rows = np.vstack(
            [start, _to_world(start, _drive(start, world, goal, int(world.task.time_limit / 0.25), 0.25))]
        )
        moving = np.abs(np.diff(rows, axis=0)).max(axis=1) > 1e-3
        last = int(np.flatnonzero(moving)[-1]) + 1 if moving.any() else 0
        # Four rows of rest at the end, so that arriving is seen often enough.
        row = rows[min(int(rng.integers(last + 5)), last)]
        spread = float(rng.choice(noise))
        row = row + rng.normal(size=3) * (0.5 * spread, 0.5 * spread, spread)
        if np.linalg.norm(pillars - row[:2], axis=1).min() > 0.45:
            states.append(State(base_pose=row))
    return states


def _rotary(world: World) -> np.ndarray:
    arm = {joint for arm in world.body.arms for joint in arm.joints}
    return np.array([name in arm for name in world.body.channels])


def _straight(world: World, now: np.ndarray, target: np.ndarray, horizon: int, step: float) -> np.ndarray:
    """Straight in joint space, no joint faster than JOINT_SPEED; grippers go to their target at once."""
    rotary = _rotary(world)
    difference = np.where(rotary, target - now, 0.0)
    longest = np.abs(difference).max()
    share = np.ones(horizon)
    if longest > 0.0:
        share = np.minimum(1.0, JOINT_SPEED * step * np.arange(1, horizon + 1) / longest)
    rows = now + share[:, None] * difference
    return np.where(rotary, rows, target)


def _drive(start: np.ndarray, world: World, goal: Goal, horizon: int, step: float) -> np.ndarray:
    """Poses (horizon, 3) relative to `start`, of a unicycle steered to the goal's pillar."""
    task = TASKS[goal.task]
    assert isinstance(task, Drive)
    pillar_x, pillar_y, _ = task.point(world, goal).tolist()
    x, y, yaw = np.asarray(start, dtype=float).tolist()
    rows = []
    ticks = max(1, round(step / _TICK))
    tick = step / ticks
    for _ in range(horizon):
        for _ in range(ticks):
            if isinstance(task, GoBetween):
                to_x, to_y, along = task.carrot(world, goal, x, y)
                v, w = _steer(to_x - x, to_y - y, yaw, 0.0, _THROUGH)
                if along > _BEYOND:
                    v, w = 0.0, 0.0
            else:
                v, w = _steer(pillar_x - x, pillar_y - y, yaw, task.stop)
            x += v * tick * math.cos(yaw + 0.5 * w * tick)
            y += v * tick * math.sin(yaw + 0.5 * w * tick)
            yaw += w * tick
        rows.append((x, y, yaw))
    return _to_base(np.asarray(start), np.array(rows))


def _steer(dx: float, dy: float, yaw: float, stop: float, least: float = 0.0) -> tuple[float, float]:
    bearing = (math.atan2(dy, dx) - yaw + math.pi) % (2 * math.pi) - math.pi
    if abs(bearing) > _ALWAYS_LEFT:
        return 0.0, TURN
    w = min(TURN, max(-TURN, _TURN_GAIN * bearing))
    ahead = max(0.0, 1.0 - abs(bearing) / _AHEAD)
    v = min(SPEED, max(least, _SPEED_GAIN * (math.hypot(dx, dy) - stop))) * ahead
    return v, w


def _to_base(pose: np.ndarray, rows: np.ndarray) -> np.ndarray:
    x, y, yaw = pose
    dx, dy = rows[:, 0] - x, rows[:, 1] - y
    c, s = np.cos(yaw), np.sin(yaw)
    return np.column_stack([c * dx + s * dy, -s * dx + c * dy, rows[:, 2] - yaw])


def _to_world(pose: np.ndarray, rows: np.ndarray) -> np.ndarray:
    x, y, yaw = pose
    c, s = np.cos(yaw), np.sin(yaw)
    return np.column_stack(
        [x + c * rows[:, 0] - s * rows[:, 1], y + s * rows[:, 0] + c * rows[:, 1], yaw + rows[:, 2]]
    )
