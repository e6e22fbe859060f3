# SPDX-License-Identifier: Apache-2.0
"""RViz with robot, cameras and plan."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from qwen_vla_ros.embodiment import load_embodiment

CONFIGS = Path(get_package_share_directory("qwen_vla_ros")) / "config" / "rviz"
BY_ARMS = {"single": "arm", "dual": "bimanual", "none": "base"}


def start(context: LaunchContext) -> list:
    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    config = value("rviz_config") or BY_ARMS[load_embodiment(value("embodiment")).prompt.arms]
    path = Path(config) if config.endswith(".rviz") else CONFIGS / f"{config}.rviz"
    if not path.is_file():
        raise RuntimeError(
            f"rviz_config: found {config}, expected a .rviz file or one of "
            f"{', '.join(sorted(file.stem for file in CONFIGS.glob('*.rviz')))}"
        )
    frame = value("fixed_frame")
    return [
        Node(
            package="rviz2",
            executable="rviz2",
            name="rviz",
            namespace=value("namespace"),
            arguments=["-d", str(path), *(["-f", frame] if frame else [])],
            parameters=[{"use_sim_time": value("use_sim_time") == "true"}],
            ros_arguments=["--log-level", value("log_level")],
            output="screen",
        )
    ]


def generate_launch_description() -> LaunchDescription:
    arguments = [
        ("namespace", "", "ROS namespace of the robot.", None),
        ("embodiment", "franka_panda", "Name of an embodiment, or path of its YAML file.", None),
        ("rviz_config", "", "arm, bimanual, base, humanoid, or a .rviz file; empty: by embodiment.", None),
        ("fixed_frame", "", "Frame of the picture; empty: that of the configuration.", None),
        ("use_sim_time", "false", "Follow /clock.", ["true", "false"]),
        ("log_level", "info", "debug, info, warn, error or fatal.", None),
    ]
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=text, choices=choices)
                for name, default, text, choices in arguments
            ),
            OpaqueFunction(function=start),
        ]
    )
