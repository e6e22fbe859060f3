# SPDX-License-Identifier: Apache-2.0
"""What the executor says of itself on /diagnostics."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from qwen_vla_ros.embodiment import Embodiment
from qwen_vla_ros.motion.follower import Follower
from qwen_vla_ros.msg import ActionChunk

from .controllers import Writer
from .diagnostics import ERROR, Health, Window
from .lifecycle import seconds
from .watchdog import Watchdog

STAGES = ("before inference", "inference", "transport", "queue", "command")


class ExecutorHealth:
    """Collects the figures of the executor's loop.

    Args:
        writers: by group, empty in a dry run.
        warn_latency: capture to command above which to warn [s].

    Attributes:
        refused: chunks.
    """

    def __init__(
        self,
        embodiment: Embodiment,
        follower: Follower,
        watchdog: Watchdog,
        writers: Mapping[str, Writer],
        warn_latency: float,
    ):
        self._embodiment, self._follower, self._watchdog = embodiment, follower, watchdog
        self._writers, self._warn_latency = writers, warn_latency
        self._stages = {stage: Window() for stage in STAGES}
        self._latency, self._periods, self._chunks = Window(), Window(), Window()
        self._ticked = self._accepted = math.nan
        self.refused = 0

    def tick(self) -> None:
        """A period of the loop begins."""
        wall = time.monotonic()
        if wall - self._ticked > 0.0:
            self._periods.add(wall - self._ticked)
        self._ticked = wall

    def rest(self) -> None:
        """The loop has nothing to do, and is in no hurry."""
        self._ticked = math.nan

    def accepted(self, chunk: ActionChunk, arrived: float, now: float) -> None:
        """A chunk is followed from now on.

        Args:
            arrived: when it came [s].
        """
        published = seconds(chunk.header.stamp) + chunk.observation_age
        self._stages["before inference"].add(chunk.observation_age - chunk.inference_time)
        self._stages["inference"].add(chunk.inference_time)
        self._stages["transport"].add(arrived - published)
        self._stages["queue"].add(now - arrived)
        self._chunks.add()
        self._accepted = now

    def commanded(self, latency: float, now: float) -> None:
        """The first command of a chunk was written, `latency` [s] after its capture."""
        self._latency.add(latency)
        self._stages["command"].add(now - self._accepted)

    def motion(self, facts: Mapping[str, object], trouble: str, closed: bool) -> Health:
        """Health of the loop.

        Args:
            facts: further figures.
            trouble: why the robot rests, or empty.
            closed: no goal is taken.
        """
        health = Health(
            {
                **facts,
                "period p50 [s]": self._periods.percentile(50),
                "period p99 [s]": self._periods.percentile(99),
                "clock jumps": self._follower.clock_jumps,
                **{f"clamped set-points of {name}": count for name, count in self._follower.clamps.items()},
            }
        )
        if trouble:
            health.check(True, trouble, *([ERROR] if closed else []))
        return health

    def chunks(self) -> Health:
        """Rate of chunks, and where the time from capture to command goes."""
        latency, limit = self._latency.percentile(99), self._warn_latency
        figures: dict[str, object] = {
            "rate [Hz]": self._chunks.rate,
            "refused": self.refused,
            "capture to command p50 [s]": self._latency.percentile(50),
            "capture to command p99 [s]": latency,
        }
        for stage, window in self._stages.items():
            figures[f"{stage} p50 [s]"] = window.percentile(50)
            figures[f"{stage} p99 [s]"] = window.percentile(99)
        health = Health(figures)
        health.check(latency > limit, f"capture to command takes {latency:.2f} s, more than {limit} s")
        return health

    def robot(self, now: float) -> Health:
        """What the robot's drivers send, and who takes commands."""
        state = self._embodiment.state
        age, newest = self._watchdog.joint_age(now), self._follower.pose.newest
        figures: dict[str, object] = {"joint state age [s]": age}
        if self._follower.needs_pose:
            figures["odometry age [s]"] = math.inf if newest is None else now - newest[0]
        health = Health(figures)
        health.check(age > state.max_age, f"joint states are {age:.2f} s old, allowed {state.max_age} s")
        for topic, names in self._watchdog.rivals.items():
            health.check(True, f"{', '.join(names)} also publishes on {topic}")
        for name, writer in self._writers.items():
            health.check(not writer.connected, f"nobody subscribes to {writer.topic} of {name}", ERROR)
        return health
