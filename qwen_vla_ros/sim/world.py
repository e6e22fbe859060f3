# SPDX-License-Identifier: Apache-2.0
"""A robot in a MuJoCo scene, as controllers, cameras and tasks see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import mujoco
import numpy as np

from qwen_vla_ros.embodiment import Embodiment, load_embodiment
from qwen_vla_ros.sim import scene
from qwen_vla_ros.sim.bodies import BODIES, OBJECTS, Arm, Body, Camera, get_body
from qwen_vla_ros.sim.errors import SimulationError
from qwen_vla_ros.sim.kinematics import solve
from qwen_vla_ros.sim.rendering import Pictures, project
from qwen_vla_ros.sim.tasks import TASKS, Goal, Hold, Outcome, Task

# How often success is looked at while stepping [s].
_CHECK_PERIOD = 0.01
_UNSTABLE = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
)


@dataclass(frozen=True)
class Episode:
    """What reset() set up. time_limit [s] counts from the reset."""

    task: str
    instruction: str
    time_limit: float


def make_world(embodiment: Embodiment | str) -> World:
    """A world for an embodiment: itself, its name, or the name of its body (panda, aloha, tiago, g1).

    Raises SimulationError when the embodiment names no body, or joints or views that its body lacks.
    """
    if isinstance(embodiment, str):
        embodiment = load_embodiment(BODIES[embodiment]().embodiment if embodiment in BODIES else embodiment)
    return World(embodiment)


def _body_of(embodiment: Embodiment) -> Body:
    """The body of an embodiment, with cameras of the embodiment's sizes."""
    who = f"embodiment {embodiment.name!r}"
    if embodiment.simulation is None:
        raise SimulationError(f"{who} has no simulated body (field simulation.body)")
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
    """One robot, three objects, one task.

    Joints go by their ROS names. Not thread-safe; rendering belongs to one thread, the first that does it.
    """

    def __init__(self, embodiment: Embodiment) -> None:
        self.embodiment = embodiment
        self.body = body = _body_of(embodiment)
        self.home = {name: float(value) for name, value in embodiment.home.items()}
        spec = body.build()
        self.model = spec.compile()
        self.data = mujoco.MjData(self.model)
        self._scratch = mujoco.MjData(self.model)
        self._pictures = Pictures(self.model)
        self._colours: dict[str, str] = {}
        self._task: Task | None = None
        self._goal: Goal | None = None
        self._goals: list[Goal] | None = None
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
        return list(self.body.tasks)

    @property
    def objects(self) -> dict[str, tuple[np.ndarray, str]]:
        """Objects of the scene: name to (position (3,) [m], colour).

        The position is the centre of a cube or a ball and the foot of a pillar.
        """
        return {name: (self.data.body(name).xpos.copy(), colour) for name, colour in self._colours.items()}

    @property
    def goal(self) -> Goal:
        """The goal that outcome() judges. Setting it starts the judgement anew."""
        if self._goal is None:
            raise SimulationError("the world has no task yet: call reset() first")
        return self._goal

    @goal.setter
    def goal(self, goal: Goal) -> None:
        if goal not in self.goals():
            raise SimulationError(f"not a goal of the present scene: {goal}")
        self._goal = goal
        self._hold = Hold()

    @property
    def task(self) -> Task:
        if self._task is None:
            raise SimulationError("the world has no task yet: call reset() first")
        return self._task

    def reset(self, task: str, seed: int) -> Episode:
        """A new scene and a goal in it, both from the seed; the robot goes home."""
        if task not in self.body.tasks:
            raise SimulationError(
                f"body {self.body.name!r} has no task {task!r}; it has {', '.join(self.tasks)}"
            )
        rng = np.random.default_rng(seed)
        self._time_before = self.time
        self._debt = 0.0
        mujoco.mj_resetData(self.model, self.data)
        self._task = TASKS[task]
        self._goal = None
        self._solutions.clear()
        noise = self._task.randomisation.joint_noise
        joints = {
            name: value + rng.uniform(-noise, noise) if name in self._arm_joints() else value
            for name, value in self.home.items()
        }
        self._task.place(self, rng)
        self.teleport(joints=joints, base_pose=(0.0, 0.0, 0.0))
        goals = self.goals()
        self.goal = goals[int(rng.integers(len(goals)))]
        return Episode(task, self.goal.instruction, self._task.time_limit)

    def goals(self) -> list[Goal]:
        """Every goal that can be asked for, and reached, in the scene as it was laid out."""
        if self._goals is None:
            self._goals = self.task.goals(self)
        return list(self._goals)

    def outcome(self) -> Outcome:
        """Whether the goal has been reached and held since it was set, and how far it is now."""
        return self.task.judge(self, self.goal, self._hold.reached)

    def place(self, name: str, position: tuple[float, float, float], colour: str, yaw: float = 0.0) -> None:
        """Put an object of the scene, coloured, at `position` [m] turned by `yaw` [rad].

        Poses are computed with the next teleport() or step().
        """
        self._goals = None
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
        self.model.geom(name).rgba[:3] = scene.COLOURS[colour]
        self._colours[name] = colour
        self._colours = {name: self._colours[name] for name in OBJECTS if name in self._colours}

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

    def set_base_velocity(self, v: float, w: float) -> None:
        """Wheel speeds for a forward speed v [m/s] and a turning rate w [rad/s]."""
        base = self.body.base
        if base is None:
            raise SimulationError(f"body {self.body.name!r} does not drive")
        if not (np.isfinite(v) and np.isfinite(w)):
            raise SimulationError(f"base velocity is ({v}, {w})")
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
