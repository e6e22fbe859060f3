# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning: from a written dataset to a policy that answers, and what is refused."""

import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pyarrow
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from pyarrow import parquet
from typer.testing import CliRunner

from qwen_vla_ros.cli import app
from qwen_vla_ros.embodiment import Statistics, denormalise, parse_embodiment
from qwen_vla_ros.model.checkpoint import load_checkpoint, save_checkpoint
from qwen_vla_ros.model.flow_matching import draw_flow
from qwen_vla_ros.policy import Observation
from qwen_vla_ros.policy.local import LocalPolicy
from qwen_vla_ros.resources import config_directory
from qwen_vla_ros.training import lora, saving
from qwen_vla_ros.training.configuration import load_finetuning, parse_finetuning
from qwen_vla_ros.training.errors import TrainingError
from qwen_vla_ros.training.finetuning import (
    Finetuner,
    RecordedChunks,
    check_memory,
    encode,
    training_bytes,
)
from qwen_vla_ros.training.lerobot import LeRobotFolder
from qwen_vla_ros.training.starting import prepare_start

V2, V3, IMAGES = ("v2.1", "video"), ("v3.0", "video"), ("v3.0", "image")
SETTINGS = {
    "steps": 48,
    "batch": 8,
    "log_every": 8,
    "workers": 1,
    "backbone_rate": 1.0,
    "validation": {"share": 0.3, "every": 48, "chunks": 8},
    "optimiser": {"learning_rate": 5e-3, "warmup": 2, "flat": 0.5, "final": 0.1, "ema": 0.9},
    "augmentation": {"gain": 0.02, "colour": 0.02, "offset": 0.02, "noise": 0.01},
    "processor": {"image_size": [32, 64], "chat": False},
    "expert": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "head_dim": 32,
        "intermediate_size": 64,
        "timestep_dim": 32,
        "channels": 8,
        "horizon": 6,
    },
}


def settings(**changes):
    return parse_finetuning({**SETTINGS, **changes}, "test")


def test_own_configuration_says_only_what_differs(tmp_path):
    shipped, own = config_directory() / "training" / "finetune.yaml", tmp_path / "own.yaml"
    own.write_text("steps: 7\nvalidation: {every: 3}\nmapping: {cameras: {ego: observation.images.laptop}}\n")
    default, configuration = load_finetuning(shipped), load_finetuning(shipped, own)
    assert (configuration.steps, configuration.validation.every) == (7, 3)
    assert configuration.validation.chunks == default.validation.chunks
    assert configuration.optimiser == default.optimiser
    assert configuration.mapping.cameras == {"ego": "observation.images.laptop"}
    own.write_text("- steps: 7\n")
    with pytest.raises(TrainingError, match=r"own\.yaml: found list, expected fields as in .*finetune\.yaml"):
        load_finetuning(shipped, own)
    own.write_text("validation: {each: 3}\n")
    with pytest.raises(TrainingError, match=r"own\.yaml: validation\.each"):
        load_finetuning(shipped, own)


@pytest.fixture(scope="module")
def beginnings(micro, tmp_path_factory):
    """Folder of a checkpoint that knows another robot, and folder of a plain Qwen3.5."""
    root = tmp_path_factory.mktemp("beginnings")
    model, processor = micro(image_size=(32, 64))
    other = {"channels": ["x/y"], "q01": [0.0], "q99": [1.0], "control_rate": 5.0, "horizon": 8}
    save_checkpoint(root / "checkpoint", model, processor, {"other": other})
    model.backbone.save_pretrained(root / "backbone")
    processor.tokenizer.save_pretrained(root / "backbone")
    return root


