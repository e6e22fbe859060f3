# SPDX-License-Identifier: Apache-2.0
"""Images and text -> what the model reads. The same numpy code serves training and inference."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from qwen_vla_ros.model.positions import mrope_positions
from qwen_vla_ros.model.prepare import (
    CONFIG_NAME,
    Preparation,
    ProcessorConfig,
    ProcessorError,
    read_config,
    tokenizer_file,
)


class QwenVLAProcessor(Preparation):
    """Tokenizes prompts, resizes and patchifies images.

    Args:
        tokenizer: Knows the image token and a start and an end tag for every view.
        config: See ProcessorConfig.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, config: ProcessorConfig) -> None:
        self.tokenizer = tokenizer
        self.pad_id = tokenizer.pad_token_id
        super().__init__({}, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"], config)

    @property
    def vocabulary(self) -> Mapping[str, int]:
        # Tokens may be added after this was made.
        return self.tokenizer.get_vocab()

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
        patches = [self.patchify(self.resize(view, image)) for view, image in images]
        grid = [
            (1, *(side // self.config.patch_size for side in self.config.size_of(view))) for view, _ in images
        ]
        pixels = np.concatenate(patches, dtype=np.float32)
        factor, offset = self.scaling
        pixels *= factor
        pixels += offset
        return {"pixel_values": torch.from_numpy(pixels), "image_grid_thw": torch.tensor(grid)}

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
        folder = Path(folder)
        config = read_config(folder)
        tokenizer = read_tokenizer(folder)
        try:
            return cls(tokenizer, config)
        except ProcessorError as error:
            raise ProcessorError(f"{folder / CONFIG_NAME}: {error}") from error


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint folder. Raises ProcessorError, which names the file."""
    path = tokenizer_file(folder)
    try:
        return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception, and KeyError
        raise ProcessorError(f"{path}: not a tokenizer: {type(error).__name__}: {error}") from error


__all__ = ["CONFIG_NAME", "ProcessorConfig", "ProcessorError", "QwenVLAProcessor", "read_tokenizer"]
