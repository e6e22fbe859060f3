# SPDX-License-Identifier: Apache-2.0
"""What the graph says of a robot's topics, and other nodes of their parameters."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from rcl_interfaces.srv import GetParameters
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy

from qwen_vla_ros.embodiment import Embodiment
from qwen_vla_ros.embodiment.graph_facts import Controller, Endpoint, Topic
from qwen_vla_ros.embodiment.live_topics import DESCRIPTION, OWN, is_action, sources

# Of a controller, as ros2_control names them.
CONTROLLER_PARAMETERS = (
    "joints",
    "command_joints",
    "joint",
    "interface_name",
    "allow_partial_joints_goal",
    "interpolate_from_desired_state",
)
# How long others are waited for to be discovered, parameter services, and answers [s].
# What is lost in discovery Fast DDS sends again after 3 s.
DISCOVERY, READY_PATIENCE, ANSWER_PATIENCE = 3.5, 4.0, 2.0

# In the name of a node that is not discovered yet, though an endpoint of it is.
UNKNOWN = "_NODE_NAME_UNKNOWN_"

# Passes time and lets callbacks run; False ends the wait.
Spin = Callable[[], bool]


def resolve(node: Node, name: str, owner: str) -> str:
    """A topic's full name; `~` stands for `owner`, the node that will use it."""
    return node.resolve_topic_name(name.replace("~", owner, 1) if name.startswith("~") else name)


def full_name(name: str, namespace: str) -> str:
    return f"{namespace.rstrip('/')}/{name}"


def _endpoint(info: Any) -> Endpoint:
    profile = info.qos_profile
    return Endpoint(
        full_name(info.node_name, info.node_namespace),
        info.topic_type,
        profile.reliability != ReliabilityPolicy.BEST_EFFORT,
        profile.durability == DurabilityPolicy.TRANSIENT_LOCAL,
        _period(profile.deadline),
        _period(profile.liveliness_lease_duration),
    )


def _period(duration: Any) -> float:
    """[s]; what is not set is 0 or decades, as the middleware likes it."""
    value = duration.nanoseconds * 1e-9
    return value if 0.0 < value < 1e9 else math.inf


def is_discovered(body: Embodiment, topics: Mapping[str, Topic], observed: Iterable[str]) -> bool:
    """Somebody publishes each topic of `observed`, and takes the commands of each group, known by name."""
    ends = [topics[name].publishers for name in observed]
    ends += [topics[group.controller.topic].subscriptions for group in body.actions]
    return all(end and not any(UNKNOWN in each.node for each in end) for end in ends)


def read_topic(node: Node, name: str, owner: str = "") -> Topic:
    """Publishers and subscriptions of other nodes."""
    topic = resolve(node, name, owner)
    own = full_name(node.get_name(), node.get_namespace())
    ends = (node.get_publishers_info_by_topic(topic), node.get_subscriptions_info_by_topic(topic))
    there, heard = (tuple(e for e in map(_endpoint, infos) if e.node != own) for infos in ends)
    return Topic(topic, there, heard)


def _read_action(node: Node, name: str, owner: str) -> Topic:
    """Servers of an action, as subscriptions: they publish its feedback."""
    feedback = read_topic(node, f"{name}/_action/feedback", owner)
    servers = tuple(
        replace(endpoint, type=endpoint.type.removesuffix("_FeedbackMessage"))
        for endpoint in feedback.publishers
    )
    return Topic(feedback.name.removesuffix("/_action/feedback"), (), servers)


def read_topics(node: Node, body: Embodiment, clock: str) -> dict[str, Topic]:
    """All topics that a check may ask for, by the name in the YAML."""
    topics = {source.topic: read_topic(node, source.topic, "policy") for source in sources(body)}
    for group in body.actions:
        controller: Any = group.controller
        read = _read_action if is_action(controller) else read_topic
        topics[controller.topic] = read(node, controller.topic, "executor")
    topics |= {name: read_topic(node, name) for name in (*OWN, DESCRIPTION)}
    topics["/clock"] = read_topic(node, clock)
    return topics


def ask_parameters(node: Node, wanted: Mapping[str, Iterable[str]], spin: Spin) -> dict[str, dict[str, Any]]:
    """Parameters of other nodes; those that are not set, and nodes that do not answer, are left out.

    Args:
        wanted: names by full name of a node.
    """
    wanted = {other: names for other, names in wanted.items() if UNKNOWN not in other}
    clients = {other: node.create_client(GetParameters, f"{other}/get_parameters") for other in wanted}
    _wait(lambda: all(c.service_is_ready() for c in clients.values()), READY_PATIENCE, spin)
    # One by one: rclcpp answers nothing at all where one of them is not declared.
    open_ = {
        (other, name)
        for other, names in wanted.items()
        if clients[other].service_is_ready()
        for name in names
    }
    found: dict[str, dict[str, Any]] = {}
    # Again and again: an answer is lost where the other side has not discovered the client yet.
    for _ in range(3):
        asked = {key: clients[key[0]].call_async(GetParameters.Request(names=[key[1]])) for key in open_}
        _wait(partial(_all_done, asked.values()), ANSWER_PATIENCE, spin)
        for (other, name), future in asked.items():
            if not future.done():
                continue
            open_.discard((other, name))
            values = [] if future.result() is None else future.result().values
            value = parameter_value_to_python(values[0]) if values else None
            if value is not None:
                found.setdefault(other, {})[name] = list(value) if _is_array(value) else value
        if not open_:
            break
    for client in clients.values():
        node.destroy_client(client)
    return found


def _all_done(futures: Iterable[Any]) -> bool:
    return all(future.done() for future in futures)


def _wait(condition: Callable[[], bool], patience: float, spin: Spin) -> None:
    deadline = time.monotonic() + patience
    while not condition() and time.monotonic() < deadline and spin():
        pass


def _is_array(value: Any) -> bool:
    return not isinstance(value, (bool, int, float, str))


def takers(body: Embodiment, topics: Mapping[str, Topic]) -> dict[str, list[str]]:
    """Nodes that take the commands on each controller's topic."""
    names = [group.controller.topic for group in body.actions]
    return {name: sorted({end.node for end in topics[name].subscriptions}) for name in names}


def pick_controllers(
    taken: Mapping[str, list[str]], parameters: Mapping[str, Mapping[str, Any]]
) -> dict[str, Controller]:
    """Of the nodes that take commands, those that tell of joints: others only listen."""
    found: dict[str, Controller] = {}
    for topic, nodes in taken.items():
        for node in nodes:
            given = {k: v for k, v in parameters.get(node, {}).items() if k in CONTROLLER_PARAMETERS}
            if given and topic not in found:
                found[topic] = Controller(node, given)
    return found
