# SPDX-License-Identifier: Apache-2.0
"""Whether the sentence alone chooses the convention: the same pictures under the sentences of two bodies.

Two embodiments of one simulated robot see the same with the same cameras. The model is asked under the
sentence of each, and samples without the mask of either: all rows and the same channels are open under both.
What comes out is compared with what the expert does there, in the convention of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from qwen_vla_ros.embodiment import Embodiment, Statistics, normalise, render_prompt, resolve_statistics
from qwen_vla_ros.sim import World, expert_chunk, make_world, sample_states
from qwen_vla_ros.training.errors import TrainingError
from qwen_vla_ros.training.results import Swap, wilson
from qwen_vla_ros.training.seeds import evaluation_scene

Array = np.ndarray

# States drawn per scene; that in which the conventions differ most is asked about.
_STATES = 12
# Below this difference nothing can be told [normalised]; such a scene is passed over.
_TELLING = 0.1
# Compared are the entries that differ by this share of the largest difference, or more.
_SHARE = 0.25
# Scenes that are looked at, at most, for each that is asked about.
_SCENES = 10


def convention_swap(
    loaded: Any,
    pair: tuple[Embodiment, Embodiment],
    task: str,
    episodes: int,
    seed: int,
    setting: str = "easy",
    channels: int | None = None,
    progress: Callable[[], None] | None = None,
) -> Swap:
    """Ask a checkpoint under both sentences in each of `episodes` scenes.

    Args:
        loaded: From load_checkpoint.
        pair: Two embodiments of one simulated body, with the same views.
        channels: Channels that are open while sampling; all of the action tensor without it.

    Raises:
        TrainingError: The bodies or views differ, or the checkpoint has no statistics of one.
    """
    bodies = [body.simulation.body if body.simulation else None for body in pair]
    views = [tuple((camera.view, camera.size) for camera in body.cameras) for body in pair]
    if bodies[0] is None or bodies[0] != bodies[1] or views[0] != views[1]:
        raise TrainingError(
            f"{pair[0].name} and {pair[1].name}: found bodies {bodies} and views "
            f"{[[view for view, _ in each] for each in views]}, expected the same of each"
        )
    try:
        statistics = [resolve_statistics(body, loaded.statistics) for body in pair]
    except ValueError as error:
        raise TrainingError(str(error)) from error
    rows = min(body.horizon for body in pair)
    compared = min(body.layout.count for body in pair)
    right = dict.fromkeys((body.name for body in pair), 0)
    distances = []
    with make_world(pair[0], setting) as first, make_world(pair[1], setting) as second:
        worlds = (first, second)
        scenes = (evaluation_scene(seed, k) for k in range(_SCENES * episodes))
        for _ in range(episodes):
            scene, instruction, experts = _next(worlds, task, scenes, statistics, (rows, compared))
            difference = np.abs(experts[0] - experts[1])
            telling = difference >= _SHARE * difference.max()
            images = {camera.view: first.render(camera.view) for camera in pair[0].cameras}
            for index, body in enumerate(pair):
                found = emit(loaded, body, images, instruction, scene, channels)[:rows, :compared]
                own, other = (
                    float(np.abs(found - expert)[telling].mean())
                    for expert in (experts[index], experts[1 - index])
                )
                right[body.name] += own < other
                distances.append((own, other))
            if progress is not None:
                progress()
    trials, hits = 2 * episodes, sum(right.values())
    median = np.median(distances, axis=0)
    return Swap(
        pair=(pair[0].name, pair[1].name),
        task=task,
        setting=setting,
        seed=seed,
        trials=trials,
        right=hits,
        by_sentence=right,
        rate=hits / trials,
        interval=wilson(hits, trials),
        distance=(float(median[0]), float(median[1])),
        channels=compared,
    )


def _next(
    worlds: tuple[World, World],
    task: str,
    scenes: Iterator[int],
    statistics: list[Statistics],
    shape: tuple[int, int],
) -> tuple[int, str, list[Array]]:
    """Put both worlds into a state of the next scene in which the conventions differ.

    Returns:
        The scene, its instruction, and the experts' normalised chunks there.
    """
    for scene in scenes:
        for world in worlds:
            world.reset(task, scene)
        rng = np.random.default_rng(scene)
        states = sample_states(worlds[0], worlds[0].goal, rng, _STATES)
        chunks = [_experts(worlds, state, statistics, shape) for state in states]
        apart = [float(np.abs(one - other).max()) for one, other in chunks]
        best = int(np.argmax(apart))
        if apart[best] >= _TELLING:
            return scene, worlds[0].goal.instruction, _experts(worlds, states[best], statistics, shape)
    raise TrainingError(f"task {task!r}: too few scenes in which both conventions differ")


def _experts(
    worlds: tuple[World, World], state: Any, statistics: list[Statistics], shape: tuple[int, int]
) -> list[Array]:
    """What the expert does in a state, in either convention, normalised, the part that both have."""
    found = []
    for world, own in zip(worlds, statistics, strict=True):
        world.teleport(state.joints, state.base_pose)
        body = world.embodiment
        chunk = expert_chunk(world, world.goal, body.horizon, 1.0 / body.control_rate)
        found.append(normalise(chunk, own)[: shape[0], : shape[1]])
    return found


def emit(
    loaded: Any,
    embodiment: Embodiment,
    images: dict[str, Array],
    instruction: str,
    seed: int,
    channels: int | None = None,
) -> Array:
    """Normalised chunk under an embodiment's prompt, without its mask.

    Args:
        channels: Leading channels that are open; all without it.

    Returns:
        All rows of the action tensor, not clipped. Shape (H, channels).
    """
    import torch

    model, processor = loaded.model, loaded.processor
    expert = model.config.action_expert
    count = expert.channels if channels is None else channels
    prompt = render_prompt(embodiment, instruction)
    pixels = processor.images([(view, images[view]) for view in prompt.views])
    tokens = processor.prompts([(prompt.text, prompt.views)])
    generator = torch.Generator(model.device).manual_seed(seed % 2**62)
    mask = torch.zeros(1, expert.horizon, expert.channels, dtype=torch.bool, device=model.device)
    mask[..., :count] = True
    with torch.inference_mode():
        context = model.encode(
            tokens["input_ids"].to(model.device),
            tokens["attention_mask"].to(model.device),
            pixels["image_grid_thw"],
            pixel_values=pixels["pixel_values"].to(model.device),
            position_ids=tokens["position_ids"].to(model.device),
        )
        sample = model.sample(context, mask, generator=generator)
    return sample[0, :, :count].float().cpu().numpy()