@pytest.fixture
def finetuner(recorded, robot, beginnings):
    """`finetuner(folder, kind of dataset, start, low_rank, **changes)`."""

    def make(folder, kind=V3, start="checkpoint", low_rank=False, **changes):
        configuration = settings(**changes)
        data = RecordedChunks(LeRobotFolder(recorded[kind]), robot, configuration)
        place = {start: beginnings / start}
        begin = prepare_start(robot, data.views, configuration, low_rank=low_rank, **place)
        # A process has one precision; the tests of this file share one.
        AcceleratorState._reset_state(reset_partial_state=True)
        return Finetuner(configuration, data, begin, folder, "cpu")

    return make


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("kind", "start", "options"),
    [(V2, "checkpoint", ()), (V3, "backbone", ()), (IMAGES, "backbone", ("--lora",))],
)
def test_dataset_to_policy(recorded, beginnings, robot, robot_content, tmp_path, kind, start, options):
    """The command, as typed: the loss falls, and the checkpoint drives the robot of the dataset."""
    yaml_file, config, out = tmp_path / "my_robot.yaml", tmp_path / "config.yaml", tmp_path / "out"
    yaml_file.write_text(yaml.safe_dump(robot_content))
    config.write_text(yaml.safe_dump(SETTINGS))
    command = ["train", "--dataset", recorded[kind], "--embodiment", yaml_file, "--config", config]
    command += [f"--{start}", beginnings / start, "--out", out, "--device", "cpu", *options]
    result = CliRunner().invoke(app, [str(word) for word in command])
    assert result.exit_code == 0, result.output
    assert "arm/shoulder  <-  action[shoulder.pos]" in result.output
    assert (out / "metrics.png").is_file()
    lines = metrics(out)
    assert lines[-1]["step"] == 48
    assert lines[-1]["loss"] < 0.85 * lines[0]["loss"]
    assert np.isfinite(lines[-1]["validation_error"])

    policy = LocalPolicy.load(out / "checkpoint", "cpu", threads=1)
    policy.configure(robot)
    images = {view: np.full((32, 48, 3), 80, dtype=np.uint8) for view in ("ego", "wrist_2")}
    chunk = policy.infer(Observation(images, "push the red button", 0.0), seed=0)
    assert chunk.shape == (4, 3)
    actions = denormalise(chunk, policy.statistics)
    # Shoulder -0.4 to 0.4 rad in the recordings.
    assert -0.45 < actions[:, 0].min() <= actions[:, 0].max() < 0.45
    known = load_checkpoint(out / "checkpoint").statistics
    assert set(known) == ({"my_robot", "other"} if start == "checkpoint" else {"my_robot"})
    assert known["my_robot"]["control_rate"] == 10.0


