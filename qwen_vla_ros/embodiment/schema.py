# SPDX-License-Identifier: Apache-2.0
"""What an embodiment YAML may say."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Discriminator, Field, StrictBool, StrictInt, Tag
from pydantic.types import AllowInfNan, Strict

from qwen_vla_ros.embodiment.errors import EmbodimentError, Fault
from qwen_vla_ros.embodiment.layout import ChannelLayout

Array = npt.NDArray[np.float64]

# The widest action tensor that is accepted while no checkpoint is known (Qwen-VLA's K; H is our bound).
MAX_CHANNELS = 64
MAX_HORIZON = 64

# The bounds only keep arithmetic away from overflow.
Number = Annotated[float, Strict(), AllowInfNan(False), Field(ge=-1e6, le=1e6)]
Positive = Annotated[float, Strict(), AllowInfNan(False), Field(gt=0.0, le=1e6)]
# Ages and timeouts: whoever writes more wrote milliseconds, and nothing would ever be too old.
MAX_SECONDS = 10.0
Seconds = Annotated[float, Strict(), AllowInfNan(False), Field(gt=0.0, le=MAX_SECONDS)]
_IDENTIFIER = r"^[a-z][a-z0-9_]*$"
# Whatever CAD programs write into URDF files.
_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_./: -]*$"
_TOPIC = r"^(~/|/)?[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*$"
# What the patterns say, for messages.
WORDS = {
    _IDENTIFIER: "lower-case letters, digits and '_', a letter first",
    _NAME: "letters, digits, '_', '.', '/', ':', '-' and blanks, a letter, a digit or '_' first",
    _TOPIC: "a ROS name such as camera/image_raw, /joint_states or ~/command",
}
Identifier = Annotated[str, Field(pattern=_IDENTIFIER, max_length=64)]
JointName = Annotated[str, Field(pattern=_NAME, max_length=128)]
Topic = Annotated[str, Field(pattern=_TOPIC, max_length=255)]
Frame = Annotated[str, Field(pattern=_NAME, max_length=128)]


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _one_or_each(value: Any) -> str:
    return "each" if _is_list(value) else "one"


def _range_or_each(value: Any) -> str:
    return "each" if _is_list(value) and len(value) > 0 and _is_list(value[0]) else "one"


Range = Annotated[tuple[Number, ...], Field(min_length=2, max_length=2)]
PerJoint = Annotated[
    Annotated[Positive, Tag("one")] | Annotated[tuple[Positive, ...], Tag("each")],
    Discriminator(_one_or_each),
]
PerJointUnit = Annotated[
    Annotated[Literal["rad", "m"], Tag("one")] | Annotated[tuple[Literal["rad", "m"], ...], Tag("each")],
    Discriminator(_one_or_each),
]
PerJointRange = Annotated[
    Annotated[Range, Tag("one")] | Annotated[tuple[Range, ...], Tag("each")],
    Discriminator(_range_or_each),
]


# As a range, but the first may be the larger: some grippers count from open to closed.
PerJointSpan = PerJointRange


class Record(BaseModel):
    """Base of all parts: unknown keys are faults, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Prompt(Record):
    """Slots of the prompt that belong to the robot."""

    robot_tag: Annotated[
        str, Field(min_length=1, max_length=128, description="Name of the robot in the prompt")
    ]
    arms: Annotated[Literal["single", "dual", "none"], Field(description="Arms that the actions move")]
    waist: Annotated[StrictBool, Field(description="The actions move a waist")] = False
    mobile_base: Annotated[StrictBool, Field(description="The actions move a base")] = False
    state: Annotated[StrictBool, Field(description="Put the state, in 256 bins, before the instruction")] = (
        False
    )
    template: Annotated[
        str | None,
        Field(
            max_length=2048,
            description="Sentence in place of the default one; slots {robot_tag} {body} {fps} {chunk_size} "
            "{ori_instruction}, the last one required",
        ),
    ] = None


