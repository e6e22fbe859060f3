# SPDX-License-Identifier: Apache-2.0
"""Who else commands the robot: another publisher of commands, or a second executor."""

from __future__ import annotations

from collections.abc import Iterable

from rclpy.node import Node

from .controllers import Writer
from .graph_reading import UNKNOWN


class Rivals:
    """Looks at the graph, which is slow to ask.

    Args:
        writers: whose topics nobody else may publish on.
        status: name of the topic on which every executor publishes.
    """

    def __init__(self, node: Node, writers: Iterable[Writer], status: str):
        self._node, self._writers, self._status = node, list(writers), status
        self._executors = 1

    def count_executors(self, alive: int) -> None:
        """How many executors are alive in the namespace, this one too.

        Told by their signs of life: by the name alone a twin could not be told from a dead one of before.
        """
        self._executors = alive

    def look(self) -> dict[str, list[str]]:
        """Names of nodes by topic; topics without rivals are left out."""
        node = self._node
        own = node.get_name(), node.get_namespace()
        rivals = {}
        for writer in self._writers:
            if node.count_publishers(writer.topic) > 1:
                infos = node.get_publishers_info_by_topic(writer.topic)
                names = [(info.node_name, info.node_namespace) for info in infos]
                if names := [_full_name(*name) for name in names if name != own]:
                    rivals[writer.topic] = names
        if self._executors > 1:
            rivals[self._status] = [f"another {node.get_fully_qualified_name()}"]
        return rivals


def _full_name(name: str, namespace: str) -> str:
    # A publisher is discovered before the node that it belongs to.
    return "a new node" if name == UNKNOWN else f"{namespace.rstrip('/')}/{name}"
