# SPDX-License-Identifier: Apache-2.0
"""Poses of a localisation jump and come seldom: no command breaks a limit, the next chunk sets it right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.embodiment.schema import OmniDriveController, PathController
from qwen_vla_ros.motion.base import compose, relative_to
from qwen_vla_ros.motion.follower import Follower

TIAGO = load_embodiment("tiago_base")
STEP = 1 / TIAGO.control_rate
ROWS = np.array([0.25, 0.0, 0.1]) * np.arange(1, TIAGO.horizon + 1)[:, None]
KINDS = ("diff_drive", "omni_drive", "path")


def body_of(kind: str):
    controller = {
        "diff_drive": TIAGO.actions[0].controller,
        "omni_drive": OmniDriveController(type="omni_drive", topic="cmd_vel", stamped=True),
        "path": PathController(type="path", topic="plan"),
    }[kind]
    group = TIAGO.actions[0].model_copy(update={"controller": controller})
    return TIAGO.model_copy(update={"actions": (group,)})


class Base:
    """A base that does as it is told; what is said of its pose is off by what the jumps came to."""

    def __init__(self, kind: str, every: int):
        self.body = body_of(kind)
        self.follower, self.now, self._every = Follower(self.body), 100.0, every
        self.pose, self.map = np.zeros(3), np.zeros(3)
        self.velocities, self.paths, self._ticks = [], [], 0
        self.hear()
        self.follower.start(self.now)

    def hear(self) -> None:
        self.follower.pose.add(self.now, compose(self.map, self.pose))

    def jump(self, way, turn: float) -> None:
        """From now on the base is said to be elsewhere: it is the map that moves below it."""
        said = compose(self.map, self.pose)
        said = np.array([*(said[:2] + way), said[2] + turn])
        # So that compose(map, pose) is what is said.
        yaw = said[2] - self.pose[2]
        self.map = np.array([0.0, 0.0, yaw])
        self.map[:2] = said[:2] - compose(self.map, self.pose)[:2]
        self.hear()

    def offer(self) -> None:
        """A chunk of the picture that is taken now."""
        self.hear()
        self.follower.offer(ROWS, self.now, STEP, self.now)

    def run(self, periods: int, braking: bool = False) -> None:
        period = self.follower.period
        for _ in range(periods):
            for command in self.follower.brake() if braking else self.follower.step(self.now):
                if hasattr(command, "velocity"):
                    self.velocities.append(command.velocity)
                    ahead, *aside, turn = command.velocity
                    self.pose = compose(
                        self.pose, period * np.array([ahead, aside[0] if aside else 0.0, turn])
                    )
                else:
                    self.paths.append(command)
            self.now += period
            self._ticks += 1
            if self._ticks % self._every == 0:
                self.hear()

    def check(self) -> None:
        """Commands alone, as difference quotients."""
        limits, period = self.body.actions[0].limits, self.follower.period
        for command in self.paths:
            ways, spans = np.diff(command.poses, axis=0), np.diff(command.times)
            assert np.isfinite(command.poses).all()
            assert (np.hypot(ways[:, 0], ways[:, 1]) <= limits.linear.velocity * spans + 1e-9).all()
            assert (np.abs(ways[:, 2]) <= limits.angular.velocity * spans + 1e-9).all()
        rows = np.array(self.velocities)
        for order, name in enumerate(("velocity", "acceleration", "jerk")):
            if len(rows):
                most = np.array([getattr(limits.linear, name)] * 2 + [getattr(limits.angular, name)])
                most = most if rows.shape[1] == 3 else most[[0, 2]]
                assert np.isfinite(rows).all()
                assert (np.abs(rows) <= most * (1 + 1e-6) + 1e-9 / period**order).all(), name
                rows = np.diff(rows, axis=0) / period


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    every=st.integers(1, 15),  # periods between poses: 50 Hz to the longest that max_age allows
    happened=st.lists(
        st.tuples(
            st.integers(1, 80),  # periods until
            st.floats(-np.pi, np.pi),  # direction of the jump
            st.sampled_from([0.0, 0.0, 1.0, -1.0, np.pi]),  # how far it turns
            st.sampled_from(["chunk", "nothing", "stop"]),  # what comes after it
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_a_jump_of_a_metre_breaks_no_limit(kind, every, happened):
    base = Base(kind, every)
    base.offer()
    for periods, direction, turn, then in happened:
        base.run(periods)
        base.jump(np.array([np.cos(direction), np.sin(direction)]), turn)
        if then == "stop":
            base.run(20, braking=True)
            base.follower.go_on(base.now)
        if then != "nothing":
            base.offer()
    base.run(60)
    base.check()
    assert base.velocities or base.paths


@pytest.mark.parametrize("kind", KINDS[:2])
def test_after_a_jump_the_next_chunk_leads_on_from_where_the_base_is(kind):
    base = Base(kind, 5)
    base.offer()
    base.run(50)
    base.jump(np.array([0.0, 1.0]), 0.5)
    base.run(5)
    here = base.pose
    base.offer()
    base.run(100)
    # In the world, not on the map: two seconds of the chunk, as if nothing had jumped.
    went = relative_to(here, base.pose)
    assert went == pytest.approx(ROWS[3], abs=0.25)
    base.check()
