# SPDX-License-Identifier: Apache-2.0
"""The training loop on a micro model and real demonstrations."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from qwen_vla_ros.embodiment import list_embodiments
from qwen_vla_ros.model.checkpoint import load_checkpoint
from qwen_vla_ros.model.flow_matching import draw_flow
from qwen_vla_ros.model.presets import build_tiny
from qwen_vla_ros.training.batches import load_bodies
from qwen_vla_ros.training.configuration import (
    AugmentationConfiguration,
    load_configuration,
    load_finetuning,
    parse_configuration,
)
from qwen_vla_ros.training.devices import has_compiler
from qwen_vla_ros.training.errors import TrainingError
from qwen_vla_ros.training.processes import Processes, shares
from qwen_vla_ros.training.schedule import learning_rate
from qwen_vla_ros.training.trainer import Trainer, prepare, take_weights

BODIES = ("franka_panda", "tiago_base")
SHIPPED = Path(__file__).parents[2] / "config" / "training" / "tiny.yaml"
SHIPPED_WEIGHTS = Path(__file__).parents[2] / "checkpoints" / "qwen_vla_tiny"


def configuration(**changes):
    content = {
        "steps": 30,
        "backbone_steps": 4,
        "log_every": 1,
        "save_every": 1e6,
        "batch": {
            "images": dict.fromkeys(BODIES, 2),
            "prompts_per_image": 3,
            "flow_prompts_per_image": 2,
        },
        "optimiser": {"learning_rate": 3e-3, "warmup": 2, "flat": 0.5, "final": 0.1, "ema": 0.9},
        "augmentation": {"gain": 0.1, "colour": 0.05, "offset": 0.05, "noise": 0.02},
    }
    return parse_configuration({**content, **changes}, "test")


@pytest.fixture
def trainer(data, micro):
    """`trainer(folder, **changes of the configuration)`: a fresh one on the real demonstrations."""

    def make(folder, device="cpu", **changes):
        settings = configuration(**changes)
        model, processor = micro()
        bodies = load_bodies(data, BODIES, processor, (16, 32), settings.normalisation)
        return Trainer(settings, bodies, model, processor, folder, device)

    return make


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_sixty_steps_lower_every_loss(trainer, tmp_path):
    run = trainer(tmp_path, steps=60)
    run.run()
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert "franka_panda/flow" not in lines[3]
    for name in BODIES:
        for loss, first in (("tokens", 0), ("action", 0), ("flow", 4)):
            before = sum(line[f"{name}/{loss}"] for line in lines[first : first + 4])
            after = sum(line[f"{name}/{loss}"] for line in lines[-4:])
            assert after < 0.95 * before, (name, loss)


def test_resumed_run_is_the_same_run(trainer, tmp_path):
    whole = trainer(tmp_path / "whole", steps=10)
    whole.run()
    first = trainer(tmp_path / "parts", steps=10)
    first.run(until=6)
    second = trainer(tmp_path / "parts", steps=10)
    # Metrics of steps after the state, as a kill leaves them, are run and written again.
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "loss": 1000.0}\n')
    second.resume()
    assert second.step == 6
    second.run()
    for a, b in ((whole.model, second.model), (whole.average, second.average), (whole.heads, second.heads)):
        for (name, expected), found in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
            assert torch.equal(expected, found), name
    assert [line["loss"] for line in metrics(tmp_path / "whole")] == [
        line["loss"] for line in metrics(tmp_path / "parts")
    ]


def test_processes_that_share_a_step_take_the_same_step(data, tmp_path):
    """Two that torchrun starts, by the command, and starts again; and one here."""
    settings = configuration(steps=3, backbone_steps=1)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude_none=True)))
    launch = "torch.distributed.run --standalone --local_addr 127.0.0.1 --nproc_per_node 2"
    train = f"qwen_vla_ros.cli train --config {file} --data {data} --out {tmp_path / 'two'} --device cpu"
    command = [sys.executable, "-m", *launch.split(), "-m", *train.split()]
    loopback = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    for part in (["--until", "2", "--checkpoint", str(SHIPPED_WEIGHTS)], ["--resume"]):
        done = subprocess.run([*command, *part], env=loopback, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    alone = prepare(settings, data, tmp_path / "one", "cpu", SHIPPED_WEIGHTS)
    alone.run()
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [line.keys() for line in two] == [line.keys() for line in one]
    for first, second in zip(one, two, strict=True):
        for name in first.keys() - {"seconds"}:
            assert second[name] == pytest.approx(first[name], rel=2e-3, abs=1e-4), (first["step"], name)
    card = json.loads((tmp_path / "two" / "checkpoint" / "training.json").read_text())
    assert (card["processes"], card["before"]["kind"]) == (2, "demonstrations")


def test_bodies_are_dealt_out_evenly():
    sizes = {"a": 12, "b": 10, "c": 10, "d": 9, "e": 5, "f": 4}
    dealt = shares(sizes, 2)
    assert sorted(name for names in dealt for name in names) == sorted(sizes)
    assert [sum(sizes[name] for name in names) for names in dealt] == [25, 25]


def test_more_processes_than_bodies_are_refused():
    processes = Processes(torch.device("cpu"))
    processes.count = 3
    with pytest.raises(TrainingError, match="found 2 bodies for 3 processes"):
        processes.share(dict.fromkeys(BODIES, 2))


def test_checkpoint_holds_average_and_statistics(trainer, tmp_path):
    run = trainer(tmp_path)
    run.run(until=2, save=lambda each: each.save_checkpoint())
    loaded = load_checkpoint(run.checkpoint)
    assert set(loaded.statistics) == set(BODIES)
    body = run.bodies["tiago_base"]
    assert loaded.statistics["tiago_base"]["q99"] == pytest.approx(body.statistics.q99.tolist())
    assert loaded.statistics["tiago_base"]["horizon"] == 8
    stored = dict(loaded.model.named_parameters())
    for name, value in run.average.named_parameters():
        torch.testing.assert_close(stored[name].float(), value, rtol=1e-2, atol=1e-2)
    assert not any("heads" in name for name in stored)
    assert loaded.config.flow.tau_distribution == "beta"


def test_a_run_starts_from_a_checkpoint(trainer, micro, tmp_path):
    before = trainer(tmp_path / "before")
    before.run(until=2)
    before.save_checkpoint()
    model, processor = micro(seed=5)
    embedding = "backbone.model.language_model.embed_tokens.weight"
    take_weights(model, processor, before.checkpoint)
    saved = load_checkpoint(before.checkpoint, dtype=torch.float32)
    found, expected = model.state_dict(), saved.model.state_dict()
    here, there = (known.tokenizer.get_vocab() for known in (processor, saved.processor))
    assert all(torch.equal(found[embedding][here[t]], expected[embedding][there[t]]) for t in there)
    assert all(torch.equal(found[name], expected[name]) for name in found if "embed_tokens" not in name)
    with pytest.raises(TrainingError, match=r"only a checkpoint of the same preset"):
        take_weights(*build_tiny(), before.checkpoint)
    with pytest.raises(TrainingError, match="nowhere"):
        take_weights(model, processor, tmp_path / "nowhere")


def test_weights_to_begin_with_keep_their_share_and_statistics(data, tmp_path):
    settings = configuration(start_share=0.75, backbone_steps=0)
    run = prepare(settings, data, tmp_path, "cpu", SHIPPED_WEIGHTS)
    run.run(until=3, save=lambda each: each.save_checkpoint())
    start, found = load_checkpoint(SHIPPED_WEIGHTS, dtype=torch.float32), load_checkpoint(run.checkpoint)
    for name in BODIES:
        for quantile in ("q01", "q99"):
            assert found.statistics[name][quantile] == pytest.approx(start.statistics[name][quantile])
    moved = 0.0
    written, trained = dict(found.model.named_parameters()), dict(run.average.named_parameters())
    for name, value in start.model.named_parameters():
        expected = 0.75 * value + 0.25 * trained[name]
        torch.testing.assert_close(written[name].float(), expected, rtol=5e-3, atol=1e-5)
        moved = max(moved, ((expected - trained[name]).abs().max() / value.abs().max()).item())
    assert moved > 0.02


def test_statistics_of_the_start_must_fit(data, tmp_path):
    start = shutil.copytree(SHIPPED_WEIGHTS, tmp_path / "start")
    statistics = json.loads((start / "statistics.json").read_text())
    statistics["tiago_base"] |= {"channels": ["base/x", "base/y", "base/z"]}
    (start / "statistics.json").write_text(json.dumps(statistics))
    with pytest.raises(TrainingError, match=r"(?s)weights to begin with do not fit .*tiago_base.*base/z"):
        prepare(configuration(start_share=0.5), data, tmp_path / "run", "cpu", start)


def test_a_share_of_the_start_needs_one(data, tmp_path):
    with pytest.raises(TrainingError, match=r"start_share: found 0.5 without weights .* --checkpoint"):
        prepare(configuration(start_share=0.5), data, tmp_path, "cpu")


def test_sentences_alone_come_first(trainer, tmp_path):
    """First the action expert learns and the backbone does not change; a resumed run is the same."""
    stage = {"steps": 12, "prompts": 4, "learning_rate": 3e-3}
    run = trainer(tmp_path / "whole", steps=2, backbone_steps=0, text_to_action=stage)
    before = {name: tensor.clone() for name, tensor in run.model.backbone.state_dict().items()}
    run.run(until=12)
    for name, tensor in run.model.backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    lines = metrics(tmp_path / "whole")
    assert not any("tokens" in name for name in lines[0])
    assert lines[11]["franka_panda/flow"] < 0.95 * lines[0]["franka_panda/flow"]
    assert run.model.config.flow.tau_distribution == "beta"
    run.run()
    assert run.step == run.configuration.total == 14
    assert "franka_panda/tokens" in metrics(tmp_path / "whole")[12]
    changed = run.model.backbone.state_dict()
    assert any(not torch.equal(changed[name], tensor) for name, tensor in before.items())
    trainer(tmp_path / "parts", steps=2, backbone_steps=0, text_to_action=stage).run(until=9)
    rest = trainer(tmp_path / "parts", steps=2, backbone_steps=0, text_to_action=stage)
    rest.resume()
    rest.run()
    for (name, expected), found in zip(
        run.model.state_dict().items(), rest.model.state_dict().values(), strict=True
    ):
        assert torch.equal(expected, found), name


def test_sentences_of_two_bodies_differ(trainer, tmp_path):
    """Without pictures, the sentence is all that tells bodies apart."""
    run = trainer(tmp_path)
    rng = np.random.default_rng(0)
    texts = [
        run.processor.tokenizer.decode(run.bodies[name].draw_text(rng, 1).prompts["input_ids"][0])
        for name in BODIES
    ]
    assert not any("<|" in text for text in texts)
    assert texts[0].lower().startswith("the robot is franka panda")
    assert "waypoints" in texts[1]


def test_a_prefix_of_no_rows_is_none(trainer, tmp_path):
    """What a captured step is given where one that is not captured draws no prefix."""
    run = trainer(tmp_path, flow={"prefix_rows": 5})
    rng, _ = run._random(BODIES[0])
    batch = run.bodies[BODIES[0]].draw(rng, 4, 2, run.configuration.augmentation)
    model, flow = run.model, run.model.config.flow
    context = model.encode(batch.prompts["input_ids"] * 0, batch.prompts["attention_mask"])
    draws = (
        draw_flow(len(batch.actions), batch.actions.shape[1:], flow, torch.Generator().manual_seed(seed))
        for seed in range(20)
    )
    drawn = next(each for each in draws if each.prefix is None)
    none = torch.zeros(len(batch.actions), dtype=torch.long)
    found = model.flow_loss(context, batch.actions, batch.mask, replace(drawn, prefix=none))
    expected = model.flow_loss(context, batch.actions, batch.mask, drawn)
    torch.testing.assert_close(found.sample_loss, expected.sample_loss)


def test_prefixes_say_the_opposite_of_grippers_alone(trainer, tmp_path):
    run = trainer(tmp_path, flow={"prefix_rows": 5})
    told = {}
    for name in BODIES:
        batch = run.bodies[name].draw(np.random.default_rng(0), 8, 1, run.configuration.augmentation)
        drawn = [run._draw(name, batch, torch.Generator().manual_seed(seed)) for seed in range(20)]
        signs = torch.cat([each.signs for each in drawn if each.signs is not None])
        told[name] = (signs < 0).any(dim=0).nonzero()[:, 0].tolist()
    assert told == {"franka_panda": [7], "tiago_base": []}


@pytest.mark.skipif(not has_compiler(), reason="needs a C++ compiler")
def test_compiled_gradients_are_the_gradients(trainer, tmp_path, monkeypatch):
    """Of batches with a prefix and without. Recorded as always; made into kernels, in minutes, it is not."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # is as before after the test
    changes = {
        "precision": "float32",
        "flow": {"prefix_rows": 5},
        "batch": {"images": {BODIES[0]: 2}, "prompts_per_image": 3},
    }
    run = trainer(tmp_path, compile="auto", **changes)
    plain = trainer(tmp_path, **changes)
    assert plain._compiled == plain.losses
    assert run._compiled != run.losses
    prefixes = set()
    for step in range(6):
        run.step = plain.step = step
        rng, generator = run._random(BODIES[0])
        batch = run.bodies[BODIES[0]].draw(rng, 2, 3, run.configuration.augmentation)
        prefixes.add(run._draw(BODIES[0], batch, generator).prefix is None)
        assert run._all_together(True) == pytest.approx(plain._all_together(True), rel=1e-3, abs=1e-5)
    assert prefixes == {False, True}
    for one, other in zip(run._parameters, plain._parameters, strict=True):
        if other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not has_compiler(), reason="needs a C++ compiler")
