# SPDX-License-Identifier: Apache-2.0
"""Jerk-limited tracking and stopping."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_vla_ros.motion.guard import JointGuard, slack
from qwen_vla_ros.motion.stop import AxisState, Brake, Limits
from qwen_vla_ros.motion.tracking import JointTracker

PERIOD, HORIZON = 0.01, 0.05
LIMITS = Limits([-1.0, 0.0], [1.0, 0.04], [2.0, 0.1], [10.0, 1.0], [500.0, 50.0])


def assert_within(limits: Limits, positions: np.ndarray, period: float) -> None:
    """Positions, shape (t, n), obey the limits, seen as a controller sees them: as differences."""
    assert np.isfinite(positions).all()
    allowed = slack(limits.upper - limits.lower, 0, period)
    assert (positions >= limits.lower - allowed).all()
    assert (positions <= limits.upper + allowed).all()
    velocity = np.diff(positions, axis=0) / period
    # What rounding makes of a quotient grows with its rate.
    fast = PERIOD / period
    assert (np.abs(velocity) <= limits.velocity * (1 + 1e-6) + 1e-9 * fast).all()
    acceleration = np.diff(velocity, axis=0) / period
    assert (np.abs(acceleration) <= limits.acceleration * (1 + 1e-6) + 1e-7 * fast**2).all()
    jerk = np.diff(acceleration, axis=0) / period
    # The third difference is a mean over three periods of a jerk that may change sign between them.
    assert (np.abs(jerk) <= limits.jerk * (1 + 1e-6) + 1e-4 * fast**3).all()


@pytest.mark.parametrize("seed", [*range(8), 145, 155, 180, 187])
def test_set_points_that_graze_a_bound_pass_the_guard(seed):
    """What a step may be beyond a bound must not add up, as it did with the last seeds."""
    rng = np.random.default_rng(seed)
    limits = Limits([0.0], [0.04], [0.1], [1.0], [50.0])
    tracker, guard = JointTracker(limits, PERIOD, HORIZON), JointGuard(("finger",), limits, PERIOD)
    tracker.reset([rng.uniform(0.0, 0.04)])
    guard.start(tracker.state.position)
    for step in range(200):
        if step % 10 == 0:
            near = 10.0 ** rng.uniform(-9, -3)
            target = rng.choice([0.0, near, 0.04 - near, 0.04, rng.uniform(0.0, 0.04)])
            velocity = rng.choice([0.0, rng.normal(0.0, 0.1), 10.0 ** rng.uniform(-7, -2)])
        guard.check(tracker.step([target], [velocity]).position)


@pytest.mark.parametrize("period", [PERIOD, 0.004, 0.001])
@settings(max_examples=60, deadline=None)
@given(
    moves=st.lists(
        st.tuples(
            st.sampled_from(["hold", "go", "brake"]),
            st.lists(st.floats(-5, 5), min_size=2, max_size=2),
            st.lists(st.floats(-20, 20), min_size=2, max_size=2),
            st.integers(1, 20),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_any_set_points_give_motion_within_limits(period, moves):
    tracker = JointTracker(LIMITS, period, HORIZON)
    tracker.reset([0.2, 0.02])
    positions = [tracker.state.position] * 3
    target = (np.array([0.2, 0.02]), np.zeros(2))
    for kind, position, velocity, times in moves:
        if kind == "go":
            target = (np.array(position), np.array(velocity))
        for _ in range(times):
            state = tracker.brake() if kind == "brake" else tracker.step(*target)
            positions.append(state.position)
    while not tracker.state.resting:
        positions.append(tracker.brake().position)
    assert_within(LIMITS, np.array(positions), period)


@pytest.mark.parametrize("period", [PERIOD, 0.004, 0.001])
def test_follows_a_feasible_set_point_closely(period):
    limits = Limits([-1.0], [1.0], [2.0], [10.0], [500.0])
    tracker = JointTracker(limits, period, HORIZON)
    errors = []
    for k in range(round(3.0 / period)):
        at = k * period + HORIZON
        state = tracker.step([0.5 * np.sin(3 * at)], [1.5 * np.cos(3 * at)])
        errors.append(abs(state.position[0] - 0.5 * np.sin(3 * (k + 1) * period)))
    assert max(errors[round(1.0 / period) :]) < 0.002
    assert not tracker.clamps.any()


@pytest.mark.parametrize(("period", "plans"), [(PERIOD, 100), (0.004, 50), (0.001, 13)])
def test_a_fast_loop_plans_once_in_a_while(period, plans, monkeypatch):
    tracker = JointTracker(LIMITS, period, HORIZON)
    tracker.reset([0.0, 0.01])
    made = []
    plan = tracker._plan_all
    monkeypatch.setattr(tracker, "_plan_all", lambda *request: made.append(1) or plan(*request))
    for k in range(100):
        phase = 2 * (period * k + HORIZON)
        tracker.step([0.1 * (1 - np.cos(phase)), 0.01], [0.2 * np.sin(phase), 0.0])
    assert len(made) == pytest.approx(plans, abs=2)


def test_reaches_and_rests_at_a_fixed_set_point():
    tracker = JointTracker(LIMITS, PERIOD, HORIZON)
    tracker.reset([0.0, 0.0])
    for _ in range(200):
        tracker.step([0.7, 0.03])
    assert tracker.state.position == pytest.approx([0.7, 0.03], abs=1e-6)
    assert tracker.state.resting


def test_clamps_and_counts_a_set_point_outside():
    tracker = JointTracker(LIMITS, PERIOD, HORIZON)
    tracker.reset([0.9, 0.02])
    for _ in range(200):
        tracker.step([3.0, 0.02])
    assert tracker.state.position[0] == pytest.approx(1.0, abs=1e-5)
    assert tracker.clamps[0] >= 200
    assert tracker.clamps[1] == 0


def test_starts_outside_the_limits_without_a_jump_and_comes_inside():
    tracker = JointTracker(LIMITS, PERIOD, HORIZON)
    tracker.reset([1.3, 0.05])
    before = tracker.state.position
    for _ in range(300):
        position = tracker.step([0.5, 0.03]).position
        assert (position <= np.maximum(before, LIMITS.upper) + 1e-7).all()
        assert (np.abs(position - before) <= LIMITS.velocity * PERIOD + 1e-9).all()
        before = position
    assert before == pytest.approx([0.5, 0.03], abs=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_refuses_a_set_point_that_is_not_finite_and_does_not_move(bad):
    tracker = JointTracker(LIMITS, PERIOD, HORIZON)
    tracker.step([0.5, 0.02])
    before = tracker.state
    with pytest.raises(ValueError, match="not finite"):
        tracker.step([bad, 0.0])
    with pytest.raises(ValueError, match="not finite"):
        tracker.step([0.0, 0.0], [0.0, bad])
    assert tracker.state is before


def test_refuses_a_start_that_is_not_finite():
    with pytest.raises(ValueError, match="finite"):
        JointTracker(LIMITS, PERIOD, HORIZON).reset([np.nan, 0.0])


@settings(max_examples=100, deadline=None)
@given(st.floats(-2, 2), st.floats(-10, 10))
def test_brake_takes_the_time_that_acceleration_and_jerk_allow(velocity, acceleration):
    limits = Limits([-9.0], [9.0], [2.0], [10.0], [500.0])
    brake = Brake(limits)
    state = AxisState(np.zeros(1), np.array([velocity]), np.array([acceleration]))
    steps = 0
    while not state.resting:
        state = brake.step(state, PERIOD)
        steps += 1
        assert steps < 100
    worst = (abs(velocity) + acceleration**2 / 1000) / 10.0 + 3 * 10.0 / 500.0
    assert steps * PERIOD <= worst + 2 * PERIOD
    assert brake.step(state, PERIOD).position == pytest.approx(state.position, abs=1e-9)


@settings(max_examples=300, deadline=None)
@given(
    velocity=st.floats(-1, 1),
    acceleration=st.floats(-1, 1),
    limits=st.tuples(st.floats(-2, 2), st.floats(-2, 2), st.floats(0, 3)),
)
def test_no_way_to_rest_leads_further_than_the_quick_bound(velocity, acceleration, limits):
    most_velocity, most_acceleration, rise = (10.0**power for power in limits)
    # From rest to full acceleration it takes up to a second.
    jerk = most_acceleration * rise
    brake = Brake(Limits([-9.0], [9.0], [most_velocity], [most_acceleration], [jerk]))
    moves, speeds_up = np.array([velocity * most_velocity]), np.array([acceleration * most_acceleration])
    start = np.array([0.3])
    _, lowest, highest = brake.plan(AxisState(start, moves, speeds_up))
    reach = brake.reach(moves, speeds_up)
    # The planner rounds.
    rounding = 1e-9 * (1 + reach)
    assert (start - lowest <= reach + rounding).all()
    assert (highest - start <= reach + rounding).all()
    # Not without use: at speed it is a few times as far at most, where most of the braking is at full.
    if abs(velocity) > 0.5 and velocity * acceleration >= 0 and most_acceleration**2 < most_velocity * jerk:
        assert (reach <= 4 * np.maximum(start - lowest, highest - start) + rounding).all()


@pytest.mark.parametrize("period", [PERIOD, 0.004, 0.001])
def test_what_was_prepared_is_the_step_that_would_be_made(period):
    rng = np.random.default_rng(5)
    plain, ahead = JointTracker(LIMITS, period, HORIZON), JointTracker(LIMITS, period, HORIZON)
    for tracker in (plain, ahead):
        tracker.reset([0.2, 0.02])
    for k in range(1000):
        if k % 50 == 0:
            target = rng.uniform([-1.2, -0.01], [1.2, 0.05]), rng.normal(size=2) * [0.5, 0.02]
        if k % 170 in range(160, 170):
            # A plan that was prepared is no way to rest.
            states = [tracker.brake() for tracker in (plain, ahead)]
        else:
            if not ahead.goes_on:
                before = ahead.state
                ahead.prepare(*target)
                assert ahead.state is before
                assert ahead.goes_on
            states = [plain.step(*target), ahead.go_on()]
        for name in ("position", "velocity", "acceleration"):
            np.testing.assert_array_equal(getattr(states[0], name), getattr(states[1], name))
    # Between two plans a set-point counts as the one that was planned for did.
    assert plain.clamps.any()
    np.testing.assert_allclose(plain.clamps, ahead.clamps, atol=20 * len(plain._due))


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("velocity", [0.0], "velocity must be positive"),
        ("jerk", [np.nan], "jerk must be positive"),
        ("lower", [2.0], "exceeds upper"),
        ("acceleration", [1.0, 2.0], "shape"),
    ],
)
def test_limits_are_checked(field, value, reason):
    good = {"lower": [-1.0], "upper": [1.0], "velocity": [1.0], "acceleration": [1.0], "jerk": [1.0]}
    with pytest.raises(ValueError, match=reason):
        Limits(**{**good, field: value})


def test_a_set_point_that_moves_away_is_met_and_not_backed_away_from():
    limits = Limits([-9.0], [9.0], [2.0], [10.0], [300.0])
    tracker = JointTracker(limits, PERIOD, HORIZON)
    path = []
    for k in range(80):
        at = k * PERIOD + HORIZON
        path.append(tracker.step([1.0 * at], [1.0]).position[0])
    assert min(path) >= 0.0, "it went back for a run-up"
    # From rest to 1 rad/s takes 0.13 s, in which half of the way is lost; then it is caught up with.
    assert path[-1] == pytest.approx(80 * PERIOD, abs=1e-4)
    assert np.abs(np.diff(path)).max() / PERIOD < 1.7
