# SPDX-License-Identifier: Apache-2.0
"""A simulated robot behind the topics of a real one with ros2_control; owns /clock."""

from __future__ import annotations

import math
import queue
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from builtin_interfaces.msg import Time as TimeMessage
from geometry_msgs.msg import TransformStamped, Twist, TwistStamped
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from rclpy.action import ActionServer
from rclpy.node import Node
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import Float64MultiArray, Header, String
from trajectory_msgs.msg import JointTrajectory

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.msg import WorldStatus
from qwen_vla_ros.sim import SimulationError, make_world
from qwen_vla_ros.sim.bodies import SlidingBase
from qwen_vla_ros.sim.catalogue import TASKS
from qwen_vla_ros.sim.controllers import (
    ControllerError,
    DiffDriveController,
    ForwardCommandController,
    JointTrajectoryController,
    PathDriver,
    SlidingDriveController,
    TrajectoryPoint,
)
from qwen_vla_ros.sim.description import urdf_of
from qwen_vla_ros.sim.phrases import find_goal
from qwen_vla_ros.sim.rendering import Pictures
from qwen_vla_ros.sim.state_log import StateRecorder
from qwen_vla_ros.srv import ResetWorld

from . import qos
from .base_pose import MESSAGES, from_odometry
from .ending import Ending
from .images import depth_to_message, rgb_to_encoding, rgb_to_jpeg, rgb_to_png
from .lifecycle import declare, run, seconds
from .transforms import quaternion_from_euler, yaw_of

try:
    from tf2_msgs.msg import TFMessage
except ModuleNotFoundError:  # not among the wheels; on an apt ROS 2 it is there
    TFMessage = None

# What controllers take, by type: messages, and actions of control_msgs.
TOPICS = {
    "joint_trajectory": JointTrajectory,
    "forward_command": Float64MultiArray,
    "joint_state": JointState,
    "path": PathMessage,
}
ACTIONS = {
    "follow_joint_trajectory": "FollowJointTrajectory",
    "gripper_command": "GripperCommand",
    "parallel_gripper_command": "ParallelGripperCommand",
}

CLOCK_PERIOD = 0.005
STATE_PERIOD = 0.01
DRIVE_PERIOD = 0.02
STATUS_PERIOD = 0.1
RECORD_PERIOD = 0.05

# After a stall the world may run this much faster than asked for, until it is where it should be.
CATCH_UP = 1.2
# What is lost beyond this is not made up for [s].
FORGIVEN = 0.1


def _stamp(time_s: float) -> TimeMessage:
    nanoseconds = round(time_s * 1e9)
    return TimeMessage(sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)


def _part(message: JointState, places: list[int | None]) -> JointState:
    """Some of the joints, without names; what is not simulated rests at zero."""
    return JointState(
        header=message.header,
        position=[0.0 if place is None else message.position[place] for place in places],
        velocity=[0.0 if place is None else message.velocity[place] for place in places],
    )


@dataclass
class _View:
    """A camera and its publishers."""

    name: str
    frame: str
    period: float
    size: tuple[int, int]
    encoding: str
    codec: str
    raw: Any
    compressed: Any
    info: Any
    depth: Any = None
    due: float = 0.0

    @property
    def wanted(self) -> tuple[bool, bool, bool]:
        """Whether somebody wants raw images, compressed ones, depth."""
        ways = (self.raw, self.compressed, self.depth)
        raw, compressed, depth = (way is not None and way.get_subscription_count() > 0 for way in ways)
        return raw, compressed, depth


@dataclass
class _Shot:
    """What the renderer is given: the state of the world at a time, and the views to draw."""

    time: float
    qpos: np.ndarray
    mocap_pos: np.ndarray
    mocap_quat: np.ndarray
    views: list[tuple[_View, bool, bool, bool]]


@dataclass
class _Reset:
    request: ResetWorld.Request
    response: ResetWorld.Response
    done: threading.Event = field(default_factory=threading.Event)


