# SPDX-License-Identifier: Apache-2.0
"""What does not fit between an embodiment and a running system.

The checks are of the kind of `checkup`'s and read `Subject.graph`. `python -m
qwen_vla_ros.embodiment.live_checkup` prints their codes as the table of docs/real_robot.md.
"""

from __future__ import annotations

import difflib
import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_vla_ros.embodiment.checkup import MISTAKEN, MOST, ROUNDING, Check, Finding, Path, Subject, jointed
from qwen_vla_ros.embodiment.graph_facts import Endpoint, Graph, Images, Stream, Topic
from qwen_vla_ros.embodiment.schema import BaseVelocityGroup, Embodiment, WaypointGroup

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
JOINT_STATE, ODOMETRY = "sensor_msgs/msg/JointState", "nav_msgs/msg/Odometry"
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
CLOCK, DESCRIPTION = "/clock", "robot_description"
# Between our own nodes: whoever stands in for one must offer what the others ask for.
OWN = ("task", "action_chunk", "policy_status", "executor_status")

# How far the clocks of two computers, and what stamps and reads, may be apart [s].
AHEAD = 0.05
# Share by which a rate may be lower than needed, and part of its range by which a joint may be outside.
RATE_TOLERANCE, RANGE_TOLERANCE = 0.05, 0.01
# Images above it are lost by Fast DDS as it comes [bytes].
SEGMENT = 512 * 1024
# Beyond it the ports of a ROS domain are those that Linux hands out to programs.
LAST_DOMAIN = 101

CODES = {
    "GRAPH_EMPTY": "no other node can be seen",
    "ROS_MISSING": "`--live` without ROS 2",
    "RMW_UNTRIED": "(warning) another middleware than Fast DDS",
    "FASTDDS_PROFILE": "(warning) large images on Fast DDS without a profile: most of them are lost",
    "DOMAIN_ID": "ROS_DOMAIN_ID above 101, or no number",
    "DISCOVERY_RANGE": "(warning) something is missing, and discovery ends at this computer",
    "DESCRIPTION_BROKEN": "(warning) what is on `robot_description` is no URDF",
    "CLOCK_MISSING": "a node has `use_sim_time`, and nobody publishes the clock",
    "CLOCK_STILL": "the clock is published and stands still",
    "CLOCK_TWICE": "two nodes publish the clock",
    "CLOCK_IGNORED": "the clock is published, and a node runs without `use_sim_time` (warning if not ours)",
    "CAMERA_UNPUBLISHED": "nobody publishes images on the topic (warning if not `required`)",
    "CAMERA_TYPE": "raw images where compressed ones are expected, or the reverse, or something else",
    "CAMERA_SILENT": "a publisher, and no image (warning if not `required`)",
    "CAMERA_TWICE": "(warning) two nodes publish on the topic",
    "CAMERA_ENCODING": "an encoding that `encodings` does not list",
    "CAMERA_SIZE": "images of another size than `size`",
    "CAMERA_BROKEN": "images that cannot be decoded",
    "CAMERA_RATE": "fewer images than one per `max_age`, or than one per chunk",
    "CAMERA_SKEW": "required cameras never within `max_camera_skew` (warning: less than half of the time)",
    "JOINTS_UNPUBLISHED": "nobody publishes joint states on the topic",
    "JOINTS_TYPE": "something else on the topic",
    "JOINTS_SILENT": "a publisher, and no joint state",
    "JOINTS_RATE": "fewer joint states than one per `max_age` (warning: than `control_rate`)",
    "JOINTS_LENGTH": "not as many positions as names",
    "JOINT_MISSING": "a joint of the YAML that no joint state names",
    "JOINT_NOT_FINITE": "a position that is NaN or infinite",
    "JOINT_OUTSIDE": "a joint beyond the limits of the YAML",
    "JOINT_UNIT": "a position that looks like degrees or millimetres",
    "ODOMETRY_UNPUBLISHED": "nobody publishes odometry on the topic",
    "ODOMETRY_TYPE": "something else on the topic",
    "ODOMETRY_SILENT": "a publisher, and no odometry",
    "ODOMETRY_RATE": "less odometry than one per `max_age` (warning: than `control_rate`)",
    "ODOMETRY_NOT_FINITE": "a pose that is NaN or infinite",
    "ODOMETRY_FRAME": "(warning) `child_frame_id` is not the `frame` of the group",
    "STAMP_ZERO": "messages without a stamp",
    "STAMP_STUCK": "the same stamp again and again",
    "STAMP_BACKWARDS": "(warning) stamps of one publisher that go back",
    "STAMP_FUTURE": "stamps ahead of the clock",
    "STAMP_OLD": "messages that come older than `max_age`",
    "COMMAND_UNHEARD": "nobody subscribes to a command topic, or serves the action",
    "COMMAND_TYPE": "a subscriber to another type of message",
    "COMMAND_CONTESTED": "another node publishes on a command topic",
    "CONTROLLER_JOINTS": "the controller has other joints than the group",
    "CONTROLLER_ORDER": "the same joints in another order (warning where messages name the joints)",
    "CONTROLLER_INTERFACE": "a forward controller that passes positions on as something else",
    "CONTROLLER_INTERPOLATION": "(warning) a trajectory controller without `interpolate_from_desired_state`",
    "CONTROLLER_INACTIVE": "controller_manager says that it does not run",
    "CONTROLLER_SLOW": "(warning) controller_manager updates less often than `command_rate`",
    "QOS_RELIABILITY": "a publisher that is best effort, a subscriber that asks for reliable",
    "QOS_DURABILITY": "a publisher that is volatile, a subscriber that asks for transient local",
    "QOS_DEADLINE": "a subscriber that asks for a shorter deadline",
    "QOS_LIVELINESS": "a subscriber that asks for signs of life more often",
    "EXECUTOR_TWICE": "two executors in the namespace",
    "POLICY_TWICE": "two policies in the namespace",
    "NODE_EMBODIMENT": "policy or executor run for another embodiment",
}
"""Every code of this module and what it means. Errors, unless it says (warning)."""


