# SPDX-License-Identifier: Apache-2.0
"""The executor with a simulated robot: tasks, limits, and every fault it must stop for."""

from __future__ import annotations

import signal

import numpy as np
import pytest

from qwen_vla_ros.embodiment import load_embodiment

pytest.importorskip("rclpy", reason="needs ROS 2")

from action_msgs.msg import GoalStatus
from nav_msgs.msg import Odometry
from qwen_vla_ros.action import ExecuteTask
from qwen_vla_ros.msg import ExecutorStatus
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory

from qwen_vla_ros.nodes import qos
from qwen_vla_ros.nodes.lifecycle import seconds

Result = ExecuteTask.Result
State = ExecutorStatus
PANDA = load_embodiment("franka_panda")


class Watch:
    """Speed of the fastest joint over robot time."""

    def __init__(self, stack):
        self.rows: list[tuple[float, float]] = []
        stack.node.create_subscription(JointState, stack.name("joint_states"), self._keep, qos.SENSOR)

    def _keep(self, message: JointState) -> None:
        self.rows.append((seconds(message.header.stamp), float(np.abs(message.velocity[:7]).max())))

    @property
    def now(self) -> float:
        return self.rows[-1][0]

    def last_motion(self, after: float, speed: float = 0.02) -> float:
        """Time of the last sample faster than `speed` [rad/s]; what a servo's settling leaves is slower."""
        return max((t for t, v in self.rows if t >= after and v > speed), default=after)


def moving_panda(stack, mode="wave", **executor):
    stack.sim()
    stack.run_executor(**executor)
    policy = stack.fake_policy(mode)
    stack.wait_ready()
    return policy


def test_runs_to_the_time_limit_within_limits_from_where_the_robot_is(panda):
    commands = []
    topic = panda.name("panda_arm_controller/joint_trajectory")
    panda.node.create_subscription(JointTrajectory, topic, commands.append, qos.RELIABLE)
    task = panda.send("wave", time_limit=3.0)
    result = task.result()
    assert (result.code, task.status) == (Result.TIME_LIMIT, GoalStatus.STATUS_SUCCEEDED)
    assert "3.0 s" in result.message
    assert result.chunks >= 3
    assert 3.0 <= result.elapsed < 3.5
    assert task.feedback[-1].chunks == result.chunks
    assert 0.0 <= task.feedback[-1].capture_to_command < 0.2

    rows = np.array([message.points[0].positions for message in commands])
    home = [PANDA.home[joint] for joint in PANDA.joints[:7]]
    assert len(rows) > 100
    assert np.abs(rows[0] - home).max() < 0.05
    limits = PANDA.actions[0].limits
    assert (np.abs(np.diff(rows, axis=0)) <= limits.velocity * 0.01 * (1 + 1e-6)).all()
    assert np.abs(np.diff(rows, axis=0)).max() > 0.001, "it did not move"
    assert np.abs(np.diff(rows[-3:], axis=0)).max() < 1e-4, "it did not come to rest"
    assert all(message.header.stamp.sec == 0 for message in commands)
    panda.wait_state(State.STATE_IDLE)


def test_cancel_brings_the_robot_to_rest(panda):
    watch = Watch(panda)
    task = panda.running(panda.send())
    asked = watch.now
    task.cancel()
    assert task.result().code == Result.CANCELLED
    assert task.status == GoalStatus.STATUS_CANCELED
    assert watch.last_motion(asked) - asked < 0.5
    assert panda.wait_state(State.STATE_IDLE).code == 0


def test_a_newer_goal_takes_over(panda):
    first = panda.running(panda.send("first"))
    second = panda.send("second", time_limit=2.0)
    result = first.result()
    assert (result.code, first.status) == (Result.PREEMPTED, GoalStatus.STATUS_ABORTED)
    assert second.result().code == Result.TIME_LIMIT
    assert second.result().chunks >= 1


