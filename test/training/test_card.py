# SPDX-License-Identifier: Apache-2.0
"""The model card: facts of the run, scores of result files."""

import pytest
from typer.testing import CliRunner

from qwen_vla_ros.cli import app
from qwen_vla_ros.model.checkpoint import load_checkpoint
from qwen_vla_ros.training.card import read_facts
from qwen_vla_ros.training.errors import TrainingError
from qwen_vla_ros.training.results import EpisodeResult, Evaluation, Swap, make_entry, wilson
from qwen_vla_ros.training.saving import write_checkpoint

STATISTICS = {"arm": {"channels": ["a/x"], "q01": [0.0], "q99": [1.0], "control_rate": 10.0, "horizon": 8}}
FACTS = {"data": ["12 pictures of arm"], "steps": 7, "seconds": 5400.0, "machine": "an abacus", "source": "x"}


@pytest.fixture
def checkpoint(micro, tmp_path):
    folder = tmp_path / "run" / "checkpoint"
    folder.parent.mkdir()
    model, processor = micro()
    write_checkpoint(folder, model, processor, STATISTICS, FACTS)
    return folder


@pytest.fixture
def results(tmp_path):
    episodes = [
        EpisodeResult(k, "reach the red cube", k > 0, True, 0.1, 2.0, 10.0, "5 cm from the goal")
        for k in range(4)
    ]
    names = ("embodiment", "task", "setting", "wording", "control", "through")
    entries = [
        make_entry(
            episodes,
            seed=0,
            latency=0.0,
            **dict(zip(names, ("arm", "reach", "easy", "plain", control, "lock-step"), strict=True)),
        )
        for control in ("none", "expert")
    ]
    swap = Swap(("arm", "b"), "reach", "easy", 0, 4, 3, {}, 0.75, wilson(3, 4), (0.1, 0.5), 7)
    path = tmp_path / "results.json"
    Evaluation("checkpoint", entries=entries, conventions=[swap]).write(path)
    return path


def test_card_of_a_run(checkpoint):
    text = (checkpoint / "README.md").read_text()
    assert text.startswith("---\nlicense: apache-2.0\n")
    assert "# run\n" in text
    assert "- 12 pictures of arm" in text
    assert "7 steps in 1.50 h on an abacus" in text
    assert "| arm | 1 | 8 | 10 Hz |" in text
    assert read_facts(checkpoint) == FACTS
    load_checkpoint(checkpoint)


def test_card_of_a_run_that_began_with_the_weights_of_another(micro, tmp_path):
    model, processor = micro()
    folder = tmp_path / "checkpoint"
    later = {"data": ["9 pictures of arm"], "steps": 3, "seconds": 1800.0, "machine": "a slide rule"}
    write_checkpoint(folder, model, processor, STATISTICS, {**later, "before": FACTS})
    text = (folder / "README.md").read_text()
    assert "2 runs, each from the weights of the one before, 2.00 h in all" in text
    first, second = text.split("### Run 1")[1].split("### Run 2")
    assert "12 pictures of arm" in first
    assert "7 steps in 1.50 h on an abacus" in first
    assert "9 pictures of arm" in second
    assert "3 steps in 0.50 h on a slide rule" in second


def test_card_with_scores_and_notes(checkpoint, results, tmp_path):
    notes = tmp_path / "notes.md"
    notes.write_text("## What it cannot do\n\nAnything else.\n")
    done = CliRunner().invoke(app, ["card", str(checkpoint), str(results), "--notes", str(notes)])
    assert done.exit_code == 0, done.output
    text = (checkpoint / "README.md").read_text()
    assert "| arm | reach | easy | plain | lock-step | none | 3/4 | 30 to 95 % | 4/4 |" in text
    assert "| expert | 3/4 |" in text
    assert "arm / b reach: the sentence's convention in 3/4" in text
    assert "1 of 4, most often: reach the red cube (1)" in text
    assert "7 steps in 1.50 h" in text
    assert text.endswith("Anything else.\n")


def test_what_is_no_checkpoint(checkpoint, results, tmp_path):
    done = CliRunner().invoke(app, ["card", str(tmp_path / "nowhere")])
    assert done.exit_code == 1
    assert "nowhere: no such folder" in done.stderr
    done = CliRunner().invoke(app, ["card", str(checkpoint), str(checkpoint / "config.json")])
    assert "expected 'qwen_vla_ros evaluation'" in done.stderr
    (checkpoint / "training.json").write_text("[]")
    with pytest.raises(TrainingError, match=r"training.json: found list"):
        read_facts(checkpoint)
