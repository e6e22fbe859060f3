# SPDX-License-Identifier: Apache-2.0
"""RViz with robot, first camera and plan."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from qwen_vla_ros import launching

SHARE = Path(get_package_share_directory("qwen_vla_ros"))
CONFIGS = SHARE / "config" / "rviz"


def start(context: LaunchContext) -> list:
    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    config = value("rviz_config")
    if config.endswith(".rviz"):
        path = Path(config)
    else:
        body = launching.read_body(value("embodiment"))
        path = CONFIGS / f"{config or body.scene}.rviz"
    if not path.is_file():
        raise RuntimeError(
            f"rviz_config: found {config}, expected a .rviz file or one of "
            f"{', '.join(sorted(file.stem for file in CONFIGS.glob('*.rviz')))}"
        )
    if not config.endswith(".rviz"):
        path = launching.temporary_file(launching.rviz_config(path.read_text(), body), ".rviz")
    frame, clock, simulated = value("fixed_frame"), value("clock"), value("use_sim_time") == "true"
    return [
        Node(
            package="rviz2",
            executable="rviz2",
            name="rviz",
            namespace=value("namespace"),
            arguments=["-d", str(path), *(["-f", frame] if frame else [])],
            parameters=[{"use_sim_time": simulated}],
            # With the clock of a simulated robot go its transforms.
            remappings=[("/clock", clock), ("/tf", "tf"), ("/tf_static", "tf_static")]
            if clock != "/clock" and simulated
            else None,
            ros_arguments=["--log-level", value("log_level")],
            output="screen",
        )
    ]


def generate_launch_description() -> LaunchDescription:
    profile = launching.fastdds_default(SHARE / "config", "fastdds_network.xml")
    arguments = [
        ("namespace", "", "ROS namespace of the robot.", None),
        ("embodiment", "franka_panda", "Name of an embodiment, or path of its YAML file.", None),
        ("rviz_config", "", "arm, bimanual, base, humanoid, or a .rviz file; empty: by embodiment.", None),
        ("fixed_frame", "", "Frame of the picture; empty: that of the configuration.", None),
        ("use_sim_time", "false", "Follow the clock.", ["true", "false"]),
        # Every robot of sim.launch.py has a clock in its namespace.
        ("clock", "clock", "Topic of the clock, in the namespace; /clock: one for all, as Gazebo's.", None),
        ("log_level", "info", "debug, info, warn, error or fatal.", None),
        ("fastdds_profile", profile, "XML profile of Fast DDS.", None),
    ]
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=text, choices=choices)
                for name, default, text, choices in arguments
            ),
            *(
                SetEnvironmentVariable(name, LaunchConfiguration("fastdds_profile"))
                for name in launching.fastdds_variables()
            ),
            OpaqueFunction(function=start),
        ]
    )