class SimNode(Node):
    """See docs/nodes.md for topics and parameters.

    One thread owns the world, one draws, and the node's executor only hands messages over.
    """

    def __init__(self):
        super().__init__("sim")
        declare(self, "embodiment", "franka_panda", "Name of an embodiment, or path of its YAML file")
        declare(self, "model", "", "URDF or MJCF file of the robot; empty for what the embodiment says")
        declare(self, "task", "", "Task of the first episode; empty for the body's first")
        declare(self, "seed", 0, "Seed of the first episode", 0, 2**31 - 1)
        declare(self, "camera_rate", 15.0, "Images per simulated second of every camera [Hz]", 0.5, 200.0)
        declare(self, "spectator_rate", 10.0, "Images per second of the camera for people [Hz]", 0.5, 200.0)
        declare(
            self,
            "real_time_factor",
            1.0,
            "Simulated seconds per second; a slow renderer makes it less",
            0.01,
            1.0,
        )
        declare(self, "setting", "easy", "easy or full: how much changes from scene to scene")
        declare(self, "record", "", "Folder for the states of every episode; empty for none")
        self.embodiment = load_embodiment(self.get_parameter("embodiment").value)
        self._world = make_world(
            self.embodiment, self.get_parameter("setting").value, self.get_parameter("model").value or None
        )
        self.ending = Ending()
        self.failed = False
        self._mail: deque[tuple[str, Any]] = deque()
        self._resets: deque[_Reset] = deque()
        self._shots: queue.Queue[_Shot | None] = queue.Queue(maxsize=1)
        self._drawn = threading.Event()
        self._drawn.set()
        self._scene = threading.Lock()  # held while colours and places of objects change, and while drawing
        self._episode = None
        self._seed = 0
        self._began = 0.0
        self._factor = math.nan
        folder = self.get_parameter("record").value
        self._recorder = StateRecorder(Path(folder), RECORD_PERIOD) if folder else None

        body = self._world.body
        for note in body.notes:
            self.get_logger().info(f"model: {note}")
        self._clock_publisher = self.create_publisher(Clock, "/clock", qos.SENSOR)
        self._states = [
            (self.create_publisher(JointState, topic, qos.RELIABLE), self._named(topic))
            for topic in self.embodiment.state.joint_states or ("joint_states",)
        ]
        self._status = self.create_publisher(WorldStatus, "world_status", qos.RELIABLE)
        self._description = self.create_publisher(String, "robot_description", qos.LATCHED)
        self._description.publish(String(data=body.urdf or urdf_of(self._world.model, body)))
        self._odometry = None
        if body.base is not None:
            told = self.embodiment.state.base
            self._pose_type = told.type if told else "odometry"
            topic = told.topic if told else "odom"
            self._odometry = self.create_publisher(MESSAGES[self._pose_type], topic, qos.RELIABLE)
        self._tf = None if TFMessage is None else self.create_publisher(TFMessage, "/tf", qos.RELIABLE)
        self._views = self._make_views()
        self._pictures = Pictures(self._world.model)
        self._controllers: dict[str, Any] = {}
        self._path_drivers: dict[str, PathDriver] = {}
        self._make_controllers()
        self._subscribe_controllers()
        self._new_episode(
            ResetWorld.Request(task=self.get_parameter("task").value, seed=self.get_parameter("seed").value)
        )
        self.create_service(ResetWorld, "reset_world", self._on_reset)
        self._threads = [
            threading.Thread(target=self._guarded, args=(loop,), name=loop.__name__)
            for loop in (self._run_world, self._run_renderer)
        ]
        for thread in self._threads:
            thread.start()
        self.get_logger().info(
            f"simulating {self.embodiment.name}: {self._instruction!r}; tasks: {', '.join(self._world.tasks)}"
        )

    def destroy_node(self) -> None:
        self.ending.set()
        for thread in self._threads:
            thread.join()
        super().destroy_node()

    def _guarded(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except Exception:
            # A world without one of its threads is no world: say why, and end the process.
            self.get_logger().fatal(f"{loop.__name__} failed:\n{traceback.format_exc()}")
            self.failed = True
            self.ending.set()

    # Set-up

    def _named(self, topic: str) -> list[int | None] | None:
        """Joints of a topic without names, by place, None for what is not simulated; None for all joints."""
        names = self.embodiment.state.joint_names.get(topic)
        known = self._world.joint_names
        return None if names is None else [known.index(name) if name in known else None for name in names]

    def _make_views(self) -> list[_View]:
        sent = {camera.view: camera for camera in self.embodiment.cameras}
        views = []
        for name, camera in self._world.views.items():
            if name not in sent and not camera.spectator:
                continue
            raw, encoding, codec = f"camera/{name}/image_raw", "rgb8", "jpeg"
            compressed = f"{raw}/compressed"
            if name in sent and sent[name].transport == "compressed":
                compressed, codec = sent[name].topic, sent[name].encodings[0]
            elif name in sent:
                raw, encoding = sent[name].topic, sent[name].encodings[0]
                compressed = f"{raw}/compressed"
            depth = None
            if name in sent and sent[name].depth is not None:
                depth = self.create_publisher(Image, sent[name].depth, qos.IMAGE)
            rate = self.get_parameter("spectator_rate" if camera.spectator else "camera_rate").value
            views.append(
                _View(
                    name,
                    f"camera_{name}_optical_frame",
                    1.0 / rate,
                    camera.size,
                    encoding,
                    codec,
                    self.create_publisher(Image, raw, qos.IMAGE),
                    self.create_publisher(CompressedImage, compressed, qos.IMAGE),
                    self.create_publisher(
                        CameraInfo, f"{raw.removesuffix('/image_raw')}/camera_info", qos.RELIABLE
                    ),
                    depth,
                )
            )
        return views

    def _make_controllers(self) -> None:
        """Fresh controllers that hold the robot where it is."""
        positions = dict(zip(self._world.joint_names, self._world.joint_positions, strict=True))
        self._controllers, self._path_drivers = {}, {}
        for group in self.embodiment.actions:
            kind = group.controller.type
            held = [positions[joint] for joint in getattr(group, "joints", ())]
            if kind in ("joint_trajectory", "follow_joint_trajectory"):
                # As a robot is set up whose trajectories come as a stream (docs/nodes.md).
                self._controllers[group.name] = JointTrajectoryController(
                    group.joints, held, interpolate_from_desired_state=True
                )
            elif kind in ("forward_command", "joint_state", "gripper_command", "parallel_gripper_command"):
                self._controllers[group.name] = ForwardCommandController(group.joints, held)
            elif kind in ("diff_drive", "omni_drive", "path"):
                base = self._world.body.base
                limits = group.limits
                linear = limits.linear.velocity, limits.linear.acceleration
                angular = limits.angular.velocity, limits.angular.acceleration
                if isinstance(base, SlidingBase):
                    aside = kind == "omni_drive"
                    self._controllers[group.name] = SlidingDriveController(linear, angular, aside)
                else:
                    self._controllers[group.name] = DiffDriveController(
                        base.radius, base.track, linear, angular
                    )
                if kind == "path":
                    drive = self._controllers[group.name]
                    self._path_drivers[group.name] = PathDriver(drive, limits, DRIVE_PERIOD)
            else:
                raise SimulationError(f"group {group.name}: no simulated controller of type {kind}")

    def _subscribe_controllers(self) -> None:
        for group in self.embodiment.actions:
            kind = group.controller.type

            def keep(message: Any, name: str = group.name) -> None:
                self._mail.append((name, message))

            if kind in ACTIONS:
                self._serve_action(group, keep)
                continue
            message_type = TOPICS.get(kind) or (TwistStamped if group.controller.stamped else Twist)
            self.create_subscription(message_type, group.controller.topic, keep, qos.RELIABLE)

    def _serve_action(self, group: Any, keep: Callable[[Any], None]) -> None:
        """Goals are taken as commands, and succeed at once: the executor looks at joint states."""
        name = ACTIONS[group.controller.type]
        try:
            from control_msgs import action as actions
        except ModuleNotFoundError:
            self.get_logger().warning(
                f"group {group.name}: no control_msgs here: its {name} action is not served, it holds still"
            )
            return
        kind = getattr(actions, name)

        def execute(goal: Any) -> Any:
            keep(goal.request)
            goal.succeed()
            return kind.Result()

        ActionServer(self, kind, group.controller.topic, execute)

    # Episodes

    def _on_reset(self, request: ResetWorld.Request, response: ResetWorld.Response) -> ResetWorld.Response:
        reset = _Reset(request, response)
        self._resets.append(reset)
        while not reset.done.wait(0.1):
            if self.ending.is_set():
                response.message = "the simulation is ending"
                break
        return response

    def _new_episode(self, request: ResetWorld.Request) -> None:
        task = request.task or self._world.tasks[0]
        with self._scene:
            episode = self._world.reset(task, request.seed)
            instruction = episode.instruction
            if request.instruction:
                goals = self._world.goals()
                goal = find_goal(goals, request.instruction) if task in TASKS else goals[0]
                if goal is None:
                    raise SimulationError(
                        f"instruction {request.instruction!r} is not of the scene of seed {request.seed}, "
                        f"expected one of: {'; '.join(each.instruction for each in goals)}"
                    )
                self._world.goal = goal
                instruction = request.instruction
        self._episode, self._seed, self._began = episode, request.seed, self._world.time
        self._instruction = instruction
        self._mail.clear()
        self._make_controllers()
        if self._recorder is not None:
            self._recorder.begin(task, request.seed)

    def _serve_resets(self) -> None:
        while self._resets:
            reset = self._resets.popleft()
            try:
                self._new_episode(reset.request)
            except (SimulationError, ValueError) as error:
                reset.response.message = str(error)
            else:
                reset.response.success = True
                reset.response.instruction = self._instruction
                reset.response.time_limit = self._episode.time_limit
                self._publish_status()
            reset.done.set()

    # The world

    def _run_world(self) -> None:
        factor = self.get_parameter("real_time_factor").value
        pace = CLOCK_PERIOD / factor
        due = time.monotonic()
        ticks = 0
        history: deque[tuple[float, float]] = deque()
        every = {period: round(period / CLOCK_PERIOD) for period in (STATE_PERIOD, STATUS_PERIOD)}
        while not self.ending.is_set():
            began = time.monotonic()
            self._serve_resets()
            self._read_mail()
            self._drive()
            self._world.step(CLOCK_PERIOD)
            ticks += 1
            now = self._world.time
            self._clock_publisher.publish(Clock(clock=_stamp(now)))
            if ticks % every[STATE_PERIOD] == 0:
                self._publish_state(now)
            if self._recorder is not None:
                self._recorder.add(now, self._world.qpos)
            self._take_pictures(now)
            if ticks % every[STATUS_PERIOD] == 0:
                wall = time.monotonic()
                history.append((wall, now))
                while wall - history[0][0] > 1.0 and len(history) > 2:
                    history.popleft()
                if len(history) > 1:
                    self._factor = (now - history[0][1]) / (wall - history[0][0])
                self._publish_status()
            due = max(due + pace, time.monotonic() - FORGIVEN)
            wait = max(due - time.monotonic(), began + pace / CATCH_UP - time.monotonic())
            if wait > 0:
                time.sleep(wait)
        if self._recorder is not None:
            self._recorder.end()

    def _read_mail(self) -> None:
        now = self._world.time
        while self._mail:
            name, message = self._mail.popleft()
            controller = self._controllers[name]
            try:
                self._obey(name, controller, message, now)
            except ControllerError as error:
                self.get_logger().warning(f"controller of {name} refuses: {error}", throttle_duration_sec=1.0)

    def _obey(self, name: str, controller: Any, message: Any, now: float) -> None:
        message = getattr(message, "trajectory", message)
        message = getattr(message, "command", message)
        if isinstance(message, PathMessage):
            poses = [
                (each.pose.position.x, each.pose.position.y, yaw_of(each.pose.orientation))
                for each in message.poses
            ]
            times = [seconds(each.header.stamp) for each in message.poses]
            self._path_drivers[name].accept(poses, times)
        elif isinstance(message, JointTrajectory):
            message.joint_names = self._ours(name, message.joint_names)
            self._follow(controller, message, now)
        elif isinstance(message, Float64MultiArray):
            controller.accept(message.data)
        elif isinstance(message, (Twist, TwistStamped)):
            stamp = None
            if isinstance(message, TwistStamped):
                stamp, message = seconds(message.header.stamp), message.twist
            if isinstance(controller, SlidingDriveController):
                velocity = (message.linear.x, message.linear.y, message.angular.z)
                controller.accept(velocity, now, stamp)
            else:
                controller.accept(message.linear.x, message.angular.z, now, stamp)
        elif isinstance(message, JointState):
            position = dict(zip(self._ours(name, message.name), message.position, strict=False))
            missing = [joint for joint in controller.joints if joint not in position]
            if missing:
                raise ControllerError(f"no position of {', '.join(missing)}")
            controller.accept([position[joint] for joint in controller.joints])
        else:  # control_msgs/GripperCommand
            controller.accept([message.position])

    def _ours(self, group: str, names: Sequence[str]) -> list[str]:
        """Names of joints of a message as the embodiment has them."""
        controller = next(part.controller for part in self.embodiment.actions if part.name == group)
        theirs = getattr(controller, "names", None)
        if not theirs:
            return list(names)
        return [self._controllers[group].joints[theirs.index(n)] if n in theirs else n for n in names]

    def _follow(self, controller: JointTrajectoryController, message: JointTrajectory, now: float) -> None:
        positions = dict(zip(self._world.joint_names, self._world.joint_positions, strict=True))
        velocities = dict(zip(self._world.joint_names, self._world.joint_velocities, strict=True))
        points = [
            TrajectoryPoint(
                point.time_from_start.sec + point.time_from_start.nanosec * 1e-9,
                point.positions,
                point.velocities,
                point.accelerations,
            )
            for point in message.points
        ]
        controller.accept(
            message.joint_names,
            points,
            message.header.stamp.sec + message.header.stamp.nanosec * 1e-9,
            now,
            [positions[joint] for joint in controller.joints],
            [velocities[joint] for joint in controller.joints],
        )

    def _drive(self) -> None:
        # Set-points of the end of the step about to be made, as a controller that runs before it would write.
        then = self._world.time + CLOCK_PERIOD
        for driver in self._path_drivers.values():
            driver.step(self._world.time)
        for controller in self._controllers.values():
            if isinstance(controller, SlidingDriveController):
                ahead, aside, turn = controller.sample(then)
                self._world.set_base_velocity(ahead, turn, aside)
            elif isinstance(controller, DiffDriveController):
                self._world.set_base_velocity(*controller.sample(then))
            else:
                self._world.set_joint_targets(
                    dict(zip(controller.joints, controller.sample(then), strict=True))
                )

    # What is said

    def _publish_state(self, now: float) -> None:
        stamp = _stamp(now)
        message = JointState(
            header=Header(stamp=stamp),
            name=list(self._world.joint_names),
            position=self._world.joint_positions.tolist(),
            velocity=self._world.joint_velocities.tolist(),
        )
        for publisher, part in self._states:
            publisher.publish(message if part is None else _part(message, part))
        if self._odometry is not None:
            self._publish_odometry(now, stamp)

    def _publish_odometry(self, now: float, stamp: TimeMessage) -> None:
        base = self._world.body.base
        position = dict(zip(self._world.joint_names, self._world.joint_positions, strict=True))
        wheels = {
            joint.mujoco: position[name]
            for name, joint in self._world.body.joints.items()
            if name in position
        }
        for group in self.embodiment.actions:
            controller = self._controllers[group.name]
            if isinstance(controller, SlidingDriveController):
                controller.update_odometry(self._world.base_pose, now)
            elif isinstance(controller, DiffDriveController):
                controller.update_odometry(wheels[base.left], wheels[base.right], now)
            else:
                continue
            x, y, yaw = (float(value) for value in controller.pose)
            rotation = dict(
                zip("xyzw", (float(value) for value in quaternion_from_euler(0.0, 0.0, yaw)), strict=True)
            )
            message = Odometry(header=Header(stamp=stamp, frame_id="odom"), child_frame_id=group.frame)
            message.pose.pose.position.x, message.pose.pose.position.y = x, y
            ahead, *aside, turn = map(float, controller.twist)
            message.twist.twist.linear.x, message.twist.twist.angular.z = ahead, turn
            message.twist.twist.linear.y = aside[0] if aside else 0.0
            transform = TransformStamped(header=message.header, child_frame_id=group.frame)
            transform.transform.translation.x, transform.transform.translation.y = x, y
            for axis, value in rotation.items():
                setattr(message.pose.pose.orientation, axis, value)
                setattr(transform.transform.rotation, axis, value)
            self._odometry.publish(from_odometry(message, self._pose_type))
            if self._tf is not None:
                self._tf.publish(TFMessage(transforms=[transform]))

    def _publish_status(self) -> None:
        outcome = self._world.outcome()
        self._status.publish(
            WorldStatus(
                header=Header(stamp=_stamp(self._world.time)),
                task=self._episode.task,
                instruction=self._instruction,
                seed=self._seed,
                success=bool(outcome.success),
                distance=float(outcome.distance),
                detail=outcome.detail,
                elapsed=self._world.time - self._began,
                real_time_factor=self._factor,
            )
        )

    # Pictures

    def _take_pictures(self, now: float) -> None:
        views = []
        for view in self._views:
            if now < view.due - 1e-9:
                continue
            view.due = max(view.due + view.period, now - view.period)
            wanted = view.wanted
            if any(wanted):
                views.append((view, *wanted))
        if not views:
            return
        # The world waits for the picture before: no frame is left out, and the clock tells the truth.
        while not self._drawn.wait(0.1):
            if self.ending.is_set():
                return
        self._drawn.clear()
        data = self._world.data
        self._shots.put(_Shot(now, data.qpos.copy(), data.mocap_pos.copy(), data.mocap_quat.copy(), views))

    def _run_renderer(self) -> None:
        data = mujoco.MjData(self._world.model)
        try:
            while not self.ending.is_set():
                try:
                    shot = self._shots.get(timeout=0.1)
                except queue.Empty:
                    continue
                with self._scene:
                    self._draw(data, shot)
                self._drawn.set()
        finally:
            # The thread that made a renderer must close it.
            self._pictures.close()
            self._drawn.set()

    def _draw(self, data: mujoco.MjData, shot: _Shot) -> None:
        data.qpos[:] = shot.qpos
        data.mocap_pos[:] = shot.mocap_pos
        data.mocap_quat[:] = shot.mocap_quat
        mujoco.mj_kinematics(self._world.model, data)
        mujoco.mj_camlight(self._world.model, data)
        for view, raw, compressed, depth in shot.views:
            rgb = self._pictures.draw(data, view.name, self._world.views[view.name])
            header = Header(stamp=_stamp(shot.time), frame_id=view.frame)
            if raw:
                view.raw.publish(rgb_to_encoding(rgb, view.encoding, header))
            if compressed:
                encode = rgb_to_png if view.codec == "png" else rgb_to_jpeg
                view.compressed.publish(encode(rgb, header))
            if depth:
                metres = self._pictures.depth(data, view.name, self._world.views[view.name])
                view.depth.publish(depth_to_message(metres, header))
            view.info.publish(self._camera_info(view, header))

    def _camera_info(self, view: _View, header: Header) -> CameraInfo:
        width, height = view.size
        camera = self._world.model.camera(view.name)
        focal = 0.5 * height / math.tan(math.radians(float(camera.fovy[0])) / 2)
        cx, cy = width / 2, height / 2
        return CameraInfo(
            header=header,
            width=width,
            height=height,
            distortion_model="plumb_bob",
            d=[0.0] * 5,
            k=[focal, 0.0, cx, 0.0, focal, cy, 0.0, 0.0, 1.0],
            r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
            p=[focal, 0.0, cx, 0.0, 0.0, focal, cy, 0.0, 0.0, 0.0, 1.0, 0.0],
        )


def main() -> int:
    """Run the simulation."""
    return run(SimNode)


if __name__ == "__main__":
    sys.exit(main())
