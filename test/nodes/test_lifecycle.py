# SPDX-License-Identifier: Apache-2.0
"""A node that is asked to end before it has begun."""

from __future__ import annotations

import signal
import sys
import threading
import time

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from qwen_vla_ros.nodes.ending import Ending

SLOW = """
import sys, time
from qwen_vla_ros.nodes.lifecycle import run
from qwen_vla_ros.nodes.policy_node import PolicyNode

def load(*arguments, **options):
    print("loading", flush=True)
    time.sleep(120.0)

sys.exit(run(lambda: PolicyNode(load)))
"""


def test_a_signal_may_come_in_the_middle_of_what_it_interrupts():
    ending, handled = Ending(), []

    def handler(number, frame):
        handled.append(number)
        ending.set()

    before = signal.signal(signal.SIGALRM, handler)
    # Should a lock be waited for, the handler is run again within the handler until Python gives up.
    signal.setitimer(signal.ITIMER_REAL, 50e-6, 50e-6)
    try:
        deadline = time.monotonic() + 60.0
        while len(handled) < 1000 and time.monotonic() < deadline:
            for _ in range(1000):
                ending.set()
                assert ending.wait(1.0)
                assert ending.is_set()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    assert len(handled) >= 1000


def test_a_wait_is_over_when_the_end_is_asked_for():
    ending = Ending()
    assert not ending.wait(0.05)
    threading.Timer(0.1, ending.set).start()
    assert ending.wait(60.0)


def test_a_policy_that_loads_ends_at_once(stack):
    process = stack.start(sys.executable, ["-c", SLOW], embodiment="franka_panda")
    process.wait_for_output("loading", 40.0)
    # Ctrl-C in a terminal reaches a launched node twice.
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    stack.wait_for(lambda: process.returncode is not None, 20.0, "the process to end")
    assert process.returncode == 0, process.output
    assert "configure was interrupted" in process.output
    assert "Traceback" not in process.output
