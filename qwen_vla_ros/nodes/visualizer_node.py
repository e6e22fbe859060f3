# SPDX-License-Identifier: Apache-2.0
"""Shows what a chunk is going to do: paths of arms and base, the pose at its end, the instruction."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import Point, PoseStamped, Quaternion
from nav_msgs.msg import Path as PathMessage
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import JointState
from std_msgs.msg import ColorRGBA, String
from visualization_msgs.msg import Marker, MarkerArray

from qwen_vla_ros.embodiment import Embodiment
from qwen_vla_ros.motion import rotations
from qwen_vla_ros.motion.base import History
from qwen_vla_ros.msg import ActionChunk, ExecutorStatus, PolicyStatus, Task

from . import qos
from .base_pose import MESSAGES, flat_pose
from .joint_positions import joint_positions
from .lifecycle import BodyNode, ConfigurationError, declare, run, seconds
from .plan_geometry import DescriptionError, Plan, RobotModel, colours, make_plan, shares
from .transforms import quaternion_from_euler

PERIOD = 0.1

# How far back joints are kept: an observation is not older when its chunk comes [s].
MEMORY = 5.0

# Widths of lines [m].
COMMITTED, REST, BONE, AXIS = 0.012, 0.005, 0.008, 0.004
AXIS_LENGTH = 0.06
TEXT_HEIGHT = 0.06
ROBOT_COLOUR = (0.55, 0.57, 0.60)
GHOST_COLOUR = (0.20, 0.60, 0.95)
STATES = {
    getattr(ExecutorStatus, name): name.removeprefix("STATE_").lower()
    for name in dir(ExecutorStatus)
    if name.startswith("STATE_")
}


@dataclass(frozen=True)
class _Shown:
    """A chunk that is drawn. Times in [s]."""

    sequence: int
    task_id: int
    stamp: float
    times: np.ndarray
    # Until when no newer chunk can take over.
    committed: float
    plan: Plan


class VisualizerNode(BodyNode):
    """See docs/visualisation.md for topics, parameters and what is drawn."""

    def __init__(self):
        super().__init__("visualizer")
        declare(
            self,
            "robot_description",
            "",
            "URDF, or path of a file with it; empty for the topic robot_description",
        )
        declare(
            self,
            "description_timeout",
            30.0,
            "How long configure waits for the topic robot_description [s]",
            0.0,
            600.0,
        )
        declare(self, "frame_prefix", "", "Put before frames of links, as robot_state_publisher's parameter")
        self._inlets: list = []
        self._outlets: list = []
        self._beats: list = []
        self._models: dict[str, RobotModel] = {}

    # Lifecycle

    def configure(self, embodiment: Embodiment) -> None:
        self._models = self._find_models(embodiment)
        self._groups = {group.name: group for group in embodiment.actions}
        self._joint: dict[str, float] = {}
        self._joints = History(len(embodiment.joints), MEMORY)
        self._pose = History(3, MEMORY, angles=[False, False, True])
        self._pose_frame = "odom"
        self._shown: _Shown | None = None
        self._status: ExecutorStatus | None = None
        self._policy: PolicyStatus | None = None
        self._task: Task | None = None
        self._drawn: set[tuple[str, int]] = set()
        self._markers = self._publisher(MarkerArray, "~/plan")
        self._ghost = self._publisher(JointState, "~/ghost_joint_states")
        self._path = None
        if any(group.kind in ("waypoint", "base_velocity") for group in embodiment.actions):
            self._path = self._publisher(PathMessage, "~/base_path")
        for topic in embodiment.state.joint_states:
            keep = joint_positions(embodiment, topic, self._on_joints)
            self._listen(JointState, topic, keep, qos.SENSOR)
        base = embodiment.state.base
        if base is not None:
            self._listen(MESSAGES[base.type], base.topic, self._on_pose, qos.SENSOR)
        self._listen(ActionChunk, "action_chunk", self._on_chunk, qos.RELIABLE)
        self._listen(Task, "task", partial(setattr, self, "_task"), qos.LATCHED)
        self._listen(ExecutorStatus, "executor_status", partial(setattr, self, "_status"), qos.LATCHED)
        self._listen(PolicyStatus, "policy_status", partial(setattr, self, "_policy"), qos.RELIABLE)

    def activate(self) -> None:
        self._beats = [self.create_timer(PERIOD, self._draw, clock=Clock(clock_type=ClockType.STEADY_TIME))]

    def deactivate(self) -> None:
        for timer in self._beats:
            self.destroy_timer(timer)
        self._beats = []
        self._markers.publish(MarkerArray(markers=[Marker(action=Marker.DELETEALL)]))
        self._drawn.clear()

    def cleanup(self) -> None:
        for entity in self._inlets:
            self.destroy_subscription(entity)
        for publisher in self._outlets:
            self.destroy_publisher(publisher)
        self._inlets, self._outlets, self._models = [], [], {}

    def _publisher(self, kind: type, topic: str) -> Any:
        self._outlets.append(self.create_publisher(kind, topic, qos.RELIABLE))
        return self._outlets[-1]

    def _listen(self, kind: type, topic: str, callback: Any, profile: Any) -> None:
        self._inlets.append(self.create_subscription(kind, topic, callback, profile))

    # Descriptions

    def _find_models(self, embodiment: Embodiment) -> dict[str, RobotModel]:
        """By group, for those that move an arm and can be drawn.

        What the description lacks is left out with a warning, as long as it is one of this robot.
        """
        models: dict[str, RobotModel] = {}
        lacks: list[str] = []
        common: RobotModel | None = None
        files: dict[str, RobotModel] = {}
        try:
            for group in embodiment.actions:
                if group.kind not in ("joint_position", "eef_delta"):
                    continue
                own = getattr(getattr(group, "ik", None), "urdf", None)
                if own and not self.value("robot_description"):
                    if own not in files:
                        files[own] = RobotModel(Path(own).read_text(), own)
                    model = files[own]
                else:
                    common = model = common or RobotModel(*self._describe())
                eef = group.kind == "eef_delta"
                moving = group.joints if eef else group.described
                lack = model.absent(moving)
                if eef and not model.has_link(group.tip):
                    lack = f"{model.source}: no link {group.tip}, the tip of {group.name}"
                if lack is not None:
                    lacks.append(lack)
                # A pose needs all of its joints; a path of joints is drawn of those that are there.
                if lack is None or (not eef and model.tips(moving)):
                    models[group.name] = model
        except DescriptionError as error:
            raise ConfigurationError(f"embodiment {embodiment.name}: {error}") from error
        if lacks and not models:
            raise ConfigurationError(f"embodiment {embodiment.name}: {lacks[0]}")
        for lack in lacks:
            self.get_logger().warning(f"embodiment {embodiment.name}: {lack}; the rest is drawn")
        return models

    def _describe(self) -> tuple[str, str]:
        """URDF of the robot, and where it came from."""
        value = self.value("robot_description").strip()
        if value.startswith("<"):
            return value, "parameter robot_description"
        if value:
            try:
                return Path(value).read_text(), value
            except OSError as error:
                raise DescriptionError(f"{value}: {error.strerror}; expected a URDF file") from error
        topic = self.resolve_topic_name("robot_description")
        heard = self._hear(topic, self.value("description_timeout"))
        if heard is None:
            raise DescriptionError(
                f"paths of arms need the robot's URDF, and nobody published it on {topic} within "
                f"{self.value('description_timeout')} s; start robot_state_publisher, or give a file: "
                "-p robot_description:=/path/to/robot.urdf"
            )
        return heard, topic

    def _hear(self, topic: str, timeout: float) -> str | None:
        """A latched string. The node's own executor is busy with the transition, so another one listens."""
        heard: list[str] = []
        node = rclpy.create_node("visualizer_description", context=self.context, use_global_arguments=False)
        executor = SingleThreadedExecutor(context=self.context)
        executor.add_node(node)
        node.create_subscription(String, topic, lambda message: heard.append(message.data), qos.LATCHED)
        deadline = time.monotonic() + timeout
        while not heard and not self.ending.is_set() and time.monotonic() < deadline:
            executor.spin_once(timeout_sec=0.05)
        executor.shutdown()
        node.destroy_node()
        return heard[0] if heard else None

    # What is heard

    def _on_joints(self, stamp: float, positions: dict[str, float]) -> None:
        # Where the driver reports the parts of a virtual joint too, they count.
        self._joint |= shares(self.embodiment, positions) | positions
        values = [self._joint.get(name, math.nan) for name in self.embodiment.joints]
        if np.isfinite(values).all():
            self._joints.add(stamp, values)

    def _on_pose(self, message: Any) -> None:
        self._pose_frame = message.header.frame_id or self._pose_frame
        value = flat_pose(message)
        if np.isfinite(value).all():
            self._pose.add(seconds(message.header.stamp), value)

    def _on_chunk(self, message: ActionChunk) -> None:
        body = self.embodiment
        names = body.layout.names
        data = np.asarray(message.data, dtype=float)
        if (
            message.embodiment != body.name
            or tuple(message.channels) != names
            or len(data) != message.horizon * len(names)
            or not len(data)
            or not np.isfinite(data).all()
        ):
            # The executor says what is wrong with it, and ends the task.
            self.get_logger().warning(
                f"chunk {message.sequence} is not of {body.name} and is not drawn", throttle_duration_sec=5.0
            )
            return
        stamp = seconds(message.header.stamp)
        joints = self._joints.at(stamp)
        if body.joints and joints is None:
            return
        pose = self._pose.at(stamp)
        try:
            plan = make_plan(
                body,
                self._models,
                data.reshape(message.horizon, len(names)),
                {**self._joint, **dict(zip(body.joints, joints, strict=True))}
                if body.joints
                else self._joint,
                np.zeros(3) if pose is None else pose,
                message.step,
            )
        except ValueError as error:  # a rotation that is none
            self.get_logger().warning(f"chunk {message.sequence}: {error}", throttle_duration_sec=5.0)
            return
        times = stamp + message.step * np.arange(1, message.horizon + 1)
        committed = stamp + message.step * body.execute_steps + message.observation_age
        self._shown = _Shown(message.sequence, message.task_id, stamp, times, committed, plan)
        self._publish_ghost()
        self._draw()

    # What is shown

    def _draw(self) -> None:
        if not self.active or not self._markers.get_subscription_count():
            self._publish_path()
            return
        shown = self._current()
        markers: list[Marker] = []
        self._add_robot(markers)
        if shown is not None:
            self._add_tips(markers, shown)
            self._add_base(markers, shown)
            self._add_ghost(markers, shown)
        markers.append(self._text())
        present = {(marker.ns, marker.id) for marker in markers}
        gone = [
            Marker(action=Marker.DELETE, ns=ns, id=number) for ns, number in sorted(self._drawn - present)
        ]
        self._drawn = present
        self._markers.publish(MarkerArray(markers=gone + markers))
        self._publish_path()

    def _current(self) -> _Shown | None:
        """The chunk to draw: the newest of a task that runs, as long as it has rows to come."""
        shown, task = self._shown, self._task
        if shown is None or (task is not None and not (task.active and task.task_id == shown.task_id)):
            return None
        return shown if self.now <= shown.times[-1] else None

    def _parts(self, shown: _Shown) -> tuple[slice, slice]:
        """Rows that will be followed whatever comes, and the rest; one row in both, so that lines meet."""
        count = len(shown.times)
        first = min(int((shown.times < self.now).sum()), count - 1)
        followed = self._status is not None and self._status.sequence == shown.sequence
        last = int((shown.times <= shown.committed + 1e-6).sum()) if followed else first
        return slice(first, last), slice(max(last - 1, first), count)

    def _add_robot(self, markers: list[Marker]) -> None:
        if self._joint:
            markers += self._skeletons("robot", self._joint, ROBOT_COLOUR, 0.8)

    def _add_ghost(self, markers: list[Marker], shown: _Shown) -> None:
        last = {name: float(values[-1]) for name, values in shown.plan.joints.items()}
        moved = [g for g in self._groups.values() if g.kind == "joint_position"]
        if moved:
            markers += self._skeletons("ghost", {**self._joint, **last}, GHOST_COLOUR, 0.5)

    def _skeletons(self, ns: str, joints: dict, colour: tuple, alpha: float) -> list[Marker]:
        """The links of each description as lines."""
        made = []
        for number, model in enumerate(dict.fromkeys(self._models.values())):
            marker = self._marker(ns, number, Marker.LINE_LIST, self._frame(model.root), BONE)
            marker.color = _rgba(colour, alpha)
            links = list(dict.fromkeys(link for bone in model.bones for link in bone))
            places = dict(zip(links, model.poses(joints, links)[:, :3], strict=True))
            marker.points = [_point(places[link]) for bone in model.bones for link in bone]
            made.append(marker)
        return made

    def _add_tips(self, markers: list[Marker], shown: _Shown) -> None:
        for name, poses in shown.plan.tips.items():
            frame = self._frame(shown.plan.frames[name])
            group, _, link = name.partition("/")
            here = self._models[group].poses(self._joint, [link])[0, :3]
            self._add_line(markers, name, frame, here, poses[:, :3], shown)
            axes = self._marker(f"goal/{name}", 0, Marker.LINE_LIST, frame, AXIS)
            ends = poses[-1, :3] + AXIS_LENGTH * rotations.to_matrix(poses[-1, 3:]).T
            for end, colour in zip(ends, np.eye(3), strict=True):
                axes.points += [_point(poses[-1, :3]), _point(end)]
                axes.colors += [_rgba(colour, 0.9)] * 2
            markers.append(axes)

    def _add_base(self, markers: list[Marker], shown: _Shown) -> None:
        base = shown.plan.base
        if base is None:
            return
        points = np.column_stack([base[:, :2], np.full(len(base), 0.02)])
        newest = self._pose.newest
        here = points[0] if newest is None else np.array([*newest[1][:2], 0.02])
        self._add_line(markers, "base", self._pose_frame, here, points, shown, scale=3.0)
        arrow = self._marker("goal/base", 0, Marker.ARROW, self._pose_frame, 0.05)
        arrow.scale.x, arrow.scale.z = 0.3, 0.05
        arrow.pose.position = _point(points[-1])
        arrow.pose.orientation = _quaternion(base[-1, 2])
        arrow.color = _rgba(GHOST_COLOUR, 0.8)
        markers.append(arrow)

    def _add_line(
        self,
        markers: list[Marker],
        name: str,
        frame: str,
        here: np.ndarray,
        points: np.ndarray,
        shown: _Shown,
        scale: float = 1.0,
    ) -> None:
        """From where it is now along the rows to come."""
        span = shown.times[-1] - shown.stamp
        shades = colours((shown.times - shown.stamp) / span)
        committed, rest = self._parts(shown)
        for ns, part, width, alpha in (
            ("committed", committed, COMMITTED, 1.0),
            ("rest", rest, REST, 0.7),
        ):
            path, tones = list(points[part]), list(shades[part])
            if part.start == committed.start and path:
                path, tones = [here, *path], [tones[0], *tones]
            if len(path) < 2:
                continue
            line = self._marker(f"{ns}/{name}", 0, Marker.LINE_STRIP, frame, scale * width)
            line.points = [_point(point) for point in path]
            line.colors = [_rgba(tone, alpha) for tone in tones]
            markers.append(line)
        rows = slice(committed.start, len(points))
        dots = self._marker(f"rows/{name}", 0, Marker.SPHERE_LIST, frame, scale * 1.4 * COMMITTED)
        dots.scale.y = dots.scale.z = dots.scale.x
        dots.points = [_point(point) for point in points[rows]]
        dots.colors = [_rgba(shade, 0.9) for shade in shades[rows]]
        markers.append(dots)

    def _text(self) -> Marker:
        frame, place = self._text_place()
        marker = self._marker("text", 0, Marker.TEXT_VIEW_FACING, frame, TEXT_HEIGHT)
        marker.scale.x, marker.scale.z = 0.0, TEXT_HEIGHT
        marker.pose.position = _point(place)
        marker.color = _rgba((1.0, 1.0, 1.0), 1.0)
        marker.text = "\n".join(self._lines())
        return marker

    def _lines(self) -> list[str]:
        task, status, policy = self._task, self._status, self._policy
        lines = [task.instruction if task is not None and task.active else "no task"]
        if status is None:
            lines.append("executor: not heard")
        else:
            state = STATES.get(status.state, str(status.state))
            left = f", chunk {status.sequence}, {status.remaining:.1f} s left" if status.sequence else ""
            lines.append(state + left)
        trouble = [m.message for m in (status, policy) if m is not None and m.message]
        return lines + list(dict.fromkeys(trouble))

    def _text_place(self) -> tuple[str, np.ndarray]:
        """Above the robot."""
        for model in self._models.values():
            links = list(dict.fromkeys(link for bone in model.bones for link in bone))
            heights = model.poses(self._joint, links)[:, :3]
            return self._frame(model.root), np.array(
                [*heights[:, :2].mean(axis=0), heights[:, 2].max() + 0.2]
            )
        newest = self._pose.newest
        x, y = (0.0, 0.0) if newest is None else newest[1][:2]
        return self._pose_frame, np.array([x, y, 1.0])

    def _marker(self, ns: str, number: int, kind: int, frame: str, width: float) -> Marker:
        marker = Marker(ns=ns, id=number, type=kind, action=Marker.ADD)
        marker.header.stamp = self.stamp(self.now)
        marker.header.frame_id = frame
        # Else RViz wants the transform of that very moment, which comes later: the marker would not be shown.
        marker.frame_locked = True
        marker.pose.orientation.w = 1.0
        marker.scale.x = marker.scale.y = width
        return marker

    def _frame(self, link: str) -> str:
        return self.value("frame_prefix") + link

    def _publish_ghost(self) -> None:
        """The final pose, for a second robot_state_publisher."""
        plan = self._shown.plan
        if not plan.joints:
            return
        values = {**self._joint, **{name: float(rows[-1]) for name, rows in plan.joints.items()}}
        message = JointState(name=list(values), position=list(values.values()))
        message.header.stamp = self.stamp(self.now)
        self._ghost.publish(message)

    def _publish_path(self) -> None:
        if self._path is None:
            return
        shown = self._current()
        message = PathMessage()
        message.header.stamp = self.stamp(self.now)
        message.header.frame_id = self._pose_frame
        if shown is not None and shown.plan.base is not None:
            for (x, y, yaw), due in zip(shown.plan.base, shown.times, strict=True):
                pose = PoseStamped()
                pose.header.stamp = self.stamp(due)
                pose.header.frame_id = self._pose_frame
                pose.pose.position = _point((x, y, 0.0))
                pose.pose.orientation = _quaternion(yaw)
                message.poses.append(pose)
        self._path.publish(message)


def _point(values: Any) -> Point:
    x, y, z = (float(value) for value in values)
    return Point(x=x, y=y, z=z)


def _quaternion(yaw: float) -> Quaternion:
    x, y, z, w = (float(value) for value in quaternion_from_euler(0.0, 0.0, float(yaw)))
    return Quaternion(x=x, y=y, z=z, w=w)


def _rgba(colour: Any, alpha: float) -> ColorRGBA:
    r, g, b = (float(value) for value in colour)
    return ColorRGBA(r=r, g=g, b=b, a=float(alpha))


def main() -> int:
    """Run the visualizer."""
    return run(VisualizerNode)


if __name__ == "__main__":
    sys.exit(main())
