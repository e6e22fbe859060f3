# SPDX-License-Identifier: Apache-2.0
"""What does not fit with what a robot is commanded by: topics, controllers, QoS."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from qwen_vla_ros.embodiment.checkup import Finding, Path, Subject
from qwen_vla_ros.embodiment.graph_facts import Endpoint, Topic
from qwen_vla_ros.embodiment.live_codes import live_finding
from qwen_vla_ros.embodiment.live_topics import (
    COMMANDS,
    DESCRIPTION,
    OWN,
    RATE_TOLERANCE,
    TWIST,
    TWIST_STAMPED,
    commanded,
    elsewhere,
    is_action,
    names_of,
    sources,
)


def commands_unheard(subject: Subject) -> Iterator[Finding]:
    """Commands that would reach nobody."""
    for path, group, kind, topic, graph in commanded(subject):
        if not topic.subscriptions:
            action = is_action(group.controller)
            yield live_finding(
                "COMMAND_UNHEARD",
                (*path, "topic"),
                topic.name,
                "no action server" if action else "no subscriber",
                kind,
                "start the controller (ros2 control list_controllers), or correct topic or namespace"
                + ("" if action else elsewhere(graph, topic, kind)),
            )


def commands_type(subject: Subject) -> Iterator[Finding]:
    """Controllers that expect other messages."""
    for path, group, kind, topic, _ in commanded(subject):
        other = [endpoint for endpoint in topic.subscriptions if endpoint.type != kind]
        if not other or len(other) < len(topic.subscriptions):
            continue
        found = other[0].type
        advice = "choose the controller's type for it, or correct the topic"
        if {found, kind} == {TWIST, TWIST_STAMPED} and group.controller.type.endswith("_drive"):
            advice = f"set stamped: {str(found == TWIST_STAMPED).lower()}"
        else:
            fitting = [name for name, type_ in COMMANDS.items() if type_ == found]
            advice = f"set type: {fitting[0]}, if that is the controller" if fitting else advice
        yield live_finding(
            "COMMAND_TYPE",
            (*path, "type"),
            topic.name,
            f"{names_of(other)} takes {found}",
            kind,
            advice,
        )


def commands_contested(subject: Subject) -> Iterator[Finding]:
    """Others who command the robot."""
    for path, group, _, topic, graph in commanded(subject):
        own = f"{graph.namespace.rstrip('/')}/executor"
        rivals = [endpoint for endpoint in topic.publishers if endpoint.node != own]
        if rivals and not is_action(group.controller):
            yield live_finding(
                "COMMAND_CONTESTED",
                (*path, "topic"),
                topic.name,
                f"{names_of(rivals)} publishes too",
                "the executor alone",
                "end it, or have it stop publishing: two who command make the robot jump",
            )


def controllers(subject: Subject) -> Iterator[Finding]:
    """Joints, their order and the interface of ros2_control's controllers, by their own parameters."""
    for path, group, _, topic, graph in commanded(subject):
        controller = graph.controllers.get(group.controller.topic)
        if controller is None:
            continue
        given = controller.parameters
        theirs = given.get("command_joints") or given.get("joints") or given.get("joint")
        theirs = [theirs] if isinstance(theirs, str) else theirs
        ours: list[str] = list(
            getattr(group.controller, "names", None) or getattr(group, "joints", None) or ()
        )
        if theirs and ours:
            yield from _joint_order(path, group, topic, controller.node, list(theirs), ours, given)
        interface = given.get("interface_name")
        if group.controller.type == "forward_command" and interface not in (None, "", "position"):
            yield live_finding(
                "CONTROLLER_INTERFACE",
                (*path, "topic"),
                topic.name,
                f"{controller.node} passes them on as {interface}",
                "position",
                "use the position controller: a position taken for another quantity is dangerous",
            )
        if (
            group.controller.type == "joint_trajectory"
            and given.get("interpolate_from_desired_state") is False
        ):
            yield live_finding(
                "CONTROLLER_INTERPOLATION",
                (*path, "topic"),
                topic.name,
                f"interpolate_from_desired_state false in {controller.node}",
                "true",
                "set it: otherwise every point starts from the measured joints, which lag (docs/nodes.md)",
            )


