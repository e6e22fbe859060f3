# SPDX-License-Identifier: Apache-2.0
"""No task: a few things to look at, and nothing that counts as done."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from qwen_vla_ros.sim.bodies import EASY
from qwen_vla_ros.sim.tasks import Goal, Outcome, Randomisation, Task

if TYPE_CHECKING:
    from qwen_vla_ros.sim.world import World


class Free(Task):
    """What a robot without tasks of its own does; any instruction will do.

    Args:
        spread: Where things lie.
    """

    name = "free"
    time_limit = 20.0
    tolerance = 0.0
    settings = (EASY,)

    def __init__(self, spread: Randomisation) -> None:
        self.randomisation = spread

    def goals(self, world: World) -> list[Goal]:
        return [Goal("move", "", "", task=self.name)]

    def point(self, world: World, goal: Goal) -> np.ndarray:
        return np.full(3, np.nan)

    def distance(self, world: World, goal: Goal) -> float:
        return math.nan

    def judge(self, world: World, goal: Goal, reached: bool) -> Outcome:
        return Outcome(False, math.nan, "nothing is judged")
