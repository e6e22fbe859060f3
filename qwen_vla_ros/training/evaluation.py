# SPDX-License-Identifier: Apache-2.0
"""Closed-loop evaluation in physics, in lock-step and without ROS.

The same chunk convention, command limits and interpolation as the executor (`motion.Follower` at the command
rate, set-points written to the position servos). A chunk is followed `latency` after its picture was taken;
no image is lost. Scenes come from seeds that demonstrations never use.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Protocol

import numpy as np

from qwen_vla_ros.embodiment import Embodiment, denormalise
from qwen_vla_ros.motion.follower import BaseCommand, Follower
from qwen_vla_ros.sim import Goal, World, expert_chunk, make_world
from qwen_vla_ros.training.errors import TrainingError
from qwen_vla_ros.training.seeds import evaluation_scene

Array = np.ndarray


class Control(str, Enum):
    """What is run instead of the checkpoint with its own instruction.

    wrong-colour: another object is named than the one that is judged. untrained: fresh weights. expert: the
    script.
    """

    NONE = "none"
    WRONG_COLOUR = "wrong-colour"
    UNTRAINED = "untrained"
    EXPERT = "expert"


@dataclass(frozen=True)
class EpisodeResult:
    """scene: seed of World.reset(). named: the robot ended near the object that the instruction names.
    distance: from the judged goal at the end [m]. seconds: until success or the time limit."""

    scene: int
    instruction: str
    success: bool
    named: bool
    distance: float
    seconds: float
    detail: str


@dataclass(frozen=True)
class Result:
    """An evaluation. interval: of the rate, Wilson score, 95 %."""

    embodiment: str
    task: str
    control: str
    checkpoint: str
    seed: int
    latency: float
    successes: int
    named: int
    rate: float
    interval: tuple[float, float]
    median_distance: float
    episodes: list[EpisodeResult]

    def summary(self) -> str:
        low, high = self.interval
        text = (
            f"{self.embodiment} {self.task}: {self.successes}/{len(self.episodes)} = {100 * self.rate:.0f} % "
            f"(95 %: {100 * low:.0f} to {100 * high:.0f} %), "
            f"median distance {100 * self.median_distance:.1f} cm"
        )
        if self.control != Control.NONE.value:
            text += f", control {self.control}, {self.named} ended at the object that was named"
        return text


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927); z of 95 % by default.

    Raises ValueError unless 0 <= successes <= trials and trials > 0.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"expected 0 <= successes <= trials, found {successes} of {trials}")
    rate = successes / trials
    scale = 1.0 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


class Driver(Protocol):
    """World and instruction to a chunk in physical units, shape (horizon, c)."""

    def __call__(self, world: World, goal: Goal, seed: int) -> Array: ...


def evaluate(
    embodiment: Embodiment,
    checkpoint: Path | None,
    episodes: int,
    seed: int,
    task: str | None = None,
    control: Control = Control.NONE,
    latency: float = 0.0,
    progress: Callable[[EpisodeResult], None] | None = None,
) -> Result:
    """Run episodes of one task of a body.

    checkpoint: folder; None for the one that comes with the package. task: the body's first without it.
    latency: from picture to chunk [s].
    """
    with make_world(embodiment) as world:
        name = task or world.tasks[0]
        driver, source = _driver(embodiment, checkpoint, control)
        results = []
        for episode in range(episodes):
            scene = evaluation_scene(seed, episode)
            world.reset(name, scene)
            judged = world.goal
            named = _other(world, judged, scene) if control is Control.WRONG_COLOUR else judged
            result = run_episode(world, driver, named, scene, latency)
            results.append(result)
            if progress is not None:
                progress(result)
    successes = sum(result.success for result in results)
    return Result(
        embodiment=embodiment.name,
        task=name,
        control=control.value,
        checkpoint=source,
        seed=seed,
        latency=latency,
        successes=successes,
        named=sum(result.named for result in results),
        rate=successes / episodes,
        interval=wilson(successes, episodes),
        median_distance=float(np.median([result.distance for result in results])),
        episodes=results,
    )


def run_episode(world: World, driver: Driver, named: Goal, scene: int, latency: float = 0.0) -> EpisodeResult:
    """One episode in the present scene, judged by the world's goal; `named` is what the driver is told."""
    embodiment = world.embodiment
    follower = Follower(embodiment)
    period, step = follower.period, 1.0 / embodiment.control_rate
    joints = {group.name: getattr(group, "joints", ()) for group in embodiment.actions}
    start = world.time
    _measure(world, follower)
    follower.start(world.time)
    ticks = round(world.task.time_limit / period)
    per_chunk = round(embodiment.execute_steps * step / period)
    late = round(latency / period)
    if not 0 <= late < per_chunk:
        raise TrainingError(f"latency: expected 0 to less than {per_chunk * period:g} s, found {latency:g} s")
    for tick in range(ticks):
        if tick % per_chunk == 0:
            chunk = driver(world, named, seed=scene * 1000 + tick // per_chunk)
            captured = world.time
        if tick % per_chunk == late:
            follower.offer(chunk, captured, step, world.time)
        for command in follower.step(world.time):
            if isinstance(command, BaseCommand):
                world.set_base_velocity(*command.velocity)
            else:
                world.set_joint_targets(dict(zip(joints[command.group], command.position, strict=True)))
        world.step(period)
        _measure(world, follower)
        if world.outcome().success and named == world.goal:
            break
    outcome = world.outcome()
    return EpisodeResult(
        scene=scene,
        instruction=named.instruction,
        success=bool(outcome.success),
        named=bool(world.task.near(world, named)),
        distance=float(outcome.distance),
        seconds=round(world.time - start, 3),
        detail=outcome.detail,
    )


def _measure(world: World, follower: Follower) -> None:
    positions = dict(zip(world.joint_names, world.joint_positions, strict=True))
    joints = world.embodiment.joints
    follower.joints.add(world.time, np.array([positions[name] for name in joints]))
    follower.pose.add(world.time, world.base_pose)


def _other(world: World, judged: Goal, scene: int) -> Goal:
    """A goal with another object, by the same arm where that one reaches it."""
    others = [goal for goal in world.goals() if goal.target != judged.target]
    same = [goal for goal in others if goal.arm == judged.arm]
    choice = same or others
    if not choice:
        raise TrainingError(f"scene {scene} has one goal only: {judged.instruction!r}")
    return choice[int(np.random.default_rng(scene).integers(len(choice)))]


def _driver(embodiment: Embodiment, checkpoint: Path | None, control: Control) -> tuple[Driver, str]:
    if control is Control.EXPERT:
        return _expert, "expert"
    from qwen_vla_ros import resources
    from qwen_vla_ros.model.checkpoint import CheckpointError, load_checkpoint
    from qwen_vla_ros.policy import Observation, PolicyError
    from qwen_vla_ros.policy.local import LocalPolicy

    folder = checkpoint or resources.checkpoints_directory() / "qwen_vla_tiny"
    try:
        loaded = load_checkpoint(folder)
        if control is Control.UNTRAINED:
            from qwen_vla_ros.model.presets import build_tiny

            model, processor = build_tiny(seed=1)
            loaded = replace(loaded, model=model, processor=processor)
        policy = LocalPolicy(loaded)
        policy.configure(embodiment)
    except (CheckpointError, PolicyError) as error:
        raise TrainingError(str(error)) from error

    def drive(world: World, goal: Goal, seed: int) -> Array:
        images = {camera.view: world.render(camera.view) for camera in embodiment.cameras}
        observation = Observation(images, goal.instruction, world.time)
        return denormalise(policy.infer(observation, seed=seed % 2**62), policy.statistics)

    return drive, folder.name


def _expert(world: World, goal: Goal, seed: int) -> Array:
    del seed
    return expert_chunk(world, goal, world.embodiment.horizon, 1.0 / world.embodiment.control_rate)
