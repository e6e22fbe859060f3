# SPDX-License-Identifier: Apache-2.0
"""The doctor's checks when a node is configured: errors refuse it, warnings are logged."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_msgs.msg import String

from qwen_vla_ros.embodiment import Embodiment, live_commands, live_inputs
from qwen_vla_ros.embodiment.checkpoint_facts import CheckpointFolderError, read_checkpoint_facts
from qwen_vla_ros.embodiment.checkup import STATIC, Check, Finding, Subject, examine
from qwen_vla_ros.embodiment.graph_facts import Endpoint, Graph, Topic
from qwen_vla_ros.embodiment.live_checkup import description_broken, own_nodes
from qwen_vla_ros.embodiment.live_topics import DESCRIPTION, OWN, sources
from qwen_vla_ros.embodiment.urdf import Urdf, UrdfError, parse_urdf, read_urdf

from . import qos
from .graph_reading import (
    CONTROLLER_PARAMETERS,
    DISCOVERY,
    Spin,
    ask_parameters,
    full_name,
    is_discovered,
    pick_controllers,
    read_topic,
    read_topics,
    takers,
)
from .lifecycle import BodyNode, ConfigurationError

# How long a node that is configured waits for a URDF [s].
DESCRIPTION_PATIENCE = 2.0

# Named, and no reason to refuse: a task finds them out by itself, or the URDF is not the one that counts.
REMARKS = ("EXECUTOR_TWICE", "POLICY_TWICE", "COMMAND_CONTESTED", "URDF_JOINT_UNKNOWN", "URDF_FRAME_UNKNOWN")


def check_policy(node: BodyNode, body: Embodiment, checkpoint: str) -> None:
    """Embodiment against checkpoint, URDF and cameras.

    Args:
        checkpoint: folder of what runs; other names are left out.

    Raises:
        ConfigurationError: every error, as `qwen-vla doctor` words it.
    """
    facts = None
    if Path(checkpoint).is_dir():
        try:
            facts = read_checkpoint_facts(checkpoint)
        except CheckpointFolderError as error:
            raise ConfigurationError(str(error)) from error
    topics = {s.topic: read_topic(node, s.topic, "policy") for s in sources(body) if s.prefix == "CAMERA"}
    topics["policy_status"] = _with_self(node, "policy_status")
    graph = Graph(node.get_namespace(), topics=topics)
    with _Helper(node) as helper:
        subject = Subject(body, facts, helper.urdf(), graph=graph)
    _judge(node, body, subject, (*STATIC, live_inputs.types, live_inputs.cameras_twice, own_nodes))


def check_executor(node: BodyNode, body: Embodiment, dry_run: bool = False) -> None:
    """Embodiment against URDF, topics of the robot, and what its controllers say of themselves.

    Args:
        dry_run: nothing is written to the controllers, so what they are is not looked at.

    Raises:
        ConfigurationError: every error, as `qwen-vla doctor` words it.
    """
    topics = _discover(node, body)
    twice = {"executor_status": _with_self(node, "executor_status")}
    checks: tuple[Check, ...] = (*STATIC, live_inputs.types, own_nodes)
    with _Helper(node) as helper:
        controllers = {}
        if not dry_run:
            checks += (
                live_commands.commands_type,
                live_commands.commands_contested,
                live_commands.qos_of_commands,
                live_commands.controllers,
            )
            taken = takers(body, topics)
            wanted = {name: CONTROLLER_PARAMETERS for names in taken.values() for name in names}
            controllers = pick_controllers(taken, ask_parameters(helper.node, wanted, helper.spin))
        cameras = {camera.topic for camera in body.cameras}
        seen = {name: topic for name, topic in topics.items() if name not in (*cameras, *OWN)}
        graph = Graph(node.get_namespace(), topics=seen | twice, controllers=controllers)
        subject = Subject(body, None, helper.urdf(), graph=graph)
    _judge(node, body, subject, checks)


def _discover(node: BodyNode, body: Embodiment) -> dict[str, Topic]:
    """Topics, once the robot is there or `DISCOVERY` has passed: a node knows nobody when it starts."""
    deadline = time.monotonic() + DISCOVERY
    while True:
        topics = read_topics(node, body, "/clock")
        complete = is_discovered(body, topics, body.state.joint_states)
        if complete or time.monotonic() > deadline or node.ending.wait(0.05):
            return topics


def _with_self(node: Node, name: str) -> Topic:
    """Publishers of a topic, and this node, which does not publish yet."""
    own = Endpoint(full_name(node.get_name(), node.get_namespace()), "")
    topic = node.resolve_topic_name(name)
    infos = node.get_publishers_info_by_topic(topic)
    there = [Endpoint(full_name(info.node_name, info.node_namespace), info.topic_type) for info in infos]
    return Topic(topic, (*there, own))


def _judge(node: BodyNode, body: Embodiment, subject: Subject, checks: Iterable[Check]) -> None:
    errors: list[Finding] = []
    for finding in examine(subject, checks):
        if finding.warning or finding.code in REMARKS:
            node.get_logger().warning(f"embodiment {body.name}: {finding}")
        else:
            errors.append(finding)
    if errors:
        raise ConfigurationError("\n  ".join([f"embodiment {body.name} does not fit:", *map(str, errors)]))


class _Helper:
    """A node of its own for the length of a transition, in which the node's own executor is busy."""

    def __init__(self, owner: BodyNode):
        self._owner = owner

    def __enter__(self) -> _Helper:
        owner = self._owner
        # Not the process's arguments: they would name it like its owner.
        self.node = rclpy.create_node(
            f"{owner.get_name()}_checkup",
            namespace=owner.get_namespace(),
            context=owner.context,
            use_global_arguments=False,
            start_parameter_services=False,
            enable_rosout=False,
        )
        self._executor = SingleThreadedExecutor(context=owner.context)
        self._executor.add_node(self.node)
        self.spin: Spin = self._spin
        return self

    def __exit__(self, *reason: Any) -> None:
        self._executor.shutdown()
        self.node.destroy_node()

    def _spin(self) -> bool:
        self._executor.spin_once(timeout_sec=0.02)
        return not self._owner.ending.is_set()

    def urdf(self) -> Urdf | None:
        """Of the parameter robot_description, or of the topic, if somebody publishes there what can be read.

        Raises:
            ConfigurationError: the parameter is not a URDF.
        """
        given = self._owner.get_parameter_or(DESCRIPTION, Parameter(DESCRIPTION, value="")).value.strip()
        if not given:
            return self._heard_urdf()
        try:
            return parse_urdf(given.encode(), "robot_description") if given[0] == "<" else read_urdf(given)
        except UrdfError as error:
            raise ConfigurationError(f"parameter robot_description: {error}") from error

    def _heard_urdf(self) -> Urdf | None:
        owner = self._owner
        topic = owner.resolve_topic_name(DESCRIPTION)
        if not owner.count_publishers(topic):
            return None
        heard: list[str] = []
        self.node.create_subscription(String, topic, lambda message: heard.append(message.data), qos.LATCHED)
        deadline = time.monotonic() + DESCRIPTION_PATIENCE
        while not heard and time.monotonic() < deadline and self._spin():
            pass
        if not heard:
            return None
        try:
            return parse_urdf(heard[0].encode(), topic)
        except UrdfError as error:
            owner.get_logger().warning(str(description_broken(topic, str(error))))
            return None
