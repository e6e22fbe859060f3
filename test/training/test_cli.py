# SPDX-License-Identifier: Apache-2.0
"""The commands, as typed."""

import json

import pytest
from typer.testing import CliRunner

from qwen_vla_ros.cli import app
from qwen_vla_ros.training import demonstrations

runner = CliRunner()


def run(*arguments):
    return runner.invoke(app, [str(argument) for argument in arguments])


def test_data_make(tmp_path):
    result = run(
        "data", "make", "--embodiment", "tiago_base", "--samples", 3, "--out", tmp_path / "tiago_base"
    )
    assert result.exit_code == 0, result.output
    assert "3 pictures of tiago_base in 1 shards" in result.output
    assert json.loads((tmp_path / "tiago_base" / "meta.json").read_text())["samples"] == 3
    assert (tmp_path / "tiago_base" / "statistics.json").is_file()


@pytest.mark.parametrize(("states", "scenes"), [(1, 4), (3, 2)])
def test_scenes_are_as_many_as_the_states_in_each_leave(states, scenes, tmp_path):
    made = run(
        *("data", "make", "--embodiment", "tiago_base", "--samples", 4, "--out", tmp_path),
        *("--states-per-scene", states),
    )
    assert made.exit_code == 0, made.output
    _, arrays = demonstrations.read_all(tmp_path)
    assert len(set(arrays["scenes"].tolist())) == scenes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data", "make", "--embodiment", "nobody", "--out", "x"), "'nobody'"),
        (("train", "--config", "none.yaml", "--data", "x", "--out", "x"), "none.yaml: cannot be read"),
        (("train", "--data", "x", "--dataset", "x", "--out", "x"), "expected one of them"),
        (
            ("train", "--data", "x", "--lora", "--embodiment", "so101", "--out", "x"),
            "found --embodiment and --lora with --data, expected with --dataset only",
        ),
        (("train", "--out", "x"), "expected one of them"),
        (("train", "--dataset", "x", "--out", "x"), "--embodiment: missing"),
        (("train", "--dataset", "x", "--embodiment", "so101", "--out", "y"), "x: no such folder"),
    ],
)
def test_faults_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_a_run_is_not_overwritten(tmp_path):
    (tmp_path / "state.pt").touch()
    result = run("train", "--config", _shipped(), "--data", tmp_path, "--out", tmp_path)
    assert result.exit_code == 1
    assert "a run is here; pass --resume" in result.stderr


def _shipped():
    from qwen_vla_ros.resources import config_directory

    return config_directory() / "training" / "tiny.yaml"
