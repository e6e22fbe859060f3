# SPDX-License-Identifier: Apache-2.0
"""Pictures of recorded episodes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from qwen_vla_ros.demo import report
from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.nodes.recording import Chunk, Episode, Series, figures


def _arm_episode():
    embodiment = load_embodiment("franka_panda")
    random = np.random.default_rng(0)
    episode = Episode("franka_panda", "reach the red cube", seed=3, success=True, elapsed=1.0, distance=0.01)
    for group in embodiment.actions:
        width = len(group.joints)
        episode.measured[group.name] = series = Series()
        episode.commanded[group.name] = commands = Series()
        for time in np.linspace(0.0, 1.0, 20):
            series.add(time, np.full(width, time))
            commands.add(time, np.full(width, time + 0.01))
    episode.chunks.append(Chunk(0.0, 0.1, random.normal(size=(16, embodiment.layout.count))))
    episode.views["ego"] = random.integers(0, 255, (128, 128, 3), dtype=np.uint8)
    return embodiment, episode


def test_animation_has_every_frame(tmp_path):
    frames = list(np.random.default_rng(0).integers(0, 255, (8, 90, 120, 3), dtype=np.uint8))
    path = tmp_path / "arm.gif"
    report.write_animation(frames, ["reach the red cube"] * 8, path, rate=8.0)
    with Image.open(path) as picture:
        assert picture.n_frames == 8
        assert picture.size[0] == 120
        assert picture.info["duration"] in (120, 130)


def test_animation_without_frames_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no frames"):
        report.write_animation([], [], tmp_path / "a.gif", 8.0)


def test_plot_of_an_arm(tmp_path):
    embodiment, episode = _arm_episode()
    report.write_plot(episode, embodiment, tmp_path / "arm.png")
    with Image.open(tmp_path / "arm.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 100


def test_plot_of_a_base(tmp_path):
    embodiment = load_embodiment("tiago_base")
    episode = Episode("tiago_base", "drive to the red pillar", seed=0, elapsed=2.0)
    (group,) = embodiment.actions
    episode.measured[group.name] = poses = Series()
    for time in np.linspace(0.0, 2.0, 20):
        poses.add(time, np.array([time, 0.1 * time, 0.05]))
    episode.chunks.append(Chunk(0.5, 0.5, np.cumsum(np.full((8, 3), 0.1), axis=0)))
    report.write_plot(episode, embodiment, tmp_path / "base.png")
    assert (tmp_path / "base.png").stat().st_size > 10_000


def test_summary_lists_every_episode(tmp_path):
    _, episode = _arm_episode()
    report.write_summary({"franka_panda": ([episode], figures([episode]))}, tmp_path / "summary.json")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["franka_panda"]["figures"]["successes"] == 1
    assert summary["franka_panda"]["episodes"][0]["instruction"] == "reach the red cube"
