# SPDX-License-Identifier: Apache-2.0
"""Cameras that send the same picture under new stamps while the robot moves."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import JointState

from qwen_vla_ros.embodiment import Embodiment

from . import qos
from .base_pose import MESSAGES, flat_pose
from .joint_positions import joint_positions
from .lifecycle import seconds

# How far a joint or the base must have moved for a picture to change [rad or m].
MOVED = 0.1

# Bytes that are compared first; noise of a sensor shows in them.
GLANCE = 4096

# Samples of a motion, and the least time between two of them [s].
SAMPLES, PERIOD = 1000, 0.02


def same_picture(one: Any, other: Any) -> bool:
    """Whether two Image or CompressedImage messages hold the same bytes."""
    if len(one.data) != len(other.data) or not one.data:
        return False
    a, b = np.frombuffer(one.data, np.uint8), np.frombuffer(other.data, np.uint8)
    step = max(1, a.size // GLANCE)
    return np.array_equal(a[::step], b[::step]) and np.array_equal(a, b)


class Motion:
    """How the robot moved, by its drivers' messages; listened to only while that matters.

    A sound camera never sends the same bytes twice, so joint states cost the policy nothing.
    """

    def __init__(self, node: Node, embodiment: Embodiment):
        self._node, self._embodiment = node, embodiment
        self._subscriptions: list = []
        # Of each joint, and x, y and yaw of the base: (stamp, position).
        self._samples: dict[str, deque[tuple[float, float]]] = {}

    def listen(self) -> None:
        if self._subscriptions:
            return
        state = self._embodiment.state
        for topic in state.joint_states if self._embodiment.joints else ():
            hear = joint_positions(self._embodiment, topic, self._hear_joints)
            self._subscriptions.append(self._node.create_subscription(JointState, topic, hear, qos.SENSOR))
        base = state.base
        if base is not None:
            kind = MESSAGES[base.type]
            self._subscriptions.append(
                self._node.create_subscription(kind, base.topic, self._hear_pose, qos.SENSOR)
            )

    def rest(self) -> None:
        """Stop listening, and forget."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []
        self._samples.clear()

    def moved(self, since: float, until: float) -> str:
        """What moved furthest between two times [s], by how much; empty if nothing moved by `MOVED`."""
        best, name = MOVED, ""
        for part, samples in self._samples.items():
            within = [position for stamp, position in samples if since <= stamp <= until]
            if within and (extent := max(within) - min(within)) > best:
                best, name = extent, part
        return f"{name} moved by {best:.2f}" if name else ""

    def _hear_joints(self, stamp: float, positions: dict[str, float]) -> None:
        for name, position in positions.items():
            self._add(name, stamp, position)

    def _hear_pose(self, message: Any) -> None:
        for name, value in zip(("x", "y", "yaw"), flat_pose(message), strict=True):
            self._add(f"base {name}", seconds(message.header.stamp), value)

    def _add(self, name: str, stamp: float, position: float) -> None:
        samples = self._samples.setdefault(name, deque(maxlen=SAMPLES))
        if not samples or abs(stamp - samples[-1][0]) >= PERIOD:
            samples.append((stamp, position))