def _joint_order(
    path: Path, group: Any, topic: Topic, node: str, theirs: list[str], ours: list[str], given: Any
) -> Iterator[Finding]:
    place = (*path, "names") if getattr(group.controller, "names", None) else (*path[:2], "joints")
    named = group.controller.type != "forward_command"
    if sorted(theirs) == sorted(ours):
        if theirs != ours:
            k = next(k for k, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
            yield live_finding(
                "CONTROLLER_ORDER",
                place,
                topic.name,
                f"{ours[k]} at {k}; {node} has {', '.join(theirs)}",
                f"{theirs[k]} at {k}",
                "give both the same order: that of the YAML is the model's, so change the controller's",
                warning=named,
            )
        return
    missing = [joint for joint in ours if joint not in theirs]
    # A trajectory may leave joints out only where the controller is told so.
    if named and not missing and given.get("allow_partial_joints_goal"):
        return
    advice = (
        "name the joints as the controller does, or configure it for them"
        if missing
        else "command all of its joints, or set its allow_partial_joints_goal"
        if named
        else "command all of its joints"
    )
    yield live_finding(
        "CONTROLLER_JOINTS", place, topic.name, ", ".join(ours), f"{', '.join(theirs)}, as in {node}", advice
    )


def controller_manager(subject: Subject) -> Iterator[Finding]:
    """What controller_manager says, where there is one."""
    graph, body = subject.graph, subject.embodiment
    if graph is None:
        return
    if graph.update_rate is not None and graph.update_rate < body.command_rate * (1.0 - RATE_TOLERANCE):
        yield live_finding(
            "CONTROLLER_SLOW",
            ("command_rate",),
            "",
            f"{body.command_rate:g} Hz",
            f"at most the update_rate of controller_manager, {graph.update_rate:g} Hz",
            "raise update_rate, or lower command_rate: commands in between are lost",
        )
    if graph.controller_states is None:
        return
    for path, group, _, topic, _ in commanded(subject):
        controller = graph.controllers.get(group.controller.topic)
        name = topic.name if controller is None else controller.node
        states = graph.controller_states
        known = [each for each in states if name.split("/")[-1] == each or f"/{each}/" in topic.name]
        if known and states[known[0]] != "active":
            yield live_finding(
                "CONTROLLER_INACTIVE",
                (*path, "topic"),
                topic.name,
                f"{known[0]} is {states[known[0]]}",
                "active",
                f"ros2 control switch_controllers --activate {known[0]}",
            )


def qos(subject: Subject) -> Iterator[Finding]:
    """Publishers and subscribers that DDS will not bring together."""
    graph, body = subject.graph, subject.embodiment
    if graph is None:
        return
    for path, _, kind, topic, _ in commanded(subject):
        # The executor's, if it does not run yet.
        for subscription in topic.subscriptions:
            if subscription.type == kind and "/action/" not in kind:
                yield from _unmatched((*path, "topic"), topic, Endpoint("the executor", kind), subscription)
    if DESCRIPTION in graph.topics:
        asked = Endpoint("the visualizer", "std_msgs/msg/String", latched=True)
        for publisher in graph.topics[DESCRIPTION].publishers:
            yield from _unmatched((), graph.topics[DESCRIPTION], publisher, asked, warning=True)
    places = {source.topic: source.path for source in sources(body)}
    for name, topic in graph.topics.items():
        if name not in places and name not in OWN:
            continue
        for publisher in topic.publishers:
            for subscription in topic.subscriptions:
                if publisher.type == subscription.type:
                    # Robots run without a recorder that gets no images, and without the visualizer.
                    yield from _unmatched(
                        places.get(name, ()), topic, publisher, subscription, name not in OWN
                    )


def qos_of_commands(subject: Subject) -> Iterator[Finding]:
    """As `qos`, of what the executor itself sends."""
    return (finding for finding in qos(subject) if finding.path[:1] == ("actions",))


def _unmatched(
    path: Path, topic: Topic, offered: Endpoint, asked: Endpoint, warning: bool = False
) -> Iterator[Finding]:
    for code, apart, has, wants in (
        ("QOS_RELIABILITY", asked.reliable and not offered.reliable, "best effort", "reliable"),
        ("QOS_DURABILITY", asked.latched and not offered.latched, "volatile", "transient local"),
        (
            "QOS_DEADLINE",
            asked.deadline < offered.deadline,
            _period("deadline", offered.deadline),
            _period("deadline", asked.deadline),
        ),
        (
            "QOS_LIVELINESS",
            asked.lease < offered.lease,
            _period("lease", offered.lease),
            _period("lease", asked.lease),
        ),
    ):
        if apart:
            yield live_finding(
                code,
                path,
                topic.name,
                f"{has} from {offered.node}",
                f"{wants}, which {asked.node} asks for",
                f"it gets nothing: let it ask for {has}, or offer {wants}",
                warning,
            )


def _period(what: str, seconds: float) -> str:
    return f"no {what}" if math.isinf(seconds) else f"{what} {seconds:g} s"
