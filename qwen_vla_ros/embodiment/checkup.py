# SPDX-License-Identifier: Apache-2.0
"""What does not fit together: an embodiment with itself, with a checkpoint, with a URDF.

A check takes a `Subject` and yields `Finding`s; it says nothing about what the subject does not have.
`STATIC` holds those that need no robot; `live_checkup` has those of a running system.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qwen_vla_ros.embodiment.checkpoint_facts import CheckpointFacts
from qwen_vla_ros.embodiment.errors import Fault
from qwen_vla_ros.embodiment.graph_facts import Graph
from qwen_vla_ros.embodiment.schema import (
    Array,
    BaseVelocityGroup,
    EefDeltaGroup,
    Embodiment,
    JointGroup,
    JointPositionGroup,
    OpeningGroup,
    WaypointGroup,
)
from qwen_vla_ros.embodiment.urdf import Urdf, UrdfJoint

Path = tuple[str | int, ...]

# Limits of the same joint in two files are rounded differently [rad] or [m].
ROUNDING = 2e-3
# More than two turns, or metres, of a joint: someone wrote degrees, or millimetres.
MOST = {"rad": 4.0 * math.pi + ROUNDING, "m": 10.0}
MISTAKEN = {"rad": ("degrees", math.degrees(1.0)), "m": ("millimetres", 1000.0)}
# A channel that spans less than this part of its range hardly moved in the data.
STILL = 1e-3
# Faster than robots move: someone wrote degrees, or millimetres, per second [rad/s] and [m/s].
FASTEST = {"rad": 20.0, "m": 5.0}


@dataclass(frozen=True)
class Finding:
    """One thing that does not fit.

    Attributes:
        code: names the kind of mismatch; does not change between versions.
        path: place in the embodiment.
        found, expected: what is there, and what would fit.
        advice: what to do.
        warning: it works, but perhaps not as meant.
        topic: of the running system, resolved; or empty.
    """

    code: str
    path: Path
    found: str
    expected: str
    advice: str
    warning: bool = False
    topic: str = ""

    @property
    def field(self) -> str:
        """The path as people write it: `actions[0].limits.velocity`."""
        return Fault(self.path, "", "").field

    def __str__(self) -> str:
        field = f"{self.field}: " if self.path else ""
        field += f"{self.topic}: " if self.topic else ""
        return f"{field}found {self.found}, expected {self.expected}; {self.advice} [{self.code}]"


@dataclass(frozen=True)
class Subject:
    """What is compared; what is None is left out.

    Attributes:
        chains_only: the URDF holds no more than the chains of `ik`: other joints need not be in it.
    """

    embodiment: Embodiment
    checkpoint: CheckpointFacts | None = None
    urdf: Urdf | None = None
    chains_only: bool = False
    graph: Graph | None = None


Check = Callable[[Subject], Iterable[Finding]]


def examine(subject: Subject, checks: Iterable[Check] | None = None) -> list[Finding]:
    """Findings of all checks (`STATIC` by default), errors first."""
    findings = [finding for check in (STATIC if checks is None else checks) for finding in check(subject)]
    return sorted(findings, key=lambda finding: finding.warning)


@dataclass(frozen=True)
class Joints:
    """Joints of a group, or those of its inverse kinematics."""

    path: Path
    names: tuple[str, ...]
    units: tuple[str, ...]
    position: Array  # in the unit of the URDF, also where the group counts in fractions
    velocity: Array
    named: tuple[Path, ...]
    own: bool  # the group's own, in its unit; not converted from fractions
    virtual: Mapping[str, tuple[str, ...]]  # of the driver alone: sums of joints of the URDF
    comparable: bool = True  # with a URDF: not so fractions that the robot itself counts in
    continuous: tuple[str, ...] = ()
    may_turn: bool = False  # the YAML has `continuous` for them

    def limit_path(self, key: str, given: Any, k: int) -> Path:
        each = isinstance(given, tuple) and (key != "position" or isinstance(given[0], tuple))
        return (*self.path, "limits", key, k) if each else (*self.path, "limits", key)


def jointed(embodiment: Embodiment, urdf: Urdf | None = None) -> Iterator[tuple[Joints, Any]]:
    """Joints of all groups, and the limits as the YAML gives them.

    Args:
        urdf: says of the joints of `ik`, which have no unit of their own, what turns and what slides.
    """
    for g, group in enumerate(embodiment.actions):
        path: Path = ("actions", g)
        if isinstance(group, JointGroup):
            limits, units = group.limits, group.units
            position, velocity = limits.position, limits.velocity
            fraction = isinstance(group, OpeningGroup) and group.unit == "fraction"
            if fraction:
                assert isinstance(group, OpeningGroup)
                closed, opened = group.opening[:, :1], group.opening[:, 1:]
                position = np.sort(closed + position * (opened - closed), axis=1)
                velocity = velocity * np.abs(opened - closed)[:, 0]
            joints = Joints(
                path,
                group.joints,
                units,
                position,
                velocity,
                tuple((*path, "joints", k) for k in range(len(group.joints))),
                not fraction,
                group.virtual,
                not fraction or "opening_field" in group.model_fields_set,
                getattr(group, "continuous", ()),
                isinstance(group, JointPositionGroup),
            )
            yield joints, group.limits_field
        elif isinstance(group, EefDeltaGroup) and group.ik is not None:
            chain = group.ik
            place: Path = (*path, "ik")
            known = {} if urdf is None else urdf.joints
            turns = tuple((name in known and known[name].unit) or "rad" for name in chain.joints)
            joints = Joints(
                place,
                chain.joints,
                turns,
                chain.limits.position,
                chain.limits.velocity,
                tuple((*place, "joints", k) for k in range(len(chain.joints))),
                True,
                {},
            )
            yield joints, chain.limits_field


# The embodiment alone


def credible(joint: UrdfJoint) -> bool:
    """Whether the URDF has position limits, and not in degrees or millimetres."""
    if joint.lower is None or joint.upper is None or joint.unit is None:
        return False
    return max(abs(joint.lower), abs(joint.upper)) <= MOST[joint.unit]


def units_of_limits(subject: Subject) -> Iterator[Finding]:
    """Limits that look like degrees or millimetres."""
    for joints, field in jointed(subject.embodiment, subject.urdf):
        if not joints.own:
            continue
        for k, (low, high) in enumerate(joints.position):
            unit = joints.units[k]
            known = subject.urdf.joints.get(joints.names[k]) if subject.urdf else None
            if known is not None and credible(known):
                continue  # the URDF's own limits tell more
            if unit in MOST and max(abs(low), abs(high)) > MOST[unit]:
                mistaken, factor = MISTAKEN[unit]
                yield Finding(
                    "LIMITS_UNIT",
                    joints.limit_path("position", field.position, k),
                    f"[{low:g}, {high:g}] {unit} for {joints.names[k]}",
                    f"at most {MOST[unit]:.3g} {unit}",
                    f"if these are {mistaken}, write [{low / factor:.5g}, {high / factor:.5g}]",
                )


def units_of_speeds(subject: Subject) -> Iterator[Finding]:
    """Velocities and workspaces that look like degrees or millimetres."""
    for joints, field in jointed(subject.embodiment, subject.urdf):
        # As given: a `ramp` may bring them down.
        given = np.broadcast_to(np.asarray(field.velocity, dtype=np.float64), (len(joints.names),))
        seen: set[Path] = set()
        for k, speed in enumerate(given):
            path = joints.limit_path("velocity", field.velocity, k)
            if joints.own and path not in seen and speed > FASTEST[joints.units[k]]:
                seen.add(path)
                yield _too_fast(path, speed, joints.units[k], f" for {joints.names[k]}")
    for g, group in enumerate(subject.embodiment.actions):
        if not isinstance(group, (EefDeltaGroup, WaypointGroup, BaseVelocityGroup)):
            continue
        for key, unit in (("linear", "m"), ("angular", "rad")):
            speed = getattr(group.limits, key).velocity
            if speed > FASTEST[unit]:
                yield _too_fast(("actions", g, "limits", key, "velocity"), speed, unit)
        for k, (low, high) in enumerate(getattr(group, "workspace", None) or ()):
            if max(abs(low), abs(high)) > MOST["m"]:
                yield Finding(
                    "WORKSPACE_UNIT",
                    ("actions", g, "workspace", k),
                    f"[{low:g}, {high:g}] m",
                    f"at most {MOST['m']:.3g} m",
                    f"if these are millimetres, write [{low / 1000.0:.5g}, {high / 1000.0:.5g}]",
                    warning=True,
                )


def _too_fast(path: Path, speed: float, unit: str, whose: str = "") -> Finding:
    mistaken, factor = MISTAKEN[unit]
    return Finding(
        "SPEED_UNIT",
        path,
        f"{speed:g} {unit}/s{whose}",
        f"at most {FASTEST[unit]:g} {unit}/s",
        f"if these are {mistaken} per second, write {speed / factor:.5g}",
        warning=True,
    )


def chunk_used_up(subject: Subject) -> Iterator[Finding]:
    """No row is left to follow while the next chunk is computed."""
    body = subject.embodiment
    if body.execute_steps == body.horizon > 1:
        yield Finding(
            "CHUNK_USED_UP",
            ("execute_steps",),
            f"{body.execute_steps}, the whole chunk",
            f"less than the horizon, {body.horizon}",
            f"set execute_steps to {body.horizon // 2}: the rest is followed while the model computes",
            warning=True,
        )


def state_in_prompt(subject: Subject) -> Iterator[Finding]:
    """`prompt.state` needs a measured value for every channel."""
    body = subject.embodiment
    if not body.prompt.state:
        return
    for g, group in enumerate(body.actions):
        if not isinstance(group, JointGroup):
            yield Finding(
                "STATE_UNMEASURED",
                ("prompt", "state"),
                f"true, and group {group.name} of kind {group.kind} at actions[{g}]",
                "joints in every group",
                "set prompt.state to false, or use groups with joints",
            )


# Against a checkpoint


def action_tensor(subject: Subject) -> Iterator[Finding]:
    """Channels and rows against K and H."""
    body, facts = subject.embodiment, subject.checkpoint
    if facts is None:
        return
    if body.layout.count > facts.channels:
        yield Finding(
            "TENSOR_CHANNELS",
            ("actions",),
            f"{body.layout.count} channels",
            f"at most K = {facts.channels} of {facts.folder}",
            "remove groups or joints, or train a checkpoint with a larger K",
        )
    if body.horizon > facts.horizon:
        yield Finding(
            "TENSOR_HORIZON",
            ("horizon",),
            f"{body.horizon} rows",
            f"at most H = {facts.horizon} of {facts.folder}",
            f"set horizon to {facts.horizon} or less",
        )


def known_views(subject: Subject) -> Iterator[Finding]:
    """Views whose tags the checkpoint has never seen."""
    facts = subject.checkpoint
    if facts is None or facts.views is None:
        return
    for k, camera in enumerate(subject.embodiment.cameras):
        if camera.view not in facts.views:
            close = difflib.get_close_matches(camera.view, facts.views, n=1)
            yield Finding(
                "VIEW_UNKNOWN",
                ("cameras", k, "view"),
                repr(camera.view),
                f"one of {', '.join(facts.views) or 'none'}",
                f"rename it to {close[0]!r}"
                if close
                else "rename it, leave the camera out, or train with it",
                warning=not camera.required,  # the policy leaves it out
            )


def statistics_fit(subject: Subject) -> Iterator[Finding]:
    """Statistics: there, of these channels, in this order."""
    body, facts = subject.embodiment, subject.checkpoint
    if facts is None or all(group.normalisation is not None for group in body.actions):
        return
    entry = facts.statistics.get(body.name)
    known = ", ".join(sorted(facts.statistics)) or "none"
    if entry is None:
        yield Finding(
            "STATISTICS_MISSING",
            ("name",),
            f"{body.name!r}",
            f"one of those in {facts.folder}: {known}",
            "train or fine-tune on this robot, or give every group `normalisation`",
        )
        return
    names, ours = list(entry.get("channels", ())), list(body.layout.names)
    if len(names) != len(ours):
        yield Finding(
            "STATISTICS_COUNT",
            ("actions",),
            f"{len(ours)} channels",
            f"the {len(names)} that it was trained with: {', '.join(names)}",
            "use the action groups of the training, or train on these",
        )
    elif names != ours and sorted(names) == sorted(ours):
        k = next(k for k, (a, b) in enumerate(zip(names, ours, strict=True)) if a != b)
        yield Finding(
            "STATISTICS_ORDER",
            ("actions",),
            f"channel {k} is {ours[k]}",
            f"{names[k]}, as in the training",
            f"put groups and joints in the order {', '.join(names)}",
        )
    elif names != ours:
        k = next(k for k, (a, b) in enumerate(zip(names, ours, strict=True)) if a != b)
        yield Finding(
            "STATISTICS_NAMES",
            ("actions",),
            f"channel {k} is {ours[k]}",
            f"{names[k]}, as in the training",
            "if it is the same joint, name it alike; otherwise train on this robot",
        )


def trained_timing(subject: Subject) -> Iterator[Finding]:
    """A chunk of another rate or length means another motion."""
    body, facts = subject.embodiment, subject.checkpoint
    entry = None if facts is None else facts.statistics.get(body.name)
    if entry is None:
        return
    for code, key, value in (
        ("TRAINED_RATE", "control_rate", body.control_rate),
        ("TRAINED_HORIZON", "horizon", float(body.horizon)),
    ):
        trained = entry.get(key)
        if isinstance(trained, (int, float)) and abs(float(trained) - value) > 1e-6:
            yield Finding(
                code, (key,), f"{value:g}", f"{trained:g}, as in the training", f"set {key} to {trained:g}"
            )


def _statistics(subject: Subject) -> tuple[Array, Array] | None:
    """q01 and q99 of the checkpoint in the order of the channels, where they fit."""
    body, facts = subject.embodiment, subject.checkpoint
    entry = None if facts is None else facts.statistics.get(body.name)
    if entry is None or list(entry.get("channels", ())) != list(body.layout.names):
        return None
    return np.asarray(entry["q01"], dtype=np.float64), np.asarray(entry["q99"], dtype=np.float64)


def statistics_range(subject: Subject) -> Iterator[Finding]:
    """What the model says against what the limits allow."""
    body, found = subject.embodiment, _statistics(subject)
    if found is None:
        return
    for g, group in enumerate(body.actions):
        if not isinstance(group, JointGroup) or group.normalisation is not None:
            continue
        part = body.layout.slice_of(group.name)
        low, high = found[0][part], found[1][part]
        path: Path = ("actions", g, "joints")
        for k, joint in enumerate(group.joints):
            lower, upper = group.limits.position[k]
            unit, span = group.units[k], upper - lower
            shown = f"q01 {low[k]:.4g}, q99 {high[k]:.4g} of {joint} in the checkpoint"
            if unit in MOST and max(abs(low[k]), abs(high[k])) > MOST[unit]:
                mistaken, _ = MISTAKEN[unit]
                yield Finding(
                    "STATISTICS_UNIT",
                    (*path, k),
                    shown,
                    f"{unit}, at most {MOST[unit]:.3g}",
                    f"the data seem to be in {mistaken}: convert them and train again",
                )
                continue
            # A joint that turns without end has no position limit.
            bounded = group.reference == "absolute" and joint not in getattr(group, "continuous", ())
            if bounded and (low[k] > upper or high[k] < lower):
                yield Finding(
                    "STATISTICS_OUTSIDE",
                    (*path, k),
                    shown,
                    f"values within the limits, {lower:g} to {upper:g}",
                    "compare sign and zero of the joint in the data and on the robot",
                )
            elif bounded and max(lower - low[k], high[k] - upper) > 0.05 * span:
                yield Finding(
                    "STATISTICS_CLAMPED",
                    (*path, k),
                    shown,
                    f"values within the limits, {lower:g} to {upper:g}",
                    "the executor will clamp them; widen the limits if the robot allows it",
                    warning=True,
                )
            if high[k] - low[k] < STILL * span:
                yield Finding(
                    "STATISTICS_STILL",
                    (*path, k),
                    shown,
                    f"a joint that moves: its range is {span:.3g}",
                    "it hardly moved in the data: leave the joint out, or record more",
                    warning=True,
                )


def statistics_speed(subject: Subject) -> Iterator[Finding]:
    """Speeds that the model asks for in space against the limits of base and end effector."""
    body, found = subject.embodiment, _statistics(subject)
    if found is None:
        return
    for g, group in enumerate(body.actions):
        if isinstance(group, JointGroup) or group.normalisation is not None:
            continue
        part = body.layout.slice_of(group.name)
        most = np.maximum(np.abs(found[0][part]), np.abs(found[1][part]))
        # Rows relative to the start of the chunk grow over all of it; those of a velocity are speeds.
        steps = 1 if group.reference == "previous_step" else body.horizon
        speed = most if isinstance(group, BaseVelocityGroup) else most * body.control_rate / steps
        for unit, name, limit in (
            ("m", "linear", group.limits.linear.velocity),
            ("rad", "angular", group.limits.angular.velocity),
        ):
            chosen = [s for s, u in zip(speed, group.units, strict=True) if u in (unit, f"{unit}/s")]
            if chosen and max(chosen) > limit:
                yield Finding(
                    "STATISTICS_SPEED",
                    ("actions", g, "limits", name, "velocity"),
                    f"{limit:g} {unit}/s",
                    f"about {max(chosen):.3g} {unit}/s, which the model asks for",
                    "the robot will lag behind the chunks: raise the limit if the robot allows it",
                    warning=True,
                )


# Against a URDF


def urdf_joints(subject: Subject) -> Iterator[Finding]:
    """Joints: known, movable, of the right unit."""
    urdf = subject.urdf
    if urdf is None:
        return
    renamed = {name for names in subject.embodiment.state.joint_names.values() for name in names}
    movable = [joint.name for joint in urdf.joints.values() if joint.moves]
    for joints, _ in jointed(subject.embodiment, urdf):
        for k, name in enumerate(joints.names):
            joint, path = urdf.joints.get(name), joints.named[k]
            if joint is None and subject.chains_only and "ik" not in joints.path:
                continue
            if name in joints.virtual:
                yield from _virtual(urdf, joints, k, movable)
                continue
            if joint is None:
                close = difflib.get_close_matches(name, movable, n=1, cutoff=0.5)
                hint = f"{close[0]!r}?" if close else f"one of {_some(movable)}"
                advice = "write the name as in the URDF and in /joint_states"
                if not close and joints.own and "ik" not in joints.path:
                    advice += ", or name it in `virtual` if only the driver has it"
                yield Finding(
                    "URDF_JOINT_UNKNOWN",
                    path,
                    f"{name!r}, which {urdf.source} does not have",
                    hint,
                    advice,
                    # The YAML gives the joint a name of its own, or it stands for several.
                    warning=name in renamed or not joints.own,
                )
            elif joint.mimic is not None:
                yield Finding(
                    "URDF_JOINT_MIMIC",
                    path,
                    f"{name!r}, which follows {joint.mimic!r} in the URDF",
                    "a joint with a motor",
                    f"command {joint.mimic!r} instead",
                )
            elif joint.unit is None:
                yield Finding(
                    "URDF_JOINT_FIXED",
                    path,
                    f"{name!r}, of type {joint.type} in the URDF",
                    "a joint that turns or slides",
                    f"remove it, or choose one of {_some(movable)}",
                )
            elif joints.own and joint.unit != joints.units[k]:
                yield Finding(
                    "URDF_UNIT",
                    (*joints.path, "unit"),
                    f"{joints.units[k]} for {name}",
                    f"{joint.unit}: it is {joint.type} in the URDF",
                    f"set the unit to {joint.unit} and the limits accordingly",
                )


def _virtual(urdf: Urdf, joints: Joints, k: int, movable: list[str]) -> Iterator[Finding]:
    """A joint that only the driver has, and those of the URDF that it is the sum of."""
    name = joints.names[k]
    path: Path = (*joints.path, "virtual", name)
    if name in urdf.joints:
        yield Finding(
            "URDF_VIRTUAL",
            path,
            f"{name!r}, which {urdf.source} has",
            "a joint that only the driver has",
            "remove it from `virtual`",
            # Another description of the robot may have it.
            warning=True,
        )
    for p, part in enumerate(joints.virtual[name]):
        joint = urdf.joints.get(part)
        if joint is None:
            close = difflib.get_close_matches(part, movable, n=1, cutoff=0.5)
            yield Finding(
                "URDF_JOINT_UNKNOWN",
                (*path, p),
                f"{part!r}, which {urdf.source} does not have",
                f"{close[0]!r}?" if close else f"one of {_some(movable)}",
                f"write the joints of the URDF that make up {name}",
            )
        elif joint.unit is None or (joints.own and joint.unit != joints.units[k]):
            yield Finding(
                "URDF_UNIT",
                (*path, p),
                f"{part!r}, of type {joint.type} in the URDF",
                f"a joint that moves, in the unit of {name}, {joints.units[k]}",
                "correct the unit of the group, or choose other joints",
            )


def _described(urdf: Urdf, joints: Joints, name: str) -> UrdfJoint | None:
    """The joint in the URDF; of a virtual one the sum of its parts, None where they make no sum."""
    if name not in joints.virtual or name in urdf.joints:
        return urdf.joints.get(name)
    parts = joints.virtual[name]
    known = [urdf.joints[part] for part in parts if part in urdf.joints]
    if not known or len(known) < len(parts) or len({part.unit for part in known}) > 1:
        return None
    # In equal parts: the narrowest part says how far all go.
    count = len(known)
    lower = [count * part.lower for part in known if part.lower is not None]
    upper = [count * part.upper for part in known if part.upper is not None]
    fast = [count * part.velocity for part in known if part.velocity is not None]
    return replace(
        known[0],
        name=name,
        mimic=None,
        lower=max(lower, default=None),
        upper=min(upper, default=None),
        velocity=min(fast, default=None),
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")


def urdf_limits(subject: Subject) -> Iterator[Finding]:
    """Limits no wider than the URDF's."""
    urdf = subject.urdf
    if urdf is None:
        return
    for joints, field in jointed(subject.embodiment, urdf):
        for k, name in enumerate(joints.names):
            joint = _described(urdf, joints, name)
            if joint is None or not joint.moves or not joints.comparable:
                continue
            if joints.own and joint.unit != joints.units[k]:
                continue
            path = joints.limit_path("position", field.position, k)
            if not joints.own:
                path = (*joints.path, "opening")
            yield from _position(joint, joints, k, path)
            fast = joints.velocity[k]
            if joint.velocity is not None and fast > joint.velocity * 1.001:
                yield Finding(
                    "URDF_VELOCITY",
                    joints.limit_path("velocity", field.velocity, k),
                    f"{fast:g} {joint.unit}/s for {name}",
                    f"at most {joint.velocity:g}, the URDF's",
                    "lower the limit",
                )


