# SPDX-License-Identifier: Apache-2.0
"""The engine gives the chunks of the eager model, in buffers that stay where they are."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from qwen_vla_ros import resources
from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.policy import Continuation, Observation, load_policy
from qwen_vla_ros.policy.local import LocalPolicy

# Of normalised actions, whose range is 2: what float32 sums in another order leave.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def pair() -> tuple[LocalPolicy, LocalPolicy]:
    checkpoint: Path = resources.checkpoints_directory() / "qwen_vla_tiny"
    policies = [load_policy(checkpoint, "cpu", threads=1, backend=name) for name in ("engine", "eager")]
    for policy in policies:
        assert isinstance(policy, LocalPolicy)
        policy.configure(load_embodiment("franka_panda"))
    policies[1]._model.implementation = "stock"
    return policies[0], policies[1]


def observe(seed: int, instruction: str = "reach the red cube") -> Observation:
    image = np.random.default_rng(seed).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    return Observation({"ego": image}, instruction, 0.0)


def test_equals_the_stock_forward(pair) -> None:
    engine, eager = pair
    assert engine.info.details["engine"] == "TorchScript"
    assert eager.info.details["engine"] == "none"
    for seed, text in enumerate(
        ("reach the red cube", "reach the yellow cube", "reach the small green cube")
    ):
        found, expected = (policy.infer(observe(seed, text), seed=seed) for policy in pair)
        assert np.abs(found - expected).max() <= TOLERANCE
        assert np.abs(expected).max() > 0.05


def test_buffers_stay(pair) -> None:
    engine = pair[0]._engine
    tensors = [
        *engine._staged.values(),
        *engine._inputs.values(),
        engine._noise,
        engine._mask,
        engine._result,
    ]
    before = [tensor.data_ptr() for tensor in tensors]
    results = [pair[0].infer(observe(seed), seed=seed) for seed in (1, 2, 1)]
    assert [tensor.data_ptr() for tensor in tensors] == before
    np.testing.assert_array_equal(results[0], results[2])
    assert np.abs(results[0] - results[1]).max() > 1e-3


def test_a_body_of_the_same_look_takes_the_same_engine(pair) -> None:
    policy, first = pair[0], pair[0]._engine
    policy.configure(load_embodiment("unitree_g1"))
    chunk = policy.infer(observe(0, "touch the red ball with the left hand"), seed=0)
    assert chunk.shape[1] == load_embodiment("unitree_g1").layout.count
    policy.configure(load_embodiment("franka_panda"))
    assert policy._engine is first
    assert policy.infer(observe(0), seed=0).shape[1] == load_embodiment("franka_panda").layout.count


def test_other_shapes_run_without_it_and_say_so(pair, caplog) -> None:
    long = observe(4, "reach the red cube " * 24)
    with caplog.at_level(logging.WARNING):
        found, expected = (policy.infer(long, seed=4) for policy in pair)
        pair[0].infer(long, seed=4)
    assert np.abs(found - expected).max() <= TOLERANCE
    told = [record.message for record in caplog.records if "runs operation by operation" in record.message]
    assert len(told) == 1


def test_what_cannot_be_traced_runs_operation_by_operation_and_says_so(pair, caplog, monkeypatch) -> None:
    def refuse(*_args, **_options):
        raise RuntimeError("an operation that no graph can hold")

    monkeypatch.setattr("torch.jit.trace", refuse)
    folder = resources.checkpoints_directory() / "qwen_vla_tiny"
    policy = load_policy(folder, "cpu", threads=1, backend="engine")
    with caplog.at_level(logging.WARNING):
        policy.configure(load_embodiment("franka_panda"))
    assert policy.info.details["engine"] == "operation by operation"
    told = "cannot be traced, runs operation by operation: an operation that no graph can hold"
    assert [record.message for record in caplog.records].count(told) == 1
    found, expected = policy.infer(observe(6), seed=6), pair[1].infer(observe(6), seed=6)
    assert np.abs(found - expected).max() <= TOLERANCE


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_what_cannot_be_captured_runs_operation_by_operation_and_says_so(pair, caplog, monkeypatch) -> None:
    engine = pair[0]._engine
    expected = engine._replay(engine.shape.length).clone()
    monkeypatch.setattr(engine, "device", torch.device("cuda"))
    monkeypatch.setattr(engine, "how", "")
    with caplog.at_level(logging.WARNING):
        replay = engine._prepare()
    assert engine.how == "operation by operation"
    assert [r for r in caplog.records if "no CUDA graph, every operation is launched by itself" in r.message]
    with torch.no_grad():
        assert float((replay(engine.shape.length) - expected).abs().max()) <= TOLERANCE


def test_a_body_whose_prompts_are_too_long_runs_without_it_and_says_so(pair, caplog, monkeypatch) -> None:
    monkeypatch.setattr("qwen_vla_ros.model.fixed.MAX_TOKENS", 20)
    folder = resources.checkpoints_directory() / "qwen_vla_tiny"
    policy = load_policy(folder, "cpu", threads=1, backend="engine")
    with caplog.at_level(logging.WARNING):
        policy.configure(load_embodiment("franka_panda"))
    assert policy.info.details["engine"] == "none"
    told = [
        record.message for record in caplog.records if "no fixed shapes for franka_panda" in record.message
    ]
    assert len(told) == 1
    assert "fixed shapes hold at most 20" in told[0]
    found, expected = policy.infer(observe(7), seed=7), pair[1].infer(observe(7), seed=7)
    assert np.abs(found - expected).max() <= TOLERANCE


def test_a_plan_is_continued_without_it(pair) -> None:
    body = load_embodiment("franka_panda")
    rows = np.tile(np.mean([pair[0].statistics.q01, pair[0].statistics.q99], axis=0), (body.horizon, 1))
    plan = Continuation(rows, 8, 2)
    found, expected = (policy.infer(observe(5), seed=5, plan=plan) for policy in pair)
    assert np.abs(found - expected).max() <= 1e-3
    free = pair[0].infer(dataclasses.replace(observe(5)), seed=5)
    assert np.abs(found - free).max() > 1e-3