def test_resumed_run_is_the_same_run(finetuner, tmp_path):
    settings = {"steps": 6, "log_every": 1, "low_rank": True, "accumulate": 2, "lora": {"dropout": 0.2}}
    whole = finetuner(tmp_path / "whole", **settings)
    whole.run()
    finetuner(tmp_path / "parts", **settings).run(until=3)
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 1000.0}\n{"step": 5, "lo')  # as a kill leaves it
    rest = finetuner(tmp_path / "parts", **settings)
    rest.resume()
    assert rest.step == 3
    rest.run()
    for name, tensor in whole.average.items():
        torch.testing.assert_close(rest.average[name], tensor, rtol=0, atol=0)
    losses = [[line["loss"] for line in metrics(tmp_path / part)] for part in ("whole", "parts")]
    assert losses[0] == losses[1]


def test_state_of_another_run(finetuner, tmp_path):
    finetuner(tmp_path, steps=1).run()
    with pytest.raises(TrainingError, match="other parameters are trained now than then"):
        finetuner(tmp_path, steps=1, low_rank=True).resume()
    with pytest.raises(TrainingError, match="backbone"):
        finetuner(tmp_path, steps=1, start="backbone").resume()
    grown = finetuner(tmp_path, steps=1)
    before = grown.data.statistics
    grown.data.statistics = Statistics(before.q01, before.q99 + 0.1)
    with pytest.raises(
        TrainingError, match=r"q99: found .*, expected .*: the dataset, its mapping or the robot"
    ):
        grown.resume()


def test_rates_of_a_resumed_run_are_those_of_its_configuration(finetuner, tmp_path):
    finetuner(tmp_path, steps=2).run(until=1)
    optimiser = {**SETTINGS["optimiser"], "betas": (0.5, 0.6), "weight_decay": 0.5}
    rest = finetuner(tmp_path, steps=2, backbone_rate=0.25, optimiser=optimiser)
    rest.resume()
    groups = [(g["rate"], g["weight_decay"], g["betas"]) for g in rest._optimiser.param_groups]
    assert groups == [(0.25, 0.5, (0.5, 0.6)), (1.0, 0.5, (0.5, 0.6))]
    assert any(bool(state["exp_avg"].any()) for state in rest._optimiser.state.values())


def test_weights_that_could_not_be_written_are_written_by_the_resumed_run(finetuner, tmp_path):
    finetuner(tmp_path, steps=2).run()  # without weights, as when the disk was full
    rest = finetuner(tmp_path, steps=2)
    rest.resume()
    rest.run(save=lambda each: each.save_checkpoint())
    assert saving.step_of(tmp_path / "checkpoint") == 2
    written = (tmp_path / "checkpoint" / "config.json").stat().st_mtime_ns
    rest.run(save=lambda each: each.save_checkpoint())
    assert (tmp_path / "checkpoint" / "config.json").stat().st_mtime_ns == written


def test_validation_does_not_wait_for_a_line_of_the_log(finetuner, tmp_path):
    validation = {**SETTINGS["validation"], "every": 3}
    finetuner(tmp_path, steps=8, log_every=4, validation=validation).run()
    judged = {line["step"]: "validation_loss" in line for line in metrics(tmp_path)}
    assert judged == {3: True, 4: False, 6: True, 8: True}


def test_two_processes_save_together(recorded, beginnings, robot_content, tmp_path):
    """Each has its own clock; the one that writes must not leave the other in another collective."""
    yaml_file, config, out = tmp_path / "my_robot.yaml", tmp_path / "config.yaml", tmp_path / "out"
    yaml_file.write_text(yaml.safe_dump(robot_content))
    config.write_text(yaml.safe_dump({**SETTINGS, "steps": 40, "save_every": 0.2}))
    launch = "torch.distributed.run --standalone --local_addr 127.0.0.1 --nproc_per_node 2"
    train = f"qwen_vla_ros.cli train --dataset {recorded[V3]} --embodiment {yaml_file} --config {config}"
    train += f" --checkpoint {beginnings / 'checkpoint'} --out {out} --device cpu"
    loopback = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    for part in (("--until", "24"), ("--resume",)):
        command = [sys.executable, "-m", *launch.split(), "-m", *train.split(), *part]
        with subprocess.Popen(
            command, env=loopback, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            try:
                output, _ = process.communicate(timeout=120)
            finally:
                process.terminate()  # it ends those that it started
        assert process.returncode == 0, output
    assert metrics(out)[-1]["step"] == saving.step_of(out / "checkpoint") == 40


def test_merged_model_answers_as_the_adapted_one(finetuner, tmp_path):
    run = finetuner(tmp_path, steps=3, low_rank=True, optimiser={**SETTINGS["optimiser"], "ema": 0.0})
    run.run()
    batch = run.data.batch(run.data.spread(4), run.start.processor, (16, 32))
    plain = lora.plain_model(run.model)
    assert not any("lora" in name for name, _ in plain.named_parameters())
    run.model.eval()
    with torch.no_grad():
        adapted, merged = encode(run.model, batch), encode(plain.eval(), batch)
    torch.testing.assert_close(merged.hidden, adapted.hidden, rtol=1e-3, atol=1e-3)
    frozen = dict(run.model.named_parameters())
    assert not any(p.requires_grad for n, p in frozen.items() if n.startswith("backbone") and "lora" not in n)


def test_computed_again_is_the_same_gradient(finetuner, tmp_path):
    found = []
    for checkpointing in (False, True):
        run = finetuner(tmp_path / str(checkpointing), checkpointing=checkpointing)
        batch, seed = run._batch(0, 0)
        run.model.action_expert.action_out[-1].weight.data.fill_(0.1)
        run._loss(batch, seed).backward()
        found.append({n: p.grad for n, p in run.model.named_parameters() if p.grad is not None})
    assert set(found[0]) == set(found[1])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-5, msg=name)


@torch.no_grad()
def test_prefixes_of_a_checkpoint_are_drawn_for_the_grippers_of_the_robot(finetuner, tmp_path, monkeypatch):
    run = finetuner(tmp_path)
    monkeypatch.setattr(run.model.config.flow, "prefix_rows", 3)
    torch.manual_seed(0)
    # A fresh expert is zero where its rows would see each other.
    for parameter in run.model.action_expert.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    batch, _ = run._batch(0, 0)
    context = encode(run.model, batch)
    losses: list[list[float]] = []
    for grippers in (run.data.embodiment.grippers, ()):
        drawn = [
            draw_flow(8, run._shape, run.model.config.flow, torch.Generator().manual_seed(seed), grippers)
            for seed in range(10)
        ]
        assert {each.prefix is None for each in drawn} == {False, True}
        losses.append(
            [
                float(run.model.flow_loss(context, batch["actions"], batch["action_mask"], d).loss)
                for d in drawn
            ]
        )
    found = [float(run._loss(batch, seed)) for seed in range(10)]
    assert found == pytest.approx(losses[0], rel=1e-5)
    assert found != pytest.approx(losses[1], rel=1e-5)


def test_bfloat16_autocast_is_close(finetuner, tmp_path):
    found = []
    for precision in ("float32", "bfloat16"):
        run = finetuner(tmp_path / precision, steps=2, log_every=1, precision=precision)
        run.run()
        assert all(p.dtype == torch.float32 for p in run.model.parameters())
        found.append([line["loss"] for line in metrics(tmp_path / precision)])
    np.testing.assert_allclose(found[1], found[0], rtol=0.03)


def test_view_that_the_checkpoint_does_not_know(finetuner, beginnings, tmp_path):
    before = load_checkpoint(beginnings / "checkpoint")
    run = finetuner(tmp_path)
    assert "wrist_2" not in before.processor.views
    assert "wrist_2" in run.start.processor.views
    old, new = before.model.get_input_embeddings().weight, run.model.get_input_embeddings().weight
    ids = run.start.processor.tokenizer.get_vocab()
    assert len(new) > ids["<|wrist_2_end|>"]
    count = len(before.processor.tokenizer)
    torch.testing.assert_close(new[:count], old[:count])
    assert run.model.config.backbone.text_config.vocab_size == len(new)


def test_state_in_the_prompt_and_one_instruction(recorded, robot_content, micro):
    content = {**robot_content, "prompt": {**robot_content["prompt"], "state": True}}
    configuration = settings(mapping={"instruction": "open the drawer"})
    data = RecordedChunks(LeRobotFolder(recorded[V3]), parse_embodiment(content), configuration)
    _, processor = micro(image_size=(32, 64))
    processor.tokenizer.add_tokens(["<|wrist_2_start|>", "<|wrist_2_end|>"], special_tokens=True)
    batch = data.batch([(data.training[0], 0), (data.training[0], 11)], processor, (16, 32))
    texts = [processor.tokenizer.decode(row) for row in batch["input_ids"]]
    assert texts[0] != texts[1]
    assert all("state: [" in text and "open the drawer" in text for text in texts)


@pytest.mark.parametrize(("feature", "missing"), [("action", 1), ("observation.state", 2)])
def test_frames_without_a_row_are_neither_drawn_nor_judged(recorded, robot, feature, missing):
    """A row is two frames; of a chunk that begins later no row is recorded, and its loss would count as 0."""
    source = {"arm": {"feature": feature}, "gripper": {"feature": feature}}
    data = RecordedChunks(LeRobotFolder(recorded[V3]), robot, settings(mapping={"actions": source}))
    drawn = data.draw(np.random.default_rng(0), 1000)
    for samples, episodes in ((drawn, data.training), (data.spread(1000), data.validation)):
        found = {(episode.index, frame) for episode, frame in samples}
        every = {(e.index, frame) for e in episodes for frame in range(e.length - missing)}
        assert found == every
        for episode, frame in samples:
            assert data.chunker.chunks(episode, np.array([frame]))[1].any()


def test_episodes_without_a_row_are_left_out(load, write_lerobot, tmp_path):
    folder = write_lerobot(tmp_path / "short", "v3.0", lengths=(12, 1, 12))
    assert [e.index for e in load(folder, short_episodes="mask").dataset.episodes] == [0, 2]
    folder = write_lerobot(tmp_path / "shortest", "v3.0", lengths=(1, 1))
    with pytest.raises(TrainingError, match="no episode of 2 frames or more"):
        load(folder, short_episodes="mask")


@pytest.mark.parametrize("backend", ["eager", "engine"])
def test_a_camera_that_the_dataset_lacks_is_not_used(
    recorded, beginnings, robot_content, tmp_path, caplog, backend
):
    """The YAML that was trained with is the one that is served."""
    top = {"view": "top", "topic": "top/image_raw", "size": [48, 32], "required": False}
    body = parse_embodiment({**robot_content, "cameras": [top, *robot_content["cameras"]]})
    configuration = settings(steps=1)
    data = RecordedChunks(LeRobotFolder(recorded[IMAGES]), body, configuration)
    start = prepare_start(body, data.views, configuration, beginnings / "checkpoint")
    AcceleratorState._reset_state(reset_partial_state=True)
    run = Finetuner(configuration, data, start, tmp_path, "cpu")
    run.run(save=lambda each: each.save_checkpoint())

    policy = LocalPolicy.load(run.checkpoint, "cpu", threads=1, engine=backend == "engine")
    policy.configure(body)
    told = f"view 'top' is not used: {run.checkpoint} does not know it"
    assert [told in record.message for record in caplog.records].count(True) == 1
    images = {view: np.full((32, 48, 3), 80, dtype=np.uint8) for view in ("top", "ego", "wrist_2")}
    seen = policy.infer(Observation(images, "push the red button", 0.0), seed=0)
    assert (policy._engine is not None) == (backend == "engine")
    del images["top"]
    np.testing.assert_array_equal(seen, policy.infer(Observation(images, "push the red button", 0.0), seed=0))
    assert not [record for record in caplog.records if "operation by operation" in record.message]


# What is refused


@pytest.fixture
def broken(recorded, tmp_path):
    return shutil.copytree(recorded[V3], tmp_path / "v3")


@pytest.fixture
def broken_v2(recorded, tmp_path):
    return shutil.copytree(recorded[V2], tmp_path / "v2")


@pytest.fixture
def load(robot):
    def read(folder, embodiment=robot, **changes):
        return RecordedChunks(LeRobotFolder(folder), embodiment, settings(**changes))

    return read


def edit_info(folder, **changes):
    path = folder / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_column(path, name, change):
    table = parquet.read_table(path)
    values = table[name].to_pylist()
    change(values)
    index = table.column_names.index(name)
    parquet.write_table(table.set_column(index, name, pyarrow.array(values)), path)


def test_missing_folder(load, tmp_path):
    with pytest.raises(TrainingError, match="nowhere: no such folder; expected a LeRobot dataset"):
        load(tmp_path / "nowhere")
    with pytest.raises(TrainingError, match=r"meta/info.json: no such file"):
        load(tmp_path)


@pytest.mark.parametrize("version", ["v1.6", "v4.0", None])
def test_wrong_version(load, broken, version):
    edit_info(broken, codebase_version=version)
    with pytest.raises(
        TrainingError, match=f"codebase_version: found {version!r}, expected one of v2.0, v2.1"
    ):
        load(broken)


def test_missing_parquet(load, broken_v2):
    (broken_v2 / "data/chunk-000/episode_000001.parquet").unlink()
    with pytest.raises(TrainingError, match=r"episode_000001.parquet: no such file; copy the whole dataset"):
        load(broken_v2)


def test_truncated_parquet(load, broken):
    path = broken / "data/chunk-000/file-000.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TrainingError, match=r"file-000.parquet: damaged or cut short"):
        load(broken)


def test_rows_that_are_missing(load, broken):
    path = broken / "data/chunk-000/file-000.parquet"
    parquet.write_table(parquet.read_table(path).slice(0, 30), path)
    with pytest.raises(TrainingError, match="half-written: found 4 rows of episode 2, expected 12"):
        load(broken)


def test_recording_that_was_not_finished(load, broken_v2):
    path = broken_v2 / "meta" / "episodes.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(TrainingError, match=r"found total_episodes 2, info.json says 3"):
        load(broken_v2)


def test_truncated_video(load, broken):
    path = broken / "videos/observation.images.ego/chunk-000/file-000.mp4"
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(TrainingError, match=r"images.ego/chunk-000/file-000.mp4: damaged or cut short"):
        load(broken)


def test_video_that_is_too_short(load, broken_v2):
    videos = broken_v2 / "videos/chunk-000/observation.images.wrist_2"
    shutil.copy(videos / "episode_000000.mp4", videos / "episode_000001.mp4")
    with pytest.raises(
        TrainingError, match=r"episode_000001.mp4: episode 1: no frame 13 at 0.650 s; .* 12 frames"
    ):
        load(broken_v2)


def test_missing_video(load, broken):
    (broken / "videos/observation.images.wrist_2/chunk-000/file-000.mp4").unlink()
    with pytest.raises(TrainingError, match=r"wrist_2/chunk-000/file-000.mp4: no such file"):
        load(broken)


def test_missing_camera(load, broken, robot_content):
    cameras = [{"view": "top", "topic": "top/image_raw", "size": [48, 32]}, *robot_content["cameras"]]
    body = parse_embodiment({**robot_content, "cameras": cameras})
    with pytest.raises(TrainingError) as caught:
        load(broken, body)
    assert "view 'top': found cameras observation.images.ego, observation.images.wrist_2" in str(caught.value)
    assert "expected 'observation.images.top'" in str(caught.value)


def test_optional_camera_is_left_out(load, broken, robot_content):
    cameras = [
        *robot_content["cameras"],
        {"view": "top", "topic": "top/image_raw", "size": [48, 32], "required": False},
    ]
    assert load(broken, parse_embodiment({**robot_content, "cameras": cameras})).views == ("ego", "wrist_2")


def test_actions_that_are_not_finite(load, broken):
    path = broken / "data/chunk-000/file-000.parquet"
    edit_column(path, "action", lambda rows: rows[15].__setitem__(1, float("nan")))
    with pytest.raises(TrainingError, match=r"episode 1, frame 3: action\[shoulder.pos\]: found nan"):
        load(broken)


def test_episode_shorter_than_the_horizon(load, write_lerobot, tmp_path):
    folder = write_lerobot(tmp_path / "short", "v3.0", lengths=(12, 5, 12))
    with pytest.raises(TrainingError, match="episode 1: found 5 frames, expected at least 8, one chunk of 4"):
        load(folder)
    assert [e.index for e in load(folder, short_episodes="skip").dataset.episodes] == [0, 2]
    assert len(load(folder, short_episodes="mask").dataset.episodes) == 3


def test_degrees_of_a_robot_that_moves_by_differences(load, broken, robot_content):
    arm, gripper = robot_content["actions"]
    body = parse_embodiment({**robot_content, "actions": [{**arm, "reference": "chunk_start"}, gripper]})
    load(broken, body)
    with pytest.raises(
        TrainingError, match=r"arm/shoulder: found values of .* in 'action', expected limits.pos"
    ):
        load(broken, body, mapping={"actions": {"arm": {"scale": 57.3}}})


# Stamps


def change_stamps(folder, change):
    """`change(stamps)` of the 14 frames of episode 1, at 20 Hz, in place."""

    def edit(values):
        part = np.array(values[12:26])
        change(part)
        values[12:26] = part.tolist()

    edit_column(folder / "data/chunk-000/file-000.parquet", "timestamp", edit)


def drop(stamps):
    stamps[5:] += 0.05


def begin_late(stamps):
    stamps += 0.05


def stretch(stamps):
    stamps *= 1.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"episode 1, frame 5: timestamp: found 0.300 s, expected 0.250 s at the 20 fps of info.json"),
        (begin_late, r"episode 1, frame 0: timestamp: found 0.050 s, expected 0.000 s"),
        (stretch, r"episode 1, frame 13: timestamp: found 0.780 s, expected 0.650 s"),
    ],
)
def test_stamps_that_do_not_fit_the_rate(load, broken, change, message):
    change_stamps(broken, change)
    with pytest.raises(TrainingError, match=rf"file-000.parquet: {message}"):
        load(broken)


