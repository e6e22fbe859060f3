# SPDX-License-Identifier: Apache-2.0
"""What a training run is told, read from YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qwen_vla_ros.training.errors import TrainingError
from qwen_vla_ros.training.mapping import MappingConfiguration

Share = Field(ge=0.0, le=1.0)
Positive = Annotated[float, Field(gt=0.0)]
Quantile = Literal["minimum", "q001", "q01", "q99", "q999", "maximum"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BatchConfiguration(_Strict):
    """images: pictures of each embodiment in a step. prompts_per_image: instructions that share a picture.
    flow_prompts_per_image: of these, how many go through the action expert, which costs most of a step."""

    images: dict[str, int] = Field(min_length=1)
    prompts_per_image: int = Field(default=3, ge=1)
    flow_prompts_per_image: int = Field(default=3, ge=1)

    def scaled(self, total: int) -> BatchConfiguration:
        """About `total` pictures in a step, in the same shares, at least one of each embodiment."""
        factor = total / sum(self.images.values())
        return self.model_copy(
            update={"images": {name: max(1, round(n * factor)) for name, n in self.images.items()}}
        )


class OptimiserConfiguration(_Strict):
    """Muon for inner matrices, AdamW for the rest; linear warm-up, flat, cosine decay to `final`.

    betas: AdamW's. ema: of the average of the weights that is kept.
    """

    learning_rate: float = Field(default=1e-3, gt=0.0)
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = Field(default=0.01, ge=0.0)
    clip: float = Field(default=1.0, gt=0.0)
    warmup: int = Field(default=100, ge=0)
    flat: float = Share
    final: float = Share
    ema: float = Share


class LossConfiguration(_Strict):
    """Weights of the losses, and `near`: the motion at which a chunk counts half of one that rests, in flow
    and action [normalised]; 0: all chunks count alike."""

    flow: float = Field(default=1.0, ge=0.0)
    action: float = Field(default=1.0, ge=0.0)
    grounding: float = Field(default=0.5, ge=0.0)
    near: float = Field(default=0.0, ge=0.0)


class FlowConfiguration(_Strict):
    """Fields of the model's FlowConfig that training decides."""

    tau_distribution: Literal["beta", "sigmoid_normal"] = "beta"
    tau_beta: tuple[Positive, Positive] = (1.0, 1.5)
    tau_normal: tuple[float, Positive] = (0.0, 1.0)
    padding_noise: Literal["full", "zero"] = "full"
    prefix_rows: int = Field(default=0, ge=0)


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

    @model_validator(mode="after")
    def _in_order(self) -> NormalisationConfiguration:
        order = get_args(Quantile)
        if order.index(self.lower) >= order.index(self.upper):
            raise ValueError(f"found lower {self.lower} and upper {self.upper}, in order {', '.join(order)}")
        return self


class TextToActionConfiguration(_Strict):
    """The first stage: the action expert alone learns from sentences, without pictures, what each body does.

    steps: optimiser steps, before the others. prompts: of each body in a step. The backbone does not change.
    Source: arXiv 2605.30280, the stage T2A.
    """

    steps: int = Field(gt=0)
    prompts: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0.0)
    flow: FlowConfiguration = FlowConfiguration(tau_distribution="sigmoid_normal")


class TrainingConfiguration(_Strict):
    """A training run. text_to_action: a stage before all others. steps: optimiser steps of the others.
    backbone_steps: of these, the first ones without flow matching. precision: `auto` multiplies in bfloat16
    where a CPU is faster so, in TF32 on CUDA; weights and optimisers are float32. compile: `auto` compiles
    the steps with flow matching, on a CPU where there is a C++ compiler: minutes at each start, a quarter off
    each step (on CUDA kernels are captured, always). save_every: wall time between states that can be resumed
    from [s]. start_share: of the weights that the run begins with, in those that it writes (Wortsman et al.,
    2022, arXiv 2109.01903); above 0, bodies that these know keep their statistics."""

    preset: Literal["tiny"] = "tiny"
    seed: int = Field(default=0, ge=0)
    steps: int = Field(gt=0)
    text_to_action: TextToActionConfiguration | None = None
    backbone_steps: int = Field(default=0, ge=0)
    log_every: int = Field(default=20, gt=0)
    save_every: float = Field(default=120.0, gt=0.0)
    precision: Literal["auto", "float32"] = "auto"
    compile: Literal["auto", "never"] = "never"
    start_share: float = Field(default=0.0, ge=0.0, lt=1.0)
    batch: BatchConfiguration
    optimiser: OptimiserConfiguration
    loss: LossConfiguration = LossConfiguration()
    flow: FlowConfiguration = FlowConfiguration()
    augmentation: AugmentationConfiguration = AugmentationConfiguration()
    normalisation: NormalisationConfiguration = NormalisationConfiguration()

    @property
    def total(self) -> int:
        """Optimiser steps of all stages."""
        return self.steps + (self.text_to_action.steps if self.text_to_action else 0)


