# SPDX-License-Identifier: Apache-2.0
"""A policy without a model, to bring up a robot: each channel in turn goes a little to and fro."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen_vla_ros.embodiment import Embodiment, Statistics, normalise
from qwen_vla_ros.policy import serving
from qwen_vla_ros.policy.interface import Continuation, Observation, PolicyError, PolicyInfo

LOG = logging.getLogger(__name__)

# How long one channel moves [s], and how far: joints that turn [rad], that slide, tips and bases [m].
TURN = 4.0
ANGLE, DISTANCE = 0.15, 0.03
# Share of a channel's range and of its speed limit that is used at most.
RANGE_SHARE, SPEED_SHARE = 0.2, 0.5
# Of a joint's limits that is used on the way home.
APPROACH_SHARE = 0.15
# A joint this near home need not go there [rad or m].
NEAR = 0.01
# A task that was silent for so long begins anew [s].
PAUSE = 2.0
_RELATIVE = ("chunk_start", "previous_step")


class ScriptedPolicy:
    """See `Policy`. Looks at no picture and reads of the instruction only names of groups and channels.

    A channel goes once to one side and once to the other within its `TURN`; where there is room on one side
    alone, only there. Joints with absolute set-points move about `home`: a robot that is elsewhere goes there
    first, all joints at once and none faster than `APPROACH_SHARE` of its limits. An instruction with names
    ("elbow", "gripper") moves those alone.
    """

    def __init__(self) -> None:
        self._embodiment: Embodiment | None = None
        self._statistics: Statistics | None = None
        self._swings: list[_Swing] = []
        self._told = ""
        self._task, self._began, self._last = "", 0.0, -math.inf
        # What is missing to home when a task begins, and how long the way takes [s].
        self._away, self._way = np.zeros(0), 0.0

    @property
    def info(self) -> PolicyInfo:
        body = self._embodiment
        return PolicyInfo(
            checkpoint="scripted",
            device="cpu",
            horizon=body.horizon if body else 0,
            channels=body.layout.count if body else 0,
            parameters=0,
            embodiments=(body.name,) if body else (),
            views=tuple(camera.view for camera in body.cameras) if body else (),
            embodiment=body.name if body else "",
            details={"motion": f"each channel for {TURN:g} s"},
            reads_state=True,
        )

    @property
    def statistics(self) -> Statistics:
        if self._statistics is None:
            raise PolicyError("policy: no embodiment is configured; call configure() first")
        return self._statistics

    def configure(self, embodiment: Embodiment) -> None:
        swings = [swing for group in embodiment.actions for swing in _swings_of(embodiment, group)]
        absent = [swing.name for swing in swings if math.isnan(swing.centre)]
        if absent:
            raise PolicyError(
                f"scripted: embodiment {embodiment.name!r}: home: found no {', '.join(absent)}, expected a "
                "position of every joint that is driven by absolute set-points"
            )
        self._statistics = Statistics(
            np.array([min(swing.reached[0], swing.centre - swing.most) for swing in swings]),
            np.array([max(swing.reached[1], swing.centre + swing.most) for swing in swings]),
        )
        self._embodiment, self._swings, self._told = embodiment, swings, ""

    def resize(self, view: str, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return image

    def infer(
        self, observation: Observation, seed: int | None = None, plan: Continuation | None = None
    ) -> NDArray[np.float32]:
        if self._embodiment is None:
            raise PolicyError("policy: no embodiment is configured; call configure() first")
        body = self._embodiment
        serving.views_of(body, observation, self.info.views)
        moving = self._named(observation.instruction)
        step = 1.0 / body.control_rate
        since = self._since(observation) + step * np.arange(body.horizon + 1)
        times = np.maximum(since - self._way, 0.0)
        turn = np.floor(times / TURN).astype(int) % len(moving)
        phase = (times / TURN) % 1.0
        rows = np.empty((body.horizon, len(self._swings)))
        for column, swing in enumerate(self._swings):
            mine = column in moving and turn == moving.index(column)
            rows[:, column] = swing.rows(np.where(mine, phase, 0.0), step)
        if since[0] < self._way:
            left = 1.0 - _minimum_jerk(np.minimum(since[1:] / self._way, 1.0))
            rows += left[:, None] * self._away
        else:
            self._tell(self._swings[moving[int(turn[0])]])
        return np.asarray(normalise(rows, self.statistics), dtype=np.float32)

    def _since(self, observation: Observation) -> float:
        """Time since the task began [s]: of another instruction, or after a pause, or of a clock set back."""
        if observation.instruction != self._task or not 0.0 <= observation.stamp - self._last <= PAUSE:
            self._task, self._began = observation.instruction, observation.stamp
            self._plan_way(observation.state)
        self._last = observation.stamp
        return observation.stamp - self._began

    def _plan_way(self, state: NDArray[np.float64] | None) -> None:
        """Find how far it is home. Shape of the state: (c,)."""
        self._away, self._way = np.zeros(len(self._swings)), 0.0
        for column, swing in enumerate(self._swings):
            if state is None or swing.pace is None or not math.isfinite(state[column]):
                continue
            low, high = swing.reached
            away = float(state[column]) - swing.centre
            if swing.endless:
                away = (away + math.pi) % (2 * math.pi) - math.pi
            away = min(max(away, low - swing.centre), high - swing.centre)
            if abs(away) <= NEAR:
                continue
            velocity, acceleration = APPROACH_SHARE * swing.pace[0], APPROACH_SHARE * swing.pace[1]
            self._away[column] = away
            # The peaks of a path of least jerk.
            self._way = max(
                self._way, 1.875 * abs(away) / velocity, math.sqrt(5.774 * abs(away) / acceleration)
            )
        if self._way:
            LOG.info("scripted: home first, in %.1f s", self._way)

    def _named(self, instruction: str) -> list[int]:
        """Columns that an instruction names, or all that move."""
        words = set(instruction.lower().replace(",", " ").replace(".", " ").split())
        every = [column for column, swing in enumerate(self._swings) if swing.moves]
        named = [column for column in every if words & self._swings[column].words]
        return named or every or [0]

    def _tell(self, swing: _Swing) -> None:
        if swing.name != self._told:
            self._told = swing.name
            LOG.info("scripted: %s", swing.text)


class _Swing:
    """How one channel moves: a sine, or where there is room on one side a bump.

    kind: absolute, chunk_start, previous_step, or velocity. room: below and above the centre.

    Attributes:
        pace: velocity and acceleration limits, of a joint that is at home between its swings; else None.
        reached: lowest and highest value, the way home included.
        endless: it has no limits of position, and goes the shorter way round.
    """

    pace: tuple[float, float] | None = None
    endless = False

    def __init__(
        self,
        group: str,
        channel: str,
        kind: str,
        centre: float,
        room: tuple[float, float],
        reach: float,
        unit: str,
    ) -> None:
        self.name, self.words = f"{group}/{channel}", {group.lower(), channel.lower()}
        self._kind = kind
        self.centre = centre if kind == "absolute" else 0.0
        below, above = room
        self._both = min(below, above) >= reach
        # Which way there is more room.
        side = 1.0 if above >= below else -1.0
        self._reach = reach if self._both else side * min(reach, max(below, above))
        self.moves = abs(self._reach) > 0.0
        self.most = max(abs(self._reach), 1e-6) * (2.0 if kind in _RELATIVE else 1.0)
        self.reached = self.centre - self.most, self.centre + self.most
        sides = "both ways" if self._both else "one way"
        self.text = f"{self.name} {self._reach:+.3g} {unit}, {sides}"

    def rows(self, phase: np.ndarray, step: float) -> np.ndarray:
        """Rows 1 to h of a chunk, from the phases 0 to h. Shape (h,)."""
        if self._both or self._kind == "velocity":
            offset = self._reach * np.sin(2 * np.pi * phase)
        else:
            offset = self._reach * 0.5 * (1.0 - np.cos(2 * np.pi * phase))
        if self._kind == "chunk_start":
            return offset[1:] - offset[0]
        if self._kind == "previous_step":
            return np.diff(offset)
        return self.centre + offset[1:]


def _swings_of(embodiment: Embodiment, group: Any) -> list[_Swing]:
    if group.kind in ("joint_position", "gripper", "hand"):
        return [_joint_swing(embodiment, group, k) for k in range(group.count)]
    swings = []
    for channel, unit in zip(group.channels, group.units, strict=True):
        turns = unit.startswith("rad")
        limits = group.limits.angular if turns else group.limits.linear
        if group.kind == "base_velocity":
            speed = min(SPEED_SHARE * limits.velocity, math.pi * (ANGLE if turns else DISTANCE) / TURN)
            swings.append(_Swing(group.name, channel, "velocity", 0.0, (math.inf, math.inf), speed, unit))
            continue
        reach = min(ANGLE if turns else DISTANCE, SPEED_SHARE * limits.velocity * TURN / (2 * math.pi))
        if channel == "dy" and group.controller.type != "omni_drive":
            reach = 0.0
        kind, centre = group.reference, 0.0
        if channel in _IDENTITY:  # a rotation matrix that stays the unit matrix
            kind, centre = "absolute", _IDENTITY[channel]
            reach = 0.0
        swings.append(_Swing(group.name, channel, kind, centre, (reach, reach), reach, unit))
    return swings


_IDENTITY = {"r11": 1.0, "r21": 0.0, "r31": 0.0, "r12": 0.0, "r22": 1.0, "r32": 0.0}


def _joint_swing(embodiment: Embodiment, group: Any, k: int) -> _Swing:
    name, unit, limits = group.joints[k], group.units[k], group.limits
    low, high = limits.position[k]
    if name in getattr(group, "continuous", ()):
        low, high = -math.inf, math.inf
    low, high = low + limits.margin, high - limits.margin
    reach = min(ANGLE if unit == "rad" else DISTANCE, SPEED_SHARE * limits.velocity[k] * TURN / (2 * math.pi))
    reach = min(reach, RANGE_SHARE * (high - low))
    if group.kind != "joint_position":
        # The whole way of a gripper, so that it is seen, and past a threshold.
        reach = min(0.8 * (high - low), SPEED_SHARE * limits.velocity[k] * TURN / math.pi)
    if group.reference in _RELATIVE:
        room = (reach, reach)
        return _Swing(group.name, name, group.reference, 0.0, room, reach, unit)
    # A gripper may start anywhere; an arm that went to a guessed posture would be dangerous.
    known = embodiment.posture() if group.kind != "joint_position" else embodiment.home
    home = known.get(name, math.nan)
    room = (home - low, high - home)
    swing = _Swing(group.name, name, "absolute", home, room, reach, unit)
    if group.kind == "joint_position":
        swing.pace = float(limits.velocity[k]), float(limits.acceleration[k])
        swing.endless = not math.isfinite(high - low)
        swing.reached = (home - math.pi, home + math.pi) if swing.endless else (low, high)
    return swing


def _minimum_jerk(share: np.ndarray) -> np.ndarray:
    """From 0 to 1 without velocity and acceleration at the ends (Flash and Hogan, 1985)."""
    return share**3 * (10.0 - 15.0 * share + 6.0 * share**2)
