# SPDX-License-Identifier: Apache-2.0
"""What each type of controller is told."""

from __future__ import annotations

import math
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped, Twist, TwistStamped
from nav_msgs.msg import Path
from qwen_vla_ros.action import ExecuteTask
from rclpy.action import ActionServer, GoalResponse
from sensor_msgs.msg import JointState

from qwen_vla_ros.motion import rotations
from qwen_vla_ros.motion.follower import BaseCommand, JointCommand, PathCommand
from qwen_vla_ros.nodes import controllers, qos
from qwen_vla_ros.nodes.controllers import ActionWriter, SetPoint, UnsupportedController, make_writer

PERIOD = 0.01
STAMP = Time(sec=7)


def group(kind, **fields):
    extra = {name: fields.pop(name) for name in ("stamped", "names", "max_effort") if name in fields}
    controller = SimpleNamespace(type=kind, topic=f"test_{kind}", **extra)
    return SimpleNamespace(
        name="part", controller=controller, **{"joints": ("a", "b"), "frame": "base", "tip": "tool", **fields}
    )


def moved(position, velocity=1.0, pose=None, twist=None):
    position = np.array(position, dtype=float)
    return JointCommand("part", position, np.full(len(position), velocity), pose, twist)


@pytest.fixture
def told(ros_node, wait_for):
    """What arrives at a controller."""
    writers = []

    def tell(message_type, kind, commands, **fields):
        seen = []
        subscription = ros_node.create_subscription(message_type, f"test_{kind}", seen.append, qos.RELIABLE)
        writer = make_writer(ros_node, group(kind, **fields), PERIOD)
        writers.append(writer)
        wait_for(lambda: writer.connected, 20.0, "the controller")
        for number, command in enumerate(commands, 1):
            writer.write(command, STAMP)
            wait_for(lambda number=number: len(seen) == number, 20.0, "the command")
        ros_node.destroy_subscription(subscription)
        return seen

    yield tell
    for writer in writers:
        writer.destroy(ros_node)


def test_messages_on_topics(told):
    (state,) = told(JointState, "joint_state", [moved([0.1, 0.2])], names=("left", "right"))
    assert (list(state.name), list(state.position), state.header.stamp.sec) == (
        ["left", "right"],
        [0.1, 0.2],
        7,
    )
    (twist,) = told(Twist, "omni_drive", [BaseCommand("part", np.array([0.1, 0.2, 0.3]))], stamped=False)
    assert (twist.linear.x, twist.linear.y, twist.angular.z) == (0.1, 0.2, 0.3)
    (twist,) = told(TwistStamped, "diff_drive", [BaseCommand("part", np.array([0.1, 0.3]))], stamped=True)
    assert (twist.twist.linear.x, twist.twist.linear.y, twist.twist.angular.z) == (0.1, 0.0, 0.3)
    assert twist.header.frame_id == "base"

    route = PathCommand("part", np.array([[1.0, 2.0, 0.0], [1.0, 3.0, np.pi / 2]]), np.array([0.0, 0.5]))
    (path,) = told(Path, "path", [route])
    assert [path.header.frame_id, path.poses[1].header.frame_id] == ["odom", "odom"]
    (here, there) = path.poses
    assert (here.header.stamp, there.header.stamp) == (STAMP, Time(sec=7, nanosec=500_000_000))
    assert (there.pose.position.x, there.pose.position.y) == (1.0, 3.0)
    assert [there.pose.orientation.z, there.pose.orientation.w] == pytest.approx([np.sqrt(0.5)] * 2)

    turn = rotations.from_vector(np.array([0.0, 0.0, 0.002]))
    poses = [np.array([0.5, 0.0, 0.3, 1, 0, 0, 0]), np.array([0.501, 0.0, 0.298, *turn])]
    (pose,) = told(PoseStamped, "cartesian_pose", [moved([0, 0], pose=poses[1])])
    assert (pose.pose.position.x, pose.pose.position.z, pose.header.frame_id) == (0.501, 0.298, "base")
    assert pose.pose.orientation.w == pytest.approx(turn[0])
    assert pose.pose.orientation.z == pytest.approx(turn[3])
    still, turning = np.zeros(6), np.array([0.1, 0.0, -0.2, 0.0, 0.0, 0.2])
    twists = told(
        TwistStamped,
        "cartesian_twist",
        [moved([0, 0], pose=poses[0], twist=twist) for twist in (still, turning, still)],
    )
    values = [[t.twist.linear.x, t.twist.linear.z, t.twist.angular.z] for t in twists]
    np.testing.assert_allclose(values, [[0, 0, 0], [0.1, -0.2, 0.2], [0, 0, 0]], atol=1e-9)