def _position(joint: UrdfJoint, joints: Joints, k: int, path: Path) -> Iterator[Finding]:
    low, high = joints.position[k]
    shown = f"[{low:g}, {high:g}] {joint.unit} for {joint.name}"
    if joint.lower is None or joint.upper is None:
        if joint.type == "continuous" and joints.may_turn and joint.name not in joints.continuous:
            yield Finding(
                "URDF_CONTINUOUS",
                path,
                shown,
                "no limit: the joint turns without end in the URDF",
                f"add `continuous: [{joint.name}]`, or keep the limits if cables need them",
                warning=True,
            )
        return
    if not credible(joint):
        return  # in other units than those of URDF
    if joint.name in joints.continuous:
        yield Finding(
            "URDF_NOT_CONTINUOUS",
            (*joints.path, "continuous", joints.continuous.index(joint.name)),
            f"{joint.name!r}, which is to turn without end",
            f"a joint without limits; the URDF's are [{joint.lower:g}, {joint.upper:g}]",
            "remove it from `continuous`: it would be driven into its stops",
        )
        return
    if low >= joint.lower - ROUNDING and high <= joint.upper + ROUNDING:
        return
    if not joints.own:
        yield Finding(
            "URDF_OPENING",
            path,
            shown,
            f"within [{joint.lower:g}, {joint.upper:g}], the URDF's",
            "correct `opening`, in the unit of the URDF",
            # Drivers count grippers as they like.
            warning=True,
        )
        return
    mistaken, factor = MISTAKEN[str(joint.unit)]
    if np.allclose((low, high), (joint.lower * factor, joint.upper * factor), rtol=0.05):
        yield Finding(
            "URDF_LIMITS_UNIT",
            path,
            shown,
            f"[{joint.lower:g}, {joint.upper:g}], the URDF's",
            f"these are {mistaken}; write {joint.unit}",
        )
        return
    yield Finding(
        "URDF_POSITION",
        path,
        shown,
        f"within [{joint.lower:g}, {joint.upper:g}], the URDF's",
        "narrow the limits to those of the URDF",
    )


