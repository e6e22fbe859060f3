# SPDX-License-Identifier: Apache-2.0
"""Evaluation of several bodies and tasks at once, in lock-step or through the nodes, in the same scenes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import Progress

from qwen_vla_ros.demo.exporting import PolicyChoice, choose_policy
from qwen_vla_ros.demo.processes import NodeGroup, ProcessError
from qwen_vla_ros.embodiment import Embodiment, load_embodiment
from qwen_vla_ros.nodes.recording import Episode
from qwen_vla_ros.sim.free import Free
from qwen_vla_ros.training.card import machine
from qwen_vla_ros.training.evaluation import PICTURED, Case, Control, Evaluator, tasks_of
from qwen_vla_ros.training.results import EpisodeResult, Evaluation, make_entry, rms_jerk
from qwen_vla_ros.training.seeds import evaluation_scene

if TYPE_CHECKING:
    from qwen_vla_ros.nodes.episode_runner import EpisodeRunner
    from qwen_vla_ros.sim import World

BODIES = ("franka_panda", "aloha_viperx", "tiago_base", "unitree_g1")
_START_TIMEOUT = 90.0


class EvaluationFault(ValueError):
    """What was asked for cannot be run."""


@dataclass(frozen=True)
class EvaluationPlan:
    """What to run; see `qwen-vla eval --help`. out: result file, written anew after every entry."""

    embodiments: tuple[str, ...]
    tasks: tuple[str, ...]
    episodes: int
    seed: int
    setting: str
    wording: str
    controls: tuple[str, ...]
    conventions: tuple[str, ...]
    checkpoint: Path | None
    ros: bool
    latency: float
    device: str
    threads: int
    out: Path | None


def run_evaluation(plan: EvaluationPlan, console: Console) -> Evaluation:
    """Run everything and print a line for each result.

    Raises:
        EvaluationFault: The plan has a fault; nothing has been run.
        TrainingError, SimulationError, EmbodimentError: From the rooms below.
    """
    from qwen_vla_ros.sim.phrases import WORDINGS

    controls = [_control(name) for name in plan.controls]
    if plan.wording not in WORDINGS:
        raise EvaluationFault(f"--wording: found {plan.wording!r}, expected one of {', '.join(WORDINGS)}")
    if plan.ros and (controls != [Control.NONE] or plan.latency or plan.conventions):
        raise EvaluationFault("--ros: controls, conventions and latency are of lock-step")
    pairs = [_pair(text) for text in plan.conventions]
    # A run of conventions alone needs no bodies beside them.
    sources = plan.embodiments or (() if pairs else BODIES)
    cases = _cases(plan, sources, controls, [first for first, _ in pairs])
    evaluator = Evaluator(plan.checkpoint, plan.device, plan.threads)
    found = Evaluation(evaluator.folder.name, machine=machine(plan.device))

    def keep() -> None:
        found.parameters = evaluator.parameters
        if plan.out is not None:
            found.write(plan.out)

    if any(control is not Control.EXPERT for control in controls):
        # A checkpoint that cannot be used is named before anything runs.
        _ = evaluator.loaded
    if plan.ros:
        _run_ros(plan, cases, found, keep, console)
    else:
        for _, case in cases:
            with _counting(console, f"{case.embodiment.name} {case.task}", plan.episodes) as count:
                entry = evaluator.run(case, plan.episodes, plan.seed, plan.latency, lambda _: count())
            found.entries.append(entry)
            console.print(entry.summary())
            keep()
    for pair in pairs:
        _run_pair(plan, pair, evaluator, found, console)
        keep()
    return found


@contextmanager
def _counting(console: Console, title: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar that goes on by one with each call."""
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(title, total=total)
        yield lambda: progress.advance(bar)


def _control(name: str) -> Control:
    try:
        return Control(name)
    except ValueError as error:
        expected = ", ".join(each.value for each in Control)
        raise EvaluationFault(f"--control: found {name!r}, expected one of {expected}") from error


def _pair(text: str) -> tuple[Embodiment, Embodiment]:
    names = text.split("/")
    if len(names) != 2:
        raise EvaluationFault(f"--convention: found {text!r}, expected two embodiments, A/B")
    return load_embodiment(names[0]), load_embodiment(names[1])


def _judged(embodiment: Embodiment, setting: str) -> list[str]:
    tasks = [task for task in tasks_of(embodiment, setting) if task != Free.name]
    if not tasks:
        raise EvaluationFault(
            f"--embodiment: {embodiment.name}: its simulation has no task with a goal; expected a body "
            "that has one (docs/simulation.md)"
        )
    return tasks


def _cases(
    plan: EvaluationPlan, sources: tuple[str, ...], controls: list[Control], asked: list[Embodiment]
) -> list[tuple[str, Case]]:
    """What is run of each source. asked: bodies whose conventions are; their tasks may be named, too."""
    cases = []
    known = {embodiment.name: _judged(embodiment, plan.setting) for embodiment in asked}
    for source in sources:
        embodiment = load_embodiment(source)
        offered = _judged(embodiment, plan.setting)
        known[embodiment.name] = offered
        # The easy setting is that of one task a body.
        usual = offered if plan.setting == "full" else offered[:1]
        for task in [task for task in offered if task in plan.tasks] if plan.tasks else usual:
            for control in controls:
                cases.append((source, Case(embodiment, task, plan.setting, plan.wording, control)))
    unknown = [task for task in plan.tasks if not any(task in offered for offered in known.values())]
    if unknown:
        listed = "; ".join(f"{name}: {', '.join(offered)}" for name, offered in known.items())
        raise EvaluationFault(f"--task: found no task {unknown[0]!r}, expected one of {listed}")
    return cases


