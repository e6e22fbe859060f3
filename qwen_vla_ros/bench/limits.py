# SPDX-License-Identifier: Apache-2.0
"""Adversarial chunks over all shipped bodies: how many commands break a limit. The figure must be 0.

Chunks are plausible, noisy, out of range, not finite, of a wrong shape or step, late, early, repeated and
out of order; the clock jumps; stops and restarts come at any moment. What is checked are the commands alone,
by code that shares nothing with `motion` but the kinematics of tips.

    python -m qwen_vla_ros.bench.limits --ticks 1000000
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from qwen_vla_ros.bench import BenchResult
from qwen_vla_ros.embodiment import Embodiment, list_embodiments, load_embodiment
from qwen_vla_ros.embodiment.schema import PathController
from qwen_vla_ros.motion import rotations
from qwen_vla_ros.motion.follower import ChunkRefused, Follower, MotionError, UnsupportedGroup
from qwen_vla_ros.motion.groups import STRAY

TICKS = 40_000  # of `make bench`
SEED = 7

# Ticks of a body with an end effector, by those of another with as many channels.
TIP_SHARE = 0.2

# What a difference quotient of commands may exceed its limit by: 1e-6 of it, and what a position that is off
# by 1e-8 (the planner's precision, as ruckig says) makes of it. `motion.guard` allows the same.
RELATIVE, PRECISION = 1e-6, 1e-8

# After the name of a body: its waypoints are handed over as a path.
BY_PATH = ":path"

KINDS = ("position", "velocity", "acceleration", "jerk", "box", "speed", "finite", "refused")


@dataclass
class Tally:
    """Commands of one body, and what was wrong with them.

    Attributes:
        violations: channels and ticks in which a limit was broken, by `KINDS`.
        worst: largest quotient by its limit, by kind; 1 is on the limit.
        clamps: set-points that a limit changed.
    """

    body: str
    ticks: int = 0
    chunks: int = 0
    accepted: int = 0
    clamps: int = 0
    seconds: float = 0.0
    violations: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    worst: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS[:6], 0.0))

    def note(self, kind: str, value, limit, allowed) -> None:
        """Compare values with limits, both of any one shape."""
        self.violations[kind] += int((value > limit + allowed).sum())
        if value.size:
            self.worst[kind] = max(self.worst[kind], float(np.max(value / np.maximum(limit, 1e-12))))


class Adversary:
    """Drives one body with whatever may go wrong."""

    def __init__(self, body: Embodiment, seed: int):
        self.body, self.tally = body, Tally(body.name)
        self._rng = np.random.default_rng([seed, *body.name.encode()])
        self._follower = Follower(body, mode=str(self._rng.choice(["replace", "ensemble", "rtc"])))
        self._now, self._stamp = 1000.0, 0.0
        self._low = np.concatenate([_range(group)[0] for group in body.actions])
        self._high = np.concatenate([_range(group)[1] for group in body.actions])
        self._path: list[list] = []
        self._begin()

    def run(self, ticks: int) -> Tally:
        began = time.perf_counter()
        while self.tally.ticks < ticks:
            event = self._rng.random()
            if event < 0.02:
                self._now += float(self._rng.choice([-1, 1]) * 10 ** self._rng.uniform(-3, 4))
            elif event < 0.06:
                self._tick(int(self._rng.integers(1, 40)), braking=True)
            elif event < 0.08:
                self._stop()
                self._begin()
            elif event < 0.1:
                self._stop()
                self._follower.go_on(self._now)
            self._offer()
            self._tick(int(self._rng.integers(0, 60)))
        self._stop()
        self._audit()
        self.tally.clamps += self._follower.clamped
        self.tally.seconds = time.perf_counter() - began
        return self.tally

    def _begin(self) -> None:
        """Start at rest from a measured state, within the limits or somewhat outside."""
        self._audit()
        joints, used = [], 0
        beyond = 0.05 if self._rng.random() < 0.1 else 0.0
        for group in self.body.actions:
            limits = _joint_limits(group)
            if limits is None:
                continue
            low, high = limits.position.T
            span = high - low
            share = (
                self._rng.uniform(0.3, 0.7, len(span))
                if hasattr(group, "ik")
                else self._rng.uniform(-beyond, 1 + beyond, len(span))
            )
            joints.append(_to_robot(group, low + share * span))
            used += len(span)
        self._joints = np.concatenate(joints) if joints else np.zeros(0)
        self._pose = np.array([*self._rng.uniform(-5, 5, 2), self._rng.uniform(-4, 4)])
        self._measure()
        self._follower.start(self._now)
        self._first = self._joints.copy()

    def _measure(self) -> None:
        if self._joints.size:
            self._follower.joints.add(self._now, self._joints)
        self._follower.pose.add(self._now, self._pose)

    def _tick(self, count: int, braking: bool = False) -> None:
        for _ in range(count):
            try:
                commands = self._follower.brake() if braking else self._follower.step(self._now)
                # As the executor does, or not; what comes next may be anything.
                if not braking and self._rng.random() < 0.7:
                    self._follower.prepare(self._now + self._follower.period)
            except MotionError as error:
                print(f"{self.body.name}: {error}", file=sys.stderr)
                self.tally.violations["refused"] += 1
                return
            self._path.append({command.group: command for command in commands})
            self.tally.ticks += 1
            positions = [command.position for command in commands if hasattr(command, "position")]
            if positions:
                self._joints = np.concatenate(positions)
            if self._rng.random() < 0.002:
                self._pose = self._pose + self._rng.normal(size=3)
            for command in commands:
                if hasattr(command, "velocity") and not hasattr(command, "position"):
                    ahead, turn = command.velocity[0], command.velocity[-1]
                    yaw = self._pose[2]
                    way = np.array([ahead * np.cos(yaw), ahead * np.sin(yaw), turn])
                    self._pose = self._pose + self._follower.period * way
                elif hasattr(command, "poses"):
                    # Whoever drives it is somewhere on the way to the next pose.
                    self._pose = self._pose + self._rng.random() * (command.poses[:2][-1] - self._pose)
            # Now and then a tick is late.
            late = self._rng.exponential(0.01) if self._rng.random() < 0.01 else 0.0
            self._now += self._follower.period + late
            self._measure()

    def _stop(self) -> None:
        for _ in range(2000):
            if self._follower.resting:
                return
            self._tick(1, braking=True)
        self.tally.violations["refused"] += 1

    def _offer(self) -> None:
        body, rng = self.body, self._rng
        step = 1.0 / body.control_rate
        kind = rng.random()
        age = float(
            rng.choice(
                [0.0, rng.uniform(0, 0.5), rng.uniform(-0.5, 3.0), -1e9, 1e9], p=[0.3, 0.5, 0.18, 0.01, 0.01]
            )
        )
        stamp = self._stamp if rng.random() < 0.05 else self._now - age
        if kind < 0.05:
            step = float(rng.choice([0.0, -1.0, 1e-300, 1e300, np.nan, np.inf, step / 2]))
        for _ in range(1 + (rng.random() < 0.1)):
            self.tally.chunks += 1
            try:
                self._follower.offer(self._data(), stamp, step, self._now)
            except ChunkRefused:
                continue
            self.tally.accepted += 1
            self._stamp = stamp

    def _data(self) -> np.ndarray:
        rng, body = self._rng, self.body
        shape = (body.horizon, body.layout.count)
        middle, span = (self._low + self._high) / 2, self._high - self._low
        kind = rng.choice(
            ["smooth", "noise", "bang", "edge", "beyond", "huge", "tiny", "odd", "shape"],
            p=[0.3, 0.15, 0.1, 0.1, 0.1, 0.05, 0.05, 0.1, 0.05],
        )
        if kind == "noise":
            return rng.uniform(self._low, self._high, shape)
        if kind == "bang":
            return np.where(rng.random(shape) < 0.5, self._low, self._high)
        if kind == "edge":
            near = rng.normal(0, 1, shape) * 10.0 ** rng.uniform(-10, -3, shape) * span
            return np.where(rng.random(shape[1]) < 0.5, self._low, self._high) + near
        if kind == "beyond":
            return middle + rng.normal(0, 5, shape) * span
        if kind == "huge":
            with np.errstate(over="ignore"):  # some are infinite
                return rng.normal(0, 1, shape) * 10.0 ** rng.uniform(2, 308, shape)
        if kind == "tiny":
            return middle + rng.normal(0, 1e-8, shape) * span
        # A random sine of each channel: the plausible ones.
        times = np.arange(1, shape[0] + 1)[:, None] / body.control_rate
        rows = middle + 0.5 * span * rng.uniform(0, 1, shape[1]) * np.sin(
            rng.uniform(0, 6, shape[1]) * times + rng.uniform(0, 6, shape[1])
        )
        if kind == "odd":
            rows[rng.integers(shape[0]), rng.integers(shape[1])] = rng.choice([np.nan, np.inf, -np.inf])
        if kind == "shape":
            return [rows[:, 1:], np.vstack([rows, rows]), rows[:0], rows[0], rows[None]][rng.integers(5)]
        return rows

    def _audit(self) -> None:
        """Compare the commands since the last start with the limits."""
        path, self._path = self._path, []
        if not path:
            return
        period, used = self._follower.period, 0
        for group in self.body.actions:
            limits = _joint_limits(group)
            if group.controller.type == "path":
                self._audit_path(group, [commands[group.name] for commands in path if group.name in commands])
                continue
            if limits is None:
                self._audit_base(group, np.array([commands[group.name].velocity for commands in path]))
                continue
            count = len(limits.velocity)
            first = self._first[used : used + count]
            used += count
            rows = np.array([commands[group.name].position for commands in path])
            # The same place, however many turns away.
            turning = np.isin(np.array(group.joints), getattr(group, "continuous", ()))
            first = np.where(turning, first + 2 * np.pi * np.round((rows[0] - first) / (2 * np.pi)), first)
            self.tally.violations["finite"] += int((~np.isfinite(rows)).sum())
            scale = np.abs(_to_robot(group, np.ones(count)) - _to_robot(group, np.zeros(count)))
            bounds = np.sort(
                [
                    _to_robot(group, limits.position[:, 0] + limits.margin),
                    _to_robot(group, limits.position[:, 1] - limits.margin),
                ],
                axis=0,
            )
            low, high = np.minimum(bounds[0], first), np.maximum(bounds[1], first)
            span = np.where(turning, np.inf, (high - low) / 2)
            allowed = RELATIVE * (high - low) + PRECISION * scale
            self.tally.note("position", np.abs(rows - (low + high) / 2), span, allowed)
            # Before the first command the robot rested where it was measured.
            rows = np.vstack([np.repeat(first[None], 3, axis=0), rows])
            for order, kind in enumerate(("velocity", "acceleration", "jerk"), start=1):
                limit = getattr(limits, kind) * scale
                quotient = np.abs(np.diff(rows, n=order, axis=0)) / period**order
                allowed = RELATIVE * limit + 2**order * PRECISION * scale / period**order
                self.tally.note(kind, quotient, limit, allowed)
            if hasattr(group, "ik"):
                self._audit_tip(group, rows[2:])

    def _audit_base(self, group, rows: np.ndarray) -> None:
        period = self._follower.period
        self.tally.violations["finite"] += int((~np.isfinite(rows)).sum())
        rows = np.vstack([np.zeros((2, rows.shape[1])), rows])
        # The way an omnidirectional base goes counts, whatever its direction.
        for order, kind in enumerate(("velocity", "acceleration", "jerk")):
            quotient = np.diff(rows, n=order, axis=0) / period**order
            for value, rates in (
                (quotient[:, :-1], group.limits.linear),
                (quotient[:, -1:], group.limits.angular),
            ):
                limit = getattr(rates, kind)
                allowed = RELATIVE * limit + 2**order * PRECISION / period**order
                self.tally.note(kind, np.linalg.norm(value, axis=1), np.array(limit), allowed)

    def _audit_path(self, group, paths: list) -> None:
        for path in paths:
            self.tally.violations["finite"] += int((~np.isfinite(path.poses)).sum())
            ways, spans = np.diff(path.poses, axis=0), np.diff(path.times)
            for value, rates in (
                (np.linalg.norm(ways[:, :2], axis=1), group.limits.linear),
                (np.abs(ways[:, 2]), group.limits.angular),
            ):
                limit = rates.velocity * spans
                self.tally.note("velocity", value, limit, RELATIVE * limit + PRECISION)
        # Every motion ends with the word for "stay".
        if paths and len(paths[-1].poses) != 1:
            self.tally.violations["refused"] += 1

    def _audit_tip(self, group, rows: np.ndarray) -> None:
        period, kinematics = self._follower.period, self._follower.kinematics(group.name)
        poses = [kinematics.pose(joints) for joints in rows]
        positions = np.array([position for position, _ in poses])
        if group.workspace is not None:
            low, high = np.array(group.workspace).T
            # A tip that starts outside may stray before it comes in.
            at = positions[0]
            low, high = np.where(at < low, at - STRAY, low), np.where(at > high, at + STRAY, high)
            self.tally.note("box", np.abs(positions - (low + high) / 2), (high - low) / 2, 2 * RELATIVE)
        turns = np.array([quaternion for _, quaternion in poses])
        turned = rotations.to_vector(rotations.multiply(turns[1:], rotations.inverse(turns[:-1])))
        for value, rates in (
            (np.diff(positions, axis=0), group.limits.linear),
            (turned, group.limits.angular),
        ):
            limit = rates.velocity
            allowed = RELATIVE * limit + 10 * PRECISION / period
            self.tally.note("speed", np.linalg.norm(value, axis=1) / period, np.array(limit), allowed)


def _joint_limits(group):
    if getattr(group, "ik", None) is not None:
        return group.ik.limits
    return group.limits if hasattr(group.limits, "position") else None


def _to_robot(group, values: np.ndarray) -> np.ndarray:
    if getattr(group, "unit", "") != "fraction":
        return values
    closed, opened = group.opening.T
    return closed + values * (opened - closed)


def _range(group) -> tuple[np.ndarray, np.ndarray]:
    """A range of actions that makes sense, per channel."""
    count = group.count
    if hasattr(group.limits, "position"):
        low, high = group.limits.position.T
        if group.reference == "absolute":
            return low, high
        return (low - high) / 4, (high - low) / 4
    size = {"eef_delta": 0.05, "waypoint": 1.0, "base_velocity": 2.0}[group.kind]
    return np.full(count, -size), np.full(count, size)


def _load(name: str) -> Embodiment:
    body = load_embodiment(name.removesuffix(BY_PATH))
    if not name.endswith(BY_PATH):
        return body
    groups = [
        group.model_copy(update={"controller": PathController(type="path", topic="path")})
        if group.kind == "waypoint"
        else group
        for group in body.actions
    ]
    return body.model_copy(update={"name": name, "actions": tuple(groups)})


def tallies(ticks: int, seed: int = SEED, bodies: list[str] | None = None) -> Iterator[Tally]:
    """Run all bodies that an executor can move, each for its share of the ticks."""
    found = []
    for name in bodies or [*list_embodiments(), f"tiago_base{BY_PATH}"]:
        body = _load(name)
        try:
            Follower(body)
        except UnsupportedGroup as error:
            print(f"{name}: left out: {error}", file=sys.stderr)
            continue
        found.append(body)
    # So that each body takes about as long: channels take time, and a tip takes many times as much.
    shares = [
        (TIP_SHARE if any(hasattr(group, "ik") for group in body.actions) else 1.0) / body.layout.count
        for body in found
    ]
    for body, share in zip(found, shares, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an overflow is a defect
            yield Adversary(body, seed).run(math.ceil(ticks * share / sum(shares)))


def run(ticks: int = TICKS) -> list[BenchResult]:
    """Adversarial ticks over all bodies."""
    found = list(tallies(ticks))
    total = sum(sum(tally.violations.values()) for tally in found)
    detail = {
        "ticks": sum(tally.ticks for tally in found),
        "bodies": {
            tally.body: {
                "ticks": tally.ticks,
                "chunks": tally.chunks,
                "accepted": tally.accepted,
                "clamps": tally.clamps,
                "violations": tally.violations,
                "worst": tally.worst,
            }
            for tally in found
        },
    }
    per_tick = sum(tally.seconds for tally in found) / max(1, detail["ticks"])
    return [
        BenchResult("commands that break a limit", float(total), "violations", 0.0, detail=detail),
        BenchResult("one tick, adversary and check included", 1e3 * per_tick, "ms"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ticks", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("bodies", nargs="*")
    arguments = parser.parse_args()
    total = violations = 0
    worst: dict[str, float] = {}
    for tally in tallies(arguments.ticks, arguments.seed, arguments.bodies or None):
        broken = sum(tally.violations.values())
        total, violations = total + tally.ticks, violations + broken
        for kind, value in tally.worst.items():
            worst[kind] = max(worst.get(kind, 0.0), value)
        found = ", ".join(f"{kind} {count}" for kind, count in tally.violations.items() if count)
        print(
            f"{tally.body}: {tally.ticks} ticks, {tally.accepted} of {tally.chunks} chunks followed, "
            f"{tally.clamps} set-points clamped, {1e3 * tally.seconds / tally.ticks:.2f} ms a tick, "
            f"violations: {found or 0}",
            flush=True,
        )
    shown = ", ".join(f"{kind} {value:.9f}" for kind, value in worst.items())
    print(f"{total} ticks, {violations} violations; largest share of a limit: {shown}")
    return 0 if violations == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
