# SPDX-License-Identifier: Apache-2.0
"""What a training run is told, read from YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qwen_vla_ros.training.errors import TrainingError

Share = Field(ge=0.0, le=1.0)
Quantile = Literal["minimum", "q001", "q01", "q99", "q999", "maximum"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BatchConfiguration(_Strict):
    """images: pictures of each embodiment in a step. prompts_per_image: instructions that share a picture.
    flow_prompts_per_image: of these, how many go through the action expert, which costs most of a step."""

    images: dict[str, int] = Field(min_length=1)
    prompts_per_image: int = Field(default=3, ge=1)
    flow_prompts_per_image: int = Field(default=3, ge=1)


class OptimiserConfiguration(_Strict):
    """AdamW; linear warm-up, flat, cosine decay to `final`; `ema` averages the weights that are kept."""

    learning_rate: float = Field(default=1e-3, gt=0.0)
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = Field(default=0.01, ge=0.0)
    clip: float = Field(default=1.0, gt=0.0)
    warmup: int = Field(default=100, ge=0)
    flat: float = Share
    final: float = Share
    ema: float = Share


class LossConfiguration(_Strict):
    """Weights of the losses."""

    flow: float = Field(default=1.0, ge=0.0)
    action: float = Field(default=1.0, ge=0.0)
    grounding: float = Field(default=0.5, ge=0.0)


class FlowConfiguration(_Strict):
    """Fields of the model's FlowConfig that training decides."""

    tau_distribution: Literal["beta", "sigmoid_normal"] = "beta"
    tau_beta: tuple[float, float] = (1.0, 1.5)
    tau_normal: tuple[float, float] = (0.0, 1.0)
    padding_noise: Literal["full", "zero"] = "full"


class AugmentationConfiguration(_Strict):
    """Of pixels in [-1, 1], drawn per picture: gain and colour (per channel) multiply by 1 +- value, offset
    adds +- value, noise is the standard deviation of what is added to each pixel."""

    gain: float = Field(default=0.0, ge=0.0, lt=1.0)
    colour: float = Field(default=0.0, ge=0.0, lt=1.0)
    offset: float = Field(default=0.0, ge=0.0)
    noise: float = Field(default=0.0, ge=0.0)


class NormalisationConfiguration(_Strict):
    """Quantiles that become -1 and 1, and the least width of a channel [rad or m]."""

    lower: Quantile = "q01"
    upper: Quantile = "q99"
    floor: float = Field(default=0.02, gt=0.0)


class TrainingConfiguration(_Strict):
    """A training run. steps: optimiser steps. backbone_steps: of these, the first ones without flow matching.
    save_every: wall time between states that can be resumed from [s]."""

    preset: Literal["tiny"] = "tiny"
    seed: int = Field(default=0, ge=0)
    steps: int = Field(gt=0)
    backbone_steps: int = Field(default=0, ge=0)
    log_every: int = Field(default=20, gt=0)
    save_every: float = Field(default=120.0, gt=0.0)
    batch: BatchConfiguration
    optimiser: OptimiserConfiguration
    loss: LossConfiguration = LossConfiguration()
    flow: FlowConfiguration = FlowConfiguration()
    augmentation: AugmentationConfiguration = AugmentationConfiguration()
    normalisation: NormalisationConfiguration = NormalisationConfiguration()


def parse_configuration(content: Any, source: str) -> TrainingConfiguration:
    """Raises TrainingError with every fault and its field."""
    try:
        return TrainingConfiguration.model_validate(content)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise TrainingError(f"{source}: " + "; ".join(faults)) from error


def load_configuration(path: Path) -> TrainingConfiguration:
    """Read a YAML file. Raises TrainingError naming the file and each fault."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise TrainingError(f"{path}: cannot be read: {error}") from error
    return parse_configuration(content, str(path))
