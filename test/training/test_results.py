# SPDX-License-Identifier: Apache-2.0
"""Results: intervals, smoothness, the file."""

import json

import numpy as np
import pytest

from qwen_vla_ros.training.errors import TrainingError
from qwen_vla_ros.training.results import (
    EpisodeResult,
    Evaluation,
    Swap,
    make_entry,
    read_evaluation,
    rms_jerk,
    wilson,
)


def entry(successes=3, **changes):
    episodes = [
        EpisodeResult(7 + k, "reach the red cube", k < successes, True, 0.01 * k, 1.0 + k, 100.0, "held")
        for k in range(4)
    ]
    facts = {
        "embodiment": "franka_panda",
        "task": "reach",
        "setting": "easy",
        "wording": "plain",
        "control": "none",
        "through": "lock-step",
        "seed": 7,
        "latency": 0.0,
    }
    return make_entry(episodes, **{**facts, **changes})


SWAP = Swap(
    ("a", "b"),
    "reach",
    "easy",
    0,
    4,
    3,
    {"a": 2, "b": 1},
    0.75,
    wilson(3, 4),
    distance=(0.1, 0.5),
    channels=7,
)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (50, 50, 0.9287, 1.0),
        (45, 50, 0.7864, 0.9565),
        (1, 2, 0.0945, 0.9055),
    ],
)
def test_wilson(successes, trials, low, high):
    assert wilson(successes, trials) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(("successes", "trials"), [(-1, 3), (4, 3), (0, 0)])
def test_wilson_refuses(successes, trials):
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, trials)


def test_figures_of_an_entry():
    found = entry()
    assert (found.successes, found.rate, found.seconds) == (3, 0.75, 2.0)
    assert found.interval == wilson(3, 4)
    assert entry(successes=0).seconds is None
    assert "3/4 = 75 %" in found.summary()


@pytest.mark.parametrize("uneven", [False, True])
def test_jerk_of_a_known_path(uneven):
    """x = t^3 has a jerk of 6, v = 2 t^2 one of 4, however the times are spread."""
    times = np.linspace(0.0, 2.0, 401)
    if uneven:
        times = np.sort(np.random.default_rng(0).uniform(0.0, 2.0, 4000))
    positions = [np.array([t**3, t**3]) for t in times]
    assert rms_jerk([(times, positions, 3)]) == pytest.approx(6.0, rel=0.05)
    velocities = [np.array([2 * t**2]) for t in times]
    assert rms_jerk([(times, velocities, 2)]) == pytest.approx(4.0, rel=0.05)
    assert rms_jerk([(times[:2], positions[:2], 3)]) == 0.0


def test_file_is_read_as_written(tmp_path):
    written = Evaluation("checkpoint", 12, "cpu", [entry(), entry(successes=0)], [SWAP])
    written.write(tmp_path / "sub" / "results.json")
    assert read_evaluation(tmp_path / "sub" / "results.json") == written


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        (json.dumps({"successes": 3}), "expected 'qwen_vla_ros evaluation' version 2"),
        (json.dumps({"format": "qwen_vla_ros evaluation", "version": 2, "entries": [{}]}), "not results"),
    ],
)
def test_file_that_holds_no_results(tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(TrainingError, match=message):
        read_evaluation(path)


def test_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="cannot be written"):
        Evaluation("checkpoint").write(tmp_path / "file" / "results.json")
