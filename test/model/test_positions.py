# SPDX-License-Identifier: Apache-2.0
"""mRoPE indices are those of transformers' Qwen3.5."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qwen_vla_ros.model.positions import mrope_positions

IMAGE = 9


def layout(*parts: int | tuple[int, int]) -> tuple[list[int], list[tuple[int, int]]]:
    """Numbers are text tokens, pairs are images of (rows, columns) merged tokens."""
    ids: list[int] = []
    grids = []
    for part in parts:
        if isinstance(part, tuple):
            grids.append(part)
            ids += [IMAGE] * (part[0] * part[1])
        else:
            ids += [1] * part
    return ids, grids


@pytest.mark.parametrize(
    "rows",
    [
        [layout(3, (2, 2), 4)],
        [layout(1, (4, 4), 1, (4, 4), 7), layout(5)],
        [layout((2, 5), 3), layout(2, (5, 2), 9), layout((1, 1), 1, (3, 3), 1)],
    ],
)
def test_equal_to_stock(tiny, rows) -> None:
    model, _ = tiny
    length = max(len(ids) for ids, _ in rows)
    ids = np.array([[*row, *[0] * (length - len(row))] for row, _ in rows])
    mask = np.array([[1] * len(row) + [0] * (length - len(row)) for row, _ in rows])
    grid = [(1, 2 * h, 2 * w) for _, grids in rows for h, w in grids]
    expected, _ = model.backbone.model.get_rope_index(
        torch.from_numpy(ids),
        torch.from_numpy((ids == IMAGE).astype(np.int64)),
        image_grid_thw=torch.tensor(grid) if grid else None,
        attention_mask=torch.from_numpy(mask),
    )
    found = mrope_positions(ids == IMAGE, mask == 1, [grids for _, grids in rows])
    np.testing.assert_array_equal(found, expected.numpy())


def test_text_goes_on_after_the_longer_side_of_an_image() -> None:
    ids, grids = layout(2, (2, 3), 2)
    row = np.array([ids])
    positions = mrope_positions(row == IMAGE, row > 0, [grids])[:, 0]
    assert positions[0].tolist() == [0, 1, 2, 2, 2, 2, 2, 2, 5, 6]
    assert positions[1].tolist() == [0, 1, 2, 2, 2, 3, 3, 3, 5, 6]
    assert positions[2].tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("grids", [[(2, 2)], [(4, 4), (2, 2)], [(5, 5)], []])
def test_tokens_that_do_not_fit_the_images_are_an_error(grids) -> None:
    row = np.array([layout(1, (4, 4), 1)[0]])
    with pytest.raises(ValueError, match="row 0: "):
        mrope_positions(row == IMAGE, row > 0, [grids])
