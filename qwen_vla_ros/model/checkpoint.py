# SPDX-License-Identifier: Apache-2.0
"""Checkpoint folders in the Hugging Face layout: safetensors only, no code, no pickle."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel, Qwen3_5Config
from transformers.initialization import no_init_weights

from qwen_vla_ros.model.configuration import ActionExpertConfig, FlowConfig, QwenVLAConfig
from qwen_vla_ros.model.modeling import QwenVLAForActionPrediction
from qwen_vla_ros.model.parameters import count_model
from qwen_vla_ros.model.processor import ProcessorConfig, ProcessorError, QwenVLAProcessor, read_tokenizer

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
STATISTICS = "statistics.json"
CARD = "README.md"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class CheckpointError(RuntimeError):
    """A folder that is not a usable checkpoint. Names the path, what is wrong and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        folder: Where it was read from.
        model: Weights on the device that was asked for.
        processor: Turns images and text into the model's input.
        statistics: By embodiment name: `channels` (c,) names, `q01` (c,), `q99` (c,) in physical units,
            `control_rate` [Hz], `horizon` rows.
    """

    folder: Path
    model: QwenVLAForActionPrediction
    processor: QwenVLAProcessor
    statistics: dict[str, dict[str, Any]]

    @property
    def config(self) -> QwenVLAConfig:
        """Configuration of the model."""
        return self.model.config


def save_checkpoint(
    folder: str | Path,
    model: QwenVLAForActionPrediction,
    processor: QwenVLAProcessor,
    statistics: Mapping[str, Mapping[str, Any]],
    card: str = "",
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """Write a checkpoint folder; every file is replaced whole.

    Args:
        folder: Created when missing.
        model: Its weights are written once each: a tied output embedding is left out.
        processor: Written beside the weights.
        statistics: As in `Checkpoint`.
        card: Text of README.md; a short one is made without it.
        dtype: Stored type of the weights; their own without it.
        max_shard_size: Above it the weights are split into shards with an index.

    Raises:
        CheckpointError: The statistics are malformed.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    folder = Path(folder)
    entries = check_statistics(statistics, model.config, folder / STATISTICS)
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        for name, tensor in _stored(model, model.config.backbone.tie_word_embeddings).items()
    }
    split = split_torch_state_dict_into_shards(state, max_shard_size=max_shard_size)
    # The old index and shards would contradict the new weights.
    for old in (folder / INDEX, *folder.glob("model*.safetensors")):
        if old.name not in split.filename_to_tensors:
            old.unlink(missing_ok=True)
    for name, tensors in split.filename_to_tensors.items():
        _replace(
            folder / name,
            lambda path, names=tensors: save_file({n: state[n] for n in names}, path, {"format": "pt"}),
        )
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        _write_json(folder / INDEX, index)
    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    config["dtype"] = str(next(iter(state.values())).dtype).removeprefix("torch.")
    _write_json(folder / CONFIG, config)
    processor.save_pretrained(folder)
    _write_json(folder / STATISTICS, entries)
    text = card or _default_card(model, entries)
    _replace(folder / CARD, lambda path: Path(path).write_text(text))


