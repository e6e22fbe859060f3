# SPDX-License-Identifier: Apache-2.0
"""Path, loss, tau and sampler."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from qwen_vla_ros.model.configuration import FlowConfig
from qwen_vla_ros.model.flow_matching import apply_padding, euler, interpolate, masked_mse, sample_tau


def rectangle(batch: int, rows: int, columns: int, H: int = 6, K: int = 5) -> torch.Tensor:
    mask = torch.zeros(batch, H, K, dtype=torch.bool)
    mask[:, :rows, :columns] = True
    return mask


def test_path_ends_in_actions_and_noise() -> None:
    clean, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    path = interpolate(clean, noise, torch.tensor([0.0, 1.0]))
    assert torch.equal(path[0], clean[0])
    assert torch.equal(path[1], noise[1])
    middle = interpolate(clean, noise, torch.tensor([0.25, 0.25]))
    torch.testing.assert_close(middle, 0.75 * clean + 0.25 * noise)


def test_loss_is_the_mean_over_steps_then_over_active_channels() -> None:
    # Channel 0 is valid for 2 steps with errors 1 and 3, channel 1 for one step with error 2.
    mask = torch.zeros(1, 4, 3, dtype=torch.bool)
    mask[0, :2, 0] = mask[0, 0, 1] = True
    prediction = torch.zeros(1, 4, 3)
    prediction[0, 0, 0], prediction[0, 1, 0], prediction[0, 0, 1] = 1.0, 3.0, 2.0
    loss = masked_mse(prediction, torch.zeros_like(prediction), mask)
    assert loss.item() == pytest.approx(((1 + 9) / 2 + 4) / 2)


@pytest.mark.parametrize("filling", [1e6, math.inf, math.nan])
def test_padding_changes_neither_loss_nor_gradient(filling: float) -> None:
    mask = rectangle(2, 4, 3)
    prediction = torch.randn(2, 6, 5)
    target = torch.randn(2, 6, 5)
    results = []
    for value in (0.0, filling):
        filled = torch.where(mask, prediction, value).requires_grad_()
        loss = masked_mse(filled, torch.where(mask, target, -value), mask).sum()
        loss.backward()
        results.append((loss.detach(), filled.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(results[0][1] != 0, mask)


def test_every_active_channel_weighs_the_same_whatever_the_body() -> None:
    error = torch.ones(2, 6, 5)
    mask = torch.stack([rectangle(1, 6, 5)[0], rectangle(1, 2, 1)[0]])
    assert masked_mse(error, torch.zeros_like(error), mask).tolist() == [1.0, 1.0]


def test_sample_without_actions_has_no_loss() -> None:
    mask = rectangle(1, 0, 0)
    assert masked_mse(torch.ones(1, 6, 5), torch.zeros(1, 6, 5), mask).item() == 0.0


@pytest.mark.parametrize(
    ("config", "distribution"),
    [
        (FlowConfig(tau_distribution="beta", tau_beta=(1.0, 1.5)), stats.beta(1.0, 1.5)),
        (FlowConfig(tau_distribution="beta", tau_beta=(2.0, 5.0)), stats.beta(2.0, 5.0)),
        (FlowConfig(tau_distribution="sigmoid_normal", tau_normal=(0.5, 1.2)), None),
    ],
)
def test_tau_follows_its_distribution(config: FlowConfig, distribution) -> None:
    tau = sample_tau(4000, config, torch.Generator().manual_seed(0)).double().numpy()
    assert ((tau > 0) & (tau < 1)).all()
    if distribution is None:
        tau, distribution = torch.from_numpy(tau).logit().numpy(), stats.norm(0.5, 1.2)
    assert stats.kstest(tau, distribution.cdf).pvalue > 1e-3


def test_default_tau_favours_the_clean_end() -> None:
    tau = sample_tau(4000, FlowConfig(), torch.Generator().manual_seed(0))
    assert tau.mean() < 0.45


def test_tau_is_repeatable() -> None:
    first, second = (sample_tau(8, FlowConfig(), torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("steps", [1, 2, 4, 10])
def test_euler_recovers_actions_from_the_straight_path(steps: int) -> None:
    """On the path to a fixed Y_0 the velocity is (Y_tau - Y_0) / tau, which is constant: Euler is exact."""
    mask = rectangle(3, 4, 3)
    clean = torch.where(mask, torch.randn(3, 6, 5), 0.0)
    noise = torch.randn(3, 6, 5)
    sample = euler(lambda y, tau: (y - clean) / tau[:, None, None], noise, mask, steps, FlowConfig())
    torch.testing.assert_close(sample, clean, atol=1e-5, rtol=0)


def test_euler_converges_to_the_solution_of_a_curved_field() -> None:
    """dY/dtau = Y from tau = 1 to 0 ends in Y_1 / e; the error of Euler halves with the step."""
    mask = rectangle(1, 6, 5)
    noise = torch.ones(1, 6, 5)
    errors = [
        (euler(lambda y, tau: y, noise, mask, steps, FlowConfig()) - math.exp(-1)).abs().max().item()
        for steps in (16, 32, 64)
    ]
    assert errors[0] < 0.02
    assert 1.8 < errors[0] / errors[1] < 2.2
    assert 1.8 < errors[1] / errors[2] < 2.2


@pytest.mark.parametrize("padding", ["full", "zero"])
def test_model_sees_at_inference_the_padding_of_training(padding: str) -> None:
    config = FlowConfig(padding_noise=padding)
    mask = rectangle(2, 4, 3)
    noise = torch.randn(2, 6, 5)
    seen = []

    def velocity(y: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
        seen.append((y, tau))
        return torch.full_like(y, 100.0)

    euler(velocity, noise, mask, 4, config)
    for y, tau in seen:
        training = apply_padding(interpolate(torch.zeros_like(noise), noise, tau), mask, config)
        torch.testing.assert_close(y[~mask], training[~mask])


def test_output_is_zero_outside_the_mask() -> None:
    mask = rectangle(2, 4, 3)
    sample = euler(lambda y, tau: y, torch.randn(2, 6, 5), mask, 3, FlowConfig())
    assert (sample[~mask] == 0).all()
    assert (sample[mask] != 0).all()


def test_no_steps_is_an_error() -> None:
    with pytest.raises(ValueError, match="steps: expected at least 1, found 0"):
        euler(lambda y, tau: y, torch.randn(1, 6, 5), rectangle(1, 1, 1), 0, FlowConfig())
