# SPDX-License-Identifier: Apache-2.0
"""What does not fit between an embodiment and a running system.

The checks are of the kind of `checkup`'s and read `Subject.graph`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qwen_vla_ros.embodiment.checkup import Check, Finding, Subject
from qwen_vla_ros.embodiment.live_codes import live_finding
from qwen_vla_ros.embodiment.live_commands import (
    commands_contested,
    commands_type,
    commands_unheard,
    controller_manager,
    controllers,
    qos,
)
from qwen_vla_ros.embodiment.live_inputs import (
    absent,
    cameras_twice,
    images,
    joint_positions,
    joint_states,
    odometry,
    rates,
    silent,
    skew,
    stamps,
    types,
)
from qwen_vla_ros.embodiment.live_topics import CLOCK, names_of

# Images above it are lost by Fast DDS as it comes [bytes].
SEGMENT = 512 * 1024
# Beyond it the ports of a ROS domain are those that Linux hands out to programs.
LAST_DOMAIN = 101


def environment(subject: Subject) -> Iterator[Finding]:
    """Middleware, domain, discovery; an empty graph."""
    graph, body = subject.graph, subject.embodiment
    if graph is None:
        return
    variables = graph.environment
    domain = variables.get("ROS_DOMAIN_ID", "") or "0"
    middleware = variables.get("RMW_IMPLEMENTATION", "")
    if not domain.isdecimal() or int(domain) > LAST_DOMAIN:
        yield live_finding(
            "DOMAIN_ID",
            (),
            "",
            f"ROS_DOMAIN_ID={domain}",
            f"0 to {LAST_DOMAIN}",
            "choose a smaller one on all computers of the robot: the ports of others may be taken",
        )
    if middleware and middleware != "rmw_fastrtps_cpp":
        yield live_finding(
            "RMW_UNTRIED",
            (),
            "",
            f"RMW_IMPLEMENTATION={middleware}",
            "rmw_fastrtps_cpp",
            "all nodes of a robot need the same; with this one the package has not been tried",
        )
    elif "FASTDDS_DEFAULT_PROFILES_FILE" not in variables:
        for k, camera in enumerate(body.cameras):
            size = 3 * camera.size[0] * camera.size[1]
            if camera.transport == "raw" and size > SEGMENT:
                yield live_finding(
                    "FASTDDS_PROFILE",
                    ("cameras", k, "size"),
                    "",
                    f"raw images of {size / 1024:.0f} KiB and no FASTDDS_DEFAULT_PROFILES_FILE here",
                    "a profile with more shared memory, for camera and policy",
                    "set it to config/fastdds_network.xml of this package "
                    "(Jazzy: config/jazzy/fastdds_network.xml) for the camera's driver, too",
                )
                break
    if not graph.nodes:
        yield live_finding(
            "GRAPH_EMPTY",
            (),
            "",
            f"no other node in domain {domain} ({_discovery(variables)}{middleware and ', '}{middleware})",
            "the robot's drivers",
            "start them; ROS_DOMAIN_ID, RMW_IMPLEMENTATION and ROS_AUTOMATIC_DISCOVERY_RANGE must be alike "
            "here and there",
        )


def _discovery(variables: Any) -> str:
    if variables.get("ROS_LOCALHOST_ONLY") == "1":
        return "discovery LOCALHOST"
    return f"discovery {variables.get('ROS_AUTOMATIC_DISCOVERY_RANGE') or 'SUBNET'}"


def discovery(subject: Subject) -> Iterator[Finding]:
    """Something is missing, and other computers cannot be seen."""
    graph = subject.graph
    if graph is None:
        return
    reach = _discovery(graph.environment).removeprefix("discovery ").upper()
    if reach in ("OFF", "LOCALHOST") and any(True for _ in (*absent(subject), *commands_unheard(subject))):
        yield live_finding(
            "DISCOVERY_RANGE",
            (),
            "",
            f"discovery {reach}, and topics without publisher or subscriber",
            "SUBNET, if they are on another computer",
            "export ROS_AUTOMATIC_DISCOVERY_RANGE=SUBNET here and there",
        )


def clock(subject: Subject) -> Iterator[Finding]:
    """Simulated time: published, running, followed by all."""
    graph = subject.graph
    if graph is None or CLOCK not in graph.topics:
        return
    topic = graph.topics[CLOCK]
    owners = {endpoint.node for endpoint in topic.publishers}
    if not owners:
        followers = sorted(node for node, used in graph.sim_time.items() if used)
        if followers:
            yield live_finding(
                "CLOCK_MISSING",
                (),
                topic.name,
                f"no publisher, and use_sim_time in {', '.join(followers)}",
                "a simulation or a player of recordings that publishes it",
                "start it, or start these nodes with use_sim_time false",
            )
        return
    if len(topic.publishers) > 1:
        yield live_finding(
            "CLOCK_TWICE",
            (),
            topic.name,
            f"{len(topic.publishers)} publishers, of {names_of(topic.publishers)}",
            "one",
            "end all but one, or give each robot a namespace with a clock of its own",
        )
    if graph.seconds and len(set(graph.clock)) < 2:
        at = f"at {graph.clock[0]:g} s" if graph.clock else "silent"
        yield live_finding(
            "CLOCK_STILL",
            (),
            topic.name,
            f"{at} for {graph.seconds:g} s",
            "a clock that goes on",
            "let the simulation run; it may be paused",
        )
    for node, used in sorted(graph.sim_time.items()):
        if not used and node not in owners:
            ours = node.rpartition("/")[2] in ("policy", "executor")
            yield live_finding(
                "CLOCK_IGNORED",
                (),
                topic.name,
                f"use_sim_time false in {node}",
                f"true: {names_of(topic.publishers)} publishes the clock",
                "start it with use_sim_time:=true, or end who publishes the clock",
                warning=not ours,
            )


def own_nodes(subject: Subject) -> Iterator[Finding]:
    """Two of a kind, or one for another robot."""
    graph = subject.graph
    if graph is None:
        return
    for code, name in (("EXECUTOR_TWICE", "executor_status"), ("POLICY_TWICE", "policy_status")):
        topic = graph.topics.get(name)
        if topic is not None and len(topic.publishers) > 1:
            yield live_finding(
                code,
                (),
                topic.name,
                f"{len(topic.publishers)} publishers, of {names_of(topic.publishers)}",
                "one",
                "end one, or give each robot a namespace; one that was killed is seen for some 20 s more",
            )
    for name, served in graph.embodiments.items():
        if served != subject.embodiment.name:
            yield live_finding(
                "NODE_EMBODIMENT",
                ("name",),
                graph.topics[name].name,
                f"{served!r}",
                f"{subject.embodiment.name!r}",
                "start both nodes with the same embodiment, or ask for that one here",
            )


LIVE: tuple[Check, ...] = (
    environment,
    discovery,
    clock,
    absent,
    types,
    silent,
    cameras_twice,
    images,
    rates,
    stamps,
    skew,
    joint_states,
    joint_positions,
    odometry,
    commands_unheard,
    commands_type,
    commands_contested,
    controllers,
    controller_manager,
    qos,
    own_nodes,
)
"""Checks of a running system."""


def ros_missing(name: str) -> Finding:
    """The live half was asked for, and a module of ROS cannot be imported."""
    return live_finding(
        "ROS_MISSING",
        (),
        "",
        f"no Python module {name}: the running system was left out",
        "ROS 2 and the built package",
        "source the setup files of ROS 2 and of the workspace (in a checkout: tools/with_ros qwen-vla ...)",
    )


def description_broken(topic: str, reason: str) -> Finding:
    """What was published as URDF cannot be read."""
    return live_finding(
        "DESCRIPTION_BROKEN", (), topic, reason, "a URDF", "correct what robot_state_publisher is given"
    )


def examine_live(subject: Subject) -> Iterator[Finding]:
    """Findings of all live checks; of an empty graph only why it may be empty."""
    checks = LIVE if subject.graph is not None and subject.graph.nodes else (environment,)
    for check in checks:
        yield from check(subject)
