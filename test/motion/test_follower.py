# SPDX-License-Identifier: Apache-2.0
"""Whole bodies: whatever chunks come, commands stay within limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.motion.follower import ChunkRefused, Follower, UnsupportedGroup

PANDA = load_embodiment("franka_panda")
FAST = PANDA.model_copy(update={"command_rate": 250.0})
TIAGO = load_embodiment("tiago_base")
WIDOWX = load_embodiment("widowx")


class Robot:
    """A robot that does as it is told, and remembers."""

    def __init__(self, embodiment):
        self.follower = Follower(embodiment)
        self.body, self.now = embodiment, 100.0
        self.joints = np.array([embodiment.home[joint] for joint in embodiment.joints])
        self.pose = np.zeros(3)
        self.history: list[list] = []
        self.measure()
        self.follower.start(self.now)

    def measure(self) -> None:
        self.follower.joints.add(self.now, self.joints)
        self.follower.pose.add(self.now, self.pose)

    def obey(self, commands) -> None:
        period = self.follower.period
        self.history.append(commands)
        positions = [command.position for command in commands if hasattr(command, "position")]
        if positions:
            self.joints = np.concatenate(positions)
        else:
            v, w = commands[0].velocity
            self.pose = self.pose + period * np.array([v * np.cos(self.pose[2]), v * np.sin(self.pose[2]), w])
        self.now += period
        self.measure()

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / self.follower.period)):
            self.obey(self.follower.step(self.now))

    def stop(self) -> float:
        began = self.now
        while not self.follower.resting:
            self.obey(self.follower.brake())
        return self.now - began

    def check(self) -> None:
        if not self.history:
            return
        for index, group in enumerate(self.body.actions):
            if self.body.joints:
                limits = group.limits
                rows = np.array([commands[index].position for commands in self.history])
                low, high = limits.position.T
                assert (rows >= low - 1e-5).all()
                assert (rows <= high + 1e-5).all()
                speeds = np.diff(rows, axis=0) / self.follower.period
                bound, acceleration = limits.velocity, limits.acceleration
            else:
                speeds = np.array([commands[index].velocity for commands in self.history])
                limits = group.limits
                bound = np.array([limits.linear.velocity, limits.angular.velocity])
                acceleration = np.array([limits.linear.acceleration, limits.angular.acceleration])
            assert np.isfinite(speeds).all()
            assert (np.abs(speeds) <= bound * (1 + 1e-5)).all()
            change = np.diff(speeds, axis=0) / self.follower.period
            assert (np.abs(change) <= acceleration * (1 + 1e-4) + 1e-6).all()
            jerk = limits.jerk if self.body.joints else np.array([limits.linear.jerk, limits.angular.jerk])
            bend = np.abs(np.diff(change, axis=0)) / self.follower.period
            assert (bend <= jerk * (1 + 1e-4) + 0.1).all()


numbers = st.one_of(st.floats(-10, 10), st.sampled_from([0.0, np.nan, np.inf, -np.inf, 1e12]))
# Mostly bodies of sound numbers: a chunk with a NaN is refused whole and exercises little.
chunks = st.tuples(
    st.integers(0, 2**31),  # seed of the values
    st.floats(0.0, 5.0),  # their size
    st.one_of(st.none(), numbers),  # a value put somewhere
    st.floats(-0.5, 3.0),  # capture to arrival [s]
    st.floats(0.0, 1.0),  # time until the next chunk [s]
    st.booleans(),  # sent twice
    st.sampled_from([None, None, None, "row", "column", "empty"]),  # what is wrong with its shape
    st.booleans(),  # a stop and a start after it
    st.one_of(st.just(0.0), st.floats(-5.0, 5.0)),  # the clock jumps
    st.sampled_from([1.0, 1.0, 1.0, 0.0, -1.0, 0.5, 1e300, np.nan]),  # step, by what it should be
)


@pytest.mark.parametrize("name", ["franka_panda", "aloha_viperx", "unitree_g1"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), size=st.floats(0.1, 3.0), moving=st.floats(0.01, 0.5))
def test_rests_within_the_ramp_that_is_allowed_wherever_it_begins(name, seed, size, moving):
    robot = Robot(load_embodiment(name))
    body, rng = robot.body, np.random.default_rng(seed)
    for sequence in range(2):
        rows = robot.joints + size * rng.normal(size=(body.horizon, body.layout.count))
        robot.follower.offer(rows, robot.now, 1 / body.control_rate, robot.now, sequence)
        robot.run(moving)
    assert robot.stop() <= 0.2 + robot.follower.period + 1e-9
    robot.check()


@pytest.mark.parametrize("body", [PANDA, FAST], ids=["panda", "panda at 250 Hz"])
def test_what_is_prepared_between_two_steps_is_what_a_step_would_plan(body, monkeypatch):
    robots = [Robot(body) for _ in range(2)]
    plans = []
    tracker = robots[1].follower._moved.tracker
    plan = tracker._plan_all
    monkeypatch.setattr(tracker, "_plan_all", lambda *request: plans.append(1) or plan(*request))
    rng = np.random.default_rng(2)
    for sequence in range(20):
        # Inside the limits, and with a gripper that rests: at a bound, or near rest, plans are followed for
        # one period, and the periods in which plans are made shift.
        noise = 0.03 * rng.normal(size=(body.horizon, body.layout.count))
        noise[:, -1] = 0.0
        rows = robots[0].joints + noise
        for robot, prepares in zip(robots, (False, sequence >= 3), strict=True):
            robot.follower.offer(rows, robot.now, 1 / body.control_rate, robot.now, sequence)
            for k in range(int(0.3 / robot.follower.period)):
                count = len(plans)
                robot.obey(robot.follower.step(robot.now))
                assert not prepares or sequence + k == 3 or len(plans) == count
                if prepares:
                    robot.follower.prepare(robot.now)
    for plain, prepared in zip(*(robot.history for robot in robots), strict=True):
        for one, other in zip(plain, prepared, strict=True):
            # The end of the look-ahead is where the next chunk takes over: it continues there.
            np.testing.assert_allclose(one.position, other.position, rtol=0, atol=1e-9)
    assert plans
    robots[1].stop()
    robots[1].check()


@pytest.mark.parametrize("body", [PANDA, FAST, TIAGO], ids=["panda", "panda at 250 Hz", "tiago"])
@settings(max_examples=12, deadline=None, derandomize=True)
@given(sequence=st.lists(chunks, min_size=1, max_size=8))
def test_any_sequence_of_chunks_keeps_the_limits(body, sequence):
    robot = Robot(body)
    count, step = body.layout.count, 1 / body.control_rate
    centre = robot.joints if body.joints else np.zeros(count)
    for seed, size, odd, age, wait, twice, wrong, stop, jump, pace in sequence:
        robot.now += jump
        robot.measure()
        rng = np.random.default_rng(seed)
        data = centre + size * rng.normal(size=(body.horizon, count))
        if odd is not None:
            data[rng.integers(body.horizon), rng.integers(count)] = odd
        if wrong is not None:
            data = {"row": np.vstack([data, data]), "column": data[:, 1:], "empty": data[:0]}[wrong]
        for _ in range(1 + twice):
            sound = wrong is None and (np.abs(data) <= 1e6).all() and pace == 1.0
            try:
                robot.follower.offer(data, robot.now - age, pace * step, robot.now)
            except ChunkRefused as error:
                refusal = str(error)
            else:
                refusal = ""
            assert sound or refusal, "a malformed chunk was accepted"
        robot.run(wait)
        if stop:
            robot.stop()
            robot.follower.start(robot.now)
    robot.stop()
    robot.check()


def test_chunk_start_and_previous_step_are_relative_to_the_joints_at_capture():
    for reference, data in (
        ("chunk_start", np.full((4, 8), 0.02)),
        ("previous_step", np.full((4, 8), 0.005)),
    ):
        groups = [group.model_copy(update={"reference": reference}) for group in PANDA.actions]
        body = PANDA.model_copy(update={"actions": tuple(groups)})
        robot = Robot(body)
        robot.joints[-1] = 0.01
        robot.now += 0.01
        robot.measure()
        robot.follower.start(robot.now)
        start = robot.joints.copy()
        robot.follower.offer(data, robot.now, 0.1, robot.now)
        robot.run(1.0)
        assert robot.joints == pytest.approx(start + 0.02, abs=1e-4), reference


def test_waypoints_are_relative_to_the_pose_at_capture():
    robot = Robot(TIAGO)
    robot.pose = np.array([2.0, 1.0, np.pi / 2])
    robot.now += 0.02
    robot.measure()
    robot.follower.start(robot.now)
    ahead = np.linspace(0.1, 0.8, 8)
    data = np.stack([ahead, 0 * ahead, 0 * ahead], axis=1)
    robot.follower.offer(data, robot.now, 0.5, robot.now)
    robot.run(6.0)
    assert robot.pose == pytest.approx([2.0, 1.8, np.pi / 2], abs=0.03)


def test_panda_at_the_speed_of_its_tasks_stops_within_the_time_left_by_the_heartbeat():
    robot = Robot(PANDA)
    t = 0.1 * np.arange(1, 17)[:, None]
    robot.follower.offer(robot.joints + 0.5 * t * [1, 1, 1, 1, 1, 1, 1, 0], robot.now, 0.1, robot.now)
    robot.run(0.5)
    assert robot.stop() < 0.14


def test_refuses_a_tip_without_the_joints_that_move_it():
    eef, gripper = WIDOWX.actions
    for ik, reason in (
        (None, r"group eef: kind eef_delta needs `ik`"),
        (eef.ik.model_copy(update={"urdf": None}), r"group eef: ik.urdf is missing"),
        (
            eef.ik.model_copy(update={"urdf": "/nowhere.urdf"}),
            r"/nowhere.urdf: no such file, expected a URDF",
        ),
        (
            eef.ik.model_copy(update={"joints": ("waist", "knee")}),
            r"widowx_250s.urdf: no joint knee; there are",
        ),
    ):
        actions = (eef.model_copy(update={"ik": ik}), gripper)
        with pytest.raises(UnsupportedGroup, match=reason):
            Follower(WIDOWX.model_copy(update={"actions": actions}))


def test_start_says_what_has_not_been_measured():
    with pytest.raises(ValueError, match=r"not measured yet: arm/panda_joint1"):
        Follower(PANDA).start(0.0)