def _run_pair(
    plan: EvaluationPlan,
    pair: tuple[Embodiment, Embodiment],
    evaluator: Evaluator,
    found: Evaluation,
    console: Console,
) -> None:
    from qwen_vla_ros.training.conventions import convention_swap

    offered = _judged(pair[0], plan.setting)
    for task in [task for task in offered if task in plan.tasks] if plan.tasks else offered[:1]:
        with _counting(console, "/".join(body.name for body in pair), plan.episodes) as count:
            swap = convention_swap(
                evaluator.loaded, pair, task, plan.episodes, plan.seed, plan.setting, progress=count
            )
        found.conventions.append(swap)
        console.print(swap.summary())


# Through the nodes


def _run_ros(
    plan: EvaluationPlan,
    cases: list[tuple[str, Case]],
    found: Evaluation,
    keep: Callable[[], None],
    console: Console,
) -> None:
    from qwen_vla_ros.sim import make_world

    # A domain of its own, so that neither a demo nor a robot on the same network takes part.
    os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    checkpoint = "" if plan.checkpoint is None else str(plan.checkpoint)
    embodiments = {source: case.embodiment for source, case in cases}
    choice = choose_policy(checkpoint, plan.device, "auto", embodiments, console)
    for source in dict.fromkeys(source for source, _ in cases):
        own = [case for name, case in cases if name == source]
        embodiment = own[0].embodiment
        # It stays where something fails: the logs say what.
        folder = Path(tempfile.mkdtemp(prefix="qwen_vla_eval_"))
        states = folder / "states"
        with (
            make_world(embodiment, plan.setting) as world,
            _nodes(plan, source, embodiment, choice, folder, states) as runner,
        ):
            for case in own:
                episodes = _episodes(plan, case, world, runner, console)
                entry = make_entry(
                    [_result(episode, embodiment) for episode in episodes],
                    embodiment=embodiment.name,
                    task=case.task,
                    setting=case.setting,
                    wording=case.wording,
                    control=case.control.value,
                    through="ros",
                    seed=plan.seed,
                    latency=0.0,
                )
                found.entries.append(entry)
                console.print(f"{entry.summary()}, through the nodes")
                keep()
        played = found.entries[-len(own) :]
        # The simulation writes its states when it ends.
        shots = _pictures(states, [len(entry.episodes) for entry in played])
        shutil.rmtree(folder)
        for entry, pictures in zip(played, shots, strict=True):
            pairs = zip(entry.episodes, pictures, strict=True)
            entry.episodes[:] = [replace(result, frames=frames) for result, frames in pairs]
        keep()


@contextmanager
def _nodes(
    plan: EvaluationPlan,
    source: str,
    embodiment: Embodiment,
    choice: PolicyChoice,
    folder: Path,
    states: Path,
) -> Iterator[EpisodeRunner]:
    from qwen_vla_ros.nodes.episode_runner import EpisodeError, episode_runner

    common: dict[str, object] = {"embodiment": source, "autostart": True, "use_sim_time": True}
    policy = {**common, **choice.parameters(embodiment), "threads": plan.threads}
    sim: dict[str, object] = {"embodiment": source, "setting": plan.setting, "record": states.resolve()}
    parameters = {"sim": sim, "policy": policy, "executor": common}
    try:
        with (
            NodeGroup(embodiment.name, parameters, folder / "logs") as nodes,
            episode_runner(embodiment, embodiment.name, nodes.check) as runner,
        ):
            runner.wait_ready(_START_TIMEOUT)
            yield runner
    except (ProcessError, EpisodeError) as error:
        raise EvaluationFault(f"{embodiment.name}: {error}") from error


def _episodes(
    plan: EvaluationPlan, case: Case, world: World, runner: EpisodeRunner, console: Console
) -> list[Episode]:
    episodes = []
    with _counting(console, f"{case.embodiment.name} {case.task}", plan.episodes) as count:
        for number in range(plan.episodes):
            scene = evaluation_scene(plan.seed, number)
            # The seed decides the words too; the sim node knows the scene, not the wording.
            instruction = world.reset(case.task, scene, case.wording).instruction
            episodes.append(runner.run_episode(case.task, scene, instruction))
            count()
    return episodes


def _result(episode: Episode, embodiment: Embodiment) -> EpisodeResult:
    paths = []
    for group in embodiment.actions:
        series = episode.commanded.get(group.name)
        if series is None or group.kind == "gripper":
            continue
        base = group.kind in ("waypoint", "base_velocity")
        rows = [row[:1] for row in series.rows] if base else series.rows
        paths.append((series.times, rows, 2 if base else 3))
    detail = episode.message if not episode.success else "held"
    return EpisodeResult(
        scene=episode.seed,
        instruction=episode.instruction,
        success=episode.success,
        named=episode.success,
        distance=episode.distance,
        seconds=round(episode.elapsed, 3),
        rms_jerk=rms_jerk(paths),
        detail=f"{detail} (code {episode.code})",
    )


def _pictures(states: Path, counts: list[int]) -> list[list[list[list[float]]]]:
    """Three states of the first episodes of each case, as the sim node recorded them."""
    from qwen_vla_ros.sim.state_log import StateLog

    # The first file is the world before the first episode.
    files = iter(sorted(states.glob("episode_*.npz"))[1:])
    found = []
    for count in counts:
        case = []
        for number in range(count):
            file = next(files, None)
            frames: list[list[float]] = []
            if number < PICTURED and file is not None:
                qpos = StateLog.load(file).qpos
                frames = [np.round(qpos[i], 5).tolist() for i in (0, len(qpos) // 2, -1)]
            case.append(frames)
        found.append(case)
    return found
