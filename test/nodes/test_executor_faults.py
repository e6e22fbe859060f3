# SPDX-License-Identifier: Apache-2.0
"""Faults around the executor: each stops the robot and ends the task with its code."""

from __future__ import annotations

import signal

import pytest
import yaml

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.embodiment.registry import embodiment_file

pytest.importorskip("rclpy", reason="needs ROS 2")

from nav_msgs.msg import Odometry
from qwen_vla_ros.action import ExecuteTask
from qwen_vla_ros.msg import ExecutorStatus
from sensor_msgs.msg import JointState

Result = ExecuteTask.Result
State = ExecutorStatus
PANDA = load_embodiment("franka_panda")


def moving_panda(stack, mode="wave", **executor):
    stack.run_executor(**executor)
    policy = stack.fake_policy(mode)
    stack.wait_ready()
    return policy


def test_joint_missing_from_joint_states(robot):
    def without(message: JointState) -> JointState:
        message.name, message.position = message.name[1:], message.position[1:]
        return message

    robot.relay(JointState, "joint_states", "partial", without)
    moving_panda(robot, remap={"joint_states": "partial"}, start_timeout=5.0)
    result = robot.send().result()
    assert result.code == Result.JOINT_STATE_INVALID
    assert "joint panda_joint1 is missing from joint_states" in result.message
    assert "panda_joint2" in result.message
    assert result.chunks == 0


def test_controller_without_a_subscriber(robot):
    topic = "panda_arm_controller/joint_trajectory"
    moving_panda(robot, remap={topic: "nobody"}, start_timeout=5.0)
    result = robot.send().result()
    assert result.code == Result.CONTROLLER_LOST
    assert f"nobody subscribes to {robot.name('nobody')}" in result.message
    assert "joint_trajectory of arm" in result.message


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


def test_second_executor_of_the_same_name(robot):
    robot.run_executor(recovery_timeout=0.0)
    robot.fake_policy()
    robot.wait_ready()
    task = robot.running(robot.send(time_limit=60.0))
    second = robot.run_executor()
    result = task.result()
    assert result.code == Result.CONTROLLER_CONTESTED
    # By what is discovered first: its publisher of commands, without a name yet, or its state.
    another = f"another {robot.name('executor')} also publishes on"
    assert any(text in result.message for text in ("a new node also publishes on", another))
    robot.wait_for(lambda: another in robot.send(time_limit=0.1).result().message, 20.0, "its name")
    second.kill()

    def alone() -> bool:
        task = robot.send(time_limit=0.1)
        return task.result().code == Result.TIME_LIMIT

    # A dead one stays known to the graph for 20 s, and is no rival.
    robot.wait_for(alone, 30.0, "the second executor to be gone")


def test_executor_killed_and_restarted(robot):
    executor = robot.run_executor()
    robot.fake_policy()
    robot.wait_ready()
    watch = robot.watch()
    robot.running(robot.send(time_limit=60.0))
    robot.wait_for(lambda: watch.rows and watch.rows[-1][1] > 0.1, 20.0, "fast motion")
    executor.kill()
    killed = watch.now
    robot.wait_for(lambda: watch.now > killed + 1.0, 20.0, "what the robot did")
    # Every command is a point to rest at: the controller holds the last one.
    assert watch.last_motion(killed) - killed < 0.5
    robot.executor.clear()
    robot.run_executor()
    robot.wait_for(lambda: robot.executor, 30.0, "executor_status")
    task = robot.running(robot.send(time_limit=60.0), chunks=1)
    task.cancel()
    assert task.result().code == Result.CANCELLED


def test_no_policy_at_all(robot):
    robot.run_executor(start_timeout=0.5)
    robot.wait_ready(policy=False)
    result = robot.send().result()
    assert result.code == Result.POLICY_LOST
    assert "heard never" in result.message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_end_during_a_task_it_stops_the_robot_first(robot, number):
    executor = robot.run_executor()
    robot.fake_policy()
    robot.wait_ready()
    watch = robot.watch()
    task = robot.running(robot.send(time_limit=60.0))
    asked = watch.now
    executor.send_signal(number)
    assert executor.wait() == 0
    assert task.result().code == Result.EXECUTOR_SHUTDOWN
    assert "Traceback" not in executor.output
    end = watch.now + 0.5
    robot.wait_for(lambda: watch.now > end, 20.0, "half a second more")
    assert watch.last_motion(asked) - asked < 0.6


def test_refuses_to_configure_and_says_why(stack, tmp_path):
    body = yaml.safe_load(embodiment_file("widowx").read_text())
    group = next(group for group in body["actions"] if group["kind"] == "eef_delta")
    del group["ik"]
    path = tmp_path / "widowx.yaml"
    path.write_text(yaml.safe_dump(body))
    for name, text in ((str(path), "expected `ik` with the joints"), ("no_such_robot", "no_such_robot")):
        executor = stack.run_executor(name, use_sim_time=False)
        executor.wait_for_output(r"(?s)configure failed: .*" + text)
        assert "[ERROR]" in executor.output
        assert executor.returncode is None


def test_lifecycle_manager_configures_and_an_inactive_executor_refuses(stack):
    from lifecycle_msgs.msg import State as LifecycleState
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState, GetState

    stack.run_executor(autostart=False, use_sim_time=False)

    def reaches(number: int, expected: int) -> bool:
        # A request that is answered late is sent again, and then refused: the state counts.
        request = ChangeState.Request(transition=Transition(id=number))
        stack.call(ChangeState, "executor/change_state", request)
        state = stack.call(GetState, "executor/get_state", GetState.Request()).current_state
        return state.id == expected

    inactive = LifecycleState.PRIMARY_STATE_INACTIVE
    assert reaches(Transition.TRANSITION_CONFIGURE, inactive)
    stack.wait_for(stack._client.server_is_ready, 10.0, "the action")
    result = stack.send().result()
    assert result.code == Result.NOT_ACTIVE
    assert reaches(Transition.TRANSITION_ACTIVATE, LifecycleState.PRIMARY_STATE_ACTIVE)
    stack.wait_for(lambda: stack.executor, 10.0, "executor_status")
    assert reaches(Transition.TRANSITION_DEACTIVATE, inactive)
    assert reaches(Transition.TRANSITION_CLEANUP, LifecycleState.PRIMARY_STATE_UNCONFIGURED)
    assert reaches(Transition.TRANSITION_CONFIGURE, inactive)
