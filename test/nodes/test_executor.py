# SPDX-License-Identifier: Apache-2.0
"""The executor with a simulated robot: tasks, goals and limits."""

from __future__ import annotations

import signal
import sys

import numpy as np
import pytest

from qwen_vla_ros.embodiment import load_embodiment

pytest.importorskip("rclpy", reason="needs ROS 2")

from action_msgs.msg import GoalStatus
from qwen_vla_ros.action import ExecuteTask
from qwen_vla_ros.msg import ExecutorStatus
from std_msgs.msg import String

from qwen_vla_ros.nodes import qos

Result = ExecuteTask.Result
State = ExecutorStatus
PANDA = load_embodiment("franka_panda")


def test_runs_to_the_time_limit_within_limits_from_where_the_robot_is(panda):
    commands = panda.commands("panda_arm_controller/joint_trajectory")
    task = panda.send("wave", time_limit=5.0)
    result = task.result()
    assert (result.code, task.status) == (Result.TIME_LIMIT, GoalStatus.STATUS_SUCCEEDED)
    assert "5.0 s" in result.message
    assert result.chunks >= 3
    assert 5.0 <= result.elapsed < 5.5
    assert task.feedback[-1].chunks == result.chunks
    assert 0.0 <= task.feedback[-1].capture_to_command < 0.2

    limits = PANDA.actions[0].limits

    def resting() -> bool:
        # A ramp of jerk j ends with a last step of j * t^3 / 6 at most; it may still be on its way.
        step, time = commands.rows[-1] - commands.rows[-2], 0.01 * commands.periods[-1]
        return bool((np.abs(step) <= limits.jerk * time**3 / 6 + 1e-6).all())

    panda.wait_for(resting, 5.0, "the last command of the ramp")
    rows, times = commands.rows, 0.01 * commands.periods[:, None]
    home = [PANDA.home[joint] for joint in PANDA.joints[:7]]
    assert len(rows) > 100
    assert np.abs(rows[0] - home).max() < 0.05
    assert (np.abs(np.diff(rows, axis=0)) <= limits.velocity * times * (1 + 1e-6)).all()
    assert np.abs(np.diff(rows, axis=0)).max() > 0.001, "it did not move"
    assert all(message.header.stamp.sec == 0 for message in commands.messages)
    panda.wait_state(State.STATE_IDLE)


def test_cancel_brings_the_robot_to_rest(panda):
    watch = panda.watch()
    task = panda.running(panda.send())
    asked = watch.now
    task.cancel()
    assert task.result().code == Result.CANCELLED
    assert task.status == GoalStatus.STATUS_CANCELED
    panda.wait_for(lambda: watch.now > asked + 1.0, 20.0, "what it did")
    assert watch.last_motion(asked) - asked < 0.5
    assert panda.wait_state(State.STATE_IDLE).code == 0


def test_a_newer_goal_takes_over(panda):
    first = panda.running(panda.send("first"))
    second = panda.send("second", time_limit=2.0)
    result = first.result()
    assert (result.code, first.status) == (Result.PREEMPTED, GoalStatus.STATUS_ABORTED)
    assert second.result().code == Result.TIME_LIMIT
    assert second.result().chunks >= 1


def test_bad_goals_end_with_their_code_and_disturb_nobody(panda):
    good = panda.running(panda.send(time_limit=60.0), chunks=1)
    for instruction, limit, code, text in (
        ("", 5.0, Result.INVALID_INSTRUCTION, "found nothing, expected 1 to 512 characters"),
        ("  \t ", 5.0, Result.INVALID_INSTRUCTION, "found nothing"),
        ("a" * 10_000, 5.0, Result.INVALID_INSTRUCTION, "found 10000 characters, expected 1 to 512"),
        ("reach", -1.0, Result.INVALID_TIME_LIMIT, "found -1.0 s, expected 0 to 3600.0 s"),
        ("reach", float("nan"), Result.INVALID_TIME_LIMIT, "found nan s"),
    ):
        bad = panda.send(instruction, limit)
        result = bad.result()
        assert result.code == code
        assert text in result.message
        assert bad.status == GoalStatus.STATUS_ABORTED
    assert not good.done
    assert panda.executor[-1].state == State.STATE_RUNNING
    good.cancel()
    assert good.result().code == Result.CANCELLED


def test_a_topic_and_a_command_start_tasks_and_end_them(panda, spawn):
    topic = panda.node.create_publisher(String, panda.name("executor/instruction"), qos.RELIABLE)
    panda.wait_for(lambda: topic.get_subscription_count(), 20.0, "the executor's ~/instruction")
    topic.publish(String(data="wave by topic"))
    panda.wait_state(State.STATE_RUNNING)
    topic.publish(String(data=" "))
    assert panda.wait_state(State.STATE_IDLE).code == 0

    def say(*words):
        return spawn(sys.executable, ["-m", "qwen_vla_ros.cli", "say", *words])

    # A command is a goal as any other: it may be refused, and Ctrl-C cancels it.
    absent = say("wave", "--namespace", "/nobody", "--wait", "0.5")
    wrong = say("wave", "--namespace", panda.namespace, "--wait", "30", "--time-limit", "1e9")
    good = say("wave", "--namespace", panda.namespace, "--wait", "30", "--time-limit", "60")
    panda.wait_state(State.STATE_RUNNING)
    good.send_signal(signal.SIGINT)
    assert good.wait(60.0) == 0, good.output
    assert "cancelled (code 2; " in good.output
    assert wrong.wait(60.0) == 1
    assert "expected 0 to 3600.0 s (code 101;" in wrong.output.replace("\n", " ")
    assert absent.wait(60.0) == 1
    assert "nobody serves /nobody/execute_task (waited 0.5 s)" in absent.output
