# SPDX-License-Identifier: Apache-2.0
"""What the policy keeps of a task: its beginning when the clock goes back, and no haste without a state."""

from __future__ import annotations

import math
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from qwen_vla_ros.msg import Task
from rclpy.time import Time
from sensor_msgs.msg import Image

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.nodes.observing import Inbox, NotObserved
from qwen_vla_ros.nodes.policy_node import PolicyNode, _Work

PANDA = load_embodiment("franka_panda")


def stamp(seconds: float):
    return Time(nanoseconds=round(seconds * 1e9)).to_msg()


def test_chunks_go_on_when_the_clock_has_gone_back_and_the_executor_says_so():
    inbox, rng = Inbox(PANDA), np.random.default_rng(0)
    node = SimpleNamespace(_inbox=inbox, _state=lambda: None, embodiment=PANDA, _called=threading.Event())
    node._due = lambda work: PolicyNode._due(node, work)
    node._work = _Work(7, "go", 1000.0)

    def capture(now: float) -> bool:
        """An image; whether a chunk is made of it."""
        for camera in PANDA.cameras:
            pixels = rng.integers(0, 255, 3).astype(np.uint8).tobytes()
            message = Image(height=1, width=1, encoding="rgb8", data=pixels)
            message.header.stamp = stamp(now)
            inbox.keep(camera.view, message)
            inbox.compare(camera.view)
        try:
            views = PolicyNode._find_observation(node, node._work, now)
        except NotObserved:
            return False
        if views is not None:
            node._work.last_capture = views.oldest
        return views is not None

    def captured(start: float, count: int) -> int:
        """Chunks made of images that come every 0.1 s."""
        return sum(capture(start + 0.1 * k) for k in range(1, count))

    assert captured(1000.0, 50) > 2
    node._work.waiting_since = 1004.0
    assert captured(985.0, 20) == 0
    task = Task(task_id=7, instruction="go", active=True)
    task.header.stamp = stamp(980.0)
    PolicyNode._on_task(node, task)
    assert (node._work.began, node._work.waiting_since) == (980.0, 984.0)
    assert captured(987.0, 20) > 1
    # Said again, as to a policy that has just started, it changes nothing.
    before = node._work.last_capture
    PolicyNode._on_task(node, task)
    assert node._work.last_capture == before


def test_a_state_that_is_missing_is_not_looked_for_without_a_pause():
    looks = []

    def state() -> None:
        looks.append(time.monotonic())
        raise NotObserved(203, "joint states are 0.5 s old, allowed 0.3 s")

    node = SimpleNamespace(
        _stop=threading.Event(),
        _called=threading.Event(),
        _thinking=False,
        _work=_Work(1, "go", 0.0),
        now=100.0,
        embodiment=PANDA,
        _inbox=SimpleNamespace(views=lambda now, began: SimpleNamespace(oldest=100.0, skew=0.0)),
        _inputs=SimpleNamespace(of=lambda views: ({}, {})),
        _state=state,
        value=lambda name: -1,
        _due=lambda work: -math.inf,
    )
    node._find_observation = lambda work, now: PolicyNode._find_observation(node, work, now)
    node._infer = lambda work, views: PolicyNode._infer(node, work, views)
    thread = threading.Thread(target=PolicyNode._think, args=(node,))
    thread.start()
    while not looks:
        time.sleep(0.01)
    time.sleep(0.3)
    node._stop.set()
    node._called.set()
    thread.join()
    assert len(looks) < 100
