# SPDX-License-Identifier: Apache-2.0
"""Presets: the paper's sizes and a tiny model of the same architecture."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import Qwen3_5Config

from qwen_vla_ros.model.action_expert import ActionExpert
from qwen_vla_ros.model.configuration import ActionExpertConfig, FlowConfig, QwenVLAConfig
from qwen_vla_ros.model.modeling import QwenVLAForActionPrediction
from qwen_vla_ros.model.processor import ProcessorConfig, QwenVLAProcessor
from qwen_vla_ros.model.tiny_tokenizer import (
    IMAGE,
    PAD,
    VIDEO,
    VISION_END,
    VISION_START,
    build_tiny_tokenizer,
)


def paper_config() -> QwenVLAConfig:
    """Qwen3.5-4B and the 1.15 B action expert of arXiv 2605.30280."""
    backbone = Qwen3_5Config(
        text_config={
            "vocab_size": 248320,
            "hidden_size": 2560,
            "intermediate_size": 9216,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 32,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e7,
                "partial_rotary_factor": 0.25,
                "mrope_section": [11, 11, 10],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "out_hidden_size": 2560,
            "num_position_embeddings": 2304,
        },
        tie_word_embeddings=True,
    )
    return QwenVLAConfig(backbone=backbone, action_expert=ActionExpertConfig(), flow=FlowConfig())


def tiny_config(tokenizer) -> QwenVLAConfig:
    """A few million parameters: ViT, text model and expert of four layers of 128."""
    width = 128
    ids = tokenizer.get_vocab()
    backbone = Qwen3_5Config(
        text_config={
            "vocab_size": math.ceil(len(tokenizer) / 64) * 64,
            "hidden_size": width,
            "intermediate_size": 320,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
            "linear_num_key_heads": 4,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
            "tie_word_embeddings": True,
            "pad_token_id": ids[PAD],
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 4,
            "hidden_size": width,
            "intermediate_size": 384,
            "num_heads": 4,
            "out_hidden_size": width,
            "num_position_embeddings": 64,
        },
        image_token_id=ids[IMAGE],
        video_token_id=ids[VIDEO],
        vision_start_token_id=ids[VISION_START],
        vision_end_token_id=ids[VISION_END],
        tie_word_embeddings=True,
    )
    expert = ActionExpertConfig(
        hidden_size=width,
        num_hidden_layers=4,
        num_attention_heads=4,
        head_dim=32,
        intermediate_size=320,
        timestep_dim=128,
        channels=32,
        horizon=16,
    )
    return QwenVLAConfig(backbone=backbone, action_expert=expert, flow=FlowConfig())


PRESETS = ("paper", "tiny")


def preset_config(name: str) -> QwenVLAConfig:
    """Configuration of a preset."""
    return paper_config() if name == "paper" else tiny_config(build_tiny_tokenizer())


@torch.no_grad()
def initialise_fan_in(model: QwenVLAForActionPrediction) -> None:
    """Draw every matrix from a normal of standard deviation 1 / sqrt(fan-in); AdaLN-zero stays.

    The stock standard deviation of 0.02 is for widths of thousands and learns poorly at 128.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv3d):
            module.weight.normal_(std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(std=module.embedding_dim**-0.5)
    for module in model.modules():
        if isinstance(module, ActionExpert) and module.config.adaln_zero:
            module.zero_initialise()


def build_tiny(seed: int = 0) -> tuple[QwenVLAForActionPrediction, QwenVLAProcessor]:
    """A fresh tiny model and its processor."""
    tokenizer = build_tiny_tokenizer()
    processor = QwenVLAProcessor(tokenizer, ProcessorConfig(image_size=(128, 128), chat=False))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = QwenVLAForActionPrediction(tiny_config(tokenizer))
        initialise_fan_in(model)
    return model, processor
