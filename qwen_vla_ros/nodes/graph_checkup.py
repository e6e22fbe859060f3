# SPDX-License-Identifier: Apache-2.0
"""Look at a running robot for a few seconds, for `qwen-vla doctor --live`."""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from qwen_vla_ros.embodiment import Embodiment
from qwen_vla_ros.embodiment.graph_facts import Graph, Images, JointStates, Odometry, Topic
from qwen_vla_ros.embodiment.live_topics import DESCRIPTION, sources
from qwen_vla_ros.msg import ExecutorStatus, PolicyStatus

from . import qos
from .base_pose import MESSAGES, pose_of
from .graph_reading import (
    CONTROLLER_PARAMETERS,
    DISCOVERY,
    Spin,
    ask_parameters,
    full_name,
    is_discovered,
    pick_controllers,
    read_topics,
    resolve,
    takers,
)
from .images import ImageError, encoding_of, to_rgb
from .lifecycle import seconds

# The graph counts as discovered when nothing is missing and nothing has changed for that long [s].
QUIET = 0.5
VARIABLES = (
    "ROS_DOMAIN_ID",
    "ROS_AUTOMATIC_DISCOVERY_RANGE",
    "ROS_LOCALHOST_ONLY",
    "FASTDDS_DEFAULT_PROFILES_FILE",
)


def look(body: Embodiment, namespace: str = "", duration: float = 3.0) -> tuple[Graph, str]:
    """What runs, as far as an embodiment is concerned.

    Args:
        namespace: of the robot.
        duration: how long messages are listened to, after discovery; twice as long to who is silent [s].

    Returns:
        What was seen, and what was on `robot_description`; empty if nothing was.

    Raises:
        ValueError: not a namespace.
    """
    context = Context()
    # Ctrl-C ends the wait as in any program.
    rclpy.init(context=context, signal_handler_options=SignalHandlerOptions.NO)
    node = executor = None
    try:
        node = rclpy.create_node("qwen_vla_doctor", namespace=namespace, context=context)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        return _look(node, executor, body, duration)
    finally:
        if executor is not None:
            executor.shutdown()
        if node is not None:
            node.destroy_node()
        rclpy.shutdown(context=context)


def _look(
    node: Node, executor: SingleThreadedExecutor, body: Embodiment, duration: float
) -> tuple[Graph, str]:
    def spin() -> bool:
        executor.spin_once(timeout_sec=0.05)
        return True

    _discover(node, body, spin)
    ear = _Ear(node, body)
    # As long again for who is there and still silent: on a busy computer they are late to connect.
    while ear.listened < duration or (ear.listened < 2.0 * duration and ear.misses_somebody):
        spin()
    seconds_heard = ear.listened
    ear.leave()
    clock = find_clock(node)
    ear.choose_clock(clock if node.count_publishers(clock) else "")
    topics = read_topics(node, body, clock)
    manager = full_name("controller_manager", node.get_namespace())
    own = full_name(node.get_name(), node.get_namespace())
    nodes = [full_name(*each) for each in node.get_node_names_and_namespaces()]
    parameters = _ask(node, body, topics, manager, nodes, spin)
    rate = parameters.get(manager, {}).get("update_rate")
    graph = Graph(
        namespace=node.get_namespace(),
        seconds=round(seconds_heard, 1),
        topics=topics,
        types={name: tuple(types) for name, types in node.get_topic_names_and_types()},
        nodes=tuple(name for name in nodes if name != own),
        images={camera.view: ear.images(camera.view) for camera in body.cameras},
        joints={topic: ear.joint_states(topic) for topic in body.state.joint_states},
        odometry=ear.odometry() if body.state.base else None,
        sim_time={
            name: given["use_sim_time"]
            for name, given in parameters.items()
            if isinstance(given.get("use_sim_time"), bool)
        },
        clock=tuple(ear.clock),
        controllers=pick_controllers(takers(body, topics), parameters),
        controller_states=_controller_states(node, manager, spin),
        update_rate=float(rate) if isinstance(rate, (int, float)) else None,
        embodiments=ear.embodiments,
        environment=environment(),
    )
    return graph, ear.description


def environment() -> dict[str, str]:
    """What ROS goes by, and the middleware that was loaded."""
    found = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    profile = os.environ.get("FASTRTPS_DEFAULT_PROFILES_FILE")  # its name in Jazzy
    if profile:
        found.setdefault("FASTDDS_DEFAULT_PROFILES_FILE", profile)
    return {**found, "RMW_IMPLEMENTATION": rclpy.get_rmw_implementation_identifier()}


