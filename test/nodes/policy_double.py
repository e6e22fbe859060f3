# SPDX-License-Identifier: Apache-2.0
"""The policy node around a model with a fault that no checkpoint can be made to have.

Argument: MODE: sound | nan | shape | range | raises | hangs. All but `sound` go wrong at the third chunk.
"""

from __future__ import annotations

import sys
import threading

import numpy as np

from qwen_vla_ros.embodiment import Statistics
from qwen_vla_ros.nodes.lifecycle import run
from qwen_vla_ros.nodes.policy_node import PolicyNode
from qwen_vla_ros.policy import PolicyInfo


class Double:
    info = PolicyInfo("double", "cpu", 16, 64, 0, (), ())

    def __init__(self, mode: str):
        self._mode, self._calls = mode, 0

    def configure(self, embodiment) -> None:
        self._body = embodiment
        home = np.array([embodiment.home[joint] for joint in embodiment.joints])
        self.statistics = Statistics(home - 0.1, home + 0.1)

    def infer(self, observation, seed=None):
        self._calls += 1
        chunk = np.zeros((self._body.horizon, self._body.layout.count), dtype=np.float32)
        if self._calls >= 3:
            if self._mode == "nan":
                chunk[3, 2] = np.nan
            elif self._mode == "shape":
                chunk = chunk[:-1]
            elif self._mode == "range":
                chunk[0, 0] = 7.0
            elif self._mode == "raises":
                raise ZeroDivisionError("a defect of the model")
            elif self._mode == "hangs":
                threading.Event().wait(12.0)
        return chunk


if __name__ == "__main__":
    mode = sys.argv[1]
    sys.exit(run(lambda: PolicyNode(load=lambda *_, **__: Double(mode))))
