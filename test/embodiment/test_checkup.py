# SPDX-License-Identifier: Apache-2.0
"""Every mismatch between embodiment, checkpoint and URDF has a code, and is found with what to do."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from qwen_vla_ros import resources
from qwen_vla_ros.embodiment import checkup, load_embodiment, parse_embodiment
from qwen_vla_ros.embodiment.checkpoint_facts import (
    CheckpointFacts,
    CheckpointFolderError,
    read_checkpoint_facts,
)
from qwen_vla_ros.embodiment.checkup import Finding, Subject, examine
from qwen_vla_ros.embodiment.urdf import read_urdf

LINK = '<link name="{}"/>'
JOINT = (
    '<joint name="{name}" type="{type}"><parent link="{parent}"/><child link="{child}"/><axis xyz="0 0 1"/>'
    "{limit}</joint>"
)
LIMIT = '<limit lower="{}" upper="{}" velocity="{}" effort="1"/>'
# name, type, parent, child, limit
ARM = (
    ("lift", "prismatic", "base_link", "torso", LIMIT.format(0, 0.5, 0.2)),
    ("shoulder", "revolute", "torso", "upper_arm", LIMIT.format(-2, 2, 3)),
    ("elbow", "revolute", "upper_arm", "forearm", LIMIT.format(0, 2.5, 3)),
    ("wrist", "continuous", "forearm", "hand", '<limit velocity="3" effort="1"/>'),
    ("tool", "fixed", "hand", "tool0", ""),
    ("jaw", "prismatic", "tool0", "left_jaw", LIMIT.format(0, 0.04, 0.2)),
    ("other_jaw", "prismatic", "tool0", "right_jaw", LIMIT.format(0, 0.04, 0.2) + '<mimic joint="jaw"/>'),
)


def urdf_text(joints=ARM):
    links = dict.fromkeys(link for joint in joints for link in joint[2:4])
    body = "".join(LINK.format(link) for link in links)
    keys = ("name", "type", "parent", "child", "limit")
    body += "".join(JOINT.format(**dict(zip(keys, joint, strict=True))) for joint in joints)
    return f'<robot name="arm">{body}</robot>'


@pytest.fixture(scope="module")
def urdf(tmp_path_factory):
    path = tmp_path_factory.mktemp("urdf") / "arm.urdf"
    path.write_text(urdf_text())
    return read_urdf(path)


ROBOT = yaml.safe_load(
    """
schema: 1
name: robot
description: A small arm
prompt: {robot_tag: Robot, arms: single}
control_rate: 10.0
command_rate: 100.0
horizon: 16
execute_steps: 8
cameras: [{view: ego, topic: camera/image_raw, size: [64, 64]}]
state: {joint_states: [joint_states]}
actions:
  - name: arm
    kind: joint_position
    joints: [lift, shoulder, elbow, wrist]
    unit: [m, rad, rad, rad]
    continuous: [wrist]
    reference: absolute
    limits:
      position: [[0.0, 0.5], [-2.0, 2.0], [0.0, 2.5], [-3.0, 3.0]]
      velocity: [0.2, 3.0, 3.0, 3.0]
      acceleration: 5.0
      jerk: 50.0
    controller: {type: joint_trajectory, topic: arm_controller/joint_trajectory}
  - name: gripper
    kind: gripper
    joints: [jaw]
    unit: fraction
    opening: [0.0, 0.04]
    reference: absolute
    limits: {position: [0.0, 1.0], velocity: 4.0, acceleration: 40.0, jerk: 400.0}
    controller: {type: forward_command, topic: gripper_controller/commands}