class Camera(Record):
    """One view of the model and the image topic that feeds it."""

    view: Annotated[Identifier, Field(description="Name of the view in the prompt")]
    topic: Annotated[Topic, Field(description="Image topic")]
    transport: Annotated[
        Literal["raw", "compressed"], Field(description="sensor_msgs/Image or sensor_msgs/CompressedImage")
    ] = "raw"
    encodings: Annotated[
        tuple[Literal["rgb8", "bgr8", "rgba8", "bgra8", "mono8", "jpeg", "png"], ...],
        Field(min_length=1, description="Encodings that are accepted; jpeg and png belong to compressed"),
    ] = ("rgb8", "bgr8")
    depth: Annotated[
        Topic | None,
        Field(
            description="Depth of the same pixels, for policies that use it: sensor_msgs/Image, 16UC1 in mm "
            "or 32FC1 in m (REP 118)"
        ),
    ] = None
    size: Annotated[
        tuple[Annotated[StrictInt, Field(ge=1, le=8192)], ...],
        Field(min_length=2, max_length=2, description="Width and height of the published image [px]"),
    ]
    rotate: Annotated[
        Literal[0, 90, 180, 270],
        Field(description="Turn of the published image, clockwise, before the model sees it [deg]"),
    ] = 0
    required: Annotated[StrictBool, Field(description="No observation without it")] = True
    max_age: Annotated[
        Seconds, Field(description="Age at which its newest image is stale, in seconds [s]")
    ] = 0.5


class PoseTopic(Record):
    """A pose of the base that is not odometry: of a localisation, motion capture or visual SLAM."""

    topic: Topic
    type: Annotated[
        Literal["pose_stamped", "pose_with_covariance_stamped"],
        Field(description="geometry_msgs/PoseStamped or geometry_msgs/PoseWithCovarianceStamped"),
    ]


class PoseSource(NamedTuple):
    """Where the pose of the base comes from.

    Attributes:
        path: where the YAML names the topic.
        type: `odometry`, or the type of a pose.
    """

    path: tuple[str, ...]
    topic: str
    type: str


class State(Record):
    """Where the state of the robot comes from."""

    joint_states: Annotated[tuple[Topic, ...], Field(description="sensor_msgs/JointState topics")] = ()
    joint_names: Annotated[
        dict[Topic, Annotated[tuple[JointName, ...], Field(min_length=1)]],
        Field(
            description="Names of the positions of a topic, in its order, where its messages name none or "
            "name the joints otherwise"
        ),
    ] = {}
    odometry: Annotated[Topic | None, Field(description="nav_msgs/Odometry topic")] = None
    pose: Annotated[PoseTopic | None, Field(description="Pose of the base, in place of odometry")] = None
    max_age: Annotated[
        Seconds, Field(description="Age at which the newest state is stale, in seconds [s]")
    ] = 0.3

    @property
    def base(self) -> PoseSource | None:
        """Where the pose of the base comes from, whichever of the two the YAML gives."""
        if self.pose is not None:
            return PoseSource(("state", "pose", "topic"), self.pose.topic, self.pose.type)
        return PoseSource(("state", "odometry"), self.odometry, "odometry") if self.odometry else None


class Normalisation(Record):
    """Statistics of a group in place of the checkpoint's, in the unit of the group."""

    q01: Annotated[tuple[Number, ...], Field(min_length=1, description="First percentile per channel")]
    q99: Annotated[tuple[Number, ...], Field(min_length=1, description="99th percentile per channel")]


MessageNames = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=128)], ...] | None,
    Field(min_length=1, description="Names in the message, where they are not the `joints` of the group"),
]


class JointTrajectoryController(Record):
    """trajectory_msgs/JointTrajectory, as ros2_control's joint_trajectory_controller takes it."""

    type: Literal["joint_trajectory"]
    topic: Topic
    names: MessageNames = None