def test_rate_that_is_not_that_of_the_stamps(load, broken):
    """Twice the rate, on which half a period lies, and long after the start, where float32 is coarse."""
    edit_info(broken, fps=10)
    with pytest.raises(
        TrainingError, match=r"episode 0, frame 1: timestamp: found 0.050 s, expected 0.100 s"
    ):
        load(broken)


def test_stamps_with_a_little_jitter(load, broken):
    noise = np.random.default_rng(0).uniform(-0.01, 0.01, 14)
    change_stamps(broken, lambda stamps: stamps.__iadd__(noise))
    load(broken)


# Meta


def edit_lines(path, row, **changes):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[row] |= changes
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "episodes",
            {"length": None},
            r"episode 1: length: found None, expected a whole number of at least 1",
        ),
        ("episodes", {"length": 0}, r"episode 1: length: found 0, expected a whole number of at least 1"),
        ("episodes", {"episode_index": "a"}, r"row 1: episode_index: found 'a', expected a whole number"),
        (
            "tasks",
            {"task_index": "a"},
            r"row 1: task_index: found 'a', expected a whole number of at least 0",
        ),
        (
            "tasks",
            {"task_index": 0.5},
            r"row 1: task_index: found 0.5, expected a whole number of at least 0",
        ),
        ("tasks", {"task": None}, r"row 1: task: found None, expected a text"),
    ],
)
def test_lines_that_say_nothing(load, broken_v2, file, changes, message):
    edit_lines(broken_v2 / "meta" / f"{file}.jsonl", 1, **changes)
    with pytest.raises(TrainingError, match=rf"meta/{file}.jsonl: {message}"):
        load(broken_v2)