def test_kernels_that_cannot_be_loaded_are_made_anew(trainer, tmp_path, monkeypatch):
    def backend(graph, inputs):
        raise ImportError("main.so: file too short")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    run = trainer(tmp_path, compile="auto", backbone_steps=0)
    kernels = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert kernels.parent == run.folder
    assert kernels.is_dir()
    with pytest.raises(
        TrainingError, match=rf"{kernels}: .*main.so: file too short.* is deleted; go on with"
    ):
        run.run(until=1)
    assert not kernels.exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("joint", [False, True])
def test_captured_gradients_are_the_gradients(trainer, tmp_path, joint):
    run = trainer(tmp_path, "cuda", precision="float32")
    for step in range(3):
        run.step = step
        captured = run._all_together(joint)
        found = [None if p.grad is None else p.grad.clone() for p in run._parameters]
        for optimiser in run._optimisers:
            optimiser.zero_grad(set_to_none=False)
    assert len(run._graphs) == len(BODIES)
    run._graphs = None
    assert run._all_together(joint) == pytest.approx(captured, rel=1e-2)
    for parameter, gradient in zip(run._parameters, found, strict=True):
        if gradient is not None:
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-2, atol=1e-3)


def test_device_that_is_not_there(data, micro, tmp_path):
    with pytest.raises(TrainingError, match="device: found 'tpu', expected auto, cpu"):
        prepare(configuration(), data, tmp_path, device="tpu")


