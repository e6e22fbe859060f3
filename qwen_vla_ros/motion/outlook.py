# SPDX-License-Identifier: Apache-2.0
"""What the last chunk says beyond a newer observation, for a policy that has to continue it."""

from __future__ import annotations

from typing import Any

import numpy as np

from qwen_vla_ros.embodiment import Embodiment

from . import rotations
from .follower import EDGE, LOOK_AHEAD, Plan
from .groups import make_groups
from .timeline import Timeline


class Outlook:
    """The chunk that a policy sent last, as a chunk of a newer observation would say it.

    Where rows are relative, the robot is taken to be where the chunk wanted it at the newer observation: a
    policy knows no better. The executor's own `Follower.plan` needs no such guess.

    Args:
        embodiment: its action groups and rates.
    """

    def __init__(self, embodiment: Embodiment):
        self._body = embodiment
        period = 1.0 / embodiment.command_rate
        still = {group.name: _Still() for group in embodiment.actions}
        self._groups = make_groups(embodiment, period, max(LOOK_AHEAD, 3 * period), still)
        self._start = np.concatenate([_neutral(group) for group in self._groups])
        self._timeline: Timeline | None = None

    def clear(self) -> None:
        """Forget the chunk."""
        self._timeline = None

    def note(self, data: Any, stamp: float) -> None:
        """A chunk was sent.

        Args:
            data: in the embodiment's units and references. Shape (h, c).
            stamp: capture time [s].

        Raises:
            ChunkRefused: it is not finite or has another shape.
        """
        data = np.asarray(data, dtype=float)
        parts, quaternions, width = [], [], 0
        for group in self._groups:
            columns = data[:, self._body.layout.slice_of(group.name)]
            start = self._start[width : width + group.width]
            parts.append(group.resolve(columns, start, start)[0])
            quaternions += [width + first for first in group.quaternions]
            width += group.width
        held = np.concatenate([group.held for group in self._groups])
        timeline = Timeline(width, blend=0.0, held=held, quaternions=tuple(quaternions))
        timeline.offer(np.hstack(parts), self._start, stamp, 1.0 / self._body.control_rate, stamp)
        self._timeline = timeline

    def plan(self, stamp: float) -> Plan | None:
        """The chunk from `stamp` on; None without one, or when it is over by then."""
        timeline, body = self._timeline, self._body
        if timeline is None or not timeline.stamp <= stamp:
            return None
        times = stamp + np.arange(1, body.horizon + 1) / body.control_rate
        known = int((times <= stamp + timeline.remaining(stamp) + EDGE).sum())
        if known == 0:
            return None
        inside = np.array([timeline.sample(time - EDGE).position for time in times[:known]])
        origin = timeline.sample(stamp).position
        rows, width = np.full((body.horizon, body.layout.count), np.nan), 0
        for group in self._groups:
            own = slice(width, width + group.width)
            width += group.width
            rows[:known, body.layout.slice_of(group.name)] = group.express(inside[:, own], origin[own])
        return Plan(stamp, rows, known)


class _Still:
    """Kinematics of a tip that nobody moves here."""

    def pose(self, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(3), rotations.IDENTITY

    def jacobian(self, joints: np.ndarray) -> np.ndarray:
        return np.zeros((6, len(joints)))

    def transforms(self, path: np.ndarray) -> np.ndarray:
        return np.repeat(np.eye(4)[None], len(path), axis=0)


def _neutral(group: Any) -> np.ndarray:
    start = np.zeros(group.width)
    for first in group.quaternions:
        start[first : first + 4] = rotations.IDENTITY
    return start
