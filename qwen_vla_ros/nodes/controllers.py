# SPDX-License-Identifier: Apache-2.0
"""Write commands to the topics and actions of controllers."""

from __future__ import annotations

import array
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point, PoseStamped, Quaternion, Twist, TwistStamped, Vector3
from nav_msgs.msg import Path
from rclpy.action import ActionClient
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from qwen_vla_ros.motion.follower import BaseCommand, Command, JointCommand, PathCommand

from . import qos
from .cdr import Mould
from .transforms import quaternion_from_euler

# A goal holds the commands of this long: actions are no streams [s].
GOAL_PERIOD = 0.1

# How long after the last command what was sent, and whether it was refused, is forgotten [s].
FORGET_PERIOD = 1.0

# How often a set-point that is held is said again [s]: one message may be lost, a hundred in a second cost.
REPEAT_PERIOD = 0.1

# By how much the first goal of a motion is early [s].
SLACK = 0.05

# How far behind an action may be without a word [s].
WARN_LAG = 0.3

# How long an answer to "is the action server there" counts [s].
LOOK_PERIOD = 0.1


class UnsupportedController(ValueError):
    """A controller that cannot be written to; the text says why and what to do."""


def make_writer(node: Node, group: Any, period: float) -> TopicWriter | ActionWriter:
    """The writer of an action group's controller.

    Args:
        period: between commands [s].

    Raises:
        UnsupportedController: no such writer, or one that needs what is not installed.
    """
    kind = group.controller.type
    if kind in _TOPICS:
        return TopicWriter(node, group, period)
    if kind in _ACTIONS:
        return ActionWriter(node, group, period)
    raise UnsupportedController(
        f"group {group.name}: controller type {kind} is not written by the executor, "
        f"expected one of {', '.join([*_TOPICS, *_ACTIONS])}"
    )


class _Messages:
    """Commands of one group as messages.

    Attributes:
        pose_frame: of paths.
    """

    def __init__(self, group: Any, period: float):
        self._names = list(getattr(group.controller, "names", None) or getattr(group, "joints", ()))
        self._frame = getattr(group, "frame", "")
        self.pose_frame = "odom"
        point = JointTrajectoryPoint(time_from_start=_duration(period))
        self._trajectory = JointTrajectory(joint_names=self._names, points=[point])
        self._positions = Float64MultiArray()
        if group.controller.type.startswith("cartesian") and group.frame == group.tip:
            raise UnsupportedController(
                f"group {group.name}: {group.controller.type} needs a `frame` other than `tip`: "
                "poses are sent in it"
            )

    # Long messages are made once and filled anew: publishing copies them.

    def trajectory(self, command: JointCommand, stamp: Any) -> JointTrajectory:
        # Header stamp 0 means "from now on". The point is the set-point one period from now, so it is due one
        # period from now: the controller interpolates across just the time until the next message, and when
        # that is late it rests at the end of the period instead of running ahead.
        # No velocities: joint_trajectory_controller refuses a last point that moves, unless told otherwise.
        self._trajectory.points[0].positions = _doubles(command.position)
        return self._trajectory

    def positions(self, command: JointCommand, stamp: Any) -> Float64MultiArray:
        self._positions.data = _doubles(command.position)
        return self._positions

    def joint_state(self, command: JointCommand, stamp: Any) -> JointState:
        message = JointState(name=self._names, position=command.position.tolist())
        message.header.stamp = stamp
        return message

    def twist(self, command: BaseCommand, stamp: Any) -> Twist:
        twist = Twist()
        *linear, twist.angular.z = command.velocity.tolist()
        twist.linear.x = linear[0]
        twist.linear.y = linear[1] if len(linear) > 1 else 0.0
        return twist

    def twist_stamped(self, command: BaseCommand, stamp: Any) -> TwistStamped:
        return self._stamped(TwistStamped(twist=self.twist(command, stamp)), stamp)

    def path(self, command: PathCommand, stamp: Any) -> Path:
        """Poses that lie ahead, each with the time when it is due."""
        path = Path()
        path.header.stamp, path.header.frame_id = stamp, self.pose_frame
        begin = Time.from_msg(stamp).nanoseconds
        for (x, y, yaw), after in zip(command.poses.tolist(), command.times.tolist(), strict=True):
            message = PoseStamped()
            message.header.stamp = Time(nanoseconds=begin + round(1e9 * after)).to_msg()
            message.header.frame_id = self.pose_frame
            message.pose.position = Point(x=x, y=y, z=0.0)
            qx, qy, qz, qw = map(float, quaternion_from_euler(0.0, 0.0, yaw))
            message.pose.orientation = Quaternion(x=qx, y=qy, z=qz, w=qw)
            path.poses.append(message)
        return path

    def pose(self, command: JointCommand, stamp: Any) -> PoseStamped:
        message = self._stamped(PoseStamped(), stamp)
        x, y, z, qw, qx, qy, qz = command.pose.tolist()
        message.pose.position = Point(x=x, y=y, z=z)
        message.pose.orientation = Quaternion(x=qx, y=qy, z=qz, w=qw)
        return message

    def tip_twist(self, command: JointCommand, stamp: Any) -> TwistStamped:
        x, y, z, a, b, c = command.twist.tolist()
        twist = Twist(linear=Vector3(x=x, y=y, z=z), angular=Vector3(x=a, y=b, z=c))
        return self._stamped(TwistStamped(twist=twist), stamp)

    def _stamped(self, message: Any, stamp: Any) -> Any:
        message.header.stamp = stamp
        message.header.frame_id = self._frame
        return message


