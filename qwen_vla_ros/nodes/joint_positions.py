# SPDX-License-Identifier: Apache-2.0
"""Joint states as positions by joint, for who looks on; the executor has its own reader, which refuses."""

from __future__ import annotations

from collections.abc import Callable

from sensor_msgs.msg import JointState

from qwen_vla_ros.embodiment import Embodiment

from .lifecycle import seconds

Hear = Callable[[float, dict[str, float]], None]


def joint_positions(embodiment: Embodiment, topic: str, hear: Hear) -> Callable[[JointState], None]:
    """A callback for one of the embodiment's topics of joint states, which need not name their joints.

    hear: given the stamp [s] and positions [rad or m] by joint, as finite as the message. Where there are not
    as many names as positions, the shorter counts.
    """
    known = embodiment.state.joint_names.get(topic)

    def take(message: JointState) -> None:
        names = known or message.name
        hear(seconds(message.header.stamp), dict(zip(names, message.position, strict=False)))

    return take