"""
)
BASE = {
    "name": "base",
    "kind": "base_velocity",
    "frame": "base_link",
    "limits": {
        "linear": {"velocity": 0.3, "acceleration": 1.0, "jerk": 10.0},
        "angular": {"velocity": 1.0, "acceleration": 5.0, "jerk": 50.0},
    },
    "controller": {"type": "diff_drive", "topic": "cmd_vel", "stamped": False},
}
EEF = {
    "name": "eef",
    "kind": "eef_delta",
    "rotation": "rpy",
    "reference": "previous_step",
    "frame": "torso",
    "tip": "forearm",
    "limits": {
        "linear": {"velocity": 0.3, "acceleration": 1.0, "jerk": 10.0},
        "angular": {"velocity": 1.0, "acceleration": 5.0, "jerk": 50.0},
    },
    "ik": {
        "joints": ["shoulder", "elbow"],
        "limits": {"position": [[-2.0, 2.0], [0.0, 2.5]], "velocity": 3.0, "acceleration": 5.0, "jerk": 50.0},
    },
    "controller": {"type": "joint_trajectory", "topic": "arm_controller/joint_trajectory"},
}
CHANNELS = ["arm/lift", "arm/shoulder", "arm/elbow", "arm/wrist", "gripper/jaw"]
ENTRY = {
    "channels": CHANNELS,
    "q01": [0.05, -1.5, 0.2, -2.0, 0.0],
    "q99": [0.45, 1.5, 2.3, 2.0, 1.0],
    "control_rate": 10.0,
    "horizon": 16,
}
FACTS = CheckpointFacts("checkpoint", 32, 16, ("ego", "cam_wrist"), {"robot": ENTRY})


def edited(value, path, new):
    """A copy of nested values with one of them replaced; `None` removes a key."""
    if not path:
        return new
    key, *rest = path
    if isinstance(value, list):
        return [edited(v, rest, new) if k == key else v for k, v in enumerate(value)]
    if new is None and not rest:
        return {k: v for k, v in value.items() if k != key}
    return {**value, key: edited(value.get(key, {}), rest, new)}


def robot(*edits):
    values = ROBOT
    for path, new in edits:
        values = edited(values, path, new)
    return parse_embodiment(values)


def entry(**changes):
    return replace(FACTS, statistics={"robot": {**ENTRY, **changes}})


def listed(values, k, value):
    return [value if i == k else v for i, v in enumerate(values)]


POSITION = ["actions", 0, "limits", "position"]
# code: edits of the embodiment, facts of the checkpoint, field, words of found or expected, of the advice
CASES = {
    "LIMITS_UNIT": (
        [([*POSITION, 1], [-90.0, 90.0])],
        None,
        "actions[0].limits.position[1]",
        "shoulder",
        "degrees",
    ),
    "SPEED_UNIT": (
        [(["actions", 0, "limits", "velocity", 1], 180.0)],
        None,
        "actions[0].limits.velocity[1]",
        "180 rad/s for shoulder",
        "degrees per second, write 3.1416",
    ),
    "WORKSPACE_UNIT": (
        [(["actions", 0], {**EEF, "workspace": [[200.0, 700.0], [-0.5, 0.5], [0.0, 0.4]]})],
        None,
        "actions[0].workspace[0]",
        "[200, 700] m",
        "millimetres, write [0.2, 0.7]",
    ),
    "CHUNK_USED_UP": (
        [(["execute_steps"], 16)],
        None,
        "execute_steps",
        "whole chunk",
        "set execute_steps to 8",
    ),
    "STATE_UNMEASURED": (
        [(["prompt", "state"], True), (["actions", 0], BASE)],
        None,
        "prompt.state",
        "group base",
        "prompt.state to false",
    ),
    "TENSOR_CHANNELS": ([], replace(FACTS, channels=4), "actions", "K = 4", "remove groups"),
    "TENSOR_HORIZON": ([], replace(FACTS, horizon=8), "horizon", "H = 8", "set horizon to 8"),
    "VIEW_UNKNOWN": (
        [(["cameras", 0, "view"], "cam_wirst")],
        FACTS,
        "cameras[0].view",
        "'cam_wirst'",
        "rename it to 'cam_wrist'",
    ),
    "STATISTICS_MISSING": ([], replace(FACTS, statistics={"other": ENTRY}), "name", "other", "fine-tune"),
    "STATISTICS_COUNT": (
        [],
        entry(channels=CHANNELS[:4], q01=[0.0] * 4, q99=[0.4] * 4),
        "actions",
        "the 4 that",
        "groups of the training",
    ),
    "STATISTICS_ORDER": (
        [],
        entry(channels=[*CHANNELS[1::-1], *CHANNELS[2:]]),
        "actions",
        "channel 0 is arm/lift",
        "in the order arm/shoulder, arm/lift",
    ),
    "STATISTICS_NAMES": (
        [],
        entry(channels=[*CHANNELS[:4], "gripper/finger"]),
        "actions",
        "gripper/finger",
        "same joint",
    ),
    "TRAINED_RATE": ([], entry(control_rate=20.0), "control_rate", "20", "set control_rate to 20"),
    "TRAINED_HORIZON": ([], entry(horizon=8), "horizon", "8", "set horizon to 8"),
    "STATISTICS_UNIT": (
        [],
        entry(q99=listed(ENTRY["q99"], 1, 86.0)),
        "actions[0].joints[1]",
        "86",
        "degrees",
    ),
    "STATISTICS_OUTSIDE": (
        [],
        entry(q01=listed(ENTRY["q01"], 2, -2.3), q99=listed(ENTRY["q99"], 2, -0.2)),
        "actions[0].joints[2]",
        "elbow",
        "sign and zero",
    ),
    "STATISTICS_CLAMPED": (
        [],
        entry(q99=listed(ENTRY["q99"], 1, 2.5)),
        "actions[0].joints[1]",
        "-2 to 2",
        "clamp",
    ),
    "STATISTICS_STILL": (
        [],
        entry(q01=listed(ENTRY["q01"], 1, 1.4999)),
        "actions[0].joints[1]",
        "shoulder",
        "leave the joint out",
    ),
    "STATISTICS_SPEED": (
        [(["actions", 0], EEF)],
        entry(
            channels=[f"eef/{c}" for c in ("x", "y", "z", "roll", "pitch", "yaw")] + ["gripper/jaw"],
            q01=[-0.1] * 6 + [0.0],
            q99=[0.05] * 6 + [1.0],
        ),
        "actions[0].limits.linear.velocity",
        "about 1 m/s",
        "lag behind",
    ),
    "URDF_JOINT_UNKNOWN": (
        [(["actions", 0, "joints", 2], "elbow_joint")],
        None,
        "actions[0].joints[2]",
        "'elbow'?",
        "as in the URDF",
    ),
    "URDF_JOINT_MIMIC": (
        [(["actions", 1, "joints", 0], "other_jaw")],
        None,
        "actions[1].joints[0]",
        "'jaw'",
        "'jaw'",
    ),
    "URDF_JOINT_FIXED": (
        [(["actions", 1, "joints", 0], "tool")],
        None,
        "actions[1].joints[0]",
        "fixed",
        "remove it",
    ),
    "URDF_UNIT": (
        [(["actions", 0, "unit", 0], "rad")],
        None,
        "actions[0].unit",
        "prismatic",
        "set the unit to m",
    ),
    "URDF_VIRTUAL": (
        [(["actions", 0, "virtual"], {"elbow": []})],
        None,
        "actions[0].virtual.elbow",
        "only the driver has",
        "remove it",
    ),
    "URDF_VELOCITY": (
        [(["actions", 0, "limits", "velocity", 1], 3.5)],
        None,
        "actions[0].limits.velocity[1]",
        "at most 3",
        "lower the limit",
    ),
    "URDF_CONTINUOUS": (
        [(["actions", 0, "continuous"], [])],
        None,
        "actions[0].limits.position[3]",
        "turns without end",
        "continuous: [wrist]",
    ),
    "URDF_NOT_CONTINUOUS": (
        [(["actions", 0, "continuous"], ["shoulder", "wrist"])],
        None,
        "actions[0].continuous[0]",
        "'shoulder', which is to turn without end",
        "remove it from `continuous`",
    ),
    "URDF_JOINT_HELD": (
        [(["actions", 0], {**EEF, "frame": "base_link"})],
        None,
        "actions[0].ik.joints",
        "no lift, which can move between base_link and forearm",
        "set frame to torso, the link above shoulder, or add lift",
    ),
    "URDF_OPENING": (
        [(["actions", 1, "opening"], [0.01, 0.05])],
        None,
        "actions[1].opening",
        "[0, 0.04]",
        "correct `opening`",
    ),
    "URDF_LIMITS_UNIT": (
        [([*POSITION, 0], [0.0, 500.0])],
        None,
        "actions[0].limits.position[0]",
        "[0, 0.5]",
        "these are millimetres",
    ),
    "URDF_POSITION": (
        [([*POSITION, 2], [-0.1, 2.5])],
        None,
        "actions[0].limits.position[2]",
        "[0, 2.5]",
        "narrow the limits",
    ),
    "URDF_FRAME_UNKNOWN": (
        [(["actions", 0], {**EEF, "tip": "tool_0"})],
        None,
        "actions[0].tip",
        "'tool0'",
        "name of a link",
    ),
    "URDF_TIP_UNMOVED": (
        [(["actions", 0], {**EEF, "tip": "upper_arm"})],
        None,
        "actions[0].ik.joints",
        "elbow, not between",
        "move the tip",
    ),
    "URDF_ORDER": (
        [
            (["actions", 0, "joints"], ["lift", "elbow", "shoulder", "wrist"]),
            (POSITION, [[0.0, 0.5], [0.0, 2.5], [-2.0, 2.0], [-3.0, 3.0]]),
        ],
        None,
        "actions[0].joints",
        "lift, shoulder, elbow, wrist",
        "check that the order",
    ),
}
WARNINGS = {
    "CHUNK_USED_UP",
    "STATISTICS_CLAMPED",
    "STATISTICS_STILL",
    "STATISTICS_SPEED",
    "SPEED_UNIT",
    "WORKSPACE_UNIT",
    "URDF_CONTINUOUS",
    "URDF_JOINT_HELD",
    "URDF_OPENING",
    "URDF_ORDER",
    "URDF_VIRTUAL",
}


def test_every_code_has_a_case_and_a_line_in_the_documentation():
    codes = set(re.findall(r'"([A-Z]+(?:_[A-Z]+)+)"', inspect.getsource(checkup)))
    assert codes == set(CASES)
    page = (Path(__file__).parents[2] / "docs" / "embodiments.md").read_text()
    assert [code for code in sorted(codes) if f"`{code}`" not in page] == []


def test_a_robot_that_fits_has_no_findings(urdf):
    assert examine(Subject(robot(), FACTS, urdf)) == []
    assert examine(Subject(robot((["actions", 0], EEF)), urdf=urdf)) == []


@pytest.mark.parametrize("code", sorted(CASES))
def test_mismatch(code, urdf):
    edits, facts, field, words, advice = CASES[code]
    needs_urdf = code.startswith("URDF")
    findings = examine(Subject(robot(*edits), facts, urdf if needs_urdf else None))
    matching = [finding for finding in findings if finding.code == code]
    assert matching, [str(finding) for finding in findings]
    finding = matching[0]
    assert finding.field == field
    assert words in f"{finding.found} {finding.expected}"
    assert advice in finding.advice
    assert finding.warning is (code in WARNINGS)
    assert str(finding).endswith(f"[{code}]")
    assert f"; {finding.advice}" in str(finding)
    # Nothing else is blamed.
    assert {f.code for f in findings} == {code}


def test_a_camera_that_need_not_be_there_may_be_unknown_to_the_checkpoint(urdf):
    (camera,) = ROBOT["cameras"]
    other = {**camera, "view": "cam_wirst", "topic": "camera/other/image_raw", "required": False}
    body = robot((["cameras"], [camera, other]))
    (finding,) = examine(Subject(body, FACTS, urdf))
    assert (finding.code, finding.warning) == ("VIEW_UNKNOWN", True)


def test_a_joint_that_another_group_moves_is_not_held_by_the_kinematics(urdf):
    held = {**EEF, "frame": "base_link"}
    lift = edited(ROBOT["actions"][0], ["joints"], ["lift"])
    lift = {**lift, "name": "torso", "unit": "m", "continuous": []}
    lift["limits"] = {"position": [0.0, 0.5], "velocity": 0.2, "acceleration": 5.0, "jerk": 50.0}
    lift["controller"] = {"type": "joint_trajectory", "topic": "torso_controller/joint_trajectory"}
    body = robot((["actions"], [held, lift]))
    (finding,) = examine(Subject(body, urdf=urdf))
    assert (finding.code, finding.warning) == ("URDF_JOINT_HELD", False)
    assert "no lift, which another group moves" in finding.found
    # In the axes of the tip itself it makes no difference where the arm as a whole is.
    own = robot((["actions"], [{**held, "frame": "forearm"}, lift]))
    assert examine(Subject(own, urdf=urdf)) == []


def test_joints_between_and_behind_those_of_the_kinematics(urdf):
    only = {"position": [-2.0, 2.0], "velocity": 3.0, "acceleration": 5.0, "jerk": 50.0}
    body = robot((["actions", 0], {**EEF, "ik": {"joints": ["shoulder"], "limits": only}, "tip": "hand"}))
    assert [(f.code, f.advice) for f in examine(Subject(body, urdf=urdf))] == [
        ("URDF_JOINT_HELD", "set tip to upper_arm, or add elbow to ik.joints"),
        ("URDF_JOINT_HELD", "set tip to upper_arm, or add wrist to ik.joints"),
    ]
    apart = edited(EEF, ["ik", "joints"], ["shoulder", "wrist"])
    apart = edited(apart, ["ik", "limits", "position"], [-2.0, 2.0])
    (finding,) = examine(Subject(robot((["actions", 0], {**apart, "tip": "hand"})), urdf=urdf))
    assert (finding.code, finding.advice) == ("URDF_JOINT_HELD", "add elbow to ik.joints")


def test_joints_of_the_kinematics_have_the_unit_of_the_urdf(urdf):
    limits = {"position": [[0.0, 0.5], [-2.0, 2.0], [0.0, 2.5]], "velocity": [0.2, 3.0, 3.0]}
    chain = {
        "joints": ["lift", "shoulder", "elbow"],
        "limits": {**limits, "acceleration": 5.0, "jerk": 50.0},
    }
    eef = {**EEF, "frame": "base_link", "ik": chain}
    assert examine(Subject(robot((["actions", 0], eef)), urdf=urdf)) == []
    wrong = edited(eef, ["ik", "limits", "position", 0], [0.0, 500.0])
    (finding,) = examine(Subject(robot((["actions", 0], wrong)), urdf=urdf))
    assert (finding.code, finding.field) == ("URDF_LIMITS_UNIT", "actions[0].ik.limits.position[0]")
    # `continuous` is no key of these: no advice to write it.
    turning = {**chain, "joints": ["shoulder", "elbow", "wrist"]}
    turning["limits"] = {**turning["limits"], "velocity": 3.0, "position": [[-2.0, 2.0], [0.0, 2.5], [-3, 3]]}
    body = robot((["actions", 0], {**EEF, "tip": "hand", "ik": turning}))
    assert examine(Subject(body, urdf=urdf)) == []


@pytest.mark.parametrize("limit", [(-120, 120), (0, 180)])
def test_limits_of_a_urdf_in_degrees_prove_nothing(tmp_path, limit):
    path = tmp_path / "arm.urdf"
    path.write_text(urdf_text([*ARM[:1], (*ARM[1][:4], LIMIT.format(*limit, 3)), *ARM[2:]]))
    urdf = read_urdf(path)
    (finding,) = examine(Subject(robot(([*POSITION, 1], [-90.0, 90.0])), urdf=urdf))
    assert (finding.code, finding.field) == ("LIMITS_UNIT", "actions[0].limits.position[1]")
    assert examine(Subject(robot(), urdf=urdf)) == []


def test_speeds_in_degrees_or_millimetres():
    slow = {"velocity": 0.3, "acceleration": 1.0, "jerk": 10.0}
    base = {**BASE, "limits": {"linear": {**slow, "velocity": 300.0}, "angular": {**slow, "velocity": 90.0}}}
    eef = {**EEF, "limits": {"linear": {**slow, "velocity": 250.0}, "angular": slow}}
    eef = edited(eef, ["ik", "limits", "velocity"], 180.0)
    found = {f.field: f for f in examine(Subject(robot((["actions"], [eef, base]))))}
    assert {(f.code, f.warning) for f in found.values()} == {("SPEED_UNIT", True)}
    assert {field: f.advice.rpartition(" ")[2] for field, f in found.items()} == {
        "actions[0].ik.limits.velocity": "3.1416",
        "actions[0].limits.linear.velocity": "0.25",
        "actions[1].limits.linear.velocity": "0.3",
        "actions[1].limits.angular.velocity": "1.5708",
    }


def test_a_base_is_as_fast_as_the_statistics_say():
    body = robot((["actions", 0], BASE))
    values = {"channels": ["base/vx", "base/wz", "gripper/jaw"], "q01": [-0.2, -1.5, 0.0]}
    (finding,) = examine(Subject(body, entry(**values, q99=[0.29, 0.9, 1.0])))
    assert (finding.code, finding.field) == ("STATISTICS_SPEED", "actions[0].limits.angular.velocity")
    assert "about 1.5 rad/s" in finding.expected


def test_data_of_a_joint_that_turns_without_end_may_lie_anywhere():
    far = entry(q01=listed(ENTRY["q01"], 3, 4.0), q99=listed(ENTRY["q99"], 3, 6.0))
    assert examine(Subject(robot(), far)) == []
    assert [f.code for f in examine(Subject(robot((["actions", 0, "continuous"], [])), far))] == [
        "STATISTICS_OUTSIDE"
    ]


def test_no_continuous_joint_where_the_yaml_has_no_key_for_it(tmp_path):
    path = tmp_path / "arm.urdf"
    path.write_text(urdf_text([*ARM[:5], (*ARM[5][:1], "continuous", *ARM[5][2:4], ""), ARM[6]]))
    body = robot(
        (["actions", 1, "unit"], "rad"), (["actions", 1, "opening"], None), (["actions", 1, "kind"], "hand")
    )
    assert examine(Subject(body, urdf=read_urdf(path))) == []


def test_errors_come_before_warnings(urdf):
    body = robot((["execute_steps"], 16), ([*POSITION, 2], [-0.1, 2.5]))
    assert [finding.code for finding in examine(Subject(body, urdf=urdf))] == [
        "URDF_POSITION",
        "CHUNK_USED_UP",
    ]


def test_a_check_of_ones_own():
    def no_ego(subject):
        if all(camera.view != "ego" for camera in subject.embodiment.cameras):
            yield Finding("NO_EGO", ("cameras",), "no ego view", "one", "add a camera")

    body = robot((["cameras", 0, "view"], "rear"))
    assert [finding.code for finding in examine(Subject(body), [no_ego])] == ["NO_EGO"]


def test_own_names_of_joints_are_not_errors(urdf):
    body = robot(
        (["state", "joint_names"], {"joint_states": ["lift", "shoulder", "elbow", "wrist", "grip"]}),
        (["actions", 1, "joints", 0], "grip"),
    )
    (finding,) = examine(Subject(body, urdf=urdf))
    assert (finding.code, finding.warning) == ("URDF_JOINT_UNKNOWN", True)


def test_a_joint_like_no_other_may_be_the_driver_s_alone(urdf):
    (finding,) = examine(Subject(robot((["actions", 0, "joints", 0], "extension_xy")), urdf=urdf))
    assert (finding.code, finding.warning) == ("URDF_JOINT_UNKNOWN", False)
    assert finding.advice.endswith("or name it in `virtual` if only the driver has it")


def test_a_urdf_of_chains_only_need_not_have_grippers(urdf):
    body = robot((["actions", 0], EEF), (["actions", 1, "joints", 0], "grip"))
    assert [f.code for f in examine(Subject(body, urdf=urdf))] == ["URDF_JOINT_UNKNOWN"]
    assert examine(Subject(body, urdf=urdf, chains_only=True)) == []
    other = robot((["actions", 0], edited(EEF, ["ik", "joints", 0], "sholder")))
    (finding,) = examine(Subject(other, urdf=urdf, chains_only=True))
    assert (finding.code, finding.field) == ("URDF_JOINT_UNKNOWN", "actions[0].ik.joints[0]")


TELESCOPE = (
    ("outer", "prismatic", "base_link", "sleeve", LIMIT.format(0, 0.3, 0.2)),
    ("inner", "prismatic", "sleeve", "torso", LIMIT.format(0, 0.2, 0.1)),
    *ARM[1:],
)
REACH = (
    (["actions", 0, "joints", 0], "reach"),
    (["actions", 0, "virtual"], {"reach": ["outer", "inner"]}),
    ([*POSITION, 0], [0.0, 0.4]),
)


@pytest.mark.parametrize(
    ("edit", "code", "field", "words"),
    [
        (None, "", "", ""),
        ((["actions", 0, "virtual", "reach"], []), "", "", ""),
        (([*POSITION, 0], [0.0, 0.5]), "URDF_POSITION", "actions[0].limits.position[0]", "[0, 0.4]"),
        (
            (["actions", 0, "limits", "velocity", 0], 0.25),
            "URDF_VELOCITY",
            "actions[0].limits.velocity[0]",
            "at most 0.2",
        ),
        (
            (["actions", 0, "virtual", "reach", 1], "iner"),
            "URDF_JOINT_UNKNOWN",
            "actions[0].virtual.reach[1]",
            "'inner'?",
        ),
        (
            (["actions", 0, "virtual", "reach", 1], "other_jaw"),
            "URDF_POSITION",
            "actions[0].limits.position[0]",
            "[0, 0.08]",
        ),
        (
            (["actions", 0, "virtual", "reach", 1], "tool"),
            "URDF_UNIT",
            "actions[0].virtual.reach[1]",
            "of type fixed",
        ),
    ],
)
def test_a_joint_of_the_driver_is_compared_with_its_parts(tmp_path, edit, code, field, words):
    path = tmp_path / "arm.urdf"
    path.write_text(urdf_text(TELESCOPE))
    findings = examine(Subject(robot(*REACH, *([edit] if edit else [])), urdf=read_urdf(path)))
    found = [(f.code, f.field, f.warning) for f in findings]
    assert found == ([(code, field, False)] if code else [])
    for finding in findings:
        assert words in f"{finding.found} {finding.expected}"


def test_fractions_that_the_robot_counts_itself_are_not_compared(urdf):
    assert examine(Subject(robot((["actions", 1, "opening"], None)), urdf=urdf)) == []


def test_own_normalisation_needs_no_statistics():
    body = robot(
        (["actions", 0, "normalisation"], {"q01": [0.0] * 4, "q99": [0.4] * 4}),
        (["actions", 1, "normalisation"], {"q01": [0.0], "q99": [1.0]}),
    )
    assert examine(Subject(body, replace(FACTS, statistics={}))) == []


def test_facts_of_the_checkpoint_that_comes_along(tmp_path):
    folder = resources.checkpoints_directory() / "qwen_vla_tiny"
    facts = read_checkpoint_facts(folder)
    config = json.loads((folder / "config.json").read_text())["action_expert"]
    assert (facts.channels, facts.horizon) == (config["channels"], config["horizon"])
    assert "ego" in facts.views
    # An export has a manifest in place of config.json.
    for name in ("statistics.json", "tokenizer.json", "processor_config.json"):
        shutil.copyfile(folder / name, tmp_path / name)
    (tmp_path / "onnx.json").write_text(json.dumps({"horizon": facts.horizon, "channels": facts.channels}))
    assert read_checkpoint_facts(tmp_path) == replace(facts, folder=str(tmp_path))
    for name in facts.statistics:
        assert not [f for f in examine(Subject(load_embodiment(name), facts)) if not f.warning]


CONFIG = {"action_expert": {"channels": 32, "horizon": 16}}
FOLDERS = {
    "absent": (None, None, "no such folder"),
    "empty": ({}, None, "config.json: cannot be read"),
    "not JSON": ({"config.json": "{"}, None, "config.json: not JSON"),
    "another model": ({"config.json": "{}"}, None, "no action_expert"),
    "a list": ({"config.json": "[]"}, None, "found list"),
    "no statistics": ({"config.json": json.dumps(CONFIG)}, None, "statistics.json: cannot be read"),
    "no field": (
        {"config.json": json.dumps(CONFIG)},
        {"robot": {**ENTRY, "q99": None}},
        "robot: found no q99",
    ),
    "lengths": ({"config.json": json.dumps(CONFIG)}, {"robot": {**ENTRY, "q99": [1.0]}}, "as many"),
    "text for a number": (
        {"config.json": json.dumps(CONFIG)},
        {"robot": {**ENTRY, "q01": listed(ENTRY["q01"], 0, "a")}},
        "robot: q01: found 'a', expected finite numbers",
    ),
    "nothing for a number": (
        {"config.json": json.dumps(CONFIG)},
        {"robot": {**ENTRY, "q99": listed(ENTRY["q99"], 0, None)}},
        "robot: q99: found nothing",
    ),
    "not a number": (
        {"config.json": json.dumps(CONFIG)},
        {"robot": {**ENTRY, "q99": listed(ENTRY["q99"], 0, float("nan"))}},
        "robot: q99: found nan",
    ),
    "a number without end": (
        {"config.json": json.dumps(CONFIG)},
        {"robot": {**ENTRY, "q01": listed(ENTRY["q01"], 0, 10**400)}},
        "robot: q01: found 1000",
    ),
}


@pytest.mark.parametrize("case", sorted(FOLDERS))
def test_not_a_checkpoint(tmp_path, case):
    files, statistics, message = FOLDERS[case]
    folder = tmp_path / "checkpoint"
    if files is not None:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
    if statistics is not None:
        (folder / "statistics.json").write_text(json.dumps(statistics))
    with pytest.raises(CheckpointFolderError, match=re.escape(message)):
        read_checkpoint_facts(folder)


def test_without_a_tokenizer_views_are_not_judged(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "statistics.json").write_text(json.dumps({"robot": ENTRY}))
    facts = read_checkpoint_facts(tmp_path)
    assert facts.views is None
    assert examine(Subject(robot((["cameras", 0, "view"], "rear")), facts)) == []
