# SPDX-License-Identifier: Apache-2.0
"""The loop's thread, and the messages that it takes."""

from __future__ import annotations

import threading
import time

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from rclpy.serialization import serialize_message
from std_msgs.msg import Int32

from qwen_vla_ros.nodes import qos
from qwen_vla_ros.nodes.inbox import LOOK_PERIOD, Inbox
from qwen_vla_ros.nodes.pace import REST_PERIOD, Pace


class Clock:
    """Sleeps take no time, and exactly as long as they are asked to."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_beats_come_when_they_are_due(ros_node, wait_for, monkeypatch):
    """On time, after a call that took its time, after one that was late, at rest, in motion again."""
    clock, calls, ended = Clock(), [], []
    monkeypatch.setattr("qwen_vla_ros.nodes.pace.time", clock)
    takes = {0.008: 0.003, 0.012: 0.0065}

    def call() -> None:
        calls.append(round(clock.now, 6))
        clock.now += takes.get(calls[-1], 0.0)
        if len(calls) == 9:
            raise StopIteration

    pace = Pace(
        ros_node, 0.004, call, lambda: len(calls) in (6, 7), threading.RLock(), ended.append, simulated=False
    )
    wait_for(lambda: ended, 10.0, "the last call")
    pace.stop()
    #                                late: a whole period follows, then rest, twice
    assert calls == [0.0, 0.004, 0.008, 0.012, 0.0185, 0.0225, 0.0425, 0.0625, 0.0665]
    assert REST_PERIOD == 0.02


def test_nobody_is_called_while_another_holds_the_lock_nor_after_the_end(ros_node, wait_for):
    lock, calls = threading.RLock(), []
    pace = Pace(
        ros_node, 0.004, lambda: calls.append(time.monotonic()), lambda: False, lock, print, simulated=False
    )
    try:
        wait_for(lambda: len(calls) > 5, 10.0, "calls")
        with lock:
            seen = len(calls)
            time.sleep(0.05)
            assert len(calls) == seen
        wait_for(lambda: len(calls) > seen + 5, 10.0, "calls again")
    finally:
        pace.stop()
    seen = len(calls)
    time.sleep(0.05)
    assert len(calls) == seen


@pytest.mark.parametrize("simulated", [False, True])
def test_a_defect_is_told_once_and_ends_the_calls(ros_node, wait_for, simulated):
    told = []

    def call():
        raise ZeroDivisionError("of the test")

    begun = lambda: Pace(  # noqa: E731
        ros_node, 0.002, call, lambda: False, threading.RLock(), told.append, simulated
    )
    made = ros_node.executor.create_task(begun)
    wait_for(made.done, 10.0, "the loop")
    pace = made.result()
    wait_for(lambda: told, 10.0, "word of the defect")
    assert not pace.going
    ended = ros_node.executor.create_task(pace.stop)
    wait_for(ended.done, 10.0, "the end")
    assert len(told) == 1
    assert "ZeroDivisionError: of the test" in told[0]


def test_messages_wait_until_they_are_taken_and_the_living_are_counted(ros_node, wait_for):
    heard, alive = [], []
    inbox = Inbox(ros_node)
    inbox.listen(
        Int32, "inbox_test", lambda m: heard.append(m.data), qos.heartbeat_watched(0.05), alive.append
    )

    def publisher():
        return ros_node.create_publisher(Int32, "inbox_test", qos.HEARTBEAT)

    source = publisher()
    wait_for(lambda: source.get_subscription_count() == 1, 10.0, "the subscription")
    for number in range(3):
        source.publish(Int32(data=number))
        # In all, longer than the lease: within a process, only messages are signs of life.
        time.sleep(0.02)
    assert heard == []

    def took(count: int) -> bool:
        time.sleep(LOOK_PERIOD)
        inbox.take()
        return heard == [0, 1, 2] and alive[-1:] == [count]

    wait_for(lambda: took(1), 10.0, "messages and a life")
    ros_node.destroy_publisher(source)
    wait_for(lambda: took(0), 10.0, "the end of a life")
    inbox.destroy()


def test_a_message_that_cannot_be_read_is_dropped_and_the_next_one_told(ros_node, wait_for):
    heard, inbox = [], Inbox(ros_node)
    inbox.listen(Int32, "inbox_torn", lambda m: heard.append(m.data), qos.RELIABLE)
    source = ros_node.create_publisher(Int32, "inbox_torn", qos.RELIABLE)
    wait_for(lambda: source.get_subscription_count() == 1, 10.0, "the subscription")
    # Its encoding, and nothing of itself.
    source.publish(serialize_message(Int32(data=1))[:4])
    source.publish(Int32(data=2))

    def took() -> bool:
        inbox.take()
        return bool(heard)

    wait_for(took, 10.0, "the message that can be read")
    assert heard == [2]
    inbox.destroy()


def test_what_is_urgent_is_taken_whenever_it_is_looked_for(ros_node, wait_for, monkeypatch):
    monkeypatch.setattr("qwen_vla_ros.nodes.inbox.LOOK_PERIOD", 3600.0)
    heard = []
    inbox = Inbox(ros_node)
    for topic, urgent in (("inbox_urgent", True), ("inbox_other", False)):
        inbox.listen(Int32, topic, lambda m: heard.append(m.data), qos.RELIABLE, urgent=urgent)
    inbox.take()  # the next look is an hour away
    urgent, other = (
        ros_node.create_publisher(Int32, f"inbox_{n}", qos.RELIABLE) for n in ("urgent", "other")
    )
    wait_for(lambda: urgent.get_subscription_count() and other.get_subscription_count(), 10.0, "matching")
    other.publish(Int32(data=1))
    urgent.publish(Int32(data=2))

    def took() -> bool:
        inbox.take()
        return bool(heard)

    wait_for(took, 10.0, "the urgent message")
    assert heard == [2]
    inbox.destroy()