def test_goals_hold_what_the_executor_said():
    types = SimpleNamespace(
        FollowJointTrajectory=SimpleNamespace(Goal=SimpleNamespace),
        GripperCommand=SimpleNamespace(Goal=lambda: SimpleNamespace(command=SimpleNamespace())),
        ParallelGripperCommand=SimpleNamespace(Goal=lambda: SimpleNamespace(command=JointState())),
    )
    points = [SetPoint(moved([0.1, 1.1]), 0.01), SetPoint(moved([0.2, 1.2]), 0.02)]
    goal = controllers._follow_joint_trajectory(types, group("follow_joint_trajectory", names=None), points)
    assert list(goal.trajectory.joint_names) == ["a", "b"]
    rows = [(list(p.positions), p.time_from_start.nanosec) for p in goal.trajectory.points]
    assert rows == [([0.1, 1.1], 10_000_000), ([0.2, 1.2], 20_000_000)]
    one = [SetPoint(moved([0.03]), 0.01), SetPoint(moved([0.02]), 0.02)]
    goal = controllers._gripper_command(types, group("gripper_command", joints=("a",), max_effort=5.0), one)
    assert (goal.command.position, goal.command.max_effort) == (0.02, 5.0)
    goal = controllers._parallel_gripper_command(types, group("parallel_gripper_command", joints=("a",)), one)
    assert (list(goal.command.name), list(goal.command.position)) == (["a"], [0.02])


class Sender:
    """An ActionWriter of one joint whose clock, goals and tasks are in the hands of a test.

    Attributes:
        now: of the node's clock [s].
        sent: when goals were sent, and their set-points.
        said: warnings.
        tasks: asked of rclpy's thread.
    """

    def __init__(self, ros_node, monkeypatch):
        part = group("follow_joint_trajectory", joints=("a",), names=None)
        types = SimpleNamespace(FollowJointTrajectory=ExecuteTask)
        monkeypatch.setitem(
            controllers._ACTIONS, part.controller.type, ("FollowJointTrajectory", lambda t, g, points: points)
        )
        self._loop = ros_node
        self.writer = self._in_loop(lambda: ActionWriter(ros_node, part, PERIOD, types))
        self.now, self.sent, self.said, self.tasks = 50.0, [], [], []
        node = SimpleNamespace(
            executor=SimpleNamespace(create_task=self.tasks.append),
            get_logger=lambda: SimpleNamespace(warning=lambda text, **_: self.said.append(text)),
        )
        monkeypatch.setattr(self.writer, "_node", node)
        monkeypatch.setattr(self.writer, "_now", lambda: self.now)
        monkeypatch.setattr(self.writer, "_client", SimpleNamespace(send_goal_async=self._send))

    def _in_loop(self, call):
        made = self._loop.executor.create_task(call)
        while not made.done():
            time.sleep(0.01)
        return made.result()

    def _send(self, points):
        self.sent.append((self.now, points))
        return SimpleNamespace(add_done_callback=id)

    def write(self, place: float) -> None:
        self.writer.write(moved([place]), STAMP)
        self.now += PERIOD

    def drive(self) -> tuple[float, np.ndarray]:
        """Where a controller ends that goes straight from where it is to each point when it is due, and its
        speeds from its first to its last motion."""
        self._in_loop(lambda: self._loop.destroy_timer(self.writer._timer))
        place, goal, speeds, step = 0.0, [], [], PERIOD / 10
        coming = list(self.sent)
        for now in np.arange(50.0, self.now + 5.0, step):
            while coming and coming[0][0] <= now:
                begun, points = coming.pop(0)
                goal = [(begun, place), *((begun + p.after, p.command.position[0]) for p in points)]
            if goal:
                there = float(np.interp(now, *zip(*goal, strict=True)))
                speeds.append(abs(there - place) / step)
                place = there
        moving = np.flatnonzero(np.array(speeds) > 1e-6)
        return place, np.array(speeds[moving[0] : moving[-1] + 1])


@pytest.mark.parametrize("held_up", [0.0, 0.03, 0.25, math.inf])
def test_goals_ask_for_no_speed_that_the_set_points_do_not_have(ros_node, monkeypatch, held_up):
    """Whenever they are sent.

    held_up: how late goals are sent at most [s]; for ever: only by `flush`, as within a transition.
    """
    sender, late, due = Sender(ros_node, monkeypatch), np.random.default_rng(3), math.inf
    for tick in range(300):
        sender.write(1.8 * min(tick, 250) * PERIOD)
        if due == math.inf and sender.writer._outbox and held_up < math.inf:
            due = sender.now - PERIOD + late.uniform(0.0, held_up)
        if sender.now - PERIOD >= due:
            due = math.inf
            sender.writer.flush(rest=False)
    sender.writer.flush(rest=True)
    end, speeds = sender.drive()
    assert end == pytest.approx(1.8 * 2.5)
    assert max(speeds) < 1.8 * 1.1
    if held_up <= 0.03:
        assert min(speeds[20:-20]) > 0.5, "it stood in between"
    assert bool(sender.said) == (held_up == math.inf)


