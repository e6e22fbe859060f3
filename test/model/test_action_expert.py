# SPDX-License-Identifier: Apache-2.0
"""Rotary positions, conditioning and masks of the DiT."""

from __future__ import annotations

import pytest
import torch

from qwen_vla_ros.model.action_expert import ActionExpert, rotary_factors
from qwen_vla_ros.model.context import VLMContext
from qwen_vla_ros.model.presets import build_tiny


def context(mask: list[list[int]], seed: int = 0) -> VLMContext:
    tokens = torch.tensor(mask, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    positions = torch.arange(tokens.shape[1]).expand(3, *tokens.shape).clone()
    positions[1] += 3
    return VLMContext(torch.randn(*tokens.shape, 128, generator=generator), tokens, positions * tokens)


def test_rotary_factors_are_those_of_the_backbone(tiny) -> None:
    model, _ = tiny
    positions = torch.randint(0, 50, (3, 2, 11))
    cos, sin = model.backbone.model.language_model.rotary_emb(torch.zeros(1), positions)
    own_cos, own_sin = rotary_factors(positions, model.config.mrope_section, model.config.rope_theta)
    torch.testing.assert_close(own_cos[:, 0], cos)
    torch.testing.assert_close(own_sin[:, 0], sin)


@pytest.mark.parametrize(("rule", "expected"), [("after_max", [8, 5]), ("after_length", [5, 2])])
def test_chunk_follows_the_prompt(tiny, rule: str, expected: list[int]) -> None:
    model, _ = tiny
    expert, config = model.action_expert, model.config
    given = context([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    config.action_expert.action_position = rule
    try:
        prepared = expert.prepare(given)
    finally:
        config.action_expert.action_position = "after_max"
    starts = torch.tensor(expected)
    rows = starts[:, None] + torch.arange(config.action_expert.horizon)
    cos, _ = rotary_factors(rows.expand(3, -1, -1), config.mrope_section, config.rope_theta)
    torch.testing.assert_close(prepared.cos[:, :, 5:], cos)


@torch.no_grad()
def velocity(expert: ActionExpert, given: VLMContext, noisy: torch.Tensor, tau: float = 0.5) -> torch.Tensor:
    return expert(expert.prepare(given), noisy, torch.full((len(noisy),), tau))


def test_velocity_depends_on_context_noise_and_tau(tiny) -> None:
    expert = tiny[0].action_expert
    noisy = torch.randn(1, 16, 32)
    base = velocity(expert, context([[1] * 6]), noisy)
    assert (velocity(expert, context([[1] * 6], seed=1), noisy) - base).abs().max() > 1e-3
    assert (velocity(expert, context([[1] * 6]), noisy + 1) - base).abs().max() > 1e-3
    assert (velocity(expert, context([[1] * 6]), noisy, 0.9) - base).abs().max() > 1e-3


def test_padded_tokens_are_not_seen(tiny) -> None:
    expert = tiny[0].action_expert
    noisy = torch.randn(1, 16, 32)
    short, padded = context([[1] * 4]), context([[1] * 4 + [0] * 3])
    padded.hidden[:, :4] = short.hidden
    torch.testing.assert_close(
        velocity(expert, padded, noisy), velocity(expert, short, noisy), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("bidirectional", [True, False])
def test_first_row_sees_the_last_only_when_bidirectional(tiny, bidirectional: bool) -> None:
    model, _ = tiny
    noisy = torch.randn(1, 16, 32)
    changed = noisy.clone()
    changed[:, -1] += 1
    given = context([[1, 1, 1, 0]])
    model.config.action_expert.bidirectional = bidirectional
    try:
        first, second = (velocity(model.action_expert, given, y) for y in (noisy, changed))
    finally:
        model.config.action_expert.bidirectional = True
    assert torch.isfinite(first).all()
    assert torch.equal(first[:, 0], second[:, 0]) is not bidirectional


def test_adaln_zero_starts_with_a_velocity_of_zero_and_learns() -> None:
    model, _ = build_tiny()
    expert = model.action_expert
    noisy = torch.randn(1, 16, 32)
    out = expert(expert.prepare(context([[1] * 4])), noisy, torch.tensor([0.5]))
    assert torch.equal(out, torch.zeros_like(out))
    (out - 1).square().sum().backward()
    assert expert.action_out[-1].weight.grad.abs().max() > 0


def test_sections_that_do_not_fit_the_heads_are_an_error() -> None:
    config = build_tiny()[0].config
    config.action_expert.mrope_section = [10, 10, 10]
    with pytest.raises(ValueError, match="needs heads of 60 channels or more, head_dim is 32"):
        ActionExpert(config)


def test_queries_and_keys_are_normalised_only_when_asked() -> None:
    config = build_tiny()[0].config
    noisy, given = torch.randn(1, 16, 32), context([[1] * 4])
    changes = []
    for config.action_expert.qk_norm in (True, False):
        torch.manual_seed(0)
        expert = ActionExpert(config)
        before = velocity(expert, given, noisy)
        with torch.no_grad():
            for block in expert.blocks:
                # Three times the queries and keys: the norm takes it back.
                block.attention.qkv.weight[: 2 * 4 * 32] *= 3
        changes.append(float((velocity(expert, given, noisy) - before).abs().max()))
    assert changes[0] < 1e-4 < changes[1]
