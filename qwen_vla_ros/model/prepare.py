# SPDX-License-Identifier: Apache-2.0
"""Text to token ids and images to patches, in numpy: for the processor, and for policies without torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIG_NAME = "processor_config.json"
TOKENIZER_NAME = "tokenizer.json"
# Of Qwen's own tags, which look like those of views.
QWEN_TAGS = ("vision", "im", "box", "quad", "object_ref")


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
        for name in ("patch_size", "merge_size", "mean", "std"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ProcessorError(f"{name}: found {value!r}, expected one number")
            if name != "mean" and not value > 0:
                raise ProcessorError(f"{name}: found {value!r}, expected a number above 0")
        if len(self.view_tags) != 2 or not all("{view}" in tag for tag in self.view_tags):
            raise ProcessorError(
                f"view_tags: found {list(self.view_tags)}, expected a start and an end tag with {{view}}"
            )
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


class Preparation:
    """Expands prompts to token ids, resizes and patchifies images.

    Args:
        vocabulary: Token ids by token; holds the image token and a start and an end tag for every view.
        encode: Text to token ids, without special tokens of its own.
        config: See ProcessorConfig.
    """

    def __init__(
        self, vocabulary: Mapping[str, int], encode: Callable[[str], list[int]], config: ProcessorConfig
    ) -> None:
        self._vocabulary, self._encode, self.config = vocabulary, encode, config
        # Asking a tokenizer for its vocabulary takes longer than tokenizing a prompt.
        self._tags: set[str] = set()
        self.image_id = self._special(config.image_token, "image_token")

    @classmethod
    def from_folder(cls, folder: str | Path) -> Preparation:
        """Read processor_config.json and tokenizer.json. Raises ProcessorError."""
        from tokenizers import Tokenizer

        folder = Path(folder)
        config = read_config(folder)
        try:
            tokenizer = Tokenizer.from_file(str(tokenizer_file(folder)))
        except ProcessorError:
            raise
        except Exception as error:  # the tokenizers library raises bare Exception
            raise ProcessorError(f"{folder / TOKENIZER_NAME}: not a tokenizer: {error}") from error

        def encode(text: str) -> list[int]:
            return tokenizer.encode(text, add_special_tokens=False).ids

        try:
            return cls(tokenizer.get_vocab(with_added_tokens=True), encode, config)
        except ProcessorError as error:
            raise ProcessorError(f"{folder / CONFIG_NAME}: {error}") from error

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Token ids by token."""
        return self._vocabulary

    def _special(self, token: str, what: str) -> int:
        index = self.vocabulary.get(token)
        if index is None:
            raise ProcessorError(f"{what}: the tokenizer has no token {token!r}")
        return index

    @property
    def views(self) -> list[str]:
        """Views whose tags the tokenizer has."""
        vocabulary = self.vocabulary
        before, after = self.config.view_tags[0].split("{view}")
        names = [
            t[len(before) : -len(after)] for t in vocabulary if t.startswith(before) and t.endswith(after)
        ]
        end = self.config.view_tags[1]
        return sorted(n for n in names if n not in QWEN_TAGS and end.format(view=n) in vocabulary)

    def _tag(self, view: str, end: int) -> str:
        tag = self.config.view_tags[end].format(view=view)
        if tag not in self._tags:
            if tag not in self.vocabulary:
                raise ProcessorError(
                    f"view {view!r}: the tokenizer has no tag {tag!r}; this checkpoint knows the views "
                    f"{', '.join(self.views) or 'none'}"
                )
            self._tags.add(tag)
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
        return self._encode(prompt)

    def frames(self, images: Sequence[tuple[str, NDArray[np.uint8]]]) -> NDArray[np.uint8]:
        """(view, image) pairs at the size of their views, one after another. Shape (bytes,)."""
        return np.concatenate([self.resize(view, image).reshape(-1) for view, image in images])

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

    def patchify(self, image: Any) -> Any:
        """Patches of images that have their view's size, in the order of Qwen's processor.

        image: An array or a tensor, shape (..., h, w, 3). Returns one of shape (patches, 3 * patch_size**2).
        """
        patch, merge = self.config.patch_size, self.config.merge_size
        rows, columns = image.shape[-3] // (patch * merge), image.shape[-2] // (patch * merge)
        blocks = image.reshape(-1, rows, merge, patch, columns, merge, patch, 3)
        turn = blocks.permute if hasattr(blocks, "permute") else blocks.transpose
        return turn(0, 1, 4, 2, 5, 7, 3, 6).reshape(-1, 3 * patch * patch)

    @property
    def scaling(self) -> tuple[float, float]:
        """Factor and offset from pixel values of 0 to 255 to what the model reads: (v / 255 - mean) / std."""
        return 1 / (255 * self.config.std), -self.config.mean / self.config.std


def tokenizer_file(folder: Path) -> Path:
    """Path of tokenizer.json. Raises ProcessorError where there is none."""
    path = folder / TOKENIZER_NAME
    if not path.is_file():
        raise ProcessorError(f"{path}: no such file; the checkpoint is incomplete")
    return path


def read_config(folder: str | Path) -> ProcessorConfig:
    """Read processor_config.json. Raises ProcessorError."""
    path = Path(folder) / CONFIG_NAME
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ProcessorError(f"{path}: cannot read the processor configuration: {error}") from error
    known = {f.name for f in fields(ProcessorConfig)}
    if not isinstance(content, dict) or (unknown := sorted(set(content) - known)):
        raise ProcessorError(f"{path}: unknown fields {unknown if isinstance(content, dict) else content!r}")
    try:
        for name in ("image_size", "view_tags"):
            if name in content:
                content[name] = tuple(content[name])
        content["view_image_size"] = {k: tuple(v) for k, v in content.get("view_image_size", {}).items()}
        return ProcessorConfig(**content)
    except (AttributeError, ProcessorError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ProcessorError(f"{path}: {error}") from error
