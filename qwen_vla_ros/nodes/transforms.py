# SPDX-License-Identifier: Apache-2.0
"""Quaternions in ROS order (x, y, z, w): tf_transformations where it is installed, else transforms3d."""

from __future__ import annotations

from typing import Any

try:
    from tf_transformations import euler_from_quaternion, quaternion_from_euler
except ModuleNotFoundError as error:
    if error.name != "tf_transformations":
        raise
    from transforms3d import euler

    def quaternion_from_euler(ai: float, aj: float, ak: float, axes: str = "sxyz"):  # type: ignore[misc]
        """Quaternion (x, y, z, w) of Euler angles [rad]. Shape (4,)."""
        w, x, y, z = euler.euler2quat(ai, aj, ak, axes)
        return x, y, z, w

    def euler_from_quaternion(quaternion, axes: str = "sxyz"):  # type: ignore[misc]
        """Euler angles [rad] of a quaternion (x, y, z, w). Shape (3,)."""
        x, y, z, w = quaternion
        return euler.quat2euler((w, x, y, z), axes)


def yaw_of(orientation: Any) -> float:
    """Yaw [rad] of a geometry_msgs/Quaternion."""
    q = (orientation.x, orientation.y, orientation.z, orientation.w)
    return float(euler_from_quaternion(q)[2])


__all__ = ["euler_from_quaternion", "quaternion_from_euler", "yaw_of"]
