# SPDX-License-Identifier: Apache-2.0
"""A robot of real processes for the tests of the nodes: simulation, executor, and a policy or its double."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
_names = itertools.count()


class Task:
    """A goal that was sent."""

    def __init__(self, handle: Any, feedback: list, node: Any, wait_for: Any):
        self.handle, self.feedback, self._node = handle, feedback, node
        self._future = node.call_in_loop(handle.get_result_async)
        self._wait_for = wait_for

    @property
    def done(self) -> bool:
        return self._future.done()

    def result(self, timeout: float = 30.0) -> Any:
        """The ExecuteTask.Result."""
        self._wait_for(self._future.done, timeout, "the result of the task")
        return self._future.result().result

    @property
    def status(self) -> int:
        return self._future.result().status

    def cancel(self) -> None:
        self._node.call_in_loop(self.handle.cancel_goal_async)


class Stack:
    """Processes of one robot in a namespace of its own, seen from the test's node.

    Attributes:
        executor, policy, world: messages of the status topics, in order of arrival.
        chunks: messages of `action_chunk`.
    """

    def __init__(self, spawn: Any, node: Any, wait_for: Any, namespace: str = ""):
        from qwen_vla_ros.action import ExecuteTask
        from qwen_vla_ros.msg import ActionChunk, ExecutorStatus, PolicyStatus, WorldStatus
        from rclpy.action import ActionClient

        from qwen_vla_ros.nodes import qos

        self.namespace = namespace or f"/test{next(_names)}"
        self.node, self._spawn, self.wait_for = node, spawn, wait_for
        self._mode: Any = None
        self.executor: list = []
        self.policy: list = []
        self.world: list = []
        self.chunks: list = []
        for kind, topic, profile, seen in (
            (ExecutorStatus, "executor_status", qos.LATCHED, self.executor),
            (PolicyStatus, "policy_status", qos.RELIABLE, self.policy),
            (WorldStatus, "world_status", qos.RELIABLE, self.world),
            (ActionChunk, "action_chunk", qos.RELIABLE, self.chunks),
        ):
            node.create_subscription(kind, self.name(topic), seen.append, profile)
        # rclpy shows an action client to its executor before it is complete.
        self._client = node.call_in_loop(lambda: ActionClient(node, ExecuteTask, self.name("execute_task")))

    def name(self, topic: str) -> str:
        return f"{self.namespace}/{topic}"

    def start(
        self, executable: Any, arguments=(), remap: dict[str, str] | None = None, **parameters: Any
    ) -> Any:
        """Start a process; `remap` by relative names."""
        # A clock of its own, too: the processes of another test may still be there.
        ros = ["-r", f"__ns:={self.namespace}", "-r", f"/clock:={self.namespace}/clock"]
        for old, new in (remap or {}).items():
            ros += ["-r", f"{old}:={new}"]
        if executable != "sim":
            parameters.setdefault("use_sim_time", True)
        return self._spawn(executable, arguments, parameters, ros_arguments=ros)

    def sim(self, body: str = "franka_panda", **more: Any) -> Any:
        return self.start("sim", embodiment=body, **more)

    def run_executor(self, body: str = "franka_panda", **more: Any) -> Any:
        return self.start("executor", embodiment=body, **more)

    def fake_policy(self, mode: str = "wave", body: str = "franka_panda", **more: Any) -> Any:
        return self.start(sys.executable, [str(HERE / "fake_policy.py"), body, mode], **more)

    def policy_double(self, mode: str, body: str = "franka_panda", **more: Any) -> Any:
        """The real policy node around a model that misbehaves."""
        return self.start(sys.executable, [str(HERE / "policy_double.py"), mode], embodiment=body, **more)

    def wait_ready(self, world: bool = True, policy: bool = True, timeout: float = 40.0) -> None:
        """Everything that a task needs is there."""
        if world:
            self.wait_for(lambda: self.world, timeout, "world_status")
        if policy:
            self.wait_for(lambda: self.policy, timeout, "policy_status")
        self.wait_for(lambda: self.executor, timeout, "executor_status")
        self.wait_for(self._client.server_is_ready, timeout, "the action execute_task")

    def send(self, instruction: str = "reach the red cube", time_limit: float = 20.0) -> Task:
        from qwen_vla_ros.action import ExecuteTask

        feedback: list = []
        goal = ExecuteTask.Goal(instruction=instruction, time_limit=time_limit)
        handle = self._ask(
            lambda: self._client.send_goal_async(goal, lambda said: feedback.append(said.feedback)),
            "the answer to the goal",
        )
        assert handle.accepted
        return Task(handle, feedback, self.node, self.wait_for)

    def call(self, kind: Any, service: str, request: Any) -> Any:
        """The answer of a service, by its relative name."""
        client = self.node.create_client(kind, self.name(service))
        self.wait_for(client.service_is_ready, 40.0, client.srv_name)
        return self._ask(lambda: client.call_async(request), f"the answer of {client.srv_name}")

    def _ask(self, send: Any, what: str) -> Any:
        sent, future = 0.0, None

        def answered() -> bool:
            # rmw_fastrtps may answer a first request before it has discovered who hears the answer.
            nonlocal sent, future
            if future is None or (not future.done() and time.monotonic() - sent > 3.0):
                sent, future = time.monotonic(), self.node.call_in_loop(send)
            return future.done()

        self.wait_for(answered, 20.0, what)
        return future.result()

    def set_mode(self, mode: str) -> None:
        """Let the fake policy, or the double's model, behave differently from now on."""
        from std_msgs.msg import String

        from qwen_vla_ros.nodes import qos

        if self._mode is None:
            self._mode = self.node.create_publisher(String, self.name("policy/mode"), qos.LATCHED)
        self._mode.publish(String(data=mode))
        self.wait_for(
            lambda: self.policy and self.policy[-1].checkpoint == mode, 30.0, f"the policy in mode {mode}"
        )

    def restart_policy(self) -> None:
        """End the fake policy and start another."""
        self.policy_process.end()
        self.policy.clear()
        self.policy_process = self.fake_policy()
        self.wait_for(lambda: self.policy, 30.0, "the heartbeat of the new policy")

    def wait_state(self, state: int, timeout: float = 20.0) -> Any:
        """The first status from now on with this state."""
        begin = max(0, len(self.executor) - 1)
        found = self.wait_for(
            lambda: [status for status in self.executor[begin:] if status.state == state],
            timeout,
            lambda: f"executor state {state}; last {self.executor[-1:]}",
        )
        return found[0]

    def running(self, task: Task, chunks: int = 2) -> Task:
        """Wait until the robot has followed some chunks of a task."""
        from qwen_vla_ros.msg import ExecutorStatus

        def moving() -> bool:
            assert not task.done, task.result()
            last = task.feedback[-1:]
            return bool(last) and last[0].chunks >= chunks and last[0].state == ExecutorStatus.STATE_RUNNING

        self.wait_for(moving, 40.0, f"{chunks} chunks to be followed")
        return task

    def watch(self) -> Watch:
        return Watch(self)

    def commands(self, topic: str) -> Commands:
        return Commands(self, topic)

    def relay(self, kind: type, source: str, target: str, change=lambda message: message) -> Relay:
        """Pass messages on, changed; the robot's parts are started with their names remapped to `target`."""
        return Relay(self.node, kind, self.name(source), self.name(target), change)