class FollowJointTrajectoryController(Record):
    """control_msgs/FollowJointTrajectory action, for drivers that offer no topic."""

    type: Literal["follow_joint_trajectory"]
    topic: Annotated[Topic, Field(description="Name of the action")]
    names: MessageNames = None


class ForwardCommandController(Record):
    """std_msgs/Float64MultiArray, as ros2_control's forward_command_controller takes it."""

    type: Literal["forward_command"]
    topic: Topic


class JointStateController(Record):
    """sensor_msgs/JointState with positions, as some vendors' drivers take it."""

    type: Literal["joint_state"]
    topic: Topic
    names: MessageNames = None


class GripperCommandController(Record):
    """control_msgs/GripperCommand action, as ros2_control's gripper_action_controller takes it."""

    type: Literal["gripper_command"]
    topic: Annotated[Topic, Field(description="Name of the action")]
    max_effort: Annotated[
        Number, Field(ge=0.0, description="Effort of the command; 0 leaves it open [N]")
    ] = 0.0


class ParallelGripperCommandController(Record):
    """control_msgs/ParallelGripperCommand action, as ros2_control's parallel_gripper_action_controller."""

    type: Literal["parallel_gripper_command"]
    topic: Annotated[Topic, Field(description="Name of the action")]


class CartesianPoseController(Record):
    """geometry_msgs/PoseStamped of the end effector, in the frame of the group."""

    type: Literal["cartesian_pose"]
    topic: Topic


class CartesianTwistController(Record):
    """geometry_msgs/TwistStamped of the end effector in the frame of the group, as MoveIt Servo takes it."""

    type: Literal["cartesian_twist"]
    topic: Topic


class DiffDriveController(Record):
    """geometry_msgs/Twist or TwistStamped, as ros2_control's diff_drive_controller takes it."""

    type: Literal["diff_drive"]
    topic: Topic
    stamped: Annotated[StrictBool, Field(description="TwistStamped (true) or Twist (false)")]


class OmniDriveController(Record):
    """As `diff_drive`, for a base that also moves sideways: omni_wheel_drive_controller, mecanum_drive."""

    type: Literal["omni_drive"]
    topic: Topic
    stamped: Annotated[StrictBool, Field(description="TwistStamped (true) or Twist (false)")]


class PathController(Record):
    """nav_msgs/Path of the waypoints, for a navigation stack that drives the base itself."""

    type: Literal["path"]
    topic: Topic


JointController = Annotated[
    JointTrajectoryController
    | FollowJointTrajectoryController
    | ForwardCommandController
    | JointStateController,
    Discriminator("type"),
]
GripperController = Annotated[
    JointTrajectoryController
    | FollowJointTrajectoryController
    | ForwardCommandController
    | JointStateController
    | GripperCommandController
    | ParallelGripperCommandController,
    Discriminator("type"),
]
EefController = Annotated[
    CartesianPoseController
    | CartesianTwistController
    | JointTrajectoryController
    | FollowJointTrajectoryController
    | ForwardCommandController
    | JointStateController,
    Discriminator("type"),
]
BaseController = Annotated[DiffDriveController | OmniDriveController, Discriminator("type")]
WaypointController = Annotated[
    DiffDriveController | OmniDriveController | PathController, Discriminator("type")
]


class JointLimitsField(Record):
    position: Annotated[PerJointRange, Field(description="[low, high] for all joints, or one pair per joint")]
    margin: Annotated[Number, Field(ge=0.0, description="Commands stay this far inside the positions")] = 0.0
    velocity: Annotated[PerJoint, Field(description="[unit/s]")]
    acceleration: Annotated[PerJoint, Field(description="[unit/s^2]")]
    jerk: Annotated[PerJoint, Field(description="[unit/s^3]")]
    ramp: Annotated[
        Positive | None,
        Field(description="Longest way to rest [s]: no joint moves faster than it can stop in that time"),
    ] = None


