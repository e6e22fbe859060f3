# SPDX-License-Identifier: Apache-2.0
"""A first embodiment file from a URDF: what stands there, guesses for the rest, comments for the reader."""

from __future__ import annotations

import fnmatch
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from qwen_vla_ros.embodiment.checkup import credible
from qwen_vla_ros.embodiment.urdf import Urdf, UrdfJoint

_GRIPPER = re.compile(
    r"gripper|finger|hand|knuckle|jaw|thumb|index|middle|ring|pinky|little|drive_joint", re.I
)
_WHEEL = re.compile(r"wheel|caster|castor|steer", re.I)
_LEG = re.compile(r"hip|knee|ankle|thigh|calf|shank|foot|leg", re.I)
_HEAD = re.compile(r"head|neck|camera", re.I)
_SIDES = {
    "left": re.compile(r"(^|[_/-])(l|left|lft)([_/-]|$)|left", re.I),
    "right": re.compile(r"(^|[_/-])(r|right|rgt)([_/-]|$)|right", re.I),
}

CONTROLLERS = ("joint_trajectory", "forward_command", "joint_state")
BASES = ("none", "diff_drive", "omni_drive")

# Slow at first: people raise limits once they trust the robot [rad/s] and [m/s].
_FASTEST = {"rad": 2.0, "m": 0.25}
_UNKNOWN_SPEED = {"rad": 1.0, "m": 0.1}


@dataclass(frozen=True)
class Part:
    """Joints that become one action group."""

    name: str
    kind: Literal["joint_position", "gripper", "hand"]
    joints: tuple[UrdfJoint, ...]


@dataclass(frozen=True)
class Parts:
    """What a URDF's joints seem to be.

    Attributes:
        groups: arms, torso, grippers and hands.
        wheels: names of the joints of a base.
        left_out: names of joints that no group moves.
    """

    groups: tuple[Part, ...]
    wheels: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def arms(self) -> Literal["single", "dual", "none"]:
        """For the prompt."""
        count = sum(part.kind == "joint_position" and part.name != "torso" for part in self.groups)
        # A gripper or a hand alone is what the model knows of an arm.
        count = max(count, any(part.kind != "joint_position" for part in self.groups))
        return "none" if count == 0 else "single" if count == 1 else "dual"


@dataclass(frozen=True)
class View:
    """A camera."""

    name: str
    topic: str


@dataclass(frozen=True)
class Plan:
    """What the URDF does not say.

    Attributes:
        tag: name of the robot in the prompt.
        control_rate: rate of the model's actions [Hz].
        controller: type of the arms' controllers.
        base: whether a base is driven, and how.
    """

    name: str
    tag: str
    control_rate: float = 10.0
    horizon: int = 16
    controller: Literal["joint_trajectory", "forward_command", "joint_state"] = "joint_trajectory"
    base: Literal["none", "diff_drive", "omni_drive"] = "none"
    views: tuple[View, ...] = (View("ego", "camera/ego/image_raw"),)
    size: tuple[int, int] = (640, 480)


def identifier(text: str) -> str:
    """Text as the name of an embodiment."""
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    return (name if name[:1].isalpha() else f"robot_{name}".rstrip("_"))[:64]


def guess_parts(urdf: Urdf, leave_out: Iterable[str] = ()) -> Parts:
    """Sort the joints by name and place in the tree.

    Args:
        leave_out: names or patterns (`*_hip_*`) of joints that no group shall move.
    """
    patterns = tuple(leave_out)
    free: list[UrdfJoint] = []
    grippers: list[UrdfJoint] = []
    wheels: list[str] = []
    left_out: list[str] = []
    moving = [joint for joint in urdf.joints.values() if joint.moves]
    shared = _namespace([joint.name for joint in moving])
    for joint in moving:
        name = joint.name[len(shared) :]
        if any(fnmatch.fnmatchcase(joint.name, pattern) for pattern in patterns):
            left_out.append(joint.name)
        elif _WHEEL.search(name):
            wheels.append(joint.name)
        elif _LEG.search(name) or _HEAD.search(name):
            left_out.append(joint.name)
        else:
            (grippers if _GRIPPER.search(name) else free).append(joint)
    fingers = _forked(urdf, free)
    grippers = [joint for joint in moving if joint in grippers or joint in fingers]
    free = [joint for joint in free if joint not in fingers]
    groups, spare = _arms(urdf, free)
    left_out += [joint.name for joint in spare]
    used: set[str] = set()
    arms: list[Part | None] = [part for part in groups if part.name != "torso"]
    for arm in arms or [None]:
        own = [
            joint
            for joint in grippers
            if joint.name not in used
            and (arm is None or arm.joints[-1] in urdf.chain_to(joint.child) or not groups)
        ]
        used.update(joint.name for joint in own)
        prefix = "" if arm is None else arm.name.removesuffix("arm")
        if len(own) > 2:
            groups.append(Part(f"{prefix}hand", "hand", tuple(own)))
        elif own:
            groups.append(Part(f"{prefix}gripper", "gripper", (own[0],)))
            left_out += [joint.name for joint in own[1:]]
    left_out += [joint.name for joint in grippers if joint.name not in used]
    return Parts(tuple(groups), tuple(wheels), tuple(left_out))


