# SPDX-License-Identifier: Apache-2.0
"""Quaternions in ROS order (x, y, z, w): tf_transformations where it is installed, else transforms3d."""

from __future__ import annotations

from typing import Any

_ADVICE = "pip install 'transforms3d>=0.4.2' into the environment that the nodes run in"

try:
    from tf_transformations import euler_from_quaternion, quaternion_from_euler
except AttributeError as error:
    # It imports transforms3d, of which Ubuntu 24.04 has one that knows numpy 1 only.
    raise ImportError(f"tf_transformations cannot be imported ({error}): {_ADVICE}") from error
except ModuleNotFoundError as error:
    if error.name != "tf_transformations":
        raise
    try:
        from transforms3d import euler
    except AttributeError as fault:
        raise ImportError(f"transforms3d is too old for this numpy ({fault}): {_ADVICE}") from fault

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
