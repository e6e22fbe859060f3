# SPDX-License-Identifier: Apache-2.0
"""Where a robot is taken to be: moved by others, seen by several publishers, unknown after a fault."""

from __future__ import annotations

import numpy as np
import pytest

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.embodiment.schema import Embodiment
from qwen_vla_ros.motion.follower import BaseCommand, Command, Follower, JointCommand, MotionError
from qwen_vla_ros.motion.measured import JointHistory

PANDA = load_embodiment("franka_panda")
HOME = np.array([PANDA.home[name] for name in PANDA.joints])


def begin(body: Embodiment, joints: np.ndarray) -> Follower:
    follower = Follower(body)
    follower.joints.add(0.0, joints)
    follower.pose.add(0.0, np.zeros(3))
    follower.start(0.0)
    return follower


def lead(follower: Follower, rows: np.ndarray, seconds: float) -> tuple[float, list[Command]]:
    """Follow a chunk of these rows; the time then, and the last commands."""
    follower.offer(rows, 0.0, 1 / follower.embodiment.control_rate, 0.0)
    now = 0.0
    while now < seconds:
        commands = follower.step(now)
        now += follower.period
        follower.pose.add(now, np.zeros(3))
    return now, commands


def test_going_on_after_others_moved_the_robot_starts_where_it_is():
    follower = begin(PANDA, HOME)
    now, _ = lead(follower, np.repeat((HOME + 0.1)[None], PANDA.horizon, axis=0), 0.5)
    while not follower.resting:
        follower.brake()
    elsewhere = HOME.copy()
    elsewhere[0] += 0.8
    follower.joints.add(now, elsewhere)
    assert follower.go_on(now) == ["arm"]
    arm, gripper = follower.brake()
    assert arm.position == pytest.approx(elsewhere[:7], abs=1e-9)
    # Fingers keep their hold, however far they are off.
    elsewhere[7] = 0.0
    follower.joints.add(now, elsewhere)
    assert follower.go_on(now) == []
    assert follower.brake()[1].position == pytest.approx(gripper.position, abs=1e-9)
    assert gripper.position[0] > 0.03


def test_droop_is_not_a_push_and_a_small_push_is_one():
    follower = begin(PANDA, HOME)
    now, _ = lead(follower, np.repeat((HOME + 0.1)[None], PANDA.horizon, axis=0), 0.5)
    while not follower.resting:
        last = follower.brake()
    told = np.concatenate([command.position for command in last])
    drooping = told - np.append(np.full(7, 0.2), 0.0)
    for step in range(-20, 1):
        follower.joints.add(now + 0.01 * step, told)
    for step in range(1, 30):
        # Still on its way down for 0.1 s, and then it stands.
        follower.joints.add(now + 0.01 * step, told + min(1.0, 0.1 * step) * (drooping - told))
        assert follower.settle(now) == (step >= 20)
    ended = now
    now += 0.3
    assert follower.go_on(now) == []
    assert follower.brake()[0].position == pytest.approx(told[:7], abs=1e-9)
    assert follower.settle(ended)
    pushed = drooping.copy()
    pushed[2] += 0.08
    follower.joints.add(now + 0.1, pushed)
    assert follower.go_on(now + 0.1) == ["arm"]
    assert follower.brake()[0].position == pytest.approx(pushed[:7], abs=1e-9)


def test_a_base_brakes_when_joints_cannot_be_planned():
    body = load_embodiment("mobile_aloha")
    start = np.array([body.home.get(name, 0.0) for name in body.joints])
    follower = begin(body, start)
    base = next(group for group in body.actions if group.kind == "base_velocity")
    rows = np.zeros((body.horizon, body.layout.count))
    for group in body.actions:
        if group is not base:
            rows[:, body.layout.slice_of(group.name)] = start[[body.joints.index(n) for n in group.joints]]
    rows[:, body.layout.slice_of(base.name)] = 0.8 * base.limits.linear.velocity, 0.0
    _, commands = lead(follower, rows, 0.9)
    told = [command.velocity[0] for command in commands if isinstance(command, BaseCommand)]
    assert told[0] > 0.2
    while not follower.resting or follower.placed:
        (command,) = follower.halt()
        assert isinstance(command, BaseCommand)
        told.append(command.velocity[0])
        assert len(told) < 5.0 / follower.period
    assert told[-1] == 0.0
    assert np.abs(np.diff(told)).max() <= base.limits.linear.acceleration * follower.period * 1.01
    # The same when it is asked to brake: nobody knows where the joints are.
    assert [type(command) for command in follower.brake()] == [BaseCommand]
    # Where its own ramp fails, too, it is told to stand.
    follower.start(1.0)
    lead(follower, rows, 0.9)
    follower._driven[0].brake = _fail
    (command,) = follower.halt()
    assert command.velocity.tolist() == [0.0, 0.0]