@pytest.mark.parametrize("size", [0, None, "many"])
def test_chunks_of_no_size(load, broken_v2, size):
    edit_info(broken_v2, chunks_size=size)
    message = rf"info.json: chunks_size: found {size!r}, expected a whole number of at least 1"
    with pytest.raises(TrainingError, match=message):
        load(broken_v2)


@pytest.mark.parametrize(
    ("file", "column", "message"),
    [
        ("episodes/chunk-000/file-000", "episode_index", r"row 1: episode_index: found None"),
        ("episodes/chunk-000/file-000", "length", r"episode 1: length: found None"),
        ("episodes/chunk-000/file-000", "data/chunk_index", r"episode 1: data/chunk_index: found None"),
        (
            "episodes/chunk-000/file-000",
            "videos/observation.images.ego/from_timestamp",
            r"episode 1: videos/observation.images.ego/from_timestamp: found None, expected a time \[s\]",
        ),
        ("tasks", "task_index", r"row 1: task_index: found None"),
        ("tasks", "__index_level_0__", r"row 1: __index_level_0__: found None, expected a text"),
    ],
)
def test_rows_that_say_nothing(load, broken, file, column, message):
    edit_column(broken / f"meta/{file}.parquet", column, lambda rows: rows.__setitem__(1, None))
    with pytest.raises(TrainingError, match=rf"meta/{file}.parquet: {message}"):
        load(broken)


