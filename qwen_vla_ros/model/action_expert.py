# SPDX-License-Identifier: Apache-2.0
"""The action expert: a single-stream diffusion transformer over VLM states and a noisy action chunk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwen_vla_ros.model.configuration import QwenVLAConfig
from qwen_vla_ros.model.context import VLMContext


@dataclass
class ExpertContext:
    """What the expert computes once per observation and keeps over all Euler steps.

    Attributes:
        tokens: Projected VLM states. Shape (B, L, d).
        cos, sin: Rotary factors of the joint sequence. Shape (B, 1, L + H, 2 * sum(mrope_section)).
        bias: Added to the attention scores: 0 or -inf, shape broadcastable to (B, 1, L + H, L + H); None when
            every token sees every other.
    """

    tokens: Tensor
    cos: Tensor
    sin: Tensor
    bias: Tensor | None


def rotary_factors(positions: Tensor, section: list[int], theta: float) -> tuple[Tensor, Tensor]:
    """Interleaved multi-section rotary factors, with the frequencies and layout of Qwen3.5's text model.

    Frequency i turns with t, but i = 1, 4, 7, .. turn with h and i = 2, 5, 8, .. with w, up to three times
    the section's length.

    Args:
        positions: (t, h, w) indices. Shape (3, B, S).
        section: Frequencies per axis.
        theta: Base of the frequencies.

    Returns:
        cos, sin. Each of shape (B, 1, S, 2 * sum(section)).
    """
    count = sum(section)
    axis = torch.zeros(count, dtype=torch.long, device=positions.device)
    for offset in (1, 2):
        axis[offset : section[offset] * 3 : 3] = offset
    exponent = torch.arange(0, 2 * count, 2, dtype=torch.float, device=positions.device) / (2 * count)
    angles = positions[axis].permute(1, 2, 0).float() / theta**exponent
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the leading channels of each head; the rest passes. x (.., B, heads, S, D)."""
    size = cos.shape[-1]
    turned, rest = x[..., :size], x[..., size:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


def _is_captured(tensor: Tensor) -> bool:
    """Whether work on it is recorded, to be done with other values, so that its own cannot be looked at."""
    return torch.compiler.is_compiling() or (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


class JointAttention(nn.Module):
    """Self-attention over VLM and action tokens alike."""

    def __init__(self, width: int, heads: int, head_dim: int, qk_norm: bool, eps: float) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.qkv = nn.Linear(width, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.eps = eps
        self.query_norm = nn.RMSNorm(head_dim, eps=eps) if qk_norm else None
        self.key_norm = nn.RMSNorm(head_dim, eps=eps) if qk_norm else None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor | None) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        # Queries and keys together: at batch 1 the number of operations is the time.
        pair, value = qkv[:2], qkv[2]
        if self.query_norm is not None and self.key_norm is not None:
            weight = torch.stack((self.query_norm.weight, self.key_norm.weight))
            pair = F.rms_norm(pair, (self.head_dim,), eps=self.eps) * weight[:, None, None, None]
        query, key = rotate(pair, cos, sin)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), gate and up in one matrix."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class DiTBlock(nn.Module):
    """Attention and SwiGLU, each shifted, scaled and gated by the timestep (AdaLN-6)."""

    def __init__(self, width: int, heads: int, head_dim: int, hidden: int, qk_norm: bool, eps: float) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width, eps=eps, elementwise_affine=False)
        self.attention = JointAttention(width, heads, head_dim, qk_norm, eps)
        self.norm_mlp = nn.LayerNorm(width, eps=eps, elementwise_affine=False)
        self.mlp = SwiGLU(width, hidden)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor, cos: Tensor, sin: Tensor, bias: Tensor | None) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition).chunk(6, dim=-1)
        x = x + gate_a * self.attention(
            torch.addcmul(shift_a, self.norm_attention(x), 1 + scale_a), cos, sin, bias
        )
        return x + gate_m * self.mlp(torch.addcmul(shift_m, self.norm_mlp(x), 1 + scale_m))


