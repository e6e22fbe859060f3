# SPDX-License-Identifier: Apache-2.0
"""mRoPE indices of a prompt of images and text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def mrope_positions(
    is_image: np.ndarray, mask: np.ndarray, grids: Sequence[Sequence[tuple[int, int]]]
) -> np.ndarray:
    """(t, h, w) indices as Qwen3.5 counts them.

    Text counts up on all three axes. An image token keeps t at the image's start and counts rows and columns
    from there; text goes on after the longer side.

    Args:
        is_image: True for image tokens. Shape (B, L).
        mask: True for tokens. Shape (B, L).
        grids: Per row, (rows, columns) of merged tokens of each image, in order.

    Returns:
        int64, shape (3, B, L); 0 for padding.

    Raises:
        ValueError: The image tokens of a row are not as many as its images ask for.
    """
    batch, length = mask.shape
    positions = np.zeros((3, batch, length), dtype=np.int64)
    for row in range(batch):
        tokens = np.flatnonzero(mask[row])
        images = iter(grids[row])
        index, current = 0, 0
        image = is_image[row]
        while index < len(tokens):
            if not image[tokens[index]]:
                positions[:, row, tokens[index]] = current
                index, current = index + 1, current + 1
                continue
            grid = next(images, None)
            if grid is None:
                raise ValueError(f"row {row}: more image tokens than its {len(grids[row])} images have")
            rows, columns = grid
            place = tokens[index : index + rows * columns]
            if len(place) < rows * columns or not image[place].all():
                raise ValueError(
                    f"row {row}: an image of {rows} x {columns} tokens has fewer places in the prompt"
                )
            positions[0, row, place] = current
            positions[1, row, place] = current + np.repeat(np.arange(rows), columns)
            positions[2, row, place] = current + np.tile(np.arange(columns), rows)
            index, current = index + rows * columns, current + max(rows, columns)
        if next(images, None) is not None:
            raise ValueError(f"row {row}: {len(grids[row])} images, fewer places in the prompt")
    return positions
