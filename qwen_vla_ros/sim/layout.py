# SPDX-License-Identifier: Apache-2.0
"""Scenes of the setting `full`: what lies where, of which kind, size and colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qwen_vla_ros.sim.bodies import CLUTTER, OBJECTS, PADS
from qwen_vla_ros.sim.errors import SimulationError
from qwen_vla_ros.sim.scene import COLOURS

if TYPE_CHECKING:
    from qwen_vla_ros.sim.world import World

_TRIES = 2000
KINDS = ("cube", "ball", "cylinder")
_NEUTRAL = np.array(
    [(0.12, 0.12, 0.13), (0.45, 0.45, 0.47), (0.90, 0.90, 0.88), (0.42, 0.29, 0.18), (0.70, 0.62, 0.50)]
)


@dataclass(frozen=True)
class Table:
    """A table top.

    lower, upper: where things that matter lie, (x, y) [m]. beyond: how far around them clutter lies [m].
    apart: least distance of two things [m]. pads: share of scenes that have pads. shared: share of scenes in
    which two things may have the same colour, so that what kind of thing is meant matters.
    yaw: of cubes, either way [rad].
    """

    lower: tuple[float, float]
    upper: tuple[float, float]
    apart: float = 0.115
    beyond: float = 0.12
    pads: float = 0.6
    yaw: float = 0.25
    shared: float = 0.15


def lay_table(world: World, rng: np.random.Generator, table: Table, pads: bool) -> list[np.ndarray]:
    """Place three things, perhaps two pads, and clutter; returns the things' places.

    pads: whether there must be pads.
    """
    pads = bool(rng.random() < table.pads) or pads
    names = [*OBJECTS, *(PADS if pads else ())]
    lower, upper = np.array(table.lower), np.array(table.upper)
    places = _spread(rng, lower, upper, len(names), table.apart)
    pairs = rng.permutation(len(COLOURS) * len(KINDS))
    if rng.random() >= table.shared:
        pairs = rng.permutation(len(COLOURS)) + len(COLOURS) * rng.integers(len(KINDS), size=len(COLOURS))
    pad_colours = rng.permutation(list(COLOURS))
    centres = []
    for index, (name, place) in enumerate(zip(names, places, strict=True)):
        if name in PADS:
            colour, kind, size, height = (
                str(pad_colours[index]),
                "pad",
                (float(rng.uniform(0.05, 0.065)), 0.001),
                0.0,
            )
        else:
            colour = list(COLOURS)[int(pairs[index]) % len(COLOURS)]
            kind = KINDS[int(pairs[index]) // len(COLOURS)]
            size = _size(rng, kind)
            height = size[1]
        centre = np.array([*place, height])
        yaw = float(rng.uniform(-table.yaw, table.yaw)) if kind == "cube" else 0.0
        world.place(name, centre, colour, yaw, kind, size, shade(rng, colour))
        if kind != "pad":
            centres.append(centre)
    lay_clutter(world, rng, lower - table.beyond, upper + table.beyond, np.array(places), 0.10, (0.012, 0.04))
    return centres


def lay_balls(
    world: World, rng: np.random.Generator, x: tuple[float, float], y: tuple[float, float]
) -> list[np.ndarray]:
    """Place three balls of different colours on stands, and clutter on the table; returns their centres."""
    stand, table = 0.18, 0.72
    places = _spread(rng, np.array([x[0], y[0]]), np.array([x[1], y[1]]), len(OBJECTS), 0.13)
    centres = [np.array([*place, table + stand]) for place in places]
    colours = rng.permutation(list(COLOURS))
    for name, centre, colour in zip(OBJECTS, centres, colours, strict=False):
        radius = float(rng.uniform(0.035, 0.045))
        world.place(name, centre, str(colour), 0.0, "ball", (radius, radius), shade(rng, str(colour)))
    lower, upper = np.array([x[0] - 0.02, y[0] - 0.2]), np.array([x[1] + 0.2, y[1] + 0.2])
    lay_clutter(world, rng, lower, upper, np.array(places), 0.06, (0.012, 0.04), table)
    return centres


def lay_pillars(world: World, rng: np.random.Generator, positions: list[np.ndarray]) -> None:
    """Place three pillars of different colours, and clutter beyond and beside the ways to them."""
    colours = rng.permutation(list(COLOURS))
    for name, position, colour in zip(OBJECTS, positions, colours, strict=False):
        size = (float(rng.uniform(0.11, 0.16)), float(rng.uniform(0.35, 0.55)))
        world.place(name, position, str(colour), 0.0, "pillar", size, shade(rng, str(colour)))
    ways = [share * position[:2] for position in positions for share in np.linspace(0.0, 1.2, 13)]
    lower, upper = np.array([0.5, -3.0]), np.array([5.0, 3.0])
    lay_clutter(world, rng, lower, upper, np.array(ways), 0.8, (0.1, 0.35))


def lay_clutter(
    world: World,
    rng: np.random.Generator,
    lower: np.ndarray,
    upper: np.ndarray,
    taken: np.ndarray,
    apart: float,
    size: tuple[float, float],
    floor: float = 0.0,
) -> None:
    """Place none to three things that nobody names. size: range of half widths [m]."""
    for name in CLUTTER[: int(rng.integers(len(CLUTTER) + 1))]:
        for _ in range(_TRIES):
            place = rng.uniform(lower, upper)
            if np.linalg.norm(taken - place, axis=1).min() > apart:
                break
        else:
            continue
        width, height = rng.uniform(*size, 2)
        colour = np.clip(_NEUTRAL[int(rng.integers(len(_NEUTRAL)))] + rng.uniform(-0.06, 0.06, 3), 0, 1)
        kind = ("cube", "cylinder")[int(rng.integers(2))]
        yaw = float(rng.uniform(0.0, np.pi))
        half = (float(width), float(height))
        world.place(name, np.array([*place, floor + height]), "red", yaw, kind, half, colour)


def shade(rng: np.random.Generator, colour: str) -> np.ndarray:
    """A colour near the one of that name, (3,)."""
    return np.clip(np.array(COLOURS[colour]) * rng.uniform(0.8, 1.15) + rng.uniform(-0.05, 0.05, 3), 0.0, 1.0)


def _size(rng: np.random.Generator, kind: str) -> tuple[float, float]:
    """Half width and half height [m]: all can be grasped from above by a gripper that opens 8 cm."""
    width = float(rng.uniform(0.022, 0.027))
    return (width, float(rng.uniform(0.03, 0.045)) if kind == "cylinder" else width)


def _spread(
    rng: np.random.Generator, lower: np.ndarray, upper: np.ndarray, count: int, apart: float
) -> list[np.ndarray]:
    for _ in range(_TRIES):
        places: list[np.ndarray] = []
        for _ in range(40 * count):
            place = rng.uniform(lower, upper)
            if all(np.linalg.norm(place - other) >= apart for other in places):
                places.append(place)
                if len(places) == count:
                    return places
    raise SimulationError(f"no room for {count} things between {lower} and {upper}, {apart} m apart")
