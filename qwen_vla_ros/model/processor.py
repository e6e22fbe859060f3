# SPDX-License-Identifier: Apache-2.0
"""Images and text -> what the model reads. The same numpy code serves training and inference."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from qwen_vla_ros.model.positions import mrope_positions

CONFIG_NAME = "processor_config.json"


class ProcessorError(ValueError):
    """An image or a prompt that the processor cannot turn into model input."""


@dataclass(frozen=True)
class ProcessorConfig:
    """How images and text become model input.

    Attributes:
        image_size: (height, width) that every view is resized to [px]; multiples of patch_size * merge_size.
        view_image_size: Exceptions per view [px].
        patch_size: Side of a patch [px].
        merge_size: Patches per side that become one token.
        mean, std: Of pixel values in [0, 1], all channels.
        image_token: Placeholder of a visual token.
        view_tags: Start and end tag of a view, with {view} for its name.
        chat: Wrap the prompt in the backbone's chat turn with an empty think block.
    """

    image_size: tuple[int, int] = (224, 224)
    view_image_size: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    patch_size: int = 16
    merge_size: int = 2
    mean: float = 0.5
    std: float = 0.5
    image_token: str = "<|image_pad|>"
    view_tags: tuple[str, str] = ("<|{view}_start|>", "<|{view}_end|>")
    chat: bool = True

    def __post_init__(self) -> None:
        unit = self.patch_size * self.merge_size
        for name, size in {"image_size": self.image_size, **self.view_image_size}.items():
            if len(size) != 2 or any(side <= 0 or side % unit for side in size):
                raise ProcessorError(
                    f"{name}: expected [height, width] in multiples of {unit}, found {list(size)}"
                )

    def size_of(self, view: str) -> tuple[int, int]:
        """(height, width) that a view is resized to [px]."""
        height, width = self.view_image_size.get(view, self.image_size)
        return height, width


class QwenVLAProcessor:
    """Tokenizes prompts, resizes and patchifies images.

    Args:
        tokenizer: Knows the image token and a start and an end tag for every view.
        config: See ProcessorConfig.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, config: ProcessorConfig) -> None:
        self.tokenizer, self.config = tokenizer, config
        self.pad_id = tokenizer.pad_token_id
        self.image_id = self._special(config.image_token, "image_token")

    def _special(self, token: str, what: str) -> int:
        index = self.tokenizer.get_vocab().get(token)
        if index is None:
            raise ProcessorError(f"{what}: the tokenizer has no token {token!r}")
        return index

    @property
    def views(self) -> list[str]:
        """Views whose tags the tokenizer has."""
        vocabulary = self.tokenizer.get_vocab()
        before, after = self.config.view_tags[0].split("{view}")
        names = [
            t[len(before) : -len(after)] for t in vocabulary if t.startswith(before) and t.endswith(after)
        ]
        end = self.config.view_tags[1]
        return sorted(name for name in names if name != "vision" and end.format(view=name) in vocabulary)

    def _tag(self, view: str, end: int) -> str:
        tag = self.config.view_tags[end].format(view=view)
        if tag not in self.tokenizer.get_vocab():
            raise ProcessorError(
                f"view {view!r}: the tokenizer has no tag {tag!r}; this checkpoint knows the views "
                f"{', '.join(self.views) or 'none'}"
            )
        return tag

    def merged_grid(self, view: str) -> tuple[int, int]:
        """(rows, columns) of visual tokens of a view."""
        unit = self.config.patch_size * self.config.merge_size
        height, width = self.config.size_of(view)
        return height // unit, width // unit

    def token_ids(self, text: str, views: Sequence[str]) -> list[int]:
        """Token ids of one prompt.

        Args:
            text: As embodiment.render_prompt gives it: one image token per view, between the view's tags.
            views: Names of the views, in the order of the image tokens.

        Raises:
            ProcessorError: A view without a tag in the tokenizer, or image tokens that do not fit the views.
        """
        image = self.config.image_token
        parts = text.split(image)
        if len(parts) - 1 != len(views):
            raise ProcessorError(
                f"text: {len(parts) - 1} image tokens {image!r}, expected one for each of {list(views)}"
            )
        for view, before, after in zip(views, parts[:-1], parts[1:], strict=True):
            start, end = self._tag(view, 0), self._tag(view, 1)
            if start not in before or end not in after:
                raise ProcessorError(f"text: the image of view {view!r} is not between {start!r} and {end!r}")
        prompt = parts[0]
        for view, after in zip(views, parts[1:], strict=True):
            rows, columns = self.merged_grid(view)
            prompt += image * (rows * columns) + after
        if self.config.chat:
            prompt = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        return self.tokenizer(prompt, add_special_tokens=False)["input_ids"]

    def prompts(self, prompts: Sequence[tuple[str, Sequence[str]]]) -> dict[str, Tensor]:
        """Tokenize (text, views) pairs.

        Returns:
            input_ids (B, L), attention_mask (B, L), position_ids (3, B, L); padded on the right.
        """
        return self.collate([self.token_ids(text, views) for text, views in prompts], [v for _, v in prompts])

    def collate(self, ids: Sequence[Sequence[int]], views: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """Batch token ids from `token_ids`. Returns as `prompts`."""
        length = max(map(len, ids))
        input_ids = np.full((len(ids), length), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(ids), length), dtype=np.int64)
        for row, tokens in enumerate(ids):
            input_ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        grids = [[self.merged_grid(view) for view in row] for row in views]
        positions = mrope_positions((input_ids == self.image_id) & (mask == 1), mask == 1, grids)
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(mask),
            "position_ids": torch.from_numpy(positions),
        }

    def images(self, images: Sequence[tuple[str, NDArray[np.uint8]]]) -> dict[str, Tensor]:
        """Resize, normalise and patchify (view, image) pairs.

        Args:
            images: Each image RGB uint8 (h, w, 3), any size.

        Returns:
            pixel_values (patches, 3 * patch_size**2) float32, one frame per image, in the patch order of
            Qwen's processor; image_grid_thw (N, 3) int64.
        """
        patches = [self._patchify(self.resize(view, image)) for view, image in images]
        grid = [
            (1, *(side // self.config.patch_size for side in self.config.size_of(view))) for view, _ in images
        ]
        pixels = np.concatenate(patches, dtype=np.float32)
        # (v / 255 - mean) / std
        pixels *= 1 / (255 * self.config.std)
        pixels -= self.config.mean / self.config.std
        return {"pixel_values": torch.from_numpy(pixels), "image_grid_thw": torch.tensor(grid)}

    def resize(self, view: str, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Stretch an image to the size of its view."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ProcessorError(
                f"view {view!r}: expected uint8 (h, w, 3), found {image.dtype} {image.shape}"
            )
        height, width = self.config.size_of(view)
        if image.shape[:2] == (height, width):
            return image
        import cv2  # not needed by cameras of the right size

        def resized(image: NDArray[np.uint8], height: int, width: int, kind: int) -> NDArray[np.uint8]:
            return np.asarray(cv2.resize(image, (width, height), interpolation=kind), dtype=np.uint8)

        if image.shape[0] < height or image.shape[1] < width:
            return resized(image, height, width, cv2.INTER_LINEAR)
        # The mean over the area, by steps for which OpenCV has fast code: a quarter of INTER_AREA's time.
        while image.shape[0] >= 2 * height and image.shape[1] >= 2 * width:
            image = resized(image, image.shape[0] // 2, image.shape[1] // 2, cv2.INTER_AREA)
        image = resized(image, 2 * height, 2 * width, cv2.INTER_LINEAR)
        return resized(image, height, width, cv2.INTER_AREA)

    def _patchify(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        patch, merge = self.config.patch_size, self.config.merge_size
        rows, columns = image.shape[0] // (patch * merge), image.shape[1] // (patch * merge)
        blocks = image.reshape(rows, merge, patch, columns, merge, patch, 3)
        return blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3 * patch * patch)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizer files and processor_config.json."""
        folder = Path(folder)
        self.tokenizer.save_pretrained(folder)
        content = asdict(self.config)
        content["view_image_size"] = {k: list(v) for k, v in self.config.view_image_size.items()}
        (folder / CONFIG_NAME).write_text(json.dumps(content, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> QwenVLAProcessor:
        """Read what `save_pretrained` wrote.

        Raises:
            ProcessorError: Names the file and what is wrong with it.
        """
        path = Path(folder) / CONFIG_NAME
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ProcessorError(f"{path}: cannot read the processor configuration: {error}") from error
        known = {f.name for f in fields(ProcessorConfig)}
        if not isinstance(content, dict) or (unknown := sorted(set(content) - known)):
            raise ProcessorError(
                f"{path}: unknown fields {unknown if isinstance(content, dict) else content!r}"
            )
        for name in ("image_size", "view_tags"):
            if name in content:
                content[name] = tuple(content[name])
        content["view_image_size"] = {k: tuple(v) for k, v in content.get("view_image_size", {}).items()}
        if not (Path(folder) / "tokenizer.json").is_file():
            raise ProcessorError(
                f"{Path(folder) / 'tokenizer.json'}: no such file; the checkpoint is incomplete"
            )
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # the tokenizers library raises bare Exception, and KeyError
            raise ProcessorError(
                f"{Path(folder) / 'tokenizer.json'}: not a tokenizer: {type(error).__name__}: {error}"
            ) from error
        try:
            return cls(tokenizer, ProcessorConfig(**content))
        except (ProcessorError, TypeError) as error:
            raise ProcessorError(f"{path}: {error}") from error