def urdf_frames(subject: Subject) -> Iterator[Finding]:
    """Frames of end effectors and bases, and that a tip is moved by the joints."""
    urdf = subject.urdf
    if urdf is None:
        return
    for g, group in enumerate(subject.embodiment.actions):
        path: Path = ("actions", g)
        for key in ("frame", "tip"):
            name = getattr(group, key, None)
            if name is not None and name not in urdf.links:
                close = difflib.get_close_matches(name, urdf.links, n=1, cutoff=0.4)
                yield Finding(
                    "URDF_FRAME_UNKNOWN",
                    (*path, key),
                    f"{name!r}, which {urdf.source} does not have",
                    f"a link such as {close[0]!r}" if close else f"a link such as {urdf.root!r}",
                    "write the name of a link of the URDF",
                    # A base's frame may come from the odometry alone; `ik` may name a URDF of its own.
                    warning=not isinstance(group, EefDeltaGroup)
                    or (group.ik is not None and group.ik.urdf not in (None, urdf.source)),
                )
        if isinstance(group, EefDeltaGroup) and group.ik is not None and group.tip in urdf.links:
            chain = [joint.name for joint in urdf.chain_to(group.tip)]
            idle = [name for name in group.ik.joints if name in urdf.joints and name not in chain]
            if idle:
                yield Finding(
                    "URDF_TIP_UNMOVED",
                    (*path, "ik", "joints"),
                    f"{', '.join(idle)}, not between {urdf.root} and {group.tip}",
                    f"joints of {', '.join(n for n in chain if urdf.joints[n].moves)}",
                    "choose the joints that move the tip",
                )


