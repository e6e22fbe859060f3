# SPDX-License-Identifier: Apache-2.0
"""A robot that is not simulated: no /clock, the executor's loop by its own steady clock."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from geometry_msgs.msg import Twist
from nav_msgs.msg import Odometry
from qwen_vla_ros.action import ExecuteTask
from qwen_vla_ros.msg import ExecutorStatus

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.motion.base import compose
from qwen_vla_ros.nodes import qos

Result, State = ExecuteTask.Result, ExecutorStatus
BODY = load_embodiment("tiago_base")
DRIVE = "mobile_base_controller/cmd_vel_unstamped"
PERIOD = 0.02


class Base:
    """Wheels that do as they are told, and odometry.

    Attributes:
        told: Velocities, shape (2,), and the number of the command, in order.
    """

    def __init__(self, stack) -> None:
        self.told: list[tuple[np.ndarray, int]] = []
        self._pose, self._node = np.zeros(3), stack.node
        self._odometry = stack.node.create_publisher(
            Odometry, stack.name("mobile_base_controller/odom"), qos.SENSOR
        )
        stack.node.create_subscription(Twist, stack.name(DRIVE), self._hear, qos.RELIABLE)
        stack.node.create_timer(PERIOD, self._move)

    def _hear(self, message: Twist, info: dict) -> None:
        velocity = np.array([message.linear.x, message.angular.z])
        self.told.append((velocity, info["publication_sequence_number"]))

    def _move(self) -> None:
        forward, turn = self.told[-1][0] if self.told else (0.0, 0.0)
        self._pose = compose(self._pose, np.array([forward, 0.0, turn]) * PERIOD)
        message = Odometry()
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.child_frame_id = "base_footprint"
        x, y, yaw = self._pose
        message.pose.pose.position.x, message.pose.pose.position.y = x, y
        message.pose.pose.orientation.z, message.pose.pose.orientation.w = (
            math.sin(yaw / 2),
            math.cos(yaw / 2),
        )
        self._odometry.publish(message)


# The executor, whose loop breaks when the base is at speed.
DEFECT = """
from qwen_vla_ros.nodes.conductor import Conductor
from qwen_vla_ros.nodes.executor_node import main

run = Conductor._run

def fail(self, task, now):
    run(self, task, now)
    if task.chunks > 3:
        raise ZeroDivisionError("of the test")

Conductor._run = fail
raise SystemExit(main())
"""


@pytest.fixture
def base(stack):
    """With its policy, and no executor yet."""
    base = Base(stack)
    stack.fake_policy("wave", "tiago_base", use_sim_time=False)
    return base


@pytest.fixture
def executor(stack, base):
    process = stack.run_executor("tiago_base", use_sim_time=False)
    stack.wait_ready(world=False)
    return process


def within_limits(base: Base) -> None:
    told = list(base.told)
    rows, numbers = np.array([row for row, _ in told]), np.array([number for _, number in told])
    limits = BODY.actions[0].limits
    assert np.abs(rows[:, 0]).max() > 0.1
    assert (np.abs(rows) <= [limits.linear.velocity, limits.angular.velocity]).all()
    rises = np.abs(np.diff(rows, axis=0)) * BODY.command_rate / np.diff(numbers)[:, None]
    assert (rises <= np.array([limits.linear.acceleration, limits.angular.acceleration]) * 1.001).all()


@pytest.mark.usefixtures("executor")
def test_drives_stops_and_says_how_it_is(stack, base):
    # At rest, too, it says so again and again.
    seen = len(stack.executor)
    stack.wait_for(lambda: len(stack.executor) > seen + 5, 20.0, "status after status")
    task = stack.running(stack.send(time_limit=60.0))
    stack.wait_for(lambda: base.told[-1][0][0] > 0.1, 20.0, "the base to drive")
    task.cancel()
    assert task.result().code == Result.CANCELLED
    stack.wait_for(lambda: (base.told[-1][0] == 0.0).all(), 20.0, "the last command")

    within_limits(base)


@pytest.mark.usefixtures("executor")
def test_another_commander_is_noticed(stack, base):
    task = stack.running(stack.send(time_limit=60.0))
    rival = stack.node.create_publisher(Twist, stack.name(DRIVE), qos.RELIABLE)
    result = task.result()
    stack.node.destroy_publisher(rival)
    assert result.code == Result.CONTROLLER_CONTESTED
    assert stack.wait_state(State.STATE_IDLE).code == Result.CONTROLLER_CONTESTED


def test_a_defect_of_the_loop_stops_the_base_and_ends_the_process(stack, base):
    process = stack.start(sys.executable, ["-c", DEFECT], embodiment="tiago_base", use_sim_time=False)
    stack.wait_ready(world=False)
    task = stack.running(stack.send(time_limit=60.0))
    stack.wait_for(lambda: process.returncode is not None, 30.0, "the end of the executor")
    assert process.returncode == 1
    assert "ZeroDivisionError: of the test" in process.output
    assert task is not None
    assert (base.told[-1][0] == 0.0).all()
    within_limits(base)
