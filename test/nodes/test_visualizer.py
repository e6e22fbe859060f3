# SPDX-License-Identifier: Apache-2.0
"""The visualizer as RViz sees it."""

from __future__ import annotations

import math
import signal
import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")
pytest.importorskip("pinocchio")

from nav_msgs.msg import Odometry, Path
from qwen_vla_ros.msg import ActionChunk
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from visualization_msgs.msg import Marker, MarkerArray

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.nodes import qos
from qwen_vla_ros.nodes.plan_geometry import RobotModel
from qwen_vla_ros.resources import embodiments_directory

PANDA = load_embodiment("franka_panda")


def listen(stack, kind, topic, profile=qos.RELIABLE) -> list:
    seen: list = []
    stack.node.create_subscription(kind, stack.name(topic), seen.append, profile)
    return seen


def by_name(array) -> dict[str, Marker]:
    return {marker.ns: marker for marker in array.markers if marker.action == Marker.ADD}


def points(marker) -> np.ndarray:
    return np.array([[point.x, point.y, point.z] for point in marker.points])


def test_the_plan_of_a_robot_that_moves(stack):
    stack.sim()
    stack.run_executor()
    stack.fake_policy()
    visualizer = stack.start("visualizer", embodiment="franka_panda")
    arrays = listen(stack, MarkerArray, "visualizer/plan")
    ghosts = listen(stack, JointState, "visualizer/ghost_joint_states")
    descriptions = listen(stack, String, "robot_description", qos.LATCHED)
    stack.wait_ready()
    stack.wait_for(lambda: arrays and descriptions, 40.0, "markers and robot_description")
    assert by_name(arrays[-1])["text"].text.splitlines()[0] == "no task"
    task = stack.running(stack.send("wave to me"))

    def whole() -> dict[str, Marker] | None:
        markers = by_name(arrays[-1])
        return markers if "rest/arm/tool" in markers and "committed/arm/tool" in markers else None

    seen = stack.wait_for(whole, 20.0, "a plan with a committed part")
    assert {"robot", "ghost", "goal/arm/tool", "rows/arm/tool", "text"} <= set(seen)
    assert {marker.header.frame_id for marker in seen.values()} == {"world"}
    assert seen["committed/arm/tool"].scale.x > seen["rest/arm/tool"].scale.x
    lines = seen["text"].text.splitlines()
    assert lines[0] == "wave to me"
    assert lines[1].startswith("running, chunk ")

    # The last point is where the last row of some chunk brings the tool; so is the ghost's pose.
    model = RobotModel(descriptions[-1].data, "robot_description")
    ends = []
    for chunk in stack.chunks:
        row = dict(zip(PANDA.joints, chunk.data[-len(PANDA.joints) :], strict=True))
        ends.append(model.poses(row, ["tool"])[0, :3])
    last = points(seen["rows/arm/tool"])[-1]
    assert np.abs(np.array(ends) - last).max(axis=1).min() < 1e-6
    ghost = dict(zip(ghosts[-1].name, ghosts[-1].position, strict=True))
    assert np.abs(np.array(ends) - model.poses(ghost, ["tool"])[0, :3]).max(axis=1).min() < 1e-6
    # Time goes from yellow to blue along the path.
    shades = [colour.b for colour in seen["rows/arm/tool"].colors]
    assert shades[-1] > shades[0]

    task.cancel()
    task.result()
    stack.wait_for(lambda: set(by_name(arrays[-1])) == {"robot", "text"}, 20.0, "an empty plan")
    gone = {marker.ns for array in arrays for marker in array.markers if marker.action == Marker.DELETE}
    assert {"rest/arm/tool", "ghost", "rows/arm/tool"} <= gone
    assert visualizer.end() == 0


def test_a_base_has_a_path_in_the_frame_of_its_odometry(stack):
    stack.start("visualizer", embodiment="tiago_base", use_sim_time=False)
    paths = listen(stack, Path, "visualizer/base_path")
    stack.wait_for(lambda: paths, 40.0, "a path")
    assert not paths[-1].poses
    odometry = stack.node.create_publisher(Odometry, stack.name("mobile_base_controller/odom"), qos.RELIABLE)
    chunks = stack.node.create_publisher(ActionChunk, stack.name("action_chunk"), qos.RELIABLE)
    pose = Odometry()
    pose.header.frame_id, pose.child_frame_id = "my_odom", "base_footprint"
    pose.pose.pose.position.x = 1.0
    pose.pose.pose.orientation.z = pose.pose.pose.orientation.w = math.sqrt(0.5)  # facing y
    rows = np.array([[0.1 * (k + 1), 0.0, 0.0] for k in range(8)])

    def drawn() -> bool:
        now = stack.node.get_clock().now().to_msg()
        pose.header.stamp = now
        odometry.publish(pose)
        chunk = ActionChunk(
            embodiment="tiago_base",
            task_id=1,
            sequence=1,
            channels=["base/dx", "base/dy", "base/dtheta"],
            step=0.5,
            horizon=8,
            data=rows.ravel().tolist(),
        )
        chunk.header.stamp = now
        chunks.publish(chunk)
        return paths[-1].header.frame_id == "my_odom" and len(paths[-1].poses) == 8

    stack.wait_for(drawn, 20.0, "the path of a chunk")
    path = np.array([[p.pose.position.x, p.pose.position.y] for p in paths[-1].poses])
    np.testing.assert_allclose(path, np.column_stack([np.ones(8), rows[:, 0]]), atol=1e-9)


