# SPDX-License-Identifier: Apache-2.0
"""What the executor does after faults that no healthy process shows: its parts, fed by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from qwen_vla_ros.msg import ActionChunk
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.time import Time
from std_srvs.srv import SetBool, Trigger

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.motion.follower import BaseCommand, Command, Follower, MotionError
from qwen_vla_ros.nodes import conductor as conducting
from qwen_vla_ros.nodes import lifecycle
from qwen_vla_ros.nodes import watchdog as watching
from qwen_vla_ros.nodes.cdr import Header, Joints, PolicyWord, Stamp
from qwen_vla_ros.nodes.conductor import Conductor, Patience
from qwen_vla_ros.nodes.constants import PolicyState, State
from qwen_vla_ros.nodes.goals import ActiveTask, end_goal
from qwen_vla_ros.nodes.services import Services
from qwen_vla_ros.nodes.watchdog import LOOK_PERIOD, Result, Trouble, Watchdog


class Node:
    """A clock, a log, and services that are called by hand."""

    active = True

    def __init__(self) -> None:
        self.now = 10000.0
        self.log: list[str] = []

    def stamp(self, time: float) -> Any:
        return Time(nanoseconds=round(time * 1e9)).to_msg()

    def get_logger(self) -> Any:
        say = lambda text, **_: self.log.append(text)  # noqa: E731
        return SimpleNamespace(info=say, warning=say, error=say, fatal=say)

    def create_service(self, kind: Any, name: str, call: Any) -> None:
        setattr(self, name.removeprefix("~/"), call)


class Writer:
    stamped = connected = True
    pending = False
    completed = 0
    kind = topic = "test"

    def __init__(self) -> None:
        self.sent: list[Command] = []
        self.flushed: list[bool] = []

    def write(self, command: Command, stamp: Any) -> None:
        self.sent.append(command)

    def complete(self) -> None:
        self.completed += 1

    def flush(self, rest: bool) -> None:
        self.flushed.append(rest)


class Goal:
    is_cancel_requested = False

    def __init__(self) -> None:
        self.result: Any = None

    def execute(self, report: Any) -> None:
        self.result = report(SimpleNamespace(succeed=int, canceled=int, abort=int, is_cancel_requested=False))


class Robot:
    """A robot that does what it is told, unless `follows` is false."""

    def __init__(self, body: str = "franka_panda", tracking: float = 0.5) -> None:
        self.body = load_embodiment(body)
        self.node = Node()
        self.follower = Follower(self.body)
        self.writers = {group.name: Writer() for group in self.body.actions}
        self.watchdog = Watchdog(self.body, self.follower, self.writers, tracking, 0.07)
        self.conductor = Conductor(
            self.node,
            self.follower,
            self.watchdog,
            self.writers,
            SimpleNamespace(refused=0, accepted=lambda *_: None, commanded=lambda *_: None),
            SimpleNamespace(task=lambda *_: None, status=lambda *_: None, feedback=lambda *_: None),
            Patience(start=5.0, chunk=10.0, recovery=2.0),
        )
        self.services = Services(self.node, self.conductor, 0.25, SimpleLock())
        posture = [self.body.posture()[name] for name in self.body.joints]
        for group, part in self._parts():
            if getattr(group, "unit", "") == "fraction":
                closed, opened = group.opening.T
                posture[part] = closed + (opened - closed) * np.array(posture[part])
        self.joints, self.pose = np.array(posture, dtype=float), [0.0, 0.0, 0.0]
        self.follows = self.reports = True
        self._sequence = self._task = 0

    def _parts(self):
        begin = 0
        for group in self.body.actions:
            end = begin + len(getattr(group, "joints", ()))
            yield group, slice(begin, end)
            begin = end

    @property
    def sent(self) -> int:
        return sum(len(writer.sent) for writer in self.writers.values())

    def say_joints(
        self, joints: np.ndarray, names: tuple[str, ...] | None = None, stamp: float | None = None
    ) -> None:
        stamped = self.node.stamp(self.node.now if stamp is None else stamp)
        header = Header(Stamp(stamped.sec, stamped.nanosec))
        self.watchdog.hear_joints(Joints(header, names or self.body.joints, np.asarray(joints, dtype=float)))

    def goal(self, limit: float = 60.0) -> Goal:
        self._task += 1
        goal = Goal()
        self.conductor.begin(ActiveTask(goal, self._task, "go", self.node.now, limit))
        return goal

    def chunk(self, shift: float = 0.0, base: float = 0.0, **changes: Any) -> None:
        """Rows that move every joint by `shift` from where it is, and a base at a speed; others rest.

        changes: of the message.
        """
        rows = np.zeros((self.body.horizon, self.body.layout.count))
        for group, part in self._parts():
            columns = self.body.layout.slice_of(group.name)
            if group.kind == "joint_position":
                rows[:, columns] = self.joints[part] + shift
            elif group.kind == "base_velocity":
                rows[:, columns] = base, 0.0
            elif group.kind == "gripper":
                rows[:, columns] = 1.0 if group.unit == "fraction" else self.joints[part]
        self._sequence += 1
        message = ActionChunk(
            embodiment=self.body.name,
            channels=list(self.body.layout.names),
            step=1 / self.body.control_rate,
            horizon=len(rows),
            task_id=self._task,
            sequence=self._sequence,
            data=rows.ravel().tolist(),
        )
        message.header.stamp = self.node.stamp(self.node.now)
        for name, value in changes.items():
            setattr(message, name, value)
        self.conductor.hear_chunk(message)

    def tick(self, seconds: float = 0.0) -> None:
        """Periods of the loop, one at least."""
        for _ in range(max(1, round(seconds / self.follower.period))):
            self.node.now += self.follower.period
            for group, part in self._parts():
                writer = self.writers[group.name]
                if self.follows and writer.sent and part.stop > part.start:
                    self.joints[part] = writer.sent[-1].position
            if self.reports:
                self.say_joints(self.joints)
                self.follower.pose.add(self.node.now, self.pose)
            task = self.conductor.task
            self.watchdog.hear_policy(
                PolicyWord(PolicyState.STATE_RUNNING, 0, "", self.body.name, task.task_id if task else 0)
            )
            self.watchdog.heartbeat.look()
            self.conductor.tick()

    def move(self, shift: float = 0.3, base: float = 0.0, chunks: int = 1) -> Goal:
        """A task that is in motion."""
        goal = self.goal()
        self.tick()
        for _ in range(chunks):
            self.chunk(shift, base)
            self.tick(0.6 * min(0.8, self.body.horizon / self.body.control_rate))
        assert self.conductor.state == State.STATE_RUNNING
        assert not self.follower.resting
        return goal

    def break_planner(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any) -> None:
            raise MotionError("the planner of the arm failed")

        for name in ("step", "brake", "go_on", "prepare"):
            monkeypatch.setattr(self.follower._moved.tracker, name, fail)

    def ask(self, name: str, kind: Any = Trigger, **fields: Any) -> tuple[bool, str]:
        answer = getattr(self.node, name)(kind.Request(**fields), kind.Response())
        return answer.success, answer.message


class SimpleLock:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: Any) -> None: ...


def test_controllers_and_tracking_are_looked_at_often():
    assert LOOK_PERIOD == 0.02


@pytest.fixture(autouse=True)
def looks_each_period(monkeypatch):
    """These robots live faster than the wall clock that says when controllers are looked at."""
    monkeypatch.setattr(watching, "LOOK_PERIOD", -1.0)


def base_of(robot: Robot) -> Writer:
    return next(writer for writer in robot.writers.values() if isinstance(writer.sent[-1], BaseCommand))


def check_steps(robot: Robot, base: Writer) -> None:
    """The base was told no change of velocity that its limits forbid."""
    limits = next(group.limits for group in robot.body.actions if group.kind == "base_velocity")
    told = np.array([command.velocity[0] for command in base.sent])
    assert np.abs(np.diff(told)).max() <= 1.01 * limits.linear.acceleration * robot.follower.period


@pytest.mark.parametrize("ticks", [0, 7, 23, 60])
@pytest.mark.parametrize("chunks", [2, 4])
def test_a_fault_of_the_arms_brakes_the_base(monkeypatch, chunks, ticks):
    """Whatever it was doing: speeding up, settling, at speed."""
    robot = Robot("mobile_aloha")
    goal = robot.move(0.1, base=0.4, chunks=chunks)
    for _ in range(ticks):
        if robot.follower.timeline.remaining(robot.node.now) < 0.1:
            robot.chunk(0.1, 0.4)
        robot.tick()
    base = base_of(robot)
    assert base.sent[-1].velocity[0] > 0.05
    robot.break_planner(monkeypatch)
    arms = robot.sent - len(base.sent)
    robot.tick(2.0)
    assert robot.conductor.state == State.STATE_FAULT
    assert goal.result.code == Result.CHUNK_INVALID
    assert base.sent[-1].velocity.tolist() == [0.0, 0.0]
    assert robot.sent - len(base.sent) == arms
    told = len(base.sent)
    check_steps(robot, base)
    robot.tick(0.5)
    assert len(base.sent) == told, "at rest there is nothing to say"


def test_an_end_within_a_fault_is_an_end(monkeypatch):
    """Deactivated in motion while the planner fails: the goal ends, the base is braked, the latch stays."""
    robot = Robot("mobile_aloha")
    goal = robot.move(0.1, base=0.4, chunks=4)
    robot.break_planner(monkeypatch)
    monkeypatch.setattr(conducting.time, "sleep", lambda _: None)
    robot.conductor.end_at_once(Trouble(Result.EXECUTOR_SHUTDOWN, "deactivated"))
    assert goal.result is not None
    assert robot.conductor.state == State.STATE_FAULT
    assert (
        next(w for w in robot.writers.values() if isinstance(w.sent[-1], BaseCommand)).sent[-1].velocity[0]
        == 0.0
    )
    # What waits in actions is sent: nobody will come to it any more.
    assert all(writer.flushed[-1] for writer in robot.writers.values())


def test_the_latch_of_a_fault_outlives_deactivation(monkeypatch):
    robot = Robot()
    robot.move()
    with monkeypatch.context() as patch:
        robot.break_planner(patch)
        robot.tick()
    robot.conductor.end_at_once(Trouble(Result.EXECUTOR_SHUTDOWN, "deactivated"))
    assert robot.conductor.refusal is not None
    robot.joints[0] += 0.5  # moved by hand
    robot.follows = False
    sent = robot.sent
    robot.tick(0.2)
    assert robot.sent == sent
    assert robot.ask("reset") == (True, "ready")
    robot.goal()
    robot.tick(0.2)
    robot.chunk()
    robot.tick()
    first = robot.writers["arm"].sent[sent // 2]
    assert first.position == pytest.approx(robot.joints[:7], abs=0.01)


def test_a_clock_that_stood_leaves_nothing_in_motion(monkeypatch):
    robot = Robot("mobile_aloha")
    goal = robot.move(0.1, base=0.4, chunks=4)
    wall = [0.0]
    monkeypatch.setattr(conducting.time, "monotonic", lambda: wall[0])
    robot.conductor.say()
    wall[0] = 10.0
    robot.conductor.say()
    assert goal.result.code == Result.JOINT_STATE_STALE
    base = base_of(robot)
    # The clock goes on with the robot elsewhere, as when a simulation was started anew.
    robot.follows = False
    robot.joints[:3] += 0.5
    joints = robot.sent - len(base.sent)
    robot.tick(2.0)
    assert base.sent[-1].velocity[0] == 0.0
    assert robot.sent - len(base.sent) == joints, "joints are told nothing that leads on from the old place"
    robot.goal()
    robot.tick(0.1)
    robot.chunk()
    robot.tick()
    arm = next(iter(robot.writers.values()))
    assert arm.sent[-1].position[:3] == pytest.approx(robot.joints[:3], abs=0.02)


@pytest.mark.parametrize("then", ["goal", "stop", "take_over", "home"])
def test_a_base_that_brakes_after_a_clock_stood_brakes_on(monkeypatch, then):
    robot = Robot("mobile_aloha")
    robot.move(0.1, base=0.4, chunks=4)
    base = base_of(robot)
    wall = [0.0]
    monkeypatch.setattr(conducting.time, "monotonic", lambda: wall[0])
    robot.conductor.say()
    wall[0] = 10.0
    robot.conductor.say()
    robot.tick(0.1)
    if then == "goal":
        robot.goal()
    elif then == "home":
        assert robot.ask("home") == (False, "the robot still comes to rest: call again")
    elif then == "take_over":
        assert robot.ask("take_over", SetBool, data=True)[0]
    else:
        assert robot.ask("stop")[0]
    told = len(base.sent)
    robot.tick()
    assert len(base.sent) == told + 1
    robot.tick(2.0)
    assert base.sent[-1].velocity[0] == 0.0
    check_steps(robot, base)


def test_a_goal_right_after_a_reset_of_the_clock_has_its_time():
    robot = Robot()
    robot.tick(0.5)
    robot.node.now = 0.4
    goal = robot.goal(limit=60.0)
    robot.tick(1.0)
    assert goal.result is None
    assert robot.conductor.task.began == 0.4


def test_rest_is_when_what_was_sent_has_been_reached():
    """Goals of actions run behind: before they end the robot is not at rest, whoever wants it."""
    robot = Robot()
    robot.move()
    robot.writers["arm"].pending = True
    robot.ask("take_over", SetBool, data=True)
    robot.tick(2.0)
    assert robot.conductor.state == State.STATE_STOPPING
    assert robot.ask("home")[0] is False
    robot.writers["arm"].pending = False
    robot.tick()
    assert robot.conductor.state == State.STATE_YIELDED


def test_droop_makes_no_step_at_each_pause():
    robot = Robot("so101")
    robot.move()
    robot.follows = False
    arm = robot.writers["arm"]
    part = next(part for group, part in robot._parts() if group.name == "arm")
    for _ in range(3):
        for _ in range(200):
            robot.joints[part] = arm.sent[-1].position - 0.2
            robot.tick()
            if robot.conductor.state == State.STATE_RUNNING:
                assert robot.ask("pause")[0]
        assert robot.conductor.state == State.STATE_HOLDING
        last = arm.sent[-1].position
        assert robot.ask("resume")[0]
        sent = len(arm.sent)
        robot.tick()
        robot.chunk(0.2)
        robot.tick()
        assert arm.sent[sent].position == pytest.approx(last, abs=1e-3)


@pytest.mark.parametrize("body", ["ur5e", "so101", "tm12"])
def test_a_robot_that_lags_goes_on_without_a_jump(body):
    """Paused and resumed in motion: the next chunk comes while it still catches up with its set-points."""
    robot = Robot(body)
    robot.move(0.6)
    robot.follows = False
    arm = robot.writers["arm"]
    part = next(part for group, part in robot._parts() if group.name == "arm")
    limit = next(group.limits.velocity for group in robot.body.actions if group.name == "arm")
    lag = round(0.35 / robot.follower.period)
    states, way = set(), [command.position for command in arm.sent]
    for _ in range(round(4.0 / robot.follower.period)):
        way.append(arm.sent[-1].position)
        robot.joints[part] = way[max(0, len(way) - lag)]
        if robot.conductor.state == State.STATE_RUNNING and not states:
            robot.ask("pause")
            robot.ask("resume")
        if robot.conductor._pending is None:
            robot.chunk(0.3)
        states.add(robot.conductor.state)
        robot.tick()
    assert {State.STATE_STOPPING, State.STATE_RUNNING} <= states
    told = np.array([command.position for command in arm.sent])
    assert (np.abs(np.diff(told, axis=0)) <= 1.01 * limit * robot.follower.period).all()


@pytest.mark.parametrize("by", ["hand", "driver"])
def test_a_robot_that_was_moved_within_a_task_goes_on_from_where_it_is(by):
    robot = Robot()
    robot.move()
    if by == "hand":
        assert robot.ask("pause")[0]
        robot.tick(1.0)
        assert robot.conductor.state == State.STATE_HOLDING
    else:
        robot.reports = False
        robot.tick(1.0)
        assert robot.conductor.state == State.STATE_STOPPED
        robot.reports = True
    robot.follows = False
    robot.joints[0] -= 0.8
    if by == "hand":
        robot.tick(0.5)
        assert robot.ask("resume")[0]
    sent = len(robot.writers["arm"].sent)
    for _ in range(100):
        if robot.conductor._pending is None:
            robot.chunk()
        robot.tick()
    first = robot.writers["arm"].sent[sent]
    assert first.position[0] == pytest.approx(robot.joints[0], abs=0.01)
    assert any("moved by others" in line for line in robot.node.log)


def test_a_clock_that_goes_back_leaves_limits_of_time_in_force():
    robot = Robot()
    goal = robot.goal(limit=5.0)
    robot.tick(2.0)
    robot.node.now -= 3600.0
    robot.tick(4.0)
    assert goal.result.code == Result.TIME_LIMIT
    assert any("went back by 3599.99" in line for line in robot.node.log)


def test_stop_does_not_take_a_robot_out_of_other_hands():
    robot = Robot()
    robot.tick()
    assert robot.ask("take_over", SetBool, data=True) == (True, "yours")
    taken, why = robot.ask("stop")
    assert not taken
    assert "other hands" in why
    assert robot.conductor.state == State.STATE_YIELDED
    assert not robot.ask("reset")[0]
    assert robot.ask("take_over", SetBool, data=False) == (True, "taken back")


def capture(robot: Robot) -> float:
    """The first joint, which moves at 1 rad/s, as seen 0.25 s before."""
    for _ in range(100):
        robot.node.now += 0.01
        angle = robot.node.now - 10000.0
        yield angle
    joints, _ = robot.follower._measured.at(robot.node.now - 0.25)
    yield joints[0]


@pytest.mark.parametrize("foreign", ["none", "unstamped", "late"])
def test_other_devices_on_the_topic_do_not_shift_what_was_seen(foreign):
    robot = Robot()
    steps = capture(robot)
    for _ in range(100):
        robot.joints[0] = next(steps)
        robot.say_joints(robot.joints)
        if foreign != "none":
            robot.say_joints([1.0], ("conveyor",), 0.0 if foreign == "unstamped" else robot.node.now - 1.0)
    assert next(steps) == pytest.approx(0.75, abs=0.011)
    assert robot.watchdog.find_in_robot(robot.node.now) is None


def test_an_arm_that_is_told_late_is_seen_where_it_was():
    robot = Robot("mobile_aloha_eef")
    names, half = robot.body.joints, len(robot.body.joints) // 2
    for _ in range(100):
        robot.node.now += 0.01
        angle = robot.node.now - 10000.0
        robot.say_joints([angle, *robot.joints[1:half]], names[:half])
        robot.say_joints(robot.joints[half:], names[half:], robot.node.now - 0.2)
    joints, _ = robot.follower._measured.at(robot.node.now - 0.25)
    assert joints[0] == pytest.approx(0.75, abs=0.011)


def test_a_joint_without_end_is_not_astray_by_a_turn():
    robot = Robot("kinova_gen3")
    robot.joints[0] = 3.0
    robot.goal()
    robot.tick()
    robot.follows = False  # the driver counts from -pi to pi
    commanded = robot.writers[robot.body.actions[0].name]
    for _ in range(400):
        if not robot.node.log or robot.conductor._pending is None:
            robot.chunk(0.6 if robot.joints[0] > 0 else 0.0)
        robot.tick()
        if commanded.sent:
            robot.joints[:7] = (commanded.sent[-1].position + math.pi) % (2 * math.pi) - math.pi
    assert robot.joints[0] < 0.0
    assert robot.conductor.task is not None, robot.node.log


def hold_off(robot: Robot, part: slice) -> None:
    """Two seconds in which some joints stay 0.62 from what they are told, and chunks go on."""
    robot.follows = False
    for _ in range(round(2.0 / robot.follower.period)):
        for group, own in robot._parts():
            robot.joints[own] = robot.writers[group.name].sent[-1].position
        robot.joints[part] += 0.62
        if robot.conductor._pending is None and robot.follower.timeline.remaining(robot.node.now) < 0.5:
            robot.chunk()
        robot.tick()


def test_an_arm_that_is_held_is_astray():
    robot = Robot("ur5e")
    goal = robot.move()
    hold_off(robot, slice(2, 3))
    assert goal.result.code == Result.TRACKING_LOST
    assert "joint elbow_joint is 0.62 from its command" in goal.result.message


@pytest.mark.parametrize("body", ["so101", "ur5e", "xarm7"])
def test_fingers_that_hold_something_are_not_astray(body):
    robot = Robot(body)
    gripper = next(group for group in robot.body.actions if group.kind == "gripper")
    part = next(part for group, part in robot._parts() if group is gripper)
    robot.move()
    hold_off(robot, part)  # stopped by what they hold
    assert robot.conductor.task is not None, robot.node.log


@pytest.mark.usefixtures("ros_environment")
def test_a_callback_that_fails_twice_does_not_cut_the_ramp(monkeypatch):
    seen: list[str] = []

    class Body(lifecycle.BodyNode):
        def __init__(self) -> None:
            super().__init__("twice")
            self.turns = 0
            self.create_timer(0.01, self._raise)

        def _raise(self) -> None:
            seen.append("raised")
            raise RuntimeError("callback")

        def autostart(self) -> None: ...

        def prepare_end(self) -> None:
            seen.append("prepare_end")

        @property
        def busy(self) -> bool:
            self.turns += 1
            return self.turns < 10

        def trigger_shutdown(self) -> None:
            seen.append("shutdown")

    monkeypatch.setattr(lifecycle, "gc", SimpleNamespace(collect=int, freeze=int, unfreeze=int))
    monkeypatch.setattr(lifecycle.signal, "signal", lambda *_: None)
    monkeypatch.setattr(lifecycle.sys, "setswitchinterval", lambda _: None)
    assert lifecycle.run(Body) == 1
    assert seen[-1] == "shutdown"
    assert seen.count("raised") >= 2


# What must be there before the robot moves, and whose chunk it is


def test_motion_does_not_begin_while_joint_states_are_old():
    """They stop between the start of the task and its first chunk."""
    robot = Robot()
    goal = robot.goal()
    robot.tick()
    assert robot.conductor.state == State.STATE_WAITING
    robot.reports = False
    robot.tick(0.4)
    robot.chunk()
    robot.tick(0.5)
    assert robot.conductor.state == State.STATE_STOPPED
    assert robot.sent == 0
    robot.tick(2.5)
    assert goal.result.code == Result.JOINT_STATE_STALE


def test_a_chunk_of_the_task_before_moves_nothing():
    robot = Robot()
    goal = robot.goal()
    robot.tick()
    robot.chunk(0.3, task_id=robot._task - 1)
    robot.tick(0.2)
    assert robot.sent == 0
    assert goal.result is None
    robot.chunk(0.3)
    robot.tick()
    assert robot.sent > 0


def test_a_chunk_with_its_channels_in_another_order_moves_nothing():
    robot = Robot()
    goal = robot.goal()
    robot.tick()
    first, *others = robot.body.layout.names
    robot.chunk(0.3, channels=[*others, first])
    robot.tick()
    assert robot.sent == 0
    assert goal.result.code == Result.CHUNK_INVALID
    assert "with channels" in goal.result.message


@pytest.mark.parametrize(
    ("age", "found"), [(0.29, None), (0.31, "0.31 s old"), (-0.29, None), (-0.31, "stamped 0.31 s ahead")]
)
def test_how_old_a_pose_may_be(age, found):
    robot = Robot("tiago_base")
    assert robot.body.state.max_age == 0.3
    robot.follower.pose.add(100.0 - age, np.zeros(3))
    trouble = robot.watchdog.find_in_robot(100.0)
    assert (trouble is None) if found is None else (found in trouble.message)


# Home


def test_home_stops_where_joint_states_stop():
    robot = Robot()
    robot.joints[0] += 0.5
    robot.tick()
    assert robot.ask("home")[0]
    robot.tick(0.3)
    assert robot.conductor.state == State.STATE_HOMING
    assert not robot.follower.resting
    robot.reports = False
    robot.tick(0.8)
    assert robot.conductor.trouble.code == Result.JOINT_STATE_STALE
    assert robot.follower.resting
    sent = robot.sent
    robot.tick(0.5)
    assert robot.sent == sent
    assert abs(robot.joints[0] - robot.body.home[robot.body.joints[0]]) > 0.1


def test_home_does_not_begin_without_joint_states():
    robot = Robot()
    robot.tick()
    robot.reports = False
    robot.tick(0.5)
    began, why = robot.ask("home")
    assert not began
    assert "joint states on joint_states stopped" in why
    assert robot.conductor.state == State.STATE_IDLE


def test_stop_on_the_way_home_is_a_stop():
    robot = Robot()
    robot.joints[0] += 0.5
    robot.tick()
    robot.ask("home")
    robot.tick(0.3)
    assert robot.ask("stop") == (True, "stopping")
    robot.tick(1.0)
    assert robot.conductor.state == State.STATE_HALTED
    assert abs(robot.joints[0] - robot.body.home[robot.body.joints[0]]) > 0.1


def test_home_that_is_not_reached_ends():
    robot = Robot()
    robot.joints[0] += 0.5
    robot.tick()
    robot.ask("home")
    robot.tick()
    robot.conductor._home_left = 3
    robot.tick(1.0)
    assert robot.conductor.state == State.STATE_IDLE
    assert any("home is not reached in time" in line for line in robot.node.log)


# Stopped, paused


def test_nothing_but_a_reset_lifts_a_stop():
    robot = Robot()
    robot.move()
    assert robot.ask("stop")[0]
    assert robot.ask("take_over", SetBool, data=True) == (False, "the robot is stopped: call ~/reset first")
    assert robot.ask("reset") == (False, "the robot still moves: call again when it rests")
    robot.tick(1.0)
    assert robot.conductor.state == State.STATE_HALTED
    assert not robot.ask("take_over", SetBool, data=True)[0]
    assert not robot.ask("home")[0]
    assert robot.conductor.state == State.STATE_HALTED
    assert robot.ask("reset") == (True, "ready")


def test_a_fault_is_not_lifted_by_taking_over(monkeypatch):
    robot = Robot()
    robot.move()
    robot.break_planner(monkeypatch)
    robot.tick()
    assert robot.conductor.state == State.STATE_FAULT
    assert not robot.ask("take_over", SetBool, data=True)[0]
    assert robot.conductor.state == State.STATE_FAULT


def test_time_on_hold_does_not_count_nor_what_is_heard_in_it():
    robot = Robot()
    goal = robot.move()
    goal_limit = robot.conductor.task.time_limit = robot.node.now - robot.conductor.task.began + 3.0
    assert robot.ask("pause")[0]
    robot.tick(30.0)
    assert robot.conductor.state == State.STATE_HOLDING
    robot.chunk(0.5)
    sent = robot.sent
    assert robot.ask("resume")[0]
    robot.tick(0.5)
    assert robot.sent == sent, "moved by a chunk from before it went on"
    robot.chunk(0.1)
    robot.tick(0.5)
    assert robot.sent > sent
    assert goal.result is None
    robot.tick(goal_limit)
    assert goal.result.code == Result.TIME_LIMIT


# Robots that lag, and joint states that come late


class Lagging(Robot):
    """Controllers that follow late and droop; joint states that are heard late, and seldom.

    Args:
        delay: of the controllers [periods].
        late, every: of joint states [periods].
    """

    def __init__(self, delay: int = 2, droop: float = 0.0, late: int = 0, every: int = 1) -> None:
        super().__init__()
        self.follows = self.reports = self.silent = False
        self._delay, self._late, self._every, self._count = delay, late, every, 0
        self._droop = np.zeros(len(self.joints))
        self._droop[1:4] = droop
        self._way, self._coming = [self.joints.copy()], []

    def tick(self, seconds: float = 0.0) -> None:
        for _ in range(max(1, round(seconds / self.follower.period))):
            target = self._way[-1].copy()
            for group, part in self._parts():
                if self.writers[group.name].sent:
                    target[part] = self.writers[group.name].sent[-1].position
            self._way.append(target)
            place = self._way[max(0, len(self._way) - 1 - self._delay)] + self._droop
            now = self.node.now + self.follower.period
            self._count += 1
            if self._count % self._every == 0:
                self._coming.append((now, place))
            if self._coming and self._coming[0][0] <= now - (self._late - 0.5) * self.follower.period:
                stamp, self.joints = self._coming.pop(0)
                if not self.silent:
                    self.say_joints(self.joints, stamp=stamp)
            super().tick()

    def drive(self) -> None:
        """A task that has gone on for a while, and is at speed."""
        self.tick(0.3)
        self.goal()
        self.tick()
        for _ in range(3):
            self.chunk(1.0)
            self.tick(0.2)
        assert self.conductor.state == State.STATE_RUNNING

    def tick_until(self, state: int) -> None:
        for _ in range(300):
            if self.conductor.state == state:
                return
            self.tick()
        raise AssertionError(f"state {self.conductor.state}, expected {state}: {self.node.log}")

    def jump(self) -> float:
        """Change of speed at the last command, as a share of what the acceleration allows."""
        told = np.array([command.position for command in self.writers["arm"].sent[-3:]])
        limits = self.body.actions[0].limits
        change = np.diff(told, n=2, axis=0) / self.follower.period**2
        return float(np.abs(change / limits.acceleration).max())


@pytest.mark.parametrize("delay", [3, 10, 20])
def test_a_new_goal_begins_where_a_robot_that_lags_comes_to_rest(delay):
    robot = Lagging(delay)
    robot.drive()
    robot.goal()
    robot.tick(0.1)
    robot.chunk(0.5)  # before the robot stands
    robot.tick_until(State.STATE_RUNNING)
    assert robot.jump() < 1.01


@pytest.mark.parametrize("delay", [3, 10, 20])
def test_home_begins_where_a_robot_that_lags_comes_to_rest(delay):
    robot = Lagging(delay)
    robot.drive()
    robot.conductor.task.goal.is_cancel_requested = True
    robot.tick_until(State.STATE_IDLE)
    sent = len(robot.writers["arm"].sent)
    assert robot.ask("home")[0]
    for _ in range(100):
        robot.tick()
        if len(robot.writers["arm"].sent) > sent:
            break
    assert robot.jump() < 1.01
    robot.tick(5.0)
    assert robot.conductor.state == State.STATE_IDLE
    assert np.abs(robot.joints - [robot.body.home[name] for name in robot.body.joints]).max() < 0.01


@pytest.mark.parametrize(("late", "every"), [(0, 1), (5, 1), (12, 1), (2, 20)])
def test_a_robot_that_nobody_touched_goes_on_from_its_last_command(late, every):
    """However late its joint states are, and though it droops."""
    robot = Lagging(droop=0.03, late=late, every=every)
    robot.drive()
    robot.ask("pause")
    robot.tick_until(State.STATE_HOLDING)
    robot.tick(1.0)
    robot.ask("resume")
    robot.tick(0.05)
    robot.chunk(0.2)
    robot.tick_until(State.STATE_RUNNING)
    assert robot.jump() < 1.01
    assert not any("moved by others" in line for line in robot.node.log)


def test_joint_states_that_were_missed_during_the_ramp_tell_of_no_push():
    robot = Lagging(droop=0.03)
    robot.drive()
    robot.silent = True
    robot.tick_until(State.STATE_STOPPED)
    robot.tick(0.5)
    robot.silent = False
    robot.tick(0.2)
    robot.chunk(0.2)
    robot.tick_until(State.STATE_RUNNING)
    assert robot.jump() < 1.01
    assert not any("moved by others" in line for line in robot.node.log)


@pytest.mark.parametrize("what", ["late", "of another task"])
def test_a_chunk_that_is_refused_leaves_nothing_to_jump_from(what):
    """Held aside by hand in a pause; the first chunk after it is refused, and the hand lets go."""
    robot = Robot()
    robot.move()
    robot.ask("pause")
    robot.tick(1.0)
    arm = robot.writers["arm"]
    told = arm.sent[-1].position.copy()
    robot.follows = False
    robot.joints[0] += 0.25
    robot.tick(0.5)
    robot.ask("resume")
    robot.tick(0.2)
    stale = {"header": SimpleNamespace(stamp=robot.node.stamp(robot.node.now - 5.0))}
    robot.chunk(**({"task_id": 99} if what == "of another task" else {}))
    if what == "late":
        robot.conductor._pending.header.stamp = stale["header"].stamp
    sent = len(arm.sent)
    robot.tick()
    assert len(arm.sent) == sent
    robot.joints[:7] = told
    robot.tick(0.3)
    robot.chunk(0.2)
    robot.tick()
    assert arm.sent[sent].position == pytest.approx(told, abs=0.001)


@pytest.mark.parametrize("wait", [0.1, 1.0])
@pytest.mark.parametrize("what", ["home", "task"])
def test_a_robot_in_motion_is_waited_for(what, wait):
    """Others move it at 1 rad/s when it is asked to go, however long before it was asked for anything."""
    robot = Robot()
    robot.follows = False

    def pushed(seconds: float) -> None:
        for _ in range(round(seconds / robot.follower.period)):
            robot.joints[0] += robot.follower.period
            robot.tick()

    pushed(1.0)
    if what == "task":
        robot.goal()
        pushed(wait)
        robot.chunk()
    else:
        assert robot.ask("home")[0]
    pushed(0.4)
    assert robot.sent == 0
    robot.tick(0.3)  # it is let go
    assert robot.sent > 0
    assert robot.writers["arm"].sent[0].position[0] == pytest.approx(robot.joints[0], abs=0.002)


def test_a_gripper_that_creeps_holds_up_no_arm_and_hides_no_push():
    robot = Robot("galaxea_r1")
    grips = np.zeros(len(robot.joints), dtype=bool)
    for group, part in robot._parts():
        grips[part] = group.kind == "gripper"
    rng = np.random.default_rng(0)

    def creep(seconds: float, until: Any = lambda: False) -> None:
        for _ in range(round(seconds / robot.follower.period)):
            for group, part in robot._parts():
                if robot.writers[group.name].sent and part.stop > part.start and not robot.pushed:
                    robot.joints[part] = robot.writers[group.name].sent[-1].position
            robot.joints[grips] += rng.uniform(-0.5, 0.5, grips.sum())
            robot.tick()

    robot.pushed = False
    robot.move()
    robot.follows = False
    robot.ask("pause")
    creep(1.0)
    assert robot.conductor.state == State.STATE_HOLDING
    robot.pushed = True
    first = robot.body.joints[0]
    robot.joints[0] += 0.25
    creep(0.5)
    robot.ask("resume")
    sent = {name: len(writer.sent) for name, writer in robot.writers.items()}
    robot.chunk()
    creep(0.1)
    name = next(group.name for group, part in robot._parts() if part.start == 0 and part.stop > 0)
    assert first in next(group.joints for group, _ in robot._parts() if group.name == name)
    assert robot.writers[name].sent[sent[name]].position[0] == pytest.approx(robot.joints[0], abs=0.01)


def test_a_lift_that_sinks_slowly_does_not_stand():
    robot = Robot("stretch")
    part = next(part for group, part in robot._parts() if "lift" in " ".join(group.joints))
    lift = robot.body.joints.index(next(name for name in robot.body.joints if "lift" in name))
    assert part.start <= lift < part.stop
    for speed, stands in ((0.05, False), (0.0, True)):
        for _ in range(30):
            robot.joints[lift] += speed * robot.follower.period
            robot.tick()
        assert robot.follower.settle(-math.inf) == stands


@pytest.mark.parametrize("body", ["franka_panda", "franka_panda_delta", "tiago_base"])
def test_rows_that_count_from_where_the_robot_was_wait_until_that_is_known(body):
    robot = Robot(body)
    robot.tick(0.5)
    robot.goal()
    robot.tick()
    robot.chunk()
    robot.tick(0.05)
    assert robot.conductor.state == State.STATE_RUNNING
    robot.reports = False
    robot.tick(0.1)
    robot.chunk()
    first = robot.conductor._pending.sequence
    robot.tick()
    waits = body != "franka_panda"
    assert (robot.conductor._pending is not None) == waits
    robot.chunk()
    # The one that waits keeps its turn, until the place of a newer one is known.
    assert robot.conductor._pending.sequence == first + (0 if waits else 1)
    robot.reports = True
    robot.tick()
    assert robot.conductor._pending is None
    assert robot.conductor.state == State.STATE_RUNNING
    assert robot.follower.timeline.sequence == first + 1


def test_joint_states_of_a_time_that_comes_again_are_not_fresh():
    """They stop, the clock goes back, and comes round to their stamps."""
    robot = Robot()
    robot.tick(1.0)
    robot.reports = False
    robot.tick(0.1)
    robot.node.now -= 5.0
    robot.joints[0] += 0.6
    robot.tick(3.5)
    goal = robot.goal()
    for _ in range(30):
        robot.chunk()
        robot.tick(0.1)
    assert robot.sent == 0
    robot.tick(3.0)
    assert goal.result.code == Result.JOINT_STATE_STALE
    assert "since the clock went back" in goal.result.message
    robot.reports = True
    robot.tick(0.2)
    robot.goal()
    robot.tick()
    robot.chunk()
    robot.tick(0.1)
    assert robot.writers["arm"].sent[0].position[0] == pytest.approx(robot.joints[0], abs=0.001)


def test_a_task_goes_on_when_the_clock_goes_back():
    """The policy is told when it then began."""
    robot, told = Robot(), []
    robot.conductor._announcer.task = lambda task, active, began: told.append((task.task_id, active, began))
    robot.move()
    began = told[-1][2]
    robot.node.now -= 20.0
    robot.tick()
    assert told[-1] == (1, True, pytest.approx(began - 20.0, abs=0.03))
    robot.tick(0.2)
    robot.chunk()
    robot.tick(0.6)
    assert robot.conductor.task is not None
    assert robot.conductor.state == State.STATE_RUNNING


def test_what_was_planned_before_a_pause_is_not_done_after_it():
    """The pause comes when the next motion has been planned and nothing moves yet."""
    robot = Robot()
    robot.goal()
    robot.tick()
    robot.chunk(0.0)
    robot.tick(0.5)
    assert robot.follower.resting
    robot.chunk(-1.0)
    for _ in range(20):
        robot.tick()
        if robot.follower.resting and robot.follower._moved.goes_on:
            ahead = robot.follower._moved.tracker._ahead[-1]
            if np.abs(ahead.acceleration).max() > 0.0:
                break
    else:
        pytest.fail("nothing was planned at rest")
    assert robot.ask("pause")[0]
    robot.tick(1.0)
    assert robot.conductor.state == State.STATE_HOLDING
    assert robot.ask("resume")[0]
    robot.tick()
    begin = len(robot.writers["arm"].sent)
    robot.chunk(0.5)
    robot.tick(0.2)
    told = np.array([command.position[0] for command in robot.writers["arm"].sent[begin - 1 :]])
    assert told[-1] > told[0] + 1e-3
    assert (np.diff(told) > -1e-9).all(), "it went the old way first"


# Ends that lead elsewhere


def test_a_fault_on_the_way_into_other_hands_has_a_way_out(monkeypatch):
    robot = Robot()
    robot.move()
    assert robot.ask("take_over", SetBool, data=True)[0]
    with monkeypatch.context() as patch:
        robot.break_planner(patch)
        robot.tick()
    assert robot.conductor.state == State.STATE_FAULT
    assert robot.ask("reset") == (True, "ready")
    assert robot.conductor.state == State.STATE_IDLE


def test_trouble_at_rest_has_its_own_time_to_pass():
    robot = Robot()
    goal = robot.move()
    robot.tick(3.0)  # no chunk comes, and the last one ends
    assert robot.conductor.trouble.code == Result.CHUNK_STALE
    robot.tick(3.0)
    robot.reports = False
    robot.tick(0.4)
    robot.reports = True
    robot.tick(0.2)
    assert goal.result is None
    robot.reports = False
    robot.tick(2.5)
    assert goal.result.code == Result.JOINT_STATE_STALE


def test_a_task_that_waits_for_a_chunk_does_not_end_for_what_has_passed():
    robot = Robot()
    goal = robot.move()
    robot.reports = False
    robot.tick(1.0)
    assert robot.conductor.trouble.code == Result.JOINT_STATE_STALE
    robot.reports = True
    robot.tick(10.0)
    assert goal.result.code == Result.CHUNK_STALE
    assert "no chunk within 10.0 s; stopped by: joint states" in goal.result.message


def test_another_device_may_tell_no_positions():
    robot = Robot()
    goal = robot.move()
    robot.say_joints(np.zeros(0), ("left_wheel", "right_wheel"))
    robot.tick()
    assert goal.result is None
    robot.say_joints(np.zeros(0), robot.body.joints)
    robot.tick(1.0)
    assert goal.result.code == Result.JOINT_STATE_INVALID


def test_home_is_over_when_what_was_sent_has_been_reached():
    robot = Robot()
    robot.joints[0] += 0.5
    robot.tick(0.2)
    assert robot.ask("home")[0]
    robot.writers["arm"].pending = True
    robot.tick(3.0)
    assert robot.conductor.state == State.STATE_HOMING
    assert robot.writers["arm"].completed > 0
    sent = robot.sent
    robot.tick(0.5)
    assert robot.sent == sent, "what is said at home would never have been reached"
    robot.writers["arm"].pending = False
    robot.tick()
    assert robot.conductor.state == State.STATE_IDLE


# How soon: by the robot's clock, which here no busy computer holds up


def _nan(robot: Robot) -> None:
    rows = np.zeros(robot.body.horizon * robot.body.layout.count)
    rows[3] = math.nan
    robot.chunk(data=rows.tolist())


def _no_controller(robot: Robot) -> None:
    robot.writers["arm"].connected = False


def _no_joint_states(robot: Robot) -> None:
    robot.reports = False


def _cancelled(robot: Robot) -> None:
    robot.conductor.task.goal.is_cancel_requested = True


@pytest.mark.parametrize(
    ("happens", "code", "within"),
    [
        (_nan, Result.CHUNK_INVALID, 0.0),
        (_no_controller, Result.CONTROLLER_LOST, 0.0),
        (_no_joint_states, Result.JOINT_STATE_STALE, 0.3),
        (_cancelled, Result.CANCELLED, 0.0),
    ],
)
def test_rest_is_reached_within_the_time_that_is_documented(happens, code, within):
    """A period until it is seen, the time for which it is allowed, and the longest ramp, 0.2 s."""
    robot = Robot()
    goal = robot.move(1.0)
    began = robot.node.now
    happens(robot)
    while robot.conductor.state == State.STATE_RUNNING or not robot.follower.resting:
        robot.tick()
    assert robot.node.now - began <= within + 0.2 + 2 * robot.follower.period + 1e-9
    robot.tick()
    found = goal.result.code if goal.result is not None else robot.conductor.trouble.code
    assert found == code


def test_a_cancel_between_rclpys_look_and_its_transition_loses_no_result():
    class Racing:
        tries = 0
        result: Any = None

        def execute(self, report: Any) -> None:
            self.tries += 1
            if self.tries == 1:
                raise rclpy_implementation.RCLError(
                    "goal_handle attempted invalid transition from state CANCELING with event EXECUTE"
                )
            done: list[str] = []
            handle = SimpleNamespace(
                is_cancel_requested=True,
                succeed=lambda: done.append("succeed"),
                canceled=lambda: done.append("canceled"),
                abort=lambda: done.append("abort"),
            )
            self.result = report(handle), done

    goal = Racing()
    end_goal(goal, Result.CANCELLED, "cancelled")
    result, done = goal.result
    assert (result.code, done) == (Result.CANCELLED, ["canceled"])
