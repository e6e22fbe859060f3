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
from qwen_vla_ros.sim import Goal, SimulationError, World
from qwen_vla_ros.sim.phrases import SEEN
from qwen_vla_ros.sim.visits import Visitor
from qwen_vla_ros.training.evaluation import Case, ClosedLoop, Evaluator

# From picture to chunk, of an episode [s]: on a robot chunks are late, and hands then close elsewhere.
LATENCY = 0.0, 0.25


def make_visitor(checkpoint: Path, embodiment: Embodiment) -> Visitor:
    """Visits the states of a checkpoint's episodes, one at each chunk, until the goal is reached.

    Raises TrainingError when the checkpoint cannot be used for the body.
    """
    driver = Evaluator(checkpoint).driver(Case(embodiment, task=""))

    def visit(world: World, task: str, seed: int, rng: np.random.Generator, count: int) -> Iterator[Goal]:
        world.reset(task, seed, SEEN)
        goal = world.goal
        loop = ClosedLoop(world)
        late = min(round(rng.uniform(*LATENCY) / loop.period), loop.ticks_per_chunk - 1)
        try:
            for _ in range(count):
                yield goal
                chunk, captured = driver(world, goal, int(rng.integers(2**32))), world.time
                for tick in range(loop.ticks_per_chunk):
                    if tick == late:
                        loop.offer(chunk, captured)
                    loop.tick()
                if world.outcome().success:
                    return
        except SimulationError:
            # Things were pressed into one another, and flew: the states before that are good.
            return

    return visit
