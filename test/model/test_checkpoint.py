# SPDX-License-Identifier: Apache-2.0
"""Checkpoint folders: round trips and one clear error per fault."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from qwen_vla_ros.model.checkpoint import CheckpointError, from_backbone, load_checkpoint, save_checkpoint
from qwen_vla_ros.model.cli import app
from qwen_vla_ros.model.configuration import ActionExpertConfig
from qwen_vla_ros.model.processor import ProcessorConfig

ENTRY = {
    "channels": ["arm/a", "arm/b"],
    "q01": [-1.0, 0.0],
    "q99": [1.0, 2.0],
    "control_rate": 10.0,
    "horizon": 8,
}


@pytest.fixture(scope="module")
def saved(tiny_session, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, *tiny_session, {"arm": ENTRY})
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def assert_same_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_files_of_a_folder(saved: Path) -> None:
    names = {path.name for path in saved.iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "statistics.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    }


def test_round_trip_is_exact(tiny, saved: Path) -> None:
    model, processor = tiny
    checkpoint = load_checkpoint(saved)
    assert_same_weights(model, checkpoint.model)
    assert checkpoint.statistics == {"arm": ENTRY}
    assert checkpoint.config.to_dict() == {**model.config.to_dict(), **_written(checkpoint.config)}
    assert checkpoint.processor.config == processor.config
    assert not checkpoint.model.training


def _written(config) -> dict[str, Any]:
    content = config.to_dict()
    return {key: content[key] for key in ("architectures", "dtype")}


def test_sharded_round_trip_is_exact(tiny, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, *tiny, {}, max_shard_size="3MB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    assert not (tmp_path / "model.safetensors").exists()
    assert_same_weights(tiny[0], load_checkpoint(tmp_path).model)


def test_saving_again_leaves_no_old_shards(tiny, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, *tiny, {}, max_shard_size="3MB")
    save_checkpoint(tmp_path, *tiny, {})
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]
    assert_same_weights(tiny[0], load_checkpoint(tmp_path).model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_load_as_float32(tiny, tmp_path: Path, dtype: torch.dtype) -> None:
    model, processor = tiny
    save_checkpoint(tmp_path, model, processor, {}, dtype=dtype)
    assert (tmp_path / "model.safetensors").stat().st_size < 8e6
    loaded = load_checkpoint(tmp_path).model
    for name, value in model.state_dict().items():
        found = loaded.state_dict()[name]
        assert found.dtype == torch.float32
        assert torch.equal(found, value.to(dtype).float()), name


def test_rotary_frequencies_stay_float32_in_16_bit_models(tiny, saved: Path) -> None:
    loaded = load_checkpoint(saved, dtype=torch.bfloat16).model
    frequencies = loaded.backbone.model.language_model.rotary_emb.inv_freq
    assert torch.equal(frequencies, tiny[0].backbone.model.language_model.rotary_emb.inv_freq)
    assert next(loaded.parameters()).dtype == torch.bfloat16


def test_tied_embeddings_stay_tied(saved: Path) -> None:
    assert "backbone.lm_head.weight" not in load_file(saved / "model.safetensors")
    backbone = load_checkpoint(saved).model.backbone
    assert backbone.lm_head.weight is backbone.model.language_model.embed_tokens.weight


def test_a_copy_of_tied_embeddings_may_be_stored(saved: Path, tmp_path: Path) -> None:
    """As tools write it that know nothing of ties."""
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors["backbone.model.language_model.embed_tokens.weight"]
    save_file({**tensors, "backbone.lm_head.weight": embedding.clone()}, folder / "model.safetensors")
    assert_same_weights(load_checkpoint(saved).model, load_checkpoint(folder).model)


def test_from_pretrained_of_transformers_reads_the_folder_too(tiny, saved: Path) -> None:
    model = type(tiny[0]).from_pretrained(saved)
    assert_same_weights(tiny[0], model)


def faults(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    return str(caught.value)


def test_no_folder(tmp_path: Path) -> None:
    assert "nothing: no such folder; give the folder that holds config.json" in faults(tmp_path / "nothing")


def test_wrong_folder(tmp_path: Path) -> None:
    assert faults(tmp_path).endswith("is not a checkpoint folder")


def test_not_a_qwen_vla_configuration(folder: Path) -> None:
    edit(folder / "config.json", lambda c: c.update(model_type="llama"))
    assert "config.json: model_type: found 'llama', expected 'qwen_vla'" in faults(folder)


def test_plain_backbone_is_pointed_to_its_loader(folder: Path) -> None:
    edit(folder / "config.json", lambda c: c.update(model_type="qwen3_5"))
    assert "from_backbone()" in faults(folder)


def test_code_is_refused(folder: Path) -> None:
    edit(folder / "config.json", lambda c: c.update(auto_map={"AutoModel": "evil.Model"}))
    assert "config.json: auto_map: code of a checkpoint is never run" in faults(folder)


def test_configuration_that_is_not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "config.json: cannot be read" in faults(folder)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("action_expert", "horizon", "sixteen"),
        ("action_expert", "action_position", "before"),
        ("flow", "tau_distribution", "cauchy"),
        ("flow", "padding_noise", "half"),
        ("flow", "num_steps", 0),
        ("flow", "tau_beta", [0.0, 1.0]),
        ("action_expert", "channels", -3),
        ("action_expert", "vlm_layer", 4),
    ],
)
def test_bad_field_of_the_configuration_is_named(folder: Path, part: str, field: str, value: Any) -> None:
    edit(folder / "config.json", lambda c: c[part].update({field: value}))
    message = faults(folder)
    assert "config.json: not a valid Qwen-VLA configuration" in message
    assert field in message


def test_missing_tensor(folder: Path) -> None:
    edit_weights(folder, lambda t: t.pop("action_expert.vlm_projection.weight"))
    assert "missing tensors action_expert.vlm_projection.weight; weights and config.json differ" in faults(
        folder
    )


def test_unexpected_tensor(folder: Path) -> None:
    edit_weights(folder, lambda t: t.update(extra=torch.zeros(1)))
    assert "unexpected tensors extra" in faults(folder)


def test_wrong_shape(folder: Path) -> None:
    name = "action_expert.action_in.0.weight"
    edit_weights(folder, lambda t: t.update({name: torch.zeros(3, 4)}))
    assert f"model.safetensors: {name}: found shape (3, 4), expected (128, 32)" in faults(folder)


def test_weights_that_are_not_finite(folder: Path) -> None:
    edit_weights(folder, lambda t: t["action_expert.vlm_projection.bias"].fill_(float("nan")))
    assert "vlm_projection.bias: holds values that are not finite" in faults(folder)


@pytest.mark.parametrize("size", [0, 5, 3000, 5_000_000])
def test_truncated_weights(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert "model.safetensors: corrupt or truncated" in faults(folder)


def test_weights_that_are_not_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 4096)
    assert "model.safetensors: corrupt or truncated" in faults(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "neither model.safetensors nor model.safetensors.index.json" in faults(folder)


def test_pickled_weights_are_never_opened(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin cannot be used: only safetensors are read" in faults(folder)


@pytest.fixture
def sharded(tiny, tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "sharded", *tiny, {}, max_shard_size="3MB")
    return tmp_path / "sharded"


def test_missing_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*"))[1]
    shard.unlink()
    assert f"missing shards {shard.name}; copy the whole checkpoint again" in faults(sharded)


def test_shard_without_a_promised_tensor(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*"))[0]
    tensors = load_file(shard)
    name = sorted(tensors)[0]
    del tensors[name]
    save_file(tensors, shard)
    assert f"{shard.name}: no tensor {name}, which model.safetensors.index.json promises" in faults(sharded)


def test_index_does_not_lead_out_of_the_folder(sharded: Path) -> None:
    edit(
        sharded / "model.safetensors.index.json",
        lambda c: c["weight_map"].update({"x": "../secret.safetensors"}),
    )
    assert "x: found '../secret.safetensors', expected a file name" in faults(sharded)


def test_missing_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json: no such file" in faults(folder)


def test_broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer" in faults(folder)


def test_processor_of_another_patch_size(folder: Path) -> None:
    edit(folder / "processor_config.json", lambda c: c.update(patch_size=8))
    assert "patch_size: the processor has 8, config.json has 16" in faults(folder)


def test_missing_statistics(folder: Path) -> None:
    (folder / "statistics.json").unlink()
    assert "statistics.json: no such file" in faults(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q01": [0.0]}, "found 2 channels, 1 q01, 2 q99"),
        ({"q01": [1.0, 0.0]}, "arm/a: found q01 1.0, q99 1.0, expected finite q01 < q99"),
        ({"q99": [float("nan"), 1.0]}, "arm/a: found q01 -1.0, q99 nan"),
        ({"q99": ["high", 1.0]}, "could not convert"),
        ({"horizon": 17}, "expected at most K = 32 and H = 16"),
        ({"horizon": 0}, "expected at most K = 32 and H = 16"),
        ({"control_rate": -1.0}, "control_rate: found -1.0"),
        ({"channels": ["x"] * 33, "q01": [0.0] * 33, "q99": [1.0] * 33}, "found 33 channels"),
        ({"mean": [0.0, 0.0]}, "found fields"),
    ],
)
def test_statistics_that_do_not_fit(folder: Path, change: dict, message: str) -> None:
    edit(folder / "statistics.json", lambda c: c["arm"].update(change))
    found = faults(folder)
    assert "statistics.json: arm" in found
    assert message in found


def test_bad_statistics_are_not_written(tiny, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected finite q01 < q99"):
        save_checkpoint(tmp_path / "new", *tiny, {"arm": {**ENTRY, "q99": [-1.0, 2.0]}})
    assert not (tmp_path / "new").exists()


def test_plain_backbone_with_a_fresh_expert(tiny, tmp_path: Path) -> None:
    model, processor = tiny
    model.backbone.save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    expert = ActionExpertConfig(
        hidden_size=64, num_attention_heads=2, head_dim=32, intermediate_size=96, num_hidden_layers=2
    )
    built, own = from_backbone(
        tmp_path, expert, processor=ProcessorConfig(image_size=(64, 64), chat=False), views=["ego", "tail"]
    )
    assert_same_weights(model.backbone, built.backbone)
    assert "tail" in own.views
    assert built.action_expert.action_out[-1].weight.abs().max() == 0
    assert built.action_expert.blocks[0].mlp.down.weight.abs().max() > 0
    assert all(torch.isfinite(p).all() for p in built.parameters())


def test_inspect_prints_the_embodiments(saved: Path) -> None:
    result = CliRunner().invoke(app, ["inspect", str(saved), "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["embodiments"]["arm"]["horizon"] == 8
    assert facts["action tensor"] == [16, 32]
    plain = CliRunner().invoke(app, ["inspect", str(saved)])
    assert "2 channels, 8 rows at 10 Hz" in plain.stdout


def test_inspect_says_what_is_wrong(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["inspect", str(tmp_path)])
    assert result.exit_code == 1
    assert "config.json: no such file" in result.stderr