def find_clock(node: Node) -> str:
    """The clock of the namespace, which simulated worlds have where there are several, else /clock."""
    own = full_name("clock", node.get_namespace())
    return own if node.count_publishers(own) else node.resolve_topic_name("/clock")


def _discover(node: Node, body: Embodiment, spin: Spin) -> None:
    begin = changed = time.monotonic()
    before: Any = None
    while (now := time.monotonic()) < begin + DISCOVERY:
        spin()
        seen = sorted(node.get_topic_names_and_types()), sorted(node.get_node_names_and_namespaces())
        if seen != before:
            before, changed = seen, now
        if now - changed > QUIET and is_discovered(
            body, read_topics(node, body, find_clock(node)), {source.topic for source in sources(body)}
        ):
            return


def _ask(
    node: Node, body: Embodiment, topics: dict[str, Topic], manager: str, nodes: list[str], spin: Spin
) -> dict[str, dict[str, Any]]:
    """Parameters of all who publish what is observed, take commands, or are ours."""
    wanted: dict[str, tuple[str, ...]] = {}
    commanded = takers(body, topics)
    listened = [topic for name, topic in topics.items() if name not in commanded]
    for topic in listened:
        wanted |= {end.node: ("use_sim_time",) for end in topic.publishers}
    wanted |= {
        name: ("use_sim_time", *CONTROLLER_PARAMETERS) for nodes in commanded.values() for name in nodes
    }
    if manager in nodes:
        wanted[manager] = ("use_sim_time", "update_rate")
    return ask_parameters(node, wanted, spin)


def _controller_states(node: Node, manager: str, spin: Spin) -> dict[str, str] | None:
    """State by controller, where controller_manager answers and its messages are installed."""
    try:
        from controller_manager_msgs.srv import ListControllers
    except ModuleNotFoundError:
        return None
    client = node.create_client(ListControllers, f"{manager}/list_controllers")
    if not client.service_is_ready():
        return None
    future = client.call_async(ListControllers.Request())
    deadline = time.monotonic() + 1.0
    while not future.done() and time.monotonic() < deadline:
        spin()
    if not future.done() or future.result() is None:
        return None
    return {controller.name: controller.state for controller in future.result().controller}