def test_nothing_to_resume(trainer, tmp_path):
    with pytest.raises(TrainingError, match=r"state.pt: no such file"):
        trainer(tmp_path).resume()


def test_damaged_state(trainer, tmp_path):
    (tmp_path / "state.pt").write_bytes(b"nothing")
    with pytest.raises(TrainingError, match=r"state.pt: cannot be resumed from"):
        trainer(tmp_path).resume()


def test_gradient_that_is_not_finite_ends_the_run(trainer, tmp_path):
    run = trainer(tmp_path)
    with torch.no_grad():
        run.heads.tokens.weight.fill_(math.nan)
    with pytest.raises(TrainingError, match="step 0: gradient is not finite"):
        run.run(until=1)


def test_body_without_demonstrations(micro, tmp_path):
    settings = configuration(batch={"images": {"aloha_viperx": 1}})
    model, processor = micro()
    with pytest.raises(TrainingError, match="no demonstrations of aloha_viperx"):
        Trainer(settings, {}, model, processor, tmp_path)


def test_folder_of_another_body(data, micro, tmp_path):
    shutil.copytree(data / "tiago_base", tmp_path / "franka_panda")
    _, processor = micro()
    with pytest.raises(TrainingError, match="demonstrations of 'tiago_base', expected 'franka_panda'"):
        load_bodies(tmp_path, ["franka_panda"], processor, (16, 32), configuration().normalisation)


