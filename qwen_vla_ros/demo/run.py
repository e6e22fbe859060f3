# SPDX-License-Identifier: Apache-2.0
"""Run one body after the other through its real nodes, and say what happened."""

from __future__ import annotations

import itertools
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from qwen_vla_ros.demo import report
from qwen_vla_ros.demo.exporting import PolicyChoice, choose_policy
from qwen_vla_ros.demo.processes import NodeGroup, ProcessError
from qwen_vla_ros.embodiment import Embodiment, load_embodiment, render_prompt
from qwen_vla_ros.nodes.recording import Episode, Figures, figures

if TYPE_CHECKING:
    from qwen_vla_ros.nodes.episode_runner import EpisodeRunner

BODIES = ("franka_panda", "aloha_viperx", "tiago_base", "unitree_g1")
ANIMATION_RATE = 8.0
_ANIMATION_SIZE = 480, 360
_ANIMATED_EPISODES = 3
_SCENES_TRIED = 50
_START_TIMEOUT = 90.0


@dataclass(frozen=True)
class DemoOptions:
    """What to run.

    Attributes:
        bodies: Names of embodiments, or paths of their YAML files.
        task: Name of a task of the simulated world, or an instruction; empty for the body's first task in
            the setting `easy`, for one of its tasks after another in `full`.
        episodes: Episodes per body; their seeds are `seed`, `seed + 1`, ...
        checkpoint: Folder of the checkpoint; empty for the shipped one.
        backend: As the policy node knows it; `auto` on a CPU is onnx, with graphs from the user's cache.
        out: Receives pictures, summary and logs.
        model: URDF or MJCF file that stands for the robot; empty for what its embodiment says.
        setting: easy or full, how much changes from scene to scene.
    """

    bodies: tuple[str, ...]
    task: str
    episodes: int
    seed: int
    checkpoint: str
    device: str
    backend: str
    out: Path
    model: str = ""
    setting: str = "easy"


def run_demo(options: DemoOptions, console: Console) -> bool:
    """Run every body. True if all ran without a fault, whether or not they reached their goals."""
    # One domain per run, so that neither another demo nor a robot on the same network takes part.
    os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    embodiments = {body: load_embodiment(body) for body in options.bodies}
    options.out.mkdir(parents=True, exist_ok=True)
    choice = choose_policy(options.checkpoint, options.device, options.backend, embodiments, console)

    from qwen_vla_ros.nodes.episode_runner import EpisodeError

    results: dict[str, tuple[list[Episode], Figures]] = {}
    for source, embodiment in embodiments.items():
        try:
            results[embodiment.name] = _run_body(source, embodiment, options, choice, console)
        except (ProcessError, EpisodeError) as error:
            console.print(f"  fault: {error}", style="red")
    report.write_summary(results, options.out / "summary.json")
    faultless = [name for name, (episodes, _) in results.items() if not any(map(_faulted, episodes))]
    console.print(f"pictures, figures and logs: {options.out}")
    console.print(f"demo: {len(faultless)}/{len(embodiments)} bodies ran")
    return len(faultless) == len(embodiments)


def _run_body(
    source: str, embodiment: Embodiment, options: DemoOptions, choice: PolicyChoice, console: Console
) -> tuple[list[Episode], Figures]:
    from qwen_vla_ros.nodes.episode_runner import episode_runner

    console.print(f"\n{embodiment.name}  {embodiment.description}", style="bold")
    console.print(f"  prompt: {render_prompt(embodiment, '<instruction>').text}")
    directory = options.out / embodiment.name
    states = directory / "states"
    shutil.rmtree(states, ignore_errors=True)
    parameters = _parameters(source, options, states)
    parameters["policy"] |= choice.parameters(embodiment)
    before = time.monotonic()
    with (
        NodeGroup(embodiment.name, parameters, directory / "logs") as nodes,
        episode_runner(embodiment, embodiment.name, nodes.check) as runner,
    ):
        with console.status("starting sim, policy and executor"):
            runner.wait_ready(_START_TIMEOUT)
        console.print(f"  sim, policy, executor: three processes up in {time.monotonic() - before:.1f} s")
        episodes = _run_episodes(runner, _tasks(embodiment, options), options, console)
    summary = figures(episodes)
    _print_figures(summary, console)
    report.write_plot(episodes[0], embodiment, directory / f"{embodiment.name}.png")
    animation = directory / f"{embodiment.name}.gif"
    _animate(embodiment, options, episodes[:_ANIMATED_EPISODES], states, animation, console)
    return episodes, summary


