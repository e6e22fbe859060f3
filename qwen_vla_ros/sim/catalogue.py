# SPDX-License-Identifier: Apache-2.0
"""Every task, by name."""

from __future__ import annotations

from collections.abc import Mapping

from qwen_vla_ros.sim.gestures import Point, Wave
from qwen_vla_ros.sim.manipulation import PickUp, PickUpWithArm, Place, Push
from qwen_vla_ros.sim.navigation import GoBetween, StopInFront
from qwen_vla_ros.sim.tasks import Drive, Reach, ReachPad, ReachWithArm, ReachWithBoth, Task, Touch

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Reach(),
        Push(),
        PickUp(),
        Place(),
        ReachPad(),
        ReachWithArm(),
        ReachWithBoth(),
        PickUpWithArm(),
        Touch(),
        Point(),
        Wave(),
        Drive(),
        StopInFront(),
        GoBetween(),
    )
}
