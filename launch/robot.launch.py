# SPDX-License-Identifier: Apache-2.0
"""Policy, executor and visualizer for a robot that runs its own controllers and cameras."""

from pathlib import Path

from ament_index_python.packages import get_package_prefix, get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    IncludeLaunchDescription,
    OpaqueFunction,
    SetEnvironmentVariable,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from qwen_vla_ros import launching

TRUTH = ["true", "false"]
SHARE = Path(get_package_share_directory("qwen_vla_ros"))


def start(context: LaunchContext) -> list:
    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    def node(name: str, texts: tuple = (), flags: tuple = (), settings: dict | None = None) -> Node:
        parameters = {text: ParameterValue(value(text), value_type=str) for text in ("embodiment", *texts)}
        parameters |= {flag: value(flag) == "true" for flag in ("use_sim_time", "autostart", *flags)}
        parameters |= settings or {}
        return Node(
            package="qwen_vla_ros",
            executable=name,
            name=name,
            namespace=value("namespace"),
            parameters=[parameters, *filter(None, [value("params_file")])],
            ros_arguments=["--log-level", value("log_level")],
            output="screen",
        )

    # What can fail comes first: launch does not end what it has started when something after it raises.
    actions = []
    if value("foxglove") == "true":
        get_package_prefix("foxglove_bridge")
    if value("rviz") == "true":
        rviz = PythonLaunchDescriptionSource(str(SHARE / "launch" / "rviz.launch.py"))
        # Its clock is that of the nodes: sim.launch.py has remapped it for all of them.
        actions.append(IncludeLaunchDescription(rviz, launch_arguments={"clock": "/clock"}.items()))
    if value("foxglove") == "true":
        actions.append(
            Node(
                package="foxglove_bridge",
                executable="foxglove_bridge",
                name="foxglove_bridge",
                namespace=value("namespace"),
                parameters=[
                    {"use_sim_time": value("use_sim_time") == "true"},
                    *filter(None, [value("params_file")]),
                ],
                ros_arguments=["--log-level", value("log_level")],
                output="screen",
            )
        )
    actions += [node("executor", flags=("dry_run",)), node("policy", ("checkpoint", "device", "backend"))]
    if value("visualizer") == "true":
        actions.append(node("visualizer", ("robot_description",)))
    if (output := value("rerun")) != "false":
        settings = {"output": "" if output == "true" else output}
        actions.append(node("rerun", settings=settings))
    return actions


def generate_launch_description() -> LaunchDescription:
    profile = launching.fastdds_default(SHARE / "config", "fastdds_network.xml")
    arguments = [
        ("namespace", "", "ROS namespace of the robot.", None),
        ("embodiment", "franka_panda", "Name of an embodiment, or path of its YAML file.", None),
        ("checkpoint", "", "Checkpoint folder; empty: the shipped one.", None),
        ("device", "auto", "auto, cpu, cuda, cuda:1, ...", None),
        ("backend", "auto", "auto, eager, engine, onnx, or scripted: small motions without a model.", None),
        ("params_file", "", "YAML file of node parameters; it wins over the other arguments.", None),
        ("robot_description", "", "URDF file for the visualizer; empty: topic robot_description.", None),
        ("use_sim_time", "false", "Follow /clock.", TRUTH),
        ("autostart", "true", "Configure and activate the nodes at start.", TRUTH),
        ("dry_run", "false", "Do everything but write to the controllers.", TRUTH),
        ("visualizer", "true", "Publish the plan as markers.", TRUTH),
        ("rviz", "false", "Start RViz too.", TRUTH),
        ("foxglove", "false", "Start foxglove_bridge too.", TRUTH),
        ("rerun", "false", "true: show it in Rerun; or a .rrd file to write, or the URL of a viewer.", None),
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
