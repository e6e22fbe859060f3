# SPDX-License-Identifier: Apache-2.0
"""Instructions by topic and by command."""

from __future__ import annotations

import os
import signal
import sys

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from qwen_vla_ros.msg import ExecutorStatus
from std_msgs.msg import String

from qwen_vla_ros.nodes import qos

State = ExecutorStatus


def test_a_topic_and_a_command_start_tasks_and_end_them(panda, spawn):
    topic = panda.node.create_publisher(String, panda.name("executor/instruction"), qos.RELIABLE)
    panda.wait_for(lambda: topic.get_subscription_count(), 20.0, "the executor's ~/instruction")
    topic.publish(String(data="wave by topic"))
    panda.wait_state(State.STATE_RUNNING)
    topic.publish(String(data=" "))
    assert panda.wait_state(State.STATE_IDLE).code == 0

    def say(*words):
        arguments = ["-m", "qwen_vla_ros.cli", "say", "--namespace", panda.namespace, "--wait", "30", *words]
        return spawn(sys.executable, arguments)

    # A command is a goal as any other: it ends at its time limit, and Ctrl-C cancels it.
    short = say("wave by command", "--time-limit", "2")
    assert short.wait(60.0) == 0, short.output
    assert "ran to its time limit of 2.0 s (code 1; " in short.output
    panda.wait_state(State.STATE_IDLE)
    long = say("wave for long", "--time-limit", "60")
    panda.wait_state(State.STATE_RUNNING)
    long.send_signal(signal.SIGINT)
    assert long.wait(60.0) == 0, long.output
    assert "cancelled (code 2; " in long.output
    wrong = say("wave", "--time-limit", "1e9")
    absent = say("wave", "--namespace", "/nobody", "--wait", "0.5")
    assert wrong.wait(60.0) == 1
    assert "expected 0 to 3600.0 s (code 101;" in wrong.output.replace(os.linesep, " ")
    assert absent.wait(60.0) == 1
    assert "nobody serves /nobody/execute_task (waited 0.5 s)" in absent.output
