# SPDX-License-Identifier: Apache-2.0
"""Start of the embodiment commands: time, and that no heavy module is loaded."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

from qwen_vla_ros.bench import BenchResult

REPETITIONS = 7
HEAVY = ("mujoco", "rclpy", "torch", "transformers")
_COMMAND = ["embodiment", "show", "franka_panda"]
# Runs the command in a Python of its own and reports the heavy modules on the last line.
_PROGRAM = f"""
import json, sys
from qwen_vla_ros.cli import app
try:
    app({_COMMAND!r})
finally:
    print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""


def start() -> tuple[float, list[str]]:
    """Wall time of one command [s], and the heavy modules that it loaded."""
    begin = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True, timeout=60
    )
    duration = time.perf_counter() - begin
    return duration, json.loads(result.stdout.splitlines()[-1])


def run() -> list[BenchResult]:
    """Median over `REPETITIONS` starts after one that fills the caches."""
    start()
    durations, modules = zip(*(start() for _ in range(REPETITIONS)), strict=True)
    loaded = sorted({name for names in modules for name in names})
    return [
        BenchResult(
            "qwen-vla embodiment show, start to end",
            statistics.median(durations),
            "s",
            target=1.0,
            detail={"worst": max(durations), "repetitions": REPETITIONS},
        ),
        BenchResult(
            "heavy modules loaded by it", len(loaded), "modules", target=0, detail={"modules": loaded}
        ),
    ]
