# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters in the backbone (peft), and an ordinary model again out of them.

Source: LoRA, arXiv 2106.09685.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qwen_vla_ros.model.modeling import QwenVLAForActionPrediction
from qwen_vla_ros.training.configuration import LoraConfiguration
from qwen_vla_ros.training.errors import TrainingError


def add_adapters(model: QwenVLAForActionPrediction, configuration: LoraConfiguration) -> None:
    """Freeze the backbone and put adapters into the linear layers that the configuration names.

    Raises TrainingError when it has none of them.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = [
        name
        for name, module in model.backbone.named_modules()
        if isinstance(module, torch.nn.Linear)
        and name.rpartition(".")[2] in configuration.targets
        and (configuration.vision or ".visual." not in f".{name}")
    ]
    if not targets:
        raise TrainingError(f"lora.targets: the backbone has none of {', '.join(configuration.targets)}")
    settings = LoraConfig(
        r=configuration.rank,
        lora_alpha=configuration.alpha,
        lora_dropout=configuration.dropout,
        target_modules=targets,
    )
    model.backbone.requires_grad_(False)
    inject_adapter_in_model(settings, model.backbone)


@torch.no_grad()
def merged_state(model: QwenVLAForActionPrediction) -> dict[str, Tensor]:
    """The model's tensors by the names of a model without adapters, these added to the weights."""
    from peft.tuners.lora import LoraLayer

    state = dict(model.state_dict())
    layers: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, LoraLayer)}
    for name, layer in layers.items():
        for key in [key for key in state if key.startswith(f"{name}.")]:
            tensor = state.pop(key)
            plain = key.replace(".base_layer.", ".")
            if plain != key:
                state[plain] = tensor
        weight = layer.base_layer.weight
        delta = sum(layer.get_delta_weight(adapter).float() for adapter in layer.active_adapters)
        state[f"{name}.weight"] = (weight.float() + delta).to(weight.dtype)
    return state


def plain_model(
    model: QwenVLAForActionPrediction, replaced: dict[str, Tensor] | None = None
) -> QwenVLAForActionPrediction:
    """A model of the same configuration without adapters. It shares memory with `model` where it can.

    Args:
        replaced: Tensors in place of those of `model.named_parameters()`, such as averaged ones.
    """
    kept = {}
    if replaced:
        parameters = dict(model.named_parameters())
        for name, tensor in replaced.items():
            kept[name] = parameters[name].data
            parameters[name].data = tensor.to(kept[name])
    try:
        state = merged_state(model)
    finally:
        for name, tensor in kept.items():
            parameters[name].data = tensor
    with torch.device("meta"):
        plain = QwenVLAForActionPrediction(model.config)
    missing, unexpected = plain.load_state_dict(state, strict=False, assign=True)
    plain.tie_weights()
    # Rotary frequencies are in no state.
    buffers = dict(model.named_buffers())
    for path, module in plain.named_modules():
        for key in module._buffers:
            module._buffers[key] = buffers[f"{path}.{key}"]
    if unexpected or [name for name in missing if name not in plain._tied_weights_keys]:
        raise TrainingError(f"the trained model does not fit its configuration: {missing} {unexpected}")
    return plain
