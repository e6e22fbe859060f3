# SPDX-License-Identifier: Apache-2.0
"""What an expert does with a gripper that points down: push, pick up, place.

The next motion follows from what can be seen: where the tool is, how far it is open, where things are. There
is no phase and no memory: how low the tool goes depends on how far aside of its target it is, and whether it
closes, on whether a thing is between its fingers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qwen_vla_ros.sim.bodies import Arm
from qwen_vla_ros.sim.manipulation import CARRY, DIRECTIONS, LOWEST, is_held

if TYPE_CHECKING:
    from qwen_vla_ros.sim.tasks import Goal
    from qwen_vla_ros.sim.world import World

TICK = 0.05  # [s]
FAST = 0.35  # of the tool [m/s]
SLOW = 0.12  # near a thing [m/s]
_GAIN = 4.0  # speed for each metre that is left [1/s]
_FINGER_SPEED = 0.08  # of each finger [m/s]
# Metres of height for each metre aside. A policy sees a thing to a centimetre or so: of a steeper funnel it
# learns a mean that hovers above what it should take, and it closes there.
_FUNNEL = 2.0
_BELOW = 0.007  # how far below its middle a thing is taken [m]
_CLOSE = 0.010  # how far from the grasp point a gripper closes [m]
_LAG = 0.15  # by which an arm is behind what it is told [s]
_CLEAR = 0.09  # how high above a thing the tool passes [m]


@dataclass
class _Scene:
    """What a motion depends on [m]: tool, opening of a finger, thing, its half width, and where it goes."""

    x: float
    y: float
    z: float
    opening: float
    thing: list[float]
    width: float
    rest: float
    held: bool
    target: tuple[float, float] | None
    along: tuple[float, float] | None
    widest: float
    thickness: float
    low: float
    # Whether it moved to a grasp within this plan, and how long it still waits for the arm to be there too.
    moved: bool = False
    lag: float = 0.0


def tool_path(world: World, goal: Goal, horizon: int, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Tool positions (horizon, 3) in the world [m], and commanded openings of a finger (horizon,) [m]."""
    arm = world.arm(goal.arm)
    scene = _look(world, goal, arm)
    move = {"push": _push, "place": _place}.get(goal.task, _pick)
    ticks = max(1, round(step / TICK))
    rows, openings = [], []
    for _ in range(horizon):
        command = scene.opening
        for _ in range(ticks):
            command = move(scene, step / ticks)
        rows.append((scene.x, scene.y, scene.z))
        openings.append(command)
    return np.array(rows), np.array(openings)


def _look(world: World, goal: Goal, arm: Arm) -> _Scene:
    x, y, z = world.tool(goal.arm).tolist()
    thing = world.things[goal.target]
    target = world.data.body(goal.other_target).xpos[:2].tolist() if goal.other_target else None
    return _Scene(
        x,
        y,
        z,
        world.opening(goal.arm),
        world.data.body(goal.target).xpos.tolist(),
        thing.width,
        thing.height,
        is_held(world, goal.arm, goal.target),
        target,
        tuple(DIRECTIONS[goal.direction].tolist()) if goal.direction else None,
        arm.opening[1] - arm.opening[0],
        arm.thickness,
        max(LOWEST, min(thing.height, 0.03)),
        lag=_LAG,
    )


def _toward(s: _Scene, x: float, y: float, z: float, tick: float, fastest: float = FAST) -> None:
    """Move the tool, and what it holds; it slows down as it arrives."""
    dx, dy, dz = x - s.x, y - s.y, z - s.z
    left = math.sqrt(dx * dx + dy * dy + dz * dz)
    if left > 1e-9:
        share = min(1.0, tick * min(fastest, _GAIN * left + 0.01) / left)
        dx, dy, dz = share * dx, share * dy, share * dz
        s.x, s.y, s.z = s.x + dx, s.y + dy, s.z + dz
        if s.held:
            s.thing = [s.thing[0] + dx, s.thing[1] + dy, s.thing[2] + dz]


def _open(s: _Scene, tick: float) -> float:
    s.opening = min(s.widest, s.opening + _FINGER_SPEED * tick)
    return s.widest


