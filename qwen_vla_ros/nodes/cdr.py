# SPDX-License-Identifier: Apache-2.0
"""Messages that differ from the last one in their numbers alone, as bytes: the rest is made, or read, once.

To make messages of Python objects, and to take them apart, costs a fast loop as much as all that it computes.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from rclpy.serialization import deserialize_message, serialize_message
from rclpy.time import Time
from sensor_msgs.msg import JointState

from qwen_vla_ros.msg import PolicyStatus

# What CDR in this machine's byte order begins with.
NATIVE = b"\x00\x01" if sys.byteorder == "little" else b"\x00\x00"
# Bytes before what is aligned; and of them and a header's stamp.
PREFIX, STAMPED = 4, 12

_STAMP, _TASK_ID = struct.Struct("=iI"), struct.Struct("=Q")


class Mould:
    """Serialised messages of one shape: numbers that stand side by side, and stamps of one time.

    Args:
        make: a message of `count` numbers, shape (count,), and of a stamp message.
        count: of the numbers.

    Raises:
        ValueError: the numbers do not stand side by side as they are, or more than numbers and stamp differs.
    """

    def __init__(self, make: Callable[[np.ndarray, Any], Any], count: int):
        first, second = ((np.arange(1.0, count + 1) + share) * np.pi for share in (0.25, 0.75))
        stamps = [Time(nanoseconds=s * 10**9 + n).to_msg() for s, n in ((71234567, 89101112), (3, 14))]
        found = serialize_message(make(first, stamps[0]))
        head, *tails = found.split(first.tobytes())
        if count < 1 or len(tails) != 1:
            raise ValueError(f"{count} numbers stand {len(tails)} times side by side, expected once")
        # Between its stamps, and what follows the numbers.
        self._parts = head.split(_pack(stamps[0]))
        self._tail, self._size, self._count = tails[0], first.nbytes, count
        # Not by their bytes: what CDR skips to align is whatever was in memory.
        message = make(second, stamps[1])
        if deserialize_message(self.fill(second, stamps[1]), type(message)) != message:
            raise ValueError("messages differ in more than their numbers and stamp")

    def fill(self, numbers: np.ndarray, stamp: Any) -> bytes:
        """A serialised message.

        Args:
            numbers: shape (count,), float64.
            stamp: of the message; any where it has none.

        Raises:
            ValueError: not as many numbers, or of another type.
        """
        data = numbers.tobytes()
        if len(data) != self._size or numbers.dtype != np.float64:
            raise ValueError(f"found {numbers.dtype} {numbers.shape}, expected float64 ({self._count},)")
        parts = self._parts
        head = parts[0] if len(parts) == 1 else _pack(stamp).join(parts)
        return head + data + self._tail


def _pack(stamp: Any) -> bytes:
    return _STAMP.pack(stamp.sec, stamp.nanosec)


class Stamp(NamedTuple):
    """As builtin_interfaces/Time has them."""

    sec: int
    nanosec: int


class Header(NamedTuple):
    """As far as it is used."""

    stamp: Stamp


class Joints(NamedTuple):
    """What is used of a JointState; position has shape (n,)."""

    header: Header
    name: tuple[str, ...]
    position: np.ndarray


class _Known:
    """What messages say that are the same from behind their stamp to an end.

    More than one may say the same: what CDR skips to align is whatever was in memory.
    """

    MOST = 64

    def __init__(self) -> None:
        self._end, self._said = 0, {}

    def get(self, data: bytes) -> Any:
        """What was learnt of a serialised message that was the same, or None."""
        return self._said.get(data[STAMPED : self._end]) if data[:2] == NATIVE else None

    def learn(self, data: bytes, end: int, says: Any) -> None:
        if end != self._end or len(self._said) >= self.MOST:
            self._end, self._said = end, {}
        self._said[data[STAMPED:end]] = says


class JointStateReader:
    """Reads serialised JointStates; where one names what one before did, only its numbers."""

    def __init__(self) -> None:
        # By what stands between stamp and positions: whose they are, where they begin, how many they are.
        self._known = _Known()

    def __call__(self, data: bytes) -> Joints:
        known = self._known.get(data)
        if known is None:
            return self._learn(data)
        names, begin, count = known
        if len(data) < begin + 8 * count:
            return self._learn(data)
        position = np.frombuffer(data, float, count, begin)
        return Joints(Header(Stamp(*_STAMP.unpack_from(data, PREFIX))), names, position)

    def _learn(self, data: bytes) -> Joints:
        message = deserialize_message(data, JointState)
        position, names = np.asarray(message.position, dtype=float), tuple(message.name)
        begin = _positions_begin(message)
        if len(position) and data[begin : begin + position.nbytes] == position.tobytes():
            self._known.learn(data, begin, (names, begin, len(position)))
        stamp = message.header.stamp
        return Joints(Header(Stamp(stamp.sec, stamp.nanosec)), names, position)


class PolicyWord(NamedTuple):
    """What the executor uses of a PolicyStatus."""

    state: int
    code: int
    message: str
    embodiment: str
    task_id: int


class PolicyStatusReader:
    """Reads serialised PolicyStatuses; most say the same but for their stamp and figures."""

    def __init__(self) -> None:
        # By what stands between the stamp and the end of what is used.
        self._known = _Known()

    def __call__(self, data: bytes) -> PolicyWord:
        word = self._known.get(data)
        if word is None:
            message = deserialize_message(data, PolicyStatus)
            word = PolicyWord(*(getattr(message, name) for name in PolicyWord._fields))
            end = _task_id_end(message)
            if data[end - 8 : end] == _TASK_ID.pack(message.task_id):
                self._known.learn(data, end, word)
        return word


# Where fields end in CDR, from behind the prefix: what has a size is aligned by it.


def _aligned(at: int, size: int) -> int:
    return -(-at // size) * size


def _after(at: int, text: str) -> int:
    """Behind a text: its length, itself, a zero."""
    return _aligned(at, 4) + 4 + len(text.encode()) + 1


def _positions_begin(message: JointState) -> int:
    """Where in its CDR the positions of a message begin."""
    at = _aligned(_after(STAMPED - PREFIX, message.header.frame_id), 4) + 4
    for name in message.name:
        at = _after(at, name)
    return PREFIX + _aligned(_aligned(at, 4) + 4, 8)


def _task_id_end(message: PolicyStatus) -> int:
    """Where in its CDR the task of a message ends."""
    at = _after(STAMPED - PREFIX, message.header.frame_id) + 1
    at = _aligned(at, 2) + 2
    for text in (message.message, message.embodiment, message.checkpoint):
        at = _after(at, text)
    return PREFIX + _aligned(at, 8) + 8