def load_checkpoint(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> Checkpoint:
    """Read a checkpoint folder.

    Args:
        folder: See docs/model.md for its files.
        device: Where the weights go.
        dtype: Of the weights in memory; without it float32 on a CPU, the stored type elsewhere.

    Raises:
        CheckpointError: See there.
    """
    folder = Path(folder)
    config = read_config(folder)
    device = torch.device(device)
    if dtype is None:
        dtype = (
            torch.float32
            if device.type == "cpu"
            else getattr(torch, str(config.dtype or "float32").removeprefix("torch."))
        )
    with no_init_weights():
        model = QwenVLAForActionPrediction(config)
    model.tie_weights()
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
    for parameter in model.parameters():
        # Room on the device alone: what was made on the host is never touched, and takes no memory there.
        # Not model.to(dtype): rotary frequencies stay float32.
        parameter.data = torch.empty_like(parameter, dtype=dtype, device=device)
    tied = config.backbone.tie_word_embeddings
    # Some tools store the output embedding although it is the input's.
    copies = ("backbone.lm_head.",) if tied else ()
    _fill(_stored(model, tied), _read_tensors(folder), folder, copies)
    try:
        processor = QwenVLAProcessor.from_pretrained(folder)
    except ProcessorError as error:
        raise CheckpointError(f"{error}; write the checkpoint again with save_checkpoint") from error
    _check_processor(processor, config, folder)
    return Checkpoint(folder, model.eval(), processor, read_statistics(folder, config))


def from_backbone(
    folder: str | Path,
    expert: ActionExpertConfig | None = None,
    flow: FlowConfig | None = None,
    processor: ProcessorConfig | None = None,
    views: Sequence[str] = ("ego",),
) -> tuple[QwenVLAForActionPrediction, QwenVLAProcessor]:
    """A plain Qwen3.5 folder with a fresh action expert, to be trained; all weights are float32.

    Args:
        folder: config.json, safetensors and tokenizer of Qwen3_5ForConditionalGeneration.
        expert, flow, processor: The paper's without them.
        views: Views whose tags the tokenizer is given.

    Raises:
        CheckpointError: See there.
    """
    folder = Path(folder)
    content = _read_json(folder / CONFIG)
    if content.get("model_type") != Qwen3_5Config.model_type:
        raise CheckpointError(
            f"{folder / CONFIG}: model_type: found {content.get('model_type')!r}, "
            f"expected {Qwen3_5Config.model_type!r}"
        )
    for part in (content, content.get("text_config"), content.get("vision_config")):
        if isinstance(part, dict):
            # As published, parts say bfloat16, and are made so: small updates of such weights round away.
            part.pop("torch_dtype", None)
            part["dtype"] = "float32"
    try:
        config = QwenVLAConfig(
            backbone=Qwen3_5Config.from_dict(content),
            action_expert=expert or ActionExpertConfig(),
            flow=flow or FlowConfig(),
        )
        with no_init_weights():
            model = QwenVLAForActionPrediction(config)
        model.tie_weights()
        model.action_expert.apply(model._init_weights)
    except Exception as error:  # transformers and huggingface_hub raise many kinds for a bad field
        raise CheckpointError(
            f"{folder / CONFIG}: no Qwen3.5 that the action expert fits: {_one_line(error)}"
        ) from error
    tied = config.backbone.tie_word_embeddings
    # Weights for multi-token prediction, which transformers leaves out too.
    _fill(
        _stored(model.backbone, tied),
        _read_tensors(folder),
        folder,
        ("mtp.", *(["lm_head."] if tied else [])),
    )
    own = processor or ProcessorConfig()
    try:
        tokenizer = read_tokenizer(folder)
    except ProcessorError as error:
        raise CheckpointError(str(error)) from error
    tokenizer.add_tokens([tag.format(view=v) for v in views for tag in own.view_tags], special_tokens=True)
    made = QwenVLAProcessor(tokenizer, own)
    _check_processor(made, config, folder)
    return model, made


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Facts of a checkpoint, as plain JSON types."""
    config, processor = checkpoint.config, checkpoint.processor
    expert, flow, text = config.action_expert, config.flow, config.backbone.text_config
    files = [checkpoint.folder / name for name in _weight_files(checkpoint.folder)]
    count = count_model(checkpoint.model)
    return {
        "folder": str(checkpoint.folder),
        "stored type": str(config.dtype).removeprefix("torch."),
        "weight files": [file.name for file in files],
        "bytes": sum(file.stat().st_size for file in files),
        "parameters": count.total,
        "parameters of the backbone": count.backbone,
        "parameters of the action expert": count.expert,
        "action tensor": [expert.horizon, expert.channels],
        "text layers": text.num_hidden_layers,
        "expert layers": expert.num_hidden_layers,
        "euler steps": flow.num_steps,
        "noise temperature": flow.noise_temperature,
        "image size": list(processor.config.image_size),
        "views": processor.views,
        "embodiments": checkpoint.statistics,
    }


def read_config(folder: str | Path) -> QwenVLAConfig:
    """Read and check config.json. Raises CheckpointError."""
    folder = Path(folder)
    path = folder / CONFIG
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give the folder that holds {CONFIG} and {WEIGHTS}")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; {folder} is not a checkpoint folder")
    content = _read_json(path)
    kind = content.get("model_type")
    if kind != QwenVLAConfig.model_type:
        hint = "; a plain Qwen3.5 model is loaded with from_backbone()" if kind == "qwen3_5" else ""
        raise CheckpointError(
            f"{path}: model_type: found {kind!r}, expected {QwenVLAConfig.model_type!r}{hint}"
        )
    if "auto_map" in content:
        raise CheckpointError(f"{path}: auto_map: code of a checkpoint is never run; remove the entry")
    try:
        return QwenVLAConfig.from_dict(content)
    except Exception as error:  # transformers and huggingface_hub raise many kinds for a bad field
        raise CheckpointError(f"{path}: not a valid Qwen-VLA configuration: {_one_line(error)}") from error


def read_statistics(folder: str | Path, config: QwenVLAConfig) -> dict[str, dict[str, Any]]:
    """Read and check statistics.json. Raises CheckpointError."""
    path = Path(folder) / STATISTICS
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; without statistics no action has a unit")
    return check_statistics(_read_json(path), config, path)


def check_statistics(
    statistics: Mapping[str, Mapping[str, Any]], config: QwenVLAConfig, path: Path
) -> dict[str, dict[str, Any]]:
    """Statistics as plain JSON types, checked against the action tensor. Raises CheckpointError."""
    expert = config.action_expert
    checked: dict[str, dict[str, Any]] = {}
    for name, entry in statistics.items():
        where = f"{path}: {name}"
        if not isinstance(entry, Mapping):
            raise CheckpointError(f"{where}: found {type(entry).__name__}, expected an object")
        fields = ("channels", "q01", "q99", "control_rate", "horizon")
        absent = [field for field in fields if field not in entry]
        unknown = sorted(set(entry) - set(fields))
        if absent or unknown:
            raise CheckpointError(f"{where}: found fields {sorted(entry)}, expected {list(fields)}")
        try:
            channels = [str(channel) for channel in entry["channels"]]
            low, high = ([float(v) for v in entry[key]] for key in ("q01", "q99"))
            rate, horizon = float(entry["control_rate"]), int(entry["horizon"])
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{where}: {error}; expected lists of numbers, and numbers") from error
        count = len(channels)
        if not count or len(low) != count or len(high) != count:
            raise CheckpointError(
                f"{where}: found {count} channels, {len(low)} q01, {len(high)} q99, expected as many of each"
            )
        if count > expert.channels or not 1 <= horizon <= expert.horizon:
            raise CheckpointError(
                f"{where}: found {count} channels and horizon {horizon}, expected at most "
                f"K = {expert.channels} and H = {expert.horizon}"
            )
        if not 0.0 < rate < math.inf:
            raise CheckpointError(f"{where}: control_rate: found {rate}, expected a positive number")
        for channel, a, b in zip(channels, low, high, strict=True):
            if not (math.isfinite(a) and math.isfinite(b) and a < b):
                raise CheckpointError(
                    f"{where}: {channel}: found q01 {a}, q99 {b}, expected finite q01 < q99"
                )
        checked[str(name)] = {
            "channels": channels,
            "q01": low,
            "q99": high,
            "control_rate": rate,
            "horizon": horizon,
        }
    return checked


def _stored(model: PreTrainedModel, tied: bool) -> dict[str, torch.Tensor]:
    """Tensors that a file holds: the state, without the output embedding where it is a copy."""
    copies = model._tied_weights_keys if tied else {}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in copies}


def _weight_files(folder: Path) -> dict[str, list[str] | None]:
    """Files of weights and the tensors that the index promises in each; None: all that there are."""
    if (folder / INDEX).is_file():
        path = folder / INDEX
        mapping = _read_json(path).get("weight_map")
        if not isinstance(mapping, dict) or not mapping:
            raise CheckpointError(f"{path}: no weight_map; copy the whole checkpoint again")
        files: dict[str, list[str] | None] = {}
        for tensor, name in mapping.items():
            if not isinstance(name, str) or Path(name).name != name:
                raise CheckpointError(f"{path}: {tensor}: found {name!r}, expected a file name")
            promised = files.setdefault(name, [])
            assert promised is not None
            promised.append(tensor)
        missing = sorted(name for name in files if not (folder / name).is_file())
        if missing:
            raise CheckpointError(
                f"{folder}: missing shards {_some(missing)}; copy the whole checkpoint again"
            )
        return files
    if (folder / WEIGHTS).is_file():
        return {WEIGHTS: None}
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    hint = f"; {', '.join(pickled)} cannot be used: only safetensors are read" if pickled else ""
    raise CheckpointError(f"{folder}: neither {WEIGHTS} nor {INDEX}{hint}")


def _read_tensors(folder: Path) -> Iterator[tuple[Path, str, torch.Tensor]]:
    for name, promised in _weight_files(folder).items():
        path = folder / name
        try:
            with safe_open(path, framework="pt") as file:
                present = set(file.keys())
                absent = sorted(set(promised or ()) - present)
                if absent:
                    raise CheckpointError(f"{path}: no tensor {_some(absent)}, which {INDEX} promises")
                for tensor in sorted(present if promised is None else promised):
                    yield path, tensor, file.get_tensor(tensor)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{path}: corrupt or truncated ({_one_line(error)}); copy the file again"
            ) from error


@torch.no_grad()
def _fill(
    wanted: Mapping[str, torch.Tensor],
    tensors: Iterator[tuple[Path, str, torch.Tensor]],
    folder: Path,
    ignored: tuple[str, ...] = (),
) -> None:
    missing, unexpected = set(wanted), []
    for path, name, tensor in tensors:
        if name not in wanted:
            if not name.startswith(ignored):
                unexpected.append(name)
            continue
        target = wanted[name]
        if tensor.shape != target.shape:
            raise CheckpointError(
                f"{path}: {name}: found shape {tuple(tensor.shape)}, expected {tuple(target.shape)}, "
                f"as {CONFIG} says"
            )
        target.copy_(tensor)
        # Where the weights are: a GPU reads them in no time, and neither of the two needs memory for it.
        if not bool(torch.stack(target.aminmax()).isfinite().all()):
            raise CheckpointError(
                f"{path}: {name}: holds values that are not finite; the training run failed"
            )
        missing.discard(name)
    if missing:
        raise CheckpointError(
            f"{folder}: missing tensors {_some(sorted(missing))}; weights and {CONFIG} differ"
        )
    if unexpected:
        raise CheckpointError(
            f"{folder}: unexpected tensors {_some(unexpected)}; weights and {CONFIG} differ"
        )


def _check_processor(processor: QwenVLAProcessor, config: QwenVLAConfig, folder: Path) -> None:
    backbone, own = config.backbone, processor.config
    found = {
        "image token id": (processor.image_id, backbone.image_token_id),
        "patch_size": (own.patch_size, backbone.vision_config.patch_size),
        "merge_size": (own.merge_size, backbone.vision_config.spatial_merge_size),
    }
    for name, (value, expected) in found.items():
        if value != expected:
            raise CheckpointError(f"{folder}: {name}: the processor has {value}, {CONFIG} has {expected}")
    entries, rows = max(processor.tokenizer.get_vocab().values()) + 1, backbone.text_config.vocab_size
    if entries > rows:
        raise CheckpointError(f"{folder}: the tokenizer has {entries} entries, the embedding {rows} rows")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {_one_line(error)}; copy the file again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: found {type(content).__name__}, expected an object")
    return content


def _replace(path: Path, write: Any) -> None:
    partial = path.with_name(path.name + ".partial")
    write(partial)
    partial.chmod(0o644)  # safetensors writes 0600
    os.replace(partial, path)


def _write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, default=str) + "\n"
    _replace(path, lambda partial: Path(partial).write_text(text, encoding="utf-8"))


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _default_card(model: QwenVLAForActionPrediction, statistics: Mapping[str, Any]) -> str:
    count = sum(p.numel() for p in model.parameters())
    bodies = ", ".join(sorted(statistics)) or "none"
    return (
        "---\nlicense: apache-2.0\nlibrary_name: qwen_vla_ros\npipeline_tag: robotics\n---\n\n"
        f"# Qwen-VLA architecture, {count / 1e6:.1f} M parameters\n\n"
        f"Embodiments with statistics: {bodies}.\n"
    )