class JointLimits:
    """Limits of the n joints of a group, in its unit.

    Attributes:
        position: low and high. Shape (n, 2).
        margin: how far inside them commands stay.
        velocity, acceleration, jerk: Shape (n,). The velocity is one from which a ramp of the length that the
            embodiment allows leads to rest, where it names one.
    """

    position: Array
    margin: float
    velocity: Array
    acceleration: Array
    jerk: Array

    def __init__(self, field: JointLimitsField, count: int) -> None:
        self.position = _frozen(np.broadcast_to(np.asarray(field.position, dtype=np.float64), (count, 2)))
        self.margin = field.margin
        for name in ("velocity", "acceleration", "jerk"):
            setattr(
                self,
                name,
                _frozen(np.broadcast_to(np.asarray(getattr(field, name), dtype=np.float64), (count,))),
            )
        if field.ramp is not None:
            # To rest from a velocity v, still speeding up, takes v / a + 2 a / j.
            most = self.acceleration * (field.ramp - 2.0 * self.acceleration / self.jerk)
            self.velocity = _frozen(np.minimum(self.velocity, most))


def _frozen(array: Array) -> Array:
    copy = np.array(array)
    copy.setflags(write=False)
    return copy


class RateLimits(Record):
    """Limits of one motion: [m] or [rad], per second, per second squared, per second cubed."""

    velocity: Positive
    acceleration: Positive
    jerk: Positive


class MotionLimits(Record):
    """Limits of a base or an end effector."""

    linear: Annotated[RateLimits, Field(description="[m/s], [m/s^2], [m/s^3]")]
    angular: Annotated[RateLimits, Field(description="[rad/s], [rad/s^2], [rad/s^3]")]


