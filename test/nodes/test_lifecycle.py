# SPDX-License-Identifier: Apache-2.0
"""A node that is asked to end before it has begun."""

from __future__ import annotations

import signal
import sys

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

SLOW = """
import sys, time
from qwen_vla_ros.nodes.lifecycle import run
from qwen_vla_ros.nodes.policy_node import PolicyNode

def load(*arguments, **options):
    print("loading", flush=True)
    time.sleep(120.0)

sys.exit(run(lambda: PolicyNode(load)))
"""


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
