# SPDX-License-Identifier: Apache-2.0
"""What is short runs first, what is long in its turn."""

from __future__ import annotations

import os
import threading

import pytest

from qwen_vla_ros.nodes.priority import go_first, in_turn


def scheduling():
    return os.sched_getscheduler(0), os.sched_getparam(0).sched_priority


def in_a_thread(work):
    """What `work` returns or raises, in a thread of its own: priorities belong to threads."""
    found = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def prioritised(work):
    def run():
        go_first(7)
        return work()

    try:
        return in_a_thread(run)
    except PermissionError:
        pytest.skip("real-time priorities are not allowed here")


def test_in_turn_and_first_again():
    def work():
        before = scheduling()
        with in_turn():
            meanwhile, child = scheduling(), in_a_thread(scheduling)
        return before, meanwhile, child, scheduling()

    first, ordinary = (os.SCHED_FIFO, 7), (os.SCHED_OTHER, 0)
    assert prioritised(work) == (first, ordinary, ordinary, first)


def test_first_again_after_a_model_that_fails():
    def work():
        with pytest.raises(RuntimeError), in_turn():
            raise RuntimeError("model")
        return scheduling()

    assert prioritised(work) == (os.SCHED_FIFO, 7)


def test_without_a_priority_nothing_changes():
    def work():
        with in_turn():
            return scheduling()

    assert in_a_thread(work) == scheduling()
