# SPDX-License-Identifier: Apache-2.0
"""The simulated robot as other nodes see it."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Twist
from nav_msgs.msg import Odometry
from qwen_vla_ros.srv import ResetWorld
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.nodes import qos
from qwen_vla_ros.nodes.images import to_rgb
from qwen_vla_ros.nodes.lifecycle import seconds

PANDA = load_embodiment("franka_panda")


def listen(stack, kind, topic, profile=qos.SENSOR) -> list:
    seen: list = []
    stack.node.create_subscription(kind, stack.name(topic), seen.append, profile)
    return seen


def reset(stack, **request):
    return stack.call(ResetWorld, "reset_world", ResetWorld.Request(**request))


def test_a_panda_with_its_controllers_and_cameras(stack):
    sim = stack.sim(camera_rate=20.0)
    states, clock = listen(stack, JointState, "joint_states"), listen(stack, Clock, "clock")
    stack.wait_for(lambda: len(states) > 5 and len(clock) > 50, 40.0, "joint states and clock")
    assert set(PANDA.joints) <= set(states[-1].name)
    times = np.array([seconds(m.clock) for m in clock])
    assert (np.diff(times) > 0).all()
    # Every 5 ms, in whole steps of 2 ms.
    assert np.median(np.diff(times)) == pytest.approx(0.005, abs=0.0011)

    # Pictures, only for who wants them, each with its camera_info of the same stamp.
    infos = listen(stack, CameraInfo, "camera/ego/camera_info", qos.RELIABLE)
    begin = len(clock)
    stack.wait_for(lambda: len(clock) > begin + 40, 20.0, "0.2 s")
    assert not infos
    images = listen(stack, Image, "camera/ego/image_raw", qos.IMAGE)
    jpegs = listen(stack, CompressedImage, "camera/ego/image_raw/compressed", qos.IMAGE)
    stack.wait_for(lambda: len(images) > 5 and len(jpegs) > 5, 30.0, "images")
    stamped = {seconds(m.header.stamp) for m in infos}
    assert {seconds(m.header.stamp) for m in images[:-1]} <= stamped
    assert (images[0].width, images[0].height, images[0].encoding) == (128, 128, "rgb8")
    assert np.diff([seconds(m.header.stamp) for m in images]).min() == pytest.approx(0.05, abs=0.006)
    both = {seconds(m.header.stamp): m for m in images}
    jpeg = next(m for m in jpegs if seconds(m.header.stamp) in both)
    raw = to_rgb(both[seconds(jpeg.header.stamp)]).astype(float)
    assert raw.std() > 10, "the picture is empty"
    assert np.abs(to_rgb(jpeg) - raw).mean() < 6

    # Trajectories are followed; one with an unknown joint is refused and changes nothing.
    arm = stack.node.create_publisher(
        JointTrajectory, stack.name("panda_arm_controller/joint_trajectory"), qos.RELIABLE
    )
    stack.wait_for(arm.get_subscription_count, 10.0, "the controller")
    joints = list(PANDA.joints[:7])
    goal = [PANDA.home[joint] + 0.2 for joint in joints]

    def send(names, positions):
        point = JointTrajectoryPoint(positions=positions, time_from_start=Duration(nanosec=500_000_000))
        arm.publish(JointTrajectory(joint_names=names, points=[point]))

    def measured():
        position = dict(zip(states[-1].name, states[-1].position, strict=True))
        return np.array([position[joint] for joint in joints])

    send(joints, goal)
    stack.wait_for(lambda: np.abs(measured() - goal).max() < 0.03, 20.0, "the goal of the trajectory")
    send(["elbow", *joints[1:]], [0.0] * 7)
    sim.wait_for_output(r"controller of arm refuses: unknown joints \['elbow'\]")
    assert np.abs(measured() - goal).max() < 0.03

    # A reset puts the robot back and tells what to do; time goes on.
    before = seconds(states[-1].header.stamp)
    reply = reset(stack, task="reach", seed=7)
    assert reply.success
    assert reply.instruction.startswith("reach the ")
    assert reply.time_limit > 0
    stack.wait_for(lambda: np.abs(measured() - goal).max() > 0.1, 20.0, "the home position")
    assert seconds(states[-1].header.stamp) > before
    stack.wait_for(lambda: stack.world[-1].seed == 7, 10.0, "the status of the new episode")
    assert stack.world[-1].instruction == reply.instruction

    for request, text in (
        ({"task": "fly"}, "no task 'fly'"),
        ({"task": "reach", "seed": 7, "instruction": "reach the moon"}, "reach the moon"),
    ):
        reply = reset(stack, **request)
        assert not reply.success
        assert text in reply.message
    assert sim.end() == 0
    assert "Traceback" not in sim.output


def test_a_base_drives_and_stops_when_commands_stay_away(stack):
    sim = stack.sim("tiago_base")
    odometry = listen(stack, Odometry, "mobile_base_controller/odom")
    drive = stack.node.create_publisher(
        Twist, stack.name("mobile_base_controller/cmd_vel_unstamped"), qos.RELIABLE
    )
    stack.wait_for(lambda: drive.get_subscription_count() and odometry, 40.0, "the base")
    command = Twist()
    command.linear.x, command.angular.z = 0.3, 0.2

    def driven() -> bool:
        drive.publish(command)
        return odometry[-1].pose.pose.position.x > 0.15

    stack.wait_for(driven, 30.0, "15 cm")
    assert odometry[-1].twist.twist.linear.x == pytest.approx(0.3, abs=0.1)
    assert odometry[-1].pose.pose.orientation.z > 0.01
    assert odometry[-1].child_frame_id == "base_footprint"
    stack.wait_for(
        lambda: abs(odometry[-1].twist.twist.linear.x) < 0.01, 20.0, "the time-out of the controller"
    )
    assert reset(stack).success
    stack.wait_for(lambda: abs(odometry[-1].pose.pose.position.x) < 0.01, 10.0, "odometry from zero")
    assert sim.end() == 0


@pytest.mark.parametrize(("body", "text"), [("koch", "no simulated body"), ("nobody", "nobody")])
def test_a_body_that_cannot_be_simulated_ends_the_process_with_a_reason(stack, body, text):
    sim = stack.sim(body)
    assert sim.wait(40.0) == 1
    assert text in sim.output
    assert "Traceback" not in sim.output