def _fail() -> None:
    raise MotionError("no ramp")


def twisting() -> Embodiment:
    """A WidowX whose controller takes velocities of the tip."""
    body = load_embodiment("widowx")
    eef = body.actions[0]
    controller = eef.controller.model_copy(update={"type": "cartesian_twist"})
    return body.model_copy(
        update={"actions": (eef.model_copy(update={"controller": controller}), *body.actions[1:])}
    )


def test_twists_are_of_the_commands_and_begin_anew_with_each_start():
    body = twisting()
    ready = np.array([0.0, -0.3, 0.6, 0.0, 1.0, 0.0, 0.037])
    follower = begin(body, ready)
    rows = np.zeros((body.horizon, 7))
    rows[:, 0], rows[:, 5], rows[:, 6] = 0.01, 0.02, 1.0
    follower.offer(rows, 0.0, 1 / body.control_rate, 0.0)
    poses, twists, now = [], [], 0.0
    while now < 1.0:
        tip = follower.step(now)[0]
        poses.append(tip.pose)
        twists.append(tip.twist)
        now += follower.period
    assert twists[0] == pytest.approx(np.zeros(6), abs=0.02)
    moved = follower.period * np.sum(twists[1:], axis=0)
    assert moved[:3] == pytest.approx(poses[-1][:3] - poses[0][:3], abs=1e-9)
    assert np.abs(moved[3:]).max() > 0.02
    limit = body.actions[0].limits.linear.velocity
    assert np.linalg.norm(twists, axis=1)[:3].max() <= limit
    assert twists[-1][:3].any()
    while not follower.resting:
        last = follower.brake()[0]
    assert last.twist.tolist() == [0.0] * 6  # nothing follows that would end it
    follower.offer(rows, now, 1 / body.control_rate, now)
    for step in range(30):
        follower.step(now + step * follower.period)
    # A fault: it stands. Then others move the arm, and a motion from there says nothing of the way between.
    (halted,) = follower.halt()
    assert halted.twist.tolist() == [0.0] * 6
    elsewhere = ready.copy()
    elsewhere[:2] += 0.4
    follower.joints.add(now, elsewhere)
    follower.start(now)
    first = follower.brake()[0]
    assert isinstance(first, JointCommand)
    assert np.abs(first.twist).max() < 1e-9


def test_a_joint_without_end_goes_on_from_the_turns_that_its_driver_counts():
    body = load_embodiment("kinova_gen3")
    joints = np.array([body.posture()[name] for name in body.joints])
    closed, opened = body.actions[1].opening[0]
    joints[7] = opened
    follower = begin(body, joints)
    # Turned by others while nobody listened.
    joints[0] = 4.712
    follower.joints.add(60.0, joints)
    follower.start(60.0)
    command = follower.brake()[0]
    assert command.position[0] == pytest.approx(4.712)
    assert closed != opened


def test_publishers_of_joints_have_stamps_of_their_own():
    history = JointHistory(3, 10.0, np.zeros(3, dtype=bool))
    left, right = slice(0, 2), np.array([2])
    for step in range(11):
        history.add(0.1 * step, [0.1 * step, -0.1 * step], left)
        if step >= 2:
            history.add(0.1 * step - 0.2, [5.0 + 0.1 * step - 0.2], right)  # comes late
    assert history.at(0.45) == pytest.approx([0.45, -0.45, 5.45])
    assert history.at(0.95) == pytest.approx([0.95, -0.95, 5.8])
    assert history.latest == pytest.approx([1.0, -1.0, 5.8])
    # A clock that was reset, and one publisher has gone.
    history.add(1000.0, [1.0, 1.0, 1.0])
    history.add(1000.0, [5.0], right)
    history.add(1.0, [2.0, 2.0, 2.0])
    assert history.at(1.0) == pytest.approx([2.0, 2.0, 2.0])
    history.clear()
    assert np.isnan(history.at(0.5)).all()


def test_home_takes_no_notice_of_the_clock():
    """Periods count: what a clock skips would be caught up at full speed."""
    follower = begin(PANDA, HOME + np.append(np.full(7, 0.4), 0.0))
    duration = follower.start_home(0.0, 0.25)
    speeds, periods = [], 0
    while periods == 0 or not follower.homed:
        arm = follower.step_home()[0]
        speeds.append(np.abs(arm.velocity) / PANDA.actions[0].limits.velocity)
        periods += 1
        assert periods * follower.period < duration + 1.0
    assert np.max(speeds) <= 0.26