class Group(Record):
    name: Annotated[Identifier, Field(description="Name of the group; its channels are name/channel")]
    normalisation: Normalisation | None = None

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels without that of the group."""
        raise NotImplementedError

    @property
    def units(self) -> tuple[str, ...]:
        """Unit of each channel."""
        raise NotImplementedError

    @property
    def count(self) -> int:
        """Number of channels."""
        return len(self.channels)


class JointGroup(Group):
    """What the groups of joints share."""

    joints: Annotated[
        tuple[JointName, ...], Field(min_length=1, description="As in /joint_states, in channel order")
    ]
    reference: Annotated[
        Literal["absolute", "chunk_start", "previous_step"],
        Field(
            description="What a row is relative to: nothing, the joints at the observation, the row before"
        ),
    ]
    unit: Any
    virtual: Annotated[
        dict[JointName, tuple[JointName, ...]],
        Field(
            description="Joints that only the driver has: each is the sum of these joints of the URDF, in "
            "equal parts; an empty list where nothing in the URDF moves with it"
        ),
    ] = {}
    limits_field: Annotated[
        JointLimitsField, Field(alias="limits", description="Never exceeded by a command")
    ]

    @property
    def channels(self) -> tuple[str, ...]:
        return self.joints

    @property
    def units(self) -> tuple[str, ...]:
        return (self.unit,) * self.count if isinstance(self.unit, str) else tuple(self.unit)

    @cached_property
    def limits(self) -> JointLimits:
        """Limits as arrays, one entry per joint."""
        return JointLimits(self.limits_field, len(self.joints))

    @property
    def described(self) -> tuple[str, ...]:
        """Joints of the URDF that the group moves: parts in place of a virtual joint."""
        return tuple(name for joint in self.joints for name in self.virtual.get(joint, (joint,)))


class JointPositionGroup(JointGroup):
    """Positions of joints."""

    kind: Literal["joint_position"]
    continuous: Annotated[
        tuple[JointName, ...],
        Field(description="Joints that turn without end: no position limit, and the shorter way to a value"),
    ] = ()
    unit: Annotated[PerJointUnit, Field(description="One for all, or one per joint")]
    controller: JointController


class OpeningGroup(JointGroup):
    """What the groups share that open and close."""

    unit: Literal["rad", "m", "fraction"]
    opening_field: Annotated[
        PerJointSpan,
        Field(
            alias="opening",
            description="With `fraction`: [closed, open] as joint states and controller count them, one pair "
            "for all joints or one per joint",
        ),
    ] = (0.0, 1.0)

    @cached_property
    def opening(self) -> Array:
        """Joint values closed (fraction 0) and open (fraction 1), as the robot counts. Shape (n, 2)."""
        return _frozen(np.broadcast_to(np.asarray(self.opening_field, dtype=np.float64), (self.count, 2)))


class GripperGroup(OpeningGroup):
    """Opening of a gripper; `fraction` is 0 closed, 1 open."""

    kind: Literal["gripper"]
    threshold: Annotated[
        Number | None,
        Field(description="Binary gripper: values above it mean the high limit, others the low one"),
    ] = None
    hysteresis: Annotated[
        Number, Field(ge=0.0, description="How far beyond the threshold a value must lie to change sides")
    ] = 0.0
    controller: GripperController


class HandGroup(OpeningGroup):
    """Positions of the joints of a dexterous hand."""

    kind: Literal["hand"]
    unit: Literal["rad", "fraction"]
    controller: JointController


ROTATION_CHANNELS: dict[str, tuple[str, ...]] = {
    "rpy": ("roll", "pitch", "yaw"),
    "axis_angle": ("rx", "ry", "rz"),
    "rot6d": ("r11", "r21", "r31", "r12", "r22", "r32"),
}


class InverseKinematics(Record):
    """The joints that bring about the pose of an end effector."""

    joints: Annotated[
        tuple[JointName, ...], Field(min_length=1, description="As in /joint_states, from base to tip")
    ]
    limits_field: Annotated[
        JointLimitsField, Field(alias="limits", description="Of the joints; never exceeded by a command")
    ]
    urdf: Annotated[
        str | None,
        Field(max_length=512, description="URDF with `frame`, the joints and `tip`; relative to this file"),
    ] = None

    @cached_property
    def limits(self) -> JointLimits:
        """Limits as arrays, one entry per joint."""
        return JointLimits(self.limits_field, len(self.joints))


class EefDeltaGroup(Group):
    """Change of the pose of an end effector: translation and rotation."""

    kind: Literal["eef_delta"]
    unit: Literal["m, rad"] = "m, rad"
    rotation: Annotated[
        Literal["rpy", "axis_angle", "rot6d"],
        Field(
            description="Fixed-axis roll, pitch, yaw; rotation vector; or the first two columns of the matrix"
        ),
    ]
    reference: Annotated[
        Literal["chunk_start", "previous_step"], Field(description="Pose that a row is relative to")
    ]
    frame: Annotated[Frame, Field(description="Frame whose axes the change is written in")]
    tip: Annotated[Frame, Field(description="Frame of the end effector")]
    limits: MotionLimits
    workspace: Annotated[
        tuple[Range, ...] | None,
        Field(min_length=3, max_length=3, description="[low, high] of x, y, z that `tip` never leaves [m]"),
    ] = None
    ik: Annotated[
        InverseKinematics | None, Field(description="Joints that move the tip; the executor needs it")
    ] = None
    controller: Annotated[
        EefController, Field(description="Takes poses or twists of `tip` in `frame`, or the joints of `ik`")
    ]

    @property
    def joints(self) -> tuple[str, ...]:
        """Joints that bring the pose about."""
        return self.ik.joints if self.ik is not None else ()

    @property
    def channels(self) -> tuple[str, ...]:
        return ("x", "y", "z", *ROTATION_CHANNELS[self.rotation])

    @property
    def units(self) -> tuple[str, ...]:
        turn = ("1",) * 6 if self.rotation == "rot6d" else ("rad",) * 3
        return ("m",) * 3 + turn


class WaypointGroup(Group):
    """Waypoints of a base in the ground plane."""

    kind: Literal["waypoint"]
    unit: Literal["m, rad"] = "m, rad"
    reference: Annotated[
        Literal["chunk_start"], Field(description="Rows are poses relative to that at the observation")
    ] = "chunk_start"
    frame: Annotated[Frame, Field(description="Frame of the base: x forward, y left, theta counterclockwise")]
    limits: MotionLimits
    controller: WaypointController

    @property
    def channels(self) -> tuple[str, ...]:
        return ("dx", "dy", "dtheta")

    @property
    def units(self) -> tuple[str, ...]:
        return ("m", "m", "rad")


class BaseVelocityGroup(Group):
    """Velocity of a base in its own frame; sideways too where the controller is `omni_drive`."""

    kind: Literal["base_velocity"]
    unit: Literal["m/s, rad/s"] = "m/s, rad/s"
    reference: Literal["absolute"] = "absolute"
    frame: Annotated[Frame, Field(description="Frame of the base: x forward, counterclockwise positive")]
    limits: MotionLimits
    controller: BaseController

    @property
    def channels(self) -> tuple[str, ...]:
        return ("vx", "vy", "wz") if self.controller.type == "omni_drive" else ("vx", "wz")

    @property
    def units(self) -> tuple[str, ...]:
        return ("m/s",) * (self.count - 1) + ("rad/s",)


ActionGroup = Annotated[
    JointPositionGroup | GripperGroup | HandGroup | EefDeltaGroup | WaypointGroup | BaseVelocityGroup,
    Discriminator("kind"),
]


def json_schema() -> dict[str, Any]:
    """JSON Schema of embodiment files, for editors. Rules between fields are `load_embodiment`'s alone."""
    schema = Embodiment.model_json_schema(by_alias=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "qwen_vla_ros embodiment",
    }


