# SPDX-License-Identifier: Apache-2.0
"""Subscriptions whose messages are taken now and then: none of them wakes the process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from rclpy.callback_groups import CallbackGroup
from rclpy.event_handler import EventHandler, SubscriptionEventCallbacks, UnsupportedEventTypeError
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message
from rclpy.subscription import Subscription

# Messages of one topic that are taken at once: more than any queue here holds, and an end.
MOST = 20

# To look is not free: of a loop faster than 100 Hz, some periods go without, but for what is urgent [s].
LOOK_PERIOD = 0.009


class Inbox:
    """Keeps messages until they are taken, as many as their topic's depth."""

    def __init__(self, node: Node):
        self._node, self._group = node, LeftAlone()
        self._heard: list[Subscription] = []
        self._slots: list[_Slot] = []
        self._urgent: list[_Slot] = []
        self._lives: list[tuple[EventHandler, Callable[[int], None]]] = []
        self._looked = -math.inf

    def listen(
        self,
        kind: type,
        topic: str,
        hear: Callable[[Any], None] | None,
        profile: QoSProfile,
        count: Callable[[int], None] | None = None,
        urgent: bool = False,
        read: Callable[[bytes], Any] | None = None,
    ) -> None:
        """Let `take` tell `hear` each message of a topic, and `count` how many publishers are alive.

        The latter where the middleware knows; the log says where it does not. Without `hear`, messages are
        not even taken. What is urgent is looked for whenever `take` is called. `read` makes of a serialised
        message what is told, the message itself if it is left out.
        """
        make = partial(
            self._node.create_subscription, kind, topic, _ignore, profile, callback_group=self._group
        )
        try:
            events = SubscriptionEventCallbacks(liveliness=count) if count is not None else None
            subscription = make(event_callbacks=events)
        except UnsupportedEventTypeError:
            self._node.get_logger().info(f"this middleware does not tell when a publisher of {topic} dies")
            subscription = make()
        self._heard.append(subscription)
        if hear is not None:
            # Serialised: to make room for a message costs more than to find that there is none.
            take = partial(subscription.handle.take_message, kind, True)
            slot = _Slot(topic, take, read or partial(deserialize_message, message_type=kind), hear)
            (self._urgent if urgent else self._slots).append(slot)
        for event in subscription.event_handlers:
            if event.callback is count:
                event.add_to_wait_set(_NO_WAITING)
                self._lives.append((event, count))

    def take(self) -> None:
        """Tell what has come, topic by topic, in the order they were listened to; first the urgent."""
        self._tell(self._urgent)
        now = time.monotonic()
        if now - self._looked < LOOK_PERIOD:
            return
        self._looked = now
        for event, count in self._lives:
            event.is_ready(_NO_WAITING)
            status = event.take_data()
            if status is not None:
                count(status.alive_count)
        self._tell(self._slots)

    def _tell(self, slots: list[_Slot]) -> None:
        for topic, take, read, hear in slots:
            for _ in range(MOST):
                taken = take()
                if taken is None:
                    break
                try:
                    message = read(taken[0])
                except rclpy_implementation.RMWError as error:
                    # The middleware drops it without a word.
                    log = self._node.get_logger()
                    log.warning(
                        f"a message on {topic} cannot be read, dropped: {error}", throttle_duration_sec=1.0
                    )
                else:
                    hear(message)

    def destroy(self) -> None:
        self._lives = []
        for subscription in self._heard:
            self._node.destroy_subscription(subscription)
        self._heard, self._urgent, self._slots = [], [], []


def _ignore(message: Any) -> None:
    """For rclpy, which never calls it: the group is left alone."""


class _Slot(NamedTuple):
    """One topic: how a message is taken, read and told."""

    topic: str
    take: Callable[[], tuple[bytes, Any] | None]
    read: Callable[[bytes], Any]
    hear: Callable[[Any], None]


class LeftAlone(CallbackGroup):
    """What belongs to it is left alone by rclpy's executors.

    Their wait sets must not watch events of a subscription whose messages wait to be taken: for rmw_fastrtps
    a message that waits is an event, too.
    """

    def can_execute(self, entity: Any) -> bool:
        return False

    def beginning_execution(self, entity: Any) -> bool:
        return False

    def ending_execution(self, entity: Any) -> None:
        pass


class _NoWaiting:
    """In place of a wait set: an event may be taken at any time, it tells how things are."""

    def add_event(self, event: Any) -> int:
        return 0

    def is_ready(self, kind: str, index: int) -> bool:
        return True


_NO_WAITING: Any = _NoWaiting()
