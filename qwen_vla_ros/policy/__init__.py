# SPDX-License-Identifier: Apache-2.0
"""Policies: an observation in, a normalised action chunk out."""

from __future__ import annotations

from pathlib import Path

from qwen_vla_ros.policy.interface import (
    Continuation,
    Observation,
    ObservationError,
    Policy,
    PolicyError,
    PolicyInfo,
)


def load_policy(
    checkpoint: str | Path | None = None,
    device: str = "auto",
    *,
    steps: int | None = None,
    temperature: float | None = None,
    threads: int | None = None,
) -> Policy:
    """Load a checkpoint folder to run in this process.

    Args:
        checkpoint: Folder; None or empty means the one that comes with the package.
        device: A torch device, or `auto`: CUDA where there is some, else CPU.
        steps: Euler steps; the checkpoint's own number without it.
        temperature: Scale of the initial noise; the checkpoint's own without it.
        threads: CPU threads of torch in this process; one less than there are CPUs without it, at least 1.

    Raises:
        CheckpointError: The folder is not a usable checkpoint; names the file and what to do.
        PolicyError: The device is unknown or absent, or an option is out of range.
    """
    from qwen_vla_ros.policy.local import LocalPolicy  # torch

    return LocalPolicy.load(checkpoint, device, steps=steps, temperature=temperature, threads=threads)


__all__ = [
    "Continuation",
    "Observation",
    "ObservationError",
    "Policy",
    "PolicyError",
    "PolicyInfo",
    "load_policy",
]
