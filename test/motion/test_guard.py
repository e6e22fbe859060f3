# SPDX-License-Identifier: Apache-2.0
"""The last look before the motors: it stands between every planner and what is handed out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.embodiment.schema import PathController
from qwen_vla_ros.motion.follower import ChunkRefused, Follower, MotionError
from qwen_vla_ros.motion.guard import BaseGuard

NOW = 10.0
TIAGO = load_embodiment("tiago_base")
BASE = TIAGO.actions[0]
PATH = BASE.model_copy(update={"controller": PathController(type="path", topic="plan")})


# Six joints of an arm over the table, and a finger [m].
WIDOWX = [0.0, -0.6, 0.5, 0.0, 0.7, 0.0, 0.03]


def begin(body, joints=None) -> Follower:
    follower = Follower(body)
    follower.joints.add(NOW, joints or [body.home[joint] for joint in body.joints])
    follower.pose.add(NOW, np.zeros(3))
    follower.start(NOW)
    return follower


def drive(follower: Follower) -> None:
    """A chunk ahead: waypoints of a base."""
    body = follower.embodiment
    rows = np.array([0.3, 0.0, 0.0]) * np.arange(1, body.horizon + 1)[:, None]
    follower.offer(rows, NOW, 1 / body.control_rate, NOW)


@pytest.mark.parametrize("by", ["step", "brake", "step_home"])
@pytest.mark.parametrize(
    ("body", "joints"), [("franka_panda", None), ("aloha_viperx", None), ("widowx", WIDOWX)]
)
def test_no_joint_command_beyond_a_limit_is_handed_out(body, joints, by, monkeypatch):
    follower = begin(load_embodiment(body), joints)
    follower.start_home(NOW, 0.5)
    call = {"step": lambda: follower.step(NOW), "brake": follower.brake, "step_home": follower.step_home}[by]
    call()
    if follower._moved is not None:
        tracker = follower._moved.tracker
        monkeypatch.setattr(follower._moved, "advance", lambda: tracker.reset(tracker.state.position + 0.02))
    tips = [group for group in follower._groups if hasattr(group, "kinematics")]
    for group in tips:
        far = group.commanded + 0.02
        monkeypatch.setattr(type(group), "commanded", property(lambda _, far=far: far))
    with pytest.raises(MotionError, match=r"command of joint \S+ exceeds its"):
        call()


def test_no_velocity_of_a_base_beyond_a_limit_is_handed_out(monkeypatch):
    follower = begin(TIAGO)
    drive(follower)
    follower.step(NOW)
    base = follower._driven[0]
    monkeypatch.setattr(base, "step", lambda *_: base.ramp.reset([0.5, 0.0]))
    with pytest.raises(MotionError, match=r"command of base \w+ exceeds its acceleration limit"):
        follower.step(NOW + follower.period)


def test_no_pose_of_a_path_beyond_a_limit_is_handed_out(monkeypatch):
    follower = begin(TIAGO.model_copy(update={"actions": (PATH,)}))
    drive(follower)
    group = follower._path_groups[0]
    command = group.command

    def leap():
        said = command()
        return said and replace(said, poses=said.poses + np.arange(len(said.poses))[:, None])

    monkeypatch.setattr(group, "command", leap)
    with pytest.raises(MotionError, match=r"path of base .* exceeds its velocity limit"):
        follower.step(NOW)


def test_the_guard_of_bases():
    limits = [0.5, 1.0], [1.0, 2.0], [10.0, 20.0]
    for velocity, what in (
        ([[0.6, 0.0]], "velocity"),
        ([[0.0, -1.1]], "velocity"),
        ([[0.012, 0.0]], "acceleration"),
        ([[0.0, 0.0], [0.0, 0.0021]], "jerk"),
        ([[0.0, 0.0], [np.nan, 0.0]], "not finite"),
    ):
        guard = BaseGuard("base", *limits, period=0.01)
        for sound in velocity[:-1]:
            guard.check(np.array(sound))
        with pytest.raises(MotionError, match=f"command of base base .*{what}"):
            guard.check(np.array(velocity[-1]))
    guard.start([0.3, 0.0])
    guard.check([0.3, 0.0])


def test_a_chunk_of_an_old_picture_is_not_followed():
    body = load_embodiment("franka_panda")
    follower, rows = begin(body), np.repeat([[*map(body.home.get, body.joints)]], body.horizon, axis=0)
    late = NOW + body.stop.chunk_max_age + 0.05
    assert late < NOW + body.horizon / body.control_rate, "its last rows are still to come"
    with pytest.raises(ChunkRefused, match=rf"allowed {body.stop.chunk_max_age:.3f} s") as refusal:
        follower.offer(rows, NOW, 1 / body.control_rate, late)
    assert refusal.value.late
    follower.offer(rows, NOW, 1 / body.control_rate, late - 0.1)
