# SPDX-License-Identifier: Apache-2.0
"""A tiny model whose every weight matters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from qwen_vla_ros.model.modeling import QwenVLAForActionPrediction
from qwen_vla_ros.model.presets import build_tiny
from qwen_vla_ros.model.processor import QwenVLAProcessor

torch.set_num_threads(1)

Tiny = tuple[QwenVLAForActionPrediction, QwenVLAProcessor]


def tag(view: str) -> str:
    return f"<|{view}_start|><|vision_start|><|image_pad|><|vision_end|><|{view}_end|>"


@pytest.fixture(scope="session")
def tiny_session() -> Tiny:
    model, processor = build_tiny(seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            # AdaLN-zero would hide every fault behind a velocity of zero.
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval(), processor


@pytest.fixture
def tiny(tiny_session: Tiny) -> Tiny:
    model, processor = tiny_session
    model.implementation = "fast"
    return model, processor


@pytest.fixture
def picture() -> Callable[[int], np.ndarray]:
    return lambda seed: np.random.default_rng(seed).integers(0, 256, (128, 128, 3), dtype=np.uint8)
