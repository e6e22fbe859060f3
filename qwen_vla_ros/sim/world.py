# SPDX-License-Identifier: Apache-2.0
"""A robot in a MuJoCo scene, as controllers, cameras and tasks see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from qwen_vla_ros.embodiment import Embodiment, load_embodiment
from qwen_vla_ros.sim import scene
from qwen_vla_ros.sim.any_robot import body_from_model
from qwen_vla_ros.sim.bodies import (
    BODIES,
    CLUTTER,
    EASY,
    FULL,
    OBJECTS,
    PADS,
    SETTINGS,
    Arm,
    Body,
    Camera,
    SlidingBase,
    get_body,
)
from qwen_vla_ros.sim.catalogue import TASKS
from qwen_vla_ros.sim.errors import SimulationError
from qwen_vla_ros.sim.kinematics import solve
from qwen_vla_ros.sim.look import Look, LookRange
from qwen_vla_ros.sim.phrases import CANONICAL, phrases
from qwen_vla_ros.sim.postures import Postures
from qwen_vla_ros.sim.rendering import Pictures, project
from qwen_vla_ros.sim.tasks import Goal, Hold, Outcome, Task

# Postures of the arms of a body are the same in all its worlds, and take a second to find.
_POSTURES: dict[tuple[str, str | None], Postures] = {}
# How often success is looked at while stepping [s].
_CHECK_PERIOD = 0.01
_UNSTABLE = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
)


# What MuJoCo calls the kinds of things, and its sizes from (half width, half height) [m].
_SHAPES = {
    "cube": (mujoco.mjtGeom.mjGEOM_BOX, lambda r, h: (r, r, h)),
    "ball": (mujoco.mjtGeom.mjGEOM_SPHERE, lambda r, h: (r, 0.0, 0.0)),
    "cylinder": (mujoco.mjtGeom.mjGEOM_CYLINDER, lambda r, h: (r, h, 0.0)),
    "pillar": (mujoco.mjtGeom.mjGEOM_CYLINDER, lambda r, h: (r, h, 0.0)),
    "pad": (mujoco.mjtGeom.mjGEOM_CYLINDER, lambda r, h: (r, h, 0.0)),
}
# What place() and the look change in a model.
_CHANGED = (
    "geom_type",
    "geom_size",
    "geom_rgba",
    "geom_pos",
    "geom_rbound",
    "geom_aabb",
    "geom_condim",
    "geom_matid",
    "bvh_aabb",
    "body_inertia",
    "mat_rgba",
)
_AWAY = (0.0, 0.0, -5.0)
# How many scenes are laid out until one has a goal.
_SCENES = 20


@dataclass(frozen=True)
class Thing:
    """An object in the scene. width, height: half of them [m]."""

    kind: str
    colour: str
    width: float
    height: float


@dataclass(frozen=True)
class Episode:
    """What reset() set up. time_limit [s] counts from the reset."""

    task: str
    instruction: str
    time_limit: float


def _as_built(geom: Any) -> Thing:
    kind = {
        mujoco.mjtGeom.mjGEOM_SPHERE: "ball",
        mujoco.mjtGeom.mjGEOM_CYLINDER: "pillar",
        mujoco.mjtGeom.mjGEOM_BOX: "cube",
    }[mujoco.mjtGeom(int(np.ravel(geom.type)[0]))]
    return Thing(kind, "", float(geom.size[0]), float(geom.size[1 if kind == "pillar" else 0]))


def make_world(embodiment: Embodiment | str, setting: str = EASY, model: str | Path | None = None) -> World:
    """A world for an embodiment: itself, its name, or the name of its body (panda, aloha, tiago, g1).

    setting: `easy` (one look, three cubes, balls or pillars) or `full` (docs/simulation.md).
    model: URDF or MJCF file that stands for the robot, in place of what the embodiment says.

    Raises SimulationError when the embodiment names no body and no model, or joints or views that it lacks.
    """
    if isinstance(embodiment, str):
        embodiment = load_embodiment(BODIES[embodiment]().embodiment if embodiment in BODIES else embodiment)
    return World(embodiment, setting, model)


def _body_of(embodiment: Embodiment) -> Body:
    """The body of an embodiment, with cameras of the embodiment's sizes."""
    who = f"embodiment {embodiment.name!r}"
    if embodiment.simulation is None or embodiment.simulation.body is None:
        raise SimulationError(f"{who} has no simulated body (field simulation.body); give a `model`")
    body = get_body(embodiment.simulation.body)
    found = [joint for group in embodiment.actions for joint in getattr(group, "joints", ())]
    expected = list(body.channels) if body.base is None else []
    if found != expected:
        raise SimulationError(f"{who}: body {body.name!r} has the action joints {expected}; found {found}")
    if set(embodiment.home) != set(expected):
        raise SimulationError(f"{who}: home must give all action joints; found {sorted(embodiment.home)}")
    cameras = dict(body.cameras)
    for camera in embodiment.cameras:
        if camera.view not in cameras:
            raise SimulationError(
                f"{who}: body {body.name!r} has no view {camera.view!r}; it has {', '.join(cameras)}"
            )
        width, height = camera.size
        cameras[camera.view] = replace(cameras[camera.view], size=(width, height))
    return replace(body, cameras=cameras)


