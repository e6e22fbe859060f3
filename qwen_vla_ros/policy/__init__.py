# SPDX-License-Identifier: Apache-2.0
"""Policies: an observation in, a normalised action chunk out."""

from __future__ import annotations

from pathlib import Path

from qwen_vla_ros.embodiment.checkpoint_facts import MANIFEST
from qwen_vla_ros.policy.interface import (
    Continuation,
    Observation,
    ObservationError,
    Policy,
    PolicyError,
    PolicyInfo,
)

BACKENDS = ("auto", "eager", "engine", "onnx", "scripted")


def load_policy(
    checkpoint: str | Path | None = None,
    device: str = "auto",
    *,
    steps: int | None = None,
    temperature: float | None = None,
    threads: int | None = None,
    backend: str = "auto",
) -> Policy:
    """Load a checkpoint folder to run in this process.

    Args:
        checkpoint: Folder; None or empty means the one that comes with the package. For onnx what
            `qwen-vla export` wrote.
        device: A torch device, or `auto`: CUDA where there is some, else CPU. For onnx also `tensorrt`.
        steps: Euler steps; the checkpoint's own number without it.
        temperature: Scale of the initial noise; the checkpoint's own without it.
        threads: CPU threads of the model in this process; one less than there are CPUs without it, at
            least 1.
        backend: `eager`: torch, operation by operation; `engine`: torch at fixed shapes, traced or as a CUDA
            graph; `onnx`: onnxruntime, without torch; `auto`: onnx for an exported folder, else eager;
            `scripted`: no model and no checkpoint, small motions to bring up a robot.

    Raises:
        CheckpointError: The folder is not a usable checkpoint; names the file and what to do.
        PolicyError: The device is unknown or absent, or an option is out of range.
    """
    if backend not in BACKENDS:
        raise PolicyError(f"backend: found {backend!r}, expected one of {', '.join(BACKENDS)}")
    if backend == "auto":
        exported = (Path(checkpoint) / MANIFEST).is_file() if checkpoint else False
        backend = "onnx" if exported else "eager"
    if backend == "scripted":
        from qwen_vla_ros.policy.scripted import ScriptedPolicy

        return ScriptedPolicy()
    if backend == "onnx":
        from qwen_vla_ros.policy.onnx import OnnxPolicy  # onnxruntime

        return OnnxPolicy.load(checkpoint, device, steps=steps, temperature=temperature, threads=threads)
    from qwen_vla_ros.policy.local import LocalPolicy  # torch

    return LocalPolicy.load(
        checkpoint,
        device,
        steps=steps,
        temperature=temperature,
        threads=threads,
        engine=backend == "engine",
    )


__all__ = [
    "MANIFEST",
    "Continuation",
    "Observation",
    "ObservationError",
    "Policy",
    "PolicyError",
    "PolicyInfo",
    "load_policy",
]