def test_demonstrations_of_a_body_in_several_folders(data, micro, tmp_path):
    _, processor = micro()
    for name in ("franka_panda", "franka_panda_mistakes", "tiago_base"):
        shutil.copytree(data / name.removesuffix("_mistakes"), tmp_path / name)
    bodies = load_bodies(tmp_path, ["franka_panda"], processor, (16, 32), configuration().normalisation)
    once = load_bodies(data, ["franka_panda"], processor, (16, 32), configuration().normalisation)
    one, two = once["franka_panda"], bodies["franka_panda"]
    assert len(two) == 2 * len(one)
    assert (two.statistics.q01 == one.statistics.q01).all()
    rows, goals, rng = np.arange(len(one)), np.zeros(len(one), dtype=int), np.random.default_rng(0)
    plain = AugmentationConfiguration(gain=0.0, colour=0.0, offset=0.0, noise=0.0)
    first = one.batch(rows, goals, 1, rng, plain)
    second = two.batch(rows + len(one), goals, 1, rng, plain)
    assert torch.equal(first.pixel_values, second.pixel_values)
    assert torch.equal(first.actions, second.actions)
    path = tmp_path / "franka_panda_mistakes" / "meta.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps(meta | {"classes": meta["classes"][::-1]}))
    with pytest.raises(TrainingError, match=r"franka_panda_mistakes/meta.json: classes is .*, expected"):
        load_bodies(tmp_path, ["franka_panda"], processor, (16, 32), configuration().normalisation)


