# SPDX-License-Identifier: Apache-2.0
"""Forward passes over the weights of transformers' Qwen3.5 modules, for short prompts on a CPU.

Same results as the stock modules (test/model/test_backbone.py), less time: the patch embedding is a matrix
product, images of one size go through attention together, the depthwise convolution is a sum of shifted
products, and the gated delta rule of a prompt of one chunk needs no recurrent state. On CUDA in 16 bits the
rule is flash-linear-attention's where that is installed. Padding must be on the right: all text layers are
causal, so it never reaches a token.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen3_5.modeling_qwen3_5 import (
    Qwen3_5Attention,
    Qwen3_5DecoderLayer,
    Qwen3_5GatedDeltaNet,
    Qwen3_5TextModel,
    Qwen3_5VisionBlock,
    Qwen3_5VisionModel,
    l2norm,
    torch_chunk_gated_delta_rule,
)
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from qwen_vla_ros.model.action_expert import rotate

LOG = logging.getLogger(__name__)
# transformers puts flash-linear-attention in its place where that is installed, on a CPU too, which it cannot
# serve.
_chunked_delta_rule = inspect.unwrap(torch_chunk_gated_delta_rule)
# Above this length the quadratic single chunk costs more than the stock scan over chunks of 64.
SINGLE_CHUNK = 128


def expand_frames(pixel_values: Tensor, visual: Qwen3_5VisionModel) -> Tensor:
    """Patches of one frame (N, C * p * p) -> the layout of the stock modules (N, C * temporal * p * p)."""
    embed = visual.patch_embed
    frame = pixel_values.view(-1, embed.in_channels, 1, embed.patch_size**2)
    return frame.expand(-1, -1, embed.temporal_patch_size, -1).flatten(1)


@torch.compiler.disable  # which would trace through the cache, each time anew
@lru_cache(maxsize=32)
def _image_layout(height: int, width: int, merge: int, side: int, device: torch.device) -> tuple[Tensor, ...]:
    # The cache outlives an inference mode that the first call may come from.
    with torch.inference_mode(False):
        grid = torch.tensor([[1, height, width]], device=device)
        indices, weights = get_vision_interpolation_indices_and_weights(
            grid, num_grid_per_side=side, mode="bilinear", align_corners=True, spatial_merge_size=merge
        )
        return indices, weights, get_vision_position_ids(grid, merge)


def vision_block(block: Qwen3_5VisionBlock, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """One layer of the vision transformer. x (N, patches, D); cos, sin (1, 1, patches, head)."""
    attention = block.attn
    count, length, _ = x.shape
    qkv = attention.qkv(block.norm1(x)).view(count, length, 3, attention.num_heads, -1)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(rotate(query, cos, sin), rotate(key, cos, sin), value)
    x = x + attention.proj(mixed.transpose(1, 2).reshape(count, length, -1))
    return x + block.mlp(block.norm2(x))


def vision_features(
    visual: Qwen3_5VisionModel,
    pixel_values: Tensor,
    height: int,
    width: int,
) -> Tensor:
    """Features of images of one size.

    Args:
        pixel_values: One frame per image. Shape (N * height * width, C * p * p).
        height, width: Patches per image.

    Returns:
        Shape (N * height * width / merge**2, D).
    """
    embed = visual.patch_embed
    indices, weights, positions = _image_layout(
        height, width, visual.spatial_merge_size, visual.num_grid_per_side, pixel_values.device
    )
    kernel = embed.proj.weight
    # A still image is the same frame twice: the temporal taps add up.
    matrix = kernel.sum(dim=2).flatten(1)
    x = F.linear(pixel_values.to(kernel.dtype), matrix, embed.proj.bias)
    place = (visual.pos_embed(indices) * weights[:, :, None].to(kernel.dtype)).sum(dim=1)
    x = x.view(-1, height * width, x.shape[-1]) + place
    cos, sin = visual.rotary_pos_emb(x, positions)
    cos, sin = cos.to(x.dtype)[None, None], sin.to(x.dtype)[None, None]
    layer: Any
    for layer in visual.blocks:
        x = vision_block(layer, x, cos, sin)
    return visual.merger(x.flatten(0, 1))


def causal_depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """Causal depthwise convolution. x (B, L, C), weight (C, taps) -> (B, L, C)."""
    taps, length = weight.shape[1], x.shape[1]
    padded = F.pad(x, (0, 0, taps - 1, 0))
    out = padded[:, :length] * weight[:, 0]
    for tap in range(1, taps):
        out = out + padded[:, tap : tap + length] * weight[:, tap]
    return out


def single_chunk_delta_rule(query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """Gated delta rule from an empty state, the sequence being one chunk.

    Args:
        query, key: Normalised, query scaled. Shape (B, heads, L, Dk).
        value: Shape (B, heads, L, Dv).
        g: Log decay. Shape (B, heads, L).
        beta: Shape (B, heads, L).

    Returns:
        Shape (B, heads, L, Dv).
    """
    length = g.shape[-1]
    cumulative = g.cumsum(dim=-1)
    future = torch.ones(length, length, dtype=torch.bool, device=g.device).triu(1)
    decay = (cumulative[..., :, None] - cumulative[..., None, :]).masked_fill(future, float("-inf")).exp()
    system = ((key * beta[..., None]) @ key.transpose(-1, -2)) * decay
    corrected = torch.linalg.solve_triangular(
        system, value * beta[..., None], upper=False, unitriangular=True
    )
    return ((query @ key.transpose(-1, -2)) * decay) @ corrected


@lru_cache
def fused_delta_rule(device: str, dtype: torch.dtype) -> Callable[..., Any] | None:
    """flash-linear-attention's gated delta rule; None where torch has to do.

    Args:
        device: Type of the device; the kernels are for `cuda`.
        dtype: Of the activations; the kernels are for 16 bits.
    """
    if device != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    try:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "fla":
            LOG.warning("flash-linear-attention needs %s: Gated DeltaNet runs in torch", error.name)
        else:
            LOG.warning("flash-linear-attention is not installed: Gated DeltaNet runs in torch")
        return None
    except Exception as error:  # whatever an extension raises that does not fit torch or the driver
        first = (str(error).splitlines() or [type(error).__name__])[0]
        LOG.warning("flash-linear-attention cannot be used, Gated DeltaNet runs in torch: %s", first)
        return None
    LOG.info("Gated DeltaNet runs with flash-linear-attention")
    return chunk_gated_delta_rule


def linear_mixer(layer: Qwen3_5GatedDeltaNet, x: Tensor) -> Tensor:
    """Gated DeltaNet. x (B, L, D) -> (B, L, D)."""
    batch, length, _ = x.shape
    mixed = F.silu(causal_depthwise(layer.in_proj_qkv(x), layer.conv1d.weight[:, 0]))
    query, key, value = mixed.split((layer.key_dim, layer.key_dim, layer.value_dim), dim=-1)
    query = query.view(batch, length, -1, layer.head_k_dim)
    key = key.view(batch, length, -1, layer.head_k_dim)
    value = value.view(batch, length, -1, layer.head_v_dim)
    beta = layer.in_proj_b(x).sigmoid()
    g = -layer.A_log.float().exp() * F.softplus(layer.in_proj_a(x).float() + layer.dt_bias)
    repeats = layer.num_v_heads // layer.num_k_heads
    fused = fused_delta_rule(x.device.type, x.dtype)
    if fused is not None:
        if repeats > 1:
            query, key = query.repeat_interleave(repeats, dim=2), key.repeat_interleave(repeats, dim=2)
        out, _ = fused(query, key, value, g=g, beta=beta, use_qk_l2norm_in_kernel=True)
    elif length <= SINGLE_CHUNK:
        query, key = l2norm(query.float()) * layer.head_k_dim**-0.5, l2norm(key.float())
        if repeats > 1:
            query, key = query.repeat_interleave(repeats, dim=2), key.repeat_interleave(repeats, dim=2)
        query, key, value, beta, g = (t.transpose(1, 2) for t in (query, key, value.float(), beta.float(), g))
        out = single_chunk_delta_rule(query, key, value, g, beta).transpose(1, 2).to(x.dtype)
    else:
        out, _ = _chunked_delta_rule(query, key, value, g=g, beta=beta, use_qk_l2norm_in_kernel=True)
    gate = layer.in_proj_z(x).view(batch, length, -1, layer.head_v_dim)
    return layer.out_proj(layer.norm(out, gate).reshape(batch, length, -1))


def full_mixer(layer: Qwen3_5Attention, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Gated softmax attention. x (B, L, D) -> (B, L, D)."""
    batch, length, _ = x.shape
    query, gate = layer.q_proj(x).view(batch, length, -1, 2 * layer.head_dim).chunk(2, dim=-1)
    query = rotate(layer.q_norm(query).transpose(1, 2), cos, sin)
    key = layer.k_norm(layer.k_proj(x).view(batch, length, -1, layer.head_dim)).transpose(1, 2)
    key = rotate(key, cos, sin)
    value = layer.v_proj(x).view(batch, length, -1, layer.head_dim).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=layer.scaling, enable_gqa=layer.num_key_value_groups > 1
    )
    mixed = mixed.transpose(1, 2).reshape(batch, length, -1)
    return layer.o_proj(mixed * gate.reshape(batch, length, -1).sigmoid())


def text_layer(layer: Qwen3_5DecoderLayer, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """One layer of the text model. x (B, L, D); cos, sin (B, 1, L, rotary)."""
    h = layer.input_layernorm(x)
    if layer.block_type == "linear_attention":
        x = x + linear_mixer(layer.linear_attn, h)
    else:
        x = x + full_mixer(layer.self_attn, h, cos, sin)
    return x + layer.mlp(layer.post_attention_layernorm(x))


def text_states(
    language_model: Qwen3_5TextModel,
    embeddings: Tensor,
    positions: Tensor,
    until: int = -1,
) -> Tensor:
    """States of the text model.

    Args:
        embeddings: Shape (B, L, D), padded on the right.
        positions: mRoPE indices. Shape (3, B, L).
        until: Layer whose output to return; -1: the last, after the final norm.

    Returns:
        Shape (B, L, D). Rows of padding hold nothing of use.
    """
    cos, sin = (t[:, None] for t in language_model.rotary_emb(embeddings, positions))
    x = embeddings
    module: Any
    for index, module in enumerate(language_model.layers):
        x = text_layer(module, x, cos, sin)
        if index == until:
            return x
    return language_model.norm(x)
