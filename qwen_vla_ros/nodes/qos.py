# SPDX-License-Identifier: Apache-2.0
"""Quality of service of every topic, in one place (REP-2003)."""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy


def _profile(depth: int, reliable: bool, latched: bool = False) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


# Only the newest image is of use.
IMAGE = _profile(1, reliable=False)
# Joint states and odometry: a few, so that a burst is not lost.
SENSOR = _profile(5, reliable=False)
# Chunks, heartbeats, camera_info.
RELIABLE = _profile(10, reliable=True)
# What a late joiner must know: the task and the executor's state.
LATCHED = _profile(1, reliable=True, latched=True)
# The newest command is the only one that counts; controllers of ros2_control subscribe reliably.
COMMAND = _profile(1, reliable=True)