# Message type and how it is made, by controller type; of a base with `stamped` false, then true.
_TOPICS: dict[str, Any] = {
    "joint_trajectory": (JointTrajectory, _Messages.trajectory),
    "forward_command": (Float64MultiArray, _Messages.positions),
    "joint_state": (JointState, _Messages.joint_state),
    "cartesian_pose": (PoseStamped, _Messages.pose),
    "cartesian_twist": (TwistStamped, _Messages.tip_twist),
    "path": (Path, _Messages.path),
    "diff_drive": ((Twist, _Messages.twist), (TwistStamped, _Messages.twist_stamped)),
    "omni_drive": ((Twist, _Messages.twist), (TwistStamped, _Messages.twist_stamped)),
}


# Those whose messages differ in their positions and stamp alone.
_MOULDED = ("joint_trajectory", "forward_command", "joint_state")


def _mould(make: Callable[[Any, Any], Any], group: Any) -> Mould:
    unmoved = np.zeros(len(group.joints))
    return Mould(
        lambda numbers, stamp: make(JointCommand(group.name, numbers, unmoved), stamp), len(group.joints)
    )


class TopicWriter:
    """Publishes the commands of one action group.

    Attributes:
        topic: resolved name.
        kind: controller type, as in the YAML.
        stamped: its messages hold the time of the command; others may be written without. These are
            set-points of joints, which their controllers hold.
    """

    def __init__(self, node: Node, group: Any, period: float):
        self.kind = group.controller.type
        self.stamped = self.kind not in ("joint_trajectory", "forward_command")
        self._said, self._held = -math.inf, b""
        choice = _TOPICS[self.kind]
        message_type, make = choice[group.controller.stamped] if self.kind.endswith("_drive") else choice
        self._messages = _Messages(group, period)
        self._make: Callable[[Any, Any], Any] = make.__get__(self._messages)
        self._mould = _mould(self._make, group) if self.kind in _MOULDED else None
        self._publisher = node.create_publisher(message_type, group.controller.topic, qos.COMMAND)
        self.topic = self._publisher.topic_name

    @property
    def connected(self) -> bool:
        """Somebody subscribes to the topic."""
        return self._publisher.handle.get_subscription_count() > 0

    def write(self, command: Command, stamp: Any) -> None:
        """Publish it; a set-point that is held is said again every `REPEAT_PERIOD` only."""
        if not self.stamped:
            now, set_point = time.monotonic(), command.position.tobytes()
            if now - self._said < REPEAT_PERIOD and set_point == self._held:
                return
            self._said, self._held = now, set_point
        if self._mould is None:
            self._publisher.publish(self._make(command, stamp))
        else:
            # As `publish` does it, at less than its cost.
            self._publisher.handle.publish_raw(self._mould.fill(command.position, stamp))

    def hear_frame(self, frame: str) -> None:
        """Frame in which the base is measured; where a message names none, it is the one before."""
        self._messages.pose_frame = frame or self._messages.pose_frame

    @property
    def pending(self) -> bool:
        """Set-points are on their way: what is told next comes after them."""
        return False

    def complete(self) -> None:
        """Nothing waits here."""

    def flush(self, rest: bool) -> None:
        """Nothing waits here."""

    def destroy(self, node: Node) -> None:
        node.destroy_publisher(self._publisher)


