# SPDX-License-Identifier: Apache-2.0
"""Flow matching: the path, the distribution of tau, the two-level masked loss and the Euler sampler."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qwen_vla_ros.model.configuration import FlowConfig

# Share of the batches that have clean prefixes in training; the others keep what is done without a plan.
_PREFIXED = 0.3


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


def sample_prefix(
    count: int, horizon: int, config: FlowConfig, generator: torch.Generator | None = None
) -> Tensor | None:
    """Draw how many leading rows training gives clean in a batch: in most none, else 1 to `prefix_rows`.

    All samples of a batch or none: a tau for each row makes a step slower by a sixth (tiny preset, CPU).

    Returns:
        On the generator's device (CPU without one). Shape (count,).

    Raises:
        ValueError: A prefix would leave no row of the horizon to learn.
    """
    if config.prefix_rows >= horizon:
        raise ValueError(
            f"flow.prefix_rows: found {config.prefix_rows}, expected less than the {horizon} rows"
        )
    device = generator.device if generator is not None else torch.device("cpu")
    if torch.rand((), generator=generator, device=device) >= _PREFIXED:
        return None
    return torch.randint(1, config.prefix_rows + 1, (count,), generator=generator, device=device)


@dataclass
class FlowDraw:
    """What chance decides in a flow-matching loss.

    Attributes:
        noise: Y_1. Shape (B, H, K).
        tau: Shape (B,).
        prefix: Leading rows per sample that are given clean and not learned (training-time action
            conditioning, arXiv 2512.05964), None for none. Shape (B,).
        signs: By which the rows of the prefix are multiplied, 1 or -1, None for 1. Shape (B, K).
    """

    noise: Tensor
    tau: Tensor
    prefix: Tensor | None = None
    signs: Tensor | None = None


def draw_flow(
    count: int,
    shape: Sequence[int],
    config: FlowConfig,
    generator: torch.Generator | None = None,
    grippers: Sequence[int] = (),
) -> FlowDraw:
    """Draw for `count` chunks of `shape` (H, K), on the generator's device (CPU without one).

    Half of the prefixes say the opposite of the channels `grippers`. Demonstrations do not close fingers and
    change their mind; a model that believed its own plan would continue a wrong one for ever.
    """
    device = generator.device if generator is not None else torch.device("cpu")
    noise = torch.randn(count, *shape, generator=generator, device=device)
    tau = sample_tau(count, config, generator)
    prefix = sample_prefix(count, shape[0], config, generator) if config.prefix_rows else None
    if prefix is None:
        return FlowDraw(noise, tau)
    signs = torch.ones(count, shape[1], device=device)
    for channel in grippers:
        signs[:, channel] -= 2.0 * torch.randint(2, (count,), generator=generator, device=device)
    return FlowDraw(noise, tau, prefix, signs)


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


@dataclass(frozen=True)
class Prefix:
    """Rows that a new chunk has to continue, for `euler`.

    Attributes:
        actions: Y_0 of what is planned, normalised; not read where `weight` is 0. Shape (B, H, K).
        weight: How far a value is bound to the plan: 1 it is committed, 0 it is free. Shape (B, H, K).
        committed: Rows that will have been executed when the chunk arrives.
        clean: The model was trained with clean prefixes (`FlowConfig.prefix_rows`): committed rows are given
            to it at tau = 0. Else values are bound by guidance, which any flow model allows.
        guidance: Largest weight of guidance (beta).
    """

    actions: Tensor
    weight: Tensor
    committed: int
    clean: bool = False
    guidance: float = 5.0


def prefix_weights(committed: int, known: int, horizon: int) -> Tensor:
    """The soft mask of real-time chunking (Black, Galliker and Levine 2025, equation 5). Shape (horizon,).

    1 for committed rows, then falling to 0 at the end of the `known` ones, which may still change.
    """
    row = torch.arange(horizon, dtype=torch.float32)
    left = ((known - row) / (known - committed + 1)).clamp(0.0, 1.0)
    soft = left * torch.expm1(left) / math.expm1(1.0)
    return torch.where(row < committed, 1.0, torch.where(row < known, soft, 0.0))


def euler(
    velocity: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    mask: Tensor,
    steps: int,
    config: FlowConfig,
    prefix: Prefix | None = None,
) -> Tensor:
    """Integrate dY/dtau = v from tau = 1 to 0 in equal steps.

    Args:
        velocity: (Y_tau (B, H, K), tau (B,)) -> (B, H, K).
        noise: Y_1. Shape (B, H, K).
        mask: True where an action is. Shape (B, H, K).
        steps: Number of steps, at least 1.
        prefix: What the chunk has to continue. With a clean one `velocity` takes tau of shape (B, H) too.

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
        if prefix is None:
            flow = velocity(apply_padding(sample, mask, config), tau)
        elif prefix.clean:
            held = torch.arange(sample.shape[1], device=sample.device) < prefix.committed
            # As in training: the padding of a clean row is clean, too.
            sample = torch.where(held[:, None], torch.where(mask, prefix.actions, 0.0), sample)
            flow = velocity(apply_padding(sample, mask, config), torch.where(held, 0.0, tau[:, None]))
            flow = torch.where(held[:, None], 0.0, flow)
        else:
            flow = _guided(velocity, sample, tau, mask, config, prefix)
        sample = sample - delta * flow
    return sample * mask.to(sample.dtype)


def _guided(
    velocity: Callable[[Tensor, Tensor], Tensor],
    sample: Tensor,
    tau: Tensor,
    mask: Tensor,
    config: FlowConfig,
    prefix: Prefix,
) -> Tensor:
    """Velocity that also leads the predicted Y_0 to the plan (arXiv 2506.07339, equations 2 to 4).

    The paper's time runs from noise, 0, to actions, 1: its tau is 1 - tau, its velocity -velocity.
    """
    with torch.enable_grad():
        leaf = sample.detach().requires_grad_()
        flow = velocity(apply_padding(leaf, mask, config), tau)
        clean = leaf - tau[:, None, None] * flow
        weight = prefix.weight * mask.to(sample.dtype)
        error = weight * torch.where(weight > 0, prefix.actions - clean.detach(), 0.0)
        (pull,) = torch.autograd.grad(clean, leaf, grad_outputs=error)
    noise, signal = tau, 1.0 - tau
    spread = noise**2 / (signal**2 + noise**2)
    strength = (noise / (signal * spread).clamp(min=1e-12)).clamp(max=prefix.guidance)
    return flow.detach() - strength[:, None, None] * pull