def _finding(
    code: str,
    path: Path,
    topic: str,
    found: str,
    expected: str,
    advice: str,
    warning: bool = False,
) -> Finding:
    always = CODES[code].startswith("(warning)")
    return Finding(code, path, found, expected, advice, warning or always, topic)


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
    age = body.state.max_age
    for k, topic in enumerate(body.state.joint_states):
        path = ("state", "joint_states", k)
        yield Source("JOINTS", path, topic, JOINT_STATE, age, 1.0 / age, body.control_rate)
    if body.state.odometry:
        # Only waypoints are placed by the pose of the base.
        needed = any(isinstance(group, WaypointGroup) for group in body.actions)
        path = ("state", "odometry")
        yield Source(
            "ODOMETRY", path, body.state.odometry, ODOMETRY, age, 1.0 / age, body.control_rate, needed
        )


def _streams(subject: Subject) -> Iterator[tuple[Source, Topic, Stream]]:
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


def _topics(subject: Subject) -> Iterator[tuple[Source, Topic, Graph]]:
    graph = subject.graph
    if graph is None:
        return
    for source in sources(subject.embodiment):
        if source.topic in graph.topics:
            yield source, graph.topics[source.topic], graph


def _nodes(endpoints: Sequence[Endpoint]) -> str:
    return ", ".join(sorted({endpoint.node for endpoint in endpoints}))


def _elsewhere(graph: Graph, topic: Topic, kind: str) -> str:
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


# The graph, and what it runs on


