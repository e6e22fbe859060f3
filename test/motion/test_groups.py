# SPDX-License-Identifier: Apache-2.0
"""What the channels of a chunk mean: fractions, switches, joints without end, tips, plans."""

from __future__ import annotations

import numpy as np
import pytest

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.motion import rotations
from qwen_vla_ros.motion.follower import EDGE, ChunkRefused, Follower, MotionError
from qwen_vla_ros.motion.guard import JointGuard
from qwen_vla_ros.motion.kinematics import UrdfKinematics
from qwen_vla_ros.motion.outlook import Outlook
from qwen_vla_ros.motion.stop import Limits

PANDA = load_embodiment("franka_panda")
TIAGO = load_embodiment("tiago_base")
WIDOWX = load_embodiment("widowx")
ALOHA = load_embodiment("aloha_viperx_wrist")
READY = np.array([0.0, -0.3, 0.6, 0.0, 1.0, 0.0, 0.037])


def begin(body, joints, mode=None) -> Follower:
    follower = Follower(body, mode=mode)
    follower.joints.add(10.0, joints)
    follower.pose.add(10.0, np.zeros(3))
    follower.start(10.0)
    return follower


def drive(follower: Follower, seconds: float, now: float = 10.0) -> tuple[list, float]:
    """Commands of a robot that does as it is told, and the time then."""
    path = []
    for _ in range(round(seconds / follower.period)):
        path.append(follower.step(now))
        now += follower.period
        follower.joints.add(now, np.concatenate([command.position for command in path[-1]]))
    return path, now


def widowx_rows(x=0.0, yaw=0.0, gripper=1.0) -> np.ndarray:
    rows = np.zeros((WIDOWX.horizon, 7))
    rows[:, 0], rows[:, 5], rows[:, 6] = x, yaw, gripper
    return rows


def test_a_fraction_is_told_as_the_joint_counts():
    follower = begin(WIDOWX, READY)
    follower.offer(widowx_rows(gripper=0.0), 10.0, 0.2, 10.0)
    path, _ = drive(follower, 0.6)
    closed, opened = WIDOWX.actions[1].opening[0]
    assert path[0][1].position == pytest.approx([opened], abs=1e-4)
    assert path[-1][1].position == pytest.approx([closed], abs=1e-6)


@pytest.mark.parametrize(("start", "expected"), [(0.037, [1, 1, 1, 0, 0, 1]), (0.015, [0, 0, 1, 0, 0, 1])])
def test_a_switch_needs_to_be_sure(start, expected):
    follower = begin(WIDOWX, np.append(READY[:6], start))
    rows = widowx_rows()[:6]
    rows[:, 6] = [0.45, 0.55, 0.61, 0.39, 0.59, 0.9]
    group = follower._groups[1]
    resolved, _ = group.resolve(rows[:, 6:], np.zeros(1), follower.timeline.sample(10.0).position[-1:])
    assert resolved[:, 0].tolist() == expected


def test_a_joint_without_end_goes_the_shorter_way():
    arm = PANDA.actions[0].model_copy(update={"continuous": ("panda_joint1",)})
    body = PANDA.model_copy(update={"actions": (arm, PANDA.actions[1])})
    home = np.array([PANDA.home[joint] for joint in PANDA.joints])
    home[0] = 3.0
    follower = begin(body, home)
    rows = np.repeat(home[None], 16, axis=0)
    rows[:, 0] = -3.0  # 0.28 rad ahead, or 6 rad back
    follower.offer(rows, 10.0, 0.1, 10.0)
    path, now = drive(follower, 1.6)
    assert path[-1][0].position[0] == pytest.approx(2 * np.pi - 3.0, abs=1e-3)
    # Round and round: no bound.
    for _ in range(3):
        rows[:, 0] = path[-1][0].position[0] % (2 * np.pi) + 1.5 * np.arange(1, 17) / 16
        follower.offer(rows, now - 0.01, 0.1, now)
        path, now = drive(follower, 1.6, now)
    assert path[-1][0].position[0] > 6.0


