# SPDX-License-Identifier: Apache-2.0
"""A joint that does not follow, and one of which is heard late."""

from __future__ import annotations

import numpy as np
import pytest

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.motion.follower import Follower, JointCommand

pytest.importorskip("rclpy", reason="needs ROS 2")

from qwen_vla_ros.action import ExecuteTask
from rclpy.time import Time
from sensor_msgs.msg import JointState

from qwen_vla_ros.nodes.watchdog import TRACKING_PATIENCE, Watchdog

PANDA = load_embodiment("franka_panda")
PERIOD, ALLOWED, SPEED = 0.01, 0.5, 2.4


class Nobody:
    connected = True


def drive(follows: float, late: float, ticks: int = 200, begin: float = 10.0):
    """What is found, and when, while joint 7 goes at 2.4 rad/s, `follows` of it, and is heard `late` [s]."""
    watch = Watchdog(PANDA, Follower(PANDA), {"arm": Nobody()}, ALLOWED, 0.05)
    for tick in range(ticks):
        now = begin + PERIOD * tick
        then = max(0, tick - round(late / PERIOD))
        position = [0.0] * len(PANDA.joints)
        position[6] = follows * SPEED * PERIOD * then
        message = JointState(name=list(PANDA.joints), position=position)
        message.header.stamp = Time(seconds=begin + PERIOD * then).to_msg()
        watch.hear_joints(message)
        found = watch._find_astray()
        if found is not None:
            return found, now - begin
        commanded = np.zeros(7)
        commanded[6] = SPEED * PERIOD * tick
        watch.note([JointCommand("arm", commanded, np.zeros(7))], now)
    return None, None


@pytest.mark.parametrize("late", [0.0, 0.1, 0.29])
def test_what_is_heard_late_is_not_astray(late):
    assert drive(1.0, late) == (None, None)


@pytest.mark.parametrize("late", [0.0, 0.1, 0.29])
def test_what_does_not_follow_is(late):
    found, after = drive(0.0, late)
    assert found.code == ExecuteTask.Result.TRACKING_LOST
    assert "joint panda_joint7 is " in found.message
    assert after == pytest.approx(ALLOWED / SPEED + TRACKING_PATIENCE + late, abs=0.05)


def test_a_clock_that_goes_back_keeps_no_patience():
    watch = Watchdog(PANDA, Follower(PANDA), {"arm": Nobody()}, ALLOWED, 0.05)
    found = []
    for now in (*np.arange(60.0, 60.2, PERIOD), *np.arange(10.0, 11.0, PERIOD)):
        message = JointState(name=list(PANDA.joints), position=[0.0] * len(PANDA.joints))
        message.header.stamp = Time(seconds=now).to_msg()
        watch.note([JointCommand("arm", np.ones(7), np.zeros(7))], now)
        watch.hear_joints(message)
        if watch._find_astray() is not None:
            found.append(now)
    assert found[0] == pytest.approx(10.0 + TRACKING_PATIENCE, abs=0.03)
