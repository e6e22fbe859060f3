# SPDX-License-Identifier: Apache-2.0
"""Memory of the host stays where it is while chunks are made."""

from __future__ import annotations

import ctypes
import gc
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from qwen_vla_ros import resources
from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.policy import Observation, load_policy
from qwen_vla_ros.policy.export import export_onnx

CHUNKS = 200
# More than a policy keeps prompts of.
WARM_UP = 80
SIDE = 128  # of the model's image [px]
IMAGE = 3 * SIDE * SIDE  # [bytes]


def anonymous() -> int:
    """Memory of this process that no file stands for, without what it has freed [bytes]."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def growth(infer: Callable[[Observation, int], object]) -> tuple[float, float]:
    """Bytes by which each chunk makes the process and what Python and NumPy hold grow."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (240, 320, 3), dtype=np.uint8) for _ in range(4)]

    def run(first: int, count: int) -> None:
        for index in range(first, first + count):
            # New instructions too: a prompt that is kept for ever is a leak.
            infer(Observation({"ego": pictures[index % 4]}, f"reach cube {index}", 0.0), index)

    run(0, WARM_UP)
    before = anonymous()
    run(WARM_UP, CHUNKS)
    process = (anonymous() - before) / CHUNKS
    tracemalloc.start()
    try:
        run(WARM_UP + CHUNKS, WARM_UP)  # fills anew, traced, what is kept of prompts
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        run(2 * WARM_UP + CHUNKS, CHUNKS)
        gc.collect()
        return process, (tracemalloc.get_traced_memory()[0] - before) / CHUNKS
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def graphs(tmp_path_factory) -> Path:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("graphs")
    export_onnx(resources.checkpoints_directory() / "qwen_vla_tiny", folder, ["franka_panda"], steps=1)
    return folder


@pytest.mark.parametrize("backend", ["eager", "engine", "onnx"])
def test_chunks_leave_nothing_behind(backend: str, request) -> None:
    shipped = resources.checkpoints_directory() / "qwen_vla_tiny"
    folder = request.getfixturevalue("graphs") if backend == "onnx" else shipped
    policy = load_policy(folder, "cpu", steps=1, threads=1, backend=backend)
    policy.configure(load_embodiment("franka_panda"))
    process, python = growth(lambda observation, seed: policy.infer(observation, seed=seed))
    # A chunk's image would be 49 kB, its actions 2 kB.
    assert process < IMAGE / 3
    assert python < 200


@pytest.mark.parametrize("kept", ["array", "tensor"])
def test_an_image_that_is_kept_is_seen(kept: str) -> None:
    leak = []

    def infer(observation: Observation, _seed: int) -> None:
        image = observation.images["ego"][:SIDE, :SIDE]
        leak.append(image.copy() if kept == "array" else torch.from_numpy(image.copy()).float() / 255)

    process, python = growth(infer)
    assert process > 0.8 * IMAGE
    assert python > 0.8 * IMAGE if kept == "array" else python < IMAGE


@pytest.mark.parametrize("backend", ["eager", "engine", "onnx"])
def test_a_policy_that_nobody_holds_is_gone_at_once(backend: str, request) -> None:
    """Without the collector, which nodes keep from what is old: a model that is loaded anew would be there
    twice."""
    shipped = resources.checkpoints_directory() / "qwen_vla_tiny"
    folder = request.getfixturevalue("graphs") if backend == "onnx" else shipped
    policy = load_policy(folder, "cpu", backend=backend, steps=1, threads=1)
    body = load_embodiment("franka_panda")
    policy.configure(body)
    image = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    policy.infer(Observation({"ego": image}, "reach the red cube", 0.0), seed=0)
    held = weakref.ref(policy if backend == "onnx" else policy._model)
    gc.collect()
    gc.disable()
    try:
        del policy
        assert held() is None
    finally:
        gc.enable()
