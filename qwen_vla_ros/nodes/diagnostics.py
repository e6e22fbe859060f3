# SPDX-License-Identifier: Apache-2.0
"""Figures of a node on /diagnostics, once a second."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from . import qos

PERIOD = 1.0

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


class Window:
    """The newest samples of a figure, by wall time; threads may share it.

    Args:
        span: how far back samples count [s].
    """

    def __init__(self, span: float = 10.0):
        self._span = span
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, float]] = deque()

    def add(self, value: float = math.nan) -> None:
        now = time.monotonic()
        with self._lock:
            self._samples.append((now, value))
            self._forget(now)

    @property
    def count(self) -> int:
        return len(self._kept())

    @property
    def rate(self) -> float:
        """Samples per second; 0 with fewer than two."""
        kept = self._kept()
        return (len(kept) - 1) / max(1e-9, kept[-1][0] - kept[0][0]) if len(kept) > 1 else 0.0

    def percentile(self, share: float) -> float:
        """NaN without samples."""
        values = [value for _, value in self._kept() if not math.isnan(value)]
        return float(np.percentile(values, share)) if values else math.nan

    def _kept(self) -> list[tuple[float, float]]:
        with self._lock:
            self._forget(time.monotonic())
            return list(self._samples)

    def _forget(self, now: float) -> None:
        while self._samples and self._samples[0][0] < now - self._span:
            self._samples.popleft()


@dataclass
class Health:
    """One part of a node, as a reader of diagnostics sees it.

    Attributes:
        values: figures by name, with their unit in brackets.
    """

    values: dict[str, object]
    level: bytes = OK
    message: str = "ok"
    _worse: list[str] = field(default_factory=list)

    def check(self, bad: bool, message: str, level: bytes = WARN) -> None:
        """Raise the level and say why, if `bad`."""
        if bad:
            self.level = max(self.level, level)
            self._worse.append(message)
            self.message = "; ".join(self._worse)


class Diagnostics:
    """Publishes the parts' health while it exists.

    Args:
        node: its fully qualified name heads every part's.
        hardware: name of the embodiment.
        parts: by name, called once a period.
    """

    def __init__(self, node: Node, hardware: str, parts: Mapping[str, Callable[[], Health]]):
        self._node, self._hardware, self._parts = node, hardware, dict(parts)
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", qos.RELIABLE)
        self._timer = node.create_timer(PERIOD, self._publish, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def destroy(self) -> None:
        self._node.destroy_timer(self._timer)
        self._node.destroy_publisher(self._publisher)

    def _publish(self) -> None:
        message = DiagnosticArray()
        message.header.stamp = self._node.get_clock().now().to_msg()
        name = self._node.get_fully_qualified_name().lstrip("/")
        for part, health_of in self._parts.items():
            health = health_of()
            message.status.append(
                DiagnosticStatus(
                    level=health.level,
                    name=f"{name}: {part}",
                    message=health.message,
                    hardware_id=self._hardware,
                    values=[KeyValue(key=key, value=_text(value)) for key, value in health.values.items()],
                )
            )
        self._publisher.publish(message)


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
