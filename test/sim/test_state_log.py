# SPDX-License-Identifier: Apache-2.0
"""Recorded states: one file per episode, drawn again as they were."""

from __future__ import annotations

import numpy as np

from qwen_vla_ros.sim.state_log import StateLog, StateRecorder


def test_one_file_per_episode(tmp_path):
    recorder = StateRecorder(tmp_path / "states", period=0.1)
    recorder.begin("reach", 3)
    for time in (0.0, 0.05, 0.1, 0.2):
        recorder.add(time, np.full(2, time))
    recorder.begin("reach", 4)
    recorder.add(0.5, np.zeros(2))
    recorder.end()
    recorder.end()
    files = sorted((tmp_path / "states").iterdir())
    assert [file.name for file in files] == ["episode_0000.npz", "episode_0001.npz"]
    first, second = map(StateLog.load, files)
    assert (first.task, first.seed, second.seed) == ("reach", 3, 4)
    np.testing.assert_allclose(first.times, [0.0, 0.1, 0.2])
    np.testing.assert_allclose(first.qpos[:, 0], first.times)


def test_kept_states_do_not_follow_the_array_they_came_from(tmp_path):
    recorder = StateRecorder(tmp_path, period=0.1)
    recorder.begin("reach", 0)
    qpos = np.zeros(2)
    recorder.add(0.0, qpos)
    qpos[:] = 7.0
    recorder.end()
    np.testing.assert_array_equal(StateLog.load(tmp_path / "episode_0000.npz").qpos, [[0.0, 0.0]])
