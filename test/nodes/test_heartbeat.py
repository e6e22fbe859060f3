# SPDX-License-Identifier: Apache-2.0
"""When a policy counts as lost."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from qwen_vla_ros.nodes.heartbeat import Heartbeat


class Ear:
    """A heartbeat watched every 10 ms, with a clock of its own."""

    def __init__(self, lease: float = 0.05):
        self.now = 0.0
        self.heartbeat = Heartbeat(0.5, lease, 0.01, lambda: self.now)

    def listen(self, duration: float, beats: bool) -> float:
        """Time until the policy counts as lost, at most `duration` [s]."""
        begin = self.now
        while self.now < begin + duration - 1e-9:
            self.now += 0.01
            self.heartbeat.look()
            if beats:
                self.heartbeat.hear()
            elif self.heartbeat.silence:
                break
        return self.now - begin


@pytest.fixture(params=[0.05, 0.3])
def lease(request):
    return request.param


@pytest.fixture
def ear(lease):
    ear = Ear(lease)
    assert "heard never" in ear.heartbeat.silence
    ear.heartbeat.count(1)
    ear.listen(1.0, True)
    assert not ear.heartbeat.silence
    return ear


def test_a_dead_process_is_lost_at_once_and_a_silent_one_after_its_patience(ear, lease):
    ear.heartbeat.count(0)
    assert ear.listen(2.0, False) == pytest.approx(lease, abs=0.011)
    assert "nor a sign of life" in ear.heartbeat.silence
    ear.heartbeat.count(1)
    assert not ear.heartbeat.silence
    assert ear.listen(2.0, False) == pytest.approx(0.5 - lease, abs=0.011)
    assert "its process lives" in ear.heartbeat.silence
    ear.heartbeat.hear()
    assert not ear.heartbeat.silence


def test_a_sign_of_life_that_is_late_is_nothing_while_heartbeats_come(ear):
    ear.heartbeat.count(0)
    assert ear.listen(2.0, True) == pytest.approx(2.0)
    assert not ear.heartbeat.silence


def test_without_liveliness_only_the_heartbeat_counts():
    ear = Ear()
    ear.listen(1.0, True)
    assert ear.listen(2.0, False) == pytest.approx(0.5, abs=0.011)
    assert "is its process running" in ear.heartbeat.silence


def test_what_the_executor_slept_through_is_no_silence(ear, lease):
    ear.heartbeat.count(0)  # the lease passed in its sleep, too
    ear.now += 3.0
    ear.heartbeat.look()
    assert not ear.heartbeat.silence
    # What waited is heard now; if there is nothing, then soon.
    assert ear.listen(2.0, False) < lease