def _approach(s: _Scene, x: float, y: float, z: float, tick: float, ready: bool) -> None:
    """Come down on a point by a funnel: high while aside of it, down when above; stay up until ready."""
    aside = math.hypot(s.x - x, s.y - y)
    height = z + min(_CLEAR, max(0.0, _FUNNEL * (aside - 0.007)))
    if not ready:
        height = max(height, z + s.rest + 0.03)
    if s.z < height - 0.03 and aside > 0.02:
        # Too low to go aside: up first.
        _toward(s, s.x, s.y, height + 0.02, tick)
    else:
        _toward(s, x, y, height, tick, FAST if s.z > z + 0.06 else SLOW)


def _grasp(s: _Scene, tick: float) -> float:
    x, y = s.thing[0], s.thing[1]
    z = max(LOWEST, s.thing[2] - _BELOW)
    # Closing goes on through small slips: the more closed, the more is forgiven.
    allowed = _CLOSE + 0.012 * max(0.0, 1.0 - s.opening / s.widest)
    if math.hypot(s.x - x, s.y - y) < allowed and abs(s.z - z) < allowed - 0.002:
        if s.opening < s.width - 0.004:
            return _open(s, tick)  # closed above or beside it
        if s.moved and s.lag > 0.0:
            s.lag -= tick
            _toward(s, x, y, z, tick, SLOW)
            return _open(s, tick)
        s.opening = max(s.width, s.opening - _FINGER_SPEED * tick)
        if s.opening <= s.width + 0.001:
            s.held = True
        return 0.0
    s.moved = True
    _approach(s, x, y, z, tick, s.opening > s.width + 0.008)
    return _open(s, tick)


def _pick(s: _Scene, tick: float) -> float:
    if not s.held:
        return _grasp(s, tick)
    _toward(s, s.x, s.y, CARRY, tick, 0.2)
    return 0.0


def _place(s: _Scene, tick: float) -> float:
    assert s.target is not None
    x, y = s.target
    on_pad = math.hypot(s.thing[0] - x, s.thing[1] - y) < 0.025 and s.thing[2] < s.rest + 0.012
    if on_pad:
        # Let go, then up.
        s.held = False
        command = _open(s, tick)
        if s.opening > s.width + 0.006:
            _toward(s, s.x, s.y, CARRY, tick, 0.2)
        return command
    if not s.held:
        return _grasp(s, tick)
    # The thing, not the tool, comes down on the pad.
    offset = (s.x - s.thing[0], s.y - s.thing[1], s.z - s.thing[2])
    aside = math.hypot(s.thing[0] - x, s.thing[1] - y)
    height = s.rest + 0.004 + min(CARRY - 0.05, max(0.0, _FUNNEL * (aside - 0.012)))
    if s.thing[2] < height - 0.04 and aside > 0.03:
        _toward(s, s.x, s.y, height + offset[2] + 0.02, tick, 0.2)
    else:
        _toward(s, x + offset[0], y + offset[1], height + offset[2], tick, 0.25 if aside > 0.04 else SLOW)
    return 0.0


def _push(s: _Scene, tick: float) -> float:
    """Closed fingers behind the thing, low, then on along the direction."""
    assert s.along is not None
    ux, uy = s.along
    dx, dy = s.x - s.thing[0], s.y - s.thing[1]
    along, aside = dx * ux + dy * uy, -dx * uy + dy * ux
    contact = s.width + s.thickness
    s.opening = max(0.0, s.opening - _FINGER_SPEED * tick)
    behind = -(contact + 0.025)
    if -contact - 0.045 < along < -0.5 * contact and abs(aside) < 0.013 and s.z < s.low + 0.02:
        # Straight on, closing in on the middle of the thing.
        target = (s.thing[0] + 0.3 * ux, s.thing[1] + 0.3 * uy)
        beyond = abs(s.thing[1]) > 0.34 and s.thing[1] * uy > 0.0
        if beyond:
            return 0.0
        share = tick * 0.10 / 0.3
        s.x += share * (target[0] - s.x) + 0.25 * aside * uy
        s.y += share * (target[1] - s.y) - 0.25 * aside * ux
        s.z += 0.3 * (s.low - s.z)
        ahead = (s.x - s.thing[0]) * ux + (s.y - s.thing[1]) * uy
        if ahead > -contact:
            s.thing[0] += (ahead + contact) * ux
            s.thing[1] += (ahead + contact) * uy
        return 0.0
    _approach(s, s.thing[0] + behind * ux, s.thing[1] + behind * uy, s.low, tick, s.opening < 0.01)
    return 0.0
