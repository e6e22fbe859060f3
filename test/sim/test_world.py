# SPDX-License-Identifier: Apache-2.0
"""Bodies, scenes, judgement and pictures of the simulated worlds."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.sim import SimulationError, make_world
from qwen_vla_ros.sim.assets import model_path
from qwen_vla_ros.sim.bodies import BODIES, get_body
from qwen_vla_ros.sim.experts import expert_target
from qwen_vla_ros.sim.scene import COLOURS

ALL = tuple(BODIES)
ARMS = ("panda", "aloha", "g1")


def at(world, goal):
    """Put the robot where a goal is reached."""
    if world.body.base is None:
        world.teleport(joints=dict(zip(world.body.channels, expert_target(world, goal), strict=True)))
        return
    x, y, _ = world.task.point(world, goal)
    share = 1 - world.task.standoff / np.hypot(x, y)
    world.teleport(base_pose=(share * x, share * y, np.arctan2(y, x)))


@pytest.mark.parametrize("body", ALL)
def test_the_same_seed_gives_the_same_episode(world_of, follow, body):
    world = world_of(body)

    def run(seed):
        episode = world.reset(world.tasks[0], seed)
        world.step(0.2)
        scene = {name: (*position, colour) for name, (position, colour) in world.objects.items()}
        return episode, world.goal, scene, world.qpos, world.render("ego")

    first, other, again = run(3), run(4), run(3)
    assert first[:3] == again[:3]
    assert (first[3] == again[3]).all()
    assert (first[4] == again[4]).all()
    assert first[2] != other[2]
    assert (first[4] != other[4]).any()


@pytest.mark.parametrize("body", ALL)
def test_objects_differ_in_colour_and_every_goal_names_its_own(world_of, body):
    world = world_of(body)
    for seed in range(5):
        world.reset(world.tasks[0], seed)
        colours = [colour for _, colour in world.objects.values()]
        assert len(set(colours)) == 3
        for goal in world.goals():
            assert world.objects[goal.target][1] == goal.colour
            assert f" {goal.colour} " in goal.instruction
            assert goal.arm is None or f" {goal.arm} " in goal.instruction
        assert {goal.target for goal in world.goals()} == set(world.objects)


@pytest.mark.parametrize("body", ALL)
def test_time_goes_on_over_a_reset(world_of, body):
    world = world_of(body)
    world.reset(world.tasks[0], 0)
    before = world.time
    world.step(0.1)
    assert world.time == pytest.approx(before + 0.1)
    world.reset(world.tasks[0], 1)
    assert world.time == pytest.approx(before + 0.1)


def test_short_steps_add_up(world_of):
    world = world_of("panda")
    world.reset("reach", 0)
    before = world.time
    for _ in range(100):
        world.step(0.0007)
    assert world.time == pytest.approx(before + 0.07, abs=0.002)


@pytest.mark.parametrize("body", ALL)
def test_standing_still_is_no_success(world_of, body):
    world = world_of(body)
    world.reset(world.tasks[0], 0)
    world.step(0.5)
    outcome = world.outcome()
    assert not outcome.success
    assert outcome.distance > world.task.tolerance


@pytest.mark.parametrize("body", ALL)
def test_a_goal_must_be_held(world_of, body):
    world = world_of(body)
    world.reset(world.tasks[0], 0)
    at(world, world.goal)
    assert world.outcome().distance < 0.01
    world.step(0.2)
    assert not world.outcome().success
    world.step(0.2)
    assert world.outcome().success


@pytest.mark.parametrize("body", ALL)
def test_the_wrong_object_is_no_success(world_of, body):
    world = world_of(body)
    for seed in range(3):
        world.reset(world.tasks[0], seed)
        other = next(goal for goal in world.goals() if goal.target != world.goal.target)
        at(world, other)
        world.step(0.6)
        outcome = world.outcome()
        assert not outcome.success
        assert f"at the {other.colour} object instead" in outcome.detail


def test_the_wrong_arm_is_no_success(world_of):
    world = world_of("aloha")
    world.reset("reach_with_arm", 0)
    left, right = (
        next(goal for goal in world.goals() if goal.arm == arm and goal.target == "object_0")
        for arm in ("left", "right")
    )
    world.goal = left
    at(world, right)
    world.step(0.6)
    assert not world.outcome().success
    assert "the right arm is there instead" in world.outcome().detail
    world.goal = right
    assert not world.outcome().success
    world.step(0.4)
    assert world.outcome().success


def test_driving_past_a_pillar_is_no_success(world_of):
    world = world_of("tiago")
    world.reset("drive", 0)
    at(world, world.goal)
    assert world.task.near(world, world.goal)
    x, y, yaw = world.base_pose
    world.teleport(base_pose=(x, y, yaw + np.pi))
    assert not world.task.near(world, world.goal)
    at(world, world.goal)
    world.set_base_velocity(-0.4, 0.0)
    world.step(0.3)
    assert not world.task.near(world, world.goal)


def test_what_is_out_of_reach_cannot_be_asked_for(world_of):
    world = world_of("g1")
    world.reset("touch", 0)
    colour = world.objects["object_0"][1]
    world.place("object_0", (1.2, 0.0, 0.9), colour)
    world.teleport(joints=world.home)
    assert {goal.target for goal in world.goals()} == {"object_1", "object_2"}
    world.reset("touch", 0)
    assert {goal.target for goal in world.goals()} == set(world.objects)


def blob(image, colour):
    """Centroid (column, row) and count of the pixels of a colour."""
    pixels = image.astype(float)
    reference = np.array(COLOURS[colour])
    cosine = pixels @ reference / (np.linalg.norm(pixels, axis=2) * np.linalg.norm(reference) + 1e-9)
    rows, columns = np.nonzero(cosine > 0.975)
    assert len(rows), f"nothing {colour} in the picture"
    return np.array([columns.mean() + 0.5, rows.mean() + 0.5]), len(rows)


@pytest.mark.parametrize("body", ALL)
def test_objects_are_drawn_where_they_project_to(world_of, body):
    world = world_of(body)
    middle = np.array([0.0, 0.0, 0.45 if body == "tiago" else 0.0])
    for seed in range(4):
        world.reset(world.tasks[0], seed)
        image = world.render("ego")
        assert image.shape == (128, 128, 3)
        assert image.dtype == np.uint8
        for position, colour in world.objects.values():
            pixels, in_front = world.project("ego", (position + middle)[None])
            centre, count = blob(image, colour)
            assert in_front.all()
            assert count >= 25
            assert np.abs(pixels[0] - centre).max() < 4.0


@pytest.mark.parametrize("body", ["panda", "tiago"])
def test_depth_is_that_of_what_is_drawn(world_of, body):
    world = world_of(body)
    world.reset(world.tasks[0], 0)
    image, depth = world.render("ego"), world.depth("ego")
    assert (depth.shape, depth.dtype) == (image.shape[:2], np.float32)
    camera = world.data.camera("ego")
    middle = np.array([0.0, 0.0, 0.45 if body == "tiago" else 0.0])
    for position, colour in world.objects.values():
        (column, row), _ = blob(image, colour)
        away = -(camera.xmat.reshape(3, 3).T @ (position + middle - camera.xpos))[2]
        # Its surface is nearer than its middle, by its size at most.
        assert -0.15 < depth[int(row), int(column)] - away < 0.05
    # Above the horizon there is nothing.
    assert np.isnan(depth[0]).any() == (body == "tiago")
    np.testing.assert_array_equal(world.render("ego"), image)


def test_points_behind_a_camera_are_not_in_front(world_of):
    world = world_of("tiago")
    world.reset("drive", 0)
    pixels, in_front = world.project("ego", np.array([[-2.0, 0.0, 0.5], [2.0, 0.0, 0.5]]))
    assert in_front.tolist() == [False, True]
    assert np.isnan(pixels[0]).all()


@pytest.mark.parametrize("body", ["panda", "g1"])
def test_a_recorded_state_is_drawn_as_it_was(world_of, body):
    world = world_of(body)
    world.reset(world.tasks[0], 0)
    before, picture = world.qpos, world.render("ego")
    at(world, world.goal)
    assert (world.render("ego") != picture).any()
    assert (world.render_state(before, "ego") == picture).all()
    assert world.render_state(before, "spectator", 160, 120).shape == (120, 160, 3)


def test_another_thread_may_not_draw(world_of):
    world = world_of("panda")
    world.reset("reach", 0)
    world.render("ego")
    caught = []

    def draw():
        try:
            world.render("ego")
        except SimulationError as error:
            caught.append(str(error))

    thread = threading.Thread(target=draw)
    thread.start()
    thread.join()
    assert "one thread" in caught[0]


@pytest.mark.parametrize("body", ARMS)
def test_servos_reach_their_targets_and_hold_against_gravity(world_of, body):
    world = world_of(body)
    world.reset(world.tasks[0], 0)
    target = dict(zip(world.body.channels, expert_target(world, world.goal), strict=True))
    world.set_joint_targets(target)
    world.step(3.0)
    measured = dict(zip(world.joint_names, world.joint_positions, strict=True))
    assert measured == pytest.approx(target, abs=0.01)
    assert np.abs(world.joint_velocities).max() < 0.01


@pytest.mark.parametrize(("v", "w"), [(0.4, 0.0), (0.0, 0.6), (0.3, -0.4)])
def test_the_base_drives_on_its_wheels(world_of, v, w):
    world = world_of("tiago")
    world.reset("drive", 0)
    world.set_base_velocity(v, w)
    world.step(0.5)
    x, y, yaw = world.base_pose
    world.step(1.0)
    assert world.base_velocity == pytest.approx([v, w], abs=0.01)
    moved = np.hypot(world.base_pose[0] - x, world.base_pose[1] - y)
    chord = abs(v) * np.sinc(w / (2 * np.pi))
    assert moved == pytest.approx(chord, abs=0.01)
    assert world.base_pose[2] - yaw == pytest.approx(w, abs=0.01)
    assert dict(zip(world.joint_names, world.joint_velocities, strict=True)) == pytest.approx(
        {"wheel_left_joint": (v - w * 0.2022) / 0.0985, "wheel_right_joint": (v + w * 0.2022) / 0.0985},
        abs=0.1,
    )


@pytest.mark.parametrize("body", ALL)
def test_the_embodiment_agrees_with_its_body(body):
    embodiment = load_embodiment(get_body(body).embodiment)
    assert embodiment.simulation.body == body
    assert len(get_body(body).channels) == embodiment.layout.count


def test_an_embodiment_that_does_not_fit_its_body_is_refused():
    embodiment = load_embodiment("franka_panda")
    arm, gripper = embodiment.actions
    swapped = embodiment.model_copy(update={"actions": (gripper, arm)})
    with pytest.raises(SimulationError, match="has the action joints"):
        make_world(swapped)
    camera = embodiment.cameras[0].model_copy(update={"view": "cam_left_wrist"})
    with pytest.raises(SimulationError, match="no view 'cam_left_wrist'"):
        make_world(embodiment.model_copy(update={"cameras": (camera,)}))
    with pytest.raises(SimulationError, match="no simulated body"):
        make_world(embodiment.model_copy(update={"simulation": None}))
    simulation = embodiment.simulation.model_copy(update={"body": "spot"})
    with pytest.raises(SimulationError, match="no simulated body 'spot'; there are panda"):
        make_world(embodiment.model_copy(update={"simulation": simulation}))


def test_a_missing_model_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SimulationError, match=r"pip install gym-aloha==0\.1\.5"):
        model_path("aloha")


def test_no_display_and_no_headless_renderer_is_an_error_and_not_a_crash():
    script = (
        "import mujoco\n"
        "from qwen_vla_ros.sim import make_world\n"
        "world = make_world('tiago')\n"
        "world.reset('drive', 0)\n"
        "world.render('ego')\n"
    )
    hidden = ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "import qwen_vla_ros.sim before mujoco" in done.stderr


def test_bad_requests_are_refused(world_of):
    world = world_of("panda")
    world.reset("reach", 0)
    with pytest.raises(SimulationError, match="no task 'fly'; it has reach"):
        world.reset("fly", 0)
    with pytest.raises(SimulationError, match="no view 'left'"):
        world.render("left")
    with pytest.raises(SimulationError, match="no position-controlled joint 'elbow'"):
        world.set_joint_targets({"elbow": 0.0})
    with pytest.raises(SimulationError, match="'panda_joint1' is nan"):
        world.set_joint_targets({"panda_joint1": float("nan")})
    with pytest.raises(SimulationError, match="does not drive"):
        world.set_base_velocity(0.1, 0.0)
    with pytest.raises(SimulationError, match="qpos has shape"):
        world.render_state(np.zeros(3), "ego")
    with pytest.raises(SimulationError, match="base velocity is"):
        world_of("tiago").set_base_velocity(float("inf"), 0.0)


def test_unstable_physics_is_an_error(world_of):
    world = world_of("panda")
    world.reset("reach", 0)
    world.data.qvel[:] = 1e9
    with pytest.raises(SimulationError, match="unstable"):
        world.step(0.05)
    world.reset("reach", 0)
    world.step(0.05)
