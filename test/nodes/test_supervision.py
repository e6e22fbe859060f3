# SPDX-License-Identifier: Apache-2.0
"""Stop, pause, home and take over: the robot obeys people, without a jump."""

from __future__ import annotations

import numpy as np
import pytest

from qwen_vla_ros.embodiment import load_embodiment

pytest.importorskip("rclpy", reason="needs ROS 2")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from qwen_vla_ros.action import ExecuteTask
from qwen_vla_ros.msg import ExecutorStatus
from sensor_msgs.msg import JointState
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from qwen_vla_ros.nodes import qos

Result = ExecuteTask.Result
State = ExecutorStatus
PANDA = load_embodiment("franka_panda")
ARM = PANDA.joints[:7]
TOPIC = "panda_arm_controller/joint_trajectory"


def call(stack, name: str, data: bool | None = None):
    """Call a service of the executor."""
    kind = Trigger if data is None else SetBool
    request = kind.Request() if data is None else kind.Request(data=data)
    return stack.call(kind, f"executor/{name}", request)


class Joints:
    """Measured arm and commands, as they come."""

    def __init__(self, stack):
        self.measured: list[np.ndarray] = []
        self.commands: list[np.ndarray] = []
        stack.node.create_subscription(JointState, stack.name("joint_states"), self._measure, qos.SENSOR)
        stack.node.create_subscription(JointTrajectory, stack.name(TOPIC), self._command, qos.RELIABLE)

    def _measure(self, message: JointState) -> None:
        position = dict(zip(message.name, message.position, strict=True))
        self.measured.append(np.array([position[name] for name in ARM]))

    def _command(self, message: JointTrajectory) -> None:
        self.commands.append(np.array(message.points[0].positions))

    @property
    def still(self) -> bool:
        recent = self.measured[-20:]
        return len(recent) == 20 and np.ptp(recent, axis=0).max() < 2e-3


def test_stop_is_latched_until_reset(panda):
    health: dict[str, DiagnosticStatus] = {}
    panda.node.create_subscription(
        DiagnosticArray,
        "/diagnostics",
        lambda message: health.update({status.name: status for status in message.status}),
        qos.RELIABLE,
    )
    part = f"{panda.namespace.lstrip('/')}/executor: "

    def figure(name: str, key: str) -> str:
        return next((v.value for v in health[part + name].values if v.key == key), "")

    task = panda.running(panda.send(time_limit=60.0))
    panda.wait_for(
        lambda: part + "motion" in health and figure("motion", "state") == "running", 10.0, "health"
    )
    panda.wait_for(lambda: float(figure("chunks", "rate [Hz]")) > 0, 10.0, "the rate of chunks")
    assert 0.0 <= float(figure("chunks", "capture to command p50 [s]")) < 2.0
    assert 0.0 < float(figure("motion", "period p50 [s]")) < 0.1
    assert float(figure("robot", "joint state age [s]")) < 1.0
    assert call(panda, "stop").success
    result = task.result()
    assert result.code == Result.STOP_REQUESTED
    assert "call ~/reset" in result.message
    assert panda.wait_state(State.STATE_HALTED).code == Result.STOP_REQUESTED
    panda.wait_for(lambda: health[part + "motion"].level == DiagnosticStatus.ERROR, 10.0, "an error")
    assert "stopped by ~/stop" in health[part + "motion"].message
    refused = panda.send().result()
    assert refused.code == Result.STOP_REQUESTED
    assert "refuses to move" in refused.message
    assert not call(panda, "home").success
    assert call(panda, "reset").success
    panda.wait_state(State.STATE_IDLE)
    task = panda.running(panda.send(time_limit=60.0))
    task.cancel()
    assert task.result().code == Result.CANCELLED


def test_a_paused_task_rests_and_goes_on(panda):
    joints = Joints(panda)
    assert not call(panda, "pause").success
    task = panda.running(panda.send(time_limit=60.0))
    assert call(panda, "pause").success
    panda.wait_state(State.STATE_HOLDING)
    panda.wait_for(lambda: joints.still, 10.0, "the robot at rest")
    before = task.feedback[-1].chunks
    commands = len(joints.commands)
    seen = len(joints.measured)
    panda.wait_for(lambda: len(joints.measured) > seen + 50, 20.0, "more joint states")
    assert len(joints.commands) == commands, "it commands while it holds"
    assert not task.done
    assert call(panda, "resume").success
    panda.running(task, chunks=before + 2)
    # It starts again from the last command: what is measured lags behind, and would be a jump.
    assert np.abs(joints.commands[commands] - joints.commands[commands - 1]).max() < 5e-3
    task.cancel()
    assert task.result().code == Result.CANCELLED


def test_home_after_a_task_and_a_stop_on_the_way(panda):
    joints = Joints(panda)
    task = panda.running(panda.send(time_limit=60.0))
    task.cancel()
    task.result()
    panda.wait_state(State.STATE_IDLE)
    answer = call(panda, "home")
    assert answer.success, answer.message
    assert "home in" in answer.message
    panda.wait_state(State.STATE_IDLE, 30.0)
    home = np.array([PANDA.home[name] for name in ARM])
    panda.wait_for(lambda: np.abs(joints.measured[-1] - home).max() < 0.02, 20.0, "the home posture")


def test_in_other_hands_and_back_without_a_jump(panda):
    joints = Joints(panda)
    assert call(panda, "take_over", True).success
    panda.wait_state(State.STATE_YIELDED)
    refused = panda.send().result()
    assert refused.code == Result.TAKEN_OVER

    target = np.array([PANDA.home[name] for name in ARM]) + 0.25
    hands = panda.node.create_publisher(JointTrajectory, panda.name(TOPIC), qos.RELIABLE)
    panda.wait_for(lambda: hands.get_subscription_count() >= 2, 10.0, "the controller")
    point = JointTrajectoryPoint(positions=target.tolist())
    point.time_from_start.sec = 1
    hands.publish(JointTrajectory(joint_names=list(ARM), points=[point]))
    panda.wait_for(lambda: np.abs(joints.measured[-1] - target).max() < 0.05, 20.0, "the hands' posture")
    panda.wait_for(lambda: joints.still, 20.0, "the robot at rest")

    assert call(panda, "take_over", False).success
    task = panda.send(time_limit=60.0)
    # The hands still publish: two would command one controller.
    result = task.result()
    assert result.code == Result.CONTROLLER_CONTESTED
    assert "test_node also publishes on" in result.message

    panda.node.destroy_publisher(hands)
    joints.commands.clear()
    at = joints.measured[-1]

    def alone() -> bool:
        answer = call(panda, "home")
        return answer.success or "also publishes" not in answer.message

    panda.wait_for(alone, 20.0, "the hands to leave")
    panda.wait_for(lambda: joints.commands, 20.0, "the way home")
    assert np.abs(joints.commands[0] - at).max() < 0.03
    task = panda.running(panda.send(time_limit=60.0), chunks=1)
    task.cancel()
    task.result()


def test_dry_run_does_everything_but_command(robot):
    joints = Joints(robot)
    robot.run_executor(dry_run=True)
    robot.fake_policy("wave")
    robot.wait_ready()
    task = robot.running(robot.send(time_limit=60.0))
    status = robot.wait_state(State.STATE_RUNNING)
    assert status.dry_run
    assert status.commands == 0
    assert not joints.commands
    assert joints.still
    task.cancel()
    assert task.result().code == Result.CANCELLED
