# SPDX-License-Identifier: Apache-2.0
"""Bodies with what the simulated ones lack: end effectors, hands, mixed units, endless joints, omni bases."""

from __future__ import annotations

import numpy as np
import pytest

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.embodiment.schema import BaseVelocityGroup, EefDeltaGroup, JointGroup
from qwen_vla_ros.motion.follower import Follower

SHIFT = 0.04
# Where an arm can go on: the zero pose of many is a straight arm.
POSTURES = {
    "arx5_dual": [0.0, 0.95, 0.86, -0.57, 0.0, 0.0],
    "fourier_gr1": [0.0, 0.2, 0.0, -1.2, 0.0, 0.0, 0.0],
    "google_robot": [-0.26, 0.08, 0.5, 1.16, 0.03, 1.59, -1.08],
}
MIRRORED = {"fourier_gr1": [1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0]}
BODIES = [
    "agibot_a2d",
    "arx5_dual",
    "fourier_gr1",
    "google_robot",
    "kinova_gen3",
    "lekiwi",
    "mobile_aloha_eef",
    "stretch",
    "tienkung",
]


def start(body):
    """A pose to begin in, by joint, as the robot counts."""
    values = dict.fromkeys(body.joints, 0.0)
    for group in body.actions:
        if isinstance(group, EefDeltaGroup):
            posture = np.array(POSTURES.get(body.name, [body.home.get(j, 0.0) for j in group.ik.joints]))
            if group.name.startswith("right"):
                posture = posture * MIRRORED.get(body.name, 1.0)
            values.update(zip(group.ik.joints, posture, strict=True))
        elif isinstance(group, JointGroup):
            middle = group.limits.position.mean(axis=1)
            if group.unit == "fraction":
                closed, opened = group.opening.T
                middle = closed + middle * (opened - closed)
            values.update(zip(group.joints, middle, strict=True))
    return values


def chunk(body):
    """A quarter of the way up for joints, SHIFT along x for end effectors, half speed for bases."""
    rows = np.zeros((body.horizon, body.layout.count))
    for group in body.actions:
        part = body.layout.slice_of(group.name)
        if isinstance(group, JointGroup):
            low, high = group.limits.position.T
            middle = (low + high) / 2
            reach = np.minimum(
                0.25 * (high - low), 0.4 * group.limits.velocity * body.horizon / body.control_rate
            )
            rows[:, part] = np.linspace(middle, middle + reach, body.horizon)
        elif isinstance(group, EefDeltaGroup):
            every = group.reference == "previous_step"
            rows[:, part.start] = SHIFT / body.horizon if every else np.linspace(0, SHIFT, body.horizon)
        elif isinstance(group, BaseVelocityGroup):
            rows[:, part] = 0.5 * group.limits.linear.velocity
            rows[:, part.stop - 1] = 0.5 * group.limits.angular.velocity
    return rows


@pytest.mark.parametrize("name", BODIES)
def test_goes_where_a_chunk_says(name):
    body = load_embodiment(name)
    if any(isinstance(group, EefDeltaGroup) for group in body.actions):
        pytest.importorskip("pinocchio")
        from qwen_vla_ros.motion.kinematics import UrdfKinematics
    groups = {group.name: group for group in body.actions}
    follower, values, now = Follower(body), start(body), 0.0

    def tips():
        return {
            group.name: UrdfKinematics(group.ik.urdf, group.ik.joints, group.tip, group.frame).pose(
                np.array([values[joint] for joint in group.ik.joints])
            )[0]
            for group in body.actions
            if isinstance(group, EefDeltaGroup)
        }

    began, rows, fastest = tips(), chunk(body), {}
    follower.joints.add(now, [values[joint] for joint in body.joints])
    follower.start(now)
    follower.offer(rows, now, 1.0 / body.control_rate, now)
    end = body.horizon / body.control_rate
    while now < end + 1.0:
        for command in follower.step(now):
            group = groups[command.group]
            if isinstance(group, BaseVelocityGroup):
                if now < end:
                    fastest[group.name] = command.velocity
            else:
                values.update(zip(group.joints, command.position.tolist(), strict=True))
        now += follower.period
        follower.joints.add(now, [values[joint] for joint in body.joints])
    for tip, position in tips().items():
        np.testing.assert_allclose(position - began[tip], [SHIFT, 0.0, 0.0], atol=2e-3)
    for group in body.actions:
        part = body.layout.slice_of(group.name)
        if isinstance(group, BaseVelocityGroup):
            assert fastest[group.name].shape == (group.count,)
            np.testing.assert_allclose(fastest[group.name], rows[-1, part], rtol=0.05)
        elif isinstance(group, JointGroup) and getattr(group, "threshold", None) is None:
            wanted = rows[-1, part]
            if group.unit == "fraction":
                closed, opened = group.opening.T
                wanted = closed + wanted * (opened - closed)
            reached = [values[joint] for joint in group.joints]
            span = np.ptp(group.opening, axis=1) if group.unit == "fraction" else 1.0
            assert (np.abs(np.array(reached) - wanted) <= 0.02 * np.maximum(span, 0.5)).all(), (
                group.name,
                reached,
            )
