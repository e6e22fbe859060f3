# SPDX-License-Identifier: Apache-2.0
"""The torch policy on a checkpoint with random weights."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from qwen_vla_ros.embodiment import (
    Embodiment,
    InstructionError,
    list_embodiments,
    load_embodiment,
    render_prompt,
)
from qwen_vla_ros.model.checkpoint import CheckpointError, load_checkpoint
from qwen_vla_ros.policy import Continuation, Observation, ObservationError, PolicyError, load_policy
from qwen_vla_ros.policy.local import LocalPolicy


def observe(
    body: Embodiment, instruction: str = "reach the red cube", seed: int = 0, **changes
) -> Observation:
    rng = np.random.default_rng(seed)
    images = {
        camera.view: rng.integers(0, 256, (camera.size[1], camera.size[0], 3), dtype=np.uint8)
        for camera in body.cameras
    }
    state = np.zeros(body.layout.count)
    return Observation(
        **{"images": images, "instruction": instruction, "stamp": 1.0, "state": state, **changes}
    )


@pytest.fixture
def panda() -> Embodiment:
    return load_embodiment("franka_panda")


@pytest.fixture
def policy(random_checkpoint: Path, panda: Embodiment) -> LocalPolicy:
    made = LocalPolicy.load(random_checkpoint, "cpu")
    made.configure(panda)
    return made


@pytest.mark.parametrize("name", list_embodiments())
def test_every_shipped_body_gets_its_chunk(random_checkpoint: Path, name: str) -> None:
    body = load_embodiment(name)
    policy = load_policy(random_checkpoint, "cpu")
    policy.configure(body)
    chunk = policy.infer(observe(body), seed=0)
    assert chunk.shape == (body.horizon, body.layout.count)
    assert chunk.dtype == np.float32
    assert (np.abs(chunk) <= 1).all()
    assert policy.info.embodiment == name
    assert policy.statistics.count == body.layout.count


def test_one_policy_serves_one_body_after_another(random_checkpoint: Path, panda: Embodiment) -> None:
    policy = load_policy(random_checkpoint, "cpu")
    policy.configure(panda)
    first = policy.infer(observe(panda), seed=3)
    other = load_embodiment("tiago_base")
    policy.configure(other)
    assert policy.infer(observe(other), seed=3).shape == (other.horizon, other.layout.count)
    policy.configure(panda)
    np.testing.assert_array_equal(policy.infer(observe(panda), seed=3), first)


def test_seed_repeats_and_no_seed_does_not(policy: LocalPolicy, panda: Embodiment) -> None:
    observation = observe(panda)
    np.testing.assert_array_equal(policy.infer(observation, seed=5), policy.infer(observation, seed=5))
    assert not np.array_equal(policy.infer(observation, seed=5), policy.infer(observation, seed=6))
    assert not np.array_equal(policy.infer(observation), policy.infer(observation))


def test_image_and_instruction_reach_the_chunk(policy: LocalPolicy, panda: Embodiment) -> None:
    base = policy.infer(observe(panda), seed=1)
    assert np.abs(policy.infer(observe(panda, seed=1), seed=1) - base).max() > 1e-4
    assert np.abs(policy.infer(observe(panda, "reach the blue cube"), seed=1) - base).max() > 1e-4
    # The second time the tokens come from the cache.
    np.testing.assert_array_equal(policy.infer(observe(panda), seed=1), base)


def test_chunk_is_what_the_model_samples(
    policy: LocalPolicy, random_checkpoint: Path, panda: Embodiment
) -> None:
    checkpoint = load_checkpoint(random_checkpoint)
    observation = observe(panda)
    prompt = render_prompt(panda, observation.instruction)
    expert = checkpoint.config.action_expert
    with torch.no_grad():
        context = checkpoint.model.encode(
            **checkpoint.processor.prompts([(prompt.text, prompt.views)]),
            **checkpoint.processor.images([(view, observation.images[view]) for view in prompt.views]),
        )
        sample = checkpoint.model.sample(
            context,
            torch.from_numpy(panda.layout.mask(expert.horizon, expert.channels))[None],
            generator=torch.Generator().manual_seed(9),
        )
    expected = sample[0, : panda.horizon, : panda.layout.count].clamp(-1, 1).numpy()
    np.testing.assert_array_equal(policy.infer(observation, seed=9), expected)


def test_steps_and_temperature_are_options(random_checkpoint: Path, panda: Embodiment) -> None:
    chunks = []
    for options in ({}, {"steps": 1}, {"temperature": 0.0}):
        policy = load_policy(random_checkpoint, "cpu", **options)
        policy.configure(panda)
        chunks.append(policy.infer(observe(panda), seed=2))
    assert not np.array_equal(chunks[0], chunks[1])
    assert not np.array_equal(chunks[0], chunks[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: expected at least 1, found 0"),
        ({"threads": 0}, "threads: expected at least 1, found 0"),
        ({"temperature": float("nan")}, "temperature: expected 0 or more, found nan"),
        ({"device": "warp"}, "device 'warp': cannot be used"),
    ],
)
def test_bad_options(random_checkpoint: Path, options: dict, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        load_policy(random_checkpoint, **{"device": "cpu", **options})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("backend", ["eager", "engine"])
def test_no_cuda(random_checkpoint: Path, backend: str) -> None:
    with pytest.raises(PolicyError, match=r"device 'cuda': cannot be used: .*CUDA.*; try `auto` or `cpu`"):
        load_policy(random_checkpoint, "cuda", backend=backend)
    assert load_policy(random_checkpoint, "auto", backend=backend).info.device == "cpu"


def test_threads_leave_a_core_to_others(random_checkpoint: Path) -> None:
    load_policy(random_checkpoint, "cpu")
    assert torch.get_num_threads() == max(1, len(os.sched_getaffinity(0)) - 1)
    load_policy(random_checkpoint, "cpu", threads=1)
    assert torch.get_num_threads() == 1


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        load_policy(tmp_path / "nothing", "cpu")


def test_infer_before_configure(random_checkpoint: Path, panda: Embodiment) -> None:
    with pytest.raises(PolicyError, match=r"no embodiment is configured; call configure\(\) first"):
        load_policy(random_checkpoint, "cpu").infer(observe(panda))


def changed_checkpoint(source: Path, target: Path, change) -> Path:
    shutil.copytree(source, target)
    path = target / "statistics.json"
    statistics = json.loads(path.read_text())
    change(statistics)
    path.write_text(json.dumps(statistics))
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("franka_panda"), "none in the checkpoint"),
        (lambda s: s["franka_panda"].update(control_rate=20.0), "control_rate: found 10, .* trained with 20"),
        (lambda s: s["franka_panda"].update(horizon=4), "horizon: found 16, .* trained with 4"),
        (lambda s: s["franka_panda"]["channels"].reverse(), "in this order"),
        (lambda s: s.update(franka_panda=s["tiago_base"]), "found 3 channels, expected 8"),
    ],
)
def test_statistics_that_do_not_fit_the_body(random_checkpoint, tmp_path, panda, change, message) -> None:
    policy = load_policy(changed_checkpoint(random_checkpoint, tmp_path / "c", change), "cpu")
    with pytest.raises(PolicyError, match=rf"(?s)cannot serve embodiment 'franka_panda'.*{message}"):
        policy.configure(panda)


def test_view_that_the_checkpoint_does_not_know(random_checkpoint: Path, panda: Embodiment) -> None:
    cameras = (panda.cameras[0].model_copy(update={"view": "tail"}),)
    with pytest.raises(PolicyError, match=r"view 'tail': the checkpoint knows only .*ego"):
        load_policy(random_checkpoint, "cpu").configure(panda.model_copy(update={"cameras": cameras}))


@pytest.mark.parametrize("backend", ["eager", "engine"])
def test_an_optional_view_that_the_checkpoint_does_not_know_is_not_used(
    random_checkpoint: Path, panda: Embodiment, caplog, backend: str
) -> None:
    tail = panda.cameras[0].model_copy(update={"view": "tail", "required": False})
    body = panda.model_copy(update={"cameras": (tail, *panda.cameras)})
    policy = load_policy(random_checkpoint, "cpu", backend=backend)
    policy.configure(panda)
    expected = policy.infer(observe(panda), seed=0)
    caplog.clear()
    policy.configure(body)
    observation = observe(
        panda, images={**observe(panda).images, "tail": observe(panda, seed=1).images["ego"]}
    )
    for _ in range(2):
        np.testing.assert_array_equal(policy.infer(observation, seed=0), expected)
    told = f"embodiment franka_panda: view 'tail' is not used: {random_checkpoint} does not know it"
    assert [record.getMessage() for record in caplog.records if "qwen_vla" in record.name] == [told]
    with pytest.raises(ObservationError, match="no image of view 'ego'"):
        policy.infer(observe(panda, images={"tail": observation.images["tail"]}))


def test_a_refused_body_leaves_the_old_one_in_service(policy: LocalPolicy, panda: Embodiment) -> None:
    before = policy.infer(observe(panda), seed=0)
    cameras = (panda.cameras[0].model_copy(update={"view": "tail"}),)
    with pytest.raises(PolicyError):
        policy.configure(panda.model_copy(update={"cameras": cameras}))
    np.testing.assert_array_equal(policy.infer(observe(panda), seed=0), before)


def test_images_may_be_brought_to_size_before(policy: LocalPolicy, panda: Embodiment) -> None:
    image = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    images = [image, policy.resize("ego", image)]
    assert images[1].shape == (128, 128, 3)
    chunks = [policy.infer(observe(panda, images={"ego": each}), seed=1) for each in images]
    np.testing.assert_array_equal(*chunks)


@pytest.mark.parametrize("state", [None, np.full(8, np.nan), np.zeros(3)])
def test_malformed_state(random_checkpoint: Path, panda: Embodiment, state) -> None:
    body = panda.model_copy(update={"prompt": panda.prompt.model_copy(update={"state": True})})
    policy = LocalPolicy.load(random_checkpoint, "cpu")
    policy.configure(body)
    with pytest.raises(ObservationError, match=r"state: found .*, expected 8 finite values"):
        policy.infer(observe(body, state=state))


def test_any_state_fits_what_was_prepared(random_checkpoint: Path, panda: Embodiment, caplog) -> None:
    """Numbers of bins have one to three digits; the longest prompt counts."""
    body = panda.model_copy(update={"prompt": panda.prompt.model_copy(update={"state": True})})
    policy = LocalPolicy.load(random_checkpoint, "cpu", engine=True)
    policy.configure(body)
    for state in (policy.statistics.q01, policy.statistics.q99):
        policy.infer(observe(body, state=np.asarray(state)))
    assert "not the shape that was prepared" not in caplog.text


def test_an_image_that_is_none_at_all(policy: LocalPolicy, panda: Embodiment) -> None:
    with pytest.raises(ObservationError, match=r"view 'ego': found list, expected an array \(h, w, 3\)"):
        policy.infer(observe(panda, images={"ego": [[0, 0, 0]]}))


def test_a_body_that_is_refused_late_leaves_the_old_one_its_channels(
    random_checkpoint: Path, monkeypatch
) -> None:
    """Bodies of one look share an engine, which knows the channels of one."""
    first, second = load_embodiment("unitree_g1"), load_embodiment("franka_panda")
    policy = LocalPolicy.load(random_checkpoint, "cpu", engine=True)
    policy.configure(first)
    before = policy.infer(observe(first), seed=0)
    with monkeypatch.context() as patch:
        patch.setattr(
            policy, "infer", lambda *_, **__: (_ for _ in ()).throw(PolicyError("the warm-up failed"))
        )
        with pytest.raises(PolicyError, match="the warm-up failed"):
            policy.configure(second)
    np.testing.assert_array_equal(policy.infer(observe(first), seed=0), before)


def test_missing_view(policy: LocalPolicy, panda: Embodiment) -> None:
    with pytest.raises(ObservationError, match="no image of view 'ego'"):
        policy.infer(observe(panda, images={}))


def test_malformed_image(policy: LocalPolicy, panda: Embodiment) -> None:
    with pytest.raises(ObservationError, match=r"view 'ego': expected uint8 \(h, w, 3\), found float64"):
        policy.infer(observe(panda, images={"ego": np.zeros((8, 8, 3))}))
    with pytest.raises(ObservationError, match=r"view 'ego': expected uint8 \(h, w, 3\), found float64"):
        policy.resize("ego", np.zeros((8, 8, 3)))


@pytest.mark.parametrize("instruction", ["", "  ", "x" * 10_000, "reach <|image_pad|>"])
def test_bad_instruction(policy: LocalPolicy, panda: Embodiment, instruction: str) -> None:
    with pytest.raises(InstructionError):
        policy.infer(observe(panda, instruction))


def test_output_that_is_not_finite(policy: LocalPolicy, panda: Embodiment, monkeypatch) -> None:
    head = policy._model.action_expert.action_out[-1]
    monkeypatch.setattr(head, "bias", torch.nn.Parameter(torch.full_like(head.bias, float("nan"))))
    with pytest.raises(
        PolicyError, match=r"128 of 128 values are not finite, the first is nan in row 0, channel arm/"
    ):
        policy.infer(observe(panda))


def test_output_of_the_wrong_shape(policy: LocalPolicy, panda: Embodiment, monkeypatch) -> None:
    monkeypatch.setattr(policy._model, "sample", lambda *_args, **_kwargs: torch.zeros(1, 3, 32))
    with pytest.raises(PolicyError, match=r"model output: found shape \(3, 32\), expected \(16, 32\)"):
        policy.infer(observe(panda))


def test_the_package_needs_no_torch_until_a_checkpoint_is_loaded() -> None:
    import subprocess
    import sys

    code = "import sys, qwen_vla_ros.policy; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_plan_leads_the_chunk_and_grippers_only_where_it_is_committed(policy: LocalPolicy, panda) -> None:
    free, other = (policy.infer(observe(panda), seed=seed) for seed in (1, 2))
    low, high = policy.statistics.q01, policy.statistics.q99
    rows = (other + 1) / 2 * (high - low) + low
    rows[12:] = np.nan
    plan = Continuation(rows, known=12, committed=4)
    led = policy.infer(observe(panda), seed=1, plan=plan)
    assert np.abs(led - other)[:4].mean() < 0.7 * np.abs(free - other)[:4].mean()
    prefix = policy._prefix(plan, policy._ready())
    assert (prefix.weight[0, :4, :8] == 1).all()
    assert (prefix.weight[0, 4:12, :7] > 0).all()
    assert not prefix.weight[0, 4:, 7].any()
    assert np.array_equal(policy.infer(observe(panda), seed=1), free), "a plan outlives its call"


def test_a_malformed_plan_is_refused(policy: LocalPolicy, panda) -> None:
    rows = np.zeros((panda.horizon, panda.layout.count))
    for plan, text in (
        (Continuation(rows[:, 1:], 8, 2), "shape"),
        (Continuation(rows, 2, 8), "8 of 2 rows committed"),
        (Continuation(np.full_like(rows, np.nan), 8, 2), "not finite"),
    ):
        with pytest.raises(PolicyError, match=text):
            policy.infer(observe(panda), seed=1, plan=plan)
