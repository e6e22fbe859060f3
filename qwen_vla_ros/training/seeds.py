# SPDX-License-Identifier: Apache-2.0
"""Which scenes belong to training and which to evaluation: disjoint ranges of World.reset() seeds."""

from __future__ import annotations

# Scenes of the demonstrations have seeds from here on, everything else has smaller ones.
TRAINING_SEEDS = 2**40
_SCENES_PER_SEED = 2**20


def training_scene(seed: int, index: int) -> int:
    """Seed of World.reset() for scene `index` of the demonstrations made with `seed`."""
    if not 0 <= index < _SCENES_PER_SEED:
        raise ValueError(f"scene index: expected 0 to {_SCENES_PER_SEED - 1}, found {index}")
    if not 0 <= seed < 2**20:
        raise ValueError(f"seed: expected 0 to {2**20 - 1}, found {seed}")
    return TRAINING_SEEDS + seed * _SCENES_PER_SEED + index


def evaluation_scene(seed: int, episode: int) -> int:
    """Seed of World.reset() for an episode of an evaluation started with `seed`."""
    scene = seed + episode
    if not 0 <= scene < TRAINING_SEEDS:
        raise ValueError(f"seed: expected 0 to {TRAINING_SEEDS - 1} (training has the rest), found {scene}")
    return scene
