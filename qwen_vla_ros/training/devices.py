# SPDX-License-Identifier: Apache-2.0
"""Where training runs."""

from __future__ import annotations

import torch

from qwen_vla_ros.training.errors import TrainingError


def choose_device(name: str) -> torch.device:
    """`auto` (CUDA where there is some), `cpu` or `cuda`. Raises TrainingError for one that is not there."""
    if name not in ("auto", "cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise TrainingError(f"device: found {name!r}, expected auto, cpu, or cuda where there is some")
    return torch.device("cpu" if name == "cpu" or not torch.cuda.is_available() else "cuda")