def test_names_of_entries(load, broken):
    """One for each, or one for the axis, as the converters of openpi write it."""
    features = json.loads((broken / "meta" / "info.json").read_text())["features"]
    features["action"]["names"] = ["jaw.pos", "shoulder.pos"]
    edit_info(broken, features=features)
    message = (
        r"info.json: features.action.names: found 2 names, jaw.pos, shoulder.pos, expected 3, one for each"
    )
    with pytest.raises(TrainingError, match=message):
        load(broken)
    features["action"]["names"] = ["actions"]
    edit_info(broken, features=features)
    scaled = {"arm": {"columns": [1, 2]}, "gripper": {"columns": [0]}}
    data = load(broken, mapping={"actions": scaled})
    assert ("arm/elbow", "action[2]") in data.mapping.describe(data.dataset)


# Configuration


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        ({"tau_beta": [0.0, 1.5]}, "test: flow.tau_beta.0: .*greater than 0"),
        ({"tau_beta": [1.0, -1.5]}, "test: flow.tau_beta.1: .*greater than 0"),
        ({"tau_normal": [0.0, 0.0]}, "test: flow.tau_normal.1: .*greater than 0"),
    ],
)
def test_a_distribution_of_tau_that_is_none(flow, message):
    with pytest.raises(TrainingError, match=message):
        settings(flow=flow)
    settings(flow={"tau_normal": [-0.5, 1.0]})