def test_bad_goals_end_with_their_code_and_disturb_nobody(panda):
    good = panda.running(panda.send(time_limit=60.0), chunks=1)
    for instruction, limit, code, text in (
        ("", 5.0, Result.INVALID_INSTRUCTION, "found nothing, expected 1 to 512 characters"),
        ("  \t ", 5.0, Result.INVALID_INSTRUCTION, "found nothing"),
        ("a" * 10_000, 5.0, Result.INVALID_INSTRUCTION, "found 10000 characters, expected 1 to 512"),
        ("reach", -1.0, Result.INVALID_TIME_LIMIT, "found -1.0 s, expected 0 to 3600.0 s"),
        ("reach", float("nan"), Result.INVALID_TIME_LIMIT, "found nan s"),
    ):
        bad = panda.send(instruction, limit)
        result = bad.result()
        assert result.code == code
        assert text in result.message
        assert bad.status == GoalStatus.STATUS_ABORTED
    assert not good.done
    assert panda.executor[-1].state == State.STATE_RUNNING
    good.cancel()
    assert good.result().code == Result.CANCELLED


def test_killed_policy_stops_the_robot_and_a_restarted_one_goes_on(panda):
    watch = Watch(panda)
    task = panda.running(panda.send(time_limit=60.0))
    panda.wait_for(lambda: watch.rows and watch.rows[-1][1] > 0.1, 20.0, "fast motion")
    killed = watch.now
    panda.policy_process.kill()
    result = task.result()
    assert result.code == Result.POLICY_LOST
    assert "no heartbeat of the policy" in result.message
    assert task.status == GoalStatus.STATUS_ABORTED
    # 0.15 s of silence and the ramp; 0.1 s for the servos of the simulated robot to settle.
    ramped = [s for s in panda.executor if s.code == Result.POLICY_LOST]
    assert ramped[-1].stop_duration < 0.15
    assert watch.last_motion(killed) - killed < 0.3 + 0.1

    panda.change_policy("wave")
    again = panda.send(time_limit=2.0).result()
    assert again.code == Result.TIME_LIMIT, again.message
    assert again.chunks >= 1


@pytest.mark.parametrize(
    ("mode", "code", "text"),
    [
        ("nan", Result.CHUNK_INVALID, "nan in row 2, channel arm/panda_joint2"),
        ("shape", Result.CHUNK_INVALID, "expected franka_panda with"),
        ("dry", Result.CHUNK_STALE, "its last row has passed"),
        ("late", Result.CHUNK_STALE, "no chunk within"),
        ("silent", Result.CHUNK_STALE, "no chunk within"),
    ],
)
def test_bad_chunks_stop_the_task(panda, mode, code, text):
    panda.change_policy(mode)
    result = panda.send(time_limit=60.0).result()
    assert result.code == code, result.message
    assert text in result.message
    assert panda.wait_state(State.STATE_IDLE).message == result.message


def test_joint_missing_from_joint_states(stack):
    def without(message: JointState) -> JointState:
        message.name, message.position = message.name[1:], message.position[1:]
        return message

    stack.relay(JointState, "joint_states", "partial", without)
    moving_panda(stack, remap={"joint_states": "partial"}, start_timeout=1.0)
    result = stack.send().result()
    assert result.code == Result.JOINT_STATE_INVALID
    assert "joint panda_joint1 is missing from joint_states" in result.message
    assert "panda_joint2" in result.message
    assert result.chunks == 0


def test_joint_states_with_nan_then_none(stack):
    relay = stack.relay(JointState, "joint_states", "relayed")
    moving_panda(stack, remap={"joint_states": "relayed"}, recovery_timeout=0.5)
    watch = Watch(stack)
    task = stack.running(stack.send(time_limit=60.0))

    def poisoned(message: JointState) -> JointState:
        message.position[2] = float("nan")
        return message

    relay.change = poisoned
    result = task.result()
    assert result.code == Result.JOINT_STATE_INVALID
    assert "position of joint panda_joint3 is nan" in result.message

    relay.change = lambda message: message
    task = stack.running(stack.send(time_limit=60.0))
    silent = watch.now
    relay.change = None
    result = task.result()
    assert result.code == Result.JOINT_STATE_STALE
    assert "stopped" in result.message
    assert watch.last_motion(silent) - silent < PANDA.state.max_age + 0.4


def test_joint_states_that_come_back_let_the_task_go_on(stack):
    relay = stack.relay(JointState, "joint_states", "relayed")
    moving_panda(stack, remap={"joint_states": "relayed"}, recovery_timeout=30.0)
    task = stack.running(stack.send(time_limit=120.0))
    relay.change = None
    stopped = stack.wait_state(State.STATE_STOPPED)
    assert stopped.code == Result.JOINT_STATE_STALE
    before = task.feedback[-1].chunks
    relay.change = lambda message: message
    stack.running(task, chunks=before + 1)


