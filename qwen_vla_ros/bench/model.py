# SPDX-License-Identifier: Apache-2.0
"""Chunks per second of the tiny model on the CPU, from uint8 images to a normalised chunk.

python -m qwen_vla_ros.bench.model --threads 2
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from qwen_vla_ros import resources
from qwen_vla_ros.bench import BenchResult
from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.model.checkpoint import Checkpoint, load_checkpoint
from qwen_vla_ros.model.presets import build_tiny
from qwen_vla_ros.policy import Observation, Policy
from qwen_vla_ros.policy.export import export_onnx
from qwen_vla_ros.policy.local import LocalPolicy
from qwen_vla_ros.policy.onnx import OnnxPolicy

THREADS = 1  # on two cores the other one is the executor's
STEPS = 4
ROUNDS = 6
RUNS = 10  # chunks per round and implementation
SIDE = 128  # [px]
TARGET = 15.0  # chunk/s
TARGET_RATIO = 2.0  # stock / the best backend
BACKENDS = {"eager": "fast", "engine": "engine", "onnx": "onnx"}


def two_view_policy(threads: int = THREADS) -> tuple[LocalPolicy, Checkpoint]:
    """The shipped checkpoint, or fresh weights of the same size, serving a body with two views and H = 16."""
    folder = resources.checkpoints_directory() / "qwen_vla_tiny"
    fresh = Checkpoint(Path("fresh"), *build_tiny(), {})
    checkpoint = load_checkpoint(folder) if folder.is_dir() else fresh
    body = load_embodiment("so101")
    # Statistics do not change the time; the shipped weights need not know this body.
    entry = {
        "channels": list(body.layout.names),
        "q01": [-1.0] * body.layout.count,
        "q99": [1.0] * body.layout.count,
        "control_rate": body.control_rate,
        "horizon": body.horizon,
    }
    checkpoint = replace(checkpoint, statistics={**checkpoint.statistics, body.name: entry})
    if len(body.cameras) != 2 or body.horizon != 16:
        raise RuntimeError(
            f"so101: found {len(body.cameras)} views and horizon {body.horizon}, expected 2 and 16"
        )
    policy = LocalPolicy(checkpoint, steps=STEPS, threads=threads)
    policy.configure(body)
    return policy, checkpoint


def time_round(policy: Policy, views: list[str], seed: int) -> list[float]:
    """Seconds of each of `RUNS` chunks, every one from new images."""
    rng = np.random.default_rng(seed)
    durations = []
    for run in range(RUNS):
        images = {view: rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for view in views}
        observation = Observation(images, "pick up the red cube", 0.0)
        begin = time.perf_counter()
        policy.infer(observation, seed=run)
        durations.append(time.perf_counter() - begin)
    return durations


def run(threads: int = THREADS) -> list[BenchResult]:
    """Alternate between the backends and the stock forward pass, each with this number of threads.

    A ratio is the median over the rounds, each of the medians of its chunks.
    """
    policy, checkpoint = two_view_policy(threads)
    body = load_embodiment("so101")
    views = [camera.view for camera in body.cameras]
    engine = LocalPolicy(checkpoint, steps=STEPS, threads=threads, engine=True)
    engine.configure(body)
    with tempfile.TemporaryDirectory(prefix="qwen_vla_onnx_") as folder:
        export_onnx(checkpoint, folder, ["so101"], STEPS)
        onnx = OnnxPolicy(Path(folder), "cpu", threads=threads)
        onnx.configure(body)
    policies: dict[str, Policy] = {"fast": policy, "stock": policy, "engine": engine, "onnx": onnx}
    durations: dict[str, list[float]] = {name: [] for name in policies}
    rounds: dict[str, list[float]] = {name: [] for name in policies}
    for index in range(ROUNDS):
        for name, served in policies.items():
            checkpoint.model.implementation = "stock" if name == "stock" else "fast"
            served.infer(Observation({v: np.zeros((SIDE, SIDE, 3), np.uint8) for v in views}, "go", 0.0))
            found = time_round(served, views, index)
            durations[name] += found
            rounds[name].append(statistics.median(found))
    ratios = {
        name: statistics.median(a / b for a, b in zip(rounds["stock"], rounds[key], strict=True))
        for name, key in BACKENDS.items()
    }
    best = max(ratios, key=lambda name: ratios[name])
    median = {name: statistics.median(values) for name, values in durations.items()}
    detail = {
        "threads": threads,
        "views": len(views),
        "image": [SIDE, SIDE],
        "horizon": 16,
        "euler steps": STEPS,
        "checkpoint": str(checkpoint.folder.name),
        "parameters": policy.info.parameters,
    }
    return [
        BenchResult(
            "tiny model, images to chunk",
            1.0 / median["fast"],
            "chunk/s",
            target=TARGET,
            higher_is_better=True,
            detail={**detail, "median ms of each round": [round(1e3 * m, 2) for m in rounds["fast"]]},
        ),
        BenchResult(
            "tiny model, images to chunk, p99",
            1e3 * float(np.percentile(durations["fast"], 99)),
            "ms",
            target=1e3 / TARGET,
            detail={"median": 1e3 * median["fast"], "chunks": len(durations["fast"])},
        ),
        BenchResult(
            "time of the stock transformers forward / best backend",
            ratios[best],
            "x",
            target=TARGET_RATIO,
            higher_is_better=True,
            detail={
                "backend": best,
                "threads": threads,
                "stock median ms": 1e3 * median["stock"],
                "stock median ms of each round": [round(1e3 * m, 2) for m in rounds["stock"]],
                "load": os.getloadavg()[0],
            },
        ),
        *(
            BenchResult(
                f"time of the stock transformers forward / backend {name}",
                ratios[name],
                "x",
                higher_is_better=True,
                detail={
                    "median ms": 1e3 * median[key],
                    "p99 ms": 1e3 * float(np.percentile(durations[key], 99)),
                    "median ms of each round": [round(1e3 * m, 2) for m in rounds[key]],
                },
            )
            for name, key in BACKENDS.items()
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=THREADS)
    for result in run(parser.parse_args().threads):
        print(f"{result.name}: {result.value:.3g} {result.unit} {result.detail}")


if __name__ == "__main__":
    main()
