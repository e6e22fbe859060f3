# SPDX-License-Identifier: Apache-2.0
"""Configuration of a Qwen-VLA checkpoint; every assumption that the paper leaves open is a field here."""

# No postponed annotations: `strict` checks values against them.
import math
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, Qwen3_5Config
from transformers.configuration_utils import SubConfigSpec


@strict
class ActionExpertConfig(PreTrainedConfig):
    """The single-stream DiT. Defaults give the parameter table of arXiv 2605.30280.

    Args:
        hidden_size: Width d of the blocks.
        num_hidden_layers: Number of blocks.
        num_attention_heads: Query heads; keys and values have as many.
        head_dim: Size of a head.
        intermediate_size: Hidden size of the SwiGLU.
        timestep_dim: Size of the sinusoidal embedding of tau.
        timestep_scale: tau is multiplied by this before the sinusoid.
        channels: K, columns of the action tensor.
        horizon: H, rows of the action tensor.
        vlm_layer: Layer of the backbone whose states the expert reads: -1 is the last, after the final norm;
            i >= 0 is the output of layer i, before any norm.
        qk_norm: RMS norm over each head of queries and keys.
        bidirectional: Every token sees every other; false makes the joint sequence causal.
        action_position: `after_max`: rows of the chunk go on after the largest mRoPE index with t=h=w;
            `after_length`: they go on after the number of VLM tokens.
        mrope_section: Rotary frequencies per (t, h, w) section; null takes the backbone's.
        rope_theta: Base of the rotary frequencies; null takes the backbone's.
        adaln_zero: Modulation and output projections start at zero.
        norm_eps: Epsilon of all norms.
    """

    model_type = "qwen_vla_action_expert"
    base_config_key = "action_expert"

    hidden_size: int = 1536
    num_hidden_layers: int = 16
    num_attention_heads: int = 12
    head_dim: int = 128
    intermediate_size: int = 10240
    timestep_dim: int = 256
    timestep_scale: float | int = 1000.0
    channels: int = 64
    horizon: int = 16
    vlm_layer: int = -1
    qk_norm: bool = True
    bidirectional: bool = True
    action_position: Literal["after_max", "after_length"] = "after_max"
    mrope_section: list[int] | None = None
    rope_theta: float | int | None = None
    adaln_zero: bool = True
    norm_eps: float | int = 1e-6

    def validate_sizes(self) -> None:
        """Raises ValueError where a size is not positive; run by transformers."""
        names = (
            "hidden_size num_hidden_layers num_attention_heads head_dim intermediate_size channels horizon"
        )
        for name in names.split():
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: found {value!r}, expected a whole number of at least 1")
        if self.timestep_dim < 2 or self.timestep_dim % 2:
            raise ValueError(f"timestep_dim: found {self.timestep_dim}, expected an even number")


@strict
class FlowConfig(PreTrainedConfig):
    """Flow matching: Y_tau = (1 - tau) Y_0 + tau Y_1, tau = 0 clean, tau = 1 noise.

    Args:
        num_steps: Euler steps at inference.
        prefix_rows: Up to this many leading rows were given clean (tau = 0) in training, so that a chunk can
            continue a plan (training-time action conditioning, arXiv 2512.05964); 0: none were.
        noise_temperature: Scale of the initial noise at inference.
        padding_noise: What the channels and rows beyond an embodiment's own hold. `full`: the same path as
            the rest with Y_0 = 0, so that at tau = 1 nothing tells the model which channels are in use;
            `zero`: zeros.
        tau_distribution: `beta` or `sigmoid_normal`.
        tau_beta: (a, b) of Beta(a, b); a < b favours the clean end.
        tau_normal: (mean, standard deviation) of the normal that the sigmoid is applied to.
    """

    model_type = "qwen_vla_flow"
    base_config_key = "flow"

    num_steps: int = 4
    noise_temperature: float | int = 0.6
    prefix_rows: int = 0
    padding_noise: Literal["full", "zero"] = "full"
    tau_distribution: Literal["beta", "sigmoid_normal"] = "beta"
    tau_beta: list[float | int] | tuple[float | int, float | int] = (1.0, 1.5)
    tau_normal: list[float | int] | tuple[float | int, float | int] = (0.0, 1.0)

    def validate_ranges(self) -> None:
        """Raises ValueError where a number is out of range; run by transformers."""
        if self.num_steps < 1:
            raise ValueError(f"num_steps: found {self.num_steps}, expected at least 1")
        if self.prefix_rows < 0:
            raise ValueError(f"prefix_rows: found {self.prefix_rows}, expected 0 or more")
        if not 0.0 <= self.noise_temperature < math.inf:
            raise ValueError(f"noise_temperature: found {self.noise_temperature}, expected 0 or more")
        if len(self.tau_beta) != 2 or min(self.tau_beta) <= 0:
            raise ValueError(f"tau_beta: found {self.tau_beta}, expected two positive numbers")
        if len(self.tau_normal) != 2 or self.tau_normal[1] <= 0:
            raise ValueError(f"tau_normal: found {self.tau_normal}, expected a mean and a positive deviation")


@strict
class QwenVLAConfig(PreTrainedConfig):
    """A Qwen3.5 backbone, the action expert and the flow.

    Args:
        backbone: Configuration of the vision-language model.
        action_expert: Configuration of the DiT.
        flow: Configuration of training path and sampler.
    """

    model_type = "qwen_vla"
    sub_configs_defaults: ClassVar[Any] = {
        "backbone": SubConfigSpec(Qwen3_5Config),
        "action_expert": SubConfigSpec(ActionExpertConfig),
        "flow": SubConfigSpec(FlowConfig),
    }

    backbone: Any = None
    action_expert: Any = None
    flow: Any = None

    def validate_layer(self) -> None:
        """Raises ValueError where the expert reads a layer that the backbone lacks; run by transformers."""
        layer, layers = self.action_expert.vlm_layer, self.backbone.text_config.num_hidden_layers
        if not -1 <= layer < layers:
            raise ValueError(f"action_expert.vlm_layer: found {layer}, expected -1 to {layers - 1}")

    def get_text_config(self, *args, **kwargs):
        """The backbone's text configuration, which transformers asks for."""
        return self.backbone.get_text_config(*args, **kwargs)

    @property
    def mrope_section(self) -> list[int]:
        """Rotary frequencies per (t, h, w) section in the action expert."""
        own = self.action_expert.mrope_section
        return list(own if own is not None else self.backbone.text_config.rope_parameters["mrope_section"])

    @property
    def rope_theta(self) -> float:
        """Base of the action expert's rotary frequencies."""
        own = self.action_expert.rope_theta
        return float(own if own is not None else self.backbone.text_config.rope_parameters["rope_theta"])
