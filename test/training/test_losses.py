# SPDX-License-Identifier: Apache-2.0
"""Losses beside flow matching."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.training import demonstrations
from qwen_vla_ros.training.batches import load_bodies
from qwen_vla_ros.training.configuration import AugmentationConfiguration, NormalisationConfiguration
from qwen_vla_ros.training.losses import TrainingHeads, action_loss, motion, nearness, offset_loss

HORIZON, CHANNELS, OWN = 8, 12, 8


def chunks(*spans):
    """Chunks whose channels move by so much, the last of them a gripper that closes, and their mask."""
    actions, mask = torch.zeros(len(spans), HORIZON, CHANNELS), torch.zeros(len(spans), HORIZON, CHANNELS)
    for k, span in enumerate(spans):
        actions[k, :, : OWN - 1] = torch.linspace(0.0, span, HORIZON)[:, None]
        actions[k, :, OWN - 1] = torch.linspace(-1.0, 1.0, HORIZON)
    mask[:, :, :OWN] = 1.0
    return actions, mask.bool()


def test_what_moves_little_counts_more():
    moved = motion(chunks(0.0, 0.1, 0.9)[0][..., :OWN])
    weights = nearness(moved, 0.1)
    assert weights.mean() == pytest.approx(1.0)
    assert (weights[0] / weights[1]).item() == pytest.approx(2.0, rel=1e-5)
    assert (weights[0] / weights[2]).item() == pytest.approx(10.0, rel=1e-5)
    assert nearness(moved, 0.0).tolist() == [1.0, 1.0, 1.0]


def test_action_loss_by_weights():
    heads = TrainingHeads(16, 3, HORIZON, CHANNELS, 7, 1)
    actions, mask = chunks(0.0, 0.9)
    last = torch.randn(2, 16)
    alike, mean, same = action_loss(heads, last, actions, mask, torch.ones(2))
    parts = [
        action_loss(heads, last[k : k + 1], actions[k : k + 1], mask[:1], torch.ones(1))[0] for k in (0, 1)
    ]
    assert mean == same
    assert alike.item() == pytest.approx((parts[0] + parts[1]).item() / 2, rel=1e-5)
    weighted, _, _ = action_loss(heads, last, actions, mask, torch.tensor([2.0, 0.0]))
    assert weighted.item() == pytest.approx(parts[0].item(), rel=1e-5)


def test_offset_from_the_hands():
    heads = TrainingHeads(16, 3, HORIZON, CHANNELS, 7, 2)
    for parameter in heads.offset.parameters():
        torch.nn.init.zeros_(parameter)
    last, nothing = torch.randn(1, 16), [float("nan")] * 3

    # Of each of the two objects that are named, from each of two hands.
    def loss(*offsets):
        grounding = SimpleNamespace(named_offset=torch.tensor([offsets]).view(1, 2, -1, 3))
        return tuple(value.item() for value in offset_loss(heads, last, grounding))

    assert loss([0.0, 0.0, 0.0], nothing, nothing, nothing) == (0.0, 0.0)
    assert loss(nothing, nothing, nothing, nothing) == (0.0, 0.0)
    assert loss() == (0.0, 0.0)
    near, missed = loss([0.0, 0.02, 0.0], nothing, nothing, nothing)
    assert missed == pytest.approx(0.02)
    assert loss(nothing, nothing, nothing, [0.0, 0.02, 0.0]) == (near, missed)
    far, missed = loss([0.0, 0.5, 0.0], nothing, nothing, nothing)
    assert missed == 0.0  # not looked at
    # 25 times as far away, and not even 6 times the loss.
    assert near < far < 6 * near


def test_offsets_are_those_of_the_demonstrations(data, micro):
    _, processor = micro()
    names = ("franka_panda", "tiago_base")
    bodies = load_bodies(data, names, processor, (16, 32), NormalisationConfiguration())
    rows, goals = np.arange(6), np.zeros(6, dtype=int)
    found = {
        name: body.batch(rows, goals, 1, np.random.default_rng(0), AugmentationConfiguration()).grounding
        for name, body in bodies.items()
    }
    meta, arrays = demonstrations.read_all(data / "franka_panda")
    hand = arrays["places"][rows][arrays["classes"][rows] == meta.classes.index("hand")]
    named = arrays["places"][rows, arrays["targets"][rows, goals, 0]]
    assert np.linalg.norm(named - hand, axis=1).min() > 0.01
    offsets = found["franka_panda"].named_offset
    np.testing.assert_allclose(offsets[:, 0, 0], named - hand, atol=1e-6)
    assert offsets[:, 1].isnan().all()  # one object is named
    assert bodies["franka_panda"].hands == 1
    assert found["tiago_base"].named_offset.shape == (6, 2, 0, 3)


def test_a_thing_and_its_pad_are_both_asked_for(micro, tmp_path):
    folder = tmp_path / "franka_panda"
    body = load_embodiment("franka_panda")
    demonstrations.make(body, folder, 4, seed=3, shard_size=4, setting="full", tasks=["place"])
    _, processor = micro()
    bodies = load_bodies(tmp_path, ("franka_panda",), processor, (16, 32), NormalisationConfiguration())
    rows, goals = np.arange(4), np.zeros(4, dtype=int)
    configuration = AugmentationConfiguration()
    drawn = bodies["franka_panda"].batch(rows, goals, 1, np.random.default_rng(0), configuration)
    meta, arrays = demonstrations.read_all(folder)
    hand = arrays["places"][rows, (arrays["classes"] == meta.classes.index("hand")).argmax(axis=1)]
    for second in (0, 1):
        named = arrays["targets"][rows, goals, second]
        kinds = {meta.classes[number].split()[1] for number in arrays["classes"][rows, named]}
        assert (kinds == {"pad"}) == bool(second)
        places = arrays["places"][rows, named]
        np.testing.assert_allclose(drawn.grounding.named_place[:, second], places, atol=1e-6)
        np.testing.assert_allclose(drawn.grounding.named_offset[:, second, 0], places - hand, atol=1e-6)
