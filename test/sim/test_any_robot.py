# SPDX-License-Identifier: Apache-2.0
"""Robots that are simulated from their URDF or MJCF files: what moves, what is refused, what is said."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from qwen_vla_ros.cli import app
from qwen_vla_ros.embodiment import denormalise, list_embodiments, load_embodiment
from qwen_vla_ros.motion.follower import BaseCommand, Follower
from qwen_vla_ros.policy import Observation, PolicyError, load_policy
from qwen_vla_ros.policy.scripted import APPROACH_SHARE, TURN
from qwen_vla_ros.sim import SimulationError, World, make_world
from qwen_vla_ros.sim.controllers import ControllerError, SlidingDriveController

BODIES = [load_embodiment(name) for name in list_embodiments()]
MODELLED = {body.name: body for body in BODIES if body.simulation and body.simulation.body is None}


def world_of(body) -> World:
    try:
        return make_world(body)
    except SimulationError as error:
        if "pip install" not in str(error):
            raise
        pytest.skip(str(error))


@dataclasses.dataclass
class Run:
    """What a robot did: set-points as they were due, and what was measured then. Shape (steps, joints)."""

    wanted: np.ndarray
    measured: np.ndarray
    poses: np.ndarray


def scripted_chunk(policies, body, stamp) -> np.ndarray:
    """Rows in which one channel of every policy moves; each alone would move one after the other."""
    images = {camera.view: np.zeros((4, 4, 3), np.uint8) for camera in body.cameras}
    rows = None
    for (column, name), policy in policies.items():
        chunk = denormalise(policy.infer(Observation(images, name, stamp)), policy.statistics)
        rows = chunk.copy() if rows is None else rows
        rows[:, column] = chunk[:, column]
    return rows


def perform(world: World, names: dict[int, str], duration: float) -> Run:
    """The scripted policy moves a world through the executor's motion, as its nodes do, without ROS."""
    body = world.embodiment
    policies = {item: load_policy(backend="scripted") for item in names.items()}
    for policy in policies.values():
        policy.configure(body)
    follower = Follower(body)
    world.reset("free", 0)
    drives = {
        group.name: SlidingDriveController(
            (group.limits.linear.velocity, group.limits.linear.acceleration),
            (group.limits.angular.velocity, group.limits.angular.acceleration),
            group.controller.type == "omni_drive",
        )
        for group in body.actions
        if group.kind in ("waypoint", "base_velocity")
    }
    order = [world.joint_names.index(joint) for joint in body.joints]
    groups = {group.name: group for group in body.actions}
    targets = dict(zip(world.joint_names, world.joint_positions, strict=True))
    begin = due = world.time
    rows = []
    while world.time < begin + duration:
        now = world.time
        follower.joints.add(now, world.joint_positions[order])
        follower.pose.add(now, world.base_pose)
        if now == begin:
            follower.start(now)
        if now >= due - 1e-9:
            chunk = scripted_chunk(policies, body, now)
            follower.offer(chunk, now, 1.0 / body.control_rate, now)
            due = now + body.execute_steps / body.control_rate
        for command in follower.step(now):
            if isinstance(command, BaseCommand):
                ahead, *aside, turn = command.velocity
                drive = drives[command.group]
                drive.accept((ahead, aside[0] if aside else 0.0, turn), now)
                ahead, side, turn = drive.sample(now + follower.period)
                world.set_base_velocity(ahead, turn, side)
            else:
                joints = groups[command.group].joints
                targets |= dict(zip(joints, command.position.tolist(), strict=True))
        world.set_joint_targets(targets)
        world.step(follower.period)
        wanted = [targets[joint] for joint in world.joint_names]
        rows.append((wanted, world.joint_positions, world.base_pose))
    return Run(*(np.array(part) for part in zip(*rows, strict=True)))


