# SPDX-License-Identifier: Apache-2.0
"""Rules between the fields of an embodiment."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from qwen_vla_ros.embodiment.errors import Fault, value_text
from qwen_vla_ros.embodiment.prompt import SLOTS, template_slots, text_fault
from qwen_vla_ros.embodiment.schema import MAX_CHANNELS, MAX_HORIZON, ROTATION_CHANNELS

# The rules read plain values, not the model, so that a fault of type elsewhere hides none of theirs. They
# leave alone whatever has not the right type: the schema has already named it.

Path = tuple[Any, ...]


def find_faults(data: Any) -> Iterator[Fault]:
    """Faults of an embodiment that no single field shows."""
    if not isinstance(data, dict):
        return
    groups = [
        (("actions", k), group)
        for k, group in enumerate(_list(data.get("actions")))
        if isinstance(group, dict)
    ]
    yield from _prompt(data)
    yield from _prompt_state(data, groups)
    yield from _times(data)
    yield from _cameras(data)
    yield from _channels(groups)
    yield from _controllers(groups)
    yield from _heard_and_told(data, groups)
    yield from _sources(data, groups)
    for path, group in groups:
        yield from _limits(path, group)
        yield from _kinematics(path, group)
        yield from _units(path, group)
        yield from _continuous(path, group)
        yield from _virtual(path, group, groups)
        yield from _normalisation(path, group)
        yield from _threshold(path, group)
    yield from _home(data, groups)
    yield from _simulation(data, groups)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _repeated(path: Path, values: list[tuple[Path, Any]], what: str) -> Iterator[Fault]:
    first: dict[str, Path] = {}
    for place, value in values:
        if not isinstance(value, str):
            continue
        if value in first:
            yield Fault(place, f"{value!r} a second time", f"{what}")
        first.setdefault(value, place)


def _prompt(data: dict[str, Any]) -> Iterator[Fault]:
    prompt = _dict(data.get("prompt"))
    for key in ("robot_tag", "template"):
        fault = text_fault(prompt[key]) if isinstance(prompt.get(key), str) else None
        if fault is not None:
            yield Fault(("prompt", key), fault, "one line of plain text")
    if prompt.get("arms") == "none" and not prompt.get("waist") and not prompt.get("mobile_base"):
        yield Fault(
            ("prompt", "arms"), "'none', without waist and mobile_base", "at least one part that moves"
        )
    template = prompt.get("template")
    if not isinstance(template, str):
        return
    path: Path = ("prompt", "template")
    known = ", ".join(f"{{{slot}}}" for slot in SLOTS)
    try:
        slots = template_slots(template)
    except ValueError as error:
        yield Fault(path, str(error), f"slots of the form {known}")
        return
    for slot in dict.fromkeys(slots):
        if slot not in SLOTS:
            yield Fault(path, f"the slot {{{slot}}}", f"only {known}")
    if "ori_instruction" not in slots:
        yield Fault(path, "no slot {ori_instruction}", "a template with the slot {ori_instruction}")


def _prompt_state(data: dict[str, Any], groups: list[tuple[Path, dict[str, Any]]]) -> Iterator[Fault]:
    if _dict(data.get("prompt")).get("state") is not True:
        return
    # The state is absolute; in quantiles of changes it would always be in the first or the last bin.
    relative = [
        f"actions[{path[1]}]"
        for path, group in groups
        if group.get("kind") in ("eef_delta", "waypoint")
        or group.get("reference") in ("chunk_start", "previous_step")
    ]
    if relative:
        yield Fault(
            ("prompt", "state"),
            f"true, with relative actions in {', '.join(relative)}",
            "false, or reference: absolute in every group: the bins of the state are those of its actions",
        )


def _times(data: dict[str, Any]) -> Iterator[Fault]:
    horizon, steps = _number(data.get("horizon")), _number(data.get("execute_steps"))
    if horizon is not None and horizon > MAX_HORIZON:
        yield Fault(("horizon",), f"{horizon:g}", f"at most H = {MAX_HORIZON}")
    if horizon is not None and steps is not None and steps > horizon:
        yield Fault(("execute_steps",), f"{steps:g}", f"at most the horizon, {horizon:g}")
    control, command = _number(data.get("control_rate")), _number(data.get("command_rate"))
    if control is not None and command is not None and 0 < command < control:
        yield Fault(("command_rate",), f"{command:g} Hz", f"at least the control rate, {control:g} Hz")


def _cameras(data: dict[str, Any]) -> Iterator[Fault]:
    cameras = [
        (("cameras", k), camera)
        for k, camera in enumerate(_list(data.get("cameras")))
        if isinstance(camera, dict)
    ]
    topics = [
        ((*path, key), camera[key])
        for path, camera in cameras
        for key in ("topic", "depth")
        if camera.get(key) is not None
    ]
    views = [((*path, "view"), camera.get("view")) for path, camera in cameras]
    for name, places in (("view", views), ("topic", topics)):
        yield from _repeated(("cameras",), places, f"each {name} once")
    for path, camera in cameras:
        compressed = camera.get("transport", "raw") == "compressed"
        if compressed and "encodings" not in camera:
            yield Fault(path, "no encodings", "encodings [jpeg, png] or one of them, for compressed images")
        for k, encoding in enumerate(_list(camera.get("encodings"))):
            if isinstance(encoding, str) and compressed != (encoding in ("jpeg", "png")):
                expected = (
                    "jpeg or png for compressed"
                    if compressed
                    else "rgb8, bgr8, rgba8, bgra8 or mono8 for raw"
                )
                yield Fault((*path, "encodings", k), f"{encoding!r}", expected)
    if (
        cameras
        and len(cameras) == len(_list(data.get("cameras")))
        and all(c.get("required") is False for _, c in cameras)
    ):
        yield Fault(("cameras",), "only optional cameras", "at least one that is required")


def _channel_count(group: dict[str, Any]) -> int:
    kind = group.get("kind")
    if kind == "eef_delta":
        rotation = group.get("rotation")
        return 3 + len(ROTATION_CHANNELS.get(rotation, ()) if isinstance(rotation, str) else ())
    if kind in ("waypoint", "base_velocity"):
        sideways = _dict(group.get("controller")).get("type") == "omni_drive"
        return 3 if kind == "waypoint" or sideways else 2
    return len(_list(group.get("joints")))


def _moved(group: dict[str, Any]) -> tuple[Path, list[Any]]:
    """Joints that a group commands, those of `ik` too, and where they stand in it."""
    if group.get("kind") == "eef_delta":
        return ("ik", "joints"), _list(_dict(group.get("ik")).get("joints"))
    return ("joints",), _list(group.get("joints"))


def _channels(groups: list[tuple[Path, dict[str, Any]]]) -> Iterator[Fault]:
    joints: list[tuple[Path, Any]] = []
    for path, group in groups:
        names = _list(group.get("joints"))
        yield from _repeated(
            path, [((*path, "joints", k), name) for k, name in enumerate(names)], "each channel once"
        )
        own = dict.fromkeys(name for name in names if isinstance(name, str))
        joints += [((*path, "joints", names.index(name)), name) for name in own]
        moving = _list(_dict(group.get("ik")).get("joints"))
        joints += [((*path, "ik", "joints", k), name) for k, name in enumerate(moving)]
    yield from _repeated(
        ("actions",), [((*path, "name"), group.get("name")) for path, group in groups], "each group name once"
    )
    yield from _repeated(("actions",), joints, "each joint in one group")
    count = sum(_channel_count(group) for _, group in groups)
    if count > MAX_CHANNELS:
        yield Fault(("actions",), f"{count} channels", f"at most K = {MAX_CHANNELS}")
    bases = [(path, group) for path, group in groups if group.get("kind") in ("waypoint", "base_velocity")]
    for path, group in bases[1:]:
        yield Fault((*path, "kind"), f"{group['kind']!r}, a second base", "one group that moves the base")


def _controllers(groups: list[tuple[Path, dict[str, Any]]]) -> Iterator[Fault]:
    topics = [
        ((*path, "controller", "topic"), _plain_topic(_dict(group.get("controller")).get("topic")))
        for path, group in groups
    ]
    yield from _repeated(("actions",), topics, "one controller topic per group")
    for path, group in groups:
        controller, (where, joints) = _dict(group.get("controller")), _moved(group)
        names, kind = controller.get("names"), controller.get("type")
        place = (*path, "controller", "names")
        if isinstance(names, list) and joints and len(names) != len(joints):
            yield Fault(place, f"{len(names)} names", f"{len(joints)}, one per joint, or none at all")
        yield from _repeated(place, [((*place, k), name) for k, name in enumerate(_list(names))], "each once")
        if kind in ("gripper_command", "parallel_gripper_command") and len(joints) > 1:
            message = "GripperCommand" if kind == "gripper_command" else "ParallelGripperCommand"
            yield Fault((*path, *where), f"{len(joints)} joints", f"one: a {message} is told one position")
        tip = group.get("tip")
        if (
            kind in ("cartesian_pose", "cartesian_twist")
            and isinstance(tip, str)
            and group.get("frame") == tip
        ):
            expected = f"another link: {kind} is told of the tip in `frame`"
            yield Fault((*path, "frame"), f"{tip!r}, which is `tip` too", expected)


def _plain_topic(topic: Any) -> Any:
    # Without a namespace, which the file does not know, `/commands` and `commands` are one topic.
    return topic.removeprefix("/") if isinstance(topic, str) else topic


_NAMES_AN_ACTION = ("follow_joint_trajectory", "gripper_command", "parallel_gripper_command")


def _heard_and_told(data: dict[str, Any], groups: list[tuple[Path, dict[str, Any]]]) -> Iterator[Fault]:
    """Commands on a topic that is listened to would be taken for what the robot says."""
    state = _dict(data.get("state"))
    heard = {"state.odometry": state.get("odometry"), "state.pose": _dict(state.get("pose")).get("topic")}
    for k, topic in enumerate(_list(state.get("joint_states"))):
        heard[f"state.joint_states[{k}]"] = topic
    for k, camera in enumerate(_list(data.get("cameras"))):
        for key in ("topic", "depth"):
            heard[f"cameras[{k}].{key}"] = _dict(camera).get(key)
    for path, group in groups:
        controller = _dict(group.get("controller"))
        told = controller.get("topic")
        if not isinstance(told, str) or controller.get("type") in _NAMES_AN_ACTION:
            continue
        for place, topic in heard.items():
            if _plain_topic(topic) == _plain_topic(told):
                yield Fault(
                    (*path, "controller", "topic"),
                    f"{told!r}, which is {place} too",
                    "the topic that the controller takes commands from",
                )


def _sources(data: dict[str, Any], groups: list[tuple[Path, dict[str, Any]]]) -> Iterator[Fault]:
    if not isinstance(data.get("state"), dict):
        return
    state = data["state"]
    kinds = {group.get("kind") for _, group in groups if isinstance(group.get("kind"), str)}
    has_joints = kinds & {"joint_position", "gripper", "hand"} or any("ik" in group for _, group in groups)
    if has_joints and state.get("joint_states") in (None, []):
        yield Fault(("state", "joint_states"), "no topic", "a JointState topic for the joints of the groups")
    sources = [key for key in ("odometry", "pose") if state.get(key) is not None]
    if "waypoint" in kinds and not sources:
        yield Fault(
            ("state", "odometry"),
            "nothing",
            "an odometry topic, or a `pose`: waypoints are relative to the pose of the base",
        )
    if len(sources) > 1:
        yield Fault(("state", "pose"), "`odometry` as well", "one of them: a base has one pose")
    yield from _repeated(
        ("state",),
        [(("state", "joint_states", k), topic) for k, topic in enumerate(_list(state.get("joint_states")))],
        "each topic once",
    )
    names = _dict(state.get("joint_names"))
    for topic in names:
        if topic not in _list(state.get("joint_states")):
            place = ("state", "joint_names", topic)
            yield Fault(place, "a topic that is not in joint_states", "a topic of state.joint_states")
    yield from _repeated(
        ("state", "joint_names"),
        [
            (("state", "joint_names", topic, k), name)
            for topic, value in names.items()
            for k, name in enumerate(_list(value))
        ],
        "each joint in one topic",
    )
    if names and all(isinstance(topic, str) and topic in names for topic in _list(state.get("joint_states"))):
        known = {name for value in names.values() for name in _list(value) if isinstance(name, str)}
        for path, group in groups:
            where, joints = _moved(group)
            for k, joint in enumerate(joints):
                if isinstance(joint, str) and joint not in known:
                    yield Fault((*path, *where, k), f"{joint!r}, in no topic", "a name of state.joint_names")


def _units(path: Path, group: dict[str, Any]) -> Iterator[Fault]:
    count = len(_list(group.get("joints")))
    unit = group.get("unit")
    if isinstance(unit, list) and count and len(unit) != count:
        yield Fault((*path, "unit"), f"{len(unit)} units", f"{count}, one per joint, or one for all")
    if unit == "fraction":
        for where, low, high in _pairs(
            (*path, "limits", "position"), _dict(group.get("limits")).get("position")
        ):
            if low < 0.0 or high > 1.0:
                yield Fault(where, f"[{low:g}, {high:g}]", "limits within [0, 1]: 0 is closed, 1 is open")
    if "opening" not in group:
        return
    place = (*path, "opening")
    if unit != "fraction":
        yield Fault(place, f"an opening with the unit {unit!r}", "unit: fraction, or no opening")
    opening = group["opening"]
    each = isinstance(opening, list) and bool(opening) and isinstance(opening[0], list)
    if each and count and len(opening) != count:
        yield Fault(place, f"{len(opening)} values", f"{count}, one per joint, or one for all")
    for where, closed, opened in _pairs(place, opening):
        if closed == opened:
            yield Fault(where, f"{closed:g} closed and open", "[closed, open], two different positions")


def _continuous(path: Path, group: dict[str, Any]) -> Iterator[Fault]:
    # The executor gives these no position limit: whatever else the name means would have none either.
    place, names, unit = (*path, "continuous"), _list(group.get("continuous")), group.get("unit")
    own = _list(group.get("joints"))
    yield from _repeated(place, [((*place, k), name) for k, name in enumerate(names)], "each joint once")
    for k, name in enumerate(names):
        if not isinstance(name, str):
            continue
        if name not in own:
            expected = f"one of {', '.join(map(str, own)) or 'none'}"
            yield Fault((*place, k), f"{name!r}, no such name in `joints`", expected)
            continue
        j = own.index(name)
        each = unit[j] if isinstance(unit, list) and j < len(unit) else unit
        if each == "m":
            yield Fault((*place, k), f"{name!r}, in m", "a joint in rad: only what turns has no end")


def _virtual(path: Path, group: dict[str, Any], groups: list[tuple[Path, dict[str, Any]]]) -> Iterator[Fault]:
    virtual, place = _dict(group.get("virtual")), (*path, "virtual")
    own = [name for name in _list(group.get("joints")) if isinstance(name, str)]
    for name in virtual:
        if name not in own:
            expected = f"one of {', '.join(own) or 'none'}"
            yield Fault((*place, name), "no such name in `joints`", expected)
    parts = [((*place, name, k), part) for name in virtual for k, part in enumerate(_list(virtual[name]))]
    yield from _repeated(place, parts, "each part once")
    moved = [
        name
        for _, other in groups
        for name in (*_list(other.get("joints")), *_list(_dict(other.get("ik")).get("joints")))
    ]
    for where, part in parts:
        if part in moved:
            yield Fault(
                where, f"{part!r}, which a group commands", "joints of the URDF that no group commands"
            )


def _pairs(path: Path, value: Any) -> Iterator[tuple[Path, float, float]]:
    """Pairs of numbers, given as one pair or one per joint, and where they stand."""
    each = isinstance(value, list) and bool(value) and isinstance(value[0], list)
    pairs = [((*path, k), pair) for k, pair in enumerate(value)] if each else [(path, value)]
    for where, pair in pairs:
        numbers = [_number(bound) for bound in _list(pair)]
        if len(numbers) == 2 and numbers[0] is not None and numbers[1] is not None:
            yield where, numbers[0], numbers[1]


def _limits(path: Path, group: dict[str, Any]) -> Iterator[Fault]:
    count = len(_list(group.get("joints")))
    limits = _dict(group.get("limits"))
    for key, value in limits.items():
        if not isinstance(value, list) or key not in ("position", "velocity", "acceleration", "jerk"):
            continue
        place = (*path, "limits", key)
        each = key != "position" or (bool(value) and isinstance(value[0], list))
        if count and each and len(value) != count:
            yield Fault(place, f"{len(value)} values", f"{count}, one per joint, or one for all")
        if key == "position":
            margin = _number(limits.get("margin")) or 0.0
            for where, low, high in _pairs(place, value):
                if low >= high:
                    yield Fault(where, value_text([low, high]), "[low, high] with low < high")
                elif 2.0 * margin >= high - low:
                    found = f"{margin:g}, which leaves no room in {value_text([low, high])}"
                    yield Fault((*path, "limits", "margin"), found, f"less than {(high - low) / 2.0:g}")
    ramp, least = _number(limits.get("ramp")), _least_ramp(limits, count)
    if ramp is not None and least is not None and ramp <= least:
        found = f"{ramp:g} s, in which no motion comes to rest"
        yield Fault((*path, "limits", "ramp"), found, f"more than 2 acceleration / jerk, {least:g} s")


def _least_ramp(limits: dict[str, Any], count: int) -> float | None:
    """Time that the acceleration of the slowest joint takes to come and go [s]."""
    each = [
        [_number(number) for number in (value if isinstance(value, list) else [value] * count)]
        for value in (limits.get("acceleration"), limits.get("jerk"))
    ]
    return max((2.0 * a / j for a, j in zip(*each, strict=False) if a is not None and j), default=None)


def _kinematics(path: Path, group: dict[str, Any]) -> Iterator[Fault]:
    if group.get("kind") != "eef_delta":
        return
    for where, low, high in _pairs((*path, "workspace"), group.get("workspace")):
        if low >= high:
            yield Fault(where, value_text([low, high]), "[low, high] with low < high")
    controller = _dict(group.get("controller")).get("type")
    chain = group.get("ik")
    if isinstance(chain, dict):
        yield from _limits((*path, "ik"), chain)
    elif controller in ("joint_trajectory", "follow_joint_trajectory", "forward_command", "joint_state"):
        expected = "`ik` with the joints, their limits and a URDF: the controller moves joints"
        yield Fault((*path, "ik"), "nothing", expected)


def _normalisation(path: Path, group: dict[str, Any]) -> Iterator[Fault]:
    statistics = _dict(group.get("normalisation"))
    low, high = _list(statistics.get("q01")), _list(statistics.get("q99"))
    count = _channel_count(group)
    for key, values in (("q01", low), ("q99", high)):
        if count and values and len(values) != count:
            yield Fault((*path, "normalisation", key), f"{len(values)} values", f"{count}, one per channel")
    for k, pair in enumerate(zip(low, high, strict=False)):
        a, b = _number(pair[0]), _number(pair[1])
        if a is not None and b is not None and a >= b:
            yield Fault((*path, "normalisation", "q01", k), f"{a:g}, and q99 {b:g}", "q01 < q99")


def _threshold(path: Path, group: dict[str, Any]) -> Iterator[Fault]:
    threshold, hysteresis = _number(group.get("threshold")), _number(group.get("hysteresis")) or 0.0
    if threshold is None:
        if hysteresis > 0.0 and group.get("threshold") is None:
            yield Fault((*path, "hysteresis"), f"{hysteresis:g}, without a threshold", "`threshold` as well")
        return
    if group.get("reference") in ("chunk_start", "previous_step"):
        found = f"{threshold:g} with the reference {group['reference']!r}"
        yield Fault((*path, "threshold"), found, "reference: absolute for a binary gripper")
    for _, low, high in _pairs((), _dict(group.get("limits")).get("position")):
        if low < high and not low <= threshold < high:
            yield Fault((*path, "threshold"), f"{threshold:g}", f"{low:g} to {high:g}, the limits")
        elif low < high and (threshold - hysteresis < low - 1e-9 or threshold + hysteresis >= high):
            # Beyond the limits no value lies that would change sides.
            found = (
                f"{hysteresis:g}, {threshold - hysteresis:g} to {threshold + hysteresis:g} with the threshold"
            )
            yield Fault((*path, "hysteresis"), found, f"less, within {low:g} to {high:g}, the limits")


def _home(data: dict[str, Any], groups: list[tuple[Path, dict[str, Any]]]) -> Iterator[Fault]:
    home = _dict(data.get("home"))
    if not home:
        return
    ranges: dict[str, Any] = {}
    for _, group in groups:
        part = _dict(group.get("ik")) or group
        names = _list(part.get("joints"))
        position = _list(_dict(part.get("limits")).get("position"))
        each = bool(position) and isinstance(position[0], list)
        for k, name in enumerate(names):
            if isinstance(name, str):
                ranges[name] = (position[k] if k < len(position) else None) if each else position
    for joint, value in home.items():
        if joint not in ranges:
            yield Fault(("home", joint), "a joint of no group", "joints of the action groups")
            continue
        bounds = [_number(bound) for bound in _list(ranges[joint])]
        number = _number(value)
        if (
            number is None
            or len(bounds) != 2
            or bounds[0] is None
            or bounds[1] is None
            or bounds[0] >= bounds[1]
        ):
            continue
        if not bounds[0] <= number <= bounds[1]:
            yield Fault(
                ("home", joint), f"{number:g}", f"{bounds[0]:g} to {bounds[1]:g}, the limits of the joint"
            )
    absent = [joint for joint in ranges if joint not in home]
    if absent:
        yield Fault(("home",), f"no {', '.join(absent)}", "every joint of the groups, or no home at all")


def _simulation(data: dict[str, Any], groups: list[tuple[Path, dict[str, Any]]]) -> Iterator[Fault]:
    simulation = _dict(data.get("simulation"))
    if "body" in simulation:
        for key in ("model", "package", "joints", "cameras"):
            if key in simulation:
                yield Fault(("simulation", key), "`body` as well", "a body, or a model with its settings")
    elif "package" in simulation and "model" not in simulation:
        yield Fault(("simulation", "package"), "no `model`", "the file that the package brings")
    joints = [
        joint for _, group in groups for joint in _list((_dict(group.get("ik")) or group).get("joints"))
    ]
    views = [camera.get("view") for camera in _list(data.get("cameras")) if isinstance(camera, dict)]
    for key, known in (("joints", joints), ("cameras", views)):
        for name in _dict(simulation.get(key)):
            if name not in known:
                expected = f"one of {', '.join(map(str, known)) or 'none'}"
                yield Fault(("simulation", key, name), f"no such name in `{_WHERE[key]}`", expected)


_WHERE = {"joints": "actions", "cameras": "cameras"}
