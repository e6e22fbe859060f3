# SPDX-License-Identifier: Apache-2.0
"""A robot with gz_ros2_control in Gazebo, with policy, executor and visualizer.

The robot is a URDF or xacro file with a <ros2_control> part for gz_ros2_control. Arguments: those of
robot.launch.py too.
"""

import os
from pathlib import Path

from ament_index_python.packages import get_package_prefix, get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import (
    AppendEnvironmentVariable,
    DeclareLaunchArgument,
    IncludeLaunchDescription,
    OpaqueFunction,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import Command, LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from qwen_vla_ros import launching

SHARE = Path(get_package_share_directory("qwen_vla_ros"))
WORLDS = SHARE / "config" / "gazebo"
PACKAGES = ("controller_manager", "robot_state_publisher", "ros_gz_bridge", "ros_gz_sim", "xacro")


def prepare(context: LaunchContext) -> list:
    def value(name: str, default: str | None = None) -> str:
        return LaunchConfiguration(name, default=default).perform(context)

    # Those two are declared by robot.launch.py, which comes later.
    body, namespace = launching.read_body(value("embodiment", "franka_panda")), value("namespace", "")
    world = value("world") or body.scene
    path = Path(world) if world.endswith(".sdf") else WORLDS / f"{world}.sdf"
    for name, file in (("world", str(path)), ("robot", value("robot"))):
        if not Path(file).is_file():
            raise RuntimeError(f"{name}: found {file!r}, expected a file; see --show-args")
    bridges, compressed = launching.gazebo_bridges(body, namespace)
    for package in (*PACKAGES, *(["ros_gz_image"] if compressed else [])):
        get_package_prefix(package)
    urdf = ParameterValue(Command(["xacro ", value("robot")]).perform(context), value_type=str)
    gz = PythonLaunchDescriptionSource(
        str(Path(get_package_share_directory("ros_gz_sim")) / "launch" / "gz_sim.launch.py")
    )
    text = path.read_text()
    fitted = launching.gazebo_world(text, body, namespace)
    # As it is, where it can be: what it refers to lies beside it.
    file = str(path) if fitted == text else launching.temporary_file(fitted, ".sdf")
    arguments = f"-r {'-s ' if value('headless') == 'true' else ''}{file}"
    # Where Gazebo looks for package://, which it reads as model://, and for what lies beside the world.
    prefixes = filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep))
    places = [*(str(Path(prefix) / "share") for prefix in prefixes), str(path.resolve().parent)]

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
        *(AppendEnvironmentVariable("GZ_SIM_RESOURCE_PATH", place) for place in places),
        IncludeLaunchDescription(gz, launch_arguments={"gz_args": arguments}.items()),
        node("robot_state_publisher", "robot_state_publisher", robot_description=urdf),
        node("ros_gz_sim", "create", ["-topic", "robot_description", "-name", body.name]),
        node("ros_gz_bridge", "parameter_bridge", bridges),
        *([node("ros_gz_image", "image_bridge", compressed)] if compressed else []),
        *(
            node("controller_manager", "spawner", [*controllers, "--controller-manager", manager])
            for manager, controllers in launching.ros2_control(body, namespace).items()
        ),
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