def _parameters(source: str, options: DemoOptions, states: Path) -> dict[str, dict[str, object]]:
    common = {"embodiment": source, "autostart": True, "use_sim_time": True}
    # The world, which has the cameras, starts at the same time.
    policy = {**common, "camera_timeout": 60.0}
    sim = {"embodiment": source, "record": states.resolve(), "setting": options.setting}
    if options.model:
        sim["model"] = options.model
    return {"sim": sim, "policy": policy, "executor": common}


def _tasks(embodiment: Embodiment, options: DemoOptions) -> list[str]:
    """Tasks by turns; an empty one is the world's first."""
    # A task has one word in the world's list; anything with a space is an instruction.
    if options.task or options.setting == "easy":
        return ["" if " " in options.task else options.task]
    from qwen_vla_ros.sim import make_world

    with make_world(embodiment, options.setting, options.model or None) as world:
        return world.tasks


def _run_episodes(
    runner: EpisodeRunner, tasks: list[str], options: DemoOptions, console: Console
) -> list[Episode]:
    instruction = options.task if " " in options.task else ""
    seeds = itertools.count(options.seed)
    episodes = []
    for number, task in zip(range(1, options.episodes + 1), itertools.cycle(tasks), strict=False):
        with console.status(f"episode {number} of {options.episodes}"):
            episode = _next_episode(runner, task, seeds, instruction)
        episodes.append(episode)
        outcome = "reached" if episode.success else "NOT reached"
        if math.isnan(episode.distance):
            outcome = "moved, nothing was judged,"
        left = "" if math.isnan(episode.distance) else f", {100 * episode.distance:.1f} cm"
        console.print(
            f'  episode {number}/{options.episodes}  seed {episode.seed}  "{episode.instruction}"  '
            f"{outcome} in {episode.elapsed:.1f} s{left}"
        )
        if _faulted(episode):
            console.print(f"    fault {episode.code}: {episode.message}", style="red")
    return episodes


def _next_episode(runner: EpisodeRunner, task: str, seeds: Iterator[int], instruction: str) -> Episode:
    """Run the next seed; of a wanted instruction, the next whose scene has what it names."""
    from qwen_vla_ros.nodes.episode_runner import ResetRefused

    for _ in range(_SCENES_TRIED if instruction else 0):
        try:
            return runner.run_episode(task, next(seeds), instruction)
        except ResetRefused:
            continue
    return runner.run_episode(task, next(seeds), instruction)


def _animate(
    embodiment: Embodiment,
    options: DemoOptions,
    episodes: list[Episode],
    states: Path,
    path: Path,
    console: Console,
) -> None:
    """Draw the recorded states from the spectator's camera: as good as can be, since nothing waits for it."""
    from qwen_vla_ros.sim import make_world
    from qwen_vla_ros.sim.state_log import StateLog

    # The first file is the world before the first episode.
    logs = [StateLog.load(file) for file in sorted(states.glob("episode_*.npz"))[1:]]
    frames, captions = [], []
    width, height = _ANIMATION_SIZE
    with (
        make_world(embodiment, options.setting, options.model or None) as world,
        console.status(f"drawing {path}") as status,
    ):
        for episode, log in zip(episodes, logs, strict=False):
            world.reset(log.task, log.seed)
            times = np.arange(episode.started, episode.started + episode.elapsed, 1.0 / ANIMATION_RATE)
            for index in np.searchsorted(log.times, times).clip(max=len(log.times) - 1):
                frames.append(world.render_state(log.qpos[index], "spectator", width, height))
                captions.append(f'{embodiment.name}: "{episode.instruction}"')
                status.update(f"drawing {path}, frame {len(frames)}")
    report.write_animation(frames, captions, path, ANIMATION_RATE)


def _faulted(episode: Episode) -> bool:
    """Codes from 100 on are refusals and faults; below lie the ordinary ends of a task."""
    return episode.code >= 100 or not episode.chunks


def _print_figures(summary: Figures, console: Console) -> None:
    def ms(seconds: float) -> str:
        return "-" if math.isnan(seconds) else f"{1000 * seconds:.0f} ms"

    console.print(
        f"  success {summary.successes}/{summary.episodes}"
        f" | {summary.chunk_rate:.1f} chunks/s"
        f" | inference p50 {ms(summary.inference_p50)} p99 {ms(summary.inference_p99)}"
        f" | capture to command p50 {ms(summary.command_p50)} p99 {ms(summary.command_p99)}"
        f" | frames lost {summary.frames_lost}/{summary.frames_sent}"
    )
