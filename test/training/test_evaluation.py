# SPDX-License-Identifier: Apache-2.0
"""Evaluation: intervals, the expert as ceiling, a wrong object as floor."""

import pytest

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.sim import expert_chunk, make_world
from qwen_vla_ros.training.errors import TrainingError
from qwen_vla_ros.training.evaluation import Control, _other, evaluate, run_episode, wilson


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


@pytest.mark.parametrize("name", ["franka_panda", "tiago_base"])
def test_expert_reaches(name):
    result = evaluate(load_embodiment(name), None, 2, seed=70, control=Control.EXPERT)
    assert (result.successes, result.named) == (2, 2)
    assert [episode.scene for episode in result.episodes] == [70, 71]
    assert all(0 < episode.seconds < 25 for episode in result.episodes)


def test_latency():
    """Late chunks still reach; one that comes after its successor is refused before anything moves."""
    body = load_embodiment("tiago_base")
    result = evaluate(body, None, 1, seed=70, control=Control.EXPERT, latency=0.3)
    assert (result.successes, result.latency) == (1, 0.3)
    with pytest.raises(TrainingError, match="latency: expected 0 to less than 1 s, found 1 s"):
        evaluate(body, None, 1, seed=70, control=Control.EXPERT, latency=1.0)


def test_another_object_is_no_success():
    """An expert that is told another object reaches that one, which does not count."""

    def driver(world, goal, seed):
        return expert_chunk(world, goal, world.embodiment.horizon, 1 / world.embodiment.control_rate)

    with make_world("franka_panda") as world:
        world.reset("reach", 5)
        other = _other(world, world.goal, 5)
        assert other.target != world.goal.target
        result = run_episode(world, driver, other, 5)
    assert result.instruction == other.instruction
    assert (result.success, result.named) == (False, True)
