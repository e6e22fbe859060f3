# SPDX-License-Identifier: Apache-2.0
"""Quality of service of every topic, in one place (REP-2003)."""

from __future__ import annotations

from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, HistoryPolicy, LivelinessPolicy, QoSProfile, ReliabilityPolicy

# Without a sign of life for that long a node counts as dead, unless `policy_lease` says otherwise [s].
# As long as it may be: with a look of the executor and a ramp of 0.2 s the robot rests within 0.3 s.
LEASE = 0.07
# What those offer who are watched [s]: rmw_fastrtps gives a sign of life after 2/3 of it, from a thread of
# its own. Some of them may be late before the lease that is requested has passed.
OFFERED = 0.02


def _profile(depth: int, reliable: bool, latched: bool = False, lease: float = 0.0) -> QoSProfile:
    alive = (
        {"liveliness": LivelinessPolicy.AUTOMATIC, "liveliness_lease_duration": Duration(seconds=lease)}
        if lease
        else {}
    )
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        **alive,
    )


# Only the newest image is of use.
IMAGE = _profile(1, reliable=False)
# Joint states and poses of a base: a few, so that a burst is not lost.
SENSOR = _profile(5, reliable=False)
# Chunks, camera_info; heartbeats, for those who only look.
RELIABLE = _profile(10, reliable=True)
# What a late joiner must know: the task and the executor's state.
LATCHED = _profile(1, reliable=True, latched=True)
# The newest command is the only one that counts; controllers of ros2_control subscribe reliably.
COMMAND = _profile(1, reliable=True)
# The heartbeat of the policy.
HEARTBEAT = _profile(10, reliable=True, lease=OFFERED)
# The executor's state: who lives and says it is an executor. A twin that has died may be in the way for a
# while.
STATE = _profile(1, reliable=True, latched=True, lease=0.2)
STATE_WATCHED = _profile(1, reliable=True, lease=0.5)


def heartbeat_watched(lease: float) -> QoSProfile:
    """The heartbeat for those to whom its publisher is dead after `lease` [s] without a sign of life."""
    return _profile(10, reliable=True, lease=lease)
