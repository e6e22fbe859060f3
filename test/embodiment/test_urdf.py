# SPDX-License-Identifier: Apache-2.0
"""Reading URDF files, and making an embodiment from one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_vla_ros import resources
from qwen_vla_ros.embodiment import load_embodiment, render_prompt
from qwen_vla_ros.embodiment.checkup import Subject, examine
from qwen_vla_ros.embodiment.skeleton import Plan, View, guess_parts, identifier, skeleton
from qwen_vla_ros.embodiment.urdf import UrdfError, read_urdf

WIDOWX = resources.embodiments_directory() / "kinematics" / "widowx_250s.urdf"


def joint(name, kind, parent, child, limit='<limit lower="-1" upper="1" velocity="2" effort="1"/>', more=""):
    ends = f'<parent link="{parent}"/><child link="{child}"/>'
    return f'<joint name="{name}" type="{kind}">{ends}{limit}{more}</joint>'


def robot(*joints, links=()):
    named = [text.split('"')[0] for whole in joints for text in whole.split('link="')[1:]]
    declared = "".join(f'<link name="{name}"/>' for name in dict.fromkeys([*links, *named]))
    return f'<robot name="r">{declared}{"".join(joints)}</robot>'


def write(tmp_path, text):
    path = tmp_path / "robot.urdf"
    path.write_text(text)
    return path


def test_joints_links_and_chain():
    urdf = read_urdf(WIDOWX)
    names = ["waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate"]
    assert [j.name for j in urdf.joints.values() if j.moves] == names
    tip = urdf.joints["wrist_rotate"].child
    assert [j.name for j in urdf.chain_to(tip) if j.moves] == names
    assert urdf.chain_to(urdf.root) == ()
    shoulder = urdf.joints["shoulder"]
    assert (shoulder.unit, shoulder.mimic) == ("rad", None)
    assert shoulder.lower < 0 < shoulder.upper
    assert shoulder.velocity > 0


def test_what_limits_mean(tmp_path):
    urdf = read_urdf(
        write(
            tmp_path,
            robot(
                joint("a", "revolute", "l0", "l1", '<limit upper="2" velocity="0" effort="1"/>'),
                joint("b", "continuous", "l1", "l2", ""),
                joint("c", "prismatic", "l2", "l3", '<limit lower="0" upper="0" effort="1"/>'),
                joint("d", "revolute", "l3", "l4", more='<mimic joint="a"/>'),
                joint("e", "fixed", "l4", "l5", ""),
                '<transmission name="t"><joint name="a"><hardwareInterface/></joint></transmission>',
            ),
        )
    )
    a, b, c, d, e = urdf.joints.values()
    assert (a.lower, a.upper, a.velocity) == (0.0, 2.0, None)
    assert (b.lower, b.unit, b.moves) == (None, "rad", True)
    assert (c.lower, c.upper, c.unit) == (None, None, "m")
    assert (d.moves, e.moves, e.unit) == (False, False, None)


def test_an_infinite_limit_is_none_and_not_zero(tmp_path):
    limit = '<limit lower="-inf" upper="2" velocity="1" effort="1"/>'
    urdf = read_urdf(write(tmp_path, robot(joint("a", "revolute", "l0", "l1", limit))))
    assert (urdf.joints["a"].lower, urdf.joints["a"].upper) == (None, 2.0)


def test_expanding_xacro_does_not_overwrite_its_source(tmp_path):
    text = BAD["xacro"][0]
    for name, expected in (
        ("arm.urdf", "xacro arm.urdf > arm_expanded.urdf"),
        ("arm.urdf.xacro", "xacro arm.urdf.xacro > arm.urdf"),
        ("arm.xacro", "xacro arm.xacro > arm.urdf"),
    ):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(UrdfError) as caught:
            read_urdf(path)
        assert str(caught.value).endswith(f"expand it: {expected}")


BAD = {
    "not XML": ("<robot", "not XML"),
    "MJCF": ("<mujoco/>", "an MJCF model"),
    "xacro": (
        '<robot xmlns:xacro="http://www.ros.org/wiki/xacro"><xacro:include filename="a"/></robot>',
        "xacro robot.urdf >",
    ),
    "entity": ('<!DOCTYPE r [<!ENTITY a "a">]><robot/>', "entities"),
    "no links": ("<robot/>", "0 root links"),
    "two roots": (robot(joint("a", "fixed", "l0", "l1"), links=("l2",)), "2 root links"),
    "unknown link": (
        '<robot><link name="l0"/>' + joint("a", "fixed", "l0", "l1") + "</robot>",
        "no link 'l1'",
    ),
    "two parents": (robot(joint("a", "fixed", "l0", "l2"), joint("b", "fixed", "l1", "l2")), "two parents"),
    "loop": (robot(joint("a", "fixed", "l0", "l1"), joint("b", "fixed", "l1", "l0")), "0 root links"),
    "twice": (robot(joint("a", "fixed", "l0", "l1"), joint("a", "fixed", "l1", "l2")), "a second time"),
    "type": (robot(joint("a", "hinge", "l0", "l1")), "'hinge'"),
    "no parent": (
        '<robot><link name="l0"/><joint name="a" type="fixed"/></robot>',
        "expected a name, parent",
    ),
    "no number": (
        robot(joint("a", "revolute", "l0", "l1", '<limit lower="low" upper="1"/>')),
        "lower: found 'low'",
    ),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_files_are_refused(tmp_path, case):
    text, message = BAD[case]
    with pytest.raises(UrdfError) as caught:
        read_urdf(write(tmp_path, text))
    assert message in str(caught.value)
    assert "robot.urdf" in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(UrdfError, match="cannot be read"):
        read_urdf(tmp_path / "robot.urdf")


def made(tmp_path, urdf, parts, **plan):
    path = tmp_path / "made.yaml"
    path.write_text(skeleton(urdf, parts, Plan("made", **{"tag": "Made", **plan})))
    return load_embodiment(path)


HUMANOID = robot(
    joint("torso_yaw", "revolute", "base_link", "torso"),
    *(
        text
        for side, short in (("left", "l"), ("right", "r"))
        for text in (
            joint(f"{side}_shoulder", "revolute", "torso", f"{short}1"),
            joint(
                f"{side}_elbow",
                "revolute",
                f"{short}1",
                f"{short}2",
                '<limit lower="0.1" upper="2.1234567"/>',
            ),
            joint(f"{side}_wrist", "continuous", f"{short}2", f"{short}3", ""),
            *(joint(f"{side}_{f}_finger", "revolute", f"{short}3", f"{short}_{f}") for f in "abc"),
            joint(
                f"{side}_d_finger",
                "revolute",
                f"{short}3",
                f"{short}_d",
                more='<mimic joint="left_a_finger"/>',
            ),
            joint(f"{side}_hip", "revolute", "base_link", f"{short}_leg"),
        )
    ),
    joint("neck", "revolute", "torso", "head"),
    joint("front_wheel", "continuous", "base_link", "wheel"),
)


def test_parts_of_a_humanoid_on_wheels(tmp_path):
    urdf = read_urdf(write(tmp_path, HUMANOID))
    parts = guess_parts(urdf)
    found = {part.name: (part.kind, [j.name for j in part.joints]) for part in parts.groups}
    assert found == {
        "left_arm": ("joint_position", ["left_shoulder", "left_elbow", "left_wrist"]),
        "right_arm": ("joint_position", ["right_shoulder", "right_elbow", "right_wrist"]),
        "torso": ("joint_position", ["torso_yaw"]),
        "left_hand": ("hand", ["left_a_finger", "left_b_finger", "left_c_finger"]),
        "right_hand": ("hand", ["right_a_finger", "right_b_finger", "right_c_finger"]),
    }
    assert parts.wheels == ("front_wheel",)
    assert set(parts.left_out) == {"left_hip", "right_hip", "neck"}
    body = made(tmp_path, urdf, parts, base="omni_drive")
    assert examine(Subject(body, urdf=urdf)) == []
    assert "with dual arms, waist, and mobile base." in render_prompt(body, "go").text
    assert body.layout.names[-3:] == ("base/vx", "base/vy", "base/wz")
    assert body.home["left_elbow"] == 0.1
    assert body.actions[0].limits.position[1].tolist() == [0.1, 2.12345]
    assert body.actions[0].continuous == ("left_wrist",)
    text = (tmp_path / "made.yaml").read_text()
    for name in parts.left_out:
        assert name in text


def test_an_arm_with_a_gripper_of_two_fingers(tmp_path):
    urdf = read_urdf(
        write(
            tmp_path,
            robot(
                joint("lift", "prismatic", "base", "l1", '<limit lower="0" upper="0.5" velocity="1"/>'),
                joint("turn", "revolute", "l1", "l2", ""),
                joint("finger_1", "prismatic", "l2", "f1", '<limit lower="0" upper="0.05" velocity="0.1"/>'),
                joint("finger_2", "prismatic", "l2", "f2", '<limit lower="0" upper="0.05" velocity="0.1"/>'),
            ),
        )
    )
    parts = guess_parts(urdf)
    body = made(tmp_path, urdf, parts, views=(View("ego", "a"), View("cam_wrist", "b")))
    assert examine(Subject(body, urdf=urdf)) == []
    assert [group.kind for group in body.actions] == ["joint_position", "gripper"]
    assert body.actions[0].units == ("m", "rad")
    assert body.actions[0].limits.velocity.tolist() == [0.25, 1.0]
    assert parts.left_out == ("finger_2",)
    assert "CHECK: the URDF has no position of turn" in (tmp_path / "made.yaml").read_text()


def chain_of(count, name="joint{}", **more):
    return [
        joint(name.format(k), "revolute", f"link{k - 1}", f"link{k}", **more) for k in range(1, count + 1)
    ]


SLIDE = '<limit lower="0" upper="0.035" velocity="1" effort="1"/>'


def test_a_fork_of_fingers_without_a_name_is_no_pair_of_arms(tmp_path):
    # As in the URDF of AgileX's Piper.
    fingers = [joint(f"joint{k}", "prismatic", "link6", f"link{k}", SLIDE) for k in (7, 8)]
    urdf = read_urdf(write(tmp_path, robot(*chain_of(6), *fingers)))
    parts = guess_parts(urdf)
    found = {part.name: (part.kind, [j.name for j in part.joints]) for part in parts.groups}
    assert found == {
        "arm": ("joint_position", [f"joint{k}" for k in range(1, 7)]),
        "gripper": ("gripper", ["joint7"]),
    }
    assert (parts.arms, parts.left_out) == ("single", ("joint8",))
    assert examine(Subject(made(tmp_path, urdf, parts), urdf=urdf)) == []


def test_two_arms_on_a_torso_are_no_fingers(tmp_path):
    torso = chain_of(2)
    arms = [
        joint(f"{side}{k}", "revolute", f"{side}{k - 1}" if k > 1 else "link2", f"{side}{k}")
        for side in "ab"
        for k in (1, 2)
    ]
    parts = guess_parts(read_urdf(write(tmp_path, robot(*torso, *arms))))
    assert [(part.name, len(part.joints)) for part in parts.groups] == [
        ("arm_1", 2),
        ("arm_2", 2),
        ("torso", 2),
    ]


@pytest.mark.parametrize("name", ["spring1/joint_{}", "handy_j{}", "legolas-{}", "headless_joint_{}"])
def test_the_name_of_the_robot_says_nothing_of_its_joints(tmp_path, name):
    parts = guess_parts(read_urdf(write(tmp_path, robot(*chain_of(6, name)))))
    assert [(part.name, part.kind, len(part.joints)) for part in parts.groups] == [
        ("arm", "joint_position", 6)
    ]


@pytest.mark.parametrize("name", ["finger_{}", "left_hand_joint_{}", "finger{}"])
def test_a_hand_alone_is_one(tmp_path, name):
    parts = guess_parts(read_urdf(write(tmp_path, robot(*chain_of(3, name)))))
    assert [part.kind for part in parts.groups] == ["hand"]


@pytest.mark.parametrize("limit", [(-170, 170), (0, 180)])
def test_limits_in_degrees_are_as_good_as_none(tmp_path, limit):
    degrees = '<limit lower="{}" upper="{}" velocity="2" effort="1"/>'.format(*limit)
    urdf = read_urdf(write(tmp_path, robot(*chain_of(2), joint("odd", "revolute", "link2", "l3", degrees))))
    body = made(tmp_path, urdf, guess_parts(urdf))
    assert body.actions[0].limits.position[2].tolist() == [-3.14159, 3.14159]
    assert "CHECK: the URDF's position of odd looks like degrees" in (tmp_path / "made.yaml").read_text()
    assert examine(Subject(body, urdf=urdf)) == []


@pytest.mark.parametrize("rate", [0.25, 5.0, 29.97, 120.0])
def test_rates_are_written_as_given(tmp_path, rate):
    urdf = read_urdf(WIDOWX)
    body = made(tmp_path, urdf, guess_parts(urdf), control_rate=rate)
    assert (body.control_rate, body.command_rate) == (rate, max(50.0, rate))


def test_a_base_alone(tmp_path):
    urdf = read_urdf(write(tmp_path, robot(joint("left_wheel", "continuous", "base_link", "w", ""))))
    parts = guess_parts(urdf)
    with pytest.raises(ValueError, match="no joint"):
        skeleton(urdf, parts, Plan("made", "Made"))
    body = made(tmp_path, urdf, parts, base="diff_drive")
    assert [group.kind for group in body.actions] == ["base_velocity"]


def test_text_that_yaml_would_misread(tmp_path):
    urdf = read_urdf(WIDOWX)
    for tag in ("Robot: 'one' # two", "true", "12", 'a "b"'):
        assert made(tmp_path, urdf, guess_parts(urdf), tag=tag).prompt.robot_tag == tag


@pytest.mark.parametrize(
    ("text", "name"),
    [("WidowX 250-S", "widowx_250_s"), ("7dof", "robot_7dof"), ("__", "robot"), ("a" * 99, "a" * 64)],
)
def test_identifier(text, name):
    assert identifier(text) == name


NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_./: -]{0,12}", fullmatch=True) | st.sampled_from(
    ["true", "null", "12", "1e3", "a: b", "a - b", "left_arm_joint1", "gripper", "wheel", "Revolute 2", "on"]
)


@settings(deadline=None, max_examples=60)
@given(
    names=st.lists(NAMES, min_size=1, max_size=6, unique=True),
    kinds=st.lists(st.sampled_from(["revolute", "continuous", "prismatic", "fixed"]), min_size=6, max_size=6),
    parents=st.lists(st.integers(0, 5), min_size=6, max_size=6),
    base=st.sampled_from(["none", "diff_drive", "omni_drive"]),
)
def test_whatever_the_joints_are_called(tmp_path_factory, names, kinds, parents, base):
    folder = tmp_path_factory.getbasetemp()
    joints = [
        joint(name, kind, f"link {min(parent, k)}", f"link {k + 1}")
        for k, (name, kind, parent) in enumerate(zip(names, kinds, parents, strict=False))
    ]
    urdf = read_urdf(write(folder, robot(*joints)))
    parts = guess_parts(urdf)
    found = [j.name for part in parts.groups for j in part.joints] + [*parts.wheels, *parts.left_out]
    assert sorted(found) == sorted(j.name for j in urdf.joints.values() if j.moves)
    if not parts.groups and base == "none":
        return
    body = made(folder, urdf, parts, base=base)
    assert body.joints == tuple(j.name for part in parts.groups for j in part.joints)
    assert [str(f) for f in examine(Subject(body, urdf=urdf)) if not f.warning] == []
