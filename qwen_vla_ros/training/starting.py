# SPDX-License-Identifier: Apache-2.0
"""What fine-tuning starts from: one of our checkpoints, or a plain Qwen3.5 with a new action decoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import checkpoint as recompute

from qwen_vla_ros.embodiment import Embodiment
from qwen_vla_ros.model.checkpoint import CheckpointError, from_backbone, load_checkpoint
from qwen_vla_ros.model.configuration import ActionExpertConfig, FlowConfig
from qwen_vla_ros.model.modeling import QwenVLAForActionPrediction
from qwen_vla_ros.model.processor import ProcessorConfig, ProcessorError, QwenVLAProcessor
from qwen_vla_ros.training import lora as adapters
from qwen_vla_ros.training.configuration import FinetuningConfiguration
from qwen_vla_ros.training.errors import TrainingError

_Made = TypeVar("_Made", ActionExpertConfig, ProcessorConfig)


@dataclass(frozen=True)
class Start:
    """A model to be trained.

    Attributes:
        statistics: Of the embodiments that it already knows.
        source: Where it comes from, for a reader.
        low_rank: It has adapters.
    """

    model: QwenVLAForActionPrediction
    processor: QwenVLAProcessor
    statistics: dict[str, dict[str, Any]]
    source: str
    low_rank: bool


def prepare_start(
    embodiment: Embodiment,
    views: Sequence[str],
    configuration: FinetuningConfiguration,
    checkpoint: Path | None = None,
    backbone: Path | None = None,
    low_rank: bool = False,
) -> Start:
    """Load a checkpoint of ours, or a Qwen3.5 folder whose action decoder is drawn from the seed.

    Parameters that are trained require gradients, the others do not.

    Raises:
        TrainingError: The folder is no such model, its action tensor is too small for the embodiment, or
            `flow.prefix_rows` leaves none of the embodiment's rows to learn.
    """
    if (checkpoint is None) == (backbone is None):
        raise TrainingError("found both a checkpoint and a backbone, or neither; expected one of them")
    if configuration.flow.prefix_rows >= embodiment.horizon:
        raise TrainingError(
            f"flow.prefix_rows: found {configuration.flow.prefix_rows}, expected less than the horizon of "
            f"{embodiment.name!r}, {embodiment.horizon}"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(configuration.seed)
            if checkpoint is not None:
                loaded = load_checkpoint(checkpoint, dtype=torch.float32)
                model, processor, statistics = loaded.model, loaded.processor, loaded.statistics
            else:
                assert backbone is not None
                own = _made("expert", ActionExpertConfig, configuration.expert)
                seen = _made("processor", ProcessorConfig, configuration.processor)
                model, processor = from_backbone(backbone, own, FlowConfig(), seen, views)
                statistics = {}
            add_views(model, processor, views)
            if low_rank:
                adapters.add_adapters(model, configuration.lora)
    except (CheckpointError, ProcessorError) as error:
        raise TrainingError(str(error)) from error
    expert = model.config.action_expert
    if embodiment.horizon > expert.horizon or embodiment.layout.count > expert.channels:
        raise TrainingError(
            f"{checkpoint or backbone}: action tensor: found (H, K) = ({expert.horizon}, {expert.channels}), "
            f"expected at least ({embodiment.horizon}, {embodiment.layout.count}) for {embodiment.name!r}; "
            "start from --backbone with expert.horizon and expert.channels that are large enough"
        )
    _freeze(model, configuration, low_rank)
    for name, value in configuration.flow.model_dump().items():
        setattr(model.config.flow, name, list(value) if isinstance(value, tuple) else value)
    if configuration.checkpointing:
        _recompute_activations(model)
    return Start(model, processor, statistics, str(checkpoint or backbone), low_rank)


def _made(key: str, kind: type[_Made], content: Mapping[str, Any]) -> _Made:
    """What a part of the configuration describes. Raises TrainingError that names the field."""
    # transformers' own fields, which its base class has, are not for users.
    known = [each.name for each in fields(kind) if each.name in kind.__annotations__]
    for name in content:
        if name not in known:
            expected = "".join(f"{near}?" for near in get_close_matches(name, known, 1)) or ", ".join(known)
            raise TrainingError(f"{key}.{name}: no such field, expected {expected}")
    try:
        return kind(**content)
    except Exception as error:  # huggingface_hub's checks have kinds of their own
        raise TrainingError(f"{key}: {' '.join(str(error).split())}") from error


def add_views(model: QwenVLAForActionPrediction, processor: QwenVLAProcessor, views: Sequence[str]) -> None:
    """Give the tokenizer tags for views that it lacks, and the embedding rows that start as the mean tag."""
    vocabulary = processor.tokenizer.get_vocab()
    wanted = [tag.format(view=view) for view in views for tag in processor.config.view_tags]
    new = [tag for tag in wanted if tag not in vocabulary]
    if not new:
        return
    known = [vocabulary[tag.format(view=v)] for v in processor.views for tag in processor.config.view_tags]
    processor.tokenizer.add_tokens(new, special_tokens=True)
    entries = max(processor.tokenizer.get_vocab().values()) + 1
    text = model.config.backbone.text_config
    if entries > text.vocab_size:
        model.backbone.resize_token_embeddings(math.ceil(entries / 64) * 64, mean_resizing=False)
    with torch.no_grad():
        rows = model.get_parameter("backbone.model.language_model.embed_tokens.weight")
        start = rows[known].mean(dim=0) if known else rows.mean(dim=0)
        for tag in new:
            rows[processor.tokenizer.get_vocab()[tag]] = start


def _freeze(
    model: QwenVLAForActionPrediction, configuration: FinetuningConfiguration, low_rank: bool
) -> None:
    backbone = model.backbone
    if configuration.backbone_rate == 0.0:
        backbone.requires_grad_(False)
    if configuration.freeze_vision:
        backbone.model.visual.requires_grad_(False)
    # What the expert does not read has no gradient.
    if not model.config.backbone.tie_word_embeddings:
        backbone.lm_head.requires_grad_(False)
    until = model.config.action_expert.vlm_layer
    if until >= 0:
        text = backbone.model.language_model
        text.norm.requires_grad_(False)
        text.layers[until + 1 :].requires_grad_(False)
    if low_rank and not any(parameter.requires_grad for parameter in backbone.parameters()):
        raise TrainingError("lora: all adapters are frozen; expected backbone_rate above 0")


def _recompute_activations(model: QwenVLAForActionPrediction) -> None:
    # transformers' own layers know how; the fast functions over their weights do not.
    model.implementation = "stock"
    inner = model.backbone.model
    # The name changed in transformers 5.
    enable = getattr(inner, "activation_checkpointing_enable", inner.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    for block in model.action_expert.blocks:
        block.forward = partial(recompute, block.forward, use_reentrant=False)