class Relay:
    """Passes messages on. Set `change` to alter them; None stops them.

    Attributes:
        passed: Messages since the last change.
    """

    def __init__(self, node: Any, kind: type, source: str, target: str, change: Any):
        from qwen_vla_ros.nodes import qos

        self.passed = 0
        self._change = change
        self._node = node
        self._publisher = node.create_publisher(kind, target, qos.RELIABLE)
        self._join = lambda: node.create_subscription(kind, source, self._pass, qos.SENSOR)
        self.subscription = self._join()

    @property
    def change(self) -> Any:
        return self._change

    @change.setter
    def change(self, value: Any) -> None:
        self._change, self.passed = value, 0

    def _pass(self, message: Any) -> None:
        changed = self._change(message) if self._change is not None else None
        if changed is not None:
            self._publisher.publish(changed)
            self.passed += 1

    def leave(self) -> None:
        """Stop subscribing."""
        self._node.destroy_subscription(self.subscription)

    def come_back(self) -> None:
        self.subscription = self._join()


class Commands:
    """What a controller of joints is told, in order.

    The writer keeps the newest command only, so some may be missing: `periods` counts them.

    Attributes:
        messages: As they came.
    """

    def __init__(self, stack: Stack, topic: str):
        from trajectory_msgs.msg import JointTrajectory

        from qwen_vla_ros.nodes import qos

        self.messages: list = []
        self._sequence: list[int] = []
        self._node = stack.node
        self._subscription = self._node.create_subscription(
            JointTrajectory, stack.name(topic), self._keep, qos.RELIABLE
        )

    def leave(self) -> None:
        """Stop subscribing: the executor counts who listens."""
        self._node.destroy_subscription(self._subscription)

    def _keep(self, message: Any, info: Any) -> None:
        self._sequence.append(info["publication_sequence_number"])
        self.messages.append(message)

    @property
    def rows(self) -> Any:
        """Positions. Shape (n, joints)."""
        import numpy as np

        return np.array([message.points[0].positions for message in self.messages])

    @property
    def periods(self) -> Any:
        """Command periods from each row to the next. Shape (n - 1,)."""
        import numpy as np

        return np.diff(self._sequence[: len(self.messages)])


