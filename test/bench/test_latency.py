# SPDX-License-Identifier: Apache-2.0
"""`qwen-vla bench` measures what it says."""

from __future__ import annotations

import gc
import json
import weakref

import pytest
import torch
from typer.testing import CliRunner

from qwen_vla_ros.bench import _latency as latency
from qwen_vla_ros.bench import _start_up
from qwen_vla_ros.cli import app


def test_one_thing_changes_at_a_time() -> None:
    found = latency.settings([1, 2], [16, 32], [1, 10])
    assert found[0] == latency.Setting()
    assert len(found) == len(set(found)) == 5
    for setting in found:
        assert sum(a != b for a, b in zip(vars(setting).values(), vars(found[0]).values(), strict=True)) <= 1


def test_presets_have_the_sizes_that_they_say() -> None:
    config, processor = latency.configuration("paper", 50)
    assert config.action_expert.horizon == 50
    assert config.backbone.text_config.num_hidden_layers == 32
    assert processor.config.image_size == (224, 224)
    assert config.backbone.image_token_id == processor.image_id


def test_writes_figures_and_a_table(tmp_path) -> None:
    out = tmp_path / "latency"
    options = ["bench", "--views", "1", "--horizon", "", "--steps", "1", "--runs", "1", "--start-up"]
    told = CliRunner().invoke(app, [*options, "--out", str(out)])
    assert told.exit_code == 0, told.output
    found = json.loads(out.with_suffix(".json").read_text())
    start = found["start-up"]
    assert start["engine"] == "TorchScript"
    assert 0 < start["load"] < start["total"]
    assert start["imports"] + start["load"] + start["configure"] == pytest.approx(start["total"])
    # On a CPU the weights are the host's.
    assert start["host_mib"] > start["weights_mib"] > 10
    assert {path.name for path in tmp_path.iterdir()} == {"latency.json", "latency.md", "latency.png"}
    assert f"Start-up with files in the cache, engine TorchScript: {start['total']:.1f} s" in told.output
    assert [row["setting"]["steps"] for row in found["rows"]] == [4, 4, 1]
    for row in found["rows"]:
        # Two float32 forward passes of the same weights and noise.
        assert row["difference"] <= 2e-5
        assert row["gflop"] > 0.05
        assert row["roofline"] > 0
        assert row["chunk"][0] > row["stages"]["preprocess"][0] > 0
        assert set(latency.STAGES) - {"publish"} <= set(row["stages"]) <= set(latency.STAGES)
    full, one_step = found["rows"][0], found["rows"][2]
    assert full["gflop"] > 1.5 * one_step["gflop"]
    assert out.with_suffix(".md").read_text().count("\n| ") >= 3
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_row_holds_one_model_at_a_time(monkeypatch) -> None:
    made: list[weakref.ref] = []
    build = latency.random_model

    def watched(*arguments):
        assert not [model for model in made if model() is not None]
        model = build(*arguments)
        made.append(weakref.ref(model))
        return model

    monkeypatch.setattr(latency, "random_model", watched)
    gc.disable()
    try:
        for _ in range(2):
            latency.measure(
                "tiny", latency.Setting(1, 16, 1), torch.device("cpu"), torch.float32, 1, (1e10, 1e11)
            )
    finally:
        gc.enable()
    assert len(made) == 2


def test_a_start_that_fails_is_told_of(tmp_path, monkeypatch) -> None:
    row = latency.Row(latency.Setting(), 1, chunk=(1.0, 1.0), roofline=1.0)
    monkeypatch.setattr(latency, "measure", lambda *_: row)
    monkeypatch.setattr(latency, "throughput", lambda *_: (1e10, 1e11))
    monkeypatch.setattr(_start_up, "BODY", "franka_panda")
    # The process that it starts knows nothing of that and looks for statistics of another body.
    options = ["bench", "--views", "", "--horizon", "", "--steps", "", "--start-up"]
    told = CliRunner().invoke(app, [*options, "--out", str(tmp_path / "latency")])
    assert told.exit_code == 1
    assert "error: --start-up: start-up: ended with 1: " in told.output
    assert "cannot serve embodiment 'so101'" in told.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize(
    ("option", "text"),
    [
        (("--device", "cuda"), "CUDA"),
        (("--preset", "huge"), "huge"),
        (("--views", "4"), "4"),
        (("--own-time", "--threads", "2"), "2 threads"),
    ],
)
def test_bad_options(option: tuple[str, str], text: str) -> None:
    told = CliRunner().invoke(app, ["bench", *option])
    assert told.exit_code == 2
    assert text in told.output