def urdf_held(subject: Subject) -> Iterator[Finding]:
    """Joints between `frame` and `tip` that `ik` does not name: the kinematics take them to be at 0."""
    body, urdf = subject.embodiment, subject.urdf
    if urdf is None:
        return
    for g, group in enumerate(body.actions):
        if not isinstance(group, EefDeltaGroup) or group.ik is None:
            continue
        if group.frame not in urdf.links or group.tip not in urdf.links:
            continue
        chain = urdf.chain_to(group.tip)
        places = [k for k, joint in enumerate(chain) if joint.name in group.ik.joints]
        if not places or any(name not in urdf.joints for name in group.ik.joints):
            continue  # other findings say so
        if group.frame == group.tip:
            # Written in the axes of the tip: what moves the whole arm changes nothing.
            between = chain[places[0] :]
        else:
            base = urdf.chain_to(group.frame)
            between = tuple(j for j in base if j not in chain) + tuple(j for j in chain if j not in base)
        others = {
            name
            for other in body.actions
            if other is not group
            for name in getattr(other, "described", getattr(other, "joints", ()))
        }
        for joint in between:
            if not joint.moves or joint.name in group.ik.joints:
                continue
            advice = f"add {joint.name} to ik.joints"
            if joint not in chain[places[0] :]:
                first = chain[places[0]]
                advice = f"set frame to {first.parent}, the link above {first.name}, or {advice}"
            elif joint in chain[places[-1] :]:
                advice = f"set tip to {chain[places[-1]].child}, or {advice}"
            told = joint.name in others
            yield Finding(
                "URDF_JOINT_HELD",
                ("actions", g, "ik", "joints"),
                f"no {joint.name}, which {'another group moves' if told else 'can move'} between "
                f"{group.frame} and {group.tip}",
                "every joint between `frame` and `tip`: others count as being at 0",
                advice,
                warning=not told,
            )


