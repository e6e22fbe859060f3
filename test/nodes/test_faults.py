# SPDX-License-Identifier: Apache-2.0
"""Faults of drivers, policy and clock, injected into one running robot: each has its state, message and time.

docs/nodes.md lists them. Times are those of the robot's clock, by the stamps of messages.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qwen_vla_ros.embodiment import load_embodiment

pytest.importorskip("rclpy", reason="needs ROS 2")

from qwen_vla_ros.action import ExecuteTask
from qwen_vla_ros.msg import ExecutorStatus
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory

from qwen_vla_ros.nodes import qos
from qwen_vla_ros.nodes.lifecycle import seconds

Result = ExecuteTask.Result
State = ExecutorStatus
PANDA = load_embodiment("franka_panda")
TOPIC = "panda_arm_controller/joint_trajectory"
REST = (State.STATE_STOPPED, State.STATE_IDLE)


class Rig:
    """A Panda whose joint states and commands pass through the test, and a policy of changeable mode."""

    def __init__(self, stack: Any):
        self.stack = stack
        self.joints = stack.relay(JointState, "joint_states", "relayed_joints")
        self.commands = stack.relay(JointTrajectory, "relayed_commands", TOPIC)
        self.world = stack.sim()
        self.executor = stack.run_executor(
            remap={"joint_states": "relayed_joints", TOPIC: "relayed_commands"},
            chunk_timeout=3.0,
            recovery_timeout=1.5,
        )
        stack.policy_process = stack.fake_policy()
        stack.wait_ready()

    def heal(self) -> None:
        """Everything as it should be, whatever a test before left."""
        if self.stack.policy_process.returncode is not None:
            self.stack.restart_policy()
        self.stack.policy_process.send_signal(signal.SIGCONT)
        self.joints.change = self.commands.change = _same
        self.stack.set_mode("wave")
        self.stack.wait_for(lambda: self.joints.passed > 5, 20.0, "sound joint states")

    def moving(self) -> Any:
        task = self.stack.running(self.stack.send(time_limit=600.0), chunks=1)
        self._begin = len(self.stack.executor) - 1
        return task

    def safe(self, code: int, text: str, since: float, within: float) -> Any:
        """The first status at rest; it must have the code and the text, `within` [s] after `since` [s].

        A ramp of these joints takes up to 0.14 s; a busy machine may pass a fault on half a second late.
        """
        rest = lambda: [s for s in self.stack.executor[self._begin :] if s.state in REST and s.code]  # noqa: E731
        status = self.stack.wait_for(
            rest, 20.0, lambda: f"rest with code {code}: {self.stack.executor[-1:]}"
        )[0]
        assert status.code == code, status.message
        assert text in status.message
        took = seconds(status.header.stamp) - since
        assert took < within + 0.14 + 0.5
        self.record("time to safe [s]", round(took, 3))
        return status

    def end(self, task: Any) -> None:
        task.cancel()
        assert task.result().code == Result.CANCELLED


def _same(message: Any) -> Any:
    return message


@pytest.fixture(scope="module")
def shared_rig(module_stack):
    return Rig(module_stack)


@pytest.fixture
def rig(shared_rig, record_property):
    shared_rig.record = record_property
    shared_rig.heal()
    return shared_rig


@pytest.fixture
def written(rig):
    """What the executor writes from now on."""
    commands = rig.stack.commands("relayed_commands")
    yield commands
    commands.leave()


def _at_allowed_speed(written: Any, begin: int) -> np.ndarray:
    """The commands from `begin` on, which must keep to the velocities of the joints. Shape (n, 7)."""
    rows = written.rows[begin:]
    times = 0.01 * written.periods[begin:][: len(rows) - 1, None]
    assert (np.abs(np.diff(rows, axis=0)) <= PANDA.actions[0].limits.velocity * times * (1 + 1e-6)).all()
    return rows


# Faults of joint states: what becomes of a message, and how old the last good one may be when it is noticed.


def _nan(message: JointState) -> JointState:
    message.position[2] = float("nan")
    return message


def _torn(message: JointState) -> JointState:
    message.position = message.position[:-1]
    return message


def _less(message: JointState) -> JointState:
    message.name, message.position = message.name[1:], message.position[1:]
    return message


def _shifted(by: int) -> Callable[[JointState], JointState]:
    def shift(message: JointState) -> JointState:
        message.header.stamp.sec = max(0, message.header.stamp.sec + by)
        return message

    return shift


@pytest.mark.parametrize(
    ("change", "code", "text", "within"),
    [
        pytest.param(
            _nan, Result.JOINT_STATE_INVALID, "position of joint panda_joint3 is nan", 0.02, id="joint_is_nan"
        ),
        pytest.param(
            _torn, Result.JOINT_STATE_INVALID, "8 names and 7 positions", 0.02, id="joint_states_torn"
        ),
        pytest.param(
            None,
            Result.JOINT_STATE_STALE,
            "joint states on joint_states stopped",
            0.32,
            id="joint_states_stop",
        ),
        pytest.param(_less, Result.JOINT_STATE_STALE, "panda_joint1 is 0.3", 0.32, id="joint_drops_out"),
        pytest.param(_shifted(-5), Result.JOINT_STATE_STALE, "allowed 0.3 s", 0.02, id="joint_clock_behind"),
        pytest.param(
            _shifted(5), Result.JOINT_STATE_STALE, "s ahead of the clock", 0.02, id="joint_clock_ahead"
        ),
    ],
)
def test_joint_states(rig, change, code, text, within):
    task = rig.moving()
    last: list[float] = []

    def note(message: JointState) -> JointState | None:
        last.append(seconds(message.header.stamp))
        return None if change is None else change(message)

    rig.joints.change = note
    rig.stack.wait_for(lambda: last, 20.0, "joint states")
    rig.safe(code, text, last[0], within)
    if code == Result.JOINT_STATE_STALE and change is not None:
        before = task.feedback[-1].chunks
        rig.heal()
        rig.stack.running(task, chunks=before + 1)
        rig.end(task)
    else:
        assert task.result().code == code


# Faults of commands


def test_controller_leaves(rig):
    task = rig.moving()
    left = rig.stack.executor[-1].header.stamp
    rig.commands.leave()
    try:
        rig.safe(Result.CONTROLLER_LOST, "nobody subscribes to", seconds(left), 0.2)
        assert task.result().code == Result.CONTROLLER_LOST
    finally:
        rig.commands.come_back()


def test_controller_does_not_follow(rig):
    task = rig.moving()
    rig.stack.set_mode("far")
    deaf = rig.stack.executor[-1].header.stamp
    rig.commands.change = None  # it still listens, the robot stays
    # A moment until the way leads away, and half a second of patience.
    rig.safe(Result.TRACKING_LOST, "from its command", seconds(deaf), 0.5 + 0.5)
    assert task.result().code == Result.TRACKING_LOST


def test_second_publisher_of_commands(rig):
    task = rig.moving()
    came = rig.stack.executor[-1].header.stamp
    rival = rig.stack.node.create_publisher(JointTrajectory, rig.stack.name("relayed_commands"), qos.RELIABLE)
    try:
        rig.safe(Result.CONTROLLER_CONTESTED, "also publishes on", seconds(came), 0.3)
        assert task.result().code == Result.CONTROLLER_CONTESTED
    finally:
        rig.stack.node.destroy_publisher(rival)
    rig.stack.wait_for(
        lambda: rig.stack.send(time_limit=0.1).result().code == Result.TIME_LIMIT,
        20.0,
        "the rival to be gone",
    )


# Faults of the policy's process


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_policy_dies_or_sleeps(rig, number):
    stack = rig.stack
    for _ in range(3):
        watch = stack.watch()
        task = rig.moving()
        stack.wait_for(lambda: watch.rows and watch.rows[-1][1] > 0.1, 20.0, "fast motion")  # noqa: B023
        begin, signalled = len(stack.executor), watch.now
        stack.policy_process.send_signal(number)
        told = lambda: [s for s in stack.executor[begin:] if s.code == Result.POLICY_LOST]  # noqa: B023, E731
        stack.wait_for(told, 20.0, "word of the loss")
        stack.wait_for(
            lambda: task.done or any(s.state == State.STATE_STOPPED for s in told()),  # noqa: B023
            20.0,
            "rest",
        )
        at_rest = [s for s in told() if s.state == State.STATE_STOPPED]
        if at_rest:
            break
        # A process that ends while it writes to the shared memory of this one keeps it deaf for a second.
        assert task.result().code == Result.POLICY_LOST
        stack.policy_process.send_signal(signal.SIGCONT)
        stack.restart_policy()
    stopped = at_rest[0]
    lost = seconds(stack.policy[-1].header.stamp)
    # The requirement, without an allowance: from the signal, silence as long as the executor listened to it,
    # and the ramp. The last heartbeat came before the signal.
    silence = float(re.search(r"no heartbeat of the policy for (\d+\.\d+) s", stopped.message).group(1))
    to_rest = silence - max(0.0, signalled - lost) + stopped.stop_duration
    rig.record("signal to rest [s]", round(to_rest, 3))
    assert to_rest < 0.3
    rig.safe(Result.POLICY_LOST, "nor a sign of life of its process", lost, 0.12)
    stack.wait_for(lambda: watch.now > lost + 1.1, 20.0, "what the robot did")
    # The servos of the simulated robot settle after the last command.
    assert watch.last_motion(lost) - lost < 0.3 + 0.1 + 0.5
    if number == signal.SIGSTOP:
        before = task.feedback[-1].chunks
        stack.policy_process.send_signal(signal.SIGCONT)
        stack.running(task, chunks=before + 1)
        rig.end(task)
    else:
        assert task.result().code == Result.POLICY_LOST
        stack.restart_policy()
        rig.end(rig.moving())


def test_policy_whose_python_is_late_is_not_lost(rig):
    task = rig.moving()
    begin = len(rig.stack.executor)
    beats = len(rig.stack.policy)
    rig.stack.set_mode("stalls")
    rig.stack.running(task, chunks=task.feedback[-1].chunks + 3)
    stamps = [seconds(s.header.stamp) for s in rig.stack.policy[beats:]]
    # By the robot's clock, which a busy machine slows; a heartbeat is due every 0.02 s at most.
    assert max(np.diff(stamps)) > 0.05, "it was not late"
    assert [s.message for s in rig.stack.executor[begin:] if s.code] == []
    rig.end(task)


# Faults of chunks


@pytest.mark.parametrize(
    ("mode", "code", "text"),
    [
        ("nan", Result.CHUNK_INVALID, "nan in row 2, channel arm/panda_joint2"),
        ("shape", Result.CHUNK_INVALID, "expected franka_panda with"),
        ("short", Result.CHUNK_INVALID, "holds 120 values, expected 16 rows of 8"),
        ("step", Result.CHUNK_INVALID, "chunk has a step of 0.2 s, expected 0.1 s"),
        ("body", Result.CHUNK_INVALID, "chunk of tiago_base with"),
        ("huge", Result.CHUNK_INVALID, "chunk holds"),
        ("stranger", Result.CHUNK_INVALID, "the policy serves embodiment 'tiago_base'"),
        ("mute", Result.POLICY_LOST, "its process lives"),
    ],
)
def test_bad_chunk_or_heartbeat(rig, mode, code, text):
    rig.stack.chunks.clear()
    task = rig.moving()
    rig.stack.set_mode(mode)
    result = task.result()
    assert result.code == code, result.message
    assert text in result.message
    if mode == "mute":
        beats = [s for s in rig.stack.policy if s.task_id]
        rig.safe(code, text, seconds(beats[-1].header.stamp), 0.52)
    else:
        rig.safe(code, text, seconds(rig.stack.chunks[-1].header.stamp), 0.02)


@pytest.mark.parametrize(
    ("mode", "code", "text"),
    [
        ("silent", Result.CHUNK_STALE, "no chunk within"),
        ("late", Result.CHUNK_STALE, "no chunk within"),
        ("early", Result.CHUNK_INVALID, "s in the future; are all clocks the same?"),
        ("dry", Result.CHUNK_STALE, "its last row has passed"),
    ],
)
def test_chunks_stay_away(rig, mode, code, text):
    rig.stack.set_mode(mode)
    for _ in range(3):
        result = rig.stack.send(time_limit=60.0).result()
        # While it waits for chunks, a machine that stands still for 0.3 s is a fault of its own.
        if result.code != Result.JOINT_STATE_STALE:
            break
        rig.stack.set_mode("wave")
        rig.stack.set_mode(mode)
    assert result.code == code, result.message
    assert text in result.message
    assert result.chunks == (3 if mode == "dry" else 0)


@pytest.mark.parametrize("mode", ["twice", "swapped", "leap", "far"])
def test_odd_chunks_are_survived_within_limits(rig, written, mode):
    """Sent twice, out of order, beginning elsewhere, leading beyond the limits: the task goes on."""
    task = rig.moving()
    begin = len(written.messages)
    rig.stack.set_mode(mode)
    rig.stack.running(task, chunks=task.feedback[-1].chunks + 2)
    rows = _at_allowed_speed(written, begin)
    assert len(rows) > 20
    low, high = PANDA.actions[0].limits.position.T
    assert (rows >= low - 1e-9).all()
    assert (rows <= high + 1e-9).all()
    rig.end(task)


# Faults of the clock


@pytest.mark.parametrize("by", [20, -20])
def test_clock_jumps(rig, written, by):
    """Another publisher of the clock: it jumps, and back with the simulation's next one."""
    stack = rig.stack
    clock = stack.node.create_publisher(Clock, stack.name("clock"), qos.RELIABLE)
    task = rig.moving()
    begin = len(written.messages)
    stack.wait_for(clock.get_subscription_count, 20.0, "subscribers of the clock")
    message = Clock()
    message.clock.sec = max(0, stack.executor[-1].header.stamp.sec + by)
    heard = rig.executor.output.count("the clock went back by")

    said = [0.0]

    def noticed() -> bool:
        # The next one of the simulation may overtake it in the loop.
        if time.monotonic() > said[0] + 0.3:
            said[0] = time.monotonic()
            clock.publish(message)
        return rig.executor.output.count("the clock went back by") > heard

    if by > 0:
        stack.wait_for(noticed, 20.0, "the way back to be noticed")
    else:
        # A timer that follows the clock is next called when that goes on: nothing happens in the past.
        clock.publish(message)
    before = task.feedback[-1].chunks
    stack.wait_for(lambda: task.done or task.feedback[-1].chunks > before, 40.0, "the task after the jump")
    stack.wait_for(lambda: task.done or len(written.messages) > begin + 1, 20.0, "commands after the jump")
    # Ended before it moved much, there may be none.
    _at_allowed_speed(written, begin)
    stack.node.destroy_publisher(clock)
    if task.done:
        # The policy stamped a chunk by the wrong clock.
        assert task.result().code == Result.CHUNK_INVALID
        assert "in the future; are all clocks the same?" in task.result().message
    else:
        rig.end(task)


def test_robot_is_killed_and_restarted(rig):
    """Its clock dies with it: nothing moves, the task ends by wall time, the next robot is served."""
    task = rig.moving()
    rig.world.kill()
    result = task.result()
    stood = [told[-1].header.stamp for told in (rig.stack.executor, rig.stack.policy)]
    assert result.code == Result.JOINT_STATE_STALE
    assert "the clock has stood at" in result.message
    rig.stack.world.clear()
    rig.world = rig.stack.sim()
    rig.stack.wait_for(lambda: rig.stack.world, 40.0, "world_status")
    # Each of them discovers the new clock in its own time.
    for told, then in zip((rig.stack.executor, rig.stack.policy), stood, strict=True):
        rig.stack.wait_for(lambda: told[-1].header.stamp != then, 40.0, "the new clock")  # noqa: B023
    rig.heal()
    rig.end(rig.moving())
