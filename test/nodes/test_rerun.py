# SPDX-License-Identifier: Apache-2.0
"""What the node `rerun` writes, read back by Rerun itself."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")
pytest.importorskip("rerun.chunk", reason="needs rerun-sdk 0.39, which reads its files")

import rerun
from geometry_msgs.msg import Point, PoseStamped
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from qwen_vla_ros.msg import ActionChunk, ExecutorStatus
from rerun import chunk
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import ColorRGBA
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint
from visualization_msgs.msg import Marker, MarkerArray

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.nodes import qos
from qwen_vla_ros.nodes.images import rgb_to_encoding
from qwen_vla_ros.nodes.lifecycle import ConfigurationError
from qwen_vla_ros.nodes.rerun_node import RerunNode, command_reader, shape

PANDA = load_embodiment("franka_panda")
ARM = PANDA.joints[:7]
RED, BLUE = ColorRGBA(r=1.0, a=1.0), ColorRGBA(b=1.0, a=0.5)


def line(ns: str, kind: int = Marker.LINE_STRIP, **more) -> Marker:
    marker = Marker(ns=ns, type=kind, color=RED, **more)
    marker.points = [Point(x=float(k), y=2.0 * k, z=0.5) for k in range(4)]
    marker.scale.x = 0.02
    marker.header.frame_id = "world"
    return marker


def rows(path: Path, entity: str, component: str) -> list:
    """All values of a component, in the order written."""
    found: list = []
    for part in chunk.RrdReader(path).stream().to_chunks():
        if part.entity_path == entity:
            batch = part.to_record_batch()
            for name in batch.schema.names:
                if name.split(":")[-1] == component:
                    found += [value for value in batch.column(name).to_pylist() if value]
    return found


def test_a_recording_holds_what_was_published(stack, tmp_path):
    path = tmp_path / "run.rrd"
    node = stack.start("rerun", embodiment="franka_panda", output=str(path), use_sim_time=False)
    send = {
        name: (stack.node.create_publisher(kind, stack.name(topic), profile), make)
        for name, kind, topic, profile, make in (
            ("plan", MarkerArray, "visualizer/plan", qos.RELIABLE, plan),
            ("picture", Image, "camera/ego/image_raw", qos.IMAGE, picture),
            ("joints", JointState, "joint_states", qos.SENSOR, joints),
            (
                "command",
                JointTrajectory,
                "panda_arm_controller/joint_trajectory",
                qos.COMMAND,
                command,
            ),
            ("chunk", ActionChunk, "action_chunk", qos.RELIABLE, lambda: ActionChunk(inference_time=0.25)),
            (
                "status",
                ExecutorStatus,
                "executor_status",
                qos.LATCHED,
                lambda: ExecutorStatus(capture_to_command=0.5),
            ),
        )
    }
    expected = {
        "/cameras/ego",
        "/groups/arm/commanded",
        "/groups/arm/measured",
        "/latency/capture\\ to\\ command",
        "/latency/inference",
        "/scene/robot/committed/arm/tool/0",
        "/status",
    }

    def written() -> bool:
        now = stack.node.get_clock().now().to_msg()
        for publisher, make in send.values():
            message = make()
            if hasattr(message, "header"):
                message.header.stamp = now
            publisher.publish(message)
        if not path.is_file() or not path.stat().st_size:
            return False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the file is still being written
            try:
                reader = chunk.RrdReader(path)
                return bool(reader.recordings()) and expected <= {
                    part.entity_path for part in reader.stream().to_chunks()
                }
            except RuntimeError as error:
                if "Failed to decode" not in str(error):
                    raise
                return False  # it ends within a message

    stack.wait_for(written, 40.0, "everything in the recording")
    assert node.end() == 0
    assert "WARN" not in node.output, node.output
    np.testing.assert_allclose(rows(path, "/groups/arm/measured", "scalars")[-1], np.arange(7) / 10)
    np.testing.assert_allclose(rows(path, "/groups/arm/commanded", "scalars")[-1], np.arange(7) / 5)
    assert rows(path, "/latency/inference", "scalars")[-1] == [0.25]
    assert rows(path, "/status", "text")[-1] == ["reach the red cube\nrunning"]
    strips = rows(path, "/scene/robot/committed/arm/tool/0", "strips")[-1]
    np.testing.assert_allclose(strips[0], [[0.0, 0.0, 0.5], [1.0, 2.0, 0.5]])
    jpeg = bytes(rows(path, "/cameras/ego", "blob")[-1][0])
    assert jpeg.startswith(b"\xff\xd8")


def plan() -> MarkerArray:
    text = Marker(ns="text", type=Marker.TEXT_VIEW_FACING, text="reach the red cube\nrunning")
    return MarkerArray(markers=[line("robot", Marker.LINE_LIST), line("committed/arm/tool"), text])


def picture() -> Image:
    return rgb_to_encoding(np.full((128, 128, 3), 90, np.uint8), "rgb8", Image().header)


def joints() -> JointState:
    # In an order of its own, and with a joint that nobody asked for.
    names = ["other", *reversed(ARM)]
    return JointState(name=names, position=[9.0, *(np.arange(7)[::-1] / 10).tolist()])


def command() -> JointTrajectory:
    point = JointTrajectoryPoint(positions=(np.arange(7)[::-1] / 5).tolist())
    return JointTrajectory(joint_names=list(reversed(ARM)), points=[point])


@pytest.fixture
def node(ros_environment):
    import rclpy

    rclpy.init(args=[])
    made = RerunNode()
    yield made
    made.destroy_node()
    rclpy.try_shutdown()


def test_the_scene_of_a_base_moves_with_its_odometry(node):
    """Plans of a base lie in the frame of its odometry, links of the robot in that of the base."""
    calls: list = []
    node._rerun, node._pose_frame, node._logged = rerun, "odom", {}
    node._log = lambda path, stamp, *what: calls.append((path, what[0]))
    node.embodiment = load_embodiment("tiago_base")
    heard = Odometry()
    heard.header.frame_id = "my_odom"
    heard.pose.pose.position.x, heard.twist.twist.angular.z = 1.5, 0.25
    heard.pose.pose.orientation.w = 1.0
    node._on_pose(heard)
    (place, pose), (_, velocity) = calls
    assert place == ["scene", "robot"]
    assert pose.translation.as_arrow_array().to_pylist() == [[1.5, 0.0, 0.0]]
    assert velocity.scalars.as_arrow_array().to_pylist() == [0.0, 0.25]
    marker = line("rest/base")
    marker.header.frame_id = "my_odom"
    node._framed = True
    node._on_markers(MarkerArray(markers=[marker, line("robot"), line("ghost", action=Marker.DELETE)]))
    assert [path for path, _ in calls[2:]] == [
        ["scene", "odometry", "rest", "base", "0"],
        ["scene", "robot", "robot", "0"],
        ["scene", "robot", "ghost", "0"],
    ]
    assert isinstance(calls[4][1], rerun.Clear)
    route = PathMessage(poses=[PoseStamped(), PoseStamped()])
    route.poses[1].pose.position.x = 0.5
    node._on_path(route, "base")
    place, line_drawn = calls[5]
    assert place == ["scene", "odometry", "path", "base"]
    assert line_drawn.strips.as_arrow_array().to_pylist() == [[[0.0, 0.0, 0.0], [0.5, 0.0, 0.0]]]


def test_a_pose_moves_the_robot_and_tells_no_velocity(node):
    calls: list = []
    node._rerun, node._pose_frame, node._logged = rerun, "odom", {}
    node._log = lambda path, stamp, *what: calls.append((path, what[0]))
    node.embodiment = load_embodiment("tiago_base")
    heard = PoseStamped()
    heard.header.frame_id, heard.pose.position.x = "map", 1.5
    node._on_pose(heard)
    ((place, pose),) = calls
    assert (place, node._pose_frame) == (["scene", "robot"], "map")
    assert pose.translation.as_arrow_array().to_pylist() == [[1.5, 0.0, 0.0]]


def test_markers_become_shapes():
    strip = line("rest/arm/tool")
    strip.colors = [RED, RED, BLUE, BLUE]
    drawn = shape(strip)
    assert drawn.colors.as_arrow_array().to_pylist() == [0xFF0000FF, 0x0000FF80, 0x0000FF80]
    assert len(drawn.strips) == 3
    assert len(shape(line("robot", Marker.LINE_LIST)).strips) == 2
    assert len(shape(line("rows/arm/tool", Marker.SPHERE_LIST)).positions) == 4
    arrow = Marker(ns="goal/base", type=Marker.ARROW)
    arrow.scale.x, arrow.pose.orientation.z, arrow.pose.orientation.w = 0.3, np.sqrt(0.5), np.sqrt(0.5)
    np.testing.assert_allclose(
        shape(arrow).vectors.as_arrow_array().to_pylist(), [[0.0, 0.3, 0.0]], atol=1e-6
    )
    with pytest.raises(ValueError, match="type 10 is not drawn"):
        shape(Marker(ns="x", type=Marker.MESH_RESOURCE))


def test_commands_of_others_that_say_less_are_not_shown(node):
    said, calls = [], []
    node.get_logger = lambda: SimpleNamespace(warning=lambda text, **_: said.append(text))
    node._due = lambda name: True
    node._series = lambda *what: calls.append(what)
    arm = PANDA.actions[0]
    _, read = command_reader(arm)
    point = JointTrajectoryPoint(positions=[0.1])
    for message in (JointTrajectory(), JointTrajectory(joint_names=[arm.joints[0]], points=[point])):
        node._on_command(message, "arm", read)
    assert len(said) == 2
    assert not calls


def test_commands_are_read_in_the_order_of_the_group():
    arm, gripper = PANDA.actions
    kind, read = command_reader(arm)
    assert kind is JointTrajectory
    assert read(command()) == (np.arange(7) / 5).tolist()
    assert command_reader(gripper) is not None
    assert command_reader(load_embodiment("xarm7").actions[1]) is None


@pytest.mark.parametrize("output", ["run.mcap", "/nowhere/run.rrd"])
def test_an_output_that_cannot_be_is_refused(output, node):
    with pytest.raises(ConfigurationError, match=r"expected a \.rrd file in a folder that exists"):
        node._open(output)


def test_without_the_package_it_says_what_to_install(monkeypatch, node):
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(ConfigurationError, match="pip install rerun-sdk"):
        node.configure(PANDA)
