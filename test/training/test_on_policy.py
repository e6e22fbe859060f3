# SPDX-License-Identifier: Apache-2.0
"""Demonstrations in the states that a policy comes through."""

from pathlib import Path

import numpy as np
import pytest

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.sim import SimulationError, make_world
from qwen_vla_ros.training import demonstrations, on_policy
from qwen_vla_ros.training.errors import TrainingError

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "qwen_vla_tiny"
SCENE_STATES = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The shipped policy in scenes of one shard, some states of each."""
    return _make(tmp_path_factory.mktemp("on_policy") / "franka_panda")


def _make(folder, policy=SHIPPED):
    demonstrations.make(
        load_embodiment("franka_panda"), folder, 12, seed=9, states_per_scene=SCENE_STATES, policy=policy
    )
    return folder


def test_states_are_those_on_the_policys_way(folder):
    """The hand comes nearer to the goal in focus from state to state of a scene."""
    meta, arrays = demonstrations.read_all(folder)
    assert meta.policy.startswith("qwen_vla_tiny ")
    hand = meta.classes.index("hand")
    rows = np.arange(meta.samples)
    target = arrays["targets"][rows, arrays["focus"], 0]
    places = arrays["places"]
    aside = np.linalg.norm(
        places[rows, target] - places[rows, (arrays["classes"] == hand).argmax(axis=1)], axis=1
    )
    pairs = [(i, i + 1) for i in rows[:-1] if arrays["scenes"][i] == arrays["scenes"][i + 1]]
    assert len(pairs) >= 4
    nearer = [aside[after] < aside[before] - 0.05 for before, after in pairs if aside[before] > 0.25]
    assert len(nearer) >= 3
    assert all(nearer)
    assert np.isfinite(arrays["actions"][arrays["tasks"] >= 0]).all()


def test_things_that_fly_end_a_scene(monkeypatch):
    ticks = iter([None] * 20)
    tick = on_policy.ClosedLoop.tick

    def unstable(loop):
        if next(ticks, "none left") is not None:
            raise SimulationError("unstable")
        tick(loop)

    monkeypatch.setattr(on_policy.ClosedLoop, "tick", unstable)
    body = load_embodiment("franka_panda")
    visit = on_policy.make_visitor(SHIPPED, body)
    with make_world(body) as world:
        assert len(list(visit(world, "reach", 5, np.random.default_rng(5), 100))) in (1, 2)


def test_the_same_states_again(folder, tmp_path):
    again = demonstrations.read_all(_make(tmp_path / "again"))[1]
    first = demonstrations.read_all(folder)[1]
    assert (again["scenes"] == first["scenes"]).all()
    np.testing.assert_allclose(again["state"], first["state"], atol=1e-6)


def test_a_folder_keeps_to_one_policy(folder):
    with pytest.raises(TrainingError, match=r"policy is 'qwen_vla_tiny \w+', expected ''"):
        demonstrations.make(
            load_embodiment("franka_panda"), folder, 12, seed=9, states_per_scene=SCENE_STATES
        )


def test_a_policy_that_is_missing(tmp_path):
    with pytest.raises(TrainingError, match=r"nowhere/model.safetensors: cannot be read"):
        _make(tmp_path / "data", tmp_path / "nowhere")
    assert not (tmp_path / "data").exists()


def test_a_policy_that_was_not_trained_for_the_body(tmp_path):
    with pytest.raises(TrainingError, match="so101"):
        demonstrations.make(load_embodiment("so101"), tmp_path / "data", 4, policy=SHIPPED)
    assert not (tmp_path / "data").exists()
