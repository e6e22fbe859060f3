# SPDX-License-Identifier: Apache-2.0
"""Controller models behave as ros2_control's controllers do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.sim.controllers import (
    ControllerError,
    DiffDriveController,
    ForwardCommandController,
    JointTrajectoryController,
    PathDriver,
    SlidingDriveController,
    TrajectoryPoint,
)

JOINTS = ("a", "b")


def trajectory(**options) -> JointTrajectoryController:
    return JointTrajectoryController(JOINTS, [0.0, 0.0], **options)


def points(*rows, velocities=None):
    velocities = velocities or [()] * len(rows)
    return [TrajectoryPoint(row[0], row[1:], v) for row, v in zip(rows, velocities, strict=True)]


def test_holds_before_the_first_trajectory():
    assert JointTrajectoryController(JOINTS, [0.3, -0.2]).sample(5.0) == pytest.approx([0.3, -0.2])


def test_interpolates_linearly_between_positions():
    controller = trajectory()
    controller.accept(JOINTS, points((1.0, 1.0, -1.0), (2.0, 3.0, 0.0)), 0.0, 10.0, [0.0, 0.0])
    assert controller.sample(10.0) == pytest.approx([0.0, 0.0])
    assert controller.sample(10.5) == pytest.approx([0.5, -0.5])
    assert controller.sample(11.25) == pytest.approx([1.5, -0.75])
    assert controller.sample(12.0) == pytest.approx([3.0, 0.0])


def test_holds_the_last_point():
    controller = trajectory()
    controller.accept(JOINTS, points((1.0, 1.0, 2.0)), 0.0, 10.0, [0.0, 0.0])
    assert controller.sample(99.0) == pytest.approx([1.0, 2.0])


def test_cubic_where_velocities_are_given():
    controller = trajectory()
    velocities = [(1.0, 1.0), (0.0, 0.0)]
    controller.accept(
        JOINTS, points((1.0, 1.0, 1.0), (2.0, 1.5, 1.5), velocities=velocities), 0.0, 0.0, [0, 0]
    )
    # Hermite: p0 + v0 s - ... with p0=1, p1=1.5, v0=1, v1=0 over 1 s is 1.375 at the middle.
    assert controller.sample(1.5)[0] == pytest.approx(1.375)
    rate = (controller.sample(1.0 + 1e-5) - controller.sample(1.0 - 1e-5)) / 2e-5
    assert rate == pytest.approx([1.0, 1.0], abs=1e-3)


def test_quintic_where_accelerations_are_given():
    controller = trajectory()
    still = (0.0, 0.0)
    sequence = [TrajectoryPoint(t, (p, p), still, still) for t, p in ((1.0, 0.0), (2.0, 1.0))]
    controller.accept(JOINTS, sequence, 0.0, 0.0, [0.0, 0.0])
    for s in (0.1, 0.25, 0.5, 0.9):
        assert controller.sample(1.0 + s)[0] == pytest.approx(10 * s**3 - 15 * s**4 + 6 * s**5)


@given(st.floats(0.01, 2.0), st.floats(-3, 3), st.floats(-3, 3), st.floats(0, 1))
def test_a_segment_starts_and_ends_at_its_points(duration, first, last, share):
    controller = trajectory()
    velocities = [(0.5, 0.5), (0.0, 0.0)]
    sequence = points((duration, first, first), (2 * duration, last, last), velocities=velocities)
    controller.accept(JOINTS, sequence, 0.0, 0.0, [0.0, 0.0])
    assert controller.sample(duration) == pytest.approx([first, first], abs=1e-9)
    assert controller.sample(2 * duration) == pytest.approx([last, last], abs=1e-9)
    assert np.isfinite(controller.sample(share * 2 * duration)).all()


def test_joints_may_come_in_any_order():
    controller = trajectory()
    controller.accept(("b", "a"), points((1.0, 5.0, 7.0)), 0.0, 0.0, [0.0, 0.0])
    assert controller.sample(1.0) == pytest.approx([7.0, 5.0])


def test_stamp_says_when_the_trajectory_starts():
    controller = trajectory()
    controller.accept(JOINTS, points((1.0, 1.0, 1.0)), 12.0, 10.0, [0.0, 0.0])
    # As the real controller does, it sets out at once and arrives on time.
    assert controller.sample(11.5) == pytest.approx([0.5, 0.5])
    assert controller.sample(13.0) == pytest.approx([1.0, 1.0])


def test_past_points_are_dropped():
    controller = trajectory()
    controller.accept(
        JOINTS, points((1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (3.0, 3.0, 3.0)), 8.5, 10.0, [9.0, 9.0]
    )
    assert controller.sample(10.0) == pytest.approx([1.5, 1.5])


def test_a_newer_trajectory_replaces_at_once_from_the_measured_state():
    controller = trajectory()
    controller.accept(JOINTS, points((1.0, 1.0, 1.0)), 0.0, 10.0, [0.0, 0.0])
    controller.accept(JOINTS, points((1.0, -1.0, -1.0)), 0.0, 10.5, [0.4, 0.4])
    assert controller.sample(10.5) == pytest.approx([0.4, 0.4])
    assert controller.sample(11.5) == pytest.approx([-1.0, -1.0])


def test_a_newer_trajectory_can_start_from_the_last_set_point():
    controller = trajectory(interpolate_from_desired_state=True)
    controller.accept(JOINTS, points((1.0, 1.0, 1.0)), 0.0, 10.0, [0.0, 0.0])
    controller.accept(JOINTS, points((1.0, -1.0, -1.0)), 0.0, 10.5, [0.4, 0.4])
    assert controller.sample(10.5) == pytest.approx([0.5, 0.5])


def test_a_refused_trajectory_leaves_the_one_before():
    controller = trajectory()
    controller.accept(JOINTS, points((1.0, 1.0, 1.0)), 0.0, 10.0, [0.0, 0.0])
    with pytest.raises(ControllerError):
        controller.accept(("a", "z"), points((1.0, -1.0, -1.0)), 0.0, 10.5, [0.4, 0.4])
    assert controller.sample(11.0) == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(
    ("joints", "sequence", "stamp", "message"),
    [
        ((), points((1.0,)), 0.0, "without joint names"),
        (("a", "z"), points((1.0, 0.0, 0.0)), 0.0, r"unknown joints \['z'\]"),
        (("a", "a"), points((1.0, 0.0, 0.0)), 0.0, "named twice"),
        (("a",), points((1.0, 0.0)), 0.0, r"joints \['b'\] are missing"),
        (JOINTS, [], 0.0, "empty trajectory"),
        (JOINTS, points((1.0, 0.0)), 0.0, "1 positions for 2 joints"),
        (JOINTS, points((1.0, 0.0, 0.0), velocities=[(0.0,)]), 0.0, "1 velocities for 2 joints"),
        (JOINTS, points((1.0, 0.0, float("nan"))), 0.0, "not finite"),
        (JOINTS, points((1.0, 0.0, 0.0), (1.0, 1.0, 1.0)), 0.0, "point 1: time_from_start"),
        (JOINTS, points((-0.1, 0.0, 0.0)), 0.0, "point 0: time_from_start"),
        (JOINTS, points((1.0, 0.0, 0.0), velocities=[(0.0, 0.1)]), 0.0, "velocity other than zero"),
        (JOINTS, points((1.0, 0.0, 0.0)), 8.0, "ended 1.000 s ago"),
    ],
)
def test_refuses(joints, sequence, stamp, message):
    with pytest.raises(ControllerError, match=message):
        trajectory().accept(joints, sequence, stamp, 10.0, [0.0, 0.0])


def test_partial_joints_where_allowed_leave_the_others_where_they_are():
    controller = trajectory(allow_partial_joints_goal=True)
    controller.accept(("b",), points((1.0, 2.0)), 0.0, 0.0, [0.7, 0.0])
    assert controller.sample(1.0) == pytest.approx([0.7, 2.0])


def test_forward_command_keeps_the_last_command():
    controller = ForwardCommandController(JOINTS, [0.1, 0.2])
    assert controller.sample(0.0) == pytest.approx([0.1, 0.2])
    controller.accept([1.0, 2.0])
    assert controller.sample(100.0) == pytest.approx([1.0, 2.0])


@pytest.mark.parametrize(
    ("data", "message"), [([1.0], "1 numbers for 2 joints"), ([1.0, np.inf], "not finite")]
)
def test_forward_command_refuses(data, message):
    controller = ForwardCommandController(JOINTS, [0.1, 0.2])
    with pytest.raises(ControllerError, match=message):
        controller.accept(data)
    assert controller.sample(0.0) == pytest.approx([0.1, 0.2])


def drive(**options) -> DiffDriveController:
    return DiffDriveController(0.1, 0.4, **options)


def test_drive_limits_speed_and_acceleration():
    controller = drive(linear=(1.0, 2.0), angular=(0.5, 1.0))
    controller.sample(0.0)
    controller.accept(3.0, -3.0, 0.0)
    assert controller.sample(0.1) == pytest.approx((0.2, -0.1))
    controller.accept(3.0, -3.0, 0.6)
    assert controller.sample(1.0) == pytest.approx((1.0, -0.5))


def test_drive_stops_when_commands_stay_away():
    controller = drive(linear=(1.0, 2.0))
    controller.sample(9.0)
    controller.accept(0.5, 0.0, 10.0)
    assert controller.sample(10.5)[0] == pytest.approx(0.5)
    assert controller.sample(10.6)[0] == pytest.approx(0.3)  # slows down within the limit
    assert controller.sample(11.0)[0] == 0.0


def test_drive_refuses_an_old_command_and_one_that_is_not_finite():
    controller = drive()
    with pytest.raises(ControllerError, match=r"0.700 s old"):
        controller.accept(0.5, 0.0, now=10.0, stamp=9.3)
    with pytest.raises(ControllerError, match="not finite"):
        controller.accept(float("nan"), 0.0, now=10.0)
    assert controller.sample(10.0) == (0.0, 0.0)


def test_odometry_is_exact_on_an_arc():
    controller = drive()
    controller.update_odometry(0.0, 0.0, 0.0)
    # A quarter of a circle of radius 1 m to the left, in one update.
    left, right = (1.0 - 0.2) * np.pi / 2, (1.0 + 0.2) * np.pi / 2
    controller.update_odometry(left / 0.1, right / 0.1, 2.0)
    assert controller.pose == pytest.approx([1.0, 1.0, np.pi / 2])
    assert controller.twist == pytest.approx([np.pi / 4, np.pi / 4])


def test_a_path_is_driven_in_time_and_a_pose_alone_means_stay():
    limits = load_embodiment("tiago_base").actions[0].limits
    drive = SlidingDriveController((1.0, 1.0), (2.0, 2.0), aside=False)
    driver, pose = PathDriver(drive, limits, 0.02), np.zeros(3)

    def go(begin: float, end: float) -> None:
        nonlocal pose
        for t in np.arange(begin, end, 0.005):
            driver.step(t)
            v, _, w = drive.sample(t + 0.005)
            pose = pose + 0.005 * np.array([v * np.cos(pose[2]), v * np.sin(pose[2]), w])
            drive.update_odometry(pose, t + 0.005)

    angles = np.linspace(0.0, 1.0, 5)
    arc = np.stack([np.sin(angles), 1 - np.cos(angles), angles], axis=1)
    driver.accept(arc, 10.0 + 4 * angles)
    go(10.0, 12.0)
    assert np.abs(pose - arc[2]).max() < 0.1
    driver.accept(pose[None], [12.0])
    go(12.0, 13.5)
    assert drive.sample(13.5) == (0.0, 0.0, 0.0)
    for poses, times in (([], []), ([[0.0, np.nan, 0.0]], [1.0]), (arc[:2], [1.0, 1.0])):
        with pytest.raises(ControllerError, match="path"):
            driver.accept(poses, times)
