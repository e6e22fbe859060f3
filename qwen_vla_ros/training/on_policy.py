# SPDX-License-Identifier: Apache-2.0
"""States that a policy brings its robot into, for demonstrations of what the expert would do there.

A policy that errs comes where no expert goes, and stays there; labelled by the expert, these states are what
it lacks (Ross, Gordon and Bagnell, 2011, arXiv 1011.0686).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from qwen_vla_ros.embodiment import Embodiment
from qwen_vla_ros.sim import Goal, World
from qwen_vla_ros.sim.phrases import SEEN
from qwen_vla_ros.sim.visits import Visitor
from qwen_vla_ros.training.evaluation import Case, ClosedLoop, Evaluator


def make_visitor(checkpoint: Path, embodiment: Embodiment) -> Visitor:
    """Visits the states of a checkpoint's episodes, one at each chunk, until the goal is reached.

    Raises TrainingError when the checkpoint cannot be used for the body.
    """
    driver = Evaluator(checkpoint).driver(Case(embodiment, task=""))

    def visit(world: World, task: str, seed: int, rng: np.random.Generator, count: int) -> Iterator[Goal]:
        world.reset(task, seed, SEEN)
        goal = world.goal
        loop = ClosedLoop(world)
        for _ in range(count):
            yield goal
            loop.offer(driver(world, goal, int(rng.integers(2**32))), world.time)
            for _ in range(loop.ticks_per_chunk):
                loop.tick()
            if world.outcome().success:
                return

    return visit