def test_a_prefix_as_long_as_a_chunk(beginnings, robot):
    """The action tensor has more rows, but the robot's own would all be given."""
    with pytest.raises(
        TrainingError, match="prefix_rows: found 4, expected less than the horizon of 'my_robot', 4"
    ):
        prepare_start(robot, ("ego",), settings(flow={"prefix_rows": 4}), beginnings / "checkpoint")
    start = prepare_start(robot, ("ego",), settings(flow={"prefix_rows": 3}), beginnings / "checkpoint")
    assert start.model.config.flow.prefix_rows == 3


@pytest.mark.parametrize(
    ("ema", "half", "expected"),
    [(False, False, 1640), (True, False, 2040), (False, True, 1620), (True, True, 2020)],
)
def test_memory_that_training_needs(ema, half, expected):
    trained, frozen = torch.nn.Linear(9, 10), torch.nn.Linear(4, 2)
    frozen.requires_grad_(False)
    needed = training_bytes([*trained.parameters(), *frozen.parameters()], ema, half)
    assert needed == expected
    check_memory(needed, needed, "cuda:0")
    with pytest.raises(TrainingError) as caught:
        check_memory(40_200_000_000, 25_300_000_000, "cuda:0")
    assert str(caught.value).startswith("cuda:0: found 25.3 GB free, expected 40.2 GB, without activations")
    for way in ("--lora", "optimiser.ema: 0", "backbone_rate: 0", "freeze_vision"):
        assert way in str(caught.value)


def test_statistics_of_the_dataset_that_do_not_fit(load, broken):
    (broken / "meta" / "stats.json").write_text(json.dumps({"action": {"min": [0.0] * 7}}))
    with pytest.raises(TrainingError, match=r"stats.json: action: min: found 7 entries, expected 3"):
        load(broken)


def test_task_that_is_no_instruction(load, broken_v2):
    (broken_v2 / "meta" / "tasks.jsonl").write_text(
        '{"task_index": 0, "task": "push <|im_end|>"}\n{"task_index": 1, "task": "close"}\n'
    )
    with pytest.raises(TrainingError, match="task 0: instruction: found the special-token text"):
        load(broken_v2)


def test_path_that_leaves_the_dataset(load, broken):
    edit_info(broken, data_path="../{chunk_index}/{file_index}.parquet")
    with pytest.raises(TrainingError, match=r"data_path: found '../"):
        load(broken)


def test_picture_that_is_none(load, recorded, tmp_path):
    folder = shutil.copytree(recorded[IMAGES], tmp_path / "images")
    path = folder / "data/chunk-000/file-000.parquet"
    edit_column(path, "observation.images.ego", lambda rows: rows[3].update(bytes=b"nothing"))
    data = load(folder)
    with pytest.raises(TrainingError, match=r"observation.images.ego: row 3: not a picture"):
        data.dataset.picture(data.dataset.episodes[0], "observation.images.ego", 3)


def test_pictures_that_are_missing(load, recorded, tmp_path):
    folder = shutil.copytree(recorded[IMAGES], tmp_path / "images")
    path = folder / "data/chunk-000/file-000.parquet"
    table = parquet.read_table(path)
    parquet.write_table(table.drop_columns(["observation.images.ego"]), path)
    with pytest.raises(TrainingError, match=r"file-000.parquet: found no column 'observation.images.ego'"):
        load(folder)


def test_pictures_that_were_cut_short_after_they_had_been_found(load, recorded, tmp_path):
    folder = shutil.copytree(recorded[IMAGES], tmp_path / "images")
    data = load(folder)
    path = folder / "data/chunk-000/file-000.parquet"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(TrainingError, match=r"file-000.parquet: damaged or cut short"):
        data.dataset.picture(data.dataset.episodes[0], "observation.images.ego", 3)


