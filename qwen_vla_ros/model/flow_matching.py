# SPDX-License-Identifier: Apache-2.0
"""Flow matching: the path, the distribution of tau, the two-level masked loss and the Euler sampler."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qwen_vla_ros.model.configuration import FlowConfig


def interpolate(actions: Tensor, noise: Tensor, tau: Tensor) -> Tensor:
    """Y_tau = (1 - tau) Y_0 + tau Y_1.

    Args:
        actions: Y_0, clean. Shape (B, H, K).
        noise: Y_1. Shape (B, H, K).
        tau: 0 clean, 1 noise. Shape (B,).
    """
    tau = tau.to(actions.dtype)[:, None, None]
    return (1 - tau) * actions + tau * noise


def sample_tau(count: int, config: FlowConfig, generator: torch.Generator | None = None) -> Tensor:
    """Draw tau for training. Shape (count,), in (0, 1), on the generator's device (CPU without one)."""
    device = generator.device if generator is not None else torch.device("cpu")
    if config.tau_distribution == "sigmoid_normal":
        mean, deviation = config.tau_normal
        return torch.sigmoid(mean + deviation * torch.randn(count, generator=generator, device=device))
    a, b = config.tau_beta
    # torch.distributions takes no generator: Beta(a, b) = Ga / (Ga + Gb).
    ga, gb = (
        torch._standard_gamma(torch.full((count,), float(p), device=device), generator=generator)
        for p in (a, b)
    )
    return (ga / (ga + gb)).clamp(1e-6, 1 - 1e-6)


def apply_padding(sample: Tensor, mask: Tensor, config: FlowConfig) -> Tensor:
    """Set what the expert reads outside an embodiment's channels and rows.

    Args:
        sample: Y_tau, whose padding follows the path with Y_0 = 0. Shape (B, H, K).
        mask: True where an action is. Shape (B, H, K).
    """
    return sample if config.padding_noise == "full" else sample * mask.to(sample.dtype)


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Squared error, averaged per channel over its valid steps, then over the active channels.

    Args:
        prediction: Shape (B, H, K).
        target: Shape (B, H, K).
        mask: True where an action is. Shape (B, H, K).

    Returns:
        Loss per sample. Shape (B,); 0 for a sample without any action.
    """
    weight = mask.to(prediction.dtype)
    # Not error * weight: 0 * inf would be NaN.
    error = torch.where(mask, prediction - target, 0.0).square()
    per_channel = error.sum(dim=1) / weight.sum(dim=1).clamp(min=1)
    active = mask.any(dim=1).to(prediction.dtype)
    return per_channel.sum(dim=1) / active.sum(dim=1).clamp(min=1)


def euler(
    velocity: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    mask: Tensor,
    steps: int,
    config: FlowConfig,
) -> Tensor:
    """Integrate dY/dtau = v from tau = 1 to 0 in equal steps.

    Args:
        velocity: (Y_tau (B, H, K), tau (B,)) -> (B, H, K).
        noise: Y_1. Shape (B, H, K).
        mask: True where an action is. Shape (B, H, K).
        steps: Number of steps, at least 1.

    Returns:
        Y_0; zero outside the mask. Shape (B, H, K).
    """
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, found {steps}")
    sample, delta = noise, 1.0 / steps
    for step in range(steps):
        tau = noise.new_full((len(noise),), 1.0 - step * delta)
        # Nothing trains the velocity of the padding; it stays on the path that training shows.
        sample = torch.where(mask, sample, tau[:, None, None] * noise)
        sample = sample - delta * velocity(apply_padding(sample, mask, config), tau)
    return sample * mask.to(sample.dtype)
