# SPDX-License-Identifier: Apache-2.0
"""What does not fit with what a robot is observed by: cameras, joint states, odometry."""

from __future__ import annotations

import difflib
import itertools
import math
import statistics
from collections.abc import Iterator

from qwen_vla_ros.embodiment.checkup import MISTAKEN, MOST, ROUNDING, Finding, Subject, jointed
from qwen_vla_ros.embodiment.graph_facts import Graph, Images, Stream, Topic
from qwen_vla_ros.embodiment.live_codes import live_finding
from qwen_vla_ros.embodiment.live_topics import (
    COMPRESSED,
    IMAGE,
    POSES,
    RATE_TOLERANCE,
    Source,
    elsewhere,
    names_of,
    observed,
    streams,
)
from qwen_vla_ros.embodiment.schema import BaseVelocityGroup, WaypointGroup

# How far the clocks of two computers, and what stamps and reads, may be apart [s].
AHEAD = 0.05
# Part of its range by which a joint may be outside.
RANGE_TOLERANCE = 0.01


def absent(subject: Subject) -> Iterator[Finding]:
    """Topics without any publisher."""
    for source, topic, graph in observed(subject):
        if topic.publishers:
            continue
        if source.view:
            other = _other_transport(graph, topic, source)
            if other is not None:
                yield other
                continue
        yield live_finding(
            f"{source.prefix}_UNPUBLISHED",
            source.path,
            topic.name,
            "no publisher",
            source.type,
            "start the driver, or correct topic or namespace" + elsewhere(graph, topic, source.type),
            warning=not source.required,
        )


def _other_transport(graph: Graph, topic: Topic, source: Source) -> Finding | None:
    """Images of the other transport under the name that image_transport gives them."""
    raw = source.type == IMAGE
    name = f"{topic.name}/compressed" if raw else topic.name.removesuffix("/compressed")
    kind = COMPRESSED if raw else IMAGE
    if name == topic.name or kind not in graph.types.get(name, ()):
        return None
    return live_finding(
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
    for source, topic, _ in observed(subject):
        other = [endpoint for endpoint in topic.publishers if endpoint.type != source.type]
        if not other or len(other) < len(topic.publishers):
            continue
        kind = other[0].type
        advice = "correct the topic"
        if source.view and {kind, source.type} == {IMAGE, COMPRESSED}:
            transport = "compressed" if kind == COMPRESSED else "raw"
            advice = f"set transport: {transport} and encodings to match"
        elif source.prefix == "ODOMETRY" and kind in POSES.values():
            advice = f"write {_pose_line(kind, source.topic)} under state, if that is the pose of the base"
        yield live_finding(
            f"{source.prefix}_TYPE",
            source.path,
            topic.name,
            f"{kind} from {names_of(other)}",
            source.type,
            advice,
            warning=not source.required,
        )


def _pose_line(kind: str, topic: str) -> str:
    """What the YAML says of a pose that comes as messages of this type."""
    name = next(name for name, message in POSES.items() if message == kind)
    return f"odometry: {topic}" if name == "odometry" else f"pose: {{topic: {topic}, type: {name}}}"


def silent(subject: Subject) -> Iterator[Finding]:
    """A publisher of the right type from which nothing came."""
    for source, topic, stream in streams(subject):
        senders = [endpoint for endpoint in topic.publishers if endpoint.type == source.type]
        assert subject.graph is not None
        if not stream.arrivals and senders:
            yield live_finding(
                f"{source.prefix}_SILENT",
                source.path,
                topic.name,
                f"nothing from {names_of(senders)} in {subject.graph.seconds:g} s",
                f"messages, {source.least:.3g} Hz at least",
                "look at the driver's log; a second computer must be reachable by UDP both ways",
                warning=not source.required,
            )


def cameras_twice(subject: Subject) -> Iterator[Finding]:
    """Pictures of two cameras on one topic."""
    for source, topic, _ in observed(subject):
        if source.prefix == "CAMERA" and len(topic.publishers) > 1:
            yield live_finding(
                "CAMERA_TWICE",
                source.path,
                topic.name,
                f"{len(topic.publishers)} publishers, of {names_of(topic.publishers)}",
                "one",
                "end the other driver: the views would alternate",
            )


def images(subject: Subject) -> Iterator[Finding]:
    """Encoding, size and soundness of images."""
    cameras = {camera.view: (k, camera) for k, camera in enumerate(subject.embodiment.cameras)}
    for source, topic, stream in streams(subject):
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
            yield live_finding(
                "CAMERA_ENCODING",
                ("cameras", k, "encodings"),
                topic.name,
                ", ".join(unknown),
                " or ".join(camera.encodings),
                advice,
                warning=not camera.required,
            )
        elif stream.broken:
            yield live_finding(
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
                yield live_finding(
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
    for source, topic, stream in streams(subject):
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
        yield live_finding(
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
    for source, topic, stream in streams(subject):
        if not stream.stamps:
            continue
        found = _stamp_trouble(source, topic, stream)
        if found is not None:
            code, shown, expected, advice = found
            yield live_finding(
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
    yield live_finding(
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
            yield live_finding(
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
                yield live_finding(
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
        yield live_finding(
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
    for joints, field in jointed(body, subject.urdf):
        for k, joint in enumerate(joints.names):
            if joint not in measured:
                continue
            (value, topic), unit = measured[joint], joints.units[k]
            low, high = joints.position[k]
            path = joints.limit_path("position", field.position, k)
            turns_on = joint in joints.continuous  # and may count its turns
            if unit in MOST and abs(value) > MOST[unit] and not turns_on:
                mistaken, factor = MISTAKEN[unit]
                yield live_finding(
                    "JOINT_UNIT",
                    path,
                    topic,
                    f"{value:.4g} for {joint}",
                    f"{unit}, at most {MOST[unit]:.3g}",
                    f"if these are {mistaken} ({value / factor:.3g} {unit}), let the driver publish {unit}",
                )
                continue
            slack = max(ROUNDING, RANGE_TOLERANCE * (high - low))
            if not turns_on and not low - slack <= value <= high + slack:
                turns = unit == "rad" and low <= math.remainder(value, 2.0 * math.pi) <= high
                yield live_finding(
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
    """Frames and values of the pose of the base."""
    graph, base = subject.graph, subject.embodiment.state.base
    if graph is None or base is None or graph.odometry is None or not graph.odometry.arrivals:
        return
    heard, topic = graph.odometry, graph.topics[base.topic].name
    if heard.broken:
        yield live_finding(
            "ODOMETRY_NOT_FINITE",
            base.path,
            topic,
            heard.broken,
            "numbers",
            "look at the node that publishes it",
        )
    if base.type != "odometry":
        # A pose does not say whose it is, only where.
        if not heard.frame:
            yield live_finding(
                "ODOMETRY_FRAME",
                base.path,
                topic,
                "a pose in no frame",
                "the fixed frame that it is in, such as map",
                "let its publisher fill header.frame_id: paths are sent in that frame",
            )
        return
    for g, group in enumerate(subject.embodiment.actions):
        # Frames of several robots have a prefix each.
        if isinstance(group, (WaypointGroup, BaseVelocityGroup)) and group.frame not in (
            heard.child_frame,
            heard.child_frame.split("/")[-1],
        ):
            yield live_finding(
                "ODOMETRY_FRAME",
                ("actions", g, "frame"),
                topic,
                f"pose of {heard.child_frame or 'no frame'!r} in {heard.frame or 'no frame'!r}",
                f"child_frame_id {group.frame!r}",
                f"set frame: {heard.child_frame}, if that is the base"
                if heard.child_frame
                else "let the driver name its frames",
            )