@dataclass(frozen=True)
class SetPoint:
    """A set-point, and in how long it is due [s]."""

    command: JointCommand
    after: float


def _follow_joint_trajectory(types: Any, group: Any, points: list[SetPoint]) -> Any:
    """All set-points, each when it is due: as checked, and a goal's length late."""
    names = list(group.controller.names or group.joints)
    goal = types.FollowJointTrajectory.Goal()
    goal.trajectory = JointTrajectory(joint_names=names)
    goal.trajectory.points = [
        JointTrajectoryPoint(positions=each.command.position.tolist(), time_from_start=_duration(each.after))
        for each in points
    ]
    return goal


def _gripper_command(types: Any, group: Any, points: list[SetPoint]) -> Any:
    goal = types.GripperCommand.Goal()
    goal.command.position = float(points[-1].command.position[0])
    goal.command.max_effort = float(group.controller.max_effort)
    return goal


def _parallel_gripper_command(types: Any, group: Any, points: list[SetPoint]) -> Any:
    goal = types.ParallelGripperCommand.Goal()
    goal.command.name = list(group.joints)
    goal.command.position = points[-1].command.position.tolist()
    return goal


# Name of the action's type and how a goal is made, by controller type.
_ACTIONS: dict[str, Any] = {
    "follow_joint_trajectory": ("FollowJointTrajectory", _follow_joint_trajectory),
    "gripper_command": ("GripperCommand", _gripper_command),
    "parallel_gripper_command": ("ParallelGripperCommand", _parallel_gripper_command),
}


