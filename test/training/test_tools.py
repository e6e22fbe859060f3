# SPDX-License-Identifier: Apache-2.0
"""The two scripts that make and judge the shipped checkpoint, as far as they go without hours of work."""

import re
import subprocess
from pathlib import Path

import pytest

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.training.evaluation import tasks_of

TOOLS = Path(__file__).parents[2] / "tools"
CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "qwen_vla_tiny"


def lines_of(script: str) -> list[tuple[list[str], str, list[str]]]:
    """Embodiments, setting and tasks of each line that names an embodiment."""
    found = []
    for line in (TOOLS / script).read_text().splitlines():
        tasks = re.findall(r"--task (\w+)", line)
        if bodies := re.findall(r"--embodiment (\w+)", line):
            setting = re.search(r"--setting (\w+)", line)
            found.append((bodies, setting.group(1) if setting else "easy", tasks))
        elif demonstrations := re.match(r"(?:easy|full|last) \w+ (easy|full|easy\S+) \d+ (\w+) \d+", line):
            found.append(([demonstrations.group(2)], demonstrations.group(1).split("+")[-1], tasks))
    return found


@pytest.mark.parametrize(("script", "count"), [("make_checkpoint", 34), ("evaluate_checkpoint", 29)])
def test_tasks_that_a_script_names_exist(script, count):
    lines = lines_of(script)
    assert len(lines) == count
    for bodies, setting, tasks in lines:
        for body in bodies:
            assert set(tasks) <= set(tasks_of(load_embodiment(body), setting)), (body, tasks)


def evaluate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TOOLS / "evaluate_checkpoint", *arguments], capture_output=True, text=True, timeout=60
    )


def test_results_of_other_weights_or_scenes_are_not_mixed(tmp_path):
    (tmp_path / "subject").write_text("weights 0123456789ab, seed 7, 100 and 30 episodes\n")
    ended = evaluate(CHECKPOINT, tmp_path, "7")
    assert ended.returncode == 1
    found, expected = ended.stderr.split(", expected those of ")
    assert found.endswith(f"{tmp_path} holds results of weights 0123456789ab, seed 7, 100 and 30 episodes")
    assert re.match(r"weights \w{12}, seed 7, ", expected)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["subject"]


def test_a_folder_without_weights_is_refused(tmp_path):
    ended = evaluate(tmp_path / "none", tmp_path / "out", "7")
    assert ended.returncode != 0
    assert str(tmp_path / "none") in ended.stderr
    assert not (tmp_path / "out").exists()
