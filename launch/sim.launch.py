# SPDX-License-Identifier: Apache-2.0
"""A simulated robot with policy and executor. Arguments: those of robot.launch.py."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import EnvironmentVariable, LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue


def generate_launch_description() -> LaunchDescription:
    share = Path(get_package_share_directory("qwen_vla_ros"))
    profile = EnvironmentVariable(
        "FASTDDS_DEFAULT_PROFILES_FILE", default_value=str(share / "config" / "fastdds.xml")
    )
    return LaunchDescription(
        [
            # Declared before robot.launch.py declares them, so that these defaults count.
            DeclareLaunchArgument("use_sim_time", default_value="true", description="Follow /clock."),
            DeclareLaunchArgument(
                "fastdds_profile", default_value=profile, description="XML profile of Fast DDS."
            ),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(share / "launch" / "robot.launch.py"))
            ),
            Node(
                package="qwen_vla_ros",
                executable="sim",
                name="sim",
                namespace=LaunchConfiguration("namespace"),
                parameters=[
                    {"embodiment": ParameterValue(LaunchConfiguration("embodiment"), value_type=str)}
                ],
                ros_arguments=["--log-level", LaunchConfiguration("log_level")],
                output="screen",
            ),
        ]
    )
