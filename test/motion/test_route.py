# SPDX-License-Identifier: Apache-2.0
"""Waypoints handed over as a path: what is said, when, and that no pose is too far from the one before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.embodiment.schema import PathController
from qwen_vla_ros.motion.base import compose
from qwen_vla_ros.motion.follower import ChunkRefused, Follower, MotionError
from qwen_vla_ros.motion.guard import PathGuard
from qwen_vla_ros.motion.route import RENEWAL
from qwen_vla_ros.motion.timeline import MODES

TIAGO = load_embodiment("tiago_base")
BASE = TIAGO.actions[0].model_copy(update={"controller": PathController(type="path", topic="plan")})
BODY = TIAGO.model_copy(update={"actions": (BASE,)})
VELOCITY = np.array([BASE.limits.linear.velocity, BASE.limits.angular.velocity])
STEP = 1 / BODY.control_rate
ROWS = np.array([0.3, 0.0, 0.1]) * np.arange(1, BODY.horizon + 1)[:, None]


def begin(pose=(0.0, 0.0, 0.0), mode=None) -> Follower:
    follower = Follower(BODY, mode=mode)
    follower.pose.add(10.0, pose)
    follower.start(10.0)
    return follower


def drive(follower: Follower, now: float, seconds: float, braking: bool = False, pose=None) -> tuple:
    """What was said, by time, while odometry came every period; the time then."""
    said = []
    for _ in range(round(seconds / follower.period)):
        follower.pose.add(now, follower.pose.newest[1] if pose is None else pose)
        commands = follower.brake() if braking else follower.step(now)
        said += [(now, command) for command in commands]
        now += follower.period
    return said, now


def test_the_plan_ahead_is_said_when_it_changes_and_stay_at_its_end():
    start = np.array([1.0, 2.0, np.pi / 2])
    follower = begin(start)
    assert follower.resting
    follower.offer(ROWS, 10.0, STEP, 10.0)
    said, now = drive(follower, 10.0, BODY.horizon * STEP + 1.0)
    (first_at, first), *_ = said
    assert first_at == 10.0
    assert first.group == "base"
    assert first.times == pytest.approx(STEP * np.arange(BODY.horizon + 1))
    assert first.poses == pytest.approx(np.vstack([start, compose(start, ROWS)]), abs=3e-3)
    # One path per waypoint that has passed, and one that says "stay".
    assert [len(command.poses) for _, command in said] == list(range(BODY.horizon + 1, 0, -1))
    assert np.diff([at for at, _ in said]) == pytest.approx(STEP, abs=2 * follower.period)
    assert said[-1][1].poses == pytest.approx(start[None])
    assert follower.resting
    # Waypoints that a base which has not moved cannot reach in time any more are drawn back to where it can.
    assert follower.clamps["base"] > 5
    follower.offer(ROWS, now - 0.02, STEP, now)
    assert len(drive(follower, now, 0.02)[0][0][1].poses) == BODY.horizon + 1
    assert not follower.resting


def test_stay_is_said_once_and_rest_is_when_the_base_stands():
    follower = begin()
    follower.offer(ROWS, 10.0, STEP, 10.0)
    _, now = drive(follower, 10.0, 0.5)
    said = []
    for k in range(15):  # it rolls on
        more, now = drive(follower, now, follower.period, braking=True, pose=(0.02 * k, 0.0, 0.0))
        said += more
        assert not follower.resting
    more, now = drive(follower, now, 0.2, braking=True)
    assert follower.resting
    assert [command.poses.tolist() for _, command in said + more] == [[[0.0, 0.0, 0.0]]]
    # A base that never stands, or whose odometry has stopped, is not waited for without end.
    follower.go_on(now)
    follower.offer(ROWS, now, STEP, now)
    follower.step(now)
    periods = 0
    while not follower.resting:
        follower.brake()
        periods += 1
    assert periods * follower.period < 2.0


def test_what_cannot_be_checked_is_answered_by_stay():
    follower = begin()
    follower.offer(ROWS, 10.0, STEP, 10.0)
    drive(follower, 10.0, 0.1)
    (command,) = follower.halt()
    assert command.poses == pytest.approx(np.zeros((1, 3)))
    assert follower.halt() == []
    follower = Follower(BODY)
    with pytest.raises(MotionError, match="its pose is not known"):
        follower.step(10.0)
    with pytest.raises(ValueError, match=r"base \(its pose\)"):
        follower.start(10.0)


def test_the_guard_of_paths():
    guard = PathGuard("base", VELOCITY)
    there = [[0.0, 0.0, 0.0], [0.3, 0.4, 0.0]]
    guard.check(np.array(there), np.array([0.0, 0.5]))
    for poses, times, what in (
        (there, [0.0, 0.49], "velocity limit"),
        ([[0.0, 0.0, 0.0], [0.0, 0.0, 1.5]], [0.0, 0.5], "velocity limit"),
        ([[0.0, np.nan, 0.0]], [0.0], "not finite"),
        (there, [0.0, np.inf], "not finite"),
        (there, [0.0, -1.0], "back in time"),
    ):
        with pytest.raises(MotionError, match=what):
            guard.check(np.array(poses), np.array(times))


numbers = st.one_of(st.floats(-3, 3), st.sampled_from([np.nan, np.inf, -1e5, 1e300]))
events = st.one_of(
    st.tuples(st.just("chunk"), st.lists(numbers, min_size=3, max_size=24), st.floats(-0.1, 1.5)),
    st.tuples(st.just("drive"), st.integers(1, 40), st.tuples(*[st.floats(-0.5, 0.5)] * 3)),
    st.tuples(st.just("brake"), st.integers(1, 20), st.just((0.0, 0.0, 0.0))),
    st.tuples(st.just("jump"), st.floats(-20.0, 20.0), st.none()),
)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(MODES), st.lists(events, min_size=1, max_size=12))
def test_no_path_breaks_a_limit_whatever_comes(mode, happened):
    follower, now = begin(mode=mode), 10.0
    stayed, renewed, chunks = True, -np.inf, 0
    for kind, value, more in happened:
        if kind == "chunk":
            rows = np.array(value[: len(value) // 3 * 3]).reshape(-1, 3)
            try:
                follower.offer(rows, now - more, STEP, now)
                chunks += 1
                renewed = -np.inf
            except ChunkRefused:
                pass
        elif kind == "jump":
            now += value
            follower.pose.add(now, follower.pose.newest[1])
            renewed = -np.inf
        for _ in range(value if kind in ("drive", "brake") else 0):
            pose = follower.pose.newest[1] + np.array(more) * follower.period
            follower.pose.add(now, pose)
            commands = follower.brake() if kind == "brake" else follower.step(now)
            for command in commands:
                assert np.isfinite(command.poses).all()
                assert command.times[0] == 0.0
                assert command.poses[0] == pytest.approx(pose)
                spans, ways = np.diff(command.times), np.diff(command.poses, axis=0)
                assert (spans > 0).all()
                assert (np.hypot(ways[:, 0], ways[:, 1]) <= VELOCITY[0] * spans + 1e-9).all()
                assert (np.abs(ways[:, 2]) <= VELOCITY[1] * spans + 1e-9).all()
                assert len(command.poses) > 1 or not stayed, "stay was said twice"
                stayed = len(command.poses) == 1
                if not stayed:
                    assert chunks
                    assert kind == "drive"
                    assert now - renewed > RENEWAL - 1e-6
                    renewed = now
                else:
                    renewed = -np.inf
            assert stayed or not follower.resting
            now += follower.period