class _Ear:
    """Listens to all that an embodiment is observed by."""

    def __init__(self, node: Node, body: Embodiment):
        self._node = node
        self._body = body
        self._began = time.monotonic()
        self._ears: list[Any] = []
        # Of each message: stamp, arrival, and what each clock said then; "" is the computer's own.
        self._times: defaultdict[str, list[tuple[float, float, dict[str, float]]]] = defaultdict(list)
        self._clocks: dict[str, list[float]] = {}
        self._clock_topic = ""
        self._topics: dict[str, str] = {}
        self._pictures: dict[str, list[Any]] = {}
        self._forms: defaultdict[str, set[tuple[str, int, int]]] = defaultdict(set)
        self._joints: dict[str, JointStates] = {}
        self._odometry = Odometry()
        self.description = ""
        self.embodiments: dict[str, str] = {}
        for clock in {full_name("clock", node.get_namespace()), node.resolve_topic_name("/clock")}:
            self._clocks[clock] = []
            self._listen(Clock, clock, partial(self._on_clock, clock), qos.SENSOR)
        for camera in body.cameras:
            kind = Image if camera.transport == "raw" else CompressedImage
            topic = self._topics[camera.view] = resolve(node, camera.topic, "policy")
            self._listen(kind, topic, partial(self._on_image, camera.view), qos.SENSOR)
        for name in body.state.joint_states:
            topic = self._topics[name] = resolve(node, name, "policy")
            self._listen(JointState, topic, partial(self._on_joints, name), qos.SENSOR)
        base = body.state.base
        if base is not None:
            topic = self._topics["odometry"] = resolve(node, base.topic, "policy")
            self._listen(MESSAGES[base.type], topic, self._on_pose, qos.SENSOR)
        self._listen(String, DESCRIPTION, self._on_description, qos.LATCHED)
        for kind, name, profile in (
            (ExecutorStatus, "executor_status", qos.LATCHED),
            (PolicyStatus, "policy_status", qos.RELIABLE),
        ):
            self._listen(kind, name, partial(self._on_status, name), profile)

    @property
    def listened(self) -> float:
        """For how long [s]."""
        return time.monotonic() - self._began

    @property
    def misses_somebody(self) -> bool:
        """A topic has a publisher, and too little came to tell its rate."""
        return any(
            len(self._times[key]) < 2 and self._node.count_publishers(topic)
            for key, topic in self._topics.items()
        )

    @property
    def clock(self) -> list[float]:
        """Stamps of the chosen clock."""
        return self._clocks.get(self._clock_topic, [])

    def choose_clock(self, topic: str) -> None:
        """Judge ages by this clock; empty for the computer's own."""
        self._clock_topic = topic

    def leave(self) -> None:
        for subscription in self._ears:
            self._node.destroy_subscription(subscription)

    def images(self, view: str) -> Images:
        broken = ""
        sizes = {form[1:] for form in self._forms[view] if form[1]}
        for message in self._pictures.get(view, ()):
            try:
                height, width = to_rgb(message).shape[:2]
                sizes.add((width, height))
            except ImageError as error:
                broken = str(error)
        encodings = tuple(sorted({form[0] for form in self._forms[view]}))
        return Images(*self._heard(view), encodings, tuple(sorted(sizes)), broken)

    def joint_states(self, topic: str) -> JointStates:
        last = self._joints.get(topic, JointStates())
        return JointStates(*self._heard(topic), last.positions, last.broken, last.unequal)

    def odometry(self) -> Odometry:
        last = self._odometry
        return Odometry(*self._heard("odometry"), last.frame, last.child_frame, last.broken)

    def _heard(self, key: str) -> tuple[tuple[float, ...], ...]:
        notes = self._times[key]
        return (
            tuple(stamp for stamp, _, _ in notes),
            tuple(said.get(self._clock_topic, math.nan) - stamp for stamp, _, said in notes),
            tuple(arrival for _, arrival, _ in notes),
        )

    def _listen(self, kind: type, topic: str, callback: Callable[[Any], None], profile: Any) -> None:
        self._ears.append(self._node.create_subscription(kind, topic, callback, profile))

    def _note(self, key: str, header: Any) -> None:
        said = {topic: stamps[-1] for topic, stamps in self._clocks.items() if stamps}
        self._times[key].append((seconds(header.stamp), self.listened, {"": time.time(), **said}))

    def _on_clock(self, topic: str, message: Clock) -> None:
        self._clocks[topic].append(seconds(message.clock))

    def _on_image(self, view: str, message: Any) -> None:
        self._note(view, message.header)
        raw = isinstance(message, Image)
        size = (message.width, message.height) if raw else (0, 0)
        self._forms[view].add((encoding_of(message), *size))
        # The first and the last are decoded; all of them would keep others from the processor.
        self._pictures[view] = [*self._pictures.get(view, [])[:1], message]

    def _on_joints(self, topic: str, message: JointState) -> None:
        self._note(topic, message.header)
        names = self._body.state.joint_names.get(topic) or tuple(message.name)
        last = self._joints.get(topic, JointStates())
        count = len(names), len(message.position)
        if count[0] != count[1]:
            self._joints[topic] = JointStates((), (), (), last.positions, last.broken, count)
            return
        values = dict(zip(names, message.position, strict=True))
        broken = {name: value for name, value in values.items() if not math.isfinite(value)}
        sound = {name: value for name, value in values.items() if name not in broken}
        self._joints[topic] = JointStates(
            (), (), (), {**last.positions, **sound}, {**last.broken, **broken}, last.unequal
        )

    def _on_pose(self, message: Any) -> None:
        self._note("odometry", message.header)
        pose = pose_of(message)
        at, turn = pose.position, pose.orientation
        values = (at.x, at.y, turn.x, turn.y, turn.z, turn.w)
        shown = f"x {at.x}, y {at.y}, orientation {turn.x}, {turn.y}, {turn.z}, {turn.w}"
        broken = self._odometry.broken if all(map(math.isfinite, values)) else shown
        frames = message.header.frame_id, getattr(message, "child_frame_id", "")
        self._odometry = Odometry((), (), (), *frames, broken)

    def _on_description(self, message: String) -> None:
        self.description = message.data

    def _on_status(self, name: str, message: Any) -> None:
        self.embodiments[name] = message.embodiment
