# SPDX-License-Identifier: Apache-2.0
"""Policy and executor for a robot that runs its own controllers and cameras."""

import os
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.substitutions import EnvironmentVariable, LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue


def generate_launch_description() -> LaunchDescription:
    config = Path(get_package_share_directory("qwen_vla_ros")) / "config"
    profile = EnvironmentVariable(
        "FASTDDS_DEFAULT_PROFILES_FILE", default_value=str(config / "fastdds_network.xml")
    )
    variables = ["FASTDDS_DEFAULT_PROFILES_FILE"]
    if os.environ.get("ROS_DISTRO") == "jazzy":
        variables.append("FASTRTPS_DEFAULT_PROFILES_FILE")  # its name there; later ones warn of it
    truth = ["true", "false"]
    arguments = [
        DeclareLaunchArgument("namespace", default_value="", description="ROS namespace of the robot."),
        DeclareLaunchArgument(
            "embodiment",
            default_value="franka_panda",
            description="Name of an embodiment, or path of its YAML file.",
        ),
        DeclareLaunchArgument(
            "checkpoint", default_value="", description="Checkpoint folder; empty: the shipped one."
        ),
        DeclareLaunchArgument("device", default_value="cpu", description="cpu, cuda, cuda:1, ..."),
        DeclareLaunchArgument(
            "use_sim_time", default_value="false", choices=truth, description="Follow /clock."
        ),
        DeclareLaunchArgument(
            "autostart",
            default_value="true",
            choices=truth,
            description="Configure and activate the nodes at start.",
        ),
        DeclareLaunchArgument(
            "log_level", default_value="info", description="debug, info, warn, error or fatal."
        ),
        DeclareLaunchArgument(
            "fastdds_profile", default_value=profile, description="XML profile of Fast DDS."
        ),
    ]

    def text(name: str) -> ParameterValue:
        return ParameterValue(LaunchConfiguration(name), value_type=str)

    def truth_value(name: str) -> ParameterValue:
        return ParameterValue(LaunchConfiguration(name), value_type=bool)

    common = {
        "embodiment": text("embodiment"),
        "use_sim_time": truth_value("use_sim_time"),
        "autostart": truth_value("autostart"),
    }
    model = {"checkpoint": text("checkpoint"), "device": text("device")}

    def node(name: str, parameters: dict) -> Node:
        return Node(
            package="qwen_vla_ros",
            executable=name,
            name=name,
            namespace=LaunchConfiguration("namespace"),
            parameters=[parameters],
            ros_arguments=["--log-level", LaunchConfiguration("log_level")],
            output="screen",
        )

    return LaunchDescription(
        [
            *arguments,
            *(SetEnvironmentVariable(name, LaunchConfiguration("fastdds_profile")) for name in variables),
            node("executor", common),
            node("policy", {**common, **model}),
        ]
    )