class World:
    """One robot, a few objects, one task.

    Joints go by their ROS names. Not thread-safe; rendering belongs to one thread, the first that does it.
    """

    def __init__(self, embodiment: Embodiment, setting: str = EASY, model: str | Path | None = None) -> None:
        if setting not in SETTINGS:
            raise SimulationError(f"setting: found {setting!r}, expected one of {', '.join(SETTINGS)}")
        self.embodiment = embodiment
        self.setting = setting
        simulation = embodiment.simulation
        if model or (simulation is not None and simulation.body is None):
            if setting != EASY:
                raise SimulationError(f"setting: found {setting!r}; a robot from a model has {EASY!r} alone")
            self.body = body = body_from_model(embodiment, model)
        else:
            self.body = body = _body_of(embodiment)
        self._tasks = {**TASKS, **body.own}
        home = embodiment.home if body.home is None else body.home
        self.home = {name: float(value) for name, value in home.items()}
        spec = body.build(setting)
        self.model = spec.compile()
        self.data = mujoco.MjData(self.model)
        self._scratch = mujoco.MjData(self.model)
        self._pictures = Pictures(self.model)
        self._look = Look(self.model, body.jittered, LookRange()) if setting == FULL else None
        self._built = {field: getattr(self.model, field).copy() for field in _CHANGED}
        self._things: dict[str, Thing] = {}
        self._postures: dict[str | None, Postures] = {}
        self._task: Task | None = None
        self._goal: Goal | None = None
        self._goals: list[Goal] | None = None
        self._start: dict[str, np.ndarray] = {}
        # What a task keeps of the episode so far, for its judgement.
        self.memory: dict[str, int] = {}
        self._hold = Hold()
        self._time_before = 0.0
        self._debt = 0.0
        self._wheel_speed = np.zeros(2)
        self._solutions: dict[tuple, tuple[np.ndarray, float]] = {}
        joints = [self.model.joint(joint.mujoco) for joint in body.joints.values()]
        self._qpos = np.array([joint.qposadr[0] for joint in joints], dtype=int)
        self._qvel = np.array([joint.dofadr[0] for joint in joints], dtype=int)
        self._ranges = np.array([joint.range if joint.limited[0] else (-np.inf, np.inf) for joint in joints])
        self._actuators = self._find_actuators()
        mujoco.mj_forward(self.model, self.data)

    # time and state

    @property
    def time(self) -> float:
        """Simulated time since the world was made [s]; it goes on over a reset, it never runs back."""
        return self._time_before + self.data.time

    @property
    def joint_names(self) -> tuple[str, ...]:
        return tuple(self.body.joints)

    @property
    def joint_positions(self) -> np.ndarray:
        """Shape (n,) in the order of joint_names [rad or m]."""
        return self.data.qpos[self._qpos].copy()

    @property
    def joint_velocities(self) -> np.ndarray:
        """Shape (n,) in the order of joint_names [rad/s or m/s]."""
        return self.data.qvel[self._qvel].copy()

    @property
    def joint_ranges(self) -> np.ndarray:
        """Lower and upper limits, shape (n, 2), infinite where a joint has none [rad or m]."""
        return self._ranges.copy()

    @property
    def base_pose(self) -> np.ndarray:
        """(x, y, yaw) of the base in the world [m, m, rad]; zero for a body that does not drive."""
        if self.body.base is None:
            return np.zeros(3)
        base = self.data.body(self.body.base.body)
        rotation = base.xmat
        return np.array([base.xpos[0], base.xpos[1], np.arctan2(rotation[3], rotation[0])])

    @property
    def base_velocity(self) -> np.ndarray:
        """(v, w): forward speed and turning rate of the base [m/s, rad/s]."""
        if self.body.base is None:
            return np.zeros(2)
        velocity = np.zeros(6)
        body = mujoco.mjtObj.mjOBJ_XBODY
        index = self.model.body(self.body.base.body).id
        mujoco.mj_objectVelocity(self.model, self.data, body, index, velocity, 1)
        return np.array([velocity[3], velocity[2]])

    @property
    def qpos(self) -> np.ndarray:
        """The whole state of positions, for render_state()."""
        return self.data.qpos.copy()

    # scene and task

    @property
    def tasks(self) -> list[str]:
        return [task for task in self.body.tasks if self.setting in self._tasks[task].settings]

    @property
    def objects(self) -> dict[str, tuple[np.ndarray, str]]:
        """Objects of the scene: name to (position (3,) [m], colour).

        The position is the centre of a cube or a ball and the foot of a pillar or a pad.
        """
        return {
            name: (self.data.body(name).xpos.copy(), thing.colour) for name, thing in self._things.items()
        }

    @property
    def things(self) -> dict[str, Thing]:
        """What the objects are, by name, in the order of `objects`."""
        return dict(self._things)

    @property
    def goal(self) -> Goal:
        """The goal that outcome() judges. Setting it starts the judgement anew."""
        if self._goal is None:
            raise SimulationError("the world has no task yet: call reset() first")
        return self._goal

    @goal.setter
    def goal(self, goal: Goal) -> None:
        if not any(goal.same(other) for other in self.goals()):
            raise SimulationError(f"not a goal of the present scene: {goal}")
        self._goal = goal
        self._hold = Hold()
        self._start = {name: position for name, (position, _) in self.objects.items()}
        self.task.begin(self)

    @property
    def start(self) -> dict[str, np.ndarray]:
        """Where the objects were when the goal was set: name to position (3,) [m]."""
        return {name: position.copy() for name, position in self._start.items()}

    @property
    def task(self) -> Task:
        if self._task is None:
            raise SimulationError("the world has no task yet: call reset() first")
        return self._task

    def reset(self, task: str, seed: int, wording: str = CANONICAL) -> Episode:
        """A new scene and a goal in it, both from the seed; the robot goes home, or near it.

        wording: of the instruction, see phrases.py.
        """
        if task not in self.tasks:
            raise SimulationError(
                f"body {self.body.name!r} has no task {task!r}; it has {', '.join(self.tasks)}"
            )
        rng = np.random.default_rng(seed)
        self._time_before = self.time
        self._debt = 0.0
        mujoco.mj_resetData(self.model, self.data)
        self._task = self._tasks[task]
        self._goal = None
        self._solutions.clear()
        full = self._look is not None
        noise = self._task.full_joint_noise if full else self._task.randomisation.joint_noise
        joints = {
            name: value + rng.uniform(-noise, noise) if name in self._arm_joints() else value
            for name, value in self.home.items()
        }
        for _ in range(_SCENES):
            self._lay_out(rng, joints)
            # Rarely nothing in a scene can be done: a push has no room, a thing stands out of reach.
            if goals := self.goals():
                break
        else:
            raise SimulationError(f"task {task!r}: no goal in any of {_SCENES} scenes of seed {seed}")
        goal = goals[int(rng.integers(len(goals)))]
        if wording != CANONICAL:
            choice = phrases(goal, wording)
            goal = replace(goal, instruction=choice[int(rng.integers(len(choice)))])
        self.goal = goal
        return Episode(task, goal.instruction, self._task.time_limit)

    def _lay_out(self, rng: np.random.Generator, joints: dict[str, float]) -> None:
        """Things of the task at random places, and the robot at its start."""
        assert self._task is not None
        full = self._look is not None
        if self._look is not None:
            self._forget_things()
            self._look.draw(rng)
            self._task.place_full(self, rng)
        else:
            self._task.place(self, rng)
        pose = self._task.start_pose(rng) if full else (0.0, 0.0, 0.0)
        self.teleport(joints=joints, base_pose=pose)

    def all_goals(self) -> list[Goal]:
        """Every goal of every task of the body in the present scene."""
        return [goal for task in self.tasks for goal in self._tasks[task].goals(self)]

    def goals(self) -> list[Goal]:
        """Every goal that can be asked for, and reached, in the scene as it was laid out."""
        if self._goals is None:
            self._goals = self.task.goals(self)
        return list(self._goals)

    def outcome(self) -> Outcome:
        """Whether the goal has been reached and held since it was set, and how far it is now."""
        return self.task.judge(self, self.goal, self._hold.reached)

    def place(
        self,
        name: str,
        position: tuple[float, float, float] | np.ndarray,
        colour: str,
        yaw: float = 0.0,
        kind: str | None = None,
        size: tuple[float, float] | None = None,
        rgb: np.ndarray | None = None,
    ) -> None:
        """Put an object of the scene, coloured, at `position` [m] turned by `yaw` [rad].

        kind, size: what it is, and half its width and height [m]; as built without them. rgb: its shade (3,).
        Poses are computed with the next teleport() or step().
        """
        self._goals = None
        geom = self.model.geom(name)
        if kind is not None and size is not None:
            self._shape(name, kind, size)
        else:
            thing = self._things.get(name) or _as_built(geom)
            kind, size = thing.kind, (thing.width, thing.height)
        geom.rgba[:3] = scene.COLOURS[colour] if rgb is None else rgb
        geom.rgba[3] = 1.0
        self._move(name, position, yaw)
        if name not in CLUTTER:
            self._things[name] = Thing(kind, colour, *size)
            self._things = {name: self._things[name] for name in (*OBJECTS, *PADS) if name in self._things}

    def settle(self) -> None:
        """Compute the poses of what was placed."""
        mujoco.mj_kinematics(self.model, self.data)

    def _move(self, name: str, position: tuple[float, float, float] | np.ndarray, yaw: float) -> None:
        quat = [np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]
        body = self.model.body(name)
        mocap = int(body.mocapid[0])
        if mocap >= 0:
            self.data.mocap_pos[mocap] = position
            self.data.mocap_quat[mocap] = quat
        else:
            start = self.model.joint(name).qposadr[0]
            self.data.qpos[start : start + 3] = position
            self.data.qpos[start + 3 : start + 7] = quat

    def _shape(self, name: str, kind: str, size: tuple[float, float]) -> None:
        """Give a body's geom another shape, and the body the inertia of it."""
        model = self.model
        geom, body = model.geom(name).id, model.body(name).id
        shape, sizes = _SHAPES[kind]
        half = np.array(sizes(*size))
        model.geom_type[geom] = shape
        model.geom_size[geom] = half
        width, height = size
        box = np.array([width, width, width if kind == "ball" else height])
        model.geom_aabb[geom] = (0.0, 0.0, 0.0, *box)
        model.geom_rbound[geom] = width if kind == "ball" else float(np.linalg.norm(box[1:]))
        if kind == "cube":
            model.geom_rbound[geom] = float(np.linalg.norm(box))
        if kind in ("pillar", "pad"):
            model.geom_pos[geom, 2] = size[1]
        # Rolling friction costs a third of the physics: for balls only.
        model.geom_condim[geom] = 6 if kind == "ball" else 4
        nodes = slice(model.body_bvhadr[body], model.body_bvhadr[body] + model.body_bvhnum[body])
        model.bvh_aabb[nodes, 3:] = np.maximum(box, np.abs(model.geom_pos[geom]) + box)
        mass = model.body_mass[body]
        if mass > 0.0:
            x, y, z = 2.0 * box
            turn = mass / 12.0 * np.array([y * y + z * z, x * x + z * z, x * x + y * y])
            model.body_inertia[body] = 0.4 * mass * width**2 if kind == "ball" else turn

    def _forget_things(self) -> None:
        """Move everything that instructions could name out of the scene."""
        self._things = {}
        # The last bits of a picture depend even on what is out of sight: nothing of the last scene stays.
        for field, value in self._built.items():
            getattr(self.model, field)[:] = value
        for name in (*PADS, *CLUTTER):
            if mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_BODY, name) >= 0:
                self._move(name, _AWAY, 0.0)
                self.model.geom(name).rgba[3] = 0.0

    # commands and physics

    def set_joint_targets(self, targets: Mapping[str, float]) -> None:
        """Set-points of position servos by joint name [rad or m]; joints not named keep theirs.

        Raises SimulationError for a joint without a servo and for a value that is not finite.
        """
        for name, value in targets.items():
            actuators = self._actuators.get(name)
            if actuators is None:
                raise SimulationError(f"body {self.body.name!r} has no position-controlled joint {name!r}")
            if not np.isfinite(value):
                raise SimulationError(f"target of joint {name!r} is {value}")
            for index, factor in actuators:
                self.data.ctrl[index] = value * factor

    def set_base_velocity(self, v: float, w: float, aside: float = 0.0) -> None:
        """Drive at v forward and `aside` to the left [m/s], turning at w [rad/s]; wheels cannot go aside."""
        base = self.body.base
        if base is None:
            raise SimulationError(f"body {self.body.name!r} does not drive")
        if not (np.isfinite(v) and np.isfinite(w) and np.isfinite(aside)):
            raise SimulationError(f"base velocity is ({v}, {w})")
        if isinstance(base, SlidingBase):
            yaw = float(self.data.joint(base.joints[2]).qpos[0])
            c, s = np.cos(yaw), np.sin(yaw)
            for joint, speed in zip(base.joints, (c * v - s * aside, s * v + c * aside, w), strict=True):
                self.data.ctrl[self._actuator_of(joint)] = speed
            return
        for joint, side in ((base.left, -1.0), (base.right, 1.0)):
            self.data.ctrl[self._actuator_of(joint)] = (v + side * w * base.track / 2) / base.radius

    def step(self, duration: float) -> None:
        """Advance physics by `duration` [s]; what is less than a physics step is kept for the next call."""
        dt = self.model.opt.timestep
        self._debt += duration
        steps = int(self._debt / dt + 1e-6)
        self._debt -= steps * dt
        block = max(1, round(_CHECK_PERIOD / dt))
        while steps > 0:
            count = min(block, steps)
            mujoco.mj_step(self.model, self.data, nstep=count)
            steps -= count
            if self._task is not None and self._goal is not None:
                # mj_step leaves the poses that its last step began with: 1 to 4 ms old, good enough here.
                self._hold.update(self.task.near(self, self._goal), count * dt, self.task.hold)
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
        for warning in _UNSTABLE:
            if self.data.warning[warning].number:
                raise SimulationError(
                    f"physics of body {self.body.name!r} became unstable before {self.time:.3f} s"
                )

    def teleport(
        self,
        joints: Mapping[str, float] | None = None,
        base_pose: tuple[float, float, float] | np.ndarray | None = None,
    ) -> None:
        """Put joints and base where they are said to be, at rest, without physics; servos hold them there."""
        for name, value in (joints or {}).items():
            if name not in self.body.joints:
                raise SimulationError(f"body {self.body.name!r} has no joint {name!r}")
            self._set_position(self.data, name, float(value))
        if joints:
            self.set_joint_targets({name: value for name, value in joints.items() if name in self._actuators})
        if base_pose is not None and self.body.base is not None:
            x, y, yaw = base_pose
            body = self.model.body(self.body.base.body)
            start = self.model.joint(int(body.jntadr[0])).qposadr[0]
            if isinstance(self.body.base, SlidingBase):
                self.data.qpos[start : start + 3] = (x, y, yaw)
                self.set_base_velocity(0.0, 0.0)
            else:
                self.data.qpos[start : start + 3] = (x, y, 0.0)
                self.data.qpos[start + 3 : start + 7] = (np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))
                self.data.ctrl[:] = 0.0
        self.data.qvel[:] = 0.0
        mujoco.mj_forward(self.model, self.data)

    # pictures

    @property
    def views(self) -> dict[str, Camera]:
        return dict(self.body.cameras)

    def render(self, view: str) -> np.ndarray:
        """What a camera sees now: uint8 RGB, shape (height, width, 3)."""
        return self._pictures.draw(self.data, view, self._camera(view))

    def depth(self, view: str) -> np.ndarray:
        """How far away what a camera sees is, along its optical axis [m]: float32 (height, width), NaN where
        there is nothing."""
        return self._pictures.depth(self.data, view, self._camera(view))

    def render_state(
        self, qpos: np.ndarray, view: str, width: int | None = None, height: int | None = None
    ) -> np.ndarray:
        """What a camera sees of a recorded `qpos` in the present scene: uint8 RGB (height, width, 3)."""
        if np.shape(qpos) != (self.model.nq,):
            raise SimulationError(
                f"qpos has shape {np.shape(qpos)}; body {self.body.name!r} has ({self.model.nq},)"
            )
        camera = self._camera(view)
        camera = replace(camera, size=(width or camera.size[0], height or camera.size[1]))
        self._load_scratch(qpos)
        return self._pictures.draw(self._scratch, view, camera)

    def project(self, view: str, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (n, 2) (column, row) of world points (n, 3) [m]; whether they are in front, (n,) bool."""
        return project(self.model, self.data, view, self._camera(view).size, points)

    def close(self) -> None:
        self._pictures.close()

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # kinematics

    def tool(self, arm: str | None) -> np.ndarray:
        """Position (3,) of an arm's end effector in the world [m]."""
        return self.data.site(self._arm(arm).site).xpos.copy()

    def tool_poses(self, arm: str | None, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Poses of an arm's end effector in postures (m, n) of the body's channels.

        Positions (m, 3) in the world [m], rotations (m, 3, 3).
        """
        site = self._arm(arm).site
        positions, rotations = np.empty((len(joints), 3)), np.empty((len(joints), 3, 3))
        index = self.model.site(site).id
        # Fingers that follow a finger do not move the tool.
        addresses = self._qpos[[self.joint_names.index(name) for name in self.body.channels]]
        for row, posture in enumerate(joints):
            self._scratch.qpos[addresses] = posture
            mujoco.mj_kinematics(self.model, self._scratch)
            positions[row] = self._scratch.site_xpos[index]
            rotations[row] = self._scratch.site_xmat[index].reshape(3, 3)
        return positions, rotations

    def move_object(self, name: str, position: np.ndarray) -> None:
        """Put a thing elsewhere, upright and at rest. Computed with the next teleport() or step()."""
        self._move(name, position, 0.0)

    def reach(self, arm: str | None, point: np.ndarray) -> tuple[dict[str, float], float]:
        """Joints of an arm that bring its end effector to `point` (3,) [m], and the distance left [m].

        A function of the point alone: the search always starts from the arm's seed posture.
        """
        key = (arm, *np.round(point, 5))
        if key not in self._solutions:
            definition = self._arm(arm)
            for name, value in {**self.home, **definition.seed}.items():
                self._set_position(self._scratch, name, value)
            indices = [self.joint_names.index(name) for name in definition.joints]
            self._solutions[key] = solve(
                self.model,
                self._scratch,
                definition.site,
                self._qpos[indices],
                self._qvel[indices],
                self._ranges[indices],
                np.array(key[1:]),
                definition.down,
            )
        angles, left = self._solutions[key]
        return dict(zip(self._arm(arm).joints, angles.tolist(), strict=True)), left

    def postures(self, arm: str | None) -> Postures:
        """Joints of an arm whose tool points straight down, by place of the tool."""
        if arm not in self._postures:
            definition = self._arm(arm)
            for name, value in {**self.home, **definition.seed}.items():
                self._set_position(self._scratch, name, value)
            indices = [self.joint_names.index(name) for name in definition.joints]
            key = (self.body.name, arm)
            if key not in _POSTURES:
                _POSTURES[key] = Postures(
                    self.model,
                    self._scratch,
                    definition,
                    self._qpos[indices],
                    self._qvel[indices],
                    self._ranges[indices],
                )
            self._postures[arm] = _POSTURES[key]
        return self._postures[arm]

    def opening(self, arm: str | None) -> float:
        """How far a finger of an arm is from where it is closed [m]."""
        definition = self._arm(arm)
        if definition.gripper is None:
            return 0.0
        measured = self.joint_positions[self.joint_names.index(definition.gripper)]
        return float(measured - definition.opening[0])

    def arm(self, name: str | None) -> Arm:
        """Definition of an arm."""
        return self._arm(name)

    # inside

    def _arm(self, name: str | None) -> Arm:
        for arm in self.body.arms:
            if arm.name == name:
                return arm
        raise SimulationError(f"body {self.body.name!r} has no arm {name!r}")

    def _arm_joints(self) -> set[str]:
        return {joint for arm in self.body.arms for joint in arm.joints}

    def _camera(self, view: str) -> Camera:
        try:
            return self.body.cameras[view]
        except KeyError:
            views = ", ".join(self.body.cameras)
            raise SimulationError(f"body {self.body.name!r} has no view {view!r}; it has {views}") from None

    def _load_scratch(self, qpos: np.ndarray) -> None:
        self._scratch.qpos[:] = qpos
        self._scratch.mocap_pos[:] = self.data.mocap_pos
        self._scratch.mocap_quat[:] = self.data.mocap_quat
        mujoco.mj_forward(self.model, self._scratch)

    def _set_position(self, data: mujoco.MjData, name: str, value: float) -> None:
        joint = self.body.joints[name]
        data.joint(joint.mujoco).qpos = value
        for follower, factor in joint.followers.items():
            data.joint(follower).qpos = value * factor

    def _actuator_of(self, joint: str) -> int:
        index = self.model.joint(joint).id
        for actuator in range(self.model.nu):
            if self.model.actuator_trnid[actuator, 0] == index:
                return actuator
        raise SimulationError(f"model joint {joint!r} has no actuator")

    def _find_actuators(self) -> dict[str, list[tuple[int, float]]]:
        by_joint = {int(self.model.actuator_trnid[index, 0]): index for index in range(self.model.nu)}
        found = {}
        for name, joint in self.body.joints.items():
            if not joint.actuated:
                continue
            targets = [(joint.mujoco, 1.0), *joint.followers.items()]
            indexed = [(self.model.joint(target).id, factor) for target, factor in targets]
            found[name] = [(by_joint[index], factor) for index, factor in indexed if index in by_joint]
        return found
