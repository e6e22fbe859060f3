# SPDX-License-Identifier: Apache-2.0
"""Every task, by name."""

from __future__ import annotations

from collections.abc import Mapping

from qwen_vla_ros.sim.manipulation import PickUp, PickUpWithArm, Place, Push
from qwen_vla_ros.sim.tasks import Drive, Reach, ReachWithArm, Task, Touch

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (Reach(), Push(), PickUp(), Place(), ReachWithArm(), PickUpWithArm(), Touch(), Drive())
}
