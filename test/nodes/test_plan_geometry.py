# SPDX-License-Identifier: Apache-2.0
"""Where chunks bring a robot: against MuJoCo's kinematics and the executor's own reading of a chunk."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
import pytest

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.motion.follower import Follower
from qwen_vla_ros.nodes.plan_geometry import DescriptionError, RobotModel, colours, make_plan
from qwen_vla_ros.sim import make_world
from qwen_vla_ros.sim.description import urdf_of

pytest.importorskip("pinocchio")

STEP = 0.1


@pytest.mark.parametrize("name", ["franka_panda", "aloha_viperx", "unitree_g1"])
def test_the_description_of_a_simulated_robot_moves_as_mujoco_does(name):
    world = make_world(load_embodiment(name))
    model = RobotModel(urdf_of(world.model, world.body), name)
    assert set(world.embodiment.joints) <= set(model.joints)
    rng = np.random.default_rng(1)
    data = mujoco.MjData(world.model)
    positions = {}
    for joint, part in world.body.joints.items():
        low, high = world.model.joint(part.mujoco).range
        positions[joint] = rng.uniform(low, high)
        data.qpos[world.model.joint(part.mujoco).qposadr[0]] = positions[joint]
    mujoco.mj_kinematics(world.model, data)
    links = [arm.site for arm in world.body.arms]
    poses = model.poses(positions, links)
    for link, pose in zip(links, poses, strict=True):
        np.testing.assert_allclose(pose[:3], data.site(link).xpos, atol=1e-6)
        turned = np.empty(9)
        mujoco.mju_quat2Mat(turned, pose[3:])
        np.testing.assert_allclose(turned, data.site(link).xmat, atol=1e-6)
    # Arms that stand side by side are not joined by a line through the origin of the world.
    assert (model.root in dict(model.bones)) == (name != "aloha_viperx")
    arms = [group for group in world.embodiment.actions if group.kind == "joint_position"]
    for group, pose in zip(arms, poses, strict=True):
        (tip,) = model.tips(group.joints)
        assert np.linalg.norm(model.poses(positions, [tip])[0, :3] - pose[:3]) < 0.15


def variant(tmp_path, name, old, new):
    """A body with another reference."""
    source = Path("embodiments") / f"{name}.yaml"
    root = Path(__file__).resolve().parents[2]
    text = (root / source).read_text()
    assert old in text
    urdf = root / "embodiments/kinematics"
    path = tmp_path / f"{name}.yaml"
    path.write_text(text.replace(old, new).replace("urdf: kinematics", f"urdf: {urdf}"))
    return load_embodiment(path)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("franka_panda", "reference: absolute", "reference: absolute"),
        ("franka_panda", "reference: absolute", "reference: chunk_start"),
        ("franka_panda", "reference: absolute", "reference: previous_step"),
        ("widowx", "reference: previous_step", "reference: previous_step"),
        ("widowx", "reference: previous_step", "reference: chunk_start"),
        ("widowx", "frame: wx250s/base_link", "frame: wx250s/ee_gripper_link"),
        ("tiago_base", "horizon: 8", "horizon: 8"),
    ],
)
def test_rows_mean_what_the_executor_reads_from_them(tmp_path, name, old, new):
    body = variant(tmp_path, name, old, new)
    follower = Follower(body)
    rng = np.random.default_rng(2)
    joints = {name: 0.3 + 0.01 * k for k, name in enumerate(body.joints)}
    joints.update({name: value for name, value in body.home.items() if body.actions[-1].unit != "fraction"})
    pose = np.array([1.0, 2.0, 0.7])
    if body.joints:
        follower.joints.add(0.0, list(joints.values()))
    follower.pose.add(0.0, pose)
    follower.start(0.0)
    step = 1.0 / body.control_rate
    rows = rng.uniform(-0.02, 0.02, (body.horizon, body.layout.count))
    if "absolute" in new and body.joints:
        rows += [joints[joint] for joint in body.joints]
    follower.offer(rows, 0.0, step, 0.0)
    urdf = getattr(getattr(body.actions[0], "ik", None), "urdf", None)
    panda = Path(__file__).resolve().parents[2] / "embodiments/kinematics/franka_panda.urdf"
    model = RobotModel(Path(urdf or panda).read_text(), "test")
    models = {group.name: model for group in body.actions}
    plan = make_plan(body, models, rows, joints, pose, step)
    read = np.array([follower.timeline.sample(step * (k + 1)).position for k in range(1, body.horizon)])
    if plan.base is not None:
        np.testing.assert_allclose(plan.base[1:], read, atol=1e-9)
        return
    group = body.actions[0]
    poses = next(iter(plan.tips.values()))[1:]
    if group.kind == "eef_delta":
        np.testing.assert_allclose(poses[:, :3], read[:, :3], atol=1e-6)
        assert (np.abs((poses[:, 3:] * read[:, 3:7]).sum(axis=1)) > 1 - 1e-9).all()
    else:
        for joint, values in zip(group.joints, read.T, strict=False):
            np.testing.assert_allclose(plan.joints[joint][1:], values, atol=1e-9)
        tip = model.tips(group.joints)
        last = model.poses({joint: values[-1] for joint, values in plan.joints.items()}, tip)[0]
        np.testing.assert_allclose(poses[-1], last)


def test_a_description_that_does_not_fit_is_refused_with_what_is_in_it():
    panda = Path(__file__).resolve().parents[2] / "embodiments/kinematics/franka_panda.urdf"
    model = RobotModel(panda.read_text(), "panda.urdf")
    assert model.absent(["panda_joint1"]) is None
    assert model.absent(["panda_joint1", "elbow"]).startswith(
        "panda.urdf: no joint elbow; there are panda_joint1,"
    )
    assert model.tips(["panda_joint1", "elbow"]) == model.tips(["panda_joint1"])
    with pytest.raises(DescriptionError, match="not a usable URDF"):
        RobotModel("<robot", "broken")


def test_colours_go_from_now_to_later():
    shades = colours(np.linspace(0, 1, 8))
    assert shades.shape == (8, 3)
    assert (np.diff(shades.mean(axis=1)) < 0).all()
