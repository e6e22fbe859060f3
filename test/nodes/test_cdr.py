# SPDX-License-Identifier: Apache-2.0
"""Bytes that are patched or read in part are those that rclpy makes, and mean what rclpy reads."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from builtin_interfaces.msg import Time
from qwen_vla_ros.msg import PolicyStatus
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from qwen_vla_ros.motion.follower import JointCommand
from qwen_vla_ros.nodes import cdr, controllers
from qwen_vla_ros.nodes.cdr import JointStateReader, Mould, PolicyStatusReader

NAMES = ("a", "arm/shoulder", "elbow_2", "wrist_rotate", "schulter_ä")
VALUES = (0.0, -0.0, 1.0, -np.pi, 1e-300, 1e6, 5e-324, np.inf, np.nan)


def written(kind: str, names, period: float = 0.004):
    """The writer of a group, and what it publishes."""
    sent: list = []
    publisher = SimpleNamespace(
        topic_name="t", publish=sent.append, handle=SimpleNamespace(publish_raw=sent.append)
    )
    node = SimpleNamespace(create_publisher=lambda *_: publisher)
    group = SimpleNamespace(
        name="part",
        joints=tuple(names),
        frame="base",
        tip="tool",
        controller=SimpleNamespace(type=kind, topic="t", names=None),
    )
    return controllers.TopicWriter(node, group, period), controllers._Messages(group, period), sent


@pytest.mark.parametrize("kind", controllers._MOULDED)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_patched_message_is_the_one_that_rclpy_serialises(kind, count):
    writer, messages, sent = written(kind, NAMES[:count])
    message_type, make = controllers._TOPICS[kind]
    rng = np.random.default_rng(count)
    for _ in range(50):
        position = rng.choice(VALUES, count) if rng.random() < 0.5 else rng.normal(size=count)
        stamp = Time(sec=int(rng.integers(-(2**31), 2**31)), nanosec=int(rng.integers(0, 2**32)))
        before = len(sent)
        writer._said = -np.inf  # say it, held or not
        writer.write(JointCommand("part", position, np.zeros(count)), stamp)
        (data,) = sent[before:]
        assert isinstance(data, bytes)
        message = make(messages, JointCommand("part", position, np.zeros(count)), stamp)
        # Not their bytes: padding is whatever was in memory. Written out, NaN is like NaN.
        assert len(data) == len(serialize_message(message))
        assert repr(deserialize_message(data, message_type)) == repr(message)


def test_a_command_of_another_shape_is_refused():
    writer, _, sent = written("forward_command", NAMES[:2])
    with pytest.raises(ValueError, match=r"found float64 \(3,\), expected float64 \(2,\)"):
        writer.write(JointCommand("part", np.zeros(3), np.zeros(3)), None)
    with pytest.raises(ValueError, match="found int64"):
        writer.write(JointCommand("part", np.zeros(2, dtype=int), np.zeros(2)), None)
    assert not sent


def test_messages_that_are_no_mould_are_refused():
    with pytest.raises(ValueError, match="0 times side by side"):
        Mould(lambda numbers, stamp: Float64MultiArray(data=numbers[::-1].tolist()), 3)
    with pytest.raises(ValueError, match="2 times side by side"):
        Mould(lambda numbers, stamp: JointState(position=numbers.tolist(), effort=numbers.tolist()), 3)
    lengths = iter((3, 4))
    with pytest.raises(ValueError, match="more than their numbers"):
        Mould(lambda numbers, stamp: JointState(position=numbers.tolist(), effort=[0.0] * next(lengths)), 3)


def state_of(names, frame="", sec=5, nanosec=7, **fields) -> JointState:
    message = JointState(name=list(names), **fields)
    message.header.frame_id = frame
    message.header.stamp.sec, message.header.stamp.nanosec = sec, nanosec
    return message


def as_told(joints) -> tuple:
    stamp = joints.header.stamp
    return stamp.sec, stamp.nanosec, tuple(joints.name), np.asarray(joints.position, dtype=float).tobytes()


@pytest.fixture
def deserialised(monkeypatch):
    """How often a message was taken apart as a whole."""
    calls = []
    whole = cdr.deserialize_message
    monkeypatch.setattr(cdr, "deserialize_message", lambda *a: calls.append(1) or whole(*a))
    return calls


def test_joint_states_are_read_as_rclpy_reads_them(deserialised):
    rng, reader = np.random.default_rng(0), JointStateReader()
    for _ in range(400):
        count = int(rng.integers(0, len(NAMES) + 1))
        names = list(rng.permutation(NAMES))[:count]
        size = count if rng.random() < 0.8 else int(rng.integers(0, 7))
        frame = str(rng.choice(["", "base", "world_1"]))
        more = {"velocity": rng.normal(size=size).tolist()} if rng.random() < 0.5 else {}
        for _ in range(int(rng.integers(1, 4))):
            message = state_of(
                names, frame, int(rng.integers(-5, 2**31)), int(rng.integers(0, 10**9)),
                position=rng.choice(VALUES, size).tolist(), **more
            )  # fmt: skip
            assert as_told(reader(serialize_message(message))) == as_told(message)
    assert len(deserialised) < 600


def test_numbers_alone_are_read_until_something_else_changes(deserialised):
    reader = JointStateReader()

    def told(*arguments, **fields) -> int:
        message = state_of(*arguments, **fields)
        assert as_told(reader(serialize_message(message))) == as_told(message)
        return len(deserialised)

    # Names and frames without padding behind them, which may be anything.
    three, frame = ("abc", "def", "ghi"), "abc"
    two = three[:2]
    assert [told(two, frame, sec=k, position=[0.1 * k, 1.0]) for k in range(5)] == [1] * 5
    # Velocities and efforts are not used, and may come and go.
    assert told(two, frame, position=[1.0, 2.0], velocity=[3.0, 4.0]) == 1
    assert told(two[::-1], frame, position=[1.0, 2.0]) == 2
    assert told(two, frame, position=[3.0, 2.0]) == 2
    assert told(two, "xyz", position=[1.0, 2.0]) == 3
    assert told(two, frame, position=[1.0]) == 4
    assert told(three, frame, position=[1.0, 2.0, 3.0]) == 5
    assert told(three, frame, position=[np.nan, 2.0, 3.0]) == 5
    assert told(two, frame, position=[]) == 6
    assert told(two, frame, position=[]) == 7


def test_what_stands_in_the_padding_does_not_matter(deserialised):
    message = state_of(("abc", "d", "efghi"), "base_link", position=[1.0, 2.0, 3.0])
    data, reader = serialize_message(message), JointStateReader()
    padding = []
    for place in range(4, len(data)):
        changed = bytearray(data)
        changed[place] ^= 0xFF
        try:
            if deserialize_message(bytes(changed), JointState) == message:
                padding.append(place)
        except Exception:
            continue
    assert len(padding) > 4
    del deserialised[:]
    counts = []
    for _ in range(3):
        for place in padding:
            changed = bytearray(data)
            changed[place] = 0xAB
            assert as_told(reader(bytes(changed))) == as_told(message)
        counts.append(len(deserialised))
    # Each kind of padding is learnt once.
    assert 1 < counts[0] <= len(padding)
    assert counts[1:] == counts[:1] * 2


def test_a_message_that_is_torn_is_left_to_rclpy(deserialised):
    reader = JointStateReader()
    data = serialize_message(state_of(NAMES[:2], position=[1.0, 2.0]))
    reader(data)
    for end in (len(data) - 20, 30, 12):
        with pytest.raises(RuntimeError, match="deserialize"):
            reader(data[:end])
    assert len(deserialised) == 4
    other_order = bytes([0, 1 - data[1]]) + data[2:]
    with pytest.raises(RuntimeError, match="deserialize"):
        reader(other_order)


def test_heartbeats_are_read_as_rclpy_reads_them(deserialised):
    rng, reader = np.random.default_rng(1), PolicyStatusReader()
    for _ in range(300):
        message = PolicyStatus(
            state=int(rng.integers(0, 4)),
            code=int(rng.choice([0, 201])),
            message=str(rng.choice(["", "camera ego: nothing", "ümlaut"])),
            embodiment=str(rng.choice(["panda", "aloha_viperx"])),
            checkpoint=str(rng.choice(["", "tiny"])),
            task_id=int(rng.integers(0, 2**63)),
        )
        message.header.frame_id = str(rng.choice(["", "x"]))
        for chunks in range(3):
            message.chunks, message.inference_time = chunks, float(rng.normal())
            message.header.stamp.sec = chunks
            message.views, message.frames, message.ages = ["ego"], [chunks], [0.1 * chunks]
            data, end = serialize_message(message), cdr._task_id_end(message)
            if chunks == 0:
                first = data
            # What CDR skips to align is whatever was in memory: here the same in all three.
            word = reader(data[: cdr.STAMPED] + first[cdr.STAMPED : end] + data[end:])
            assert word == tuple(getattr(message, name) for name in word._fields)
    assert len(deserialised) == 300
