# SPDX-License-Identifier: Apache-2.0
"""A robot with gz_ros2_control in Gazebo, with policy, executor and visualizer.

The robot is a URDF or xacro file with a <ros2_control> part for gz_ros2_control. Arguments: those of
robot.launch.py too.
"""

import tempfile
from pathlib import Path
from xml.etree import ElementTree

from ament_index_python.packages import get_package_prefix, get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import Command, LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from qwen_vla_ros.embodiment import Embodiment, load_embodiment

SHARE = Path(get_package_share_directory("qwen_vla_ros"))
WORLDS = SHARE / "config" / "gazebo"
BY_ARMS = {"single": "arm", "dual": "bimanual", "none": "base"}
IN_ROS2_CONTROL = (
    "joint_trajectory",
    "forward_command",
    "gripper_command",
    "parallel_gripper_command",
    "diff_drive",
)


PACKAGES = ("controller_manager", "robot_state_publisher", "ros_gz_bridge", "ros_gz_sim", "xacro")


def absolute(namespace: str, topic: str) -> str:
    return topic if topic.startswith("/") else "/" + f"{namespace}/{topic}".strip("/")


def fit(world: Path, embodiment: Embodiment, namespace: str) -> str:
    """The world with its cameras as the embodiment wants them: topic, width, height."""
    tree = ElementTree.parse(world)
    cameras = {camera.view: camera for camera in embodiment.cameras}
    for sensor in tree.iter("sensor"):
        camera = cameras.get(sensor.get("name", ""))
        if camera is not None:
            sensor.find("topic").text = absolute(namespace, camera.topic)
            for name, size in zip(("width", "height"), camera.size, strict=True):
                sensor.find(f"camera/image/{name}").text = str(size)
    with tempfile.NamedTemporaryFile(suffix=".sdf", delete=False) as file:
        tree.write(file)
    return file.name


def prepare(context: LaunchContext) -> list:
    def value(name: str, default: str | None = None) -> str:
        return LaunchConfiguration(name, default=default).perform(context)

    # Those two are declared by robot.launch.py, which comes later.
    embodiment, namespace = load_embodiment(value("embodiment", "franka_panda")), value("namespace", "")
    world = value("world") or BY_ARMS[embodiment.prompt.arms]
    path = Path(world) if world.endswith(".sdf") else WORLDS / f"{world}.sdf"
    for name, file in (("world", str(path)), ("robot", value("robot"))):
        if not Path(file).is_file():
            raise RuntimeError(f"{name}: found {file!r}, expected a file; see --show-args")
    for package in PACKAGES:
        get_package_prefix(package)
    urdf = ParameterValue(Command(["xacro ", value("robot")]).perform(context), value_type=str)
    images = [absolute(namespace, camera.topic) for camera in embodiment.cameras]
    topics = [
        g.controller.topic.strip("/") for g in embodiment.actions if g.controller.type in IN_ROS2_CONTROL
    ]
    controllers = {topic.partition("/")[0] for topic in topics if "/" in topic}
    gz = PythonLaunchDescriptionSource(
        str(Path(get_package_share_directory("ros_gz_sim")) / "launch" / "gz_sim.launch.py")
    )
    arguments = f"-r {'-s ' if value('headless') == 'true' else ''}{fit(path, embodiment, namespace)}"

    def node(package: str, executable: str, words: list | None = None, **parameters) -> Node:
        return Node(
            package=package,
            executable=executable,
            namespace=namespace,
            arguments=words,
            parameters=[{"use_sim_time": True, **parameters}],
            output="screen",
        )

    return [
        IncludeLaunchDescription(gz, launch_arguments={"gz_args": arguments}.items()),
        node("robot_state_publisher", "robot_state_publisher", robot_description=urdf),
        node("ros_gz_sim", "create", ["-topic", "robot_description", "-name", embodiment.name]),
        node(
            "ros_gz_bridge",
            "parameter_bridge",
            [
                "/clock@rosgraph_msgs/msg/Clock[gz.msgs.Clock",
                *(f"{topic}@sensor_msgs/msg/Image[gz.msgs.Image" for topic in images),
            ],
        ),
        node("controller_manager", "spawner", ["joint_state_broadcaster", *sorted(controllers)]),
    ]


def generate_launch_description() -> LaunchDescription:
    robot = PythonLaunchDescriptionSource(str(SHARE / "launch" / "robot.launch.py"))
    # What can fail comes first: launch does not end what it has started when something after it raises.
    prepared: list = []
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "world",
                default_value="",
                description="arm, bimanual, base, humanoid, or an .sdf file; empty: by embodiment.",
            ),
            DeclareLaunchArgument(
                "robot",
                default_value="",
                description="URDF or xacro file of the robot, with gz_ros2_control; required.",
            ),
            DeclareLaunchArgument(
                "headless", default_value="false", choices=["true", "false"], description="No window."
            ),
            # Declared before robot.launch.py declares it, so that this default counts.
            DeclareLaunchArgument("use_sim_time", default_value="true", description="Follow /clock."),
            OpaqueFunction(function=lambda context: prepared.extend(prepare(context))),
            IncludeLaunchDescription(robot),
            OpaqueFunction(function=lambda context: prepared),
        ]
    )
