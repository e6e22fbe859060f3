# SPDX-License-Identifier: Apache-2.0
"""The commands, as typed."""

import json

import pytest
from typer.testing import CliRunner

from qwen_vla_ros.cli import app

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


def test_evaluate_writes_json(tmp_path):
    path = tmp_path / "sub" / "result.json"
    result = run("eval", "--embodiment", "tiago_base", "--episodes", 1, "--control", "expert", "--json", path)
    assert result.exit_code == 0, result.output
    assert "tiago_base drive: 1/1 = 100 % (95 %: 21 to 100 %)" in result.output
    content = json.loads(path.read_text())
    assert (content["successes"], content["control"], len(content["episodes"])) == (1, "expert", 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data", "make", "--embodiment", "nobody", "--out", "x"), "'nobody'"),
        (("eval", "--embodiment", "tiago_base", "--control", "luck"), "expected one of none, wrong-colour"),
        (("eval", "--embodiment", "tiago_base", "--checkpoint", "nowhere"), "nowhere"),
        (
            ("eval", "--embodiment", "tiago_base", "--control", "expert", "--task", "juggle"),
            "no task 'juggle'",
        ),
        (("eval", "--embodiment", "widowx", "--control", "expert"), "no simulated body"),
        (("train", "--config", "none.yaml", "--data", "x", "--out", "x"), "none.yaml: cannot be read"),
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