def test_a_tip_goes_where_the_chunk_says():
    follower = begin(WIDOWX, READY)
    kinematics = follower.kinematics("eef")
    start, turned = kinematics.pose(READY[:6])
    follower.offer(widowx_rows(x=0.02, yaw=0.06)[:4], 10.0, 0.2, 10.0)
    path, _ = drive(follower, 1.2)
    end, quaternion = kinematics.pose(path[-1][0].position)
    assert end - start == pytest.approx([0.08, 0.0, 0.0], abs=1e-3)
    way = rotations.to_vector(rotations.multiply(quaternion, rotations.inverse(turned)))
    assert way == pytest.approx([0.0, 0.0, 0.24], abs=2e-3)
    assert path[-1][0].pose == pytest.approx(np.concatenate([end, quaternion]))


def test_changes_in_the_axes_of_the_tip_and_relative_to_the_start():
    eef = WIDOWX.actions[0].model_copy(update={"frame": WIDOWX.actions[0].tip, "reference": "chunk_start"})
    body = WIDOWX.model_copy(update={"actions": (eef, WIDOWX.actions[1])})
    follower = begin(body, READY)
    start, turned = follower.kinematics("eef").pose(READY[:6])
    follower.offer(widowx_rows(x=-0.05)[:4], 10.0, 0.2, 10.0)
    path, _ = drive(follower, 1.0)
    expected = start - 0.05 * rotations.to_matrix(turned)[:, 0]
    assert path[-1][0].pose[:3] == pytest.approx(expected, abs=1e-3)


def test_a_tip_stops_at_its_workspace_and_says_so():
    follower = begin(WIDOWX, READY)
    follower.offer(widowx_rows(x=0.1), 10.0, 0.2, 10.0)
    path, _ = drive(follower, 1.3)
    # It goes straight, below its speed.
    heights = [commands[0].pose[2] for commands in path]
    assert max(heights) - min(heights) < 2e-3
    reached = max(commands[0].pose[0] for commands in path)
    assert 0.44 < reached <= 0.45 + 1e-6
    assert follower.clamps["eef"] > 0
    speeds = np.linalg.norm(np.diff([commands[0].pose[:3] for commands in path], axis=0), axis=1)
    assert speeds.max() / follower.period <= 0.3 * (1 + 1e-6)


def test_kinematics_for_many_rows_are_those_for_each():
    group = load_embodiment("franka_panda_delta").actions[0]
    chain = UrdfKinematics(group.ik.urdf, group.ik.joints, group.tip, "panda_link0")
    rows = np.random.default_rng(1).uniform(-2, 2, (20, 7))
    step = 1e-6 * np.eye(7)
    for row, matrix in zip(rows, chain.transforms(rows), strict=True):
        position, quaternion = chain.pose(row)
        assert matrix[:3, 3] == pytest.approx(position, abs=1e-9)
        assert matrix[:3, :3] == pytest.approx(rotations.to_matrix(quaternion), abs=1e-9)
        moved = [chain.pose(row + change) for change in step]
        jacobian = chain.jacobian(row)
        linear = np.array([p - position for p, _ in moved]) / 1e-6
        assert np.abs(jacobian[:3].T - linear).max() < 1e-5
        turns = np.array([rotations.between(quaternion, q) for _, q in moved]) / 1e-6
        assert np.abs(jacobian[3:].T - turns).max() < 1e-5


@pytest.mark.parametrize("body", [PANDA, TIAGO, WIDOWX, ALOHA], ids=lambda body: body.name)
def test_a_plan_leads_a_robot_that_lags_where_it_would_have_gone(body):
    joints = READY if body is WIDOWX else np.array([body.home[joint] for joint in body.joints])
    follower, outlook = begin(body, joints, "rtc"), Outlook(body)
    outlook.joints.add(10.0, joints)
    outlook.pose.add(10.0, np.zeros(3))
    step = 1 / body.control_rate
    t = np.arange(1, body.horizon + 1)[:, None] / body.horizon
    rows = {
        "franka_panda": joints + 0.2 * t,
        "tiago_base": np.hstack([t, 0.3 * t, 0.5 * t]),
        "widowx": widowx_rows(0.005, 0.02),
        "aloha_viperx_wrist": 0.2 * t + np.zeros(len(joints)),
    }[body.name]
    follower.offer(rows, 10.0, step, 10.0)
    outlook.note(rows, 10.0)
    later = 10.0 + 2 * step
    for whose in (follower, outlook):
        whose.joints.add(later, joints + 0.004)
        whose.pose.add(later, [0.1, 0.02, 0.03])
    plan, known = follower.plan(later), body.horizon - 2
    assert plan.known == known
    assert np.isnan(plan.rows[known:]).all()
    assert outlook.plan(later).rows[:known] == pytest.approx(plan.rows[:known], abs=2e-3)
    times = later + step * np.arange(1, known + 1) - EDGE
    before = [follower.timeline.sample(time).position for time in times]
    follower.offer(plan.rows[:known], later, step, later)
    after = [follower.timeline.sample(time).position for time in times]
    # During the first step one chunk is blended into the other, by the velocities of both.
    assert np.array(after[1:]) == pytest.approx(np.array(before[1:]), abs=1e-6)
    assert after[0] == pytest.approx(before[0], abs=2e-3)
    over = 10.0 + 99 * step
    assert outlook.plan(over) is None
    assert follower.plan(over).known == 0


