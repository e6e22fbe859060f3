# SPDX-License-Identifier: Apache-2.0
"""A checkpoint with random weights for every shipped embodiment."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qwen_vla_ros.embodiment import list_embodiments, load_embodiment
from qwen_vla_ros.model.checkpoint import save_checkpoint
from qwen_vla_ros.model.presets import build_tiny

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory) -> Path:
    model, processor = build_tiny(seed=11)
    generator = torch.Generator().manual_seed(12)
    with torch.no_grad():
        for parameter in model.parameters():
            # AdaLN-zero would answer every observation with the noise.
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    statistics = {}
    for name in list_embodiments():
        body = load_embodiment(name)
        statistics[name] = {
            "channels": body.layout.names,
            "q01": [-1.0] * body.layout.count,
            "q99": [1.0] * body.layout.count,
            "control_rate": body.control_rate,
            "horizon": body.horizon,
        }
    folder = tmp_path_factory.mktemp("random_checkpoint")
    save_checkpoint(folder, model, processor, statistics)
    return folder
