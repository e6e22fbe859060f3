# SPDX-License-Identifier: Apache-2.0
"""Demonstrations in memory, and the batches drawn from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qwen_vla_ros.embodiment import (
    Embodiment,
    EmbodimentError,
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
from qwen_vla_ros.training.losses import Grounding, motion
from qwen_vla_ros.training.shared_prefix import Trunk, common_trunk

# How often the first prompt about a picture is the goal that the robot was after: near the end of a grasp
# the other goals say little about it.
_IN_FOCUS = 0.5
# Least standard deviation by which a joint's positions are divided [rad or m].
_LEAST_SPREAD = 0.02


@dataclass
class Batch:
    """n pictures of one body and b prompts about them.

    Attributes:
        pixel_values: As QwenVLAProcessor.images gives them, n * v pictures of one size.
        grid: Rows and columns of patches in each.
        prompts: input_ids, attention_mask, position_ids, as QwenVLAProcessor.collate gives them; those
            of a picture follow one another.
        trunk: Of all prompts of the body.
        actions: Normalised, zero outside the mask. Shape (b, H, K).
        mask: Shape (b, H, K).
        motion: See losses.motion. Shape (b,).
        grounding: See Grounding.
    """

    pixel_values: Tensor
    grid: tuple[int, int]
    prompts: dict[str, Tensor]
    trunk: Trunk
    actions: Tensor
    mask: Tensor
    motion: Tensor
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
        known: Statistics of a checkpoint; those of a body that it knows count in place of its quantiles.

    Raises:
        TrainingError: A folder cannot be read, or it or `known` does not fit the embodiment.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        processor: QwenVLAProcessor,
        shape: tuple[int, int],
        normalisation: NormalisationConfiguration,
        known: Mapping[str, Any],
    ) -> None:
        self._folders = folders
        self.metas = [demonstrations.read_meta(each) for each in folders]
        self.meta, folder = self.metas[0], folders[0]
        self.embodiment = load_embodiment(self.meta.embodiment)
        sizes = {processor.config.size_of(view) for view in self.meta.views}
        if len(sizes) > 1:
            raise TrainingError(f"{folder}: views of several sizes, {sorted(sizes)}: expected one size")
        (self._size,) = sizes
        for each, meta in zip(folders, self.metas, strict=True):
            _compare(each, meta, self.embodiment)
            _compare_lists(each, meta, self.meta)
        quantities = demonstrations.read_statistics(folder, self.meta)
        found = demonstrations.statistics(
            quantities, normalisation.lower, normalisation.upper, normalisation.floor
        )
        # A group's own normalisation counts, as it will for the policy.
        try:
            self.statistics: Statistics = resolve_statistics(
                self.embodiment, {self.embodiment.name: found, **known}
            )
        except EmbodimentError as error:
            raise TrainingError(
                f"statistics of the weights to begin with do not fit {folder}: {error}"
            ) from error
        self._processor = processor
        patch = processor.config.patch_size
        self._grid = (self._size[0] // patch, self._size[1] // patch)
        self._shape = shape
        first = demonstrations.read_shard(folder, self.meta, 0, ("classes",))["classes"]
        self.hands = self._find_hands(first).shape[1]
        self._device = torch.device("cpu")
        self._tensors: dict[str, Tensor] = {}

    def read(self, device: torch.device | None = None) -> None:
        """Read the pictures, gigabytes, into the memory of a device; the first `draw` does it otherwise.

        Raises:
            TrainingError: A shard is missing or damaged, or a picture has no goal.
        """
        if self._tensors:
            return
        if device is not None:
            self._device = device
        patches = torch.empty((len(self), *self._patch_shape()), dtype=torch.uint8, device=self._device)
        parts, start = [], 0
        for folder, meta in zip(self._folders, self.metas, strict=True):
            for shard in range(meta.shards):
                parts.append(demonstrations.read_shard(folder, meta, shard))
                images = parts[-1].pop("images")
                patches[start : start + len(images)] = self._patches(images)
                start += len(images)
        arrays = demonstrations.join(parts)
        goals = (arrays["tasks"] >= 0).sum(axis=1)
        if not goals.all():
            names = ", ".join(str(each) for each in self._folders)
            raise TrainingError(f"{names}: picture {int(goals.argmin())} has no goal")
        self._goals, self._focus = goals, arrays["focus"]
        texts: dict[str, int] = {}
        known = arrays["tasks"] >= 0
        sentences = np.zeros(known.shape, dtype=np.int64)
        sentences[known] = [texts.setdefault(t, len(texts)) for t in arrays["instructions"][known].tolist()]
        state = arrays["state"]
        # A joint that hardly moves is not blown up.
        spread = np.maximum(state.std(axis=0), _LEAST_SPREAD)
        tensors = {
            "sentences": sentences,
            "actions": normalise(arrays["actions"], self.statistics).astype(np.float32),
            "joints": ((state - state.mean(axis=0)) / spread).astype(np.float32),
            "hands": self._find_hands(arrays["classes"]),
            **{name: arrays[name] for name in ("targets", "classes", "pixels", "visible", "places")},
        }
        self._mask = torch.from_numpy(self.embodiment.layout.mask(*self._shape)).to(self._device)
        prompts = self._table([self._prompt_ids(text) for text in texts], self.meta.views)
        self._prompts = prompts
        self._trunk = common_trunk(prompts["input_ids"], prompts["attention_mask"], self._processor.image_id)
        self._texts = list(texts)
        self._sentences: dict[str, Tensor] = {}
        self._tensors = {name: torch.from_numpy(array).to(self._device) for name, array in tensors.items()}
        self._tensors["patches"] = patches
        self._tensors["motion"] = motion(self._tensors["actions"])

    def _patch_shape(self) -> tuple[int, int]:
        """Of a picture: patches of all views, and values of one."""
        rows, columns = self._grid
        return len(self.meta.views) * rows * columns, 3 * self._processor.config.patch_size**2

    def _patches(self, images: np.ndarray) -> Tensor:
        """Pictures uint8 (n, v, h, w, 3) as the model's patches. Shape (n, patches, 3 * p * p)."""
        if images.shape[2:4] != self._size:
            resized = [
                self._processor.resize(v, i)
                for each in images
                for v, i in zip(self.meta.views, each, strict=True)
            ]
            images = np.stack(resized)
        on_device = torch.from_numpy(images).to(self._device).view(-1, *self._size, 3)
        return self._processor.patchify(on_device).view(-1, *self._patch_shape())

    def _table(self, ids: Sequence[list[int]], views: Sequence[str]) -> dict[str, Tensor]:
        """Prompts as QwenVLAProcessor.collate gives them, on the device."""
        collated = self._processor.collate(ids, [views] * len(ids))
        return {name: tensor.to(self._device) for name, tensor in collated.items()}

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
        return self.batch(rows, self._some(rng, rows, prompts).ravel(), prompts, rng, augment)

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
        data = self._tensors
        row = torch.from_numpy(rows).to(self._device)
        of, goal = row.repeat_interleave(prompts), torch.from_numpy(goals).to(self._device)
        target, picture = data["targets"][of, goal].long(), of[:, None]
        factor, offset = self._processor.scaling
        pixels = data["patches"][row] * factor + offset
        return Batch(
            pixel_values=_augmented(pixels, rng, augment).flatten(0, 1),
            grid=self._grid,
            prompts=_rows(self._prompts, data["sentences"][of, goal]),
            trunk=self._trunk,
            actions=self._actions(of, goal),
            mask=self._mask.expand(len(of), -1, -1),
            motion=data["motion"][of, goal],
            grounding=Grounding(
                classes=data["classes"][row],
                pixels=data["pixels"][row],
                visible=data["visible"][row],
                named_pixel=data["pixels"][picture, 0, target],
                named_visible=data["visible"][picture, 0, target] & (target >= 0),
                named_place=data["places"][picture, target],
                named_offset=self._offsets(picture, target),
                joints=data["joints"][row],
            ),
        )

    def _offsets(self, rows: Tensor, targets: Tensor) -> Tensor:
        """From each hand to the targets (b, 2) in pictures (b, 1), NaN without one. (b, 2, hands, 3) [m]."""
        places, hands = self._tensors["places"], self._tensors["hands"]
        found = places[rows, targets][:, :, None] - places[rows, hands[rows[:, 0]]][:, None]
        return torch.where(targets[..., None, None] < 0, torch.nan, found)

    def draw_text(self, rng: np.random.Generator, count: int) -> TextBatch:
        """`count` goals at random, without their pictures."""
        self.read()
        if not self._sentences:
            self._sentences = self._table([self._sentence_ids(text) for text in self._texts], ())
        rows = rng.choice(len(self), size=count, replace=count > len(self))
        goals = torch.from_numpy(self._some(rng, rows, 1)[:, 0]).to(self._device)
        row = torch.from_numpy(rows).to(self._device)
        return TextBatch(
            prompts=_rows(self._sentences, self._tensors["sentences"][row, goals]),
            actions=self._actions(row, goals),
            mask=self._mask.expand(count, -1, -1),
        )

    def _actions(self, rows: Tensor, goals: Tensor) -> Tensor:
        """Normalised chunks, zero outside the mask. Shape (b, H, K)."""
        chunk = self._tensors["actions"][rows, goals]
        actions = chunk.new_zeros(len(rows), *self._shape)
        actions[:, : chunk.shape[1], : chunk.shape[2]] = chunk
        return actions

    def _some(self, rng: np.random.Generator, rows: np.ndarray, count: int) -> np.ndarray:
        """Goals of each picture in random order, every other time the one in focus first; from the beginning
        again where there are fewer. Shape (n, count)."""
        goals = self._goals[rows]
        keys = rng.random((len(rows), int(goals.max())))
        keys[np.arange(keys.shape[1]) >= goals[:, None]] = np.inf
        focused = rng.random(len(rows)) < _IN_FOCUS
        keys[focused, self._focus[rows[focused]]] = -1.0
        order = keys.argsort(axis=1)
        return order[np.arange(len(rows))[:, None], np.arange(count) % goals[:, None]]

    def _prompt_ids(self, instruction: str) -> list[int]:
        prompt = render_prompt(self.embodiment, instruction)
        return self._processor.token_ids(prompt.text, prompt.views)

    def _sentence_ids(self, instruction: str) -> list[int]:
        text = render_prompt(self.embodiment, instruction).text
        return self._processor.token_ids(text[text.rindex("|>") + 2 :], ())


