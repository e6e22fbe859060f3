# SPDX-License-Identifier: Apache-2.0
"""Chunks in time."""

from __future__ import annotations

import numpy as np
import pytest

from qwen_vla_ros.motion.timeline import ChunkRefused, Timeline

STEP = 0.1


def ramp(rows: int, start: float = 0.0, slope: float = 1.0) -> np.ndarray:
    """Rows of one channel that rises by slope [1/s] from `start` at the capture time."""
    return (start + slope * STEP * np.arange(1, rows + 1))[:, None]


def test_row_k_is_due_at_stamp_plus_k_plus_one_steps():
    timeline = Timeline(1, blend=0.0)
    rows = np.array([[1.0], [3.0], [2.0], [2.5]])
    timeline.offer(rows, [0.0], stamp=10.0, step=STEP, now=10.0)
    for k, row in enumerate(rows):
        assert timeline.sample(10.0 + (k + 1) * STEP).position == pytest.approx(row)
    assert timeline.remaining(10.1) == pytest.approx(0.3)


def test_past_the_last_row_it_rests_there():
    timeline = Timeline(1, blend=0.0)
    timeline.offer(ramp(3), [0.0], 0.0, STEP, now=0.0)
    setpoint = timeline.sample(9.0)
    assert setpoint.position == pytest.approx([0.3])
    assert setpoint.velocity == pytest.approx([0.0])
    assert timeline.remaining(9.0) == pytest.approx(-8.7)


def test_between_rows_no_row_is_overshot():
    timeline = Timeline(1, blend=0.0)
    rows = np.array([[1.0], [0.0], [0.0], [5.0], [5.1]])
    timeline.offer(rows, [0.0], 0.0, STEP, now=0.0)
    values = np.concatenate([[0.0], rows[:, 0]])
    for t in np.linspace(0, 0.5, 501)[:-1]:
        k = min(int(t / STEP + 1e-9), 4)
        low, high = sorted(values[k : k + 2])
        assert low - 1e-9 <= timeline.sample(t).position[0] <= high + 1e-9


def test_velocity_is_the_derivative_of_position():
    timeline = Timeline(2, blend=0.2)
    rng = np.random.default_rng(3)
    timeline.offer(rng.normal(size=(8, 2)), [0, 0], 0.0, STEP, now=0.0)
    timeline.offer(rng.normal(size=(8, 2)), [0, 0], 0.3, STEP, now=0.35)
    for t in np.linspace(0.36, 1.0, 60):
        h = 1e-6
        slope = (timeline.sample(t + h).position - timeline.sample(t - h).position) / (2 * h)
        assert timeline.sample(t).velocity == pytest.approx(slope, abs=1e-3)


def test_rows_whose_time_has_passed_are_skipped():
    timeline = Timeline(1, blend=0.0)
    assert timeline.offer(ramp(8), [0.0], stamp=0.0, step=STEP, now=0.35) == 3
    assert timeline.sample(0.4).position == pytest.approx([0.4])


def test_newer_chunk_takes_over_without_a_jump():
    timeline = Timeline(1, blend=0.2)
    timeline.offer(ramp(16), [0.0], 0.0, STEP, now=0.05)
    before = timeline.sample(0.9).position
    timeline.offer(ramp(16, start=5.0), [5.0], 0.8, STEP, now=0.9)
    assert timeline.sample(0.9).position == pytest.approx(before)
    # After the blend only the new chunk counts.
    assert timeline.sample(1.2).position == pytest.approx([5.4])
    steps = np.diff([timeline.sample(t).position[0] for t in np.arange(0.9, 1.2, 0.001)])
    assert np.abs(steps).max() < 0.05


def test_a_held_channel_takes_the_row_it_approaches_at_once():
    timeline = Timeline(2, blend=0.2, held=[False, True])
    rows = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    timeline.offer(rows, [0.0, 0.0], 0.0, STEP, now=0.0)
    assert timeline.sample(0.09).position[1] == 0.0
    assert timeline.sample(0.11).position[1] == 1.0
    assert timeline.sample(0.15).velocity[1] == 0.0


@pytest.mark.parametrize(
    ("change", "reason", "late"),
    [
        ({"rows": np.full((4, 1), np.nan)}, r"nan in row 0", False),
        ({"rows": np.array([[0.0], [np.inf]])}, r"inf in row 1, channel 0", False),
        ({"rows": np.zeros((4, 2))}, r"shape \(4, 2\), expected \(rows, 1\)", False),
        ({"rows": np.zeros((0, 1))}, r"shape \(0, 1\)", False),
        ({"origin": [np.nan]}, "origin is not finite", False),
        ({"stamp": np.nan}, "must be finite", False),
        ({"step": 0.0}, "the step positive", False),
        ({"stamp": 21.0}, "1.000 s in the future", False),
        ({"stamp": 18.0}, "captured 2.000 s ago, allowed 1.000 s", True),
        ({"stamp": 19.3}, "last row was due 0.300 s ago", True),
        ({"stamp": 19.4}, "last row was due", True),
    ],
)
def test_bad_chunk_is_refused_with_a_reason_and_changes_nothing(change, reason, late):
    timeline = Timeline(1, blend=0.1, max_age=1.0)
    timeline.offer(ramp(4), [0.0], 17.0, STEP, now=17.0)
    before = [timeline.sample(t).position for t in (17.0, 17.2, 20.0)]
    good = {"rows": ramp(4), "origin": [0.0], "stamp": 19.95, "step": STEP, "now": 20.0}
    with pytest.raises(ChunkRefused, match=reason) as refusal:
        timeline.offer(**{**good, **change})
    assert refusal.value.late is late
    assert [timeline.sample(t).position for t in (17.0, 17.2, 20.0)] == before


def test_the_same_chunk_twice_and_an_older_one_are_refused():
    timeline = Timeline(1, blend=0.1)
    timeline.offer(ramp(8), [0.0], 1.0, STEP, now=1.1)
    for stamp in (1.0, 0.9):
        with pytest.raises(ChunkRefused, match="before the chunk being followed, or the same one"):
            timeline.offer(ramp(8), [0.0], stamp, STEP, now=1.2)


def test_clear_rests():
    timeline = Timeline(2, blend=0.1)
    timeline.offer(np.ones((4, 2)), [0, 0], 1.0, STEP, now=1.0)
    timeline.clear([0.3, 0.4])
    assert timeline.sample(1.1).position == pytest.approx([0.3, 0.4])
    assert timeline.remaining(1.1) == -np.inf
    with pytest.raises(ValueError, match="2 finite values"):
        timeline.clear([np.nan, 0.0])
