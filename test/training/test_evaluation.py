# SPDX-License-Identifier: Apache-2.0
"""Evaluation: the expert as ceiling, a wrong object as floor, conventions told apart."""

from types import SimpleNamespace

import numpy as np
import pytest

from qwen_vla_ros.embodiment import load_embodiment, normalise, resolve_statistics
from qwen_vla_ros.sim import expert_chunk, make_world, sample_states
from qwen_vla_ros.training import conventions, evaluation
from qwen_vla_ros.training.conventions import convention_swap
from qwen_vla_ros.training.errors import TrainingError
from qwen_vla_ros.training.evaluation import Case, Control, Evaluator, other_goal, run_episode


def case(name, control=Control.EXPERT, **changes):
    body = load_embodiment(name)
    return Case(body, {"franka_panda": "reach", "tiago_base": "drive"}[name], control=control, **changes)


@pytest.mark.parametrize("name", ["franka_panda", "tiago_base"])
def test_expert_reaches(name):
    found = Evaluator().run(case(name), 2, seed=70)
    assert (found.successes, found.named) == (2, 2)
    assert [episode.scene for episode in found.episodes] == [70, 71]
    assert all(0 < episode.seconds < 25 for episode in found.episodes)
    assert 0 < found.rms_jerk < 1000
    assert all(len(frame) > 7 for frame in found.episodes[0].frames)


def test_seed_decides_every_episode():
    first, again = (Evaluator().run(case("franka_panda", Control.NONE), 1, seed=71) for _ in range(2))
    assert first == again


@pytest.mark.parametrize(
    ("name", "task"),
    [("franka_panda", "reach"), ("aloha_viperx", "reach_with_arm"), ("tiago_base", "drive")],
)
def test_the_shipped_checkpoint_reaches_what_is_named(name, task):
    """A change of limits or of timing may spoil it, as weights may."""
    found = Evaluator().run(Case(load_embodiment(name), task), 10, seed=31000)
    assert found.successes >= 9, found.summary()


def test_held_out_words():
    found = Evaluator().run(case("franka_panda", setting="full", wording="held-out"), 1, seed=70)
    words = found.episodes[0].instruction
    assert words.startswith(("go over to", "move above", "please approach"))


def test_latency():
    """Late chunks still reach; one that comes after its successor is refused before anything moves."""
    found = Evaluator().run(case("tiago_base"), 1, seed=70, latency=0.3)
    assert (found.successes, found.latency) == (1, 0.3)
    with pytest.raises(TrainingError, match="latency: expected 0 to less than 1 s, found 1 s"):
        Evaluator().run(case("tiago_base"), 1, seed=70, latency=1.0)


def test_another_object_is_no_success():
    """An expert that is told another object reaches that one, which does not count."""

    def driver(world, goal, seed):
        return expert_chunk(world, goal, world.embodiment.horizon, 1 / world.embodiment.control_rate)

    with make_world("franka_panda") as world:
        world.reset("reach", 5)
        other = other_goal(world, world.goal, 5)
        assert other.target != world.goal.target
        result = run_episode(world, driver, other, 5)
    assert result.instruction == other.instruction
    assert (result.success, result.named) == (False, True)


def test_the_place_between_two_pillars_is_no_other_one_from_behind():
    with make_world("tiago_base", "full") as world:
        pairs = []
        for scene in range(6):
            world.reset("go_between", scene)
            judged = world.goal
            if (other := other_goal(world, judged, scene)) is not None:
                pairs.append(({other.target, other.other_target}, {judged.target, judged.other_target}))
        assert 0 < len(pairs) < 6
        assert all(other != judged for other, judged in pairs)


def test_scenes_without_another_object_are_passed_over(monkeypatch):
    evaluator = Evaluator()
    monkeypatch.setattr(evaluator, "driver", lambda _: evaluation._expert)
    between = Case(load_embodiment("tiago_base"), "go_between", "full", control=Control.WRONG_OBJECT)
    entry = evaluator.run(between, 2, seed=0)
    assert [episode.scene for episode in entry.episodes] != [0, 1]
    assert entry.successes == 0
    waving = Case(load_embodiment("unitree_g1"), "wave", "full", control=Control.WRONG_OBJECT)
    with pytest.raises(TrainingError, match="wave: control wrong-object: scenes 0 to 20 have one object"):
        evaluator.run(waving, 2, seed=0)


