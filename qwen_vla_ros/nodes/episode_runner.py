# SPDX-License-Identifier: Apache-2.0
"""Run episodes in the simulated world through the nodes, and record what passes by on their topics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import Twist, TwistStamped
from rclpy.action import ActionClient
from rclpy.action.client import ClientGoalHandle
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.task import Future
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from qwen_vla_ros.action import ExecuteTask
from qwen_vla_ros.embodiment import Embodiment
from qwen_vla_ros.msg import ActionChunk, ExecutorStatus, PolicyStatus, WorldStatus
from qwen_vla_ros.nodes import qos
from qwen_vla_ros.nodes.base_pose import MESSAGES, flat_pose
from qwen_vla_ros.nodes.images import to_rgb
from qwen_vla_ros.nodes.recording import Chunk, Episode, Series
from qwen_vla_ros.srv import ResetWorld

_SPIN_PERIOD = 0.02

# After this long without an answer a request is sent again [s]. rmw_fastrtps waits 100 ms for the asker's end
# of a service to be discovered, then sends an answer that nobody hears.
_ANSWER_PATIENCE = 3.0


class EpisodeError(RuntimeError):
    """An episode could not be run; the text says what was waited for."""


class ResetRefused(EpisodeError):
    """The world has no such episode; the text is the world's."""


def _seconds(stamp: Any) -> float:
    return Time.from_msg(stamp).nanoseconds * 1e-9


@contextmanager
def episode_runner(
    embodiment: Embodiment, namespace: str, check: Callable[[], None]
) -> Iterator[EpisodeRunner]:
    """An `EpisodeRunner` in a ROS context that ends with the block; arguments as there."""
    rclpy.init()
    try:
        runner = EpisodeRunner(embodiment, namespace, check)
        try:
            yield runner
        finally:
            runner.destroy_node()
    finally:
        rclpy.try_shutdown()


