# SPDX-License-Identifier: Apache-2.0
"""Closed-loop evaluation in physics, in lock-step and without ROS.

The same chunk convention, command limits and interpolation as the executor (`motion.Follower` at the command
rate, set-points written to the position servos). A chunk is followed `latency` after its picture was taken;
no image is lost. Scenes come from seeds that demonstrations never use.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qwen_vla_ros.embodiment import Embodiment, denormalise
from qwen_vla_ros.embodiment.schema import DiffDriveController
from qwen_vla_ros.motion.follower import BaseCommand, Follower, JointCommand
from qwen_vla_ros.sim import Goal, World, expert_chunk, make_world
from qwen_vla_ros.sim.phrases import CANONICAL, phrases
from qwen_vla_ros.training.errors import TrainingError
from qwen_vla_ros.training.results import Entry, EpisodeResult, make_entry, rms_jerk
from qwen_vla_ros.training.seeds import evaluation_scene

Array = np.ndarray

# Episodes of an entry whose states are kept for pictures.
PICTURED = 4
_SCENES_WITHOUT_ANOTHER = 20


class Control(str, Enum):
    """What is run instead of the checkpoint with its own instruction.

    wrong-object: another object is named than the one that is judged. blank: grey images. untrained: fresh
    weights. expert: the script.
    """

    NONE = "none"
    WRONG_OBJECT = "wrong-object"
    BLANK = "blank"
    UNTRAINED = "untrained"
    EXPERT = "expert"


@dataclass(frozen=True)
class Case:
    """What is run: a task of a body in a setting (`easy`, `full`), worded `plain`, `seen` or `held-out`."""

    embodiment: Embodiment
    task: str
    setting: str = "easy"
    wording: str = CANONICAL
    control: Control = Control.NONE


class Driver(Protocol):
    """World and goal, whose instruction is given, to a chunk in physical units, shape (horizon, c)."""

    def __call__(self, world: World, goal: Goal, seed: int) -> Array: ...


def tasks_of(embodiment: Embodiment, setting: str) -> list[str]:
    """Tasks of a body in a setting."""
    with make_world(embodiment, setting) as world:
        return world.tasks


class ClosedLoop:
    """Moves a world by chunks as the executor moves a robot, from the state that it is in."""

    def __init__(self, world: World) -> None:
        embodiment = world.embodiment
        self._world = world
        self._follower = Follower(_driven(embodiment))
        self._step = 1.0 / embodiment.control_rate
        self._joints = {group.name: getattr(group, "joints", ()) for group in embodiment.actions}
        self.period = self._follower.period
        self.ticks_per_chunk = round(embodiment.execute_steps * self._step / self.period)
        self._measure()
        self._follower.start(world.time)

    def offer(self, chunk: Array, captured: float) -> None:
        """Follow a chunk (horizon, c) in physical units, for a picture that was taken at `captured` [s]."""
        self._follower.offer(chunk, captured, self._step, self._world.time)

    def tick(self) -> list[BaseCommand | JointCommand]:
        """One period of the command rate; returns what was commanded."""
        world, commands = self._world, []
        for command in self._follower.step(world.time):
            if isinstance(command, BaseCommand):
                world.set_base_velocity(*command.velocity)
            elif isinstance(command, JointCommand):
                joints = self._joints[command.group]
                world.set_joint_targets(dict(zip(joints, command.position, strict=True)))
            else:
                continue
            commands.append(command)
        world.step(self.period)
        self._measure()
        return commands

    def _measure(self) -> None:
        world = self._world
        positions = dict(zip(world.joint_names, world.joint_positions, strict=True))
        joints = world.embodiment.joints
        self._follower.joints.add(world.time, np.array([positions[name] for name in joints]))
        self._follower.pose.add(world.time, world.base_pose)


class Evaluator:
    """Runs cases with one checkpoint.

    Args:
        checkpoint: Folder; None for the one that comes with the package. It is read when it is needed.
        device: A torch device, or `auto`.
        threads: CPU threads of torch.
    """

    def __init__(self, checkpoint: Path | None = None, device: str = "cpu", threads: int = 1) -> None:
        from qwen_vla_ros import resources

        self.folder = checkpoint or resources.checkpoints_directory() / "qwen_vla_tiny"
        self._device, self._threads = device, threads
        self._loaded: Any = None
        self.parameters = 0

    @property
    def loaded(self) -> Any:
        """The checkpoint. Raises TrainingError when it cannot be used."""
        from qwen_vla_ros.model.checkpoint import CheckpointError, load_checkpoint
        from qwen_vla_ros.policy import PolicyError
        from qwen_vla_ros.policy.local import choose_device

        if self._loaded is None:
            try:
                self._loaded = load_checkpoint(self.folder, choose_device(self._device))
            except (CheckpointError, PolicyError) as error:
                raise TrainingError(str(error)) from error
            self.parameters = sum(p.numel() for p in self._loaded.model.parameters())
        return self._loaded

    def run(
        self,
        case: Case,
        episodes: int,
        seed: int,
        latency: float = 0.0,
        progress: Callable[[EpisodeResult], None] | None = None,
    ) -> Entry:
        """Run episodes of a case; episode k has the scene `seed + k`.

        latency: from picture to chunk [s]. WRONG_OBJECT passes over scenes that have no other object, and
        raises TrainingError for a task that never has one.
        """
        driver = self.driver(case)
        results: list[EpisodeResult] = []
        with make_world(case.embodiment, case.setting) as world:
            numbers = itertools.count()
            while len(results) < episodes:
                scene = evaluation_scene(seed, next(numbers))
                world.reset(case.task, scene, case.wording)
                named: Goal | None = world.goal
                if case.control is Control.WRONG_OBJECT:
                    named = other_goal(world, world.goal, scene, case.wording)
                if named is None:
                    if results or scene < seed + _SCENES_WITHOUT_ANOTHER:
                        continue
                    what = f"{case.task}: control {case.control.value}"
                    raise TrainingError(f"{what}: scenes {seed} to {scene} have one object")
                result = run_episode(world, driver, named, scene, latency, pictured=len(results) < PICTURED)
                results.append(result)
                if progress is not None:
                    progress(result)
        return make_entry(
            results,
            embodiment=case.embodiment.name,
            task=case.task,
            setting=case.setting,
            wording=case.wording,
            control=case.control.value,
            through="lock-step",
            seed=seed,
            latency=latency,
        )

    def driver(self, case: Case) -> Driver:
        """What moves the robot in a case. Raises TrainingError when the checkpoint does not fit the body."""
        if case.control is Control.EXPERT:
            return _expert
        from qwen_vla_ros.policy import Observation, PolicyError
        from qwen_vla_ros.policy.local import LocalPolicy

        loaded = self.loaded
        if case.control is Control.UNTRAINED:
            loaded = replace(loaded, model=_fresh(loaded.model))
        embodiment = case.embodiment
        try:
            policy = LocalPolicy(loaded, threads=self._threads)
            policy.configure(embodiment)
        except PolicyError as error:
            raise TrainingError(str(error)) from error
        blank = case.control is Control.BLANK

        def drive(world: World, goal: Goal, seed: int) -> Array:
            images = {camera.view: world.render(camera.view) for camera in embodiment.cameras}
            if blank:
                images = {view: np.full_like(image, 128) for view, image in images.items()}
            observation = Observation(images, goal.instruction, world.time)
            return denormalise(policy.infer(observation, seed=seed % 2**62), policy.statistics)

        return drive


def run_episode(
    world: World,
    driver: Driver,
    named: Goal,
    scene: int,
    latency: float = 0.0,
    pictured: bool = False,
) -> EpisodeResult:
    """One episode in the present scene, judged by the world's goal; `named` is what the driver is told."""
    embodiment = world.embodiment
    smooth = {group.name: group.kind != "gripper" for group in embodiment.actions}
    start = world.time
    loop = ClosedLoop(world)
    period, per_chunk = loop.period, loop.ticks_per_chunk
    ticks = round(world.task.time_limit / period)
    late = round(latency / period)
    if not 0 <= late < per_chunk:
        raise TrainingError(f"latency: expected 0 to less than {per_chunk * period:g} s, found {latency:g} s")
    told_apart = not named.same(world.goal)
    commands: dict[str, tuple[list[float], list[Array], int]] = {}
    states = [world.qpos]
    for tick in range(ticks):
        if tick % per_chunk == 0:
            chunk = driver(world, named, seed=scene * 1000 + tick // per_chunk)
            captured = world.time
            states.append(world.qpos)
        if tick % per_chunk == late:
            loop.offer(chunk, captured)
        now = world.time
        for command in loop.tick():
            if isinstance(command, BaseCommand):
                _note(commands, command.group, now, command.velocity[:1], 2)
            elif smooth[command.group]:
                _note(commands, command.group, now, command.position, 3)
        if world.outcome().success and not told_apart:
            break
    outcome = world.outcome()
    shown = (states[0], states[len(states) // 2], world.qpos) if pictured else ()
    return EpisodeResult(
        scene=scene,
        instruction=named.instruction,
        success=bool(outcome.success),
        named=bool(world.task.near(world, named)),
        distance=float(outcome.distance),
        seconds=round(world.time - start, 3),
        rms_jerk=rms_jerk(commands.values()),
        detail=outcome.detail,
        frames=[np.round(state, 5).tolist() for state in shown],
    )


def _driven(embodiment: Embodiment) -> Embodiment:
    """The same body, told velocities where it is told a path: here nobody follows one."""
    drive: dict[str, Any] = {"type": "diff_drive", "stamped": True}
    groups = [
        group.model_copy(update={"controller": DiffDriveController(topic=group.controller.topic, **drive)})
        if group.controller.type == "path"
        else group
        for group in embodiment.actions
    ]
    return embodiment.model_copy(update={"actions": tuple(groups)})


def _note(
    commands: dict[str, tuple[list[float], list[Array], int]], group: str, time: float, row: Array, order: int
) -> None:
    times, rows, _ = commands.setdefault(group, ([], [], order))
    times.append(time)
    rows.append(row)


def other_goal(world: World, judged: Goal, scene: int, wording: str = CANONICAL) -> Goal | None:
    """A goal with another object, as alike as the scene has one, in a wording; None without one."""
    # The place between two pillars is the same from either side.
    things = {judged.target, judged.other_target}
    others = [goal for goal in world.goals() if {goal.target, goal.other_target} != things]
    if not others:
        return None
    alike = [
        (goal.arm == judged.arm) + (goal.direction == judged.direction) + (goal.other == judged.other)
        for goal in others
    ]
    choice = [goal for goal, same in zip(others, alike, strict=True) if same == max(alike)]
    rng = np.random.default_rng(scene)
    goal = choice[int(rng.integers(len(choice)))]
    if wording == CANONICAL:
        return goal
    words = phrases(goal, wording)
    return replace(goal, instruction=words[int(rng.integers(len(words)))])


def _fresh(model: Any) -> Any:
    """Weights as they are before training."""
    import torch

    from qwen_vla_ros.model.modeling import QwenVLAForActionPrediction
    from qwen_vla_ros.model.presets import initialise_fan_in

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        fresh = QwenVLAForActionPrediction(model.config)
        initialise_fan_in(fresh)
    return fresh.to(model.device)


def _expert(world: World, goal: Goal, seed: int) -> Array:
    del seed
    return expert_chunk(world, goal, world.embodiment.horizon, 1.0 / world.embodiment.control_rate)