def urdf_order(subject: Subject) -> Iterator[Finding]:
    """Joints of one chain in another order than from base to tip: often two swapped names."""
    urdf = subject.urdf
    if urdf is None:
        return
    for g, group in enumerate(subject.embodiment.actions):
        if not isinstance(group, JointPositionGroup):
            continue
        known = [urdf.joints[name] for name in group.joints if name in urdf.joints]
        chain = [j.name for j in max((urdf.chain_to(j.child) for j in known), key=len, default=())]
        ordered = [name for name in chain if name in group.joints]
        ours = [joint.name for joint in known if joint.name in ordered]
        if ours != ordered:
            yield Finding(
                "URDF_ORDER",
                ("actions", g, "joints"),
                ", ".join(ours),
                f"{', '.join(ordered)}, from base to tip",
                "check that the order is that of the data and of the controller",
                warning=True,
            )


STATIC: tuple[Check, ...] = (
    units_of_limits,
    units_of_speeds,
    chunk_used_up,
    state_in_prompt,
    action_tensor,
    known_views,
    statistics_fit,
    trained_timing,
    statistics_range,
    statistics_speed,
    urdf_joints,
    urdf_limits,
    urdf_frames,
    urdf_held,
    urdf_order,
)
"""Checks that need neither robot nor ROS."""
