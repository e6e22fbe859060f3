# SPDX-License-Identifier: Apache-2.0
"""The policy node around a model with a fault that no checkpoint can be made to have.

Argument, and text on `policy/mode` from then on:
sound | wave | depth | slow | patient | nan | shape | range | raises | hangs.
`wave` swings all joints, `depth` insists on it, `slow` takes half a second for a chunk and says with it how
many images were made ready for it, in hundredths; a node that starts `patient` does not look for images by
itself. The last five go wrong at the third chunk of the mode.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
import time

import numpy as np
from std_msgs.msg import String

from qwen_vla_ros.embodiment import Statistics
from qwen_vla_ros.nodes import policy_node, qos
from qwen_vla_ros.nodes.lifecycle import run
from qwen_vla_ros.nodes.policy_node import PolicyNode
from qwen_vla_ros.policy import PolicyInfo


class Double:
    def __init__(self, mode: str):
        self.info = PolicyInfo("", "cpu", 16, 64, 0, (), ())
        self._hang = threading.Event()
        self._resized = 0
        self.switch(mode)

    def switch(self, mode: str) -> None:
        self._mode, self._calls = mode, 0
        self._hang.set()
        self.info = dataclasses.replace(self.info, checkpoint=mode)

    def configure(self, embodiment) -> None:
        self._body = embodiment
        home = np.array([embodiment.home[joint] for joint in embodiment.joints])
        self.statistics = Statistics(home - 0.2, home + 0.2)

    def resize(self, view, image):
        self._resized += 1
        return image

    def infer(self, observation, seed=None):
        self._calls += 1
        chunk = np.zeros((self._body.horizon, self._body.layout.count), dtype=np.float32)
        if self._mode == "wave":
            due = observation.stamp + np.arange(1, len(chunk) + 1) / self._body.control_rate
            chunk += np.sin(2 * due)[:, None]
        if self._mode == "depth" and not (observation.depth["ego"] == np.float32(0.75)).all():
            raise ValueError(f"depth: found {observation.depth}")
        if self._mode == "slow":
            chunk += self._resized / 100
            self._resized = 0
            time.sleep(0.5)
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
                self._hang.clear()
                self._hang.wait(30.0)
        return chunk


class Switched(PolicyNode):
    def __init__(self, mode: str):
        double = Double(mode)
        super().__init__(load=lambda *_, **__: double)
        self.create_subscription(
            String, "policy/mode", lambda message: double.switch(message.data), qos.LATCHED
        )


if __name__ == "__main__":
    mode = sys.argv[1]
    if mode == "patient":
        policy_node.LOOK_PERIOD = 3600.0
    sys.exit(run(lambda: Switched(mode)))
