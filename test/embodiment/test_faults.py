# SPDX-License-Identifier: Apache-2.0
"""Every kind of fault in an embodiment file is found, with its line, its field and what was expected."""

from __future__ import annotations

import pickle

import pytest

from qwen_vla_ros import resources
from qwen_vla_ros.embodiment import EmbodimentError, load_embodiment, parse_embodiment
from qwen_vla_ros.embodiment.document import MAX_BYTES

PANDA = (resources.embodiments_directory() / "franka_panda.yaml").read_text()
TIAGO = (resources.embodiments_directory() / "tiago_base.yaml").read_text()
WIDOWX = (resources.embodiments_directory() / "widowx.yaml").read_text()
MOBILE = (resources.embodiments_directory() / "mobile_aloha.yaml").read_text()
XARM = (resources.embodiments_directory() / "xarm7.yaml").read_text()


KINEMATICS = resources.embodiments_directory() / "kinematics"


def faults_of(tmp_path, text, name="robot.yaml"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(EmbodimentError) as caught:
        load_embodiment(path)
    assert caught.value.source == str(path)
    return caught.value.faults


def edited(text, old, new):
    assert text.count(old) >= 1
    return text.replace(old, new, 1)


def named(text):
    for name in ("franka_panda", "mobile_aloha", "tiago_base", "widowx", "xarm7"):
        text = text.replace(f"\nname: {name}", "\nname: robot")
    return text


# what is replaced, by what, the field, found, expected
PANDA_CASES = {
    "unknown key": ("control_rate:", "colour: red\ncontrol_rate:", "colour", "unknown key", "control_rate"),
    "misspelt key": ("command_rate:", "comand_rate:", "comand_rate", "unknown key", "'command_rate'"),
    "unknown key deep": (
        "unit: rad",
        "unit: rad\n    units: rad",
        "actions[0].units",
        "unknown key",
        "'unit'",
    ),
    "missing key": ("description: ", "#", "description", "nothing", "a value"),
    "wrong type": ("horizon: 16 ", "horizon: many ", "horizon", "'many'", "whole number"),
    "fraction for a count": ("horizon: 16 ", "horizon: 16.5 ", "horizon", "16.5", "whole number"),
    "text for a number": ("control_rate: 10.0", "control_rate: '10'", "control_rate", "'10'", "a number"),
    "true for a number": ("control_rate: 10.0", "control_rate: true", "control_rate", "True", "a number"),
    "text for a truth": (
        "required: true",
        "required: sure",
        "cameras[0].required",
        "'sure'",
        "true or false",
    ),
    "list for a mapping": (
        "simulation: {body: panda}",
        "simulation: [panda]",
        "simulation",
        "['panda']",
        "mapping",
    ),
    "body and model": (
        "simulation: {body: panda}",
        "simulation: {body: panda, model: a.urdf}",
        "simulation.model",
        "`body` as well",
        "a body, or a model",
    ),
    "package without model": (
        "simulation: {body: panda}",
        "simulation: {package: robots}",
        "simulation.package",
        "no `model`",
        "the file that the package brings",
    ),
    "camera of no view": (
        "simulation: {body: panda}",
        "simulation: {model: a.urdf, cameras: {front: {position: [0, 0, 1], target: [1, 0, 0]}}}",
        "simulation.cameras.front",
        "no such name",
        "one of ego",
    ),
    "zero rate": ("control_rate: 10.0", "control_rate: 0.0", "control_rate", "0.0", "more than 0"),
    "schema version": ("schema: 1", "schema: 2", "schema", "2", "1"),
    "robot name": ("name: robot", "name: Robot!", "name", "'Robot!'", "lower-case"),
    "duplicate channel": ("panda_joint2,", "panda_joint1,", "actions[0].joints[1]", "second time", "once"),
    "joint in two groups": (
        "[panda_finger_joint1]",
        "[panda_joint3]",
        "actions[1].joints[0]",
        "second time",
        "each joint in one group",
    ),
    "group named twice": ("- name: gripper", "- name: arm", "actions[1].name", "second time", "once"),
    "horizon over H": ("horizon: 16 ", "horizon: 65 ", "horizon", "65", "H = 64"),
    "no horizon": ("horizon: 16 ", "horizon: 0 ", "horizon", "0", "at least 1"),
    "execute_steps over the horizon": ("execute_steps: 8", "execute_steps: 17", "execute_steps", "17", "16"),
    "slow commands": ("command_rate: 100.0", "command_rate: 5.0", "command_rate", "5 Hz", "10 Hz"),
    "limits reversed": (
        "[0.0, 0.04]",
        "[0.04, 0.0]",
        "actions[1].limits.position[0]",
        "[0.04, 0.0]",
        "low < high",
    ),
    "limits equal": (
        "[0.0, 0.04]",
        "[0.04, 0.04]",
        "actions[1].limits.position[0]",
        "[0.04, 0.04]",
        "low < high",
    ),
    "limits per joint": (
        "velocity: [2.175, 2.175",
        "velocity: [2.175",
        "actions[0].limits.velocity",
        "6 values",
        "7, one per joint",
    ),
    "negative limit": ("jerk: 500.0", "jerk: -500.0", "actions[0].limits.jerk", "-500.0", "more than 0"),
    "ramp too short": ("ramp: 0.2 ", "ramp: 0.07 ", "actions[0].limits.ramp", "0.07 s", "jerk, 0.08 s"),
    "not a number": ("jerk: 500.0", "jerk: .nan", "actions[0].limits.jerk", "nan", ""),
    "infinite": ("control_rate: 10.0", "control_rate: .inf", "control_rate", "inf", "finite"),
    "infinite position": ("[0.0, 0.04]", "[0.0, .inf]", "actions[1].limits.position[0][1]", "inf", "finite"),
    "unknown unit": ("unit: rad", "unit: degrees", "actions[0].unit", "'degrees'", "'rad'"),
    "endless joint of no group": (
        "unit: rad",
        "unit: rad\n    continuous: [panda_joint8]",
        "actions[0].continuous[0]",
        "'panda_joint8', no such name in `joints`",
        "one of panda_joint1, ",
    ),
    "endless joint twice": (
        "unit: rad",
        "unit: rad\n    continuous: [panda_joint7, panda_joint7]",
        "actions[0].continuous[1]",
        "second time",
        "each joint once",
    ),
    "endless joint that slides": (
        "unit: rad",
        "unit: m\n    continuous: [panda_joint7]",
        "actions[0].continuous[0]",
        "'panda_joint7', in m",
        "in rad",
    ),
    "endless joint among those that slide": (
        "unit: rad",
        "unit: [rad, rad, rad, rad, rad, m, rad]\n    continuous: [panda_joint7, panda_joint6]",
        "actions[0].continuous[1]",
        "'panda_joint6', in m",
        "in rad",
    ),
    "age of images in ms": ("max_age: 0.5 ", "max_age: 300 ", "cameras[0].max_age", "300", "at most 10"),
    "skew in ms": (
        "max_camera_skew: 0.1",
        "max_camera_skew: 50",
        "max_camera_skew",
        "50",
        "at most 10",
    ),
    "age of the state in ms": ("max_age: 0.3 ", "max_age: 200 ", "state.max_age", "200", "at most 10"),
    "silence in ms": (
        "schema: 1",
        "schema: 1\nstop: {heartbeat_timeout: 500}",
        "stop.heartbeat_timeout",
        "500",
        "at most 10",
    ),
    "age of chunks in ms": (
        "schema: 1",
        "schema: 1\nstop: {chunk_max_age: 1000}",
        "stop.chunk_max_age",
        "1000",
        "at most 10",
    ),
    "controller shared by another name": (
        "topic: panda_gripper_controller/commands",
        "topic: /panda_arm_controller/joint_trajectory",
        "actions[1].controller.topic",
        "second time",
        "one controller topic per group",
    ),
    "commands among the joint states": (
        "topic: panda_gripper_controller/commands",
        "topic: /joint_states",
        "actions[1].controller.topic",
        "'/joint_states', which is state.joint_states[0] too",
        "takes commands from",
    ),
    "commands among the images": (
        "topic: panda_gripper_controller/commands",
        "topic: camera/ego/image_raw",
        "actions[1].controller.topic",
        "which is cameras[0].topic too",
        "takes commands from",
    ),
    "hysteresis without a threshold": (
        "unit: m\n",
        "unit: m\n    hysteresis: 0.01\n",
        "actions[1].hysteresis",
        "0.01, without a threshold",
        "`threshold` as well",
    ),
    "hysteresis beyond the limits": (
        "unit: m\n",
        "unit: m\n    threshold: 0.02\n    hysteresis: 0.03\n",
        "actions[1].hysteresis",
        "0.03, -0.01 to 0.05 with the threshold",
        "within 0 to 0.04",
    ),
    "virtual joint of no group": (
        "unit: rad",
        "unit: rad\n    virtual: {reach: [a, b]}",
        "actions[0].virtual.reach",
        "no such name in `joints`",
        "one of panda_joint1, ",
    ),
    "part of a virtual joint twice": (
        "unit: rad",
        "unit: rad\n    virtual: {panda_joint1: [a, a]}",
        "actions[0].virtual.panda_joint1[1]",
        "'a' a second time",
        "each part once",
    ),
    "part of a virtual joint that is commanded": (
        "unit: rad",
        "unit: rad\n    virtual: {panda_joint1: [a, panda_finger_joint1]}",
        "actions[0].virtual.panda_joint1[1]",
        "which a group commands",
        "no group commands",
    ),
    "virtual joints as a list": (
        "unit: rad",
        "unit: rad\n    virtual: [panda_joint1]",
        "actions[0].virtual",
        "['panda_joint1']",
        "mapping",
    ),
    "unknown reference": (
        "reference: absolute ",
        "reference: world ",
        "actions[0].reference",
        "'world'",
        "'absolute'",
    ),
    "unknown kind": ("kind: gripper", "kind: claw", "actions[1].kind", "'claw'", "'gripper'"),
    "unknown controller": (
        "type: joint_trajectory",
        "type: telepathy",
        "actions[0].controller.type",
        "'telepathy'",
        "joint_trajectory",
    ),
    "controller of another kind": (
        "type: joint_trajectory",
        "type: diff_drive",
        "actions[0].controller.type",
        "'diff_drive'",
        "joint_trajectory",
    ),
    "controller shared": (
        "topic: panda_gripper_controller/commands",
        "topic: panda_arm_controller/joint_trajectory",
        "actions[1].controller.topic",
        "second time",
        "one controller topic per group",
    ),
    "topic": ("camera/ego/image_raw", "camera//ego", "cameras[0].topic", "'camera//ego'", "ROS name"),
    "size": ("[128, 128]", "[128]", "cameras[0].size", "1 entries", "at least 2"),
    "encoding": ("[rgb8, bgr8]", "[rgb8, yuyv]", "cameras[0].encodings[1]", "'yuyv'", "'rgb8'"),
    "encoding of the transport": ("[rgb8, bgr8]", "[jpeg]", "cameras[0].encodings[0]", "'jpeg'", "rgb8"),
    "only optional cameras": ("required: true", "required: false", "cameras", "only optional", "required"),
    "arms": ("arms: single", "arms: three", "prompt.arms", "'three'", "'dual'"),
    "nothing moves": ("arms: single", "arms: none", "prompt.arms", "'none'", "part that moves"),
    "missing instruction slot": (
        "robot_tag: Franka Panda",
        "robot_tag: Franka Panda\n  template: 'Do as {robot_tag} would.'",
        "prompt.template",
        "no slot {ori_instruction}",
        "{ori_instruction}",
    ),
    "unknown slot": (
        "robot_tag: Franka Panda",
        "robot_tag: Franka Panda\n  template: '{ori_instruction} {mood}'",
        "prompt.template",
        "{mood}",
        "{robot_tag}",
    ),
    "broken slot": (
        "robot_tag: Franka Panda",
        "robot_tag: Franka Panda\n  template: '{ori_instruction} {'",
        "prompt.template",
        "",
        "slots of the form",
    ),
    "slot that reaches into objects": (
        "robot_tag: Franka Panda",
        "robot_tag: Franka Panda\n  template: '{ori_instruction} {robot_tag.__class__}'",
        "prompt.template",
        "{robot_tag.__class__}",
        "{robot_tag}",
    ),
    "special token": (
        "Franka Panda\n  arms",
        "'<|ego_start|>'\n  arms",
        "prompt.robot_tag",
        "<|",
        "plain text",
    ),
    "home outside limits": (
        "panda_joint4: -2.2",
        "panda_joint4: 0.5",
        "home.panda_joint4",
        "0.5",
        "-3.0718 to -0.0698",
    ),
    "home of an unknown joint": (
        "panda_joint4: -2.2",
        "elbow: -2.2",
        "home.elbow",
        "a joint of no group",
        "joints",
    ),
    "home incomplete": ("  panda_joint4: -2.2\n", "", "home", "no panda_joint4", "every joint"),
    "no joint states": ("[joint_states]", "[]", "state.joint_states", "no topic", "JointState"),
    "q01 over q99": (
        "unit: m\n",
        "unit: m\n    normalisation: {q01: [0.04], q99: [0.0]}\n",
        "actions[1].normalisation.q01[0]",
        "0.04, and q99 0",
        "q01 < q99",
    ),
    "statistics per channel": (
        "unit: m\n",
        "unit: m\n    normalisation: {q01: [0.0, 0.0], q99: [0.04]}\n",
        "actions[1].normalisation.q01",
        "2 values",
        "1, one per channel",
    ),
    "threshold beyond the limits": (
        "unit: m\n",
        "unit: m\n    threshold: 0.5\n",
        "actions[1].threshold",
        "0.5",
        "0 to 0.04",
    ),
    "duplicate key": ("execute_steps: 8", "horizon: 8\nexecute_steps: 8", "horizon", "second time", "once"),
    "tag": ("horizon: 16 ", "horizon: !!python/name:os.system 16 ", "horizon", "python/name", "no tag"),
    "key that is a number": ("schema: 1", "schema: 1\n7: seven", "", "the key 7", "text"),
}


@pytest.mark.parametrize("case", sorted(PANDA_CASES))
def test_fault_of_an_arm(tmp_path, case):
    old, new, field, found, expected = PANDA_CASES[case]
    text = edited(named(PANDA), old, new)
    faults = faults_of(tmp_path, text)
    matching = [f for f in faults if f.field == field and found in f.found and expected in f.expected]
    assert matching, [str(fault) for fault in faults]
    original = named(PANDA).splitlines()
    changed = {k + 1 for k, line in enumerate(text.splitlines()) if k >= len(original) or line != original[k]}
    if case not in ("missing key", "only optional cameras", "home incomplete", "encoding of the transport"):
        assert matching[0].line in changed


CAMERA_TWICE = PANDA.replace(
    "max_camera_skew",
    "  - {view: ego, topic: camera/second/image_raw, size: [64, 64]}\nmax_camera_skew",
)
ODOMETRY = "odometry: mobile_base_controller/odom"
OTHER_CASES = {
    "camera listed twice": (CAMERA_TWICE, "cameras[1].view", "second time", "each view once"),
    "camera topic twice": (
        CAMERA_TWICE.replace("{view: ego, topic: camera/second", "{view: left, topic: camera/ego"),
        "cameras[1].topic",
        "second time",
        "each topic once",
    ),
    "depth on the topic of the image": (
        PANDA.replace("max_camera_skew", "    depth: camera/ego/image_raw\nmax_camera_skew"),
        "cameras[0].depth",
        "second time",
        "each topic once",
    ),
    "waypoints without odometry": (
        TIAGO.replace(ODOMETRY, "joint_states: []"),
        "state.odometry",
        "nothing",
        "odometry topic, or a `pose`",
    ),
    "odometry and a pose": (
        TIAGO.replace("state:\n", "state:\n  pose: {topic: amcl_pose, type: pose_stamped}\n"),
        "state.pose",
        "`odometry` as well",
        "one of them",
    ),
    "pose of an unknown type": (
        TIAGO.replace(ODOMETRY, "pose: {topic: amcl_pose, type: PoseStamped}"),
        "state.pose.type",
        "'PoseStamped'",
        "'pose_stamped' or 'pose_with_covariance_stamped'",
    ),
    "pose without a type": (
        TIAGO.replace(ODOMETRY, "pose: {topic: amcl_pose}"),
        "state.pose.type",
        "nothing",
        "value",
    ),
    "Twist or TwistStamped": (
        TIAGO.replace(", stamped: false", ""),
        "actions[0].controller.stamped",
        "nothing",
        "value",
    ),
    "limits of a base": (
        TIAGO.replace(", jerk: 5.0", ""),
        "actions[0].limits.linear.jerk",
        "nothing",
        "value",
    ),
    "rotation": (
        WIDOWX.replace("rotation: rpy", "rotation: quaternion"),
        "actions[0].rotation",
        "'quaternion'",
        "'rpy'",
    ),
    "reference of a delta": (
        WIDOWX.replace("reference: previous_step", "reference: absolute"),
        "actions[0].reference",
        "'absolute'",
        "'chunk_start'",
    ),
    "gripper command of two joints": (
        XARM.replace("joints: [drive_joint]", "joints: [drive_joint, right_finger_joint]"),
        "actions[1].joints",
        "2 joints",
        "one",
    ),
    "parallel gripper of two joints": (
        XARM.replace("joints: [drive_joint]", "joints: [drive_joint, right_finger_joint]").replace(
            "gripper_command", "parallel_gripper_command"
        ),
        "actions[1].joints",
        "2 joints",
        "one: a ParallelGripperCommand",
    ),
    "margin without room": (
        WIDOWX.replace("margin: 0.02", "margin: 2.0"),
        "actions[0].ik.limits.margin",
        "2, which leaves no room in [-1.88495, 1.98967]",
        "less than 1.93731",
    ),
    "odometry on the topic of the base": (
        TIAGO.replace(ODOMETRY, "odometry: /mobile_base_controller/cmd_vel_unstamped"),
        "actions[0].controller.topic",
        "which is state.odometry too",
        "takes commands from",
    ),
    "pose of the tip in its own frame": (
        WIDOWX.replace("frame: wx250s/base_link", "frame: wx250s/ee_gripper_link").replace(
            "type: joint_trajectory, topic: arm", "type: cartesian_twist, topic: arm"
        ),
        "actions[0].frame",
        "which is `tip` too",
        "another link",
    ),
    "names of the controller of an end effector": (
        WIDOWX.replace(
            "type: joint_trajectory, topic: arm", "type: joint_trajectory, names: [a], topic: arm"
        ),
        "actions[0].controller.names",
        "1 names",
        "6, one per joint",
    ),
    "a name of the controller twice": (
        MOBILE.replace("names: [waist, shoulder,", "names: [waist, waist,"),
        "actions[0].controller.names[1]",
        "'waist' a second time",
        "each once",
    ),
    "a joint of an end effector in no topic": (
        WIDOWX.replace(
            "  joint_states: [joint_states]",
            "  joint_states: [joint_states]\n"
            "  joint_names:\n"
            "    joint_states: [waist, elbow, forearm_roll, wrist_angle, wrist_rotate, left_finger]",
        ),
        "actions[0].ik.joints[1]",
        "'shoulder', in no topic",
        "a name of state.joint_names",
    ),
    "names of the controller": (
        MOBILE.replace("names: [waist, shoulder,", "names: [shoulder,"),
        "actions[0].controller.names",
        "5 names",
        "6, one per joint",
    ),
    "unknown topic of joint names": (
        MOBILE.replace("    follower_left/joint_states: [", "    left/joint_states: ["),
        "state.joint_names.left/joint_states",
        "not in joint_states",
        "state.joint_states",
    ),
    "a joint in two topics": (
        MOBILE.replace("[right/waist, right/shoulder", "[left/waist, right/shoulder"),
        "state.joint_names.follower_right/joint_states[0]",
        "second time",
        "one topic",
    ),
    "a joint in no topic": (
        MOBILE.replace("joints: [left/waist", "joints: [left/hip"),
        "actions[0].joints[0]",
        "'left/hip', in no topic",
        "joint_names",
    ),
    "units per joint": (
        MOBILE.replace("    unit: rad", "    unit: [rad, rad]", 1),
        "actions[0].unit",
        "2 units",
        "6, one per joint",
    ),
    "fractions beyond 1": (
        WIDOWX.replace("limits: {position: [0.0, 1.0]", "limits: {position: [0.0, 100.0]"),
        "actions[1].limits.position",
        "[0, 100]",
        "within [0, 1]",
    ),
    "opening of metres": (
        WIDOWX.replace("unit: fraction ", "unit: m "),
        "actions[1].opening",
        "an opening with the unit 'm'",
        "unit: fraction",
    ),
    "opening that does not open": (
        WIDOWX.replace("opening: [0.015, 0.037]", "opening: [0.015, 0.015]"),
        "actions[1].opening",
        "closed and open",
        "two different positions",
    ),
    "opening per joint": (
        WIDOWX.replace("opening: [0.015, 0.037]", "opening: [[0.015, 0.037], [0.015, 0.037]]"),
        "actions[1].opening",
        "2 values",
        "1, one per joint",
    ),
    "rotation of a camera": (
        WIDOWX.replace("    max_age: 0.5", "    rotate: 45\n    max_age: 0.5", 1),
        "cameras[0].rotate",
        "45",
        "90",
    ),
    "threshold of a relative gripper": (
        WIDOWX.replace("reference: absolute", "reference: chunk_start"),
        "actions[1].threshold",
        "'chunk_start'",
        "reference: absolute",
    ),
    "state before relative joints": (
        edited(PANDA, "reference: absolute", "reference: chunk_start").replace(
            "arms: single", "arms: single\n  state: true", 1
        ),
        "prompt.state",
        "true, with relative actions in actions[0]",
        "reference: absolute in every group",
    ),
    "state before changes of a tip": (
        WIDOWX.replace("arms: single", "arms: single\n  state: true", 1),
        "prompt.state",
        "true, with relative actions in actions[0]",
        "reference: absolute in every group",
    ),
    "state before waypoints": (
        TIAGO.replace("arms: none", "arms: none\n  state: true", 1),
        "prompt.state",
        "true, with relative actions in actions[0]",
        "reference: absolute in every group",
    ),
    "more channels than K": (
        PANDA.replace("panda_joint7]", "panda_joint7, " + ", ".join(f"j{k}" for k in range(60)) + "]"),
        "actions",
        "68 channels",
        "K = 64",
    ),
}


@pytest.mark.parametrize("case", sorted(OTHER_CASES))
def test_fault_of_another_kind(tmp_path, case):
    text, field, found, expected = OTHER_CASES[case]
    faults = faults_of(tmp_path, named(text))
    assert any(f.field == field and found in f.found and expected in f.expected and f.line for f in faults), [
        str(fault) for fault in faults
    ]


def test_what_is_near_those_faults_and_none(tmp_path):
    """The margin may leave a little room, an action is no topic, hysteresis may be wide inside the limits."""
    path = tmp_path / "robot.yaml"
    for text, old, new in (
        (WIDOWX, "margin: 0.02", "margin: 1.3"),
        (WIDOWX, "hysteresis: 0.1", "hysteresis: 0.45"),
        (XARM, "joint_states: [", "joint_states: [xarm_gripper/gripper_action, "),
        (PANDA, "unit: rad", "unit: rad\n    continuous: [panda_joint7]"),
        (PANDA, "max_age: 0.3 ", "max_age: 10 "),
    ):
        path.write_text(edited(named(text), old, new).replace("kinematics/", f"{KINEMATICS}/"))
        load_embodiment(path)


NOT_EMBODIMENTS = {
    "empty": (b"", "empty file"),
    "comments only": (b"# nothing\n", "empty file"),
    "null": (b"~", "nothing"),
    "a list": (b"- schema: 1\n", "[{'schema': 1}]"),
    "text": (b"hello", "'hello'"),
    "not YAML": (b"schema: 1\n  name: x\n", "not YAML"),
    "open list": (b"schema: [1\n", "not YAML"),
    "tab": (b"schema:\n\tname: x", "not YAML"),
    "unknown alias": (b"schema: *one\n", "not YAML"),
    "two documents": (b"schema: 1\n---\nschema: 1\n", "not YAML"),
    "not UTF-8": (b"schema: 1\nname: \xff\n", "byte 0xFF"),
    "control character": (b"schema: 1\nname: \x01\n", "character"),
    "too large": (b"#" * (MAX_BYTES + 1), "bytes"),
    "too deep": (b"[" * 5000, "nesting"),
    "deep but closed": (b"[" * 100 + b"]" * 100, "too many"),
    "an alias of itself": (b"x: &a [*a, *a]\n", "too many"),
    "a bomb of aliases": (
        b"a: &a [1, 1, 1, 1, 1, 1, 1, 1]\n"
        + b"".join(
            b"%c: &%c [%s]\n" % (k, k, b", ".join([b"*%c" % (k - 1)] * 8)) for k in range(ord("b"), ord("k"))
        ),
        "too many",
    ),
    "a long number": (b"schema: " + b"9" * 5000, "'9999"),
}


@pytest.mark.parametrize("case", sorted(NOT_EMBODIMENTS))
def test_not_an_embodiment(tmp_path, case):
    content, found = NOT_EMBODIMENTS[case]
    faults = faults_of(tmp_path, content)
    assert any(found in fault.found for fault in faults), [str(fault) for fault in faults]


def test_missing_file(tmp_path):
    with pytest.raises(EmbodimentError, match="No such file"):
        load_embodiment(tmp_path / "robot.yaml")
    with pytest.raises(EmbodimentError, match="no readable file"):
        load_embodiment(tmp_path)


def test_name_must_be_that_of_the_file(tmp_path):
    (fault,) = faults_of(tmp_path, PANDA, "other.yaml")
    assert (fault.field, fault.found, fault.expected) == (
        "name",
        "'franka_panda'",
        "'other', as the file is named",
    )
    assert PANDA.splitlines()[fault.line - 1] == "name: franka_panda"


def test_all_faults_are_reported_at_once(tmp_path):
    text = named(PANDA)
    lines = {}
    for case in (
        "unknown key",
        "wrong type",
        "unknown unit",
        "limits reversed",
        "unknown controller",
        "infinite",
    ):
        old, new, field, _, _ = PANDA_CASES[case]
        text = edited(text, old, new)
        lines[field] = new
    faults = faults_of(tmp_path, text)
    assert {fault.field for fault in faults} == set(lines)
    assert [fault.line for fault in faults] == sorted(fault.line for fault in faults)
    for fault in faults:
        assert lines[fault.field].splitlines()[0].split(":")[0] in text.splitlines()[fault.line - 1]


def test_message_names_file_line_field_found_and_expected(tmp_path):
    path = tmp_path / "robot.yaml"
    path.write_text(edited(named(PANDA), "horizon: 16 ", "horizon: many "))
    with pytest.raises(EmbodimentError) as caught:
        load_embodiment(path)
    line = next(k for k, text in enumerate(path.read_text().splitlines(), 1) if "many" in text)
    assert str(caught.value) == (
        f"{path}: 1 fault\n  line {line}: horizon: found 'many', expected a whole number"
    )


def test_error_survives_pickling(tmp_path):
    with pytest.raises(EmbodimentError) as caught:
        load_embodiment(tmp_path / "robot.yaml")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert copy.faults == caught.value.faults


def test_scalars_are_those_of_yaml_1_2(tmp_path):
    path = tmp_path / "robot.yaml"
    path.write_text(
        edited(named(PANDA), "control_rate: 10.0", "control_rate: 1e1").replace("panda_joint7", "on")
    )
    body = load_embodiment(path)
    assert body.control_rate == 10.0
    assert body.joints[6] == "on"


def test_plain_values_are_checked_in_the_same_way():
    with pytest.raises(EmbodimentError) as caught:
        parse_embodiment({"schema": 1, "horizon": 99})
    fields = {fault.field for fault in caught.value.faults}
    assert {"name", "cameras", "actions", "horizon"} <= fields