class ActionWriter:
    """Sends the commands of one action group as goals, one every `GOAL_PERIOD`.

    A goal takes over from the one before at once, wherever the robot is on it. What that one has not reached
    yet therefore leads the new goal: set-points keep their distance in time, however late a goal is sent, and
    the controller is asked for no speed that the set-points do not have. Commands that change nothing are not
    sent.

    Attributes:
        topic: resolved name of the action.
        kind: controller type, as in the YAML.
    """

    stamped = False

    def __init__(self, node: Node, group: Any, period: float, types: Any = None):
        self.kind = group.controller.type
        name, self._make = _ACTIONS[self.kind]
        if types is None:
            types = _control_msgs(group)
        if not hasattr(types, name):
            raise UnsupportedController(
                f"group {group.name}: controller type {self.kind}: the control_msgs installed here has no "
                f"{name}; update it"
            )
        if self.kind != "follow_joint_trajectory" and len(group.joints) != 1:
            raise UnsupportedController(
                f"group {group.name}: controller type {self.kind} moves one joint, found {len(group.joints)}"
            )
        self._node, self._group, self._types, self._period = node, group, types, period
        self._client = ActionClient(node, getattr(types, name), group.controller.topic)
        self.topic = node.resolve_service_name(group.controller.topic)
        self._length = max(1, round(GOAL_PERIOD / period))
        # Written by the loop, sent by rclpy's thread.
        self._lock = threading.Lock()
        self._waiting: list[JointCommand] = []
        # rclpy runs tasks in any order; goals are sent in that of the commands.
        self._outbox: deque[list[JointCommand]] = deque()
        # Set-points on their way, and when each is due, by the node's clock [s].
        self._ahead: list[tuple[float, JointCommand]] = []
        self._asked = -math.inf
        self._sent: np.ndarray | None = None
        self._written = self._looked = 0.0
        self._ready = False
        self._refused = False
        # What is left when a motion ends is sent by this timer.
        self._timer = node.create_timer(
            GOAL_PERIOD, self._on_timer, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )

    @property
    def connected(self) -> bool:
        """The action server is there and has not refused the last goal."""
        now = time.monotonic()
        if now - self._looked > LOOK_PERIOD:
            self._looked, self._ready = now, self._client.server_is_ready()
        return self._ready and not self._refused

    def write(self, command: Command, stamp: Any) -> None:
        self._written = time.monotonic()
        with self._lock:
            self._waiting.append(command)
            if len(self._waiting) < self._length:
                return
            self._post()
        self._node.executor.create_task(self._send)

    def complete(self) -> None:
        """Nothing follows for now: send what is left before the goal on its way has been reached."""
        with self._lock:
            if not self._waiting:
                return
            self._post()
        self._node.executor.create_task(self._send)

    @property
    def pending(self) -> bool:
        """Set-points are on their way: the robot moves until they are reached."""
        return bool(self._waiting or self._outbox or (self._ahead and self._ahead[-1][0] > self._now()))

    def flush(self, rest: bool) -> None:
        """Send the goals that are complete, with `rest` what is left, too. For rclpy's thread, while it is
        held up and comes to no task."""
        if rest:
            with self._lock:
                self._post()
        self._send()

    def destroy(self, node: Node) -> None:
        node.destroy_timer(self._timer)
        # Tasks that rclpy has not come to find nothing.
        self._outbox.clear()
        self._client.destroy()

    def _on_timer(self) -> None:
        silent = time.monotonic() - self._written
        if silent > 2 * self._period:
            with self._lock:
                self._post()
        if self._outbox:
            self._send()
        elif silent > FORGET_PERIOD:
            # At rest: a new task may try again, and somebody else may have moved it meanwhile.
            self._refused, self._sent = False, None
            self._ahead = []

    def _post(self) -> None:
        if self._waiting:
            self._outbox.append(self._waiting)
            self._waiting = []

    def _send(self) -> None:
        while self._outbox:
            # It is pending until its set-points are on their way.
            try:
                self._send_goal(self._outbox[0])
            finally:
                self._outbox.popleft()

    def _send_goal(self, commands: list[JointCommand]) -> None:
        ends = np.array([command.position for command in commands])
        if self._sent is not None and np.array_equal(ends, np.broadcast_to(self._sent, ends.shape)):
            return
        self._sent = ends[-1]
        goal = self._make(self._types, self._group, self._points(commands))
        self._client.send_goal_async(goal).add_done_callback(self._answered)

    def _now(self) -> float:
        return self._node.get_clock().now().nanoseconds * 1e-9

    def _points(self, commands: list[JointCommand]) -> list[SetPoint]:
        """What is still on its way, and the commands after it, one a period."""
        now = self._now()
        if now < self._asked:
            self._ahead = []  # the clock went back: nobody knows what is left
        self._asked = now
        left = [(due, command) for due, command in self._ahead if now < due]
        # The goal after the first may be a little late, and finds set-points still on their way.
        begin = left[-1][0] if left else now + SLACK
        new = [(begin + self._period * (k + 1), command) for k, command in enumerate(commands)]
        self._ahead = left + new
        lag = begin - now - SLACK
        if lag > WARN_LAG:
            self._node.get_logger().warning(
                f"{self.topic} is {lag:.2f} s behind: goals were sent late; is this computer overloaded?",
                throttle_duration_sec=5.0,
            )
        # One that is due at once would ask for as much speed as goals jitter.
        return [
            SetPoint(command, due - now) for due, command in self._ahead if due - now > 0.99 * self._period
        ]

    def _answered(self, future: Any) -> None:
        if not future.result().accepted:
            self._refused, self._sent = True, None
            self._node.get_logger().error(
                f"{self.topic} refuses goals; is the {self.kind} controller active?"
            )


Writer = TopicWriter | ActionWriter


def _control_msgs(group: Any) -> Any:
    try:
        import control_msgs.action
    except ModuleNotFoundError as error:
        raise UnsupportedController(
            f"group {group.name}: controller type {group.controller.type} needs the package control_msgs: "
            "sudo apt install ros-$ROS_DISTRO-control-msgs"
        ) from error
    return control_msgs.action


def _doubles(values: np.ndarray) -> array.array:
    # Fields of messages look at every number of a list, and take this as it is.
    return array.array("d", values.tobytes())


def _duration(time_s: float) -> Duration:
    nanoseconds = round(time_s * 1e9)
    return Duration(sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)
