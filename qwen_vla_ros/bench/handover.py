# SPDX-License-Identifier: Apache-2.0
"""Hand-over of chunks under injected inference delay: success, discontinuity and jerk by mode, in lock-step.

Beside the modes of the executor: `naive` follows the newest chunk from its first row when it arrives, with
nothing spliced, skipped or limited; `synchronous` rests while the model thinks.

    python -m qwen_vla_ros.bench.handover --episodes 20 --plot docs/images/handover.png
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen_vla_ros.bench import BenchResult
from qwen_vla_ros.embodiment import Embodiment, denormalise, load_embodiment
from qwen_vla_ros.motion.follower import BaseCommand, Follower
from qwen_vla_ros.motion.timeline import MODES

DELAYS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)  # [s]
STRATEGIES = (*MODES, "naive", "synchronous")
BODY = "franka_panda"
SEED = 3

# Rows from one picture to the next; more hand-overs than the body's own `execute_steps` would give.
EVERY = 4


@dataclass(frozen=True)
class Cell:
    """One strategy at one delay.

    Attributes:
        delay: picture to chunk [s].
        seconds: median time of the episodes that succeeded [s]; NaN without one.
        discontinuity: largest second difference quotient of a joint's commands, by its acceleration limit.
        jerk: root mean square of the third difference quotient of the arm's commands [rad/s^3].
        splice: root mean square of what a chunk differs by from the one before where it takes over [rad];
            NaN without a timeline.
    """

    strategy: str
    delay: float
    episodes: int
    successes: int
    seconds: float
    discontinuity: float
    jerk: float
    splice: float


class Runner:
    """Episodes of one body with the checkpoint that comes with the package.

    Args:
        task: the body's first where it is empty.
        setting: `easy`, or `full` with the words of the demonstrations.
        every: rows from one picture to the next.
    """

    def __init__(
        self, body: Embodiment, task: str = "", setting: str = "easy", every: float = EVERY, threads: int = 1
    ):
        from qwen_vla_ros.policy import load_policy
        from qwen_vla_ros.sim import make_world
        from qwen_vla_ros.sim.phrases import CANONICAL, SEEN

        self.body, self._every = body, every
        self._policy = load_policy(threads=threads)
        self._policy.configure(body)
        self._world = make_world(body, setting)
        self._task = task or self._world.tasks[0]
        self._wording = SEEN if setting == "full" else CANONICAL
        self._names = {group.name: group.joints for group in body.actions}
        arm = [group for group in body.actions if group.kind == "joint_position"]
        self._arm = np.concatenate(
            [np.arange(c.start, c.stop) for c in map(body.layout.slice_of, [g.name for g in arm])]
        )
        self._limit = np.concatenate([group.limits.acceleration for group in arm])

    def close(self) -> None:
        self._world.close()

    def cell(self, strategy: str, delay: float, episodes: int, seed: int = SEED) -> Cell:
        """Run episodes, the same scenes for every strategy and delay."""
        from qwen_vla_ros.training.seeds import evaluation_scene

        period = 1.0 / self.body.command_rate
        times, bends, jerks, splices = [], [], [], []
        for episode in range(episodes):
            self._world.reset(self._task, evaluation_scene(seed, episode), self._wording)
            began = self._world.time
            self._splices: list[np.ndarray] = []
            drive = {"naive": self._naive, "synchronous": self._synchronous}.get(strategy)
            path = drive(delay, episode) if drive else self._follow(strategy, delay, episode)
            rows = np.array(path)[:, self._arm]
            if self._world.outcome().success:
                times.append(self._world.time - began)
            bends.append((np.abs(np.diff(rows, n=2, axis=0)) / period**2 / self._limit).max())
            jerks.append(np.square(np.diff(rows, n=3, axis=0) / period**3).mean())
            splices += self._splices
        return Cell(
            strategy,
            delay,
            episodes,
            len(times),
            float(np.median(times)) if times else math.nan,
            float(np.max(bends)),
            float(np.sqrt(np.mean(jerks))),
            float(np.sqrt(np.mean(np.square(splices)))) if splices else math.nan,
        )

    def _infer(self, episode: int, count: int, plan=None) -> np.ndarray:
        from qwen_vla_ros.policy import Observation

        world = self._world
        images = {camera.view: world.render(camera.view) for camera in self.body.cameras}
        observation = Observation(images, world.goal.instruction, world.time)
        chunk = self._policy.infer(observation, seed=1000 * episode + count, plan=plan)
        return denormalise(chunk, self._policy.statistics)

    def _measure(self, follower: Follower) -> None:
        world = self._world
        positions = dict(zip(world.joint_names, world.joint_positions, strict=True))
        follower.joints.add(world.time, [positions[name] for name in self.body.joints])
        follower.pose.add(world.time, world.base_pose)

    def _advance(self, follower: Follower, path: list) -> bool:
        """One period along the chunk; True when the episode is over."""
        world, targets = self._world, []
        for command in follower.step(world.time):
            assert not isinstance(command, BaseCommand)
            world.set_joint_targets(dict(zip(self._names[command.group], command.position, strict=True)))
            targets.append(command.position)
        path.append(np.concatenate(targets))
        world.step(follower.period)
        self._measure(follower)
        return world.outcome().success

    def _begin(self, mode: str) -> tuple[Follower, int, float]:
        follower = Follower(self.body, mode=mode)
        self._measure(follower)
        follower.start(self._world.time)
        return follower, round(self._world.task.time_limit / follower.period), 1.0 / self.body.control_rate

    def _follow(self, mode: str, delay: float, episode: int) -> list:
        """A chunk is asked for every so many rows, one at a time, and arrives `delay` after its picture."""
        from qwen_vla_ros.policy import Continuation

        follower, ticks, step = self._begin(mode)
        world, path = self._world, []
        every, late = round(self._every * step / follower.period), round(delay / follower.period)
        asked, arrives, count = -every, -1, 0
        for tick in range(ticks):
            if arrives < 0 and tick >= asked + every:
                asked, arrives, captured, plan = tick, tick + late, world.time, None
                if mode == "rtc" and tick:
                    known = follower.plan(captured)
                    committed = min(known.known, math.ceil(delay / step))
                    plan = Continuation(known.rows, known.known, committed)
                chunk = self._infer(episode, count, plan)
                count += 1
            if tick == arrives:
                arrives = -1
                if count > 1:
                    # Where the new chunk takes over, and what was planned there.
                    row = math.ceil((world.time - captured) / step)
                    before = follower.plan(captured)
                    if row < before.known:
                        self._splices.append((chunk - before.rows)[row, self._arm])
                follower.offer(chunk, captured, step, world.time)
            if self._advance(follower, path):
                break
        return path

    def _synchronous(self, delay: float, episode: int) -> list:
        follower, ticks, step = self._begin("replace")
        path: list = []
        count = 0
        while len(path) < ticks:
            chunk = self._infer(episode, count)
            count += 1
            for _ in range(round(delay / follower.period)):
                if self._advance(follower, path):
                    return path
            # The world waited for the chunk: its first row is due one step from now.
            follower.offer(chunk[: max(1, round(self._every))], self._world.time, step, self._world.time)
            while follower.timeline.remaining(self._world.time) > 0 or not follower.resting:
                if self._advance(follower, path) or len(path) >= ticks:
                    return path
        return path

    def _naive(self, delay: float, episode: int) -> list:
        world, path = self._world, []
        step, period = 1.0 / self.body.control_rate, 1.0 / self.body.command_rate
        every, late = round(self._every * step / period), round(delay / period)
        asked, arrives, count = -every, -1, 0
        names = [name for group in self.body.actions for name in group.joints]
        positions = dict(zip(world.joint_names, world.joint_positions, strict=True))
        rows, began = np.array([[positions[name] for name in names]]), world.time
        limits = np.vstack([group.limits.position for group in self.body.actions])
        for tick in range(round(world.task.time_limit / period)):
            if arrives < 0 and tick >= asked + every:
                asked, arrives = tick, tick + late
                chunk = self._infer(episode, count)
                count += 1
            if tick == arrives:
                arrives, rows, began = -1, chunk, world.time
            at = min((world.time + period - began) / step, len(rows) - 1.0)
            low = int(at)
            target = rows[low] + (at - low) * (rows[min(low + 1, len(rows) - 1)] - rows[low])
            target = np.clip(target, *limits.T)
            world.set_joint_targets(dict(zip(names, target, strict=True)))
            path.append(target)
            world.step(period)
            if world.outcome().success:
                break
        return path


def measure(
    body: str, episodes: int, delays=DELAYS, strategies=STRATEGIES, seed: int = SEED, **how: Any
) -> Iterator[Cell]:
    """All strategies at all delays; `how`: see `Runner`."""
    runner = Runner(load_embodiment(body), **how)
    try:
        for delay in delays:
            for strategy in strategies:
                yield runner.cell(strategy, delay, episodes, seed)
    finally:
        runner.close()


def table(cells: list[Cell]) -> str:
    """Markdown."""
    lines = [
        "| delay | strategy | success | median time | discontinuity | jerk RMS | chunks differ by |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        splice = "" if math.isnan(cell.splice) else f"{1e3 * cell.splice:.1f} mrad"
        seconds = "" if math.isnan(cell.seconds) else f"{cell.seconds:.1f} s"
        lines.append(
            f"| {1e3 * cell.delay:.0f} ms | {cell.strategy} | {cell.successes}/{cell.episodes} | {seconds} "
            f"| {cell.discontinuity:.2f} | {cell.jerk:.0f} rad/s³ | {splice} |"
        )
    return "\n".join(lines)


def plot(cells: list[Cell], file: Path) -> None:
    """Success, discontinuity and jerk by delay."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    titles = ("success [%]", "largest discontinuity / acceleration limit", "path jerk, RMS [rad/s³]")
    for strategy in dict.fromkeys(cell.strategy for cell in cells):
        own = [cell for cell in cells if cell.strategy == strategy]
        delays = [1e3 * cell.delay for cell in own]
        rows = (
            [100 * cell.successes / cell.episodes for cell in own],
            [c.discontinuity for c in own],
            [c.jerk for c in own],
        )
        for axis, values in zip(axes, rows, strict=True):
            axis.plot(delays, values, marker="o", markersize=3.5, linewidth=1.4, label=strategy)
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="injected delay [ms]")
        axis.grid(alpha=0.3)
    axes[0].set_ylim(-5, 105)
    axes[1].axhline(1.0, color="black", linewidth=0.8, linestyle="--")
    for axis in axes[1:]:
        axis.set_yscale("log")
    axes[0].legend(fontsize=8)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def run() -> list[BenchResult]:
    """A few episodes: enough for the discontinuity, not for success rates."""
    found = list(measure(BODY, 2, delays=(0.2,), strategies=("replace", "ensemble", "rtc", "naive")))
    jerk = {cell.strategy: cell.jerk for cell in found}
    return [
        BenchResult(
            f"largest discontinuity, {cell.strategy}, 200 ms delay",
            cell.discontinuity,
            "acceleration limits",
            1.0,
            detail=asdict(cell),
        )
        for cell in found
        if cell.strategy in MODES
    ] + [
        BenchResult(
            "jerk of naive replacement by that of replace", jerk["naive"] / jerk["replace"], "x", 5.0, True
        )
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--body", default=BODY)
    parser.add_argument("--task", default="", help="the body's first by default")
    parser.add_argument("--setting", default="easy", choices=("easy", "full"))
    parser.add_argument("--every", type=float, default=EVERY, help="rows from one picture to the next")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--delays", type=float, nargs="+", default=DELAYS, help="[s]")
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES, choices=STRATEGIES)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=Path("out/handover.json"))
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    cells = []
    how = {name: getattr(arguments, name) for name in ("task", "setting", "every")}
    for cell in measure(
        arguments.body, arguments.episodes, arguments.delays, arguments.strategies, arguments.seed, **how
    ):
        cells.append(cell)
        print(f"{1e3 * cell.delay:.0f} ms {cell.strategy}: {cell}", file=sys.stderr, flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    record = {"body": arguments.body, "seed": arguments.seed, **how}
    record["cells"] = [asdict(cell) for cell in cells]
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    if arguments.plot:
        plot(cells, arguments.plot)
    print(table(cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
