# SPDX-License-Identifier: Apache-2.0
"""Figures of recorded episodes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qwen_vla_ros.nodes.recording import Chunk, Episode, Series, figures, percentile


def _episode(**values):
    return Episode("franka_panda", "reach the red cube", seed=0, **values)


def test_rows_are_due_after_the_capture():
    chunk = Chunk(stamp=2.0, step=0.1, data=np.zeros((3, 8)))
    np.testing.assert_allclose(chunk.due, [2.1, 2.2, 2.3])


def test_figures_of_two_episodes():
    chunks = [Chunk(0.0, 0.1, np.zeros((16, 8)))] * 4
    summary = figures(
        [
            _episode(success=True, elapsed=2.0, chunks=chunks, frames_sent=30, frames_received=30),
            _episode(
                elapsed=6.0,
                chunks=chunks,
                inference_times=[0.02, 0.04],
                capture_to_command={1: 0.05},
                frames_sent=90,
                frames_received=88,
            ),
        ]
    )
    assert (summary.episodes, summary.successes) == (2, 1)
    assert summary.chunk_rate == pytest.approx(8 / 8.0)
    assert summary.inference_p50 == pytest.approx(0.03)
    assert summary.command_p99 == pytest.approx(0.05)
    assert (summary.frames_lost, summary.frames_sent) == (2, 120)


def test_nothing_measured_is_nan_and_not_zero():
    summary = figures([_episode()])
    assert math.isnan(summary.chunk_rate)
    assert math.isnan(summary.inference_p50)
    assert math.isnan(percentile([], 50))


def test_an_empty_series_has_empty_arrays():
    times, rows = Series().arrays()
    assert times.shape == (0,)
    assert rows.shape == (0, 0)
