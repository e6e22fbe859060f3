# SPDX-License-Identifier: Apache-2.0
"""Runs a model at one fixed shape: buffers made once, and on CUDA one graph from images to chunk."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen_vla_ros.model.fixed import FixedModel, Shape
from qwen_vla_ros.model.modeling import QwenVLAForActionPrediction

LOG = logging.getLogger(__name__)
WARM_UP_RUNS = 3
# A traced copy of a model on the CPU pays where operations are many and small.
TRACED_PARAMETERS = 100_000_000


class Engine:
    """Images to chunk for one body and one set of views.

    Every buffer is made here. On CUDA the operations are captured once and replayed: inputs go through
    pinned memory and asynchronous copies, and the only wait is the one for the result. On a CPU the
    operations are traced, so that no Python runs between them.

    Args:
        model: On its device.
        shape: See there.
    """

    def __init__(self, model: QwenVLAForActionPrediction, shape: Shape) -> None:
        self.model, self.shape, self.device = model, shape, model.device
        expert = model.config.action_expert
        visual = model.config.backbone.vision_config
        size = sum(rows * columns for rows, columns in shape.grids) * 3 * visual.patch_size**2
        cuda = self.device.type == "cuda"
        self._staged = {
            "images": torch.zeros(size, dtype=torch.uint8, pin_memory=cuda),
            "ids": torch.zeros(shape.length, dtype=torch.int64, pin_memory=cuda),
            "count": torch.full((), shape.length, dtype=torch.int64, pin_memory=cuda),
        }
        self._inputs = {name: tensor.to(self.device) for name, tensor in self._staged.items()}
        self._noise = torch.zeros(expert.horizon, expert.channels, device=self.device)
        self._mask = torch.ones_like(self._noise)
        self._result = torch.zeros(expert.horizon, expert.channels, pin_memory=cuda)
        self.fixed = FixedModel(model, shape).eval()
        self.how = ""
        self._replay = self._prepare()

    def set_mask(self, mask: Tensor) -> None:
        """Choose the body: True where it has an action. Shape (H, K)."""
        self._mask.copy_(mask)

    def _arguments(self, count: int | None = None) -> tuple[Tensor, ...]:
        inputs = self._inputs
        ids = inputs["ids"][:count] if self.shape.ragged else inputs["ids"]
        return inputs["images"], ids, self._noise, self._mask, inputs["count"]

    def _prepare(self) -> Callable[[int], Tensor]:
        with torch.no_grad():
            if self.device.type == "cuda":
                try:
                    return self._capture()
                except RuntimeError as error:
                    first = str(error).splitlines()[0]
                    LOG.warning("no CUDA graph, every operation is launched by itself: %s", first)
            elif sum(p.numel() for p in self.model.parameters()) <= TRACED_PARAMETERS:
                try:
                    return self._trace()
                except Exception as error:  # torch.jit raises whatever it meets
                    LOG.warning("cannot be traced, runs operation by operation: %s", error)
            self.how = "operation by operation"
            # What refers to itself is freed by the collector alone, which nodes keep from old objects.
            own = weakref.proxy(self)
            return lambda count: own.fixed(*own._arguments(count))

    def _capture(self) -> Callable[[int], Tensor]:
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                self.fixed(*self._arguments())
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Else it captures the current device, which need not be this one.
        with torch.cuda.device(self.device), torch.cuda.graph(graph, stream=stream):
            output = self.fixed(*self._arguments())
        self.how = "CUDA graph"

        def replay(_count: int) -> Tensor:
            graph.replay()
            return output

        return replay

    def _trace(self) -> Callable[[int], Tensor]:
        import warnings

        with warnings.catch_warnings():
            # Deprecations, and sizes that are constant on purpose.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(self.fixed, self._arguments(), check_trace=False)
            traced = torch.jit.freeze(traced.eval())
        for _ in range(WARM_UP_RUNS):
            traced(*self._arguments())
        self.how = "TorchScript"
        own = weakref.proxy(self)
        return lambda count: traced(*own._arguments(count))

    def holds(self, token_ids: Sequence[int], image_id: int) -> bool:
        """Whether a prompt has this shape."""
        slots = tuple(index for index, token in enumerate(token_ids) if token == image_id)
        shorter = self.shape.padded or self.shape.ragged
        length = len(token_ids)
        fits = length <= self.shape.length if shorter else length == self.shape.length
        return fits and slots == self.shape.slots

    def _bring(self) -> None:
        for name, tensor in self._staged.items():
            self._inputs[name].copy_(tensor, non_blocking=True)

    def copy(self) -> None:
        """What a run copies between host and device, alone."""
        self._bring()
        self._result.copy_(self._noise, non_blocking=True)

    def run(
        self,
        images: NDArray[np.uint8],
        token_ids: Sequence[int],
        generator: torch.Generator,
        temperature: float,
    ) -> NDArray[np.float32]:
        """One chunk.

        Args:
            images: RGB of all views at the size of the model, one after another. Shape (bytes,).
            token_ids: A prompt that the engine `holds`.
            generator: For the noise, on the model's device.
            temperature: Scale of the noise.

        Returns:
            Shape (H, K); a view of the engine's buffer, overwritten by the next run.
        """
        staged, count = self._staged, len(token_ids)
        staged["images"].numpy()[:] = images
        staged["ids"].numpy()[:count] = token_ids
        staged["ids"].numpy()[count:] = 0
        staged["count"].fill_(count)
        with torch.inference_mode(), torch.no_grad():
            self._bring()
            self._noise.normal_(generator=generator).mul_(temperature)
            self._result.copy_(self._replay(count), non_blocking=True)
            if self.device.type == "cuda":
                torch.cuda.current_stream(self.device).synchronize()
        return self._result.numpy()
