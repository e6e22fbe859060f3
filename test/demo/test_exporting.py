# SPDX-License-Identifier: Apache-2.0
"""Graphs of a checkpoint in the cache."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from rich.console import Console

from qwen_vla_ros.demo.exporting import ExportFailed, choose_policy, exported
from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.policy import Observation, load_policy
from qwen_vla_ros.policy.export import export_onnx
from qwen_vla_ros.policy.interface import PolicyError
from qwen_vla_ros.resources import checkpoints_directory, embodiments_directory

SHIPPED = checkpoints_directory() / "qwen_vla_tiny"
BODIES = sorted(json.loads((SHIPPED / "statistics.json").read_text()))


def test_graphs_are_written_once_and_work(cache):
    told: list[str] = []
    first = exported(SHIPPED, BODIES, lambda: told.append("first"))
    assert exported(SHIPPED, BODIES, lambda: told.append("second")) == first
    assert "second" not in told
    assert [path for path in first.parent.iterdir() if path.name.startswith("partial")] == []
    policy = load_policy(first, "cpu", backend="onnx")
    body = load_embodiment("tiago_base")
    policy.configure(body)
    images = {body.cameras[0].view: np.zeros((128, 128, 3), dtype=np.uint8)}
    chunk = policy.infer(Observation(images, "drive to the red pillar", 0.0), seed=0)
    assert chunk.shape == (body.horizon, body.layout.count)


def test_a_broken_checkpoint_is_named_and_leaves_nothing(tmp_path, cache):
    broken = tmp_path / "broken"
    shutil.copytree(SHIPPED, broken)
    config = json.loads((broken / "config.json").read_text())
    config["action_expert"]["hidden_size"] = 64
    (broken / "config.json").write_text(json.dumps(config))
    before = set((cache / "qwen_vla_ros" / "onnx").glob("*"))
    with pytest.raises(ExportFailed, match=str(broken)):
        exported(broken, BODIES)
    assert set((cache / "qwen_vla_ros" / "onnx").glob("*")) == before


def test_graphs_are_run_where_they_serve(tmp_path, cache):
    console = Console()
    body = load_embodiment("tiago_base")
    graphs = choose_policy("", "cpu", "auto", {"tiago_base": body}, console)
    assert graphs.parameters(body) == {
        "device": "cpu",
        "backend": "onnx",
        "checkpoint": str(exported(SHIPPED, BODIES)),
    }
    # Graphs continue no plan.
    continuing = body.model_copy(update={"motion": body.motion.model_copy(update={"mode": "rtc"})})
    assert graphs.parameters(continuing) == {"device": "cpu", "backend": "auto"}
    for checkpoint, device, backend in (
        ("", "cuda", "auto"),
        (str(SHIPPED), "cpu", "eager"),
        (str(tmp_path), "cpu", "auto"),
    ):
        found = choose_policy(checkpoint, device, backend, {"tiago_base": body}, console).parameters(body)
        named = {"checkpoint": checkpoint} if checkpoint else {}
        assert found == {"device": device, "backend": backend, **named}


def test_a_robot_of_ones_own_has_graphs_too(tmp_path, cache):
    """As after fine-tuning: the checkpoint knows a body that does not come with the package."""
    tuned, file = tmp_path / "tuned", tmp_path / "my_base.yaml"
    shutil.copytree(SHIPPED, tuned)
    statistics = json.loads((tuned / "statistics.json").read_text())
    statistics["my_base"] = statistics["tiago_base"]
    (tuned / "statistics.json").write_text(json.dumps(statistics))
    text = (embodiments_directory() / "tiago_base.yaml").read_text()
    file.write_text(text.replace("name: tiago_base", "name: my_base", 1))
    own, other = load_embodiment(file), load_embodiment("so101")
    chosen = choose_policy(str(tuned), "cpu", "auto", {str(file): own, "so101": other}, Console())
    assert chosen.graphs
    policy = load_policy(chosen.graphs, "cpu", backend="onnx")
    policy.configure(own)
    # Without statistics there is nothing to run; the policy says so.
    assert choose_policy(str(tuned), "cpu", "auto", {"so101": other}, Console()).graphs != chosen.graphs
    (tuned / "statistics.json").write_text(json.dumps({"my_base": statistics["my_base"]}))
    assert choose_policy(str(tuned), "cpu", "auto", {"so101": other}, Console()).graphs == ""
    with pytest.raises(PolicyError, match=r"statistics.json: my_base came from files of your own"):
        export_onnx(tuned, tmp_path / "graphs")
