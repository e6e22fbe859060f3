# SPDX-License-Identifier: Apache-2.0
"""Muon: momentum whose matrices are brought to orthogonal ones before they are applied.

After Jordan et al., 2024, with the scale of Liu et al., 2025 (arXiv 2502.16982), which lets it share learning
rate and weight decay with AdamW. torch.optim.Muon always works in bfloat16: where a CPU lacks that, a step of
the tiny preset takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from qwen_vla_ros.training.processes import Processes

# Of the quintic that drives singular values to about 1.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5
# Root mean square of an update of AdamW.
_SIZE = 0.2
# Smaller matrices are readouts and gates.
_LEAST = 64


def inner_matrices(model: nn.Module) -> list[nn.Parameter]:
    """What Muon is for: matrices from one hidden state to another."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and min(parameter.shape) >= _LEAST and "embed" not in name
    ]


def orthogonal(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Matrices (n, rows, columns) with their singular values brought near 1, worked out in `dtype`."""
    a, b, c = _COEFFICIENTS
    turned = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if turned else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(_STEPS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    x = x.to(matrices.dtype)
    return x.mT if turned else x


class Muon(torch.optim.Optimizer):
    """For matrices inside a network; embeddings, gains and readouts are for another optimiser.

    Args:
        parameters: Of two dimensions.
        lr: Learning rate, as AdamW's.
        weight_decay: Decoupled.
        momentum: Nesterov's.
        processes: Those that divide the work among themselves; all have the same gradients.
        dtype: Of the products.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        processes: Processes | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self._processes, self._dtype = processes, dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; matrices of one shape are worked on together."""
        assert closure is None
        for group in self.param_groups:
            shapes: dict[Any, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            stacks = [
                torch.stack([self._momentum(p, group["momentum"]) for p in parameters])
                for parameters in shapes.values()
            ]
            for parameters, updates in zip(shapes.values(), self._orthogonal(stacks), strict=True):
                size = group["lr"] * _SIZE * max(updates.shape[1:]) ** 0.5
                torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, list(updates.unbind()), alpha=-size)

    def _orthogonal(self, stacks: list[Tensor]) -> list[Tensor]:
        processes = self._processes
        if processes is None or processes.count == 1 or not stacks:
            return [orthogonal(stack, self._dtype) for stack in stacks]
        first = processes.index
        for stack in stacks:
            own = orthogonal(stack[first :: processes.count], self._dtype)
            stack.zero_()[first :: processes.count] = own
            # Whoever was first in one stack is not in the next, as most have an odd one out.
            first = (first - len(stack)) % processes.count
        flat = processes.add(torch.cat([stack.flatten() for stack in stacks]))
        parts = flat.split([stack.numel() for stack in stacks])
        return [part.view_as(stack) for part, stack in zip(parts, stacks, strict=True)]

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        mean: Tensor = state["momentum"].lerp_(parameter.grad, 1.0 - momentum)
        return parameter.grad.lerp(mean, momentum)  # type: ignore[union-attr]