class Stop(Record):
    """When the executor stops the robot."""

    heartbeat_timeout: Annotated[
        Seconds, Field(description="Silence of a policy whose process lives, before a stop, in seconds [s]")
    ] = 0.5
    chunk_max_age: Annotated[
        Seconds,
        Field(description="Age of the observation at which a chunk is refused on arrival, in seconds [s]"),
    ] = 1.0


class Motion(Record):
    """How the executor follows chunks."""

    mode: Annotated[
        Literal["replace", "ensemble", "rtc"],
        Field(description="How a chunk takes over from the one before; see docs/motion.md"),
    ] = "replace"
    decay: Annotated[
        Number, Field(description="Ensemble: a chunk weighs exp(-decay) of the one before it")
    ] = 0.1


class SimulatedCamera(Record):
    """Where a view is seen from, in a simulation made from a model."""

    position: Annotated[
        tuple[Number, ...], Field(min_length=3, max_length=3, description="In `link`, or in the world [m]")
    ]
    target: Annotated[
        tuple[Number, ...], Field(min_length=3, max_length=3, description="What it looks at, likewise [m]")
    ]
    fov: Annotated[Number, Field(ge=1.0, le=170.0, description="Vertical field of view [deg]")] = 60.0
    link: Annotated[Frame | None, Field(description="Link that carries it; none: it stands still")] = None


class Simulation(Record):
    """What stands for the robot in `qwen_vla_ros.sim`: one of its bodies, or a model."""

    body: Annotated[
        Identifier | None, Field(description="A body of the simulation, with tasks: panda, aloha, ...")
    ] = None
    model: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=512,
            description="URDF or MJCF file, relative to this one; with `package` relative to site-packages",
        ),
    ] = None
    package: Annotated[
        str | None, Field(min_length=1, max_length=128, description="What pip installs to bring `model`")
    ] = None
    joints: Annotated[
        dict[JointName, Annotated[str, Field(min_length=1, max_length=128)]],
        Field(description="Name in the model of a joint that has another there"),
    ] = {}
    cameras: Annotated[
        dict[Identifier, SimulatedCamera], Field(description="Places of views; a guess where none is given")
    ] = {}


