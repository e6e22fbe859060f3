# SPDX-License-Identifier: Apache-2.0
"""Quaternions against matrices and against transforms3d."""

from __future__ import annotations

import numpy as np
import pytest

from qwen_vla_ros.motion import rotations

RNG = np.random.default_rng(4)
VECTORS = np.vstack([RNG.normal(size=(40, 3)), np.zeros(3), 1e-9 * np.ones(3), [np.pi - 1e-6, 0, 0]])
QUATERNIONS = rotations.from_vector(VECTORS)


def same(a, b) -> bool:
    """Whether quaternions are the same rotation."""
    return np.allclose(np.abs((np.asarray(a) * b).sum(axis=-1)), 1.0, rtol=0.0, atol=1e-12)


def test_agree_with_transforms3d():
    euler = pytest.importorskip("transforms3d.euler")
    quaternions = pytest.importorskip("transforms3d.quaternions")
    for vector, q in zip(VECTORS, QUATERNIONS, strict=True):
        angle = np.linalg.norm(vector)
        expected = quaternions.axangle2quat(vector if angle else [1, 0, 0], angle)
        assert same(q, expected)
        assert rotations.to_matrix(q) == pytest.approx(quaternions.quat2mat(expected), abs=1e-12)
        assert same(rotations.from_rpy(vector), euler.euler2quat(*vector, axes="sxyz"))


@pytest.mark.parametrize("name", sorted(rotations.FROM))
def test_every_representation_comes_back(name):
    assert same(rotations.FROM[name](rotations.TO[name](QUATERNIONS)), QUATERNIONS)


def test_matrices_come_back_and_rot6d_is_made_orthonormal():
    assert same(rotations.from_matrix(rotations.to_matrix(QUATERNIONS)), QUATERNIONS)
    skewed = rotations.to_rot6d(QUATERNIONS) * 3.0
    skewed[:, 3:] += 0.5 * skewed[:, :3]
    assert same(rotations.from_rot6d(skewed), QUATERNIONS)
    with pytest.raises(ValueError, match="parallel or zero"):
        rotations.from_rot6d([1.0, 0, 0, 2.0, 0, 0])


def test_between_is_the_shorter_way():
    for a, b in zip(QUATERNIONS, QUATERNIONS[::-1], strict=True):
        expected = rotations.to_vector(rotations.multiply(b, rotations.inverse(a)))
        assert rotations.between(a, b) == pytest.approx(expected, abs=1e-9)
        assert rotations.between(a, -b) == pytest.approx(expected, abs=1e-9)
        assert same(rotations.slerp(a, b, 1.0), b)
        half = rotations.slerp(a, b, 0.5)
        assert np.linalg.norm(rotations.between(a, half)) == pytest.approx(
            np.linalg.norm(expected) / 2, abs=1e-9
        )


def test_mean_does_not_mind_signs():
    pair = np.array([QUATERNIONS[0], -QUATERNIONS[0]])
    assert same(rotations.mean(pair, [1.0, 3.0]), QUATERNIONS[0])
