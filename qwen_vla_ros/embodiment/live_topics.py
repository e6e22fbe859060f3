# SPDX-License-Identifier: Apache-2.0
"""Topics that an embodiment needs of a running system, and what was seen of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_vla_ros.embodiment.checkup import Path, Subject
from qwen_vla_ros.embodiment.graph_facts import Endpoint, Graph, Stream, Topic
from qwen_vla_ros.embodiment.schema import Embodiment, WaypointGroup

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
JOINT_STATE = "sensor_msgs/msg/JointState"
TWIST, TWIST_STAMPED = "geometry_msgs/msg/Twist", "geometry_msgs/msg/TwistStamped"
COMMANDS = {
    "joint_trajectory": "trajectory_msgs/msg/JointTrajectory",
    "follow_joint_trajectory": "control_msgs/action/FollowJointTrajectory",
    "forward_command": "std_msgs/msg/Float64MultiArray",
    "joint_state": JOINT_STATE,
    "gripper_command": "control_msgs/action/GripperCommand",
    "parallel_gripper_command": "control_msgs/action/ParallelGripperCommand",
    "cartesian_pose": "geometry_msgs/msg/PoseStamped",
    "cartesian_twist": TWIST_STAMPED,
    "path": "nav_msgs/msg/Path",
}
# By the type that `State.base` gives.
POSES = {
    "odometry": "nav_msgs/msg/Odometry",
    "pose_stamped": "geometry_msgs/msg/PoseStamped",
    "pose_with_covariance_stamped": "geometry_msgs/msg/PoseWithCovarianceStamped",
}
CLOCK, DESCRIPTION = "/clock", "robot_description"
# Between our own nodes: whoever stands in for one must offer what the others ask for.
OWN = ("task", "action_chunk", "policy_status", "executor_status")
# Share by which a rate may be lower than needed.
RATE_TOLERANCE = 0.05


def command_type(controller: Any) -> str:
    """Type of the messages, or of the action, that a controller of the YAML takes."""
    if controller.type.endswith("_drive"):
        return TWIST_STAMPED if controller.stamped else TWIST
    return COMMANDS[controller.type]


def is_action(controller: Any) -> bool:
    """The controller is commanded by goals."""
    return "/action/" in command_type(controller)


@dataclass(frozen=True)
class Source:
    """A topic that a robot is observed by.

    Attributes:
        prefix: of the codes.
        topic: as in the YAML.
        type: of its messages.
        least, usual: rates: without the first the robot is stopped, below the second it moves worse [Hz].
        view: of an image; empty for depth.
    """

    prefix: str
    path: Path
    topic: str
    type: str
    max_age: float
    least: float
    usual: float
    required: bool = True
    view: str = ""


def sources(body: Embodiment) -> Iterator[Source]:
    """All topics that observations of an embodiment come from."""
    per_chunk = body.control_rate / body.execute_steps
    for k, camera in enumerate(body.cameras):
        least = max(1.0 / camera.max_age, per_chunk)
        path: Path = ("cameras", k, "topic")
        kind = IMAGE if camera.transport == "raw" else COMPRESSED
        yield Source(
            "CAMERA", path, camera.topic, kind, camera.max_age, least, least, camera.required, camera.view
        )
        if camera.depth is not None:
            path = ("cameras", k, "depth")
            yield Source("CAMERA", path, camera.depth, IMAGE, camera.max_age, least, least, camera.required)
    age = body.state.max_age
    for k, topic in enumerate(body.state.joint_states):
        path = ("state", "joint_states", k)
        yield Source("JOINTS", path, topic, JOINT_STATE, age, 1.0 / age, body.control_rate)
    base = body.state.base
    if base is not None:
        # Only waypoints are placed by the pose of the base.
        needed = any(isinstance(group, WaypointGroup) for group in body.actions)
        rates = 1.0 / age, body.control_rate
        yield Source("ODOMETRY", base.path, base.topic, POSES[base.type], age, *rates, needed)


def streams(subject: Subject) -> Iterator[tuple[Source, Topic, Stream]]:
    """What was heard of each source."""
    graph = subject.graph
    if graph is None:
        return
    for source in sources(subject.embodiment):
        stream: Stream | None
        if source.prefix == "CAMERA":
            stream = graph.images.get(source.view)
        else:
            stream = graph.joints.get(source.topic) if source.prefix == "JOINTS" else graph.odometry
        if stream is not None and source.topic in graph.topics:
            yield source, graph.topics[source.topic], stream


def observed(subject: Subject) -> Iterator[tuple[Source, Topic, Graph]]:
    graph = subject.graph
    if graph is None:
        return
    for source in sources(subject.embodiment):
        if source.topic in graph.topics:
            yield source, graph.topics[source.topic], graph


def names_of(endpoints: Sequence[Endpoint]) -> str:
    return ", ".join(sorted({endpoint.node for endpoint in endpoints}))


def elsewhere(graph: Graph, topic: Topic, kind: str) -> str:
    """Where messages of a type are found, the most similar name first."""
    names = [name for name, types in graph.types.items() if kind in types and name != topic.name]
    last = topic.name.rpartition("/")[2]
    names.sort(key=lambda name: -difflib.SequenceMatcher(None, name, topic.name).ratio())
    inside = [name for name in names if name.endswith(f"/{last}")]
    for name in inside:
        relative = topic.name.removeprefix(graph.namespace.rstrip("/"))
        if name.endswith(relative) and name != relative:
            return f"; {name} has it: if it is this robot's, --namespace {name.removesuffix(relative)}"
        if name == relative:
            return f"; {name} has it: if it is this robot's, leave the namespace out"
    return f"; {kind.rpartition('/')[2]} is on {', '.join(names[:3])}" if names else ""


def commanded(subject: Subject) -> Iterator[tuple[Path, Any, str, Topic, Graph]]:
    graph = subject.graph
    if graph is None:
        return
    for g, group in enumerate(subject.embodiment.actions):
        controller: Any = group.controller
        topic = graph.topics.get(controller.topic)
        if topic is not None:
            yield ("actions", g, "controller"), group, command_type(controller), topic, graph
