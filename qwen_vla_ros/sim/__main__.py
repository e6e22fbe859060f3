# SPDX-License-Identifier: Apache-2.0
"""CPU time that each world takes, and a picture of each view: python -m qwen_vla_ros.sim [FOLDER]."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from PIL import Image

from qwen_vla_ros.sim import World, expert_chunk, make_world
from qwen_vla_ros.sim.bodies import BODIES


def _milliseconds(call: Callable[[], object], count: int) -> float:
    times = []
    for _ in range(count):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return 1e3 * median(times)


def _row(world: World) -> str:
    dt = 1e3 * world.model.opt.timestep
    step = _milliseconds(lambda: world.step(0.1), 20) * dt / 100
    policy = _milliseconds(lambda: world.render("ego"), 20)
    people = _milliseconds(lambda: world.render("spectator"), 5)
    horizon, period = world.embodiment.horizon, 1.0 / world.embodiment.control_rate
    chunk = _milliseconds(lambda: expert_chunk(world, None, horizon, period), 20)
    return (
        f"{world.body.name:7} {dt:5.0f} ms  {1e3 * step:4.0f} us  {dt / step:7.0f} x  {policy:8.1f} ms"
        f"  {people:14.0f} ms  {chunk:9.2f} ms"
    )


def main(folder: Path | None) -> None:
    print("CPU time of all threads, medians")
    print("body    timestep  step     real time  ego 128x128  spectator 640x480  expert chunk")
    for body in BODIES:
        with make_world(body) as world:
            world.reset(world.tasks[0], 0)
            for view in world.views:
                picture = world.render(view)
                if folder is not None:
                    folder.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(picture).save(folder / f"{body}_{view}.png")
            print(_row(world))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
