# SPDX-License-Identifier: Apache-2.0
"""Several processes that take the steps of one training run together, as torchrun starts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from qwen_vla_ros.training.errors import TrainingError


class Processes:
    """This process and those that run beside it; alone where nothing started more.

    Each takes some of the bodies of a step, and gradients are added up, so that a step is the same whatever
    the number of processes.

    Attributes:
        device: Where this process trains.
        count, index: How many there are, and which this is.
        main: Whether this is the one that writes.
    """

    def __init__(self, device: torch.device) -> None:
        from accelerate import PartialState

        self._state = PartialState(cpu=device.type == "cpu")
        self.count: int = self._state.num_processes
        self.index: int = self._state.process_index
        # Of accelerate's, a processor has a number, which torch.load does not know.
        own = self.count == 1 or device.type == "cpu"
        self.device = device if own else self._state.device
        self.main: bool = self._state.is_main_process

    def share(self, sizes: Mapping[str, int]) -> list[str]:
        """Names of the parts that fall to this process, by what each costs.

        Raises TrainingError when there are more processes than parts.
        """
        if self.count > len(sizes):
            raise TrainingError(
                f"batch.images: found {len(sizes)} bodies for {self.count} processes; expected at most one "
                f"process for each body"
            )
        return shares(sizes, self.count)[self.index]

    def add_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Put into each parameter the sum of its gradients of all processes; None where none has one."""
        if self.count == 1:
            return
        has = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = self.add(torch.cat([has, *(part.flatten() for part in parts)]))
        summed = flat[len(has) :].split([p.numel() for p in parameters])
        for parameter, known, gradient in zip(parameters, flat[: len(has)].tolist(), summed, strict=True):
            parameter.grad = gradient.view_as(parameter) if known else None

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes."""
        if self.count == 1:
            return tensor
        from accelerate.utils import reduce

        total: torch.Tensor = reduce(tensor, "sum")
        return total

    def gather(self, found: dict[str, Any]) -> dict[str, Any]:
        """What all processes found, by name."""
        if self.count == 1:
            return found
        from accelerate.utils import gather_object

        return {name: value for each in gather_object([found]) for name, value in each.items()}


def shares(sizes: Mapping[str, int], count: int) -> list[list[str]]:
    """Names dealt out to `count` processes: the largest first, each to whom has least so far."""
    dealt: list[list[str]] = [[] for _ in range(count)]
    loads = [0] * count
    for name in sorted(sizes, key=lambda each: -sizes[each]):
        least = loads.index(min(loads))
        dealt[least].append(name)
        loads[least] += sizes[name]
    return dealt
