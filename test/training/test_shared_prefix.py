# SPDX-License-Identifier: Apache-2.0
"""Prompts that share a prefix are encoded as if each stood alone."""

import numpy as np
import pytest
import torch

from qwen_vla_ros.embodiment import load_embodiment, render_prompt
from qwen_vla_ros.model.presets import build_tiny
from qwen_vla_ros.training import shared_prefix


@pytest.fixture(scope="module")
def case():
    model, processor = build_tiny(0)
    rng = np.random.default_rng(0)
    embodiment = load_embodiment("aloha_viperx")
    tasks = [
        "reach the red cube with the left arm",
        "reach the green cube with the right arm",
        "reach the blue one",
        "reach the blue cube with the left arm",
        "reach the yellow cube with the right arm",
        "reach the red cube with the left arm",
    ]
    rendered = [render_prompt(embodiment, task) for task in tasks]
    prompts = processor.prompts([(p.text, p.views) for p in rendered])
    pictures = processor.images(
        [("ego", rng.integers(0, 255, (128, 128, 3), dtype=np.uint8)) for _ in range(2)]
    )
    return model, prompts, pictures


def trunk_of(model, prompts):
    image = model.config.backbone.image_token_id
    return shared_prefix.common_trunk(prompts["input_ids"], prompts["attention_mask"], image)


def test_same_states_as_each_prompt_alone(case):
    model, prompts, pictures = case
    features = model.embed_images(**pictures)
    index = torch.tensor([0, 0, 0, 1, 1, 1])
    alone = model.encode(
        prompts["input_ids"],
        prompts["attention_mask"],
        pictures["image_grid_thw"],
        image_features=features,
        image_index=index,
        position_ids=prompts["position_ids"],
    )
    trunk = trunk_of(model, prompts)
    assert trunk.length > 25
    shared = shared_prefix.encode(model, prompts, features.view(2, 16, -1), 3, trunk)
    torch.testing.assert_close(shared.hidden[shared.mask], alone.hidden[alone.mask], rtol=1e-4, atol=1e-4)
    # The final norm makes a sum of squares constant: weigh the states.
    weight = torch.randn(alone.hidden[alone.mask].shape, generator=torch.Generator().manual_seed(0))
    (alone.hidden[alone.mask] * weight).sum().backward(retain_graph=True)
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    (shared.hidden[shared.mask] * weight).sum().backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = float((found[name] - value).abs().max() / value.abs().max().clamp(min=1e-3))
        assert error < 1e-3, f"{name}: {error}"
    model.zero_grad()


def test_refuses_rows_that_do_not_divide(case):
    model, prompts, _ = case
    with pytest.raises(ValueError, match="6 rows, expected 4"):
        shared_prefix.encode(model, prompts, torch.zeros(2, 16, 128), 4, trunk_of(model, prompts))


def test_prefix_leaves_each_prompt_a_token(case):
    model, prompts, _ = case
    ids, mask = prompts["input_ids"], prompts["attention_mask"]
    image = model.config.backbone.image_token_id
    assert shared_prefix.common_trunk(ids[[0, 0]], mask[[0, 0]], image).length == int(mask[0].sum()) - 1
    other = ids[:2].clone()
    other[1, 0] += 1
    with pytest.raises(ValueError, match="differ before the end of the images"):
        shared_prefix.common_trunk(other, mask[:2], image)
