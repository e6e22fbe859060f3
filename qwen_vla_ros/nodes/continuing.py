# SPDX-License-Identifier: Apache-2.0
"""What each chunk has to continue, with hand-over `rtc`."""

from __future__ import annotations

import math
import threading
from collections import deque
from typing import Any

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import JointState

from qwen_vla_ros.embodiment import Embodiment
from qwen_vla_ros.motion.outlook import Outlook
from qwen_vla_ros.msg import ExecutorStatus
from qwen_vla_ros.policy import Continuation

from . import qos
from .base_pose import MESSAGES, flat_pose
from .joint_positions import joint_positions
from .lifecycle import seconds

# Chunks whose way to the robot tells how many rows the next one will lose.
DELAYS = 8


class Continuing:
    """Listens to what became of the last chunks, and where the robot is, if rows count from there.

    Callbacks feed it, the thread of the model asks it.

    Raises:
        UnsupportedGroup: for a group that cannot be moved as it is described.
    """

    def __init__(self, node: Node, embodiment: Embodiment):
        self._node, self._embodiment = node, embodiment
        self._outlook = Outlook(embodiment)
        self._lock = threading.Lock()
        self._subscriptions: list = []
        # Sequence of the chunk that the executor follows, and of the one that was noted last.
        self._followed = self._noted = 0
        # How long the last chunks took from their pictures to the robot [s].
        self._delays: deque[float] = deque(maxlen=DELAYS)

    def listen(self) -> None:
        listen = self._node.create_subscription
        subscriptions = [listen(ExecutorStatus, "executor_status", self._hear_executor, qos.LATCHED)]
        state = self._embodiment.state
        if self._outlook.needs_joints:
            for topic in state.joint_states:
                hear = joint_positions(self._embodiment, topic, self._hear_joints)
                subscriptions.append(listen(JointState, topic, hear, qos.SENSOR))
        if self._outlook.needs_pose and state.base is not None:
            kind = MESSAGES[state.base.type]
            subscriptions.append(listen(kind, state.base.topic, self._hear_pose, qos.SENSOR))
        self._subscriptions = subscriptions

    def rest(self) -> None:
        """Stop listening, and forget."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []
        with self._lock:
            self._outlook.clear()

    def note(self, data: np.ndarray, stamp: float, sequence: int) -> None:
        """A chunk was published. Shape (h, c); stamp: capture time [s]."""
        with self._lock:
            self._outlook.note(data, stamp)
        self._noted = sequence

    def plan(self, stamp: float) -> Continuation | None:
        """What a chunk of an observation at `stamp` has to continue: the last one, if it is followed."""
        if self._followed != self._noted or not self._delays:
            return None
        with self._lock:
            plan = self._outlook.plan(stamp)
        if plan is None:
            return None
        # As many rows as the last chunks lost on their way, at most, will be lost again.
        lost = math.ceil(max(self._delays) * self._embodiment.control_rate)
        return Continuation(plan.rows, plan.known, min(lost, plan.known))

    def _hear_executor(self, message: ExecutorStatus) -> None:
        if message.sequence != self._followed and math.isfinite(message.capture_to_command):
            self._delays.append(message.capture_to_command)
            self._followed = message.sequence

    def _hear_joints(self, stamp: float, positions: dict[str, float]) -> None:
        places = [k for k, name in enumerate(self._embodiment.joints) if name in positions]
        values = [positions[self._embodiment.joints[k]] for k in places]
        # What is not finite the executor names, and stops for.
        if places and np.isfinite(values).all():
            with self._lock:
                self._outlook.joints.add(stamp, values, np.array(places))

    def _hear_pose(self, message: Any) -> None:
        pose = flat_pose(message)
        if np.isfinite(pose).all():
            with self._lock:
                self._outlook.pose.add(seconds(message.header.stamp), pose)
