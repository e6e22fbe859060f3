# SPDX-License-Identifier: Apache-2.0
"""Turns the newest images into action chunks while a task is active; moves nothing."""

from __future__ import annotations

import array
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from rclpy.clock import Clock, ClockType
from sensor_msgs.msg import CompressedImage, Image, JointState

from qwen_vla_ros.action import ExecuteTask
from qwen_vla_ros.embodiment import Embodiment, denormalise
from qwen_vla_ros.msg import ActionChunk, PolicyStatus, Task
from qwen_vla_ros.policy import Observation, ObservationError, PolicyError, load_policy

from . import qos
from .configuration_checkup import check_policy
from .diagnostics import ERROR, Diagnostics, Health, Window
from .frozen import Motion
from .inputs import Inputs
from .joint_positions import joint_positions
from .lifecycle import BodyNode, ConfigurationError, declare, run, seconds
from .observing import Inbox, NotObserved, Views, check_chunk
from .priority import DDS, LIFE, claim, go_first, in_turn, run_first

Result = ExecuteTask.Result
State = PolicyStatus

HEARTBEAT_PERIOD = 0.02

# How long before a chunk is due its images are made ready as they come [s]: a camera's period and some more.
# Earlier ones would be made ready for nothing.
AHEAD = 0.05

# Said by an executor without a task.
NO_TASK = 0

# How often it is looked whether a chunk has fallen due [s].
LOOK_PERIOD = 0.01

# How long the callback that completes an observation stays out of its way [s]: until the model has it. The
# callback's thread would keep the interpreter from the model's.
GIVE_WAY = 0.001


@dataclass
class _Work:
    """One task as the inference thread sees it."""

    task_id: int
    instruction: str
    began: float
    chunks: int = 0
    last_capture: float = -math.inf
    inference_time: float = math.nan
    # Since when observations have been incomplete [s]; NaN while they are complete.
    waiting_since: float = math.nan
    fault: NotObserved | None = None


