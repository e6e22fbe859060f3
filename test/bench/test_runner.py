# SPDX-License-Identifier: Apache-2.0
"""The benchmark runner: ratios, faults, exit status."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from qwen_vla_ros.bench import BenchResult, __main__, cli_start


@pytest.mark.parametrize(
    ("value", "target", "higher_is_better", "ratio"),
    [
        (2.0, 4.0, False, 2.0),
        (8.0, 4.0, False, 0.5),
        (30.0, 15.0, True, 2.0),
        (5.0, 15.0, True, pytest.approx(1 / 3)),
        (0.0, 0.0, False, 1.0),
        (1.0, 0.0, False, 0.0),
        (1.0, None, False, None),
    ],
)
def test_ratio_above_one_is_better_than_the_target(value, target, higher_is_better, ratio):
    assert BenchResult("figure", value, "ms", target, higher_is_better).ratio == ratio


def test_every_module_offers_run():
    assert "cli_start" in __main__.modules()
    assert not any(name.startswith("_") for name in __main__.modules())


@pytest.mark.parametrize(("value", "reached"), [(1.0, True), (3.0, False)])
def test_report_holds_the_figures_and_missed_targets_count(tmp_path, monkeypatch, value, reached):
    result = BenchResult("figure", value, "ms", target=2.0, detail={"repetitions": 3})
    monkeypatch.setattr(__main__, "run_module", lambda name: [result])
    out = tmp_path / "out" / "bench.json"
    assert __main__.run_all(["one"], out, Console(quiet=True)) is reached
    report = json.loads(out.read_text())
    assert report["results"]["one"][0]["ratio"] == 2.0 / value
    assert report["results"]["one"][0]["detail"] == {"repetitions": 3}
    assert report["machine"]["cores"] >= 1
    lines = out.with_suffix(".md").read_text().splitlines()
    assert f"| one | figure | {value:g} ms | 2 ms | {2.0 / value:.2f} |" in lines


def test_module_that_fails_is_named_with_what_it_printed():
    with pytest.raises(RuntimeError, match=r"nowhere: ended with 1(.|\n)*No module named"):
        __main__.run_module("nowhere")


def test_fault_is_reported_and_the_others_still_run(tmp_path, monkeypatch):
    def run(name: str) -> list[BenchResult]:
        if name == "broken":
            raise RuntimeError("broken: no camera")
        return [BenchResult("figure", 1.0, "ms")]

    monkeypatch.setattr(__main__, "run_module", run)
    out = tmp_path / "bench.json"
    assert not __main__.run_all(["broken", "whole"], out, Console(quiet=True))
    report = json.loads(out.read_text())
    assert report["faults"] == {"broken": "broken: no camera"}
    assert list(report["results"]) == ["whole"]
    lines = out.with_suffix(".md").read_text().splitlines()
    assert "| whole | figure | 1 ms |  |  |" in lines
    assert "- broken: broken: no camera" in lines


def test_embodiment_commands_load_nothing_heavy():
    duration, modules = cli_start.start()
    assert modules == []
    assert duration > 0.0