def _namespace(names: Sequence[str]) -> str:
    """What all names begin with, up to a separator: that of the robot, which says nothing of one joint."""
    if len(names) < 2:
        return ""
    first, last = min(names), max(names)
    common = next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    prefix = re.sub(r"[^/_. :-]*$", "", first[:common])
    # A hand alone may well have nothing but fingers.
    words = "|".join(pattern.pattern for pattern in (_GRIPPER, _WHEEL, _LEG, _HEAD))
    return "" if re.search(rf"(?<![a-z])({words})(?![a-z])", prefix, re.I) else prefix


def _forked(urdf: Urdf, free: Sequence[UrdfJoint]) -> list[UrdfJoint]:
    """Fingers without a name that tells: single joints that leave the end of a chain of two or more."""
    chains = [tuple(j for j in urdf.chain_to(joint.child) if j in free) for joint in free]
    forked: list[UrdfJoint] = []
    for stem in chains:
        beyond = [chain for chain in chains if len(chain) > len(stem) and chain[: len(stem)] == stem]
        if len(stem) > 1 and len(beyond) > 1 and all(len(chain) == len(stem) + 1 for chain in beyond):
            forked += [chain[-1] for chain in beyond]
    return forked


def _arms(urdf: Urdf, free: Sequence[UrdfJoint]) -> tuple[list[Part], list[UrdfJoint]]:
    """Chains of free joints as arms; what several of them share as a torso; the rest."""
    chains = [tuple(j for j in urdf.chain_to(joint.child) if j in free) for joint in free]
    longest = [c for c in chains if not any(len(d) > len(c) and d[: len(c)] == c for d in chains)]
    arms = [chain for chain in longest if len(chain) > 1] or longest
    shared = [joint for joint in free if len(arms) > 1 and sum(joint in chain for chain in arms) > 1]
    arms = [tuple(joint for joint in chain if joint not in shared) for chain in arms]
    arms = [chain for chain in arms if chain]
    parts = [Part("torso", "joint_position", tuple(shared))] if shared else []
    names: list[str] = []
    for k, chain in enumerate(arms):
        side = next((s for s, pattern in _SIDES.items() if all(pattern.search(j.name) for j in chain)), None)
        name = "arm" if len(arms) == 1 else f"{side}_arm" if side else f"arm_{k + 1}"
        names.append(name if name not in names else f"{name}_{k + 1}")
        parts.append(Part(names[-1], "joint_position", chain))
    placed = {joint.name for part in parts for joint in part.joints}
    # The torso comes last, as the paper's prompts and data sets have it.
    return sorted(parts, key=lambda part: part.name == "torso"), [j for j in free if j.name not in placed]


def skeleton(urdf: Urdf, parts: Parts, plan: Plan) -> str:
    """Text of an embodiment file that is valid and has comments where a person has to look.

    Raises:
        ValueError: nothing moves.
    """
    if not parts.groups and plan.base == "none":
        raise ValueError(
            f"{urdf.source}: found no joint for an arm or a gripper, and no base; "
            "choose a base, or leave out fewer joints"
        )
    lines = [
        f"# {plan.tag}: made from the URDF '{urdf.name}'. Look at every line marked CHECK.",
        "schema: 1",
        _noted(f"name: {plan.name}", "that of this file, and of the statistics in a checkpoint"),
        f"description: {_quoted(plan.tag)}",
        "",
        _noted("prompt:", "what the model is told of the robot"),
        _noted(f"  robot_tag: {_quoted(plan.tag)}", "CHECK: as in the training"),
        f"  arms: {parts.arms}",
    ]
    if any(part.name == "torso" for part in parts.groups):
        lines.append("  waist: true")
    if plan.base != "none":
        lines.append("  mobile_base: true")
    lines += [
        "",
        _noted(
            f"control_rate: {_text(plan.control_rate)}", "CHECK: rate of the actions in the training [Hz]"
        ),
        _noted(
            f"command_rate: {_text(max(50.0, plan.control_rate))}",
            "rate at which controllers are written [Hz]",
        ),
        _noted(f"horizon: {plan.horizon}", "rows of a chunk"),
        _noted(
            f"execute_steps: {max(1, plan.horizon // 2)}", "rows followed before the next chunk is asked for"
        ),
        "",
        _noted("cameras:", "CHECK: views as in the training, in this order; topics and sizes are yours"),
    ]
    for view in plan.views:
        lines += [
            f"  - view: {view.name}",
            f"    topic: {view.topic}",
            "    encodings: [rgb8, bgr8]",
            f"    size: [{plan.size[0]}, {plan.size[1]}]",
        ]
    lines += ["", "state:"]
    if parts.groups:
        lines.append("  joint_states: [joint_states]")
    if plan.base != "none":
        lines.append(_noted("  odometry: odom", "CHECK"))
    lines += ["", _noted("actions:", "in the order of the model's channels")]
    for part in parts.groups:
        lines += _group(part, plan)
    if plan.base != "none":
        lines += _base(urdf, plan)
    left_out = [*parts.left_out, *(parts.wheels if plan.base == "none" else ())]
    if left_out:
        lines += ["", "# Joints of the URDF that nothing here moves:", *_wrapped(left_out)]
    if parts.groups:
        lines += ["", _noted("home:", "CHECK: a pose that is safe to rest in")]
        lines += [
            f"  {_quoted(joint.name)}: {_text(_home(joint))}"
            for part in parts.groups
            for joint in part.joints
        ]
    return "\n".join(lines) + "\n"