@pytest.mark.parametrize("left", [1, 4, 9])
def test_the_end_of_a_motion_follows_before_the_goal_before_it_has_been_reached(ros_node, monkeypatch, left):
    sender = Sender(ros_node, monkeypatch)
    for tick in range(40 + left):
        sender.write(1.8 * tick * PERIOD)
        while sender.tasks:
            sender.tasks.pop()()
    assert len(sender.sent) == 4
    assert sender.writer.pending
    sender.writer.complete()
    sender.tasks.pop()()
    assert len(sender.sent) == 5
    sender.writer.complete()
    assert not sender.tasks
    end, speeds = sender.drive()
    assert end == pytest.approx(1.8 * (39 + left) * PERIOD)
    assert min(speeds[20:-20]) > 0.5, "it stood in between"


def test_a_goal_that_is_being_made_is_pending(ros_node, monkeypatch):
    sender, seen = Sender(ros_node, monkeypatch), []
    monkeypatch.setattr(sender.writer, "_make", lambda *_: seen.append(sender.writer._ahead) or [])
    points = sender.writer._points
    monkeypatch.setattr(
        sender.writer, "_points", lambda commands: seen.append(sender.writer.pending) or points(commands)
    )
    sender.write(0.1)
    sender.writer.flush(rest=True)
    assert seen[0] is True
    assert sender.writer.pending
    sender.now += 1.0
    assert not sender.writer.pending


def test_an_action_gets_few_goals_the_last_one_too_and_a_refusal_is_noticed(ros_node, wait_for, monkeypatch):
    """The stream of goals, over DDS, with an action that exists here in place of control_msgs'."""

    def make(types, group, points):
        return ExecuteTask.Goal(time_limit=float(points[-1].command.position[0]))

    monkeypatch.setitem(controllers._ACTIONS, "gripper_command", ("GripperCommand", make))
    goals, welcome = [], [True]

    def judge(goal):
        goals.append(goal.time_limit)
        return GoalResponse.ACCEPT if welcome[0] else GoalResponse.REJECT

    def run(handle):
        handle.succeed()
        return ExecuteTask.Result()

    part = group("gripper_command", joints=("a",), max_effort=0.0)
    types = SimpleNamespace(GripperCommand=ExecuteTask)

    def begin():
        server = ActionServer(
            ros_node, ExecuteTask, part.controller.topic, execute_callback=run, goal_callback=judge
        )
        return server, ActionWriter(ros_node, part, PERIOD, types)

    made = ros_node.executor.create_task(begin)
    wait_for(made.done, 10.0, "server and writer")
    server, writer = made.result()
    wait_for(lambda: writer.connected, 20.0, "the action server")
    values = np.linspace(0.0, 1.0, 25)

    def stream():
        for value in values:
            writer.write(moved([value]), STAMP)

    # By the thread that owns the node, as the executor does.
    ros_node.executor.create_task(stream)
    wait_for(lambda: goals and goals[-1] == 1.0, 20.0, "the last command")
    assert goals == [pytest.approx(values[9]), pytest.approx(values[19]), 1.0]
    assert writer.connected
    welcome[0] = False
    ros_node.executor.create_task(lambda: [writer.write(moved([0.5]), STAMP) for _ in range(10)])
    wait_for(lambda: not writer.connected, 20.0, "the refusal to be noticed")
    wait_for(lambda: writer.connected, 20.0, "another chance")

    def end():
        writer.destroy(ros_node)
        server.destroy()

    wait_for(ros_node.executor.create_task(end).done, 10.0, "the end")


def test_what_cannot_be_written_is_refused_with_what_to_do(ros_node, monkeypatch):
    monkeypatch.setitem(sys.modules, "control_msgs", None)
    monkeypatch.setitem(sys.modules, "control_msgs.action", None)
    with pytest.raises(UnsupportedController, match=r"apt install ros-\$ROS_DISTRO-control-msgs"):
        make_writer(ros_node, group("gripper_command", joints=("a",)), PERIOD)
    with pytest.raises(UnsupportedController, match="moves one joint, found 2"):
        ActionWriter(ros_node, group("gripper_command"), PERIOD, SimpleNamespace(GripperCommand=ExecuteTask))
    with pytest.raises(UnsupportedController, match="has no ParallelGripperCommand"):
        ActionWriter(ros_node, group("parallel_gripper_command"), PERIOD, SimpleNamespace())
    with pytest.raises(UnsupportedController, match="needs a `frame` other than `tip`"):
        make_writer(ros_node, group("cartesian_pose", frame="tool"), PERIOD)
    with pytest.raises(UnsupportedController, match="type magic is not written by the executor"):
        make_writer(ros_node, group("magic"), PERIOD)
