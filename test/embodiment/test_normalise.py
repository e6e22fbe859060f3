# SPDX-License-Identifier: Apache-2.0
"""Normalisation both ways, statistics, and masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qwen_vla_ros.embodiment import (
    ChannelLayout,
    EmbodimentError,
    Statistics,
    denormalise,
    list_embodiments,
    load_embodiment,
    normalise,
    resolve_statistics,
)


@st.composite
def statistics(draw, count=None):
    count = draw(st.integers(1, 64)) if count is None else count
    finite = st.floats(-1e3, 1e3)
    low = draw(arrays.arrays(np.float64, count, elements=finite))
    width = draw(arrays.arrays(np.float64, count, elements=st.floats(1e-3, 1e3)))
    return Statistics(low, low + width)


@st.composite
def statistics_and_actions(draw, elements):
    stats = draw(statistics())
    shape = (*draw(arrays.array_shapes(min_dims=0, max_dims=2, max_side=8)), stats.count)
    return stats, draw(arrays.arrays(np.float64, shape, elements=elements))


@settings(deadline=None)
@given(statistics_and_actions(st.floats(0.0, 1.0)))
def test_round_trip_inside_the_range(drawn):
    stats, fractions = drawn
    actions = stats.q01 + fractions * (stats.q99 - stats.q01)
    scaled = normalise(actions, stats)
    assert scaled.shape == actions.shape
    assert (np.abs(scaled) <= 1.0).all()
    np.testing.assert_allclose(denormalise(scaled, stats), actions, rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(statistics_and_actions(st.floats(-1.0, 1.0)))
def test_round_trip_of_normalised_actions(drawn):
    stats, scaled = drawn
    np.testing.assert_allclose(normalise(denormalise(scaled, stats), stats), scaled, atol=1e-8)


@settings(deadline=None)
@given(statistics_and_actions(st.floats(-1e9, 1e9)))
def test_both_ways_are_clipped(drawn):
    stats, anything = drawn
    scaled = normalise(anything, stats)
    assert (np.abs(scaled) <= 1.0).all()
    assert (scaled[anything > stats.q99 + 1e-6] == 1.0).all()
    assert (scaled[anything < stats.q01 - 1e-6] == -1.0).all()
    actions = denormalise(anything, stats)
    slack = 1e-9 * (1.0 + np.abs(stats.q01) + np.abs(stats.q99))
    assert (actions >= stats.q01 - slack).all()
    assert (actions <= stats.q99 + slack).all()


def test_ends_and_middle():
    stats = Statistics([0.0, -2.0], [4.0, 2.0])
    np.testing.assert_array_equal(
        normalise([[0.0, -2.0], [2.0, 0.0], [4.0, 2.0]], stats), [[-1, -1], [0, 0], [1, 1]]
    )
    np.testing.assert_array_equal(denormalise([[-1.0, 0.5]], stats), [[0.0, 1.0]])


def test_nan_stays_nan():
    stats = Statistics([0.0], [1.0])
    assert np.isnan(denormalise([np.nan], stats)).all()
    assert np.isnan(normalise([np.nan], stats)).all()


@pytest.mark.parametrize(
    ("q01", "q99", "reason"),
    [
        ([0.0, 1.0], [1.0, 1.0], "channel 1"),
        ([2.0], [1.0], "channel 0"),
        ([0.0], [1.0, 2.0], "shapes"),
        ([], [], "shapes"),
        ([[0.0]], [[1.0]], "shapes"),
        ([np.nan], [1.0], "finite"),
        ([0.0], [np.inf], "finite"),
        ([-1e308], [1e308], "overflows"),
    ],
)
def test_statistics_are_refused(q01, q99, reason):
    with pytest.raises(ValueError, match=reason):
        Statistics(q01, q99)


def test_wrong_number_of_channels_is_refused():
    stats = Statistics([0.0, 0.0], [1.0, 1.0])
    for convert in (normalise, denormalise):
        with pytest.raises(ValueError, match=r"\(\.\.\., 2\)"):
            convert(np.zeros((4, 3)), stats)
        with pytest.raises(ValueError, match=r"\(\.\.\., 2\)"):
            convert(0.0, stats)


@settings(deadline=None)
@given(st.integers(1, 64), st.integers(1, 64), st.integers(0, 8), st.integers(0, 8))
def test_mask(count, horizon, more_rows, more_channels):
    layout = ChannelLayout(tuple(f"a/{k}" for k in range(count)), ("a",), (count,), horizon)
    H, K = horizon + more_rows, count + more_channels
    mask = layout.mask(H=H, K=K)
    assert mask.shape == (H, K)
    assert mask.dtype == bool
    for h in range(H):
        for k in range(K):
            assert mask[h, k] == (h < horizon and k < count)


@pytest.mark.parametrize("name", list_embodiments())
def test_slices_cover_the_channels_once(name):
    layout = load_embodiment(name).layout
    covered = [k for group in layout.groups for k in range(layout.count)[layout.slice_of(group)]]
    assert covered == list(range(layout.count))
    for group in layout.groups:
        assert all(channel.startswith(f"{group}/") for channel in layout.names[layout.slice_of(group)])


def test_statistics_come_from_the_checkpoint_by_name():
    body = load_embodiment("franka_panda")
    given_values = {"q01": list(range(8)), "q99": list(range(1, 9)), "channels": list(body.layout.names)}
    stats = resolve_statistics(body, {"franka_panda": given_values, "other": {}})
    np.testing.assert_array_equal(stats.q01, np.arange(8))
    assert resolve_statistics(body, {"franka_panda": stats}).q99.tolist() == stats.q99.tolist()


def test_a_group_may_have_its_own_statistics():
    body = load_embodiment("widowx")
    stats = resolve_statistics(body, {"widowx": Statistics([-9.0] * 7, [9.0] * 7)})
    assert stats.q01.tolist() == [-9.0] * 6 + [0.0]
    assert stats.q99.tolist() == [9.0] * 6 + [1.0]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (None, "other"),
        ({"q01": [0.0] * 8}, "no q99"),
        ({"q01": [0.0] * 7, "q99": [1.0] * 7}, "7 channels"),
        ({"q01": [0.0] * 8, "q99": [0.0] * 8}, "expected q01 < q99"),
        ({"q01": "low", "q99": "high"}, "q01"),
        ([1, 2], r"\[1, 2\]"),
        ({"q01": [0.0] * 8, "q99": [1.0] * 8, "channels": [f"arm/{k}" for k in range(8)]}, "in this order"),
    ],
)
def test_statistics_of_a_checkpoint_are_refused(entry, reason):
    known = {"other": {}} if entry is None else {"franka_panda": entry}
    with pytest.raises(EmbodimentError, match=reason):
        resolve_statistics(load_embodiment("franka_panda"), known)
