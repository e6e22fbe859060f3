# SPDX-License-Identifier: Apache-2.0
"""Rotations as unit quaternions (w, x, y, z): what interpolation and chunks of poses need."""

from __future__ import annotations

import math

import numpy as np

IDENTITY = np.array([1.0, 0.0, 0.0, 0.0])


def multiply(a, b) -> np.ndarray:
    """Rotation `b`, then `a`. Shapes (..., 4)."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    aw, ax, ay, az = np.moveaxis(a, -1, 0)
    bw, bx, by, bz = np.moveaxis(b, -1, 0)
    return np.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        axis=-1,
    )


def inverse(q) -> np.ndarray:
    """Shape (..., 4)."""
    return np.asarray(q, dtype=float) * np.array([1.0, -1.0, -1.0, -1.0])


def from_vector(vector) -> np.ndarray:
    """Rotation vector [rad], shape (..., 3), to a quaternion, shape (..., 4)."""
    vector = np.asarray(vector, dtype=float)
    angle = np.linalg.norm(vector, axis=-1, keepdims=True)
    # sinc(x) of numpy is sin(pi x) / (pi x): sound at 0.
    return np.concatenate([np.cos(angle / 2), 0.5 * np.sinc(angle / (2 * np.pi)) * vector], axis=-1)


def to_vector(q) -> np.ndarray:
    """Rotation vector [rad] of the shorter way, norm at most pi. Shape (..., 4) to (..., 3)."""
    q = np.asarray(q, dtype=float)
    q = np.where(q[..., :1] < 0, -q, q)
    sine = np.linalg.norm(q[..., 1:], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sine, q[..., :1])
    return np.where(sine > 1e-12, angle / np.maximum(sine, 1e-12), 2.0) * q[..., 1:]


def between(a, b) -> np.ndarray:
    """Rotation vector that turns `a` into `b`, [rad]. Shapes (4,), (4,) to (3,).

    `to_vector(multiply(b, inverse(a)))` without the cost of arrays, for once a period.
    """
    bw, bx, by, bz = map(float, b)
    aw, ax, ay, az = map(float, a)
    w = bw * aw + bx * ax + by * ay + bz * az
    x = bx * aw - bw * ax - by * az + bz * ay
    y = by * aw - bw * ay - bz * ax + bx * az
    z = bz * aw - bw * az - bx * ay + by * ax
    sine = math.sqrt(x * x + y * y + z * z)
    angle = 2 * math.atan2(sine, abs(w))
    scale = math.copysign(angle / sine if sine > 1e-12 else 2.0, w)
    return np.array([scale * x, scale * y, scale * z])


def from_rpy(rpy) -> np.ndarray:
    """Roll, pitch, yaw [rad] about fixed x, y, z. Shape (..., 3) to (..., 4)."""
    rpy = np.asarray(rpy, dtype=float)
    q = from_vector(rpy[..., :1] * [1.0, 0.0, 0.0])
    for axis in (1, 2):
        q = multiply(from_vector(rpy[..., axis : axis + 1] * np.eye(3)[axis]), q)
    return q


def to_rpy(q) -> np.ndarray:
    """The inverse of `from_rpy`, pitch within pi / 2. Shape (..., 4) to (..., 3)."""
    w, x, y, z = np.moveaxis(np.asarray(q, dtype=float), -1, 0)
    return np.stack(
        [
            np.arctan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y)),
            np.arcsin(np.clip(2 * (w * y - x * z), -1.0, 1.0)),
            np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)),
        ],
        axis=-1,
    )


def from_matrix(matrix) -> np.ndarray:
    """Shape (..., 3, 3) to (..., 4)."""
    m = np.asarray(matrix, dtype=float)
    shape, m = m.shape[:-2], m.reshape(-1, 3, 3)
    # The eigenvector of the largest eigenvalue (Bar-Itzhack 2000): no case is near a division by zero.
    k = np.empty((len(m), 4, 4))
    trace = np.trace(m, axis1=1, axis2=2)
    skew = np.stack([m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]], axis=1)
    k[:, 0, 0] = trace
    k[:, 0, 1:] = k[:, 1:, 0] = skew
    k[:, 1:, 1:] = m + m.transpose(0, 2, 1) - trace[:, None, None] * np.eye(3)
    q = np.linalg.eigh(k)[1][:, :, -1]
    return np.where(q[:, :1] < 0, -q, q).reshape(*shape, 4)


def to_matrix(q) -> np.ndarray:
    """Shape (..., 4) to (..., 3, 3)."""
    w, x, y, z = np.moveaxis(np.asarray(q, dtype=float), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def from_rot6d(columns) -> np.ndarray:
    """The first two columns of a matrix, made orthonormal (Zhou et al. 2019). Shape (..., 6) to (..., 4).

    Raises:
        ValueError: the two are parallel, or one is zero: they give no rotation.
    """
    columns = np.asarray(columns, dtype=float)
    a, b = columns[..., :3], columns[..., 3:]
    length = np.linalg.norm(a, axis=-1, keepdims=True)
    x = a / np.where(length > 0, length, 1.0)
    rest = b - (x * b).sum(-1, keepdims=True) * x
    width = np.linalg.norm(rest, axis=-1, keepdims=True)
    if (length < 1e-6).any() or (width < 1e-6).any():
        raise ValueError("rot6d columns are parallel or zero")
    y = rest / width
    return from_matrix(np.stack([x, y, np.cross(x, y)], axis=-1))


def to_rot6d(q) -> np.ndarray:
    """Shape (..., 4) to (..., 6)."""
    matrix = to_matrix(q)
    return np.concatenate([matrix[..., :, 0], matrix[..., :, 1]], axis=-1)


def slerp(a, b, share: float) -> np.ndarray:
    """From `a` to `b` by the shorter way, at constant speed. Shapes (4,)."""
    return multiply(from_vector(share * to_vector(multiply(b, inverse(a)))), a)


def mean(quaternions, weights) -> np.ndarray:
    """Weighted mean, signs aligned to the first. Shapes (n, 4), (n,) to (4,)."""
    quaternions = np.asarray(quaternions, dtype=float)
    signs = np.where(quaternions @ quaternions[0] < 0, -1.0, 1.0)
    total = ((np.asarray(weights) * signs)[:, None] * quaternions).sum(axis=0)
    return total / np.linalg.norm(total)


# Representations of a rotation in a chunk: to a quaternion, and back.
FROM = {"rpy": from_rpy, "axis_angle": from_vector, "rot6d": from_rot6d}
TO = {"rpy": to_rpy, "axis_angle": to_vector, "rot6d": to_rot6d}
