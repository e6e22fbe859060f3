# SPDX-License-Identifier: Apache-2.0
"""The counts of the paper's table."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from qwen_vla_ros.model.cli import app
from qwen_vla_ros.model.parameters import ParameterCount, count_model, count_parameters
from qwen_vla_ros.model.presets import paper_config


@pytest.fixture(scope="module")
def paper() -> ParameterCount:
    return count_parameters(paper_config())


@pytest.mark.parametrize(
    ("part", "millions"),
    [("block", 70.8), ("projections", 4.9), ("vlm_linear", 3.9), ("timestep", 2.8), ("output_adaln", 4.7)],
)
def test_parts_match_the_table_of_the_paper(paper: ParameterCount, part: str, millions: float) -> None:
    assert round(getattr(paper, part) / 1e6, 1) == millions


def test_totals_match_the_table_of_the_paper(paper: ParameterCount) -> None:
    assert paper.blocks == 16
    assert round(paper.block * paper.blocks / 1e9, 2) == 1.13
    assert round(paper.expert / 1e9, 2) == 1.15


def test_parts_add_up(paper: ParameterCount) -> None:
    assert paper.expert == (
        paper.blocks * paper.block
        + paper.projections
        + paper.vlm_linear
        + paper.timestep
        + paper.output_adaln
    )
    assert paper.backbone == paper.vision + paper.text
    assert paper.total == paper.backbone + paper.expert


def test_tied_embeddings_count_once(paper: ParameterCount) -> None:
    text = paper_config().backbone.text_config
    embedding = text.vocab_size * text.hidden_size
    layers = paper.text - embedding
    assert 3.4e9 < layers < 3.7e9


def test_a_real_model_counts_as_its_configuration_does(tiny) -> None:
    model, _ = tiny
    assert count_model(model) == count_parameters(model.config)
    assert 3e6 < count_model(model).total < 4e6


def test_params_command_prints_json() -> None:
    result = CliRunner().invoke(app, ["params", "--preset", "tiny", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["blocks"] == 4


def test_params_command_refuses_an_unknown_preset() -> None:
    result = CliRunner().invoke(app, ["params", "--preset", "huge"])
    assert result.exit_code == 2
    assert "found 'huge', expected one of paper, tiny" in result.stderr
