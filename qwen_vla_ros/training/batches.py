# SPDX-License-Identifier: Apache-2.0
"""Demonstrations in memory, and the batches drawn from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qwen_vla_ros.embodiment import (
    Embodiment,
    Statistics,
    load_embodiment,
    normalise,
    render_prompt,
    resolve_statistics,
)
from qwen_vla_ros.model.processor import QwenVLAProcessor
from qwen_vla_ros.training import demonstrations
from qwen_vla_ros.training.configuration import AugmentationConfiguration, NormalisationConfiguration
from qwen_vla_ros.training.demonstrations import HANDS
from qwen_vla_ros.training.errors import TrainingError
from qwen_vla_ros.training.losses import Grounding

# How often the first prompt about a picture is the goal that the robot was after: near the end of a grasp
# the other goals say little about it.
_IN_FOCUS = 0.5
# Least standard deviation by which a joint's positions are divided [rad or m].
_LEAST_SPREAD = 0.02


@dataclass
class Batch:
    """n pictures of one body and b prompts about them.

    Attributes:
        pixel_values, image_grid_thw: As QwenVLAProcessor.images gives them, n * v pictures.
        prompts: input_ids, attention_mask, position_ids, as QwenVLAProcessor.collate gives them; those
            of a picture follow one another.
        actions: Normalised, zero outside the mask. Shape (b, H, K).
        mask: Shape (b, H, K).
        grounding: See Grounding.
    """

    pixel_values: Tensor
    image_grid_thw: Tensor
    prompts: dict[str, Tensor]
    actions: Tensor
    mask: Tensor
    grounding: Grounding


@dataclass
class TextBatch:
    """b prompts of one body without pictures; fields as in Batch."""

    prompts: dict[str, Tensor]
    actions: Tensor
    mask: Tensor


class BodyDemonstrations:
    """The demonstrations of one embodiment.

    Attributes:
        hands: How many the body has.

    Args:
        folders: Made by demonstrations.make; normalisation is that of the first.
        processor: Of the model to be trained.
        shape: (H, K) of the action tensor.
        normalisation: Which quantiles to use.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        processor: QwenVLAProcessor,
        shape: tuple[int, int],
        normalisation: NormalisationConfiguration,
    ) -> None:
        self._folders = folders
        self.metas = [demonstrations.read_meta(each) for each in folders]
        self.meta, folder = self.metas[0], folders[0]
        self.embodiment = load_embodiment(self.meta.embodiment)
        for each, meta in zip(folders, self.metas, strict=True):
            _compare(each, meta, self.embodiment)
            _compare_lists(each, meta, self.meta)
        quantities = demonstrations.read_statistics(folder, self.meta)
        found = demonstrations.statistics(
            quantities, normalisation.lower, normalisation.upper, normalisation.floor
        )
        # A group's own normalisation counts, as it will for the policy.
        self.statistics: Statistics = resolve_statistics(self.embodiment, {self.embodiment.name: found})
        self._processor = processor
        self._shape = shape
        self._mask = torch.from_numpy(self.embodiment.layout.mask(*shape))
        self._tokens: dict[str, list[int]] = {}
        first = demonstrations.read_shard(folder, self.meta, 0, ("classes",))["classes"]
        self.hands = self._find_hands(first).shape[1]
        self._arrays: dict[str, np.ndarray] = {}

    def read(self) -> None:
        """Read the pictures, gigabytes; the first `draw` does it otherwise.

        Raises:
            TrainingError: A shard is missing or damaged, or a picture has no goal.
        """
        if self._arrays:
            return
        arrays = demonstrations.join([demonstrations.read_all(each)[1] for each in self._folders])
        state = arrays.pop("state")
        # A joint that hardly moves is not blown up.
        spread = np.maximum(state.std(axis=0), _LEAST_SPREAD)
        self._joints = ((state - state.mean(axis=0)) / spread).astype(np.float32)
        self._hands = self._find_hands(arrays["classes"])
        self._goals = (arrays["tasks"] >= 0).sum(axis=1)
        if not self._goals.all():
            names = ", ".join(str(each) for each in self._folders)
            raise TrainingError(f"{names}: picture {int(self._goals.argmin())} has no goal")
        self._arrays = arrays

    def _find_hands(self, classes: np.ndarray) -> np.ndarray:
        """Where among the objects (pictures, o) each hand is. Shape (pictures, hands)."""
        numbers = [self.meta.classes.index(name) for name in HANDS.values() if name in self.meta.classes]
        there = classes[:, None] == np.array(numbers, dtype=np.int8)[:, None]
        return there.argmax(axis=2)[:, there.any(axis=(0, 2))]

    def __len__(self) -> int:
        return sum(meta.samples for meta in self.metas)

    def draw(
        self, rng: np.random.Generator, images: int, prompts: int, augment: AugmentationConfiguration
    ) -> Batch:
        """`images` pictures at random, each with `prompts` of its goals, some twice if it has fewer.

        Every other time the goal in focus is the first of them.
        """
        self.read()
        rows = rng.choice(len(self), size=images, replace=images > len(self))
        goals = np.concatenate([self._some(rng, row, prompts) for row in rows])
        return self.batch(rows, goals, prompts, rng, augment)

    def batch(
        self,
        rows: np.ndarray,
        goals: np.ndarray,
        prompts: int,
        rng: np.random.Generator,
        augment: AugmentationConfiguration,
    ) -> Batch:
        """The pictures `rows` (n,), with the goals (n * prompts,) of each."""
        self.read()
        data, views = self._arrays, self.meta.views
        of = np.repeat(rows, prompts)
        pictures = self._processor.images(
            [(view, data["images"][row, i]) for row in rows for i, view in enumerate(views)]
        )
        ids = [self._ids(str(text)) for text in data["instructions"][of, goals]]
        target = data["targets"][of, goals]
        return Batch(
            pixel_values=_augmented(pictures["pixel_values"], len(rows), rng, augment),
            image_grid_thw=pictures["image_grid_thw"],
            prompts=self._processor.collate(ids, [views] * len(of)),
            actions=self._actions(of, goals),
            mask=self._mask.expand(len(of), -1, -1),
            grounding=Grounding(
                classes=torch.from_numpy(data["classes"][rows]),
                pixels=torch.from_numpy(data["pixels"][rows]),
                visible=torch.from_numpy(data["visible"][rows]),
                named_pixel=torch.from_numpy(data["pixels"][of, 0, target]),
                named_visible=torch.from_numpy(data["visible"][of, 0, target] & (target >= 0)),
                named_place=torch.from_numpy(data["places"][of, target]),
                named_offset=torch.from_numpy(self._offsets(of, target)),
                joints=torch.from_numpy(self._joints[rows]),
            ),
        )

    def _offsets(self, rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """From each hand to the target, NaN without one. Shape (b, hands, 3) [m]."""
        places = self._arrays["places"]
        found = places[rows, targets][:, None] - places[rows[:, None], self._hands[rows]]
        found[targets < 0] = np.nan
        return found

    def draw_text(self, rng: np.random.Generator, count: int) -> TextBatch:
        """`count` goals at random, without their pictures."""
        self.read()
        rows = rng.choice(len(self), size=count, replace=count > len(self))
        goals = np.array([self._some(rng, row, 1)[0] for row in rows])
        ids = [self._text_ids(str(text)) for text in self._arrays["instructions"][rows, goals]]
        return TextBatch(
            prompts=self._processor.collate(ids, [()] * count),
            actions=self._actions(rows, goals),
            mask=self._mask.expand(count, -1, -1),
        )

    def _actions(self, rows: np.ndarray, goals: np.ndarray) -> Tensor:
        """Normalised chunks, zero outside the mask. Shape (b, H, K)."""
        actions = np.zeros((len(rows), *self._shape), dtype=np.float32)
        chunk = normalise(self._arrays["actions"][rows, goals], self.statistics)
        actions[:, : chunk.shape[1], : chunk.shape[2]] = chunk
        return torch.from_numpy(actions)

    def _text_ids(self, instruction: str) -> list[int]:
        key = f"\n{instruction}"  # no instruction holds a line break
        if key not in self._tokens:
            text = render_prompt(self.embodiment, instruction).text
            sentence = text[text.rindex("|>") + 2 :]
            self._tokens[key] = self._processor.token_ids(sentence, ())
        return self._tokens[key]

    def _some(self, rng: np.random.Generator, row: int, prompts: int) -> np.ndarray:
        order = rng.permutation(int(self._goals[row]))
        if rng.random() < _IN_FOCUS:
            focus = int(self._arrays["focus"][row])
            order = np.array([focus, *order[order != focus]])
        return np.resize(order, prompts)

    def _ids(self, instruction: str) -> list[int]:
        if instruction not in self._tokens:
            prompt = render_prompt(self.embodiment, instruction)
            self._tokens[instruction] = self._processor.token_ids(prompt.text, prompt.views)
        return self._tokens[instruction]


def load_bodies(
    data: Path,
    names: Iterable[str],
    processor: QwenVLAProcessor,
    shape: tuple[int, int],
    normalisation: NormalisationConfiguration,
) -> dict[str, BodyDemonstrations]:
    """Demonstrations of the embodiments `names` in `data`, see demonstrations.folders_of.

    Raises TrainingError when a folder named after a body is missing or holds another one's.
    """
    bodies = {}
    for name in names:
        parts = demonstrations.folders_of(data, name)
        body = BodyDemonstrations(parts, processor, shape, normalisation)
        for folder, meta in zip(parts, body.metas, strict=True):
            if meta.embodiment != name:
                raise TrainingError(f"{folder}: demonstrations of {meta.embodiment!r}, expected {name!r}")
        bodies[name] = body
    return bodies


def _compare_lists(folder: Path, meta: demonstrations.Meta, first: demonstrations.Meta) -> None:
    """What numbers in the arrays stand for must be the same in all folders of a body."""
    for name in ("joints", "classes", "image_size"):
        found, expected = getattr(meta, name), getattr(first, name)
        if found != expected:
            raise TrainingError(f"{folder / 'meta.json'}: {name} is {found!r}, expected {expected!r}")


def _compare(folder: Path, meta: demonstrations.Meta, embodiment: Embodiment) -> None:
    expected = {
        "channels": list(embodiment.layout.names),
        "horizon": embodiment.horizon,
        "step": 1.0 / embodiment.control_rate,
        "views": [camera.view for camera in embodiment.cameras],
    }
    for name, value in expected.items():
        if getattr(meta, name) != value:
            raise TrainingError(
                f"{folder / 'meta.json'}: {name} is {getattr(meta, name)!r}, "
                f"embodiment {embodiment.name!r} has {value!r}"
            )


def _augmented(
    pixels: Tensor, pictures: int, rng: np.random.Generator, augment: AugmentationConfiguration
) -> Tensor:
    """Change brightness, contrast and colour of each picture. pixels (patches, 3 * p * p), in [-1, 1]."""

    def uniform(*shape: int) -> np.ndarray:
        return rng.uniform(-1.0, 1.0, shape)

    gain = 1.0 + augment.gain * uniform(pictures, 1) + augment.colour * uniform(pictures, 3)
    offset = augment.offset * uniform(pictures, 1)
    shaped = pixels.view(pictures, -1, 3, pixels.shape[1] // 3)
    factor = torch.from_numpy(gain[:, None, :, None].astype(np.float32))
    shift = torch.from_numpy(offset[:, None, :, None].astype(np.float32))
    changed = shaped * factor + shift
    if augment.noise:
        changed += augment.noise * torch.from_numpy(rng.standard_normal(changed.shape, dtype=np.float32))
    return changed.clamp_(-1.0, 1.0).view_as(pixels)
