# SPDX-License-Identifier: Apache-2.0
"""The mobile base: poses, history, velocity ramp, waypoint tracking."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_vla_ros.motion.base import BaseTracker, History, VelocityRamp, compose, wrap

PERIOD = 0.02
LIMITS = {"velocity": [1.0, 2.0], "acceleration": [1.0, 2.0], "jerk": [5.0, 10.0]}


def test_compose_turns_and_shifts():
    there = compose([1.0, 2.0, np.pi / 2], [[1.0, 0.0, 0.1], [0.0, 1.0, 0.0]])
    assert there == pytest.approx(np.array([[1.0, 3.0, np.pi / 2 + 0.1], [0.0, 2.0, np.pi / 2]]))


def test_wrap():
    assert wrap(3 * np.pi / 2) == pytest.approx(-np.pi / 2)


def test_history_interpolates_unwraps_and_forgets():
    history = History(3, span=1.0, angles=[False, False, True])
    assert history.at(0.0) is None
    assert history.newest is None
    history.add(0.0, [0.0, 0.0, 3.0])
    history.add(0.5, [1.0, 0.0, -3.0])  # a turn across pi, not back through zero
    assert history.at(0.25) == pytest.approx([0.5, 0.0, np.pi], abs=1e-9)
    assert history.at(9.0) == pytest.approx([1.0, 0.0, 2 * np.pi - 3.0])
    history.add(2.0, [2.0, 0.0, -3.0])
    assert history.at(0.0) == pytest.approx([2.0, 0.0, 2 * np.pi - 3.0])
    history.add(1.5, [7.0, 0.0, 0.0])  # the clock was set back
    assert history.newest[0] == 1.5
    for bad in ([np.nan, 0, 0], [1.0, 2.0]):
        with pytest.raises(ValueError, match="3 finite values"):
            history.add(3.0, bad)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9), st.integers(1, 30)), min_size=1, max_size=12))
def test_velocity_ramp_stays_within_limits_and_stops(targets):
    ramp = VelocityRamp(**LIMITS, period=PERIOD)
    speeds = [np.zeros(2)] * 2
    for v, w, times in targets:
        speeds += [ramp.step([v, w]) for _ in range(times)]
    while not ramp.resting:
        speeds.append(ramp.brake())
        assert len(speeds) < 2000
    speeds = np.array(speeds)
    assert (np.abs(speeds) <= np.array(LIMITS["velocity"]) + 1e-9).all()
    acceleration = np.diff(speeds, axis=0) / PERIOD
    assert (np.abs(acceleration) <= np.array(LIMITS["acceleration"]) * (1 + 1e-6)).all()
    assert (np.abs(np.diff(acceleration, axis=0) / PERIOD) <= np.array(LIMITS["jerk"]) * (1 + 1e-6)).all()


def drive(tracker: BaseTracker, reference, seconds: float, pose) -> np.ndarray:
    """Poses of an ideal base that follows reference(t) -> (pose, rate). Shape (t, 3)."""
    pose, poses = np.array(pose, dtype=float), []
    for k in range(round(seconds / PERIOD)):
        v, w = tracker.step(*reference(k * PERIOD), pose)
        pose = pose + PERIOD * np.array([v * np.cos(pose[2]), v * np.sin(pose[2]), w])
        poses.append(pose)
    return np.array(poses)


def test_follows_an_arc_from_beside_it():
    def arc(t):
        angle = 0.3 * t
        rate = 0.3 * np.array([np.cos(angle), np.sin(angle), 1.0])
        return np.array([np.sin(angle), 1 - np.cos(angle), angle]), rate

    poses = drive(BaseTracker(**LIMITS, period=PERIOD), arc, 12.0, [0.0, 0.1, 0.2])
    end = arc(12.0)[0]
    assert np.linalg.norm(poses[-1][:2] - end[:2]) < 0.02
    assert abs(wrap(poses[-1][2] - end[2])) < 0.03


def test_turns_on_the_spot_and_stays():
    target = np.array([0.0, 0.0, 1.5]), np.zeros(3)
    poses = drive(BaseTracker(**LIMITS, period=PERIOD), lambda t: target, 6.0, [0.0, 0.0, 0.0])
    assert poses[-1] == pytest.approx([0.0, 0.0, 1.5], abs=0.02)


def test_refuses_what_is_not_finite_and_keeps_its_velocity():
    tracker = BaseTracker(**LIMITS, period=PERIOD)
    tracker.step([1.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.0, 0.0])
    before = tracker.velocity
    with pytest.raises(ValueError, match="finite"):
        tracker.step([np.nan, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    assert tracker.velocity is before