class Embodiment(Record):
    """One robot as the model and the controllers see it."""

    schema_version: Annotated[Literal[1], Field(alias="schema", description="Version of this format")]
    name: Annotated[Identifier, Field(description="Name of the embodiment and of its file")]
    description: Annotated[str, Field(min_length=1, max_length=512)]
    prompt: Prompt
    scene: Annotated[
        Literal["arm", "bimanual", "base", "humanoid"] | None,
        Field(description="World of Gazebo and picture of RViz; by `arms` of the prompt where left out"),
    ] = None
    control_rate: Annotated[Positive, Field(le=1000.0, description="Rate of the model's actions [Hz]")]
    command_rate: Annotated[Positive, Field(le=1000.0, description="Rate of the executor's commands [Hz]")]
    horizon: Annotated[StrictInt, Field(ge=1, description="Rows of a chunk")]
    execute_steps: Annotated[
        StrictInt, Field(ge=1, description="Rows followed before the next chunk is asked for")
    ]
    cameras: Annotated[
        tuple[Camera, ...], Field(min_length=1, description="In the order in which the model sees them")
    ]
    max_camera_skew: Annotated[
        Seconds, Field(description="Difference of capture times within one observation, in seconds [s]")
    ] = 0.1
    state: State
    actions: Annotated[tuple[ActionGroup, ...], Field(min_length=1, description="Groups in channel order")]
    home: Annotated[dict[JointName, Number], Field(description="Position of every joint at rest")] = {}
    motion: Motion = Motion()
    stop: Stop = Stop()
    simulation: Simulation | None = None

    @cached_property
    def layout(self) -> ChannelLayout:
        """Columns of the action tensor."""
        return ChannelLayout(
            names=tuple(f"{group.name}/{channel}" for group in self.actions for channel in group.channels),
            groups=tuple(group.name for group in self.actions),
            sizes=tuple(group.count for group in self.actions),
            horizon=self.horizon,
        )

    @property
    def grippers(self) -> tuple[int, ...]:
        """Columns of the action tensor that open and close grippers."""
        slices = [self.layout.slice_of(group.name) for group in self.actions if group.kind == "gripper"]
        return tuple(column for each in slices for column in range(each.start, each.stop))

    @property
    def joints(self) -> tuple[str, ...]:
        """Joints of all groups, in the order of the groups; those that move an end effector too."""
        return tuple(joint for group in self.actions for joint in getattr(group, "joints", ()))

    def posture(self) -> dict[str, float]:
        """A posture of all joints, in the units of their groups: `home`, or where there is none a guess.

        Fractions open; others zero, or the middle of their range where zero is outside.
        """
        if self.home:
            return dict(self.home)
        found = {}
        for group in self.actions:
            part: Any = getattr(group, "ik", None) or group
            for k, name in enumerate(getattr(part, "joints", ())):
                low, high = map(float, part.limits.position[k])
                middle = 0.0 if low <= 0.0 <= high else 0.5 * (low + high)
                found[name] = high if getattr(group, "unit", "") == "fraction" else middle
        return found

    def check_against(self, K: int, H: int) -> None:
        """Make sure that a checkpoint's action tensor (H, K) holds this embodiment.

        Raises:
            EmbodimentError: too many channels or too long a horizon.
        """
        faults = []
        if self.layout.count > K:
            faults.append(
                Fault(("actions",), f"{self.layout.count} channels", f"at most K = {K} of the checkpoint")
            )
        if self.horizon > H:
            faults.append(Fault(("horizon",), str(self.horizon), f"at most H = {H} of the checkpoint"))
        if faults:
            raise EmbodimentError(f"embodiment {self.name}", faults)
