# SPDX-License-Identifier: Apache-2.0
"""How a chunk takes over from the one before, by mode and by what a channel is."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from qwen_vla_ros.motion import rotations
from qwen_vla_ros.motion.timeline import MODES, Timeline

STEP, LEAD = 0.1, 0.05
RNG = np.random.default_rng(8)


def two(mode: str, **options) -> tuple[Timeline, np.ndarray, np.ndarray]:
    """A timeline with two random chunks, captured at 0 and 0.4, the second here at 0.5."""
    timeline = Timeline(2, blend=0.2, mode=mode, lead=LEAD, **options)
    one, other = RNG.normal(size=(12, 2)).cumsum(axis=0), RNG.normal(size=(12, 2)).cumsum(axis=0)
    timeline.offer(one, one[0], 0.0, STEP, now=0.0)
    return timeline, one, other


@pytest.mark.parametrize("mode", MODES)
def test_what_lies_before_the_lead_is_committed(mode):
    timeline, _, other = two(mode)
    times = np.linspace(0.5, 0.5 + LEAD, 20, endpoint=False)
    before = [timeline.sample(time).position for time in times]
    timeline.offer(other, other[0], 0.4, STEP, now=0.5)
    assert np.array([timeline.sample(time).position for time in times]) == pytest.approx(np.array(before))


@pytest.mark.parametrize("mode", ["replace", "rtc"])
def test_a_splice_is_continuous_up_to_acceleration_and_ends(mode):
    timeline, _, other = two(mode)
    timeline.offer(other, other[0], 0.4, STEP, now=0.5)
    at, h = 0.5 + LEAD, 1e-6

    def derivatives(time: float, side: int) -> list[np.ndarray]:
        p = [timeline.sample(time + side * k * h).position for k in (1, 2, 3)]
        return [p[0], side * (p[1] - p[0]) / h, (p[2] - 2 * p[1] + p[0]) / h**2]

    for left, right in zip(derivatives(at, -1), derivatives(at, 1), strict=True):
        assert right == pytest.approx(left, rel=1e-2, abs=0.05)
    assert timeline.sample(0.9).position == pytest.approx(other[4])


def test_an_ensemble_is_the_weighted_mean_where_all_count_in_full():
    timeline, one, other = two("ensemble", decay=0.5)
    timeline.offer(other, other[0], 0.4, STEP, now=0.5)
    weight = np.exp(-0.5)
    expected = (one[8] + weight * other[4]) / (1 + weight)
    assert timeline.sample(0.9).position == pytest.approx(expected)
    assert timeline.sample(1.4).position == pytest.approx(other[9]), "a chunk that is over counts no more"


def test_an_ensemble_never_jumps():
    timeline = Timeline(2, blend=0.2, mode="ensemble", lead=LEAD)
    path, arrivals = [], iter(np.arange(0.0, 2.0, 0.25))
    due = next(arrivals)
    for now in np.arange(0.0, 2.5, 0.01):
        if due is not None and now >= due:
            rows = np.sin(due + STEP * np.arange(1, 13))[:, None] + 0.3 * RNG.normal(size=2)
            timeline.offer(rows, rows[0], due, STEP, now)
            due = next(arrivals, None)
        path.append(timeline.sample(now).position)
    assert np.abs(np.diff(path, axis=0)).max() < 0.1


def test_quaternions_turn_at_constant_speed_by_the_shorter_way_and_stay_unit():
    timeline = Timeline(4, blend=0.2, quaternions=(0,))
    start, end = rotations.from_vector([0.0, 0.0, 0.2]), rotations.from_vector([0.0, 0.0, 1.0])
    timeline.offer(np.array([-end, end]), start, 0.0, STEP, now=-0.5 + 0.5)
    timeline.clear(start)
    timeline.offer(np.array([-end, end]), start, 0.0, STEP, now=0.0)
    quarter = timeline.sample(0.025).position
    assert rotations.to_vector(quarter) == pytest.approx([0, 0, 0.4], abs=1e-9)
    # A newer chunk about another axis: the turn is blended, not the numbers.
    other = rotations.from_vector([0.9, 0.0, 0.0])
    timeline.offer(np.repeat(other[None], 8, axis=0), other, 0.02, STEP, now=0.05)
    samples = [timeline.sample(time).position for time in np.arange(0.05, 0.4, 0.002)]
    assert np.linalg.norm(samples, axis=1) == pytest.approx(1.0)
    turns = [rotations.between(*pair) for pair in pairwise(samples)]
    assert np.linalg.norm(turns, axis=1).max() < 0.03
    assert np.abs(samples[-1] @ other) == pytest.approx(1.0)


def test_grippers_are_never_blended():
    for mode in MODES:
        timeline = Timeline(1, blend=0.2, held=[True], mode=mode, lead=LEAD)
        timeline.offer(np.ones((8, 1)), [1.0], 0.0, STEP, now=0.0)
        timeline.offer(np.zeros((8, 1)), [1.0], 0.1, STEP, now=0.2)
        values = {timeline.sample(time).position[0] for time in np.arange(0.2, 0.8, 0.01)}
        assert values == {0.0, 1.0}


def test_chunks_in_quick_succession_leave_what_is_committed_alone():
    timeline = Timeline(1, blend=0.1, lead=LEAD)
    path = []
    for k, now in enumerate(np.arange(0.0, 0.3, 0.01)):
        rows = np.full((8, 1), float(k % 2))
        timeline.offer(rows, [0.0], now, STEP, now)
        path.append(timeline.sample(now + LEAD - 1e-9).position[0])
    assert np.abs(np.diff(path)).max() < 0.3


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="found 'jump', expected one of replace, ensemble, rtc"):
        Timeline(1, blend=0.1, mode="jump")