class PolicyNode(BodyNode):
    """See docs/nodes.md for topics, parameters and states.

    Args:
        load: makes the policy; see `load_policy`.
    """

    def __init__(self, load: Callable[..., Any] = load_policy):
        super().__init__("policy")
        declare(self, "checkpoint", "", "Checkpoint folder; empty for the one that comes with the package")
        declare(
            self,
            "robot_description",
            "",
            "URDF, or path of a file with it, to compare with; empty for the topic robot_description",
        )
        declare(self, "device", "auto", "Torch device, or auto: CUDA where there is some")
        declare(self, "threads", 0, "CPU threads of the model; 0 means one less than there are CPUs", 0, 1024)
        declare(self, "steps", 0, "Euler steps of the flow; 0 for the checkpoint's own", 0, 1000)
        declare(
            self,
            "backend",
            "auto",
            "eager, engine (fixed shapes), onnx, scripted; auto: onnx for an exported folder, else eager",
        )
        declare(self, "handover", "", "As of the executor: with rtc each chunk continues the one before")
        declare(self, "seed", -1, "Seed of every task; -1 for chance", -1, 2**31 - 1)
        declare(
            self, "camera_timeout", 10.0, "How long configure waits for camera publishers [s]", 0.0, 3600.0
        )
        declare(
            self,
            "stale_timeout",
            1.0,
            "How long a task waits for images that stopped, before it is given up [s]",
            0.0,
            600.0,
        )
        declare(
            self,
            "frozen_after",
            2.0,
            "How long a camera may send the same picture while the robot moves [s]; 0 for ever",
            0.0,
            600.0,
        )
        declare(
            self,
            "warn_camera_rate",
            5.0,
            "Images per second of a camera below which diagnostics warn",
            0.0,
            1000.0,
        )
        declare(
            self,
            "realtime_priority",
            10,
            "SCHED_FIFO priority of all that is not the model: callbacks, decoding, publishing; 0 for none",
            0,
            99,
        )
        self._load = load
        self._diagnostics: Diagnostics | None = None
        self._policy: Any = None
        self._inbox: Inbox | None = None
        self._inputs: Inputs | None = None
        self._motion: Motion | None = None
        self._entities: list = []
        self._clockwork: list = []
        self._thread: threading.Thread | None = None
        self._priority = 0
        self._stop = threading.Event()
        # For the model's thread: there is something to do.
        self._called = threading.Event()
        self._thinking = False
        self._work: _Work | None = None
        self._sequence = 0
        self._joints: dict[str, tuple[float, float]] = {}
        self._continuing: Any = None

    # Lifecycle

    def configure(self, embodiment: Embodiment) -> None:
        began = time.monotonic()
        try:
            # A model takes all the processor that it gets; the process must not look dead for that.
            run_first(1, LIFE)
        except OSError as error:
            self.get_logger().debug(f"signs of life are given at the priority of the model: {error}")
        if embodiment.prompt.state and len(embodiment.joints) != embodiment.layout.count:
            raise ConfigurationError(
                f"embodiment {embodiment.name}: prompt.state needs joints in every group"
            )
        options = {
            name: self.value(parameter) or None
            for name, parameter in (("threads", "threads"), ("steps", "steps"))
        }
        if self.value("backend") != "auto":
            options["backend"] = self.value("backend")
        try:
            with self.interruptible():
                self._policy = self._load(self.value("checkpoint"), self.value("device"), **options)
                self._policy.configure(embodiment)
        except RuntimeError as error:  # PolicyError, CheckpointError, and what torch says of a device
            raise ConfigurationError(str(error)) from error
        self._reads_state = embodiment.prompt.state or self._policy.info.reads_state
        self._inbox, self._motion = Inbox(embodiment), Motion(self, embodiment)
        self._inputs = Inputs(embodiment, self._policy.resize)
        self._continuing = None
        if (self.value("handover") or embodiment.motion.mode) == "rtc":
            from qwen_vla_ros.motion.follower import UnsupportedGroup  # ruckig

            from .continuing import Continuing

            if self._policy.info.details.get("engine") == "onnxruntime":
                raise ConfigurationError(
                    "handover rtc: backend onnx cannot continue a plan; take backend eager, or another mode"
                )
            try:
                self._continuing = Continuing(self, embodiment)
            except UnsupportedGroup as error:
                raise ConfigurationError(f"embodiment {embodiment.name}: {error}") from error
        # Loading took time in which cameras could appear; one look is the least.
        self._find_cameras(embodiment, began + self.value("camera_timeout"))
        check_policy(self, embodiment, self._policy.info.checkpoint)
        self._chunk_publisher = self.create_lifecycle_publisher(ActionChunk, "action_chunk", qos.RELIABLE)
        # What all chunks have in common.
        self._chunk = ActionChunk(
            embodiment=embodiment.name,
            channels=list(embodiment.layout.names),
            step=1.0 / embodiment.control_rate,
            horizon=embodiment.horizon,
        )
        self._chunk.header.frame_id = next((g.frame for g in embodiment.actions if hasattr(g, "frame")), "")
        self._status_publisher = self.create_lifecycle_publisher(PolicyStatus, "policy_status", qos.HEARTBEAT)
        info = self._policy.info
        self.get_logger().info(
            f"{info.checkpoint}: {info.parameters / 1e6:.1f} M parameters on {info.device}"
        )

    def activate(self) -> None:
        self._inbox.clear()
        self._inputs.clear()
        self._work = None
        self._stop.clear()
        for camera in self.embodiment.cameras:
            self._entities.append(
                self.create_subscription(
                    _image_type(camera),
                    camera.topic,
                    partial(self._on_image, camera.view),
                    qos.IMAGE,
                )
            )
            if camera.depth is not None:
                hear = partial(self._on_depth, camera.view)
                self._entities.append(self.create_subscription(Image, camera.depth, hear, qos.IMAGE))
        if self._reads_state:
            for topic in self.embodiment.state.joint_states:
                keep = joint_positions(self.embodiment, topic, self._on_joints)
                self._entities.append(self.create_subscription(JointState, topic, keep, qos.SENSOR))
        self._entities.append(self.create_subscription(Task, "task", self._on_task, qos.LATCHED))
        if self._continuing is not None:
            self._continuing.listen()
        # What is short need not wait for what is long, the model here or elsewhere on the machine.
        self._priority = claim(self.value("realtime_priority"), self.get_logger(), DDS)
        self._inference, self._skew = Window(), Window()
        self._counted = {camera.view: (time.monotonic(), 0) for camera in self.embodiment.cameras}
        parts = {"cameras": self._camera_health, "model": self._model_health}
        self._diagnostics = Diagnostics(self, self.embodiment.name, parts)
        self._thread = threading.Thread(target=self._think, name="inference")
        self._thread.start()
        # The heartbeat shares no thread with the model: it goes on while the model hangs.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._clockwork = [self.create_timer(HEARTBEAT_PERIOD, self._beat, clock=steady)]

    def deactivate(self) -> None:
        self._stop.set()
        if self._diagnostics is not None:
            self._diagnostics.destroy()
            self._diagnostics = None
        for timer in self._clockwork:
            self.destroy_timer(timer)
        self._clockwork = []
        for entity in self._entities:
            self.destroy_subscription(entity)
        self._entities = []
        self._motion.rest()
        if self._thread is not None:
            self._called.set()
            self._thread.join()
            self._thread = None
        if self._continuing is not None:
            self._continuing.rest()
        if self._priority:
            go_first(0)

    def cleanup(self) -> None:
        self._policy = self._inbox = self._inputs = self._motion = None
        for name in ("_chunk_publisher", "_status_publisher"):
            publisher = self.__dict__.pop(name, None)
            if publisher is not None:
                self.destroy_lifecycle_publisher(publisher)

    def _find_cameras(self, embodiment: Embodiment, deadline: float) -> None:
        """Wait until every required camera has a publisher of the right type, and its depth one, too."""
        required = [camera for camera in embodiment.cameras if camera.required]
        missing = [(camera, camera.topic, _image_type(camera)) for camera in required]
        missing += [(camera, camera.depth, Image) for camera in required if camera.depth is not None]
        while True:
            missing = [absent for absent in missing if not self._has_publisher(*absent[1:])]
            if not missing:
                return
            if time.monotonic() >= deadline or self.ending.wait(0.05):
                break
        raise ConfigurationError("; ".join(self._explain_absence(*absent) for absent in missing))

    def _has_publisher(self, topic: str, message_type: type) -> bool:
        wanted = _type_name(message_type)
        return any(info.topic_type == wanted for info in self.get_publishers_info_by_topic(topic))

    def _explain_absence(self, camera: Any, name: str, message_type: type) -> str:
        topic, wanted = self.resolve_topic_name(name), _type_name(message_type)
        part = "depth of camera" if name == camera.depth else "camera"
        text = (
            f"{part} {camera.view}: nobody publishes {wanted} on {topic} "
            f"(waited {self.value('camera_timeout')} s)"
        )
        suffix = "/compressed"
        # image_transport's naming: the compressed images of TOPIC are on TOPIC/compressed.
        other = topic + suffix if camera.transport == "raw" else topic.removesuffix(suffix)
        for name in dict.fromkeys((topic, other)) if part == "camera" else ():
            for info in self.get_publishers_info_by_topic(name):
                if info.topic_type != wanted and info.topic_type.endswith("Image"):
                    transport = "compressed" if camera.transport == "raw" else "raw"
                    return (
                        f"{text}; {info.node_name} publishes {info.topic_type} on {name}: "
                        f"set transport: {transport} and that topic, if it is this camera"
                    )
        return f"{text}; is the camera's driver running, and the topic's namespace right?"

    # What is heard

    def _on_image(self, view: str, message: Any) -> None:
        self._inbox.keep(view, message)
        self._serve(view, message, self._inputs.image)
        self._inbox.compare(view)

    def _on_depth(self, view: str, message: Any) -> None:
        self._inbox.keep_depth(view, message)
        self._serve(view, message, self._inputs.depth)

    def _serve(self, view: str, message: Any, prepare: Callable[[str, Any], None]) -> None:
        """Make a message ready while the model waits for it, and call its thread once there is all it needs.

        Messages that come while the model is at work cost nothing: most of them are never used.
        """
        work, now = self._work, self.now
        if work is None or work.fault is not None or self._thinking or now < self._due(work) - AHEAD:
            return
        prepare(view, message)
        try:
            complete = self._find_observation(work, now) is not None
        except NotObserved:
            return  # `_beat` says so, and `_think` looks again
        if complete:
            self._called.set()
            time.sleep(GIVE_WAY)

    def _on_joints(self, stamp: float, positions: dict[str, float]) -> None:
        self._joints |= {name: (stamp, position) for name, position in positions.items()}

    def _on_task(self, message: Task) -> None:
        work = self._work
        if message.active and work is not None and work.task_id == message.task_id:
            began = seconds(message.header.stamp)
            if began < work.began:
                # The clock went back: what is counted from its past goes with it.
                work.last_capture += began - work.began
                work.waiting_since += began - work.began
            work.began = began
        elif message.active:
            self._work = _Work(message.task_id, message.instruction, seconds(message.header.stamp))
        elif work is not None and message.task_id in (work.task_id, NO_TASK):
            # An executor that starts knows of no task: what was done for the one before it is over.
            self._work = None
        self._called.set()

    # Heartbeat

    def _beat(self) -> None:
        now = self.now
        work = self._work
        self._find_frozen(work)
        status = PolicyStatus(
            state=State.STATE_IDLE,
            embodiment=self.embodiment.name,
            checkpoint=self._policy.info.checkpoint,
            inference_time=math.nan,
        )
        status.header.stamp = self.stamp(now)
        status.views, status.frames, status.ages = self._inbox.counts(now)
        if work is not None:
            trouble = work.fault or self._look(work, now)
            status.task_id, status.chunks = work.task_id, work.chunks
            status.inference_time = work.inference_time
            if trouble is None:
                status.state = State.STATE_RUNNING
            else:
                status.state = State.STATE_FAULT if work.fault is not None else State.STATE_WAITING
                status.code, status.message = trouble.code, str(trouble)
        self._status_publisher.publish(status)

    def _find_frozen(self, work: _Work | None) -> None:
        """Set aside cameras whose picture stays the same while the robot moves."""
        patience = self.value("frozen_after")
        if not patience:
            return
        # Joint states are asked for early enough to see the motion.
        spans = {v: s for v, s in self._inbox.unchanged().items() if s[1] - s[0] > patience / 4}
        if work is None or not spans:
            self._motion.rest()
            return
        self._motion.listen()
        for view, (first, last) in spans.items():
            if last - first > patience and (moved := self._motion.moved(first, last)):
                self._inbox.freeze(
                    view, f"sent the same picture for {last - first:.1f} s while {moved}; is it frozen?"
                )

    def _camera_health(self) -> Health:
        figures: dict[str, object] = {"skew p99 [s]": self._skew.percentile(99)}
        health = Health(figures)
        lowest, now = self.value("warn_camera_rate"), time.monotonic()
        for view, frames, age in zip(*self._inbox.counts(self.now), strict=True):
            before, counted = self._counted[view]
            rate = (frames - counted) / max(1e-9, now - before)
            self._counted[view] = now, frames
            figures |= {f"{view} frames": frames, f"{view} rate [Hz]": rate, f"{view} age [s]": age}
            health.check(
                rate < lowest, f"camera {view} sends {rate:.1f} images per second, expected {lowest}"
            )
        for view, (first, last) in self._inbox.unchanged().items():
            same = last - first
            figures[f"{view} unchanged [s]"] = same
            patience = self.value("frozen_after")
            health.check(0 < patience < same, f"camera {view} has sent the same picture for {same:.1f} s")
        return health

    def _model_health(self) -> Health:
        info, work = self._policy.info, self._work
        health = Health(
            {
                "checkpoint": info.checkpoint,
                "device": info.device,
                "chunks per second": self._inference.rate,
                "inference p50 [s]": self._inference.percentile(50),
                "inference p99 [s]": self._inference.percentile(99),
            }
        )
        if work is not None and work.fault is not None:
            health.check(True, str(work.fault), ERROR)
        return health

    def _look(self, work: _Work, now: float) -> NotObserved | None:
        """What is missing for an observation; a fault of the task when it has been missing for too long."""
        try:
            self._inbox.views(now, work.began)
            self._state()
        except NotObserved as trouble:
            if math.isnan(work.waiting_since):
                work.waiting_since = now
            # A camera that has sent nothing yet may still be connecting.
            patience = self.value("stale_timeout")
            if self._inbox.unheard:
                patience = max(patience, self.value("camera_timeout"))
            if now - work.waiting_since > patience:
                self._give_up(work, trouble)
            return trouble
        work.waiting_since = math.nan
        return None

    def _give_up(self, work: _Work, trouble: NotObserved) -> None:
        work.fault = trouble
        self.get_logger().warning(f"task {work.task_id} given up, code {trouble.code}: {trouble}")

    # Inference

    def _think(self) -> None:
        patience = LOOK_PERIOD
        while not self._stop.is_set():
            self._called.wait(patience)
            self._called.clear()
            patience = LOOK_PERIOD
            work = self._work
            if work is None or work.fault is not None or self._stop.is_set():
                continue
            try:
                now = self.now
                views = self._find_observation(work, now)
                if views is None:
                    if (ahead := self._due(work) - now) > 0:
                        patience = min(patience, ahead)
                    continue
                self._thinking = True
                self._infer(work, views)
            except NotObserved as trouble:
                if trouble.lasting:
                    self._give_up(work, trouble)
            except Exception as error:  # whatever a model does, the heartbeat goes on and says so
                if not isinstance(error, (ObservationError, PolicyError, ValueError)):
                    self.get_logger().warning(traceback.format_exc())
                code = Result.IMAGE_INVALID if isinstance(error, ObservationError) else Result.MODEL_FAULT
                self._give_up(work, NotObserved(code, f"{type(error).__name__}: {error}", lasting=True))
            finally:
                if self._thinking:
                    # Images that came meanwhile called nobody.
                    self._thinking = False
                    self._called.set()

    def _due(self, work: _Work) -> float:
        """From when on a chunk is wanted [s]."""
        return work.last_capture + self.embodiment.execute_steps / self.embodiment.control_rate

    def _find_observation(self, work: _Work, now: float) -> Views | None:
        """What the next chunk is made of; None while none is due, or there is nothing new.

        Raises:
            NotObserved: See `Inbox.views`; or the state is missing.
        """
        if now < self._due(work):
            return None
        views = self._inbox.views(now, work.began)
        if views.oldest <= work.last_capture:
            return None
        self._state()
        return views

    def _infer(self, work: _Work, views: Any) -> None:
        began = time.perf_counter()
        images, depth = self._inputs.of(views)
        seed = self.value("seed")
        observation = Observation(images, work.instruction, views.oldest, self._state(), depth)
        # A task begins with a chunk of its own.
        plan = self._continuing.plan(views.oldest) if self._continuing is not None and work.chunks else None
        options = {} if plan is None else {"plan": plan}
        with in_turn():
            chunk = self._policy.infer(observation, seed=None if seed < 0 else seed + work.chunks, **options)
        check_chunk(chunk, self.embodiment)
        data = denormalise(chunk, self._policy.statistics)
        work.inference_time = time.perf_counter() - began
        work.last_capture = views.oldest
        self._inference.add(work.inference_time)
        self._skew.add(views.skew)
        if self._work is not work or self._stop.is_set():
            return  # the task ended meanwhile
        work.chunks += 1
        self._sequence += 1
        self._publish_chunk(work, views, data)
        if self._continuing is not None:
            self._continuing.note(data, views.oldest, self._sequence)

    def _publish_chunk(self, work: _Work, views: Any, data: np.ndarray) -> None:
        message = self._chunk
        message.header.stamp = self.stamp(views.oldest)
        message.task_id, message.sequence = work.task_id, self._sequence
        # Of a list, each value would be looked at.
        message.data = array.array("d", data.tobytes())
        message.observation_age, message.camera_skew = self.now - views.oldest, views.skew
        message.inference_time = work.inference_time
        self._chunk_publisher.publish(message)

    def _state(self) -> np.ndarray | None:
        """State of prompt or policy, where one needs it. Shape (c,)."""
        joints = self.embodiment.joints
        if not (self._reads_state and joints):
            return None
        absent = [name for name in joints if name not in self._joints]
        if absent:
            topics = ", ".join(self.embodiment.state.joint_states)
            raise NotObserved(
                Result.JOINT_STATE_INVALID, f"joint {', '.join(absent)} is missing from {topics}"
            )
        values = np.array([self._joints[name] for name in joints])
        age, limit = self.now - values[:, 0].min(), self.embodiment.state.max_age
        if age > limit:
            raise NotObserved(
                Result.JOINT_STATE_STALE, f"joint states are {age:.2f} s old, allowed {limit} s"
            )
        if not np.isfinite(values).all():
            raise NotObserved(Result.JOINT_STATE_INVALID, "joint states are not finite")
        return values[:, 1] if self.embodiment.prompt.state else self._channels(values[:, 1])

    def _channels(self, joints: np.ndarray) -> np.ndarray:
        """Joints, shape (n,), as the channels that they are; NaN in others. Shape (c,)."""
        channels, begin = np.full(self.embodiment.layout.count, np.nan), 0
        for group in self.embodiment.actions:
            values = joints[begin : begin + len(getattr(group, "joints", ()))]
            begin += len(values)
            if len(values) == group.count and group.kind != "eef_delta":
                if group.unit == "fraction":
                    closed, opened = group.opening.T
                    values = (values - closed) / (opened - closed)
                channels[self.embodiment.layout.slice_of(group.name)] = values
        return channels


def _image_type(camera: Any) -> type:
    return CompressedImage if camera.transport == "compressed" else Image


def _type_name(message_type: type) -> str:
    return f"sensor_msgs/msg/{message_type.__name__}"


def main() -> int:
    """Run the policy."""
    return run(PolicyNode)


if __name__ == "__main__":
    sys.exit(main())