class ActionExpert(nn.Module):
    """Velocity of a noisy action chunk, given VLM states and tau. Source: arXiv 2605.30280."""

    def __init__(self, config: QwenVLAConfig) -> None:
        super().__init__()
        expert = config.action_expert
        width = expert.hidden_size
        if 2 * sum(config.mrope_section) > expert.head_dim:
            raise ValueError(
                f"action_expert: mrope_section {config.mrope_section} needs heads of "
                f"{2 * sum(config.mrope_section)} channels or more, head_dim is {expert.head_dim}"
            )
        self.config = expert
        self.vlm_projection = nn.Linear(config.backbone.text_config.hidden_size, width)
        self.action_in = nn.Sequential(nn.Linear(expert.channels, width), nn.SiLU(), nn.Linear(width, width))
        self.timestep = nn.Sequential(
            nn.Linear(expert.timestep_dim, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.mrope_section, self.rope_theta = config.mrope_section, config.rope_theta
        self.blocks = nn.ModuleList(
            DiTBlock(
                width,
                expert.num_attention_heads,
                expert.head_dim,
                expert.intermediate_size,
                expert.qk_norm,
                expert.norm_eps,
            )
            for _ in range(expert.num_hidden_layers)
        )
        self.norm_out = nn.LayerNorm(width, eps=expert.norm_eps, elementwise_affine=False)
        self.modulation_out = nn.Linear(width, 2 * width)
        self.action_out = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, expert.channels))

    def zero_initialise(self) -> None:
        """AdaLN-zero: every block starts as the identity and the velocity as zero."""
        layers: tuple[Any, ...] = (
            *(block.modulation for block in self.blocks),
            self.modulation_out,
            self.action_out[-1],
        )
        for layer in layers:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def prepare(self, context: VLMContext) -> ExpertContext:
        """Project VLM states and lay out positions and mask of the joint sequence."""
        batch = len(context.mask)
        horizon = self.config.horizon
        steps = torch.arange(horizon, device=context.positions.device)
        if self.config.action_position == "after_max":
            start = context.positions.masked_fill(~context.mask, -1).amax(dim=(0, 2)) + 1
        else:
            start = context.mask.sum(dim=1)
        action_positions = (start[:, None] + steps).expand(3, batch, horizon)
        positions = torch.cat((context.positions, action_positions), dim=2)
        cos, sin = rotary_factors(positions, self.mrope_section, self.rope_theta)
        tokens = self.vlm_projection(context.hidden)
        return ExpertContext(
            tokens, cos.to(tokens.dtype), sin.to(tokens.dtype), self._bias(context.mask, tokens)
        )

    def _bias(self, mask: Tensor, like: Tensor) -> Tensor | None:
        total = mask.shape[1] + self.config.horizon
        seen = F.pad(mask, (0, self.config.horizon), value=True)[:, None, None, :]
        if not self.config.bidirectional:
            # A padded query must see something, or its softmax is NaN; its output is read by nobody.
            own = torch.eye(total, dtype=torch.bool, device=mask.device)
            seen = (seen & torch.ones(total, total, dtype=torch.bool, device=mask.device).tril()) | own
        elif not _is_captured(mask) and bool(mask.all()):
            return None
        return torch.zeros_like(seen, dtype=like.dtype).masked_fill(~seen, -math.inf)

    def embed_timestep(self, tau: Tensor) -> Tensor:
        """Condition of the AdaLN layers. tau (...) -> (..., d)."""
        half = self.config.timestep_dim // 2
        frequencies = torch.exp(
            -math.log(10000.0) * torch.arange(half, device=tau.device, dtype=torch.float) / half
        )
        angles = self.config.timestep_scale * tau.float()[..., None] * frequencies
        embedding = torch.cat((angles.cos(), angles.sin()), dim=-1)
        return F.silu(self.timestep(embedding.to(self.modulation_out.weight.dtype)))

    def forward(self, context: ExpertContext, noisy: Tensor, tau: Tensor) -> Tensor:
        """Velocity Y_1 - Y_0.

        Args:
            context: From `prepare`.
            noisy: Y_tau. Shape (B, H, K).
            tau: One for all rows, shape (B,), or one per row, shape (B, H); VLM tokens then have the last
                row's.

        Returns:
            Shape (B, H, K).
        """
        length = context.tokens.shape[1]
        if tau.ndim == 1:
            condition = own = self.embed_timestep(tau)[:, None]
        else:
            own = self.embed_timestep(tau)
            condition = torch.cat((own[:, -1:].expand(-1, length, -1), own), dim=1)
        x = torch.cat((context.tokens, self.action_in(noisy)), dim=1)
        for block in self.blocks:
            x = block(x, condition, context.cos, context.sin, context.bias)
        shift, scale = self.modulation_out(own).chunk(2, dim=-1)
        return self.action_out(self.norm_out(x[:, length:]) * (1 + scale) + shift)
