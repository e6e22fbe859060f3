# SPDX-License-Identifier: Apache-2.0
"""Subscriptions whose messages are taken once a period: none of them wakes the process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.subscription import Subscription

# Messages of one topic that are taken in one period: more than any queue here holds, and an end.
MOST = 20


class Inbox:
    """Keeps messages until they are taken, as many as their topic's depth.

    Not for subscriptions with events: in rmw_fastrtps a message that waits counts as one, and a wait set that
    watches for events would not rest until it is taken.
    """

    def __init__(self, node: Node):
        self._node, self._group = node, _LeftAlone()
        self._slots: list[tuple[Subscription, Callable[[Any], None]]] = []

    def listen(self, kind: type, topic: str, hear: Callable[[Any], None], profile: QoSProfile) -> None:
        """Let `hear` be told each message of a topic by `take`."""
        subscription = self._node.create_subscription(kind, topic, hear, profile, callback_group=self._group)
        self._slots.append((subscription, hear))

    def take(self) -> None:
        """Tell what has come, topic by topic, in the order in which they were listened to."""
        for subscription, hear in self._slots:
            for _ in range(MOST):
                with subscription.handle:
                    taken = subscription.handle.take_message(subscription.msg_type, False)
                if taken is None:
                    break
                hear(taken[0])

    def destroy(self) -> None:
        for subscription, _ in self._slots:
            self._node.destroy_subscription(subscription)
        self._slots = []


class _LeftAlone(CallbackGroup):
    """Subscriptions in it are left alone by rclpy's executors."""

    def can_execute(self, entity: Any) -> bool:
        return False

    def beginning_execution(self, entity: Any) -> bool:
        return False

    def ending_execution(self, entity: Any) -> None:
        pass