@pytest.mark.parametrize("name", MODELLED)
def test_the_scripted_policy_moves_every_group_of_every_modelled_robot(name):
    body = MODELLED[name]
    names = {}
    for group in body.actions:
        part = body.layout.slice_of(group.name)
        names[part.start] = group.name
    share = 0.45 if any(getattr(group, "threshold", None) is not None for group in body.actions) else 0.3
    with world_of(body) as world:
        assert set(world.joint_names) == set(body.joints)
        run = perform(world, names, share * TURN)
        swing = np.ptp(run.measured, axis=0)
        for group in body.actions:
            if group.kind in ("waypoint", "base_velocity"):
                assert 0.015 < np.ptp(run.poses[:, 0]) < 0.15
                continue
            mine = [world.joint_names.index(joint) for joint in group.joints]
            assert swing[mine].max() > 0.005, (group.name, swing[mine])
            if group.kind != "eef_delta":
                assert swing[mine[0]] == swing[mine].max()
                assert (swing[mine[1:]] < 5e-3).all(), (group.name, swing[mine])
        # A set-point is reached a few hundredths of a second late.
        if len(swing):
            speed = np.abs(np.diff(run.wanted, axis=0)).max(axis=0) * body.command_rate
            error = np.abs(run.measured - run.wanted).max(axis=0)
            assert (error <= 0.055 * speed + 2e-3).all(), error / np.maximum(speed, 1e-9)


# A robot with everything that a URDF may hold and MuJoCo does not take.
STRANGE = """<?xml version="1.0"?>
<robot name="strange">
  <link name="base">
    <visual><geometry><mesh filename="package://strange_description/meshes/base.stl"/></geometry></visual>
  </link>
  <link name="upper">
    <visual><geometry><mesh filename="meshes/upper.dae"/></geometry></visual>
    <collision><geometry><mesh filename="meshes/text.stl"/></geometry></collision>
    <inertial><mass value="0"/><inertia ixx="0" iyy="0" izz="0" ixy="0" ixz="0" iyz="0"/></inertial>
  </link>
  <link name="lower">
    <visual><geometry><box size="0.3 0.05 0.05"/></geometry></visual>
    <collision><geometry><mesh filename="package://strange/meshes/flat.obj"/></geometry></collision>
    <inertial><mass value="1"/><inertia ixx="1" iyy="0.001" izz="0.001" ixy="0" ixz="0" iyz="0"/></inertial>
  </link>
  <link name="left"/><link name="right"/><link name="eye"/><link name="toy"/>
  <joint name="turn" type="continuous">
    <parent link="base"/><child link="upper"/><origin xyz="0 0 0.2"/><axis xyz="0 0 1"/>
  </joint>
  <joint name="bend" type="revolute">
    <parent link="upper"/><child link="lower"/><origin xyz="0.3 0 0"/><axis xyz="0 1 0"/>
    <limit lower="-1" upper="1" effort="0" velocity="1"/><dynamics friction="50" damping="100"/>
  </joint>
  <joint name="grip" type="prismatic">
    <parent link="lower"/><child link="left"/><origin xyz="0.2 0 0"/><axis xyz="0 1 0"/>
    <limit lower="0" upper="0.04" effort="1" velocity="1"/>
  </joint>
  <joint name="other" type="prismatic">
    <parent link="lower"/><child link="right"/><origin xyz="0.2 0 0"/><axis xyz="0 -1 0"/>
    <limit lower="0" upper="0.04" effort="1" velocity="1"/><mimic joint="grip"/>
  </joint>
  <joint name="look" type="fixed"><parent link="lower"/><child link="eye"/></joint>
  <joint name="spare" type="revolute">
    <parent link="base"/><child link="toy"/><limit lower="-1" upper="1" effort="0" velocity="1"/>
  </joint>
  <transmission name="t"><joint name="turn"/></transmission>
</robot>
"""
EMBODIMENT = """schema: 1
name: strange
description: for a test
prompt: {robot_tag: Strange, arms: single}
control_rate: 10.0
command_rate: 50.0
horizon: 8
execute_steps: 4
cameras:
  - {view: ego, topic: ego, size: [64, 48]}
  - {view: cam_wrist, topic: wrist, size: [64, 48]}
state: {joint_states: [joint_states]}
actions:
  - name: arm
    kind: joint_position
    joints: [turn, bend]
    unit: rad
    reference: absolute
    continuous: [turn]
    limits: {position: [-0.9, 0.9], velocity: 1.0, acceleration: 5.0, jerk: 50.0}
    controller: {type: joint_trajectory, topic: arm}
  - name: gripper
    kind: gripper
    joints: [grip]
    unit: m
    reference: absolute
    limits: {position: [0.0, 0.04], velocity: 0.1, acceleration: 1.0, jerk: 10.0}
    controller: {type: forward_command, topic: gripper}
home: {turn: 0.2, bend: 0.3, grip: 0.01}
"""


