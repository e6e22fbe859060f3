# SPDX-License-Identifier: Apache-2.0
"""What was seen of a running robot: its topics, and what was heard on them. Made by `nodes.graph_checkup`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Endpoint:
    """A publisher or a subscription.

    Attributes:
        node: full name.
        type: as `sensor_msgs/msg/Image`.
        reliable, latched: its QoS; latched is transient local.
        deadline, lease: of a message, of a sign of life [s].
    """

    node: str
    type: str
    reliable: bool = True
    latched: bool = False
    deadline: float = math.inf
    lease: float = math.inf


@dataclass(frozen=True)
class Topic:
    """A topic, or an action: its servers then count as subscriptions.

    Attributes:
        name: resolved.
    """

    name: str
    publishers: tuple[Endpoint, ...] = ()
    subscriptions: tuple[Endpoint, ...] = ()


@dataclass(frozen=True)
class Stream:
    """What came on one topic, in order of arrival.

    Attributes:
        stamps: of the headers [s].
        ages: time of the node's clock at arrival minus stamp [s].
        arrivals: time since the listening began [s].
    """

    stamps: tuple[float, ...] = ()
    ages: tuple[float, ...] = ()
    arrivals: tuple[float, ...] = ()


@dataclass(frozen=True)
class Images(Stream):
    """Images of one camera.

    Attributes:
        encodings, sizes: all that occurred; sizes are (width, height) [px].
        broken: why the last one that could not be decoded could not; empty if all could.
    """

    encodings: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    broken: str = ""


@dataclass(frozen=True)
class JointStates(Stream):
    """Joint states of one topic.

    Attributes:
        positions: the last of each joint [rad] or [m].
        broken: the last of each joint that was not finite.
        unequal: numbers of names and positions of a message where they differ.
    """

    positions: Mapping[str, float] = field(default_factory=dict)
    broken: Mapping[str, float] = field(default_factory=dict)
    unequal: tuple[int, int] | None = None


@dataclass(frozen=True)
class Odometry(Stream):
    """The pose of the base, as odometry or as a pose, which has no child frame.

    Attributes:
        frame, child_frame: of the last message.
        broken: a pose that was not finite, or empty.
    """

    frame: str = ""
    child_frame: str = ""
    broken: str = ""


@dataclass(frozen=True)
class Controller:
    """A node that takes commands, and those of its parameters that tell what it makes of them."""

    node: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """A running system at one time. Topics and views have the names of the YAML.

    Attributes:
        namespace: in which the robot was looked for.
        seconds: how long messages were listened to; 0 if only the graph was looked at.
        topics: those of the YAML, the clock and those between our nodes.
        types: all topics there are, by resolved name.
        nodes: all others, full names.
        images, joints, odometry: what was heard; what is missing was not listened to.
        sim_time: `use_sim_time` of the nodes that were asked.
        clock: stamps heard on it [s].
        controllers: by topic.
        controller_states: of controller_manager, by controller; None if it did not say.
        update_rate: of controller_manager [Hz].
        embodiments: that running policies and executors serve, by topic of their status.
        environment: variables that ROS reads.
    """

    namespace: str = ""
    seconds: float = 0.0
    topics: Mapping[str, Topic] = field(default_factory=dict)
    types: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()
    images: Mapping[str, Images] = field(default_factory=dict)
    joints: Mapping[str, JointStates] = field(default_factory=dict)
    odometry: Odometry | None = None
    sim_time: Mapping[str, bool] = field(default_factory=dict)
    clock: tuple[float, ...] = ()
    controllers: Mapping[str, Controller] = field(default_factory=dict)
    controller_states: Mapping[str, str] | None = None
    update_rate: float | None = None
    embodiments: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def pace(self) -> float:
        """Seconds of the robot per second that was listened: a simulation may be slower than the world."""
        if len(self.clock) < 2 or not self.seconds:
            return 1.0
        return (self.clock[-1] - self.clock[0]) / self.seconds
