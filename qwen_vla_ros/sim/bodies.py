# SPDX-License-Identifier: Apache-2.0
"""The simulated robots: which model, which joints under which ROS names, which cameras."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import mujoco
import numpy as np

from qwen_vla_ros.sim import scene
from qwen_vla_ros.sim.assets import model_path
from qwen_vla_ros.sim.errors import SimulationError

if TYPE_CHECKING:
    from qwen_vla_ros.sim.tasks import Task

OBJECTS = ("object_0", "object_1", "object_2")
PADS = ("pad_0", "pad_1")
CLUTTER = ("clutter_0", "clutter_1", "clutter_2")
# By how much a camera may be off its place [m]: one on a tripod or a mast, one that is screwed to a hand.
SHIFT, SCREWED = 0.015, 0.004
EASY, FULL = SETTINGS = ("easy", "full")


@dataclass(frozen=True)
class Joint:
    """A joint under its ROS name; `followers` are MuJoCo joints that move with it, times a factor."""

    mujoco: str
    followers: Mapping[str, float] = field(default_factory=dict)
    actuated: bool = True


@dataclass(frozen=True)
class Arm:
    """A chain that reaches.

    site: end-effector site. seed: ROS joint names, and the posture from which inverse kinematics always
    starts [rad].
    down: weight of keeping the site's z axis vertical, downwards; 0 leaves the orientation free.
    """

    name: str | None
    site: str
    seed: Mapping[str, float]
    down: float = 0.0
    # Gripper: its joint, how far one finger opens, and how thick the closed fingers are to each side [m].
    gripper: str | None = None
    opening: tuple[float, float] = (0.0, 0.0)
    thickness: float = 0.0
    # Joints that keep their seed angle when the tool points straight down, and the box (lower, upper) where
    # it can.
    rigid: tuple[str, ...] = ()
    approach: int = 2  # axis of the site along which the tool points
    space: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None

    @property
    def joints(self) -> tuple[str, ...]:
        return tuple(self.seed)


@dataclass(frozen=True)
class Base:
    """A differential drive: wheel joints (MuJoCo) and geometry [m]."""

    body: str
    left: str
    right: str
    radius: float
    track: float


@dataclass(frozen=True)
class SlidingBase:
    """A base that slides and turns as it is told: body, and its joints along x, along y and about z."""

    body: str
    joints: tuple[str, str, str]


@dataclass(frozen=True)
class Camera:
    """A view: its size (width, height) [px], and whether it is drawn for people or for a policy."""

    size: tuple[int, int]
    spectator: bool = False


@dataclass(frozen=True)
class Body:
    """A robot in its scene.

    channels: action channels in the embodiment's order: ROS joint names, or dx, dy, dtheta of a waypoint.
    joints: ROS name to joint, in the order of /joint_states.
    embodiment: the one that the body stands for when it is asked for by its own name.
    own: tasks of this body alone, by name. home: in place of the embodiment's, as joint states count.
    jittered: cameras that are not quite where they should be in the setting `full`, and by how much [m].
    notes: what people should know of the model. urdf: its description, in place of one made from the model.
    """

    name: str
    build: Callable[[str], mujoco.MjSpec]
    channels: tuple[str, ...]
    joints: Mapping[str, Joint]
    tasks: tuple[str, ...]
    embodiment: str
    arms: tuple[Arm, ...] = ()
    base: Base | SlidingBase | None = None
    cameras: Mapping[str, Camera] = field(
        default_factory=lambda: {"ego": Camera((128, 128)), "spectator": Camera((640, 480), spectator=True)}
    )
    jittered: Mapping[str, float] = field(default_factory=lambda: {"ego": SHIFT})
    own: Mapping[str, Task] = field(default_factory=dict)
    home: Mapping[str, float] | None = None
    notes: tuple[str, ...] = ()
    urdf: str | None = None


def _load(model: str) -> mujoco.MjSpec:
    return mujoco.MjSpec.from_file(str(model_path(model)))


def _regroup(spec: mujoco.MjSpec, light: int, fine: int) -> None:
    """Draw geoms of group `light` in policy views only and those of group `fine` in spectator views only."""
    for geom in spec.geoms:
        if geom.group == light:
            geom.group = scene.POLICY_ONLY
        elif geom.group == fine:
            geom.group = scene.SPECTATOR_ONLY


def _compensate_gravity(spec: mujoco.MjSpec) -> None:
    """Real arms are driven with gravity compensation; without it position servos would sag."""
    for body in spec.bodies:
        if body.name != "world":
            body.gravcomp = 1.0


def _position_servo(actuator: mujoco.MjsActuator, kp: float, kd: float) -> None:
    actuator.gainprm[0] = kp
    actuator.biasprm[1] = -kp
    actuator.biasprm[2] = -kd


def _build_panda(setting: str) -> mujoco.MjSpec:
    spec = _load("panda")
    _regroup(spec, light=3, fine=2)
    _compensate_gravity(spec)
    spec.add_material(name="panda_light", rgba=[0.88, 0.89, 0.91, 1.0], specular=0.3, shininess=0.4)
    spec.add_material(name="panda_dark", rgba=[0.22, 0.23, 0.25, 1.0], specular=0.3, shininess=0.4)
    for geom in spec.geoms:
        if geom.group == scene.POLICY_ONLY:
            dark = geom.parent.name in ("left_finger", "right_finger", "hand", "link5")
            geom.material = "panda_dark" if dark else "panda_light"
    for index in range(1, 8):
        actuator = spec.actuator(f"actuator{index}")
        _position_servo(actuator, actuator.gainprm[0], 0.05 * actuator.gainprm[0])
    # The model drives the fingers by a tendon in 0..255; here by the first finger's position in metres.
    spec.delete(spec.actuator("actuator8"))
    finger = spec.add_actuator(name="actuator8", target="finger_joint1", trntype=mujoco.mjtTrn.mjTRN_JOINT)
    finger.biastype = mujoco.mjtBias.mjBIAS_AFFINE
    _position_servo(finger, 400.0, 20.0)
    finger.ctrlrange = [0.0, 0.04]
    finger.forcerange = [-100.0, 100.0]
    spec.body("hand").add_site(name="tool", pos=[0, 0, 0.1034])
    scene.dress(spec)
    scene.add_floor(spec, -0.75)
    scene.add_table(spec, (0.35, 0.0, 0.0), (1.30, 1.20), floor=-0.75)
    _add_objects(spec, setting)
    scene.add_camera(spec, "cam_wrist", (0.085, 0.0, 0.04), (0.0, 0.0, 0.16), 80, body="hand")
    scene.add_camera(spec, "ego", (1.35, 0.0, 0.80), (0.42, 0.0, 0.13), 39)
    scene.add_camera(spec, "spectator", (1.45, -0.95, 0.85), (0.28, 0.0, 0.22), 40)
    return spec


_VIPERX_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")


def _add_objects(spec: mujoco.MjSpec, setting: str) -> None:
    """What lies on a table."""
    if setting == EASY:
        scene.add_cubes(spec, OBJECTS, half=0.03)
        return
    scene.add_things(spec, OBJECTS)
    scene.add_pads(spec, PADS, radius=0.06)
    scene.add_clutter(spec, CLUTTER)
    scene.add_surfaces(spec)


def _build_aloha(setting: str) -> mujoco.MjSpec:
    spec = _load("aloha")
    for name in ("table", "midair", "box"):
        spec.delete(spec.body(name))
    for camera in list(spec.cameras):
        spec.delete(camera)
    _compensate_gravity(spec)
    spec.compiler.inertiagrouprange = [0, 5]
    spec.add_material(name="viperx", rgba=[0.20, 0.21, 0.24, 1.0], specular=0.4, shininess=0.5)
    spec.add_material(name="viperx_joint", rgba=[0.52, 0.54, 0.58, 1.0], specular=0.4, shininess=0.5)
    for geom in spec.geoms:
        light = any(part in geom.name for part in ("shoulder", "forearm", "gripper_prop", "finger"))
        geom.material = "viperx_joint" if light else "viperx"
        # Only the fingers touch things: contact between the meshes of the links costs most of a step.
        if "finger" not in geom.name:
            geom.contype, geom.conaffinity = 0, 0
    # The model's friction of 30 to 60 N m holds its soft wrist servos far from their targets, and the servos
    # have no damping of their own.
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    for joint in spec.joints:
        joint.frictionloss = 0.5
        joint.armature = 0.02
    for actuator in spec.actuators:
        if "finger" in actuator.target:
            actuator.biasprm[2] = -10.0
        elif any(part in actuator.target for part in ("forearm_roll", "wrist")):
            _position_servo(actuator, 200.0, 10.0)
        else:
            _position_servo(actuator, actuator.gainprm[0], 0.06 * actuator.gainprm[0])
    for side in ("left", "right"):
        gripper = f"vx300s_{side}/gripper_link"
        spec.body(gripper).add_site(name=f"{side}_tool", pos=[0.13, 0, 0])
        scene.add_camera(spec, f"cam_{side}_wrist", (0.03, 0.0, 0.10), (0.15, 0.0, 0.0), 80, body=gripper)
    scene.dress(spec)
    scene.add_floor(spec, -0.75)
    scene.add_table(spec, (0.0, 0.5, 0.0), (1.30, 0.90), floor=-0.75)
    _add_objects(spec, setting)
    scene.add_camera(spec, "ego", (0.0, -0.28, 0.75), (0.0, 0.5, 0.08), 52)
    scene.add_camera(spec, "spectator", (0.40, -0.95, 0.80), (0.0, 0.48, 0.10), 44)
    return spec


def _build_tiago(setting: str) -> mujoco.MjSpec:
    spec = _load("tiago")
    spec.delete(spec.body("Target"))
    spec.delete(spec.geom("ground"))
    for site in list(spec.sites):
        if site.parent.name in ("world", "tiagobase"):
            spec.delete(site)
    # Wide wheels and casters that drag make the base turn up to 12 % less than its wheels say.
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10.0
    for geom in spec.geoms:
        if geom.parent.name.startswith("tiagobase_wheel"):
            geom.size = [0.0985, 0.005, 0]
            geom.condim, geom.priority = 3, 1
        elif geom.parent.name.startswith("tiagobase_caster"):
            geom.condim, geom.priority = 1, 1
    # The camera on board sees nothing of the robot.
    for geom in spec.geoms:
        geom.group = scene.SPECTATOR_ONLY
    mast = spec.body("tiagobase_base_link")
    spec.add_material(name="mast", rgba=[0.30, 0.31, 0.34, 1.0], specular=0.4, shininess=0.5)
    look = {"contype": 0, "conaffinity": 0, "group": scene.SPECTATOR_ONLY, "mass": 0.0, "material": "mast"}
    wheel_height = 0.0985
    mast.add_geom(
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        size=[0.025, 0.22, 0],
        pos=[0.05, 0, 0.42 - wheel_height + 0.08],
        **look,
    )
    mast.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX, size=[0.03, 0.07, 0.03], pos=[0.07, 0, 0.75 - wheel_height], **look
    )
    mast.add_camera(
        name="ego",
        pos=[0.1, 0, 0.75 - wheel_height],
        fovy=90,
        quat=_forward_camera(np.deg2rad(17.0)),
    )
    scene.dress(spec, centre=(1.2, 0.0, 0.3), extent=3.5)
    scene.add_floor(spec, 0.0, condim=1)
    scene.add_pillars(spec, OBJECTS, radius=0.14, height=0.9)
    if setting == FULL:
        scene.add_clutter(spec, CLUTTER)
        scene.add_surfaces(spec)
    scene.add_camera(spec, "spectator", (-1.9, -1.7, 2.2), (1.0, 0.10, 0.1), 48)
    return spec


def _forward_camera(pitch: float) -> np.ndarray:
    """Quaternion of a camera that looks along x of its body, turned down by `pitch` [rad]."""
    forward = np.array([np.cos(pitch), 0.0, -np.sin(pitch)])
    right = np.array([0.0, -1.0, 0.0])
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, np.column_stack([right, np.cross(right, forward), -forward]).ravel())
    return quat


_G1_JOINTS = (
    "shoulder_pitch",
    "shoulder_roll",
    "shoulder_yaw",
    "elbow",
    "wrist_roll",
    "wrist_pitch",
    "wrist_yaw",
)


def _build_g1(setting: str) -> mujoco.MjSpec:
    spec = _load("g1")
    arms = {f"{side}_{joint}_joint" for side in ("left", "right") for joint in _G1_JOINTS}
    for actuator in list(spec.actuators):
        if actuator.target not in arms:
            spec.delete(actuator)
        else:
            _position_servo(actuator, 150.0, 8.0)
    # The pelvis is fixed to the world; legs and waist are rigid.
    for joint in list(spec.joints):
        if joint.name not in arms:
            spec.delete(joint)
    for pair in list(spec.pairs):
        spec.delete(pair)
    for sensor in list(spec.sensors):
        spec.delete(sensor)
    for camera in list(spec.cameras):
        spec.delete(camera)
    _compensate_gravity(spec)
    spec.add_material(name="g1_light", rgba=[0.80, 0.81, 0.84, 1.0], specular=0.3, shininess=0.4)
    spec.add_material(name="g1_hand", rgba=[0.16, 0.17, 0.19, 1.0], specular=0.3, shininess=0.4)
    for geom in spec.geoms:
        fine = geom.type == mujoco.mjtGeom.mjGEOM_MESH
        geom.group = scene.SPECTATOR_ONLY if fine else scene.POLICY_ONLY
        if not fine:
            geom.material = "g1_hand" if "hand" in geom.name else "g1_light"
            geom.rgba = [0.5, 0.5, 0.5, 1.0]
    for side in ("left", "right"):
        spec.body(f"{side}_wrist_yaw_link").add_site(name=f"{side}_tool", pos=[0.10, 0, 0])
    # Where the robot has its depth camera: the head, looking down by 47.6 degrees.
    spec.body("torso_link").add_camera(
        name="ego", pos=[0.0576, 0.0175, 0.4299], fovy=62, quat=_forward_camera(0.8307767)
    )
    scene.dress(spec)
    scene.add_floor(spec, 0.0)
    scene.add_table(spec, (0.52, 0.0, 0.72), (0.60, 1.10), floor=0.0, collide=False)
    scene.add_balls(spec, OBJECTS, radius=0.04, stand=0.14)
    if setting == FULL:
        scene.add_clutter(spec, CLUTTER)
        scene.add_surfaces(spec)
    scene.add_camera(spec, "spectator", (1.75, -1.15, 1.45), (0.15, 0.0, 0.88), 40)
    return spec


def _panda() -> Body:
    arm = {f"panda_joint{i}": value for i, value in enumerate((0.0, -0.1, 0.0, -2.3, 0.0, 2.2, 0.785), 1)}
    joints = {f"panda_joint{i}": Joint(f"joint{i}") for i in range(1, 8)}
    joints["panda_finger_joint1"] = Joint("finger_joint1", {"finger_joint2": 1.0})
    return Body(
        name="panda",
        build=_build_panda,
        channels=tuple(joints),
        joints=joints,
        tasks=("reach", "push", "pick_up", "place", "reach_pad"),
        embodiment="franka_panda",
        cameras={
            "ego": Camera((128, 128)),
            "cam_wrist": Camera((128, 128)),
            "spectator": Camera((640, 480), spectator=True),
        },
        jittered={"ego": SHIFT, "cam_wrist": SCREWED},
        arms=(
            Arm(
                None,
                "tool",
                arm,
                down=0.3,
                gripper="panda_finger_joint1",
                opening=(0.0, 0.04),
                thickness=0.011,
                space=((0.30, -0.40, 0.0), (0.70, 0.40, 0.40)),
            ),
        ),
    )


def _aloha() -> Body:
    joints: dict[str, Joint] = {}
    arms = []
    for side in ("left", "right"):
        names = [f"vx300s_{side}/{joint}" for joint in _VIPERX_JOINTS]
        seed = dict(zip(names, (0.0, -0.2, 0.55, 0.0, 0.75, 0.0), strict=True))
        finger = f"vx300s_{side}/left_finger"
        reach = (-0.30, 0.25) if side == "left" else (-0.25, 0.30)
        arms.append(
            Arm(
                side,
                f"{side}_tool",
                seed,
                gripper=finger,
                opening=(0.021, 0.057),
                thickness=0.012,
                rigid=(names[3], names[5]),
                approach=0,
                space=((reach[0], 0.30, 0.0), (reach[1], 0.70, 0.30)),
            )
        )
        joints.update({name: Joint(name) for name in names})
        joints[finger] = Joint(finger, {f"vx300s_{side}/right_finger": -1.0})
    return Body(
        name="aloha",
        build=_build_aloha,
        channels=tuple(joints),
        joints=joints,
        tasks=("reach_with_arm", "reach_with_both", "pick_up_with_arm"),
        embodiment="aloha_viperx",
        cameras={
            "ego": Camera((128, 128)),
            "cam_left_wrist": Camera((128, 128)),
            "cam_right_wrist": Camera((128, 128)),
            "spectator": Camera((640, 480), spectator=True),
        },
        jittered={"ego": SHIFT, "cam_left_wrist": SCREWED, "cam_right_wrist": SCREWED},
        arms=tuple(arms),
    )


def _tiago() -> Body:
    return Body(
        name="tiago",
        build=_build_tiago,
        channels=("dx", "dy", "dtheta"),
        joints={
            "wheel_left_joint": Joint("tiagobase_joint1", actuated=False),
            "wheel_right_joint": Joint("tiagobase_joint2", actuated=False),
        },
        tasks=("drive", "stop_in_front", "go_between"),
        embodiment="tiago_base",
        base=Base("tiagobase", "tiagobase_joint1", "tiagobase_joint2", radius=0.0985, track=0.4044),
    )


def _g1() -> Body:
    joints: dict[str, Joint] = {}
    arms = []
    for side, sign in (("left", 1.0), ("right", -1.0)):
        names = [f"{side}_{joint}_joint" for joint in _G1_JOINTS]
        joints.update({name: Joint(name) for name in names})
        seed = dict(zip(names, (-0.5, 0.2 * sign, 0.0, 0.6, 0.0, 0.0, 0.0), strict=True))
        arms.append(Arm(side, f"{side}_tool", seed))
    return Body(
        name="g1",
        build=_build_g1,
        channels=tuple(joints),
        joints=joints,
        tasks=("touch", "point", "wave"),
        embodiment="unitree_g1",
        arms=tuple(arms),
    )


BODIES: Mapping[str, Callable[[], Body]] = {"panda": _panda, "aloha": _aloha, "tiago": _tiago, "g1": _g1}


def get_body(name: str) -> Body:
    """The body of that name; raises SimulationError with the names that exist."""
    try:
        return BODIES[name]()
    except KeyError:
        raise SimulationError(f"no simulated body {name!r}; there are {', '.join(BODIES)}") from None