@pytest.fixture
def strange(tmp_path):
    """Folder of a URDF and its embodiment."""
    meshes = tmp_path / "meshes"
    meshes.mkdir()
    (meshes / "upper.dae").write_text("<COLLADA/>")
    (meshes / "text.stl").write_text("solid text\nendsolid text\n")
    (meshes / "flat.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    (tmp_path / "strange.urdf").write_text(STRANGE)
    (tmp_path / "strange.yaml").write_text(EMBODIMENT)
    return tmp_path


def test_what_of_a_urdf_cannot_be_used_is_said_and_the_robot_moves(strange):
    body = load_embodiment(strange / "strange.yaml")
    with make_world(body, model=strange / "strange.urdf") as world:
        notes = "\n".join(world.body.notes)
        for text in (
            "not found: package://strange_description/meshes/base.stl",
            "does not read (.dae; convert to .stl or .obj): upper.dae",
            "no binary STL (convert it): text.stl",
            "flat.obj",
            "rigid: spare",
            "links have no mass: guessed",
        ):
            assert text in notes, notes
        run = perform(world, {1: "bend", 2: "grip"}, 0.3 * TURN)
        assert np.ptp(run.measured, axis=0)[1:] == pytest.approx([0.15, 0.0196], rel=0.1)
        # A link whose meshes are all left out is drawn as a rod and a joint, one without shapes is not.
        assert [world.model.body(link).geomnum[0] for link in ("upper", "lower", "eye")] == [2, 1, 0]
        # The finger that mimics the other follows it.
        assert world.data.joint("other").qpos == pytest.approx(world.data.joint("grip").qpos, abs=1e-3)
        assert world.body.urdf == STRANGE
        assert world.outcome().success is False
        world.reset("free", 3)
        assert world.joint_positions == pytest.approx([0.2, 0.3, 0.01], abs=1e-6)
        pictures = [world.render(view) for view in ("ego", "cam_wrist")]
        assert [picture.shape for picture in pictures] == [(48, 64, 3)] * 2
        assert pictures[0].std() > 10


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ("<robot", "<robots", "not XML"),
        (STRANGE, "<sdf/>", r"found <sdf>, expected URDF \(<robot>\) or MJCF"),
        ('name="bend"', 'name="bent"', "has no joint 'bend', expected 'bent'"),
        ('<child link="eye"/>', '<child link="ear"/>', "no link 'ear'"),
        (STRANGE, "<mujoco><worldbody><wrong/></worldbody></mujoco>", "MuJoCo refuses it"),
    ],
)
def test_a_broken_model_is_named(strange, before, after, text):
    path = strange / "strange.urdf"
    path.write_text(STRANGE.replace(before, after))
    with pytest.raises(SimulationError, match=text) as error:
        make_world(load_embodiment(strange / "strange.yaml"), model=path)
    assert "strange.urdf" in str(error.value)


def test_what_is_missing_is_named_with_what_to_do(strange):
    path = strange / "strange.yaml"
    with pytest.raises(SimulationError, match=r"gone\.urdf: cannot be read"):
        make_world(load_embodiment(path), model=strange / "gone.urdf")
    with pytest.raises(SimulationError, match="give a `model`"):
        make_world(load_embodiment(path))
    path.write_text(EMBODIMENT + "simulation: {model: nowhere/robot.xml, package: nowhere-robots==1.0}\n")
    with pytest.raises(SimulationError, match=r"pip install --no-deps nowhere-robots==1\.0"):
        make_world(load_embodiment(path))
    camera = "{position: [0, 0, 1], target: [0, 0, 0], link: hand}"
    path.write_text(EMBODIMENT + f"simulation: {{model: strange.urdf, cameras: {{ego: {camera}}}}}\n")
    with pytest.raises(SimulationError, match=r"simulation\.cameras\.ego\.link: found 'hand'"):
        make_world(load_embodiment(path))
    with pytest.raises(SimulationError, match="'easy' alone"):
        make_world(load_embodiment(path), "full")


