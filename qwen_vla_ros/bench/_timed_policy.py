# SPDX-License-Identifier: Apache-2.0
"""The policy node with a model that takes a constant time, and a clock on its way.

    python -m qwen_vla_ros.bench._timed_policy OUT [--ros-args ...]

Images are decoded and brought to the shipped checkpoint's size as for a model; the constant time holds what
it takes to make up a chunk. Writes OUT at its end, JSON:
`arrivals`: capture time to callback of every image [s]; `chunks`: `Passage` by capture time in microseconds.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class Passage:
    """Times of one chunk [s].

    Attributes:
        called: the callback of the observation's last image began.
        begun: the thread of the model took it up.
        ready: the model is asked, at its own priority.
        done: the model has answered.
        sent: the chunk is checked and published.
    """

    called: float
    begun: float
    ready: float
    done: float
    sent: float


class _Constant(ScriptedPolicy):
    def __init__(self) -> None:
        super().__init__()
        self._preparation = Preparation.from_folder(resources.checkpoints_directory() / "qwen_vla_tiny")
        self.ready = self.done = 0.0

    def resize(self, view: str, image: Any) -> Any:
        return self._preparation.resize(view, image)

    def infer(self, observation: Observation, seed: int | None = None, plan: Any = None) -> Any:
        self.ready = time.time()
        chunk = super().infer(observation, seed, plan)
        time.sleep(max(0.0, self.ready + MODEL_TIME - time.time()))
        self.done = time.time()
        return chunk


class _Timed(PolicyNode):
    def __init__(self) -> None:
        super().__init__(load=lambda *_arguments, **_options: _Constant())
        self._calls: dict[tuple[str, int], float] = {}
        self.arrivals: list[float] = []
        self.chunks: dict[int, Passage] = {}

    def _on_image(self, view: str, message: Any) -> None:
        now, stamp = time.time(), seconds(message.header.stamp)
        self._calls[view, microseconds(stamp)] = now
        self.arrivals.append(now - stamp)
        super()._on_image(view, message)

    def _infer(self, work: Any, views: Any) -> None:
        times = [
            self._calls[view, microseconds(seconds(message.header.stamp))]
            for view, message in views.messages.items()
        ]
        begun = time.time()
        super()._infer(work, views)
        self.chunks[microseconds(views.oldest)] = Passage(
            max(times), begun, self._policy.ready, self._policy.done, time.time()
        )


def main() -> int:
    out = Path(sys.argv.pop(1))
    made: list[_Timed] = []

    def make() -> _Timed:
        made.append(_Timed())
        return made[0]

    code = run(make)
    for node in made:
        out.write_text(
            json.dumps(
                {
                    "arrivals": node.arrivals,
                    "chunks": {stamp: asdict(passage) for stamp, passage in node.chunks.items()},
                }
            )
        )
    return code


def read(path: Path) -> tuple[list[float], dict[int, Passage]]:
    """What a process wrote."""
    found = json.loads(path.read_text())
    return found["arrivals"], {int(stamp): Passage(**times) for stamp, times in found["chunks"].items()}


if __name__ == "__main__":
    sys.exit(main())
