# SPDX-License-Identifier: Apache-2.0
"""Gradients by CUDA graphs: the kernels of a small model end before Python has launched the next ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Calls before the capture, in which libraries choose algorithms and take memory of their own.
_WARM_UP = 3


class CapturedGradients:
    """A function of tensors, and the gradients of its loss, captured once and replayed from then on.

    The gradients are added to those that the parameters have: their `grad` must be zeroed in place, not
    dropped.

    Args:
        function: Arguments to named scalars, of which `loss` is differentiated. It must not wait for the
            device.
        parameters: That it may depend on.
        arguments: An example, with the shapes of all later ones: tensors, or dictionaries and dataclasses
            of them.
    """

    def __init__(
        self,
        function: Callable[..., Mapping[str, Tensor]],
        parameters: Sequence[nn.Parameter],
        *arguments: Any,
    ) -> None:
        self._arguments = _copied(arguments)
        before = [None if p.grad is None else p.grad.clone() for p in parameters]

        def run() -> dict[str, Tensor]:
            found = function(*self._arguments)
            found["loss"].backward()
            return {name: value.detach() for name, value in found.items()}

        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                run()
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._found = run()
        for parameter, gradient in zip(parameters, before, strict=True):
            if gradient is not None:
                assert parameter.grad is not None
                parameter.grad.copy_(gradient)
            elif parameter.grad is not None:
                parameter.grad.zero_()

    def __call__(self, *arguments: Any) -> Mapping[str, Tensor]:
        """Add the gradients. The scalars are overwritten by the next call."""
        for here, given in zip(_tensors(self._arguments), _tensors(arguments), strict=True):
            here.copy_(given)
        self._graph.replay()
        return self._found


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        # Of an expanded tensor every element gets memory of its own.
        return value.clone(memory_format=torch.contiguous_format)
    if isinstance(value, dict):
        return {name: _copied(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return tuple(_copied(each) for each in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{f.name: _copied(getattr(value, f.name)) for f in dataclasses.fields(value)})
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for name in sorted(value):
            yield from _tensors(value[name])
    elif isinstance(value, tuple):
        for each in value:
            yield from _tensors(each)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))