def test_a_camera_stands_where_the_file_says(strange):
    path = strange / "strange.yaml"
    camera = "{position: [0.0, 0.0, 2.0], target: [0.0, 0.0, 0.0], fov: 30}"
    path.write_text(EMBODIMENT + f"simulation: {{model: strange.urdf, cameras: {{ego: {camera}}}}}\n")
    with make_world(load_embodiment(path)) as world:
        world.reset("free", 0)
        pixels, ahead = world.project("ego", np.array([[0.0, 0.0, 0.0], [0.3, 0.0, 0.0]]))
        assert ahead.all()
        # Straight down, x up in the picture.
        assert pixels == pytest.approx(
            np.array([[32.0, 24.0], [32.0, 24.0 - 0.15 * 24 / np.tan(np.deg2rad(15))]])
        )


def test_a_mjcf_loses_its_actuators_and_keeps_its_couplings(strange):
    (strange / "strange.xml").write_text(
        """<mujoco><worldbody><geom type="plane" size="1 1 1"/><body name="a"><freejoint/>
        <geom size="0.05"/><body name="b"><joint name="turn" axis="0 0 1"/><geom size="0.05"/>
        <body name="c" pos="0.2 0 0"><joint name="bend" axis="0 1 0"/><geom size="0.05" pos="0.1 0 0"/>
        <body name="l"><joint name="grip" type="slide" axis="0 1 0" range="0 0.04"/><geom size="0.01"/></body>
        <body name="r"><joint name="copy" type="slide" axis="0 -1 0"/><geom size="0.01"/></body>
        <body name="s"><joint name="spare"/><geom size="0.01"/></body></body></body></body></worldbody>
        <equality><joint joint1="copy" joint2="grip"/></equality>
        <actuator><motor joint="bend"/></actuator><keyframe><key/></keyframe></mujoco>"""
    )
    with make_world(load_embodiment(strange / "strange.yaml"), model=strange / "strange.xml") as world:
        notes = "\n".join(world.body.notes)
        for text in ("1 actuators replaced", "rigid: spare", "base is fixed"):
            assert text in notes
        run = perform(world, {1: "bend", 2: "grip"}, 0.3 * TURN)
        assert np.ptp(run.measured, axis=0)[1:] == pytest.approx([0.15, 0.0196], rel=0.1)
        assert world.data.joint("copy").qpos == pytest.approx(world.data.joint("grip").qpos, abs=2e-3)


def test_the_tutorial_leads_from_a_urdf_to_motion(tmp_path, monkeypatch):
    """The commands and pieces of YAML of docs/new_robot.md; `qwen-vla run` is tested with the nodes."""
    monkeypatch.chdir(tmp_path)
    root = Path(__file__).parents[2]
    page = (root / "docs/new_robot.md").read_text()
    shutil.copy(root / "embodiments/kinematics/widowx_250s.urdf", "robot.urdf")
    command = re.search(r"\$ qwen-vla (embodiment new .*)", page).group(1)
    assert CliRunner().invoke(app, shlex.split(command)).exit_code == 0
    group, home, simulation = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    path = Path("my_arm.yaml")
    text = path.read_text().replace("\nhome:", f"{group}\nhome:")
    path.write_text(text + home + simulation)
    command = re.search(r"\$ qwen-vla (embodiment validate .*)", page).group(1)
    assert CliRunner().invoke(app, shlex.split(command)).exit_code == 0
    with make_world("my_arm.yaml") as world:
        said = " ".join(world.body.notes)
        for note in re.findall(r"^model: (.*)$", page, re.MULTILINE):
            assert note in said or "camera ego" in note
        run = perform(world, {2: "elbow"}, 0.3 * TURN)
        assert np.ptp(run.measured, axis=0)[2] == pytest.approx(0.15, rel=0.1)
        assert world.render("ego").std() > 10