def _rows(table: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Prompts of a table; as wide as it is, so that batches are of one shape."""
    return {
        "input_ids": table["input_ids"][rows],
        "attention_mask": table["attention_mask"][rows],
        "position_ids": table["position_ids"][:, rows],
    }


def load_bodies(
    data: Path,
    names: Iterable[str],
    processor: QwenVLAProcessor,
    shape: tuple[int, int],
    normalisation: NormalisationConfiguration,
    known: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, BodyDemonstrations]:
    """Demonstrations of the embodiments `names` in `data`, see demonstrations.folders_of, and the statistics
    `known` of a checkpoint, see BodyDemonstrations.

    Raises TrainingError when a folder named after a body is missing or holds another one's.
    """
    bodies = {}
    for name in names:
        parts = demonstrations.folders_of(data, name)
        body = BodyDemonstrations(parts, processor, shape, normalisation, known)
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


def _augmented(pixels: Tensor, rng: np.random.Generator, augment: AugmentationConfiguration) -> Tensor:
    """Change brightness, contrast and colour of each picture. pixels (pictures, patches, 3 * p * p)."""
    generator = torch.Generator(pixels.device).manual_seed(int(rng.integers(2**62)))

    def uniform(*shape: int) -> Tensor:
        return 2.0 * torch.rand(*shape, generator=generator, device=pixels.device) - 1.0

    count = len(pixels)
    shaped = pixels.view(count, pixels.shape[1], 3, -1)
    factor = 1.0 + augment.gain * uniform(count, 1, 1, 1) + augment.colour * uniform(count, 1, 3, 1)
    changed = shaped * factor + augment.offset * uniform(count, 1, 1, 1)
    if augment.noise:
        noise = torch.randn(changed.shape, generator=generator, device=pixels.device)
        changed.add_(noise, alpha=augment.noise)
    return changed.clamp_(-1.0, 1.0).view_as(pixels)