def environment(subject: Subject) -> Iterator[Finding]:
    """Middleware, domain, discovery; an empty graph."""
    graph, body = subject.graph, subject.embodiment
    if graph is None:
        return
    variables = graph.environment
    domain = variables.get("ROS_DOMAIN_ID", "") or "0"
    middleware = variables.get("RMW_IMPLEMENTATION", "")
    if not domain.isdecimal() or int(domain) > LAST_DOMAIN:
        yield _finding(
            "DOMAIN_ID",
            (),
            "",
            f"ROS_DOMAIN_ID={domain}",
            f"0 to {LAST_DOMAIN}",
            "choose a smaller one on all computers of the robot: the ports of others may be taken",
        )
    if middleware and middleware != "rmw_fastrtps_cpp":
        yield _finding(
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
                yield _finding(
                    "FASTDDS_PROFILE",
                    ("cameras", k, "size"),
                    "",
                    f"raw images of {size / 1024:.0f} KiB and no FASTDDS_DEFAULT_PROFILES_FILE here",
                    "a profile with more shared memory, for camera and policy",
                    "set it to config/fastdds_network.xml of this package for the camera's driver, too",
                )
                break
    if not graph.nodes:
        yield _finding(
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
        yield _finding(
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
            yield _finding(
                "CLOCK_MISSING",
                (),
                topic.name,
                f"no publisher, and use_sim_time in {', '.join(followers)}",
                "a simulation or a player of recordings that publishes it",
                "start it, or start these nodes with use_sim_time false",
            )
        return
    if len(topic.publishers) > 1:
        yield _finding(
            "CLOCK_TWICE",
            (),
            topic.name,
            f"{len(topic.publishers)} publishers, of {_nodes(topic.publishers)}",
            "one",
            "end all but one, or give each robot a namespace with a clock of its own",
        )
    if graph.seconds and len(set(graph.clock)) < 2:
        at = f"at {graph.clock[0]:g} s" if graph.clock else "silent"
        yield _finding(
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
            yield _finding(
                "CLOCK_IGNORED",
                (),
                topic.name,
                f"use_sim_time false in {node}",
                f"true: {_nodes(topic.publishers)} publishes the clock",
                "start it with use_sim_time:=true, or end who publishes the clock",
                warning=not ours,
            )


# What is observed


def absent(subject: Subject) -> Iterator[Finding]:
    """Topics without any publisher."""
    for source, topic, graph in _topics(subject):
        if topic.publishers:
            continue
        if source.prefix == "CAMERA":
            other = _other_transport(graph, topic, source)
            if other is not None:
                yield other
                continue
        yield _finding(
            f"{source.prefix}_UNPUBLISHED",
            source.path,
            topic.name,
            "no publisher",
            source.type,
            "start the driver, or correct topic or namespace" + _elsewhere(graph, topic, source.type),
            warning=not source.required,
        )


def _other_transport(graph: Graph, topic: Topic, source: Source) -> Finding | None:
    """Images of the other transport under the name that image_transport gives them."""
    raw = source.type == IMAGE
    name = f"{topic.name}/compressed" if raw else topic.name.removesuffix("/compressed")
    kind = COMPRESSED if raw else IMAGE
    if name == topic.name or kind not in graph.types.get(name, ()):
        return None
    return _finding(
        "CAMERA_TYPE",
        source.path,
        topic.name,
        f"no publisher, and {kind} on {name}",
        source.type,
        f"set transport: {'compressed' if raw else 'raw'}, topic: {name} and encodings to match",
        warning=not source.required,
    )


def types(subject: Subject) -> Iterator[Finding]:
    """Publishers of another type: messages that nobody will get."""
    for source, topic, _ in _topics(subject):
        other = [endpoint for endpoint in topic.publishers if endpoint.type != source.type]
        if not other or len(other) < len(topic.publishers):
            continue
        kind = other[0].type
        advice = "correct the topic"
        if {kind, source.type} == {IMAGE, COMPRESSED}:
            transport = "compressed" if kind == COMPRESSED else "raw"
            advice = f"set transport: {transport} and encodings to match"
        yield _finding(
            f"{source.prefix}_TYPE",
            source.path,
            topic.name,
            f"{kind} from {_nodes(other)}",
            source.type,
            advice,
            warning=not source.required,
        )


def silent(subject: Subject) -> Iterator[Finding]:
    """A publisher of the right type from which nothing came."""
    for source, topic, stream in _streams(subject):
        senders = [endpoint for endpoint in topic.publishers if endpoint.type == source.type]
        assert subject.graph is not None
        if not stream.arrivals and senders:
            yield _finding(
                f"{source.prefix}_SILENT",
                source.path,
                topic.name,
                f"nothing from {_nodes(senders)} in {subject.graph.seconds:g} s",
                f"messages, {source.least:.3g} Hz at least",
                "look at the driver's log; a second computer must be reachable by UDP both ways",
                warning=not source.required,
            )


def cameras_twice(subject: Subject) -> Iterator[Finding]:
    """Pictures of two cameras on one topic."""
    for source, topic, _ in _topics(subject):
        if source.prefix == "CAMERA" and len(topic.publishers) > 1:
            yield _finding(
                "CAMERA_TWICE",
                source.path,
                topic.name,
                f"{len(topic.publishers)} publishers, of {_nodes(topic.publishers)}",
                "one",
                "end the other driver: the views would alternate",
            )


def images(subject: Subject) -> Iterator[Finding]:
    """Encoding, size and soundness of images."""
    cameras = {camera.view: (k, camera) for k, camera in enumerate(subject.embodiment.cameras)}
    for source, topic, stream in _streams(subject):
        if not isinstance(stream, Images):
            continue
        k, camera = cameras[source.view]
        unknown = [name for name in stream.encodings if name not in camera.encodings]
        if unknown:
            usable = [name for name in unknown if name in _ENCODINGS[camera.transport]]
            advice = (
                f"add {usable[0]} to encodings"
                if usable
                else "let the driver send one of those that can be read"
            )
            yield _finding(
                "CAMERA_ENCODING",
                ("cameras", k, "encodings"),
                topic.name,
                ", ".join(unknown),
                " or ".join(camera.encodings),
                advice,
                warning=not camera.required,
            )
        elif stream.broken:
            yield _finding(
                "CAMERA_BROKEN",
                source.path,
                topic.name,
                stream.broken,
                "an image",
                "look at the driver; a message must hold height rows of step bytes",
                warning=not camera.required,
            )
        for width, height in stream.sizes:
            if (width, height) != tuple(camera.size):
                yield _finding(
                    "CAMERA_SIZE",
                    ("cameras", k, "size"),
                    topic.name,
                    f"{width}x{height}",
                    f"{camera.size[0]}x{camera.size[1]}",
                    f"set size: [{width}, {height}], or the driver's resolution",
                    warning=not camera.required,
                )


_ENCODINGS = {"raw": ("rgb8", "bgr8", "rgba8", "bgra8", "mono8"), "compressed": ("jpeg", "png")}


def rates(subject: Subject) -> Iterator[Finding]:
    """Rates by stamps, so that what this computer loses does not count."""
    for source, topic, stream in _streams(subject):
        assert subject.graph is not None
        if not stream.arrivals:
            continue
        rate = rate_of(stream)
        if rate is None:
            silence = (subject.graph.seconds - stream.arrivals[0]) * subject.graph.pace
            if silence < 2.0 / source.least:
                continue
            rate = 1.0 / silence
        if rate >= source.usual * (1.0 - RATE_TOLERANCE):
            continue
        low = rate < source.least * (1.0 - RATE_TOLERANCE)
        wanted = source.least if low else source.usual
        yield _finding(
            f"{source.prefix}_RATE",
            source.path,
            topic.name,
            f"{rate:.3g} Hz",
            f"{wanted:.3g} Hz at least, by max_age {source.max_age:g} s and the control rate",
            "raise the rate of the driver" + (", or max_age" if low else ""),
            warning=not low or not source.required,
        )


def rate_of(stream: Stream) -> float | None:
    """Of the publisher [Hz]: by the median distance of stamps, or of arrivals where stamps stand still."""
    for times in (sorted(set(stream.stamps)), stream.arrivals):
        gaps = [b - a for a, b in itertools.pairwise(times)]
        if gaps and statistics.median(gaps) > 0:
            return 1.0 / statistics.median(gaps)
    return None


def stamps(subject: Subject) -> Iterator[Finding]:
    """Stamps: there, advancing, of now."""
    for source, topic, stream in _streams(subject):
        if not stream.stamps:
            continue
        found = _stamp_trouble(source, topic, stream)
        if found is not None:
            code, shown, expected, advice = found
            yield _finding(
                code, source.path, topic.name, shown, expected, advice, warning=not source.required
            )


def _stamp_trouble(source: Source, topic: Topic, stream: Stream) -> tuple[str, str, str, str] | None:
    count = len(stream.stamps)
    if sum(stamp == 0.0 for stamp in stream.stamps) > count / 2:
        return "STAMP_ZERO", "0", "the time of capture", "let the driver fill header.stamp"
    if count > 2 and len(set(stream.stamps)) == 1:
        return (
            "STAMP_STUCK",
            f"{stream.stamps[0]:.3f} s in {count} messages",
            "a new one in each",
            "let the driver stamp each message when it is captured",
        )
    back = sum(b < a for a, b in itertools.pairwise(stream.stamps))
    if back > 0.1 * count and len(topic.publishers) == 1:
        return (
            "STAMP_BACKWARDS",
            f"{back} of {count} messages older than the one before",
            "stamps that grow",
            "publish in the order of capture",
        )
    # Before the first /clock there is no age.
    ages = [age for age in stream.ages if not math.isnan(age)]
    age = statistics.median(ages) if ages else 0.0
    apart = "synchronise the computers' clocks (chrony), or give all nodes the same use_sim_time"
    if age < -AHEAD:
        return "STAMP_FUTURE", f"{-age:.3g} s in the future", f"at most {AHEAD:g} s", apart
    if age > source.max_age:
        return (
            "STAMP_OLD",
            f"{age:.3g} s old on arrival",
            f"at most max_age, {source.max_age:g} s",
            f"{apart}; or the way from the camera is too slow",
        )
    return None


def skew(subject: Subject) -> Iterator[Finding]:
    """Whether the newest images of the required cameras are of one time."""
    graph, body = subject.graph, subject.embodiment
    required = [camera for camera in body.cameras if camera.required]
    if graph is None or len(required) < 2:
        return
    heard = {camera.view: graph.images.get(camera.view, Images()) for camera in required}
    if any(not stream.stamps or rate_of(stream) is None for stream in heard.values()):
        return
    arrived = sorted(
        (arrival, view, stamp)
        for view, stream in heard.items()
        for arrival, stamp in zip(stream.arrivals, stream.stamps, strict=True)
    )
    newest: dict[str, float] = {}
    apart = []
    for _, view, stamp in arrived:
        newest[view] = stamp
        if len(newest) == len(heard):
            apart.append((max(newest.values()) - min(newest.values()), min(newest, key=newest.__getitem__)))
    good = sum(span <= body.max_camera_skew for span, _ in apart)
    if not apart or good >= len(apart) / 2:
        return
    typical = statistics.median(span for span, _ in apart)
    slow = statistics.mode(view for _, view in apart)
    k = next(k for k, camera in enumerate(body.cameras) if camera.view == slow)
    yield _finding(
        "CAMERA_SKEW",
        ("max_camera_skew",),
        graph.topics[body.cameras[k].topic].name,
        f"{slow} {typical:.3g} s behind the newest, {good} of {len(apart)} times within the bound",
        f"at most {body.max_camera_skew:g} s",
        "trigger the cameras together, raise their rates, or raise max_camera_skew",
        warning=good > 0,
    )


def joint_states(subject: Subject) -> Iterator[Finding]:
    """Joints: named, with finite positions."""
    graph, body = subject.graph, subject.embodiment
    if graph is None:
        return
    known: set[str] = set()
    complete = bool(graph.joints)
    for k, name in enumerate(body.state.joint_states):
        heard = graph.joints.get(name)
        if heard is None or not heard.arrivals:
            complete = False
            continue
        path, topic = ("state", "joint_states", k), graph.topics[name].name
        known |= {*heard.positions, *heard.broken}
        if heard.unequal is not None:
            yield _finding(
                "JOINTS_LENGTH",
                path,
                topic,
                f"{heard.unequal[0]} names and {heard.unequal[1]} positions",
                "as many of one as of the other",
                "correct the driver, or state.joint_names",
            )
            complete = False
        for joint, value in heard.broken.items():
            if joint in body.joints:
                yield _finding(
                    "JOINT_NOT_FINITE",
                    path,
                    topic,
                    f"{value} for {joint}",
                    "a number",
                    "look at the robot's driver",
                )
    if not complete:
        return
    topics = ", ".join(graph.topics[name].name for name in body.state.joint_states)
    for joints, _ in jointed(body):
        missing = [k for k, joint in enumerate(joints.names) if joint not in known]
        if not missing:
            continue
        names = [joints.names[k] for k in missing]
        close = [
            match for name in names for match in difflib.get_close_matches(name, sorted(known - {*names}), 1)
        ]
        some = ", ".join(sorted(known)[:8])
        yield _finding(
            "JOINT_MISSING",
            joints.named[missing[0]] if len(missing) == 1 else joints.named[0][:-1],
            topics,
            f"no {', '.join(names)}",
            f"{', '.join(close)}?" if len(close) == len(names) else f"joints among {some}",
            "write the names as in the joint states, or start the driver that has them",
        )


def joint_positions(subject: Subject) -> Iterator[Finding]:
    """Measured positions against the limits."""
    graph, body = subject.graph, subject.embodiment
    if graph is None:
        return
    measured = {
        joint: (value, graph.topics[topic].name)
        for topic, heard in graph.joints.items()
        for joint, value in heard.positions.items()
    }
    for joints, field in jointed(body):
        for k, joint in enumerate(joints.names):
            if joint not in measured:
                continue
            (value, topic), unit = measured[joint], joints.units[k]
            low, high = joints.position[k]
            path = joints.limit_path("position", field.position, k)
            if unit in MOST and abs(value) > MOST[unit]:
                mistaken, factor = MISTAKEN[unit]
                yield _finding(
                    "JOINT_UNIT",
                    path,
                    topic,
                    f"{value:.4g} for {joint}",
                    f"{unit}, at most {MOST[unit]:.3g}",
                    f"if these are {mistaken} ({value / factor:.3g} {unit}), let the driver publish {unit}",
                )
                continue
            slack = max(ROUNDING, RANGE_TOLERANCE * (high - low))
            if joint not in joints.continuous and not low - slack <= value <= high + slack:
                turns = unit == "rad" and low <= math.remainder(value, 2.0 * math.pi) <= high
                yield _finding(
                    "JOINT_OUTSIDE",
                    path,
                    topic,
                    f"{joint} at {value:.4g}",
                    f"within the limits, {low:g} to {high:g}",
                    "it is a whole turn away: see the driver's offsets"
                    if turns
                    else "move it inside by hand, or compare zero and sign of joint and limits",
                )


def odometry(subject: Subject) -> Iterator[Finding]:
    """Frames and values of the odometry."""
    graph, body = subject.graph, subject.embodiment
    if graph is None or graph.odometry is None or not graph.odometry.arrivals or not body.state.odometry:
        return
    heard, topic = graph.odometry, graph.topics[body.state.odometry].name
    if heard.broken:
        yield _finding(
            "ODOMETRY_NOT_FINITE",
            ("state", "odometry"),
            topic,
            heard.broken,
            "numbers",
            "look at the driver of the base",
        )
    for g, group in enumerate(body.actions):
        # Frames of several robots have a prefix each.
        if (
            isinstance(group, (WaypointGroup, BaseVelocityGroup))
            and heard.child_frame.split("/")[-1] != group.frame
        ):
            yield _finding(
                "ODOMETRY_FRAME",
                ("actions", g, "frame"),
                topic,
                f"pose of {heard.child_frame or 'no frame'!r} in {heard.frame or 'no frame'!r}",
                f"child_frame_id {group.frame!r}",
                f"set frame: {heard.child_frame}, if that is the base"
                if heard.child_frame
                else "let the driver name its frames",
            )


# What is commanded


def _commands(subject: Subject) -> Iterator[tuple[Path, Any, str, Topic, Graph]]:
    graph = subject.graph
    if graph is None:
        return
    for g, group in enumerate(subject.embodiment.actions):
        controller: Any = group.controller
        topic = graph.topics.get(controller.topic)
        if topic is not None:
            yield ("actions", g, "controller"), group, command_type(controller), topic, graph


def commands_unheard(subject: Subject) -> Iterator[Finding]:
    """Commands that would reach nobody."""
    for path, group, kind, topic, graph in _commands(subject):
        if not topic.subscriptions:
            action = is_action(group.controller)
            yield _finding(
                "COMMAND_UNHEARD",
                (*path, "topic"),
                topic.name,
                "no action server" if action else "no subscriber",
                kind,
                "start the controller (ros2 control list_controllers), or correct topic or namespace"
                + ("" if action else _elsewhere(graph, topic, kind)),
            )


def commands_type(subject: Subject) -> Iterator[Finding]:
    """Controllers that expect other messages."""
    for path, group, kind, topic, _ in _commands(subject):
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
        yield _finding(
            "COMMAND_TYPE",
            (*path, "type"),
            topic.name,
            f"{_nodes(other)} takes {found}",
            kind,
            advice,
        )


def commands_contested(subject: Subject) -> Iterator[Finding]:
    """Others who command the robot."""
    for path, group, _, topic, graph in _commands(subject):
        own = f"{graph.namespace.rstrip('/')}/executor"
        rivals = [endpoint for endpoint in topic.publishers if endpoint.node != own]
        if rivals and not is_action(group.controller):
            yield _finding(
                "COMMAND_CONTESTED",
                (*path, "topic"),
                topic.name,
                f"{_nodes(rivals)} publishes too",
                "the executor alone",
                "end it, or have it stop publishing: two who command make the robot jump",
            )


def controllers(subject: Subject) -> Iterator[Finding]:
    """Joints, their order and the interface of ros2_control's controllers, by their own parameters."""
    for path, group, _, topic, graph in _commands(subject):
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
            yield _finding(
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
            yield _finding(
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
            yield _finding(
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
    yield _finding(
        "CONTROLLER_JOINTS", place, topic.name, ", ".join(ours), f"{', '.join(theirs)}, as in {node}", advice
    )


def controller_manager(subject: Subject) -> Iterator[Finding]:
    """What controller_manager says, where there is one."""
    graph, body = subject.graph, subject.embodiment
    if graph is None:
        return
    if graph.update_rate is not None and graph.update_rate < body.command_rate * (1.0 - RATE_TOLERANCE):
        yield _finding(
            "CONTROLLER_SLOW",
            ("command_rate",),
            "",
            f"{body.command_rate:g} Hz",
            f"at most the update_rate of controller_manager, {graph.update_rate:g} Hz",
            "raise update_rate, or lower command_rate: commands in between are lost",
        )
    if graph.controller_states is None:
        return
    for path, group, _, topic, _ in _commands(subject):
        controller = graph.controllers.get(group.controller.topic)
        name = topic.name if controller is None else controller.node
        states = graph.controller_states
        known = [each for each in states if name.split("/")[-1] == each or f"/{each}/" in topic.name]
        if known and states[known[0]] != "active":
            yield _finding(
                "CONTROLLER_INACTIVE",
                (*path, "topic"),
                topic.name,
                f"{known[0]} is {states[known[0]]}",
                "active",
                f"ros2 control switch_controllers --activate {known[0]}",
            )


# QoS


def qos(subject: Subject) -> Iterator[Finding]:
    """Publishers and subscribers that DDS will not bring together."""
    graph, body = subject.graph, subject.embodiment
    if graph is None:
        return
    for path, _, kind, topic, _ in _commands(subject):
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
            yield _finding(
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


# Our own nodes


def own_nodes(subject: Subject) -> Iterator[Finding]:
    """Two of a kind, or one for another robot."""
    graph = subject.graph
    if graph is None:
        return
    for code, name in (("EXECUTOR_TWICE", "executor_status"), ("POLICY_TWICE", "policy_status")):
        topic = graph.topics.get(name)
        if topic is not None and len(topic.publishers) > 1:
            yield _finding(
                code,
                (),
                topic.name,
                f"{len(topic.publishers)} publishers, of {_nodes(topic.publishers)}",
                "one",
                "end one, or give each robot a namespace; one that was killed is seen for some 20 s more",
            )
    for name, served in graph.embodiments.items():
        if served != subject.embodiment.name:
            yield _finding(
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
    return _finding(
        "ROS_MISSING",
        (),
        "",
        f"no Python module {name}: the running system was left out",
        "ROS 2 and the built package",
        "source the setup files of ROS 2 and of the workspace (in a checkout: tools/with_ros qwen-vla ...)",
    )


def description_broken(topic: str, reason: str) -> Finding:
    """What was published as URDF cannot be read."""
    return _finding(
        "DESCRIPTION_BROKEN", (), topic, reason, "a URDF", "correct what robot_state_publisher is given"
    )


def examine_live(subject: Subject) -> Iterator[Finding]:
    """Findings of all live checks; of an empty graph only why it may be empty."""
    checks = LIVE if subject.graph is not None and subject.graph.nodes else (environment,)
    for check in checks:
        yield from check(subject)


def table() -> str:
    """The codes in Markdown."""
    rows = ["| code | is reported when | |", "|---|---|---|"]
    for code, meaning in CODES.items():
        warning = meaning.startswith("(warning)")
        text = meaning.removeprefix("(warning) ")
        rows.append(f"| `{code}` | {text} | {'warning' if warning else 'error'} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table(), end="")