# Conventions

PAIR = ("franka_panda_wrist", "franka_panda_20hz")


@pytest.fixture
def pair():
    return tuple(load_embodiment(name) for name in PAIR)


@pytest.fixture
def known(pair):
    """What stands for a loaded checkpoint: statistics of both."""
    entry = {"q01": [-2.5] * 7 + [0.0], "q99": [2.5] * 7 + [0.04]}
    return SimpleNamespace(statistics={body.name: entry for body in pair})


def one_state(monkeypatch):
    """States by scene, which fill as scenes are drawn, one state each."""
    states = {}

    def draw(world, goal, rng, count):
        scene = len(states) + 70
        found = sample_states(world, goal, rng, 1)
        states[scene] = found[0]
        return found

    monkeypatch.setattr(conventions, "sample_states", draw)
    monkeypatch.setattr(conventions, "_TELLING", 0.0)
    return states


def answering(states, convention):
    """A model that answers as the expert of `convention(sentence's embodiment)`, without a mask."""

    def emit(loaded, embodiment, images, instruction, seed, channels):
        body = convention(embodiment)
        chunk = np.full((16, 32), 9.0)
        with make_world(body) as world:
            world.reset("reach", seed)
            state = states[seed]
            world.teleport(state.joints, state.base_pose)
            rows = expert_chunk(world, world.goal, body.horizon, 1 / body.control_rate)
        statistics = resolve_statistics(body, loaded.statistics)
        chunk[: body.horizon, : body.layout.count] = normalise(rows, statistics)
        return chunk

    return emit


def test_a_model_that_heeds_the_sentence(pair, known, monkeypatch):
    monkeypatch.setattr(conventions, "emit", answering(one_state(monkeypatch), lambda embodiment: embodiment))
    found = convention_swap(known, pair, "reach", 2, seed=70)
    assert (found.right, found.trials, found.by_sentence) == (4, 4, dict.fromkeys(PAIR, 2))
    assert found.distance[0] < 1e-6 < found.distance[1]


def test_a_model_that_heeds_the_picture_alone(pair, known, monkeypatch):
    monkeypatch.setattr(conventions, "emit", answering(one_state(monkeypatch), lambda embodiment: pair[0]))
    found = convention_swap(known, pair, "reach", 2, seed=70)
    assert found.by_sentence == {PAIR[0]: 2, PAIR[1]: 0}
    assert found.rate == 0.5


def test_conventions_that_cannot_be_compared(pair, known):
    with pytest.raises(TrainingError, match="expected the same of each"):
        convention_swap(known, (pair[0], load_embodiment("tiago_base")), "reach", 1, seed=70)
    with pytest.raises(TrainingError, match="statistics of franka_panda_wrist"):
        convention_swap(replace_statistics(known), pair, "reach", 1, seed=70)


def replace_statistics(known):
    return SimpleNamespace(statistics={"other": next(iter(known.statistics.values()))})


def test_every_channel_is_open(micro, pair):
    """Two bodies with other masks get the same noise and the same open channels."""
    model, processor = micro()
    loaded = SimpleNamespace(model=model, processor=processor)
    images = {view: np.full((128, 128, 3), 90, dtype=np.uint8) for view in ("ego", "cam_wrist")}
    panda, base = pair[0], replace_camera(load_embodiment("tiago_base"), pair[0])
    first, second = (
        conventions.emit(loaded, body, images, "reach the red cube", seed=1) for body in (panda, base)
    )
    assert first.shape == second.shape == (16, 32)
    # Untrained, AdaLN-zero: the noise comes out, whatever the sentence, in all channels.
    np.testing.assert_allclose(first, second)
    assert (np.abs(first) > 0).all()
    assert conventions.emit(loaded, panda, images, "reach the red cube", seed=1, channels=5).shape == (16, 5)


def replace_camera(body, other):
    return body.model_copy(update={"cameras": other.cameras})
