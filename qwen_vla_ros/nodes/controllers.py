# SPDX-License-Identifier: Apache-2.0
"""Write commands to the topics of ros2_control's controllers."""

from __future__ import annotations

from typing import Any

from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Twist, TwistStamped
from rclpy.node import Node
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from qwen_vla_ros.motion.follower import BaseCommand, Command, JointCommand

from . import qos


class UnsupportedController(ValueError):
    """A controller type that this version cannot write to."""


class Writer:
    """Publishes the commands of one action group.

    Attributes:
        topic: resolved name.
        kind: controller type, as in the YAML.
    """

    def __init__(self, node: Node, group: Any, period: float):
        self.kind = group.controller.type
        self._joints = list(getattr(group.controller, "names", None) or getattr(group, "joints", ()))
        self._stamped = getattr(group.controller, "stamped", False)
        self._frame = getattr(group, "frame", "")
        self._period = Duration(nanosec=round(period * 1e9)) if period < 1 else Duration(sec=round(period))
        makers = {
            "joint_trajectory": (JointTrajectory, self._trajectory),
            "forward_command": (Float64MultiArray, self._positions),
            "diff_drive": (TwistStamped, self._twist_stamped) if self._stamped else (Twist, self._twist),
        }
        if self.kind not in makers:
            raise UnsupportedController(
                f"group {group.name}: controller type {self.kind} cannot be written to yet, "
                f"expected one of {', '.join(makers)}"
            )
        message_type, self._make = makers[self.kind]
        self._publisher = node.create_publisher(message_type, group.controller.topic, qos.COMMAND)
        self.topic = self._publisher.topic_name

    @property
    def connected(self) -> bool:
        """Somebody subscribes to the topic."""
        return self._publisher.get_subscription_count() > 0

    def write(self, command: Command, stamp: Any) -> None:
        self._publisher.publish(self._make(command, stamp))

    def destroy(self, node: Node) -> None:
        node.destroy_publisher(self._publisher)

    def _trajectory(self, command: JointCommand, stamp: Any) -> JointTrajectory:
        # Header stamp 0 means "from now on". The point is the set-point one period from now, so it is due one
        # period from now: the controller interpolates across just the time until the next message, and when
        # that is late it rests at the end of the period instead of running ahead.
        # No velocities: joint_trajectory_controller refuses a last point that moves, unless told otherwise.
        point = JointTrajectoryPoint(positions=command.position.tolist(), time_from_start=self._period)
        return JointTrajectory(joint_names=self._joints, points=[point])

    def _positions(self, command: JointCommand, stamp: Any) -> Float64MultiArray:
        return Float64MultiArray(data=command.position.tolist())

    def _twist(self, command: BaseCommand, stamp: Any) -> Twist:
        twist = Twist()
        twist.linear.x, twist.angular.z = command.velocity.tolist()
        return twist

    def _twist_stamped(self, command: BaseCommand, stamp: Any) -> TwistStamped:
        message = TwistStamped(twist=self._twist(command, stamp))
        message.header.stamp = stamp
        message.header.frame_id = self._frame
        return message
