# SPDX-License-Identifier: Apache-2.0
"""A policy process for faults that a sound policy does not have. Its heartbeat and topics are the real ones.

Arguments: EMBODIMENT MODE; text on the topic `policy/mode` is the mode from then on. It says what chunks are
like:
    wave      all joints swing about home; a base drives ahead and turns
    nan       the third chunk holds a NaN
    shape     the third chunk lacks a channel
    short     the third chunk holds fewer values than its horizon says
    step      the third chunk has another time between its rows
    body      the third chunk is for another embodiment
    huge      the third chunk holds a number that no joint has
    far       every chunk leads far outside the limits of the Panda's first and last joint
    leap      every second chunk begins half a radian away
    silent    a heartbeat, but never a chunk
    late      chunks whose rows have all passed
    early     chunks of observations to come
    dry       three chunks, then no more
    twice     every chunk is sent twice
    swapped   every second chunk comes after the one that follows it
    stalls    Python stands still for 0.3 s before every chunk, as a model may make it
    mute      chunks, but no heartbeat while a task is active
    stranger  the heartbeat of another embodiment while a task is active
    expert    a base drives to its goal in the scene of seed 2
"""

from __future__ import annotations

import contextlib
import ctypes
import sys

import numpy as np
import rclpy
from nav_msgs.msg import Odometry
from qwen_vla_ros.msg import ActionChunk, PolicyStatus, Task
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.time import Time
from std_msgs.msg import String

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.motion.base import compose
from qwen_vla_ros.nodes import qos
from qwen_vla_ros.nodes.priority import LIFE, run_first
from qwen_vla_ros.nodes.transforms import yaw_of

# What the Panda can turn to the end without hitting itself.
FAR = np.array([9.0, 0.0, 0.0, 0.0, 0.0, 0.0, 9.0, 0.0])


class FakePolicy(Node):
    def __init__(self, embodiment: str, mode: str):
        super().__init__("policy")
        self._body, self._mode = load_embodiment(embodiment), mode
        self._task = Task()
        self._sequence = self._chunks = 0
        self._last = 0.0
        self._kept: ActionChunk | None = None
        self._status = self.create_publisher(PolicyStatus, "policy_status", qos.HEARTBEAT)
        self._chunk = self.create_publisher(ActionChunk, "action_chunk", qos.RELIABLE)
        self.create_subscription(Task, "task", self._on_task, qos.LATCHED)
        self.create_subscription(String, "policy/mode", self._on_mode, qos.LATCHED)
        if mode == "expert":
            self._load_scene()
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(0.02, self._beat, clock=steady)
        self.create_timer(0.01, self._think, clock=steady)
        self.get_logger().info("up")

    def _on_mode(self, message: String) -> None:
        self._mode, self._kept = message.data, None
        if self._task.active:
            # What goes wrong does so at once.
            self._chunks, self._last = 2, 0.0

    def _load_scene(self) -> None:
        from qwen_vla_ros.sim import make_world
        from qwen_vla_ros.sim.experts import expert_chunk

        self._world = make_world(self._body, "easy")
        self._world.reset(self._world.tasks[0], 2)
        start, self._pose = self._world.base_pose, None

        def hear(message: Odometry) -> None:
            pose = message.pose.pose
            self._pose = compose(start, [pose.position.x, pose.position.y, yaw_of(pose.orientation)])

        def expert(step: float) -> np.ndarray:
            self._world.teleport(base_pose=self._pose)
            return expert_chunk(self._world, None, self._body.horizon, step)

        self._expert = expert
        self.create_subscription(Odometry, self._body.state.odometry, hear, qos.SENSOR)

    def _on_task(self, task: Task) -> None:
        if task.task_id != self._task.task_id:
            self._chunks, self._last, self._kept = 0, 0.0, None
        self._task = task

    def _beat(self) -> None:
        status = PolicyStatus(embodiment=self._body.name, checkpoint=self._mode)
        status.header.stamp = self.get_clock().now().to_msg()
        if self._task.active:
            status.state, status.task_id = PolicyStatus.STATE_RUNNING, self._task.task_id
            if self._mode == "mute" and self._chunks >= 2:
                return
            if self._mode == "stranger" and self._chunks >= 2:
                status.embodiment = "tiago_base"
        self._status.publish(status)

    def _think(self) -> None:
        now = self.get_clock().now()
        seconds = now.nanoseconds * 1e-9
        if not self._task.active or self._mode == "silent" or (self._mode == "dry" and self._chunks == 3):
            return
        if seconds - self._last < self._body.execute_steps / self._body.control_rate:
            return
        self._last = seconds
        if self._mode == "stalls":
            ctypes.PyDLL(None).usleep(300_000)  # keeps the interpreter's lock
        self._chunks += 1
        self._sequence += 1
        self._send(self._make(now))

    def _make(self, now: Time) -> ActionChunk:
        seconds = now.nanoseconds * 1e-9
        step = 1 / self._body.control_rate
        due = seconds + step * np.arange(1, self._body.horizon + 1)
        if self._mode == "expert":
            data = self._expert(step)
        elif self._body.joints:
            home = np.array([self._body.home[joint] for joint in self._body.joints])
            data = home + 0.2 * np.sin(2 * due)[:, None]
        else:
            ahead = due - seconds
            data = np.stack([0.4 * ahead, 0 * ahead, 0.3 * ahead], axis=1)
        message = ActionChunk(
            embodiment=self._body.name,
            task_id=self._task.task_id,
            sequence=self._sequence,
            channels=list(self._body.layout.names),
            step=step,
            horizon=len(data),
            inference_time=0.01,
        )
        message.header.stamp = now.to_msg()
        if self._mode == "late":
            message.header.stamp.sec = max(0, message.header.stamp.sec - 60)
        if self._mode == "early":
            message.header.stamp.sec += 5
        if self._mode == "far":
            data = data + FAR
        elif self._mode == "leap" and self._chunks % 2:
            data = data + 0.5
        if self._chunks == 3:
            data = self._spoil(message, data)
        message.data = data.ravel().tolist()
        return message

    def _spoil(self, message: ActionChunk, data: np.ndarray) -> np.ndarray:
        mode = self._mode
        if mode == "nan":
            data[2, 1] = np.nan
        elif mode == "shape":
            data, message.channels = data[:, :-1], message.channels[:-1]
        elif mode == "short":
            data = data[:-1]
        elif mode == "step":
            message.step *= 2
        elif mode == "body":
            message.embodiment = "tiago_base"
        elif mode == "huge":
            data = data + 1e9
        return data

    def _send(self, message: ActionChunk) -> None:
        if self._mode == "swapped" and self._chunks % 2:
            self._kept = message
            return
        self._chunk.publish(message)
        if self._mode == "twice":
            self._chunk.publish(message)
        if self._kept is not None:
            self._chunk.publish(self._kept)
            self._kept = None


def main() -> None:
    rclpy.init()
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        node = FakePolicy(*sys.argv[1:3])
        with contextlib.suppress(PermissionError):
            run_first(1, LIFE)
        rclpy.spin(node)


if __name__ == "__main__":
    main()