def _group(part: Part, plan: Plan) -> list[str]:
    units = [joint.unit or "rad" for joint in part.joints]
    positions: list[tuple[float, float]] = []
    continuous: list[str] = []
    missing: list[str] = []
    odd: list[str] = []
    for joint in part.joints:
        if credible(joint):
            assert joint.lower is not None
            assert joint.upper is not None
            positions.append(_inside(joint.lower, joint.upper))
            continue
        turns = joint.type == "continuous"
        given = joint.lower is not None and joint.upper is not None
        (continuous if turns else odd if given else missing).append(joint.name)
        positions.append((-3.14159, 3.14159) if joint.unit == "rad" else (0.0, 0.1))
    speeds = [
        min(_FASTEST[unit], joint.velocity) if joint.velocity else _UNKNOWN_SPEED[unit]
        for joint, unit in zip(part.joints, units, strict=True)
    ]
    kind = part.kind
    unit = units[0] if len(set(units)) == 1 else f"[{', '.join(units)}]"
    if kind == "hand" and unit != "rad":
        kind = "joint_position"
    lines = [
        f"  - name: {part.name}",
        f"    kind: {kind}",
        f"    joints: [{', '.join(_quoted(joint.name) for joint in part.joints)}]",
        f"    unit: {unit}",
    ]
    if continuous and kind == "joint_position":
        lines.append(
            f"    continuous: [{', '.join(map(_quoted, continuous))}]   # CHECK: no cable that winds up?"
        )
    note = f"; CHECK: the URDF has no position of {', '.join(missing)}" if missing else ""
    if odd:
        note += f"; CHECK: the URDF's position of {', '.join(odd)} looks like degrees or millimetres"
    lines += [
        "    reference: absolute   # CHECK: absolute | chunk_start | previous_step, as in the training",
        f"    limits:               # position: the URDF's; the rest: slow at first{note}",
        f"      position: [{', '.join(f'[{_text(a)}, {_text(b)}]' for a, b in positions)}]",
        f"      velocity: {_each(speeds)}",
        f"      acceleration: {_each([5.0 * speed for speed in speeds])}",
        f"      jerk: {_each([100.0 * speed for speed in speeds])}",
    ]
    controller = "forward_command" if kind == "gripper" else plan.controller
    topic = {"joint_trajectory": "joint_trajectory", "forward_command": "commands", "joint_state": "command"}
    lines.append(
        f"    controller: {{type: {controller}, topic: {part.name}_controller/{topic[controller]}}}   # CHECK"
    )
    return lines


def _base(urdf: Urdf, plan: Plan) -> list[str]:
    frame = next((link for link in ("base_footprint", "base_link") if link in urdf.links), urdf.root)
    return [
        "  - name: base",
        "    kind: base_velocity",
        f"    frame: {_quoted(frame)}",
        "    limits:               # CHECK: slow at first",
        "      linear: {velocity: 0.3, acceleration: 0.5, jerk: 2.5}",
        "      angular: {velocity: 0.8, acceleration: 1.5, jerk: 7.5}",
        f"    controller: {{type: {plan.base}, topic: cmd_vel, stamped: true}}   # CHECK: false for Twist",
    ]


def _home(joint: UrdfJoint) -> float:
    if joint.lower is None or joint.upper is None or not credible(joint):
        return 0.0
    lower, upper = _inside(joint.lower, joint.upper)
    return min(max(0.0, lower), upper)


def _inside(lower: float, upper: float) -> tuple[float, float]:
    """Limits with five decimals, not outside the given ones."""
    return math.ceil(lower * 1e5 - 1e-6) / 1e5, math.floor(upper * 1e5 + 1e-6) / 1e5


def _text(value: float) -> str:
    return repr(float(f"{value:.6g}"))


def _noted(text: str, note: str) -> str:
    return f"{text:<25} # {note}"


def _each(values: Sequence[float]) -> str:
    return _text(values[0]) if len(set(values)) == 1 else f"[{', '.join(map(_text, values))}]"


def _quoted(text: str) -> str:
    plain = re.fullmatch(r"[A-Za-z]([A-Za-z0-9 _./-]*[A-Za-z0-9_./-])?", text) and text.lower() not in (
        "true",
        "false",
        "null",
    )
    return text if plain else json.dumps(text, ensure_ascii=False)


def _wrapped(names: Sequence[str], width: int = 110) -> list[str]:
    lines, line = [], "#  "
    for k, name in enumerate(names):
        word = f" {name}" + ("," if k < len(names) - 1 else "")
        if len(line) + len(word) > width:
            lines.append(line)
            line = "#  "
        line += word
    return [*lines, line]