@pytest.mark.parametrize("was_there", ["checkpoint", "checkpoint.old"])
def test_a_checkpoint_that_cannot_take_its_place_leaves_the_old_one(tmp_path, was_there):
    folder, old = tmp_path / "checkpoint", tmp_path / "checkpoint.old"
    (tmp_path / was_there).mkdir()
    (tmp_path / was_there / "model.safetensors").write_text("old")
    with pytest.raises(OSError, match="partial"):
        saving._swap(tmp_path / "partial", folder, old)
    assert (folder / "model.safetensors").read_text() == "old"


def test_a_published_backbone_is_trained_in_float32(beginnings, robot, tmp_path):
    """Its parts say bfloat16, in which small updates round away."""
    folder = tmp_path / "backbone"
    shutil.copytree(beginnings / "backbone", folder)
    content = json.loads((folder / "config.json").read_text())
    for part in (content, content["text_config"], content["vision_config"]):
        part["dtype"] = "bfloat16"
    (folder / "config.json").write_text(json.dumps(content))
    start = prepare_start(robot, ("ego",), settings(), backbone=folder, low_rank=True)
    assert {p.dtype for p in start.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expert": {"hidden_sise": 32}}, "expert.hidden_sise: no such field, expected hidden_size"),
        ({"expert": {"horizon": "six"}}, "expert: .*horizon"),
        ({"expert": {"horizon": -1}}, "expert: .*horizon"),
        ({"processor": {"image_sise": [32, 32]}}, "processor.image_sise: no such field, expected image_size"),
        ({"processor": {"patch_size": "x"}}, "processor: "),
    ],
)
def test_fields_of_a_new_decoder_that_do_not_fit(beginnings, robot, changes, message):
    with pytest.raises(TrainingError, match=message):
        prepare_start(robot, ("ego",), settings(**changes), backbone=beginnings / "backbone")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", None, "tokenizer.json: "),
        ("tokenizer.json", '{"version": "1.0"', "tokenizer.json: not a tokenizer"),
        ("config.json", '{"model_type": "qwen3_5"}', "config.json: no Qwen3.5 that the action expert fits"),
    ],
)
def test_a_backbone_folder_that_was_half_copied(beginnings, robot, tmp_path, file, content, message):
    folder = tmp_path / "backbone"
    shutil.copytree(beginnings / "backbone", folder)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(TrainingError, match=f"{folder}/{message}"):
        prepare_start(robot, ("ego",), settings(), backbone=folder)


def test_a_folder_that_cannot_be_made(recorded, tmp_path):
    (tmp_path / "file").write_text("")
    command = [
        "train",
        "--dataset",
        recorded[V3],
        "--embodiment",
        "so101",
        "--out",
        tmp_path / "file" / "out",
    ]
    result = CliRunner().invoke(app, [str(word) for word in command])
    assert result.exit_code == 1
    assert f"{tmp_path / 'file' / 'out'}: cannot be made (Not a directory)" in result.output


def test_action_tensor_that_is_too_small(robot, beginnings):
    small = settings(expert={**SETTINGS["expert"], "horizon": 3})
    with pytest.raises(TrainingError, match=r"found \(H, K\) = \(3, 8\), expected at least \(4, 3\)"):
        prepare_start(robot, ("ego",), small, backbone=beginnings / "backbone")
    with pytest.raises(TrainingError, match="expected one of them"):
        prepare_start(robot, ("ego",), small)
    with pytest.raises(TrainingError, match="model_type: found 'qwen_vla', expected 'qwen3_5'"):
        prepare_start(robot, ("ego",), small, backbone=beginnings / "checkpoint")


def test_full_disk_leaves_what_was_written(finetuner, tmp_path):
    """No file can grow beyond 100 kB: state and checkpoint of step 1 stay, and the run goes on from them."""
    run = finetuner(tmp_path, steps=3, log_every=1)
    run.run(until=1, save=lambda each: each.save_checkpoint())
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(
            TrainingError, match=r"state.pt: cannot be written .* what was there before is unch"
        ):
            run.run(until=2)
        with pytest.raises(TrainingError, match=r"checkpoint: cannot be written"):
            run.save_checkpoint()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for path, content in files.items():
        assert path.name == "metrics.jsonl" or path.read_bytes() == content, path
    assert not list(tmp_path.glob("*.partial*"))
    load_checkpoint(tmp_path / "checkpoint")
    again = finetuner(tmp_path, steps=3, log_every=1)
    again.resume()
    again.run()
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3]