class LoraConfiguration(_Strict):
    """Low-rank adapters. targets: last names of the backbone's linear layers. vision: the vision tower has
    adapters too."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    vision: bool = True
    targets: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "in_proj_qkv",
        "in_proj_z",
        "out_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "qkv",
        "proj",
        "linear_fc1",
        "linear_fc2",
    )


class ValidationConfiguration(_Strict):
    """share: of the episodes that are kept out of training. every: steps. chunks: how many are judged."""

    share: float = Field(default=0.1, ge=0.0, lt=1.0)
    every: int = Field(default=200, gt=0)
    chunks: int = Field(default=64, gt=0)


class FinetuningConfiguration(_Strict):
    """Fine-tuning on one dataset.

    steps: optimiser steps. batch: chunks of a step, in each process and accumulation. accumulate: batches of
    a step. precision: `auto` is bfloat16 autocast on CUDA and float32 on a CPU. checkpointing: compute
    activations again in the backward pass, which saves memory. backbone_rate: learning rate of the backbone
    as a share of the action decoder's; 0 freezes it. freeze_vision: leave the vision tower as it is.
    short_episodes: what to do with episodes that hold no whole chunk. workers: threads that read ahead.
    floor: least width of a channel between q01 and q99. expert, processor: fields of ActionExpertConfig and
    ProcessorConfig for a new action decoder.
    """

    seed: int = Field(default=0, ge=0)
    steps: int = Field(gt=0)
    batch: int = Field(default=16, gt=0)
    accumulate: int = Field(default=1, gt=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpointing: bool = False
    log_every: int = Field(default=20, gt=0)
    save_every: float = Field(default=300.0, gt=0.0)
    workers: int = Field(default=2, ge=0)
    backbone_rate: float = Field(default=0.1, ge=0.0)
    freeze_vision: bool = False
    short_episodes: Literal["refuse", "mask", "skip"] = "refuse"
    floor: float = Field(default=1e-3, gt=0.0)
    validation: ValidationConfiguration = ValidationConfiguration()
    optimiser: OptimiserConfiguration
    flow: FlowConfiguration = FlowConfiguration()
    augmentation: AugmentationConfiguration = AugmentationConfiguration()
    lora: LoraConfiguration = LoraConfiguration()
    mapping: MappingConfiguration = MappingConfiguration()
    expert: dict[str, Any] = Field(default_factory=dict)
    processor: dict[str, Any] = Field(default_factory=dict)

    @property
    def total(self) -> int:
        """Optimiser steps."""
        return self.steps


_Configuration = TypeVar("_Configuration", TrainingConfiguration, FinetuningConfiguration)


def _parse(kind: type[_Configuration], content: Any, source: str) -> _Configuration:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise TrainingError(f"{source}: " + "; ".join(faults)) from error


def read_yaml(path: Path) -> Any:
    """Content of a YAML file. Raises TrainingError naming the file."""
    try:
        return yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise TrainingError(f"{path}: cannot be read: {error}") from error


def parse_configuration(content: Any, source: str) -> TrainingConfiguration:
    """Raises TrainingError with every fault and its field."""
    return _parse(TrainingConfiguration, content, source)


def parse_finetuning(content: Any, source: str) -> FinetuningConfiguration:
    """Raises TrainingError with every fault and its field."""
    return _parse(FinetuningConfiguration, content, source)


def load_configuration(path: Path) -> TrainingConfiguration:
    """Read a YAML file. Raises TrainingError naming the file and each fault."""
    return parse_configuration(read_yaml(path), str(path))


def load_finetuning(path: Path, own: Path | None = None) -> FinetuningConfiguration:
    """Read a YAML file and, over it, what `own` says otherwise. See `load_configuration`."""
    content = read_yaml(path)
    if own is not None:
        changes = read_yaml(own)
        if not isinstance(changes, dict):
            raise TrainingError(f"{own}: found {type(changes).__name__}, expected fields as in {path}")
        content = _overlay(content, changes)
    return parse_finetuning(content, str(own or path))


def _overlay(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(content)
    for key, value in changes.items():
        below = content.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = _overlay(below, value)
        merged[key] = value
    return merged
