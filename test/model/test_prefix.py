# SPDX-License-Identifier: Apache-2.0
"""Chunks that continue a plan: guidance of any flow model, and clean prefixes of those trained for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qwen_vla_ros.model.configuration import FlowConfig
from qwen_vla_ros.model.flow_matching import FlowDraw, Prefix, draw_flow, euler, prefix_weights, sample_prefix

H = 16
FLOW = FlowConfig()


def rows() -> torch.Tensor:
    """Covariance of a smooth random motion of one channel. Shape (H, H)."""
    t = torch.arange(H, dtype=torch.float64)
    return torch.exp(-((t[:, None] - t) ** 2) / 32) + 1e-4 * torch.eye(H, dtype=torch.float64)


def gaussian(sample: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
    """The exact velocity of a flow to that motion."""
    clean, noise = 1 - tau[0].double(), tau[0].double()
    gain = clean * rows() @ torch.linalg.inv(clean**2 * rows() + noise**2 * torch.eye(H))
    return (sample - (gain.float() @ sample)) / tau[0]


def test_the_soft_mask_falls_from_committed_to_free() -> None:
    weights = prefix_weights(committed=4, known=10, horizon=H)
    assert (weights[:4] == 1).all()
    assert (weights[10:] == 0).all()
    assert (weights[3:11].diff() < 0).all()
    # Row 4: c = 6 / 7, c (e^c - 1) / (e - 1).
    assert weights[4].item() == pytest.approx(6 / 7 * (2.718281828 ** (6 / 7) - 1) / 1.718281828, rel=1e-5)


def test_guidance_continues_a_plan_and_stays_with_what_the_flow_was_trained_on() -> None:
    torch.manual_seed(5)
    mask = torch.ones(1, H, 1, dtype=torch.bool)
    factor = torch.linalg.cholesky(rows()).float()
    free, guided, roughness = [], [], []
    for _ in range(20):
        plan, noise = (factor @ torch.randn(H, 1))[None], torch.randn(1, H, 1)
        prefix = Prefix(plan, prefix_weights(4, 10, H)[None, :, None], 4)
        one, other = euler(gaussian, noise, mask, 5, FLOW), euler(gaussian, noise, mask, 5, FLOW, prefix)
        free.append((one - plan)[0, :4].abs().mean())
        guided.append((other - plan)[0, :4].abs().mean())
        roughness.append(other.diff(n=2, dim=1).abs().max() / one.diff(n=2, dim=1).abs().max())
    assert torch.stack(guided).mean() < 0.15 * torch.stack(free).mean()
    assert torch.stack(roughness).mean() < 1.5, "rows after the prefix do not follow from it"


def test_without_weight_a_plan_changes_nothing() -> None:
    torch.manual_seed(1)
    mask, noise = torch.ones(1, H, 1, dtype=torch.bool), torch.randn(1, H, 1)
    prefix = Prefix(torch.full((1, H, 1), torch.nan), torch.zeros(1, H, 1), 0)
    free, guided = euler(gaussian, noise, mask, 4, FLOW), euler(gaussian, noise, mask, 4, FLOW, prefix)
    torch.testing.assert_close(guided, free)


@pytest.fixture
def context(tiny, picture):
    model, processor = tiny
    text = "<|ego_start|><|vision_start|><|image_pad|><|vision_end|><|ego_end|>reach"
    with torch.no_grad():
        return model.encode(**processor.prompts([(text, ["ego"])]), **processor.images([("ego", picture(0))]))


def test_one_tau_for_all_rows_is_the_same_as_that_tau_for_each(tiny, context) -> None:
    model, _ = tiny
    noisy = torch.randn(1, 16, 32)
    with torch.no_grad():
        one = model.velocity(context, noisy, torch.tensor([0.4]))
        each = model.velocity(context, noisy, torch.full((1, 16), 0.4))
    torch.testing.assert_close(each, one, atol=1e-5, rtol=1e-5)


def test_a_clean_prefix_is_kept_and_seen(tiny, context) -> None:
    model, _ = tiny
    mask = torch.zeros(1, 16, 32, dtype=torch.bool)
    mask[:, :, :8] = True
    noise = torch.randn(1, 16, 32)
    plan = 0.5 * torch.ones(1, 16, 32)
    chunks = [
        model.sample(
            context, mask, noise=noise, prefix=Prefix(value * plan, torch.zeros(1, 16, 32), 5, clean=True)
        )
        for value in (1.0, -1.0)
    ]
    for value, chunk in zip((1.0, -1.0), chunks, strict=True):
        assert torch.equal(chunk[:, :5, :8], value * plan[:, :5, :8])
        assert not chunk[..., 8:].any()
    assert (chunks[0] - chunks[1])[:, 5:, :8].abs().max() > 1e-4, "what is free does not see the prefix"


def test_the_loss_of_a_prefix_is_that_of_the_free_rows(tiny, context) -> None:
    model, _ = tiny
    mask = torch.zeros(1, 16, 32, dtype=torch.bool)
    mask[:, :, :8] = True
    actions, noise, tau = torch.rand(1, 16, 32) - 0.5, torch.randn(1, 16, 32), torch.tensor([0.7])
    with torch.no_grad():
        prefix = torch.tensor([5])
        whole = model.flow_loss(context, actions, mask, FlowDraw(noise, tau))
        free = model.flow_loss(context, actions, mask, FlowDraw(noise, tau, prefix))
        none = model.flow_loss(context, actions, mask, FlowDraw(noise, tau, torch.tensor([0])))
        other = noise.clone()
        other[:, :5] = 7.0  # noise of rows that are given clean
        same = model.flow_loss(context, actions, mask, FlowDraw(other, tau, prefix))
    torch.testing.assert_close(none.loss, whole.loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(same.loss, free.loss)
    error = (free.velocity - (noise - torch.where(mask, actions, 0.0)))[0, 5:, :8].square().mean()
    torch.testing.assert_close(free.loss, error, atol=1e-5, rtol=1e-5)


def test_a_prefix_is_told_by_its_signs(tiny, context) -> None:
    """The model reads the opposite in those channels, and still learns the rows that are free."""
    model, _ = tiny
    mask = torch.zeros(1, 16, 32, dtype=torch.bool)
    mask[:, :, :8] = True
    actions, noise, tau = torch.rand(1, 16, 32) - 0.5, torch.randn(1, 16, 32), torch.tensor([0.7])
    signs = torch.ones(1, 32)
    signs[:, 7] = -1.0
    opposite = actions.clone()
    opposite[:, :5, 7] *= -1.0
    drawn = FlowDraw(noise, tau, torch.tensor([5]))
    with torch.no_grad():
        true = model.flow_loss(context, actions, mask, drawn)
        told = model.flow_loss(context, actions, mask, replace(drawn, signs=signs))
        same = model.flow_loss(context, opposite, mask, drawn)
    torch.testing.assert_close(told.velocity, same.velocity)
    torch.testing.assert_close(told.loss, same.loss)
    assert (told.velocity - true.velocity)[:, 5:, :8].abs().max() > 1e-4


def test_half_of_the_prefixes_say_the_opposite_of_grippers(tiny, monkeypatch) -> None:
    model, _ = tiny
    monkeypatch.setattr(model.config.flow, "prefix_rows", 3)
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_flow(8, (16, 32), model.config.flow, generator, (6, 13)) for _ in range(300)]
    assert all((each.signs is None) == (each.prefix is None) for each in drawn)
    signs = torch.cat([each.signs for each in drawn if each.signs is not None])
    others = [channel for channel in range(32) if channel not in (6, 13)]
    assert torch.equal(signs[:, others], torch.ones(len(signs), len(others)))
    assert torch.equal(signs.abs(), torch.ones_like(signs))
    # Each gripper by itself.
    share = [
        float(((signs[:, 6] == a) & (signs[:, 13] == b)).float().mean()) for a in (-1, 1) for b in (-1, 1)
    ]
    assert min(share) > 0.2, share


def test_prefixes_are_drawn_where_the_model_is_trained_with_them(tiny, context, monkeypatch) -> None:
    model, _ = tiny
    mask = torch.ones(1, 16, 32, dtype=torch.bool)
    actions = torch.rand(1, 16, 32) - 0.5
    given = set()
    monkeypatch.setattr(model.config.flow, "prefix_rows", 3)
    generator = torch.Generator().manual_seed(0)
    drawn = [sample_prefix(8, 16, model.config.flow, generator) for _ in range(1000)]
    assert {row for rows in drawn if rows is not None for row in rows.tolist()} == {1, 2, 3}
    assert 0.25 < sum(rows is not None for rows in drawn) / len(drawn) < 0.35
    with torch.no_grad():
        for seed in range(30):
            drawn = draw_flow(1, (16, 32), model.config.flow, torch.Generator().manual_seed(seed))
            generator = torch.Generator().manual_seed(seed)
            loss = model.flow_loss(context, actions, mask, generator=generator).loss
            losses = torch.stack(
                [
                    model.flow_loss(context, actions, mask, replace(drawn, prefix=torch.tensor([rows]))).loss
                    for rows in range(4)
                ]
            )
            apart = (loss - losses).abs().sort()
            assert apart.values[0] < 1e-5 < 1e-4 < apart.values[1]
            given.add(int(apart.indices[0]))
    assert given == {0, 1, 2, 3}


def test_a_prefix_that_leaves_nothing_to_learn_is_refused(tiny, context, monkeypatch) -> None:
    model, _ = tiny
    mask = torch.ones(1, 16, 32, dtype=torch.bool)
    monkeypatch.setattr(model.config.flow, "prefix_rows", 16)
    with pytest.raises(ValueError, match=r"flow.prefix_rows: found 16, expected less than the 16 rows"):
        model.flow_loss(context, torch.zeros(1, 16, 32), mask)