class Watch:
    """Speed of the fastest joint over robot time."""

    def __init__(self, stack):
        from sensor_msgs.msg import JointState

        from qwen_vla_ros.nodes import qos

        self.rows: list[tuple[float, float]] = []
        stack.node.create_subscription(JointState, stack.name("joint_states"), self._keep, qos.SENSOR)

    def _keep(self, message: Any) -> None:

        stamp = message.header.stamp
        self.rows.append((stamp.sec + stamp.nanosec * 1e-9, max(map(abs, message.velocity[:7]))))

    @property
    def now(self) -> float:
        return self.rows[-1][0]

    def last_motion(self, after: float, speed: float = 0.02) -> float:
        """Time of the last sample faster than `speed` [rad/s]; what a servo's settling leaves is slower."""
        return max((t for t, v in self.rows if t >= after and v > speed), default=after)


@pytest.fixture
def stack(spawn, ros_node, wait_for) -> Stack:
    return Stack(spawn, ros_node, wait_for)


@pytest.fixture(scope="module")
def module_stack(module_spawn, module_ros_node, wait_for) -> Stack:
    return Stack(module_spawn, module_ros_node, wait_for)


@pytest.fixture(scope="module")
def panda(module_spawn, module_ros_node, wait_for) -> Stack:
    """A Panda with a policy that makes it swing, shared by the tests of a module."""
    stack = Stack(module_spawn, module_ros_node, wait_for)
    stack.sim()
    stack.run_executor(chunk_timeout=4.0)
    stack.policy_process = stack.fake_policy()
    stack.wait_ready()
    return stack


@pytest.fixture(scope="module")
def panda_world(module_spawn, module_ros_node, wait_for) -> Stack:
    """A simulated Panda, shared by the tests of a module."""
    stack = Stack(module_spawn, module_ros_node, wait_for)
    stack.sim()
    stack.wait_for(lambda: stack.world, 60.0, "world_status")
    return stack


@pytest.fixture
def robot(panda_world, spawn, ros_node, wait_for) -> Stack:
    """The Panda of the module, to which a test adds an executor and a policy of its own."""
    return Stack(spawn, ros_node, wait_for, panda_world.namespace)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A real checkpoint with chance weights and statistics about each body's home."""
    import numpy as np

    from qwen_vla_ros.embodiment import load_embodiment
    from qwen_vla_ros.model.checkpoint import save_checkpoint
    from qwen_vla_ros.model.presets import build_tiny

    folder = tmp_path_factory.mktemp("checkpoint")
    model, processor = build_tiny(seed=0)
    statistics = {}
    for name in ("franka_panda", "tiago_base"):
        body = load_embodiment(name)
        centre = np.array([body.home[joint] for joint in body.joints] or [0.0] * body.layout.count)
        statistics[name] = {
            "q01": (centre - 0.1).tolist(),
            "q99": (centre + 0.1).tolist(),
            "channels": list(body.layout.names),
            "horizon": body.horizon,
            "control_rate": body.control_rate,
        }
    save_checkpoint(folder, model, processor, statistics)
    return folder