def test_schedule():
    optimiser = configuration().optimiser
    rates = [learning_rate(step, 100, optimiser) / optimiser.learning_rate for step in range(100)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[49] == 1.0
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert rates[75] == pytest.approx(0.55, abs=0.02)
    assert rates[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["tiny.yaml", "full.yaml", "last.yaml"])
def test_shipped_configurations_are_valid(name):
    settings = load_configuration(SHIPPED.with_name(name))
    four = {"franka_panda", "aloha_viperx", "tiago_base", "unitree_g1"}
    assert four <= set(settings.batch.images) <= set(list_embodiments())
    assert settings.steps > settings.backbone_steps


def test_shipped_configuration_of_fine_tuning_is_valid():
    assert load_finetuning(SHIPPED.with_name("finetune.yaml")).validation.share > 0


def test_quantiles_that_would_turn_a_channel_round(tmp_path):
    content = yaml.safe_load(SHIPPED.read_text()) | {"normalisation": {"lower": "q99", "upper": "q01"}}
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(TrainingError, match=r"bad.yaml: normalisation: .*found lower q99 and upper q01"):
        load_configuration(path)


def test_configuration_faults_are_named(tmp_path):
    content = yaml.safe_load(SHIPPED.read_text())
    content["optimiser"]["learning_rate"] = -1
    content["loss"]["colour"] = 1
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(TrainingError) as caught:
        load_configuration(path)
    assert "bad.yaml: optimiser.learning_rate: Input should be greater than 0" in str(caught.value)
    assert "loss.colour: Extra inputs are not permitted" in str(caught.value)
    with pytest.raises(TrainingError, match="cannot be read"):
        load_configuration(tmp_path / "none.yaml")


def test_shares_of_a_larger_batch():
    batch = load_configuration(SHIPPED).batch
    larger = batch.scaled(10 * sum(batch.images.values()))
    assert larger.images == {name: 10 * n for name, n in batch.images.items()}
    assert min(batch.scaled(1).images.values()) == 1
    assert larger.prompts_per_image == batch.prompts_per_image