def test_controller_without_a_subscriber(stack):
    topic = "panda_arm_controller/joint_trajectory"
    moving_panda(stack, remap={topic: "nobody"}, start_timeout=1.0)
    result = stack.send().result()
    assert result.code == Result.CONTROLLER_LOST
    assert f"nobody subscribes to {stack.name('nobody')}" in result.message
    assert "joint_trajectory of arm" in result.message


def test_controller_that_leaves_during_a_task(stack):
    topic = "panda_arm_controller/joint_trajectory"
    relay = stack.relay(JointTrajectory, "relayed", topic)
    moving_panda(stack, remap={topic: "relayed"})
    task = stack.running(stack.send(time_limit=60.0))
    relay.leave()
    result = task.result()
    assert result.code == Result.CONTROLLER_LOST
    assert task.status == GoalStatus.STATUS_ABORTED


def test_odometry_that_stops(stack):
    odometry = "mobile_base_controller/odom"
    relay = stack.relay(Odometry, odometry, "relayed")
    stack.sim("tiago_base")
    stack.run_executor("tiago_base", remap={odometry: "relayed"}, recovery_timeout=0.5)
    stack.fake_policy("wave", "tiago_base")
    stack.wait_ready()
    task = stack.running(stack.send(time_limit=60.0), chunks=1)
    relay.change = None
    result = task.result()
    assert result.code == Result.ODOMETRY_STALE
    assert odometry in result.message


def test_no_policy_at_all(stack):
    stack.sim()
    stack.run_executor(start_timeout=0.5)
    stack.wait_ready(policy=False)
    result = stack.send().result()
    assert result.code == Result.POLICY_LOST
    assert "heard never" in result.message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_end_during_a_task_it_stops_the_robot_first(stack, number):
    stack.sim()
    executor = stack.run_executor()
    stack.fake_policy()
    stack.wait_ready()
    watch = Watch(stack)
    task = stack.running(stack.send(time_limit=60.0))
    asked = watch.now
    executor.send_signal(number)
    assert executor.wait() == 0
    assert task.result().code == Result.EXECUTOR_SHUTDOWN
    assert "Traceback" not in executor.output
    end = watch.now + 0.5
    stack.wait_for(lambda: watch.now > end, 20.0, "half a second more")
    assert watch.last_motion(asked) - asked < 0.6


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("widowx", "kind eef_delta needs inverse kinematics"),
        ("no_such_robot", "no_such_robot"),
    ],
)
def test_refuses_to_configure_and_says_why(stack, body, text):
    executor = stack.run_executor(body, use_sim_time=False)
    executor.wait_for_output(r"configure failed: .*" + text)
    assert "[ERROR]" in executor.output
    assert executor.returncode is None


def test_lifecycle_manager_configures_and_an_inactive_executor_refuses(stack):
    from lifecycle_msgs.msg import State as LifecycleState
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState, GetState

    stack.run_executor(autostart=False, use_sim_time=False)
    change = stack.node.create_client(ChangeState, stack.name("executor/change_state"))
    get = stack.node.create_client(GetState, stack.name("executor/get_state"))

    def call(client, request):
        stack.wait_for(client.service_is_ready, 20.0, client.srv_name)
        future = client.call_async(request)
        stack.wait_for(future.done, 10.0, client.srv_name)
        return future.result()

    def transition(number: int) -> bool:
        return call(change, ChangeState.Request(transition=Transition(id=number))).success

    assert transition(Transition.TRANSITION_CONFIGURE)
    stack.wait_for(stack._client.server_is_ready, 10.0, "the action")
    result = stack.send().result()
    assert result.code == Result.NOT_ACTIVE
    assert transition(Transition.TRANSITION_ACTIVATE)
    stack.wait_for(lambda: stack.executor, 10.0, "executor_status")
    assert transition(Transition.TRANSITION_DEACTIVATE)
    assert transition(Transition.TRANSITION_CLEANUP)
    assert transition(Transition.TRANSITION_CONFIGURE)
    assert call(get, GetState.Request()).current_state.id == LifecycleState.PRIMARY_STATE_INACTIVE
