# SPDX-License-Identifier: Apache-2.0
"""Where the robot was: what its rows are relative to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .base import History

Places = slice | np.ndarray


class JointHistory:
    """Joints of a body by stamp. Publishers that tell a part each have stamps of their own.

    Args:
        count: joints n.
        span: how far back is kept [s].
        continuous: those that turn without end. Shape (n,), bool.

    Attributes:
        stamps: of what was told last of each joint, -inf where nothing was [s]. Shape (n,).
    """

    def __init__(self, count: int, span: float, continuous: np.ndarray):
        self._span, self._continuous = span, continuous
        self._parts: dict[Any, tuple[Places, History]] = {}
        self._latest, self.stamps = np.full(count, np.nan), np.full(count, -np.inf)

    def clear(self) -> None:
        self._parts.clear()
        self._latest[:], self.stamps[:] = np.nan, -np.inf

    def add(self, stamp: float, value: Any, places: Places = slice(None)) -> None:
        """Keep what one publisher tells: values (k,) of the joints at `places`, all without it.

        Raises:
            ValueError: see `History.add`.
        """
        key = places.tobytes() if isinstance(places, np.ndarray) else (places.start, places.stop)
        if key not in self._parts:
            angles = self._continuous[places]
            self._parts[key] = places, History(len(angles), self._span, angles)
        history = self._parts[key][1]
        newest = history.newest
        if newest is not None and stamp < newest[0] - self._span:
            # The clock was reset: those who told another part before it may have gone.
            self._parts = {
                own: each for own, each in self._parts.items() if _newest(each) <= stamp + self._span
            }
            self._parts[key] = places, history
        history.add(stamp, value)
        self._latest[places], self.stamps[places] = value, stamp

    @property
    def latest(self) -> np.ndarray:
        """What was told last, as the drivers count turns; NaN where nothing was. Shape (n,)."""
        return self._latest.copy()

    def at(self, stamp: float) -> np.ndarray:
        """Values at `stamp`, see `History.at`, turns counted on; NaN where nothing is known. Shape (n,)."""
        found = np.full(len(self._latest), np.nan)
        for places, history in sorted(self._parts.values(), key=_newest):
            found[places] = history.at(stamp)
        return found


def _newest(part: tuple[Places, History]) -> float:
    newest = part[1].newest
    return -np.inf if newest is None else newest[0]


class Measured:
    """Joints and the pose of a base by stamp.

    Args:
        groups: of the body, in its order.
        span: how far back is kept [s].

    Attributes:
        joints: of all groups, in their order.
        continuous: which of them turn without end. Shape (n,).
        pose: of the base: x, y [m], yaw [rad].
        used: where the joints of each group are among all.
    """

    def __init__(self, groups: Sequence[Any], span: float):
        self.used: list[slice] = []
        count = 0
        for group in groups:
            self.used.append(slice(count, count + len(group.joints)))
            count += len(group.joints)
        self.continuous = np.concatenate([group.continuous for group in groups])
        self.joints = JointHistory(count, span, self.continuous)
        self.pose = History(3, span, angles=[False, False, True])

    def at(self, stamp: float) -> tuple[np.ndarray, np.ndarray | None]:
        """Joints, NaN while unknown, shape (n,), and pose, None while unknown."""
        return self.joints.at(stamp), self.pose.at(stamp)

    def now(self, stamp: float) -> tuple[np.ndarray, np.ndarray | None]:
        """The same, of joints that turn without end as the drivers count: commands go on from there."""
        joints, pose = self.at(stamp)
        return np.where(self.continuous, self.joints.latest, joints), pose
