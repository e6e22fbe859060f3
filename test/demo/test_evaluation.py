# SPDX-License-Identifier: Apache-2.0
"""`qwen-vla eval`: one entry per body and task, the report, the same scenes through the nodes."""

from __future__ import annotations

import json
import os

import pytest
from PIL import Image
from typer.testing import CliRunner

from qwen_vla_ros.cli import app
from qwen_vla_ros.demo.evaluation_report import write_report
from qwen_vla_ros.training.results import EpisodeResult, Evaluation, make_entry, read_evaluation


def run(*arguments):
    return CliRunner().invoke(app, ["eval", *(str(argument) for argument in arguments)])


def test_an_entry_for_each_body_and_control(tmp_path):
    path, report = tmp_path / "sub" / "results.json", tmp_path / "report"
    bodies = (
        "--embodiment",
        "unitree_g1",
        "--embodiment",
        "franka_panda",
        "--task",
        "touch",
        "--task",
        "reach",
    )
    controls = ("--control", "none", "--control", "expert")
    found = run(*bodies, *controls, "--episodes", 1, "--seed", 70, "--json", path)
    assert found.exit_code == 0, found.output
    assert "franka_panda reach: 1/1 = 100 % (95 %: 21 to 100 %)" in found.output
    entries = json.loads(path.read_text())["entries"]
    assert [(e["embodiment"], e["task"], e["control"]) for e in entries] == [
        ("unitree_g1", "touch", "none"),
        ("unitree_g1", "touch", "expert"),
        ("franka_panda", "reach", "none"),
        ("franka_panda", "reach", "expert"),
    ]
    assert all(len(e["episodes"]) == 1 and e["episodes"][0]["scene"] == 70 for e in entries)
    again = run(path, "--report", report)
    assert again.exit_code == 0, again.output
    text = (report / "README.md").read_text()
    assert "| franka_panda | reach | easy | plain | lock-step | 70 | 1/1 |" in text
    assert "| expert | unitree_g1 |" in text
    with Image.open(report / "frames.jpg") as frames:
        assert frames.size[0] > 3 * 240
    assert (report / "success.png").is_file()


def entry(through, successes, **facts):
    """Of scenes from 70 on, one for each of `successes`."""
    episodes = [
        EpisodeResult(70 + k, "place it", success, success, 0.1, 5.0, 90.0, "")
        for k, success in enumerate(successes)
    ]
    usual = {"embodiment": "franka_panda", "task": "place", "setting": "full", "wording": "seen"}
    facts = {**usual, "control": "none", "seed": 70, "latency": 0.0, **facts}
    return make_entry(episodes, through=through, **facts)


def test_lock_step_and_nodes_are_compared_in_the_scenes_that_both_had(tmp_path):
    entries = [
        entry("ros", [True, False, True, False]),
        entry("lock-step", [True, True, False, True, True, True]),
        entry("ros", [True], task="push"),
        entry("lock-step", [False], wording="held-out"),
    ]
    text = write_report([Evaluation("some", entries=entries)], tmp_path).read_text()
    table = text.partition("## Through the nodes")[2].partition("## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| franka_panda")]
    assert rows == ["| franka_panda | place | full | seen | 4 | 0 ms | 3 | 2 | -25 | 2 | 1 |"]


def test_results_of_other_latencies_are_told_apart_and_stand_by_body_and_task(tmp_path):
    entries = [
        entry("ros", [True]),
        entry("lock-step", [False], latency=0.15),
        entry("lock-step", [True], wording="held-out"),
        entry("lock-step", [True]),
        entry("lock-step", [True], embodiment="aloha_viperx", task="reach_with_arm"),
    ]
    text = write_report([Evaluation("some", entries=entries)], tmp_path).read_text()
    table = text.partition("## Success")[2].partition("## ")[0]
    rows = [line.split(" | ")[:7] for line in table.splitlines() if line.endswith(" |")][1:]
    assert [(row[0][2:], row[3], row[4], row[6]) for row in rows] == [
        ("aloha_viperx", "seen", "lock-step", "1/1"),
        ("franka_panda", "seen", "lock-step", "1/1"),
        ("franka_panda", "seen", "lock-step, 150 ms", "0/1"),
        ("franka_panda", "seen", "ros", "1/1"),
        ("franka_panda", "held-out", "lock-step", "1/1"),
    ]
    table = text.partition("## Through the nodes")[2].partition("## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| franka_panda")]
    assert rows == [
        "| franka_panda | place | full | seen | 1 | 0 ms | 1 | 1 | +0 | 0 | 0 |",
        "| franka_panda | place | full | seen | 1 | 150 ms | 0 | 1 | +100 | 0 | 1 |",
    ]


def test_without_runs_through_the_nodes_there_is_no_comparison(tmp_path):
    text = write_report([Evaluation("some", entries=[entry("lock-step", [True])])], tmp_path).read_text()
    assert "Through the nodes" not in text


@pytest.mark.usefixtures("ros_environment")
def test_the_same_scene_through_the_nodes(tmp_path, monkeypatch):
    # The command takes a domain for its process, which is this one.
    monkeypatch.setenv("ROS_DOMAIN_ID", os.environ["ROS_DOMAIN_ID"])
    path = tmp_path / "results.json"
    found = run("--ros", "--embodiment", "tiago_base", "--episodes", 1, "--seed", 70, "--json", path)
    assert found.exit_code == 0, found.output
    (entry,) = read_evaluation(path).entries
    assert (entry.through, entry.successes) == ("ros", 1)
    (episode,) = entry.episodes
    assert (episode.scene, len(episode.frames)) == (70, 3)
    assert 0 < episode.rms_jerk < 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--control", "luck"), "expected one of none, wrong-object, blank, untrained, expert"),
        (("--checkpoint", "nowhere"), "nowhere"),
        (("--control", "expert", "--task", "juggle"), "no task 'juggle', expected one of tiago_base: drive"),
        (("--wording", "rude"), "--wording: found 'rude', expected one of plain, seen, held-out"),
        (("--setting", "hard"), "setting: found 'hard', expected one of easy, full"),
        (("--ros", "--control", "expert"), "--ros: controls"),
        (("--convention", "tiago_base"), "expected two embodiments, A/B"),
        (("results.json",), "expected --report as well"),
    ],
)
def test_faults_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run("--embodiment", "tiago_base", *arguments)
    assert found.exit_code == 1
    assert message in found.stderr
    assert "Traceback" not in found.output


def test_conventions_of_a_task_that_is_named(tmp_path):
    path = tmp_path / "results.json"
    pair = "--convention", "franka_panda_wrist/franka_panda_delta"
    found = run(*pair, "--setting", "full", "--task", "reach", "--episodes", 1, "--seed", 70, "--json", path)
    assert found.exit_code == 0, found.output
    (swap,) = read_evaluation(path).conventions
    assert (swap.task, swap.trials) == ("reach", 2)
    found = run(*pair, "--setting", "full", "--task", "juggle")
    assert found.exit_code == 1
    assert "no task 'juggle', expected one of franka_panda_wrist: reach" in found.stderr


def test_a_robot_without_a_task_that_can_be_judged():
    found = run("--embodiment", "widowx", "--control", "expert")
    assert found.exit_code == 1
    assert "widowx: its simulation has no task with a goal" in found.stderr
