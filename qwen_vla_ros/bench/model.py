# SPDX-License-Identifier: Apache-2.0
"""Chunks per second of the tiny model on one CPU thread, from uint8 images to a normalised chunk."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from qwen_vla_ros import resources
from qwen_vla_ros.bench import BenchResult
from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.model.checkpoint import Checkpoint, load_checkpoint
from qwen_vla_ros.model.presets import build_tiny
from qwen_vla_ros.policy import Observation
from qwen_vla_ros.policy.local import LocalPolicy

THREADS = 1  # on two cores the other one is the executor's
STEPS = 4
ROUNDS = 4
RUNS = 30  # chunks per round and implementation
SIDE = 128  # [px]
TARGET = 15.0  # chunk/s


def two_view_policy() -> tuple[LocalPolicy, Checkpoint]:
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
    policy = LocalPolicy(checkpoint, steps=STEPS, threads=THREADS)
    policy.configure(body)
    return policy, checkpoint


def time_round(policy: LocalPolicy, views: list[str], seed: int) -> list[float]:
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


def run() -> list[BenchResult]:
    """Alternate between the fast and the stock forward pass; medians over all chunks of each."""
    policy, checkpoint = two_view_policy()
    views = [camera.view for camera in load_embodiment("so101").cameras]
    durations: dict[str, list[float]] = {"fast": [], "stock": []}
    rounds: dict[str, list[float]] = {"fast": [], "stock": []}
    for index in range(ROUNDS):
        for name in ("fast", "stock"):
            checkpoint.model.implementation = name
            policy.configure(load_embodiment("so101"))  # warms up
            found = time_round(policy, views, index)
            durations[name] += found
            rounds[name].append(statistics.median(found))
    median = {name: statistics.median(values) for name, values in durations.items()}
    detail = {
        "threads": THREADS,
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
            "time of the stock transformers forward / ours",
            median["stock"] / median["fast"],
            "x",
            target=1.0,
            higher_is_better=True,
            detail={"stock median ms": 1e3 * median["stock"]},
        ),
    ]
