# SPDX-License-Identifier: Apache-2.0
"""The backbone over several instructions about one picture, whose common prefix is computed once.

Prompts of one body differ in the instruction alone, which comes last, and the text model is causal. So
pictures and template are one trunk, the instructions are branches of it, and trunk and branches of a picture
are one sequence in which a token sees its ancestors only. Equal to QwenVLAForActionPrediction.encode
(test/training/test_shared_prefix.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen3_5.modeling_qwen3_5 import l2norm

from qwen_vla_ros.model.action_expert import rotate
from qwen_vla_ros.model.context import VLMContext
from qwen_vla_ros.model.modeling import QwenVLAForActionPrediction


@dataclass
class Tree:
    """A trunk of `trunk` tokens and `branches` branches of `length` tokens, packed one after another.

    Attributes:
        ancestors: Whether column j is an ancestor of row i, or i itself. Shape (t, t).
        parents: Row k holds the k-th ancestor of each token (0: itself), t for none. Shape (taps, t).
    """

    trunk: int
    branches: int
    length: int
    ancestors: Tensor
    parents: Tensor


@torch.compiler.disable  # which would trace through the cache, each time anew
@lru_cache(maxsize=64)
def make_tree(trunk: int, branches: int, length: int, taps: int, device: torch.device | None = None) -> Tree:
    total = trunk + branches * length
    branch = torch.cat(
        (torch.zeros(trunk, dtype=torch.long), 1 + torch.arange(branches).repeat_interleave(length))
    )
    earlier = torch.ones(total, total, dtype=torch.bool).tril()
    ancestors = earlier & ((branch[None, :] == 0) | (branch[:, None] == branch[None, :]))
    index = torch.arange(total)
    parent = index - 1
    parent[trunk::length] = trunk - 1
    parent[parent < 0] = total
    parent = torch.cat((parent, torch.tensor([total])))
    parents = [index]
    for _ in range(taps - 1):
        parents.append(parent[parents[-1]])
    return Tree(trunk, branches, length, ancestors.to(device), torch.stack(parents).to(device))


@dataclass
class Trunk:
    """What all prompts of a body have in common: the pictures and the words around them.

    Attributes:
        length: Leading columns that are alike.
        slots: Those of image tokens among them. Shape (tokens,).
    """

    length: int
    slots: Tensor


def common_trunk(input_ids: Tensor, mask: Tensor, image_token: int) -> Trunk:
    """The longest trunk of prompts that leaves each of them a token of its own.

    input_ids, mask: Shape (b, l). image_token: Of the pictures, which belong to the trunk.

    Raises ValueError when the prompts differ before the last image token.
    """
    same = (input_ids == input_ids[:1]).all(dim=0) & mask.bool().all(dim=0)
    same[int(mask.sum(dim=1).min()) - 1] = False
    length = int(same.long().argmin())
    if bool((input_ids[:, length:] == image_token).any()):
        raise ValueError("prompts: they differ before the end of the images")
    return Trunk(length, (input_ids[0, :length] == image_token).nonzero()[:, 0])


def encode(
    model: QwenVLAForActionPrediction,
    prompts: dict[str, Tensor],
    features: Tensor,
    branches: int,
    trunk: Trunk,
) -> VLMContext:
    """States of prompts of one body. Nothing here waits for the device.

    Args:
        model: Whose backbone to use.
        prompts: input_ids (b, l), attention_mask (b, l), position_ids (3, b, l), `branches` rows per picture,
            all of them with this trunk.
        features: Visual tokens per picture, all views. Shape (b / branches, tokens, d).
        branches: Instructions per picture.
        trunk: See common_trunk.

    Raises:
        ValueError: Rows are not a multiple of `branches`.
    """
    ids, mask, positions = prompts["input_ids"], prompts["attention_mask"].bool(), prompts["position_ids"]
    if len(ids) % branches or len(ids) // branches != len(features):
        raise ValueError(
            f"prompts: {len(ids)} rows, expected {branches} for each of {len(features)} pictures"
        )
    n, common, length = len(features), trunk.length, ids.shape[1] - trunk.length
    embed = model.backbone.get_input_embeddings()
    head = embed(ids[::branches, :common])
    head = head.index_copy(1, trunk.slots, features.to(head.dtype))
    tail = embed(ids[:, common:]).view(n, branches * length, -1)
    packed = torch.cat((positions[:, ::branches, :common], positions[:, :, common:].reshape(3, n, -1)), dim=2)
    text = model.backbone.model.language_model
    tree = make_tree(common, branches, length, text.config.linear_conv_kernel_dim, head.device)
    states = _states(text, torch.cat((head, tail), dim=1), packed, tree, model.config.action_expert.vlm_layer)
    before = states[:, None, :common].expand(-1, branches, -1, -1)
    after = states[:, common:].view(n, branches, length, -1)
    return VLMContext(torch.cat((before, after), dim=2).flatten(0, 1), mask, positions)


def _states(text: Any, x: Tensor, positions: Tensor, tree: Tree, until: int) -> Tensor:
    cos, sin = (t[:, None] for t in text.rotary_emb(x, positions))
    for index, layer in enumerate(text.layers):
        h = layer.input_layernorm(x)
        if layer.block_type == "linear_attention":
            x = x + _linear_mixer(layer.linear_attn, h, tree)
        else:
            x = x + _full_mixer(layer.self_attn, h, cos, sin, tree)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
        if index == until:
            return x
    return text.norm(x)


def _linear_mixer(layer: Any, x: Tensor, tree: Tree) -> Tensor:
    """Gated DeltaNet over a tree: the one-chunk form, with ancestors in place of all earlier tokens."""
    batch, total, _ = x.shape
    padded = F.pad(layer.in_proj_qkv(x), (0, 0, 0, 1))
    weight = layer.conv1d.weight[:, 0]
    taps = weight.shape[1]
    mixed = padded[:, :-1] * weight[:, taps - 1]
    for k in range(1, taps):
        mixed = mixed + padded[:, tree.parents[k]] * weight[:, taps - 1 - k]
    query, key, value = F.silu(mixed).split((layer.key_dim, layer.key_dim, layer.value_dim), dim=-1)
    query = l2norm(query.view(batch, total, -1, layer.head_k_dim)) * layer.head_k_dim**-0.5
    key = l2norm(key.view(batch, total, -1, layer.head_k_dim))
    value = value.view(batch, total, -1, layer.head_v_dim)
    repeats = layer.num_v_heads // layer.num_k_heads
    if repeats > 1:
        query, key = query.repeat_interleave(repeats, dim=2), key.repeat_interleave(repeats, dim=2)
    beta = layer.in_proj_b(x).sigmoid()
    decay = -layer.A_log.exp() * F.softplus(layer.in_proj_a(x) + layer.dt_bias)
    query, key, value, beta, decay = (t.transpose(1, 2) for t in (query, key, value, beta, decay))
    head = decay[..., : tree.trunk].cumsum(dim=-1)
    tail = decay[..., tree.trunk :].unflatten(-1, (tree.branches, tree.length)).cumsum(dim=-1).flatten(-2)
    along = torch.cat((head, tail + head[..., -1:]), dim=-1)
    pairwise = (along[..., :, None] - along[..., None, :]).masked_fill(~tree.ancestors, float("-inf")).exp()
    system = ((key * beta[..., None]) @ key.transpose(-1, -2)) * pairwise
    written = torch.linalg.solve_triangular(system, value * beta[..., None], upper=False, unitriangular=True)
    out = (((query @ key.transpose(-1, -2)) * pairwise) @ written).transpose(1, 2)
    gate = layer.in_proj_z(x).view(batch, total, -1, layer.head_v_dim)
    return layer.out_proj(layer.norm(out, gate).reshape(batch, total, -1))


def _full_mixer(layer: Any, x: Tensor, cos: Tensor, sin: Tensor, tree: Tree) -> Tensor:
    batch, total, _ = x.shape
    query, gate = layer.q_proj(x).view(batch, total, -1, 2 * layer.head_dim).chunk(2, dim=-1)
    query = rotate(layer.q_norm(query).transpose(1, 2), cos, sin)
    key = layer.k_norm(layer.k_proj(x).view(batch, total, -1, layer.head_dim)).transpose(1, 2)
    key = rotate(key, cos, sin)
    value = layer.v_proj(x).view(batch, total, -1, layer.head_dim).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=tree.ancestors,
        scale=layer.scaling,
        enable_gqa=layer.num_key_value_groups > 1,
    )
    mixed = mixed.transpose(1, 2).reshape(batch, total, -1)
    return layer.o_proj(mixed * gate.reshape(batch, total, -1).sigmoid())