def test_the_scripted_policy_needs_a_home_and_stays_within_the_limits():
    body = load_embodiment("so101")
    policy = load_policy(backend="scripted")
    policy.configure(body)
    images = {camera.view: np.zeros((4, 4, 3), np.uint8) for camera in body.cameras}
    limits = np.concatenate([group.limits.position for group in body.actions])
    home = np.array([body.home[joint] for joint in body.joints])
    seen = []
    for second in np.arange(0.0, TURN * len(home), 0.25):
        chunk = policy.infer(Observation(images, "move", 100.0 + second))
        assert np.abs(chunk).max() <= 1.0
        rows = denormalise(chunk, policy.statistics)
        assert ((rows >= limits[:, 0]) & (rows <= limits[:, 1])).all()
        # One at a time; a chunk may hold the end of one turn and the begin of the next.
        moving = np.flatnonzero(np.abs(rows[0] - home) > 1e-6)
        assert len(moving) <= 1
        seen += moving.tolist()
    assert list(dict.fromkeys(seen)) == list(range(len(home)))
    with pytest.raises(PolicyError, match=r"home: found no arm/shoulder_pan"):
        policy.configure(body.model_copy(update={"home": {}}))


def test_the_scripted_policy_goes_home_gently_first():
    body = load_embodiment("so101")
    policy = load_policy(backend="scripted")
    policy.configure(body)
    images = {camera.view: np.zeros((4, 4, 3), np.uint8) for camera in body.cameras}
    group = body.actions[0]
    home = np.array([body.home[joint] for joint in body.joints])
    away = home.copy()
    away[0] += 0.8
    step, path = 1.0 / body.control_rate, [away]
    while np.abs(path[-1][: len(group.joints)] - home[: len(group.joints)]).max() > 1e-3:
        now = 100.0 + step * (len(path) - 1)
        chunk = policy.infer(Observation(images, "move", now, path[-1]))
        assert np.abs(chunk).max() <= 1.0
        path.append(denormalise(chunk, policy.statistics)[0])
        assert len(path) < 60 / step
    speed = np.abs(np.diff([row[0] for row in path])) / step
    assert 0.5 * APPROACH_SHARE < speed.max() / group.limits.velocity[0] < 1.05 * APPROACH_SHARE
    # At home it begins to move one joint about it.
    later = policy.infer(Observation(images, "move", now + 0.4 * TURN, path[-1]))
    assert np.abs(denormalise(later, policy.statistics)[0] - home).max() > 0.02


def test_a_sliding_base_is_limited_and_stops_without_commands():
    drive = SlidingDriveController((0.5, 1.0), (1.0, 2.0), aside=True)
    drive.accept((2.0, -2.0, 0.5), now=0.0)
    assert drive.sample(0.0) == (0.0, 0.0, 0.0)
    assert drive.sample(0.25) == pytest.approx((0.25, -0.25, 0.5))
    assert drive.sample(0.5) == pytest.approx((0.5, -0.5, 0.5))
    assert drive.sample(1.1) == pytest.approx((0.0, 0.0, 0.0))
    with pytest.raises(ControllerError, match="not finite"):
        drive.accept((np.nan, 0.0, 0.0), now=1.0)
    drive.update_odometry(np.array([1.0, 2.0, np.pi / 2]), 1.0)
    drive.update_odometry(np.array([1.0, 2.1, np.pi / 2]), 1.1)
    assert drive.twist == pytest.approx([1.0, 0.0, 0.0])
    ahead = SlidingDriveController((0.5, 1.0), (1.0, 2.0), aside=False)
    ahead.accept((0.0, 0.5, 0.0), now=0.0)
    ahead.sample(0.0)
    assert ahead.sample(0.5) == pytest.approx((0.0, 0.0, 0.0))
