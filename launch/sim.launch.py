# SPDX-License-Identifier: Apache-2.0
"""A robot simulated by MuJoCo, with all nodes. Arguments: those of robot.launch.py too."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node, SetRemap
from launch_ros.parameter_descriptions import ParameterValue

from qwen_vla_ros import launching

SHARE = Path(get_package_share_directory("qwen_vla_ros"))


def check(context: LaunchContext) -> None:
    """Before any process starts: launch does not end them when something after them raises."""
    seed = LaunchConfiguration("seed").perform(context)
    if not seed.isdecimal():
        raise RuntimeError(f"seed: found {seed!r}, expected a whole number")


def start(context: LaunchContext) -> list:
    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    parameters = {
        name: ParameterValue(value(name), value_type=str) for name in ("embodiment", "model", "task")
    }
    parameters["seed"] = int(value("seed"))
    return [
        Node(
            package="qwen_vla_ros",
            executable="sim",
            name="sim",
            namespace=value("namespace"),
            parameters=[parameters, *filter(None, [value("params_file")])],
            ros_arguments=["--log-level", value("log_level")],
            output="screen",
        )
    ]


def generate_launch_description() -> LaunchDescription:
    profile = launching.fastdds_default(SHARE / "config", "fastdds.xml")
    robot = PythonLaunchDescriptionSource(str(SHARE / "launch" / "robot.launch.py"))
    return LaunchDescription(
        [
            DeclareLaunchArgument("model", default_value="", description="URDF or MJCF file of the robot."),
            DeclareLaunchArgument("task", default_value="", description="First task; empty: the body's own."),
            DeclareLaunchArgument("seed", default_value="0", description="Seed of the first episode."),
            # Declared before robot.launch.py declares them, so that these defaults count.
            DeclareLaunchArgument("use_sim_time", default_value="true", description="Follow /clock."),
            DeclareLaunchArgument(
                "fastdds_profile", default_value=profile, description="XML profile of Fast DDS."
            ),
            OpaqueFunction(function=check),
            # Every simulated world has a clock of its own, and what is stamped by it: those of its namespace.
            SetRemap("/clock", "clock"),
            SetRemap("/tf", "tf"),
            SetRemap("/tf_static", "tf_static"),
            IncludeLaunchDescription(robot),
            OpaqueFunction(function=start),
        ]
    )
