# SPDX-License-Identifier: Apache-2.0
"""The policy node with a model that takes a constant time, and a clock on its way.

    python -m qwen_vla_ros.bench._timed_policy OUT [--ros-args ...]

Images are decoded and brought to the shipped checkpoint's size as for a model. Writes OUT at its end, JSON:
`arrivals`: capture time to callback of every image [s]; `chunks`: by capture time in microseconds, when the
callback of the observation's last image began and how long the model took [s].
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwen_vla_ros import resources
from qwen_vla_ros.model.prepare import Preparation
from qwen_vla_ros.nodes.lifecycle import run, seconds
from qwen_vla_ros.nodes.policy_node import PolicyNode
from qwen_vla_ros.policy import Observation
from qwen_vla_ros.policy.scripted import ScriptedPolicy

MODEL_TIME = 0.02  # [s]


def microseconds(stamp: float) -> int:
    """A capture time as a key."""
    return round(stamp * 1e6)


class _Constant(ScriptedPolicy):
    def __init__(self) -> None:
        super().__init__()
        self._preparation = Preparation.from_folder(resources.checkpoints_directory() / "qwen_vla_tiny")
        self.took = 0.0

    def infer(self, observation: Observation, seed: int | None = None, plan: Any = None) -> Any:
        self._preparation.frames(list(observation.images.items()))
        began = time.perf_counter()
        time.sleep(MODEL_TIME)
        self.took = time.perf_counter() - began
        return super().infer(observation, seed, plan)


class _Timed(PolicyNode):
    def __init__(self) -> None:
        super().__init__(load=lambda *_arguments, **_options: _Constant())
        self._called: dict[tuple[str, int], float] = {}
        self.arrivals: list[float] = []
        self.chunks: dict[int, tuple[float, float]] = {}

    def configure(self, embodiment: Any) -> None:
        super().configure(embodiment)
        keep = self._inbox.keep

        def timed(view: str, message: Any) -> None:
            now, stamp = time.time(), seconds(message.header.stamp)
            self._called[view, microseconds(stamp)] = now
            self.arrivals.append(now - stamp)
            keep(view, message)

        self._inbox.keep = timed

    def _infer(self, work: Any, views: Any) -> None:
        times = [
            self._called[view, microseconds(seconds(message.header.stamp))]
            for view, message in views.messages.items()
        ]
        super()._infer(work, views)
        self.chunks[microseconds(views.oldest)] = max(times), self._policy.took


def main() -> int:
    out = Path(sys.argv.pop(1))
    made: list[_Timed] = []

    def make() -> _Timed:
        made.append(_Timed())
        return made[0]

    code = run(make)
    for node in made:
        out.write_text(json.dumps({"arrivals": node.arrivals, "chunks": node.chunks}))
    return code


def read(path: Path) -> tuple[list[float], dict[int, tuple[float, float]]]:
    """What a process wrote."""
    found = json.loads(path.read_text())
    chunks: Iterator[tuple[str, list[float]]] = iter(found["chunks"].items())
    return found["arrivals"], {int(stamp): (called, took) for stamp, (called, took) in chunks}


if __name__ == "__main__":
    sys.exit(main())