SLIDE = """<joint name="{0}" type="prismatic"><parent link="{1}"/><child link="{2}"/><axis xyz="{3}"/>
<limit lower="0" upper="1" velocity="1" effort="1"/></joint>"""


def test_a_joint_of_the_driver_alone_is_drawn_by_its_parts_and_a_missing_one_is_named(stack):
    links = ["base_link", "mast", "l3", "l2", "l1", "l0"]
    joints = ["joint_lift", *(f"joint_arm_{link}" for link in links[2:])]
    urdf = '<robot name="r">' + "".join(f'<link name="{link}"/>' for link in links)
    for k, joint in enumerate(joints):
        urdf += SLIDE.format(joint, links[k], links[k + 1], "1 0 0" if k else "0 0 1")
    body = load_embodiment("stretch")
    visualizer = stack.start(
        "visualizer", embodiment="stretch", robot_description=f"{urdf}</robot>", use_sim_time=False
    )
    arrays = listen(stack, MarkerArray, "visualizer/plan")
    ghosts = listen(stack, JointState, "visualizer/ghost_joint_states")
    text = visualizer.wait_for_output(r"no joint [^;]*;", 40.0).group()
    assert text == "no joint joint_wrist_yaw, joint_wrist_pitch, joint_wrist_roll, joint_gripper_finger_left;"
    states = stack.node.create_publisher(JointState, stack.name("stretch/joint_states"), qos.SENSOR)
    chunks = stack.node.create_publisher(ActionChunk, stack.name("action_chunk"), qos.RELIABLE)
    rows = np.zeros((body.horizon, body.layout.count))
    rows[:, 0], rows[:, 1] = 0.5, np.linspace(0.1, 0.4, body.horizon)

    def drawn() -> Marker | None:
        now = stack.node.get_clock().now().to_msg()
        state = JointState(name=list(body.joints), position=[0.5, 0.1, 0.0, 0.0, 0.0, 0.0])
        state.header.stamp = now
        states.publish(state)
        chunk = ActionChunk(
            embodiment="stretch",
            task_id=1,
            sequence=1,
            channels=list(body.layout.names),
            step=1.0 / body.control_rate,
            horizon=body.horizon,
            data=rows.ravel().tolist(),
        )
        chunk.header.stamp = now
        chunks.publish(chunk)
        return by_name(arrays[-1]).get("rows/arm/l0") if arrays and ghosts else None

    path = points(stack.wait_for(drawn, 20.0, "the path of the telescope"))
    np.testing.assert_allclose(path[-1], [0.4, 0.0, 0.5], atol=1e-9)
    robot = points(by_name(arrays[-1])["robot"])
    np.testing.assert_allclose(robot[-1], [0.1, 0.0, 0.5], atol=1e-9)
    ghost = dict(zip(ghosts[-1].name, ghosts[-1].position, strict=True))
    assert [ghost[joint] for joint in joints[1:]] == pytest.approx([0.1] * 4)


def test_a_missing_or_foreign_description_is_refused(stack):
    silent = stack.start("visualizer", embodiment="unitree_g1", description_timeout=0.2)
    panda = str(embodiments_directory() / "kinematics/franka_panda.urdf")
    foreign = stack.start("visualizer", embodiment="unitree_g1", robot_description=panda)
    text = silent.wait_for_output(r"configure failed: .*", 40.0).group()
    assert "paths of arms need the robot's URDF" in text
    assert f"nobody published it on {stack.namespace}/robot_description within 0.2 s" in text
    text = foreign.wait_for_output(r"configure failed: .*", 40.0).group()
    assert "franka_panda.urdf: no joint left_shoulder_pitch_joint" in text
    # Ctrl-C in a terminal reaches a launched node twice, and may do so at any time.
    while silent.returncode is None or foreign.returncode is None:
        for process in (silent, foreign):
            if process.returncode is None:
                process.send_signal(signal.SIGINT)
        time.sleep(0.002)
    assert silent.returncode == foreign.returncode == 0, silent.output + foreign.output