def test_nothing_is_planned_relative_to_a_robot_that_was_not_measured():
    outlook = Outlook(ALOHA)
    assert outlook.needs_joints
    assert not outlook.needs_pose
    rows = np.zeros((ALOHA.horizon, ALOHA.layout.count))
    outlook.note(rows, 10.0)
    assert outlook.plan(10.1) is None
    outlook.joints.add(10.2, [ALOHA.home[joint] for joint in ALOHA.joints])
    assert outlook.plan(10.2) is None
    outlook.note(rows, 10.2)
    assert outlook.plan(10.3).known == ALOHA.horizon - 1


def test_what_is_absolute_needs_no_measurement():
    outlook = Outlook(PANDA)
    assert not outlook.needs_joints
    outlook.note(np.zeros((PANDA.horizon, PANDA.layout.count)), 10.0)
    assert outlook.plan(10.1).known == PANDA.horizon - 1


def test_a_chunk_of_another_step_or_out_of_reason_is_refused():
    follower = begin(PANDA, np.array([PANDA.home[joint] for joint in PANDA.joints]))
    rows = np.zeros((16, 8))
    for step in (0.0, -0.1, 0.2, np.nan, np.inf, 1e-300):
        with pytest.raises(ChunkRefused, match="step of"):
            follower.offer(rows, 10.0, step, 10.0)
    rows[3, 2] = 1e7
    with pytest.raises(ChunkRefused, match=r"10000000\.0 in row 3, channel arm/panda_joint3"):
        follower.offer(rows, 10.0, 0.1, 10.0)


def test_a_clock_that_goes_back_ends_the_chunk_where_the_robot_is():
    home = np.array([PANDA.home[joint] for joint in PANDA.joints])
    follower = begin(PANDA, home)
    follower.offer(np.repeat(home[None] + 0.2, 16, axis=0), 10.0, 0.1, 10.0)
    path, now = drive(follower, 0.5)
    moving = path[-1][0].position
    follower.step(now - 100.0)
    assert follower.timeline.remaining(now - 100.0) < 0
    assert follower.clock_jumps == 1
    after, _ = drive(follower, 1.0, now - 100.0)
    assert np.abs(after[-1][0].position - moving).max() < 0.1, "it went on, or back to where it was"
    follower.offer(np.repeat(home[None], 16, axis=0), now - 99.5, 0.1, now - 99.0)
    with pytest.raises(MotionError, match="the time is nan"):
        follower.step(np.nan)


def test_the_guard_sees_what_the_planner_must_never_do():
    limits = Limits([-1.0], [1.0], [1.0], [5.0], [100.0])
    period = 0.01
    for value, what in (
        (1.1, "position"),
        (0.02, "velocity"),
        (0.0008, "acceleration"),
        (0.0002, "jerk"),
        (np.nan, "not finite"),
    ):
        guard = JointGuard(("knee",), limits, period)
        guard.start([0.0])
        with pytest.raises(MotionError, match=what):
            guard.check([value])
    guard = JointGuard(("knee",), limits, period)
    guard.start([1.2])  # outside, it may come back
    guard.check([1.2])
    with pytest.raises(MotionError, match="position"):
        guard.check([1.2001])
