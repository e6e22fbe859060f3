# SPDX-License-Identifier: Apache-2.0
"""Parameter counts by the parts of the paper's table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from transformers.initialization import no_init_weights

from qwen_vla_ros.model.configuration import QwenVLAConfig
from qwen_vla_ros.model.modeling import QwenVLAForActionPrediction


@dataclass(frozen=True)
class ParameterCount:
    """Number of weights per part.

    Attributes:
        block: One DiT block.
        blocks: Number of DiT blocks.
        projections: Action projections, in and out.
        vlm_linear: VLM states to the expert's width.
        timestep: Embedding of tau.
        output_adaln: Last modulation.
        expert: All of the action expert.
        vision, text: Parts of the backbone; tied embeddings count once, in `text`.
        backbone: All of the backbone.
        total: Backbone and expert.
    """

    block: int
    blocks: int
    projections: int
    vlm_linear: int
    timestep: int
    output_adaln: int
    expert: int
    vision: int
    text: int
    backbone: int
    total: int


def _count(modules: Iterable[nn.Module]) -> int:
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())


def count_model(model: QwenVLAForActionPrediction) -> ParameterCount:
    """Count the weights of a model."""
    expert, backbone = model.action_expert, model.backbone
    blocks = list(expert.blocks)
    return ParameterCount(
        block=_count(blocks[:1]),
        blocks=len(blocks),
        projections=_count([expert.action_in, expert.action_out]),
        vlm_linear=_count([expert.vlm_projection]),
        timestep=_count([expert.timestep]),
        output_adaln=_count([expert.modulation_out]),
        expert=_count([expert]),
        vision=_count([backbone.model.visual]),
        text=_count([backbone.model.language_model, backbone.lm_head]),
        backbone=_count([backbone]),
        total=_count([model]),
    )


def count_parameters(config: QwenVLAConfig) -> ParameterCount:
    """Count the weights that a configuration asks for, without allocating them."""
    with torch.device("meta"), no_init_weights():
        model = QwenVLAForActionPrediction(config)
    model.tie_weights()
    return count_model(model)
