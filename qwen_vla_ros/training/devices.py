# SPDX-License-Identifier: Apache-2.0
"""Where training runs, and in what precision."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from qwen_vla_ros.training.errors import TrainingError


def choose_device(name: str) -> torch.device:
    """`auto` (CUDA where there is some), `cpu` or `cuda`. Raises TrainingError for one that is not there."""
    if name not in ("auto", "cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise TrainingError(f"device: found {name!r}, expected auto, cpu, or cuda where there is some")
    return torch.device("cpu" if name == "cpu" or not torch.cuda.is_available() else "cuda")


def cpu_has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:  # another system than Linux
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def has_compiler() -> bool:
    """Whether torch.compile finds a C++ compiler for kernels of a CPU."""
    return shutil.which(os.environ.get("CXX") or "g++") is not None
