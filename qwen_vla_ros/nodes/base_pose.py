# SPDX-License-Identifier: Apache-2.0
"""The pose of a base, in whichever message it comes."""

from __future__ import annotations

import math
from typing import Any

from geometry_msgs.msg import Pose, PoseStamped, PoseWithCovarianceStamped
from nav_msgs.msg import Odometry

from .transforms import yaw_of

# By the type that the `state.base` of an embodiment gives.
MESSAGES: dict[str, type] = {
    "odometry": Odometry,
    "pose_stamped": PoseStamped,
    "pose_with_covariance_stamped": PoseWithCovarianceStamped,
}


def pose_of(message: Any) -> Pose:
    """The pose in a message of any of the types."""
    # With a covariance it lies one level deeper.
    return getattr(message.pose, "pose", message.pose)


def flat_pose(message: Any) -> list[float]:
    """x, y [m], yaw [rad] of a message of any of the types; as finite as the message.

    The yaw of an orientation that nobody set, all zeros, is NaN.
    """
    pose = pose_of(message)
    q = pose.orientation
    turned = any((q.x, q.y, q.z, q.w))
    return [pose.position.x, pose.position.y, yaw_of(q) if turned else math.nan]


def from_odometry(odometry: Odometry, kind: str) -> Any:
    """What odometry says of the pose, as a message of another type."""
    if kind == "odometry":
        return odometry
    pose = odometry.pose.pose if kind == "pose_stamped" else odometry.pose
    return MESSAGES[kind](header=odometry.header, pose=pose)
