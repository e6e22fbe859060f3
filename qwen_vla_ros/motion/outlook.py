# SPDX-License-Identifier: Apache-2.0
"""What the last chunk says beyond a newer observation, for a policy that has to continue it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qwen_vla_ros.embodiment import Embodiment

from . import rotations
from .follower import EDGE, LOOK_AHEAD, Plan
from .groups import make_groups
from .kinematics import Kinematics
from .measured import Measured
from .timeline import Timeline


class Outlook:
    """The chunk that a policy sent last, as a chunk of a newer observation would say it.

    Where rows are relative, they count from where the robot was measured at each observation, as the executor
    lays them. It lags behind its set-points: a newer chunk that counted from those would fall back by that.

    Args:
        embodiment: its action groups and rates.
        kinematics: of end-effector groups, by name, in place of their URDF.

    Attributes:
        joints, pose: by stamp, to be fed where `needs_joints` and `needs_pose` say so.

    Raises:
        UnsupportedGroup: for a group that cannot be moved as it is described.
    """

    def __init__(self, embodiment: Embodiment, kinematics: Mapping[str, Kinematics] | None = None):
        self._body = embodiment
        period = 1.0 / embodiment.command_rate
        self._groups = make_groups(embodiment, period, max(LOOK_AHEAD, 3 * period), kinematics or {})
        self._start = [_neutral(group) for group in self._groups]
        span = embodiment.stop.chunk_max_age + embodiment.horizon / embodiment.control_rate
        self._measured = Measured(self._groups, span)
        self.joints, self.pose = self._measured.joints, self._measured.pose
        self.needs_joints = any(group.relative and group.joints for group in self._groups)
        self.needs_pose = any(group.needs_pose for group in self._groups)
        self._timeline: Timeline | None = None

    def clear(self) -> None:
        """Forget the chunk."""
        self._timeline = None

    def note(self, data: Any, stamp: float) -> None:
        """A chunk was sent. Nothing is known of it while the robot has not been measured.

        Args:
            data: in the embodiment's units and references. Shape (h, c).
            stamp: capture time [s].

        Raises:
            ChunkRefused: it is not finite or has another shape.
        """
        self._timeline = None
        origins = self._origins(stamp)
        if origins is None:
            return
        data = np.asarray(data, dtype=float)
        parts, quaternions, width = [], [], 0
        for group, origin in zip(self._groups, origins, strict=True):
            columns = data[:, self._body.layout.slice_of(group.name)]
            parts.append(group.resolve(columns, origin, origin)[0])
            quaternions += [width + first for first in group.quaternions]
            width += group.width
        held = np.concatenate([group.held for group in self._groups])
        timeline = Timeline(width, blend=0.0, held=held, quaternions=tuple(quaternions))
        start = np.concatenate(origins)
        timeline.offer(np.hstack(parts), start, stamp, 1.0 / self._body.control_rate, stamp)
        self._timeline = timeline

    def plan(self, stamp: float) -> Plan | None:
        """The chunk from `stamp` on; None without one, or when it is over by then."""
        timeline, body = self._timeline, self._body
        origins = self._origins(stamp)
        if timeline is None or origins is None or not timeline.stamp <= stamp:
            return None
        times = stamp + np.arange(1, body.horizon + 1) / body.control_rate
        known = int((times <= stamp + timeline.remaining(stamp) + EDGE).sum())
        if known == 0:
            return None
        inside = np.array([timeline.sample(time - EDGE).position for time in times[:known]])
        rows, width = np.full((body.horizon, body.layout.count), np.nan), 0
        for group, origin in zip(self._groups, origins, strict=True):
            own = inside[:, width : width + group.width]
            width += group.width
            rows[:known, body.layout.slice_of(group.name)] = group.express(own, origin)
        return Plan(stamp, rows, known)

    def _origins(self, stamp: float) -> list[np.ndarray] | None:
        """What the rows of each group count from; None while one that does so has not been measured."""
        joints, pose = self._measured.at(stamp)
        origins = [
            group.observe(joints[used], pose) if group.relative else start
            for group, used, start in zip(self._groups, self._measured.used, self._start, strict=True)
        ]
        return origins if all(np.isfinite(origin).all() for origin in origins) else None


def _neutral(group: Any) -> np.ndarray:
    start = np.zeros(group.width)
    for first in group.quaternions:
        start[first : first + 4] = rotations.IDENTITY
    return start