class EpisodeRunner(Node):
    """Resets the world, sends the instruction as an `ExecuteTask` goal, and records until the result.

    Not thread-safe: every method spins the node in the calling thread.

    Args:
        embodiment: The body whose topics are recorded.
        namespace: ROS namespace of the nodes.
        check: Called while waiting; raises when a process has died.
        success_hold: How long the world must report success before the task is cancelled as done [s].
    """

    def __init__(
        self,
        embodiment: Embodiment,
        namespace: str,
        check: Callable[[], None] = lambda: None,
        success_hold: float = 0.3,
    ):
        super().__init__(
            "episode_runner",
            namespace=namespace,
            parameter_overrides=[Parameter("use_sim_time", value=True)],
        )
        self._spinner = SingleThreadedExecutor()
        self._spinner.add_node(self)
        self._embodiment = embodiment
        self._check = check
        self._success_hold = success_hold
        self._episode: Episode | None = None
        self._policy: PolicyStatus | None = None
        self._executor: ExecutorStatus | None = None
        self._world: WorldStatus | None = None
        self._success_since: float | None = None
        self._frame_stamps: dict[str, list[float]] = {camera.view: [] for camera in embodiment.cameras}

        self._reset = self.create_client(ResetWorld, "reset_world")
        self._execute = ActionClient(self, ExecuteTask, "execute_task")
        self.create_subscription(PolicyStatus, "policy_status", self._on_policy, qos.RELIABLE)
        self.create_subscription(ExecutorStatus, "executor_status", self._on_executor, qos.LATCHED)
        self.create_subscription(WorldStatus, "world_status", self._on_world, qos.RELIABLE)
        self.create_subscription(ActionChunk, "action_chunk", self._on_chunk, qos.RELIABLE)
        self._subscribe_cameras()
        self._subscribe_state()
        self._subscribe_commands()

    def destroy_node(self) -> None:
        self._spinner.shutdown()
        super().destroy_node()

    def wait_ready(self, timeout: float) -> None:
        """Wait until policy, executor and world report, and frames are counted.

        Raises:
            EpisodeError: after `timeout` [s].
        """
        self._wait(lambda: self._world is not None, timeout, "the world (topic world_status)")
        self._wait(lambda: self._policy is not None, timeout, "the policy (topic policy_status)")
        self._wait(lambda: self._executor is not None, timeout, "the executor (topic executor_status)")
        self._wait(self._reset.service_is_ready, timeout, "the service reset_world")
        self._wait(self._execute.server_is_ready, timeout, "the action execute_task")
        for camera in self._embodiment.cameras:
            if camera.required:
                what = f"images of {camera.view}, here and at the policy"
                self._wait(partial(self._sees, camera.view), timeout, what)

    def run_episode(self, task: str, seed: int, instruction: str = "", time_limit: float = 0.0) -> Episode:
        """Run one episode to success or to its time limit.

        Args:
            task: Name of a task of the world; empty for its first.
            seed: Decides the scene.
            instruction: One of the scene's instructions; empty lets the seed choose.
            time_limit: Overrides the recommended limit [s]; 0 keeps it.
        """
        reply = self._call_reset(ResetWorld.Request(task=task, seed=seed, instruction=instruction))
        episode = Episode(self._embodiment.name, reply.instruction, seed)
        self._success_since = None
        self._wait(
            lambda: self._reset_seen(reply.instruction, seed), 5.0, "the world's report of the new episode"
        )

        self._episode = episode
        episode.started = self._now()
        received_before = self._received()
        handle = self._send_goal(
            ExecuteTask.Goal(instruction=reply.instruction, time_limit=time_limit or reply.time_limit)
        )
        future = handle.get_result_async()
        # Wall time: a world slower than real time takes longer than its time limit.
        self._wait(
            lambda: future.done() or self._succeeded(),
            20.0 * (time_limit or reply.time_limit) + 20.0,
            "the task",
        )
        if not future.done():
            episode.success = True
            handle.cancel_goal_async()
            self._wait(future.done, 10.0, "the task to end after its cancellation")
        elif self._world is not None:
            episode.success = bool(self._world.success)
        result = future.result().result
        self._count_frames(episode, received_before)
        episode.code, episode.message = int(result.code), result.message
        episode.elapsed = float(result.elapsed)
        episode.distance = float(self._world.distance) if self._world else float("nan")
        self._episode = None
        return episode

    # Waiting

    def _wait(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            self._spinner.spin_once(timeout_sec=_SPIN_PERIOD)
            self._check()
            if time.monotonic() > deadline:
                raise EpisodeError(f"waited {timeout:.0f} s for {what}, namespace {self.get_namespace()}")

    def _ask(self, send: Callable[[], Future], what: str) -> Any:
        """The answer to a request that may be sent more than once."""
        sent, future = time.monotonic(), send()

        def answered() -> bool:
            nonlocal sent, future
            if not future.done() and time.monotonic() - sent > _ANSWER_PATIENCE:
                self.get_logger().warning(f"no answer for {_ANSWER_PATIENCE} s, asking again for {what}")
                sent, future = time.monotonic(), send()
            return future.done()

        self._wait(answered, 20.0, what)
        return future.result()

    def _call_reset(self, request: ResetWorld.Request) -> ResetWorld.Response:
        reply = self._ask(lambda: self._reset.call_async(request), "the answer of reset_world")
        if not reply.success:
            raise ResetRefused(f"reset_world: {reply.message}")
        return reply

    def _send_goal(self, goal: ExecuteTask.Goal) -> ClientGoalHandle:
        # A goal that was accepted unheard is preempted by its second.
        handle = self._ask(lambda: self._execute.send_goal_async(goal), "the executor to accept the goal")
        if not handle.accepted:
            why = self._executor.message if self._executor else ""
            raise EpisodeError(f"the executor refused the goal '{goal.instruction}'. {why}")
        return handle

    def _reset_seen(self, instruction: str, seed: int) -> bool:
        world = self._world
        return (
            world is not None and (world.instruction, world.seed) == (instruction, seed) and not world.success
        )

    def _succeeded(self) -> bool:
        return self._success_since is not None and self._now() - self._success_since >= self._success_hold

    def _now(self) -> float:
        return self.get_clock().now().nanoseconds * 1e-9

    # Frames: every image has a camera_info of the same stamp, which is small and reliable

    def _received(self) -> dict[str, tuple[int, float]]:
        """Frames that the policy has received, and the stamp of the newest, by view."""
        status = self._policy
        if status is None:
            return {}
        stamp = _seconds(status.header.stamp)
        return {
            view: (int(frames), stamp - age)
            for view, frames, age in zip(status.views, status.frames, status.ages, strict=True)
        }

    def _sees(self, view: str) -> bool:
        return bool(self._frame_stamps[view]) and self._received().get(view, (0, 0.0))[0] > 0

    def _count_frames(self, episode: Episode, before: dict[str, tuple[int, float]]) -> None:
        half_step = 1e-3
        for view, (frames, newest) in self._received().items():
            if view not in before or not np.isfinite(newest) or not np.isfinite(before[view][1]):
                continue
            frames_before, newest_before = before[view]
            sent = [
                s for s in self._frame_stamps[view] if newest_before + half_step < s <= newest + half_step
            ]
            episode.frames_sent += len(sent)
            episode.frames_received += frames - frames_before

    # Subscriptions

    def _subscribe_cameras(self) -> None:
        for camera in self._embodiment.cameras:
            kind = CompressedImage if camera.transport == "compressed" else Image
            self.create_subscription(
                kind, camera.topic, lambda m, v=camera.view: self._on_view(v, m), qos.SENSOR
            )
            info = f"{camera.topic.rsplit('/image_raw', 1)[0]}/camera_info"
            self.create_subscription(
                CameraInfo,
                info,
                lambda m, v=camera.view: self._frame_stamps[v].append(_seconds(m.header.stamp)),
                qos.RELIABLE,
            )

    def _subscribe_state(self) -> None:
        for topic in self._embodiment.state.joint_states:
            self.create_subscription(JointState, topic, self._on_joints, qos.SENSOR)
        base = self._embodiment.state.base
        if base is not None:
            self.create_subscription(MESSAGES[base.type], base.topic, self._on_pose, qos.SENSOR)

    def _subscribe_commands(self) -> None:
        for group in self._embodiment.actions:
            controller = group.controller
            if controller.type == "joint_trajectory":
                kind, read = JointTrajectory, _trajectory_reader(group.joints)
            elif controller.type == "forward_command":
                kind, read = Float64MultiArray, lambda m: np.asarray(m.data)
            elif controller.type == "diff_drive" and controller.stamped:
                kind, read = TwistStamped, lambda m: np.array([m.twist.linear.x, m.twist.angular.z])
            elif controller.type == "diff_drive":
                kind, read = Twist, lambda m: np.array([m.linear.x, m.angular.z])
            else:
                continue

            def record(message: Any, name: str = group.name, read: Callable = read) -> None:
                if self._episode is not None:
                    self._episode.commanded.setdefault(name, Series()).add(self._now(), read(message))

            self.create_subscription(kind, controller.topic, record, qos.RELIABLE)

    def _on_policy(self, message: PolicyStatus) -> None:
        self._policy = message

    def _on_executor(self, message: ExecutorStatus) -> None:
        self._executor = message
        if self._episode is not None and message.sequence and np.isfinite(message.capture_to_command):
            self._episode.capture_to_command.setdefault(
                int(message.sequence), float(message.capture_to_command)
            )

    def _on_world(self, message: WorldStatus) -> None:
        self._world = message
        stamp = _seconds(message.header.stamp)
        if not message.success:
            self._success_since = None
        elif self._success_since is None:
            self._success_since = stamp

    def _on_chunk(self, message: ActionChunk) -> None:
        if self._episode is None:
            return
        data = np.asarray(message.data).reshape(message.horizon, -1)
        self._episode.chunks.append(Chunk(_seconds(message.header.stamp), message.step, data))
        self._episode.inference_times.append(float(message.inference_time))

    def _on_view(self, view: str, message: Image | CompressedImage) -> None:
        if self._episode is not None and view not in self._episode.views:
            self._episode.views[view] = to_rgb(message)

    def _on_joints(self, message: JointState) -> None:
        if self._episode is None:
            return
        position = dict(zip(message.name, message.position, strict=True))
        for group in self._embodiment.actions:
            joints = getattr(group, "joints", ())
            if joints and all(joint in position for joint in joints):
                row = np.array([position[joint] for joint in joints])
                self._episode.measured.setdefault(group.name, Series()).add(
                    _seconds(message.header.stamp), row
                )

    def _on_pose(self, message: Any) -> None:
        if self._episode is None:
            return
        row = np.array(flat_pose(message))
        for group in self._embodiment.actions:
            if group.controller.type in ("diff_drive", "path"):
                self._episode.measured.setdefault(group.name, Series()).add(
                    _seconds(message.header.stamp), row
                )


def _trajectory_reader(joints: tuple[str, ...]) -> Callable[[JointTrajectory], np.ndarray]:
    def read(message: JointTrajectory) -> np.ndarray:
        position = dict(zip(message.joint_names, message.points[-1].positions, strict=True))
        return np.array([position.get(joint, np.nan) for joint in joints])

    return read
