# SPDX-License-Identifier: Apache-2.0
"""Going home within limits, from anywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.motion.follower import Follower, JointCommand
from qwen_vla_ros.motion.homing import Passage
from qwen_vla_ros.motion.stop import Limits

WIDOWX = load_embodiment("widowx")
# Six joints of an arm over the table, and a finger [m].
READY = [0.0, -0.6, 0.5, 0.0, 0.7, 0.0, 0.03]
LIMITS = Limits([-3.0, -3.0], [3.0, 3.0], [1.0, 2.0], [4.0, 5.0], [30.0, 20.0])


@settings(deadline=None)
@given(
    way=st.lists(st.floats(-3.0, 3.0), min_size=2, max_size=2),
    share=st.floats(0.05, 1.0),
)
def test_a_passage_uses_no_more_than_its_share_of_the_limits(way: list[float], share: float) -> None:
    passage = Passage([0.0, 0.0], way, LIMITS, share)
    times = np.linspace(0.0, passage.duration, 801)
    step = times[1] - times[0]
    positions = np.array([passage.sample(time)[0] for time in times])
    assert positions[-1] == pytest.approx(way)
    if passage.duration < 1e-3:
        return
    bounds = LIMITS.velocity, LIMITS.acceleration, LIMITS.jerk
    for order, bound in enumerate(bounds, start=1):
        quotient = np.abs(np.diff(positions, n=order, axis=0)) / step**order
        assert (quotient <= share * bound * 1.01 + 1e-12 / step**order).all()


@pytest.mark.parametrize(("body", "seed"), [("franka_panda", 1), ("unitree_g1", 2)])
def test_home_is_reached_at_rest(body: str, seed: int) -> None:
    embodiment = load_embodiment(body)
    follower = Follower(embodiment)
    low, high = np.concatenate([group.limits.position for group in embodiment.actions]).T
    start = np.random.default_rng(seed).uniform(low, high)
    follower.joints.add(0.0, start)
    duration = follower.start_home(0.0, 1.0)
    now = 0.0
    while not (now > 0 and follower.homed):
        commands = follower.step_home()  # guarded: raises when a limit is broken
        now += follower.period
        assert now < duration + 1.0
    position = np.concatenate([c.position for c in commands if isinstance(c, JointCommand)])
    home = [embodiment.home.get(name, value) for name, value in zip(embodiment.joints, start, strict=True)]
    assert np.abs(position - home).max() < 2e-3
    assert now > duration - 0.1


def test_home_of_a_fraction_is_a_fraction() -> None:
    body = load_embodiment("ur5e")
    gripper = body.actions[1]
    assert body.home[gripper.joints[0]] == 1.0  # open
    follower = Follower(body)
    follower.joints.add(0.0, [*[0.0] * 6, 0.4])
    now = 0.0
    duration = follower.start_home(0.0, 1.0)
    while not (now > 0 and follower.homed):
        command = follower.step_home()[1]
        now += follower.period
        assert now < duration + 1.0
    assert isinstance(command, JointCommand)
    assert command.position == pytest.approx(gripper.opening[:, 1], abs=2e-3)


def test_a_base_stays() -> None:
    follower = Follower(load_embodiment("tiago_base"))
    follower.pose.add(0.0, [0.0, 0.0, 0.0])
    follower.start_home(0.0, 0.5)
    for command in follower.step_home():
        assert (command.velocity == 0.0).all()
    assert follower.homed


def test_going_on_starts_from_the_last_command_not_from_what_is_measured() -> None:
    body = load_embodiment("franka_panda")
    home = np.array([body.home[name] for name in body.joints])
    follower = Follower(body)
    follower.joints.add(0.0, home)
    follower.start(0.0)
    rows = np.repeat((home + 0.1)[None], body.horizon, axis=0)
    follower.offer(rows, 0.0, 1 / body.control_rate, 0.0)
    now = 0.0
    while now < 0.5:
        follower.step(now)
        now += follower.period
    while not follower.resting:
        last = follower.brake()
    follower.joints.add(now, home)  # lags behind
    follower.go_on(now)
    first = follower.brake()
    for before, after in zip(last, first, strict=True):
        assert isinstance(before, JointCommand)
        assert isinstance(after, JointCommand)
        assert after.position == pytest.approx(before.position, abs=1e-9)
    assert np.abs(first[0].position - home[:7]).max() > 0.02


def test_home_of_a_joint_without_end_is_the_shorter_way() -> None:
    body = load_embodiment("kinova_gen3")
    joint = body.actions[0].joints[0]
    assert body.home[joint] == 0.0
    follower = Follower(body)
    start = np.array([body.home[name] for name in body.joints])
    start[0] = 1.5 * np.pi
    follower.joints.add(0.0, start)
    follower.start_home(0.0, 1.0)
    path = [start[0]]
    while not follower.homed or len(path) == 1:
        path.append(next(c for c in follower.step_home() if isinstance(c, JointCommand)).position[0])
        assert len(path) < 2000
    assert path[-1] == pytest.approx(2 * np.pi, abs=2e-3)
    assert min(path) >= 1.5 * np.pi - 1e-6


def test_a_tip_on_its_way_home_keeps_its_bounds() -> None:
    arm = dict(zip(WIDOWX.joints, READY, strict=True))
    body = WIDOWX.model_copy(update={"home": {**arm, "waist": -0.4, "left_finger": 1.0}})
    tip = body.actions[0]
    follower = Follower(body)
    follower.joints.add(0.0, [0.4, *READY[1:]])
    follower.start_home(0.0, 1.0)
    kinematics = follower.kinematics(tip.name)
    places: list[np.ndarray] = []
    while not places or not follower.homed:
        command = follower.step_home()[0]
        assert isinstance(command, JointCommand)
        places.append(kinematics.pose(command.position)[0])
        assert len(places) < 4000
    speeds = np.linalg.norm(np.diff(places, axis=0), axis=1) / follower.period
    assert 0.9 * tip.limits.linear.velocity < speeds.max() <= tip.limits.linear.velocity + 1e-6
    low, high = np.array(tip.workspace).T
    assert (np.array(places) >= low - 1e-6).all()
    assert (np.array(places) <= high + 1e-6).all()


def test_home_from_outside_the_limits_is_as_slow_as_it_was_asked_to_be() -> None:
    body = load_embodiment("franka_panda")
    follower = Follower(body)
    start = np.array([body.home[name] for name in body.joints])
    limits = body.actions[0].limits
    start[1] = limits.position[1, 1] + 0.2
    follower.joints.add(0.0, start)
    follower.start_home(0.0, 0.1)
    path = [start[:7]]
    while len(path) == 1 or not follower.homed:
        path.append(follower.step_home()[0].position)
        assert len(path) < 6000
    speeds = np.abs(np.diff(path, axis=0)) / follower.period / limits.velocity
    assert 0.05 < speeds.max() < 0.101
    assert np.abs(path[-1] - [body.home[name] for name in body.joints][:7]).max() < 2e-3
