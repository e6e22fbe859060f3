# SPDX-License-Identifier: Apache-2.0
"""Where the robot was: what its rows are relative to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .base import History


class Measured:
    """Joints and the pose of a base by stamp.

    Args:
        groups: of the body, in its order.
        span: how far back is kept [s].

    Attributes:
        joints: of all groups, in their order. Shape of a value (n,).
        pose: of the base: x, y [m], yaw [rad].
        used: where the joints of each group are among all.
    """

    def __init__(self, groups: Sequence[Any], span: float):
        self.used: list[slice] = []
        count = 0
        for group in groups:
            self.used.append(slice(count, count + len(group.joints)))
            count += len(group.joints)
        self.joints = History(count, span, angles=np.concatenate([group.continuous for group in groups]))
        self.pose = History(3, span, angles=[False, False, True])
        self._unknown = np.full(count, np.nan)

    def at(self, stamp: float) -> tuple[np.ndarray, np.ndarray | None]:
        """Joints, NaN while unknown, shape (n,), and pose, None while unknown."""
        joints = self.joints.at(stamp)
        return (self._unknown if joints is None else joints), self.pose.at(stamp)
