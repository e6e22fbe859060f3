# SPDX-License-Identifier: Apache-2.0
"""The whole model, images to chunk, for one observation of fixed shape.

Same results as `QwenVLAForActionPrediction` (test/model/test_fixed.py) for a batch of one, with nothing left
to decide while it runs: no shape depends on data, and what weights, shape and Euler schedule settle is
computed once. That is what CUDA graphs and an ONNX export need, and it saves most of the time of a small
model on a CPU.

What does not depend on the images or the noise: rotary factors with the query and key norms' weights folded
in, the AdaLN factors of every block at every step, the position embedding of the vision transformer, masks.
The last block computes queries and MLP for the rows of the chunk only, since nothing reads the others. What
cannot be taken out of the loop: keys and values of the VLM tokens, which attend to the noisy chunk from the
first block on; and the backbone's prefix, since images come first in the prompt and all text sees them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwen_vla_ros.model import backbone
from qwen_vla_ros.model.action_expert import rotary_factors
from qwen_vla_ros.model.modeling import QwenVLAForActionPrediction
from qwen_vla_ros.model.positions import mrope_positions
from qwen_vla_ros.model.prepare import Preparation

# Largest block whose inverse is a sum of powers: their binomials stay below 500 where all keys are equal.
BLOCK = 12
# The delta rule of one chunk costs the square of its length.
MAX_TOKENS = 1024


@dataclass(frozen=True)
class Shape:
    """What an observation looks like, apart from its values.

    Attributes:
        grids: (rows, columns) of patches of each view.
        slots: Indices of the image tokens in the prompt, in order.
        positions: mRoPE indices (t, h, w) of every token.
        steps: Euler steps.
        mean, std: Of pixel values in [0, 1].
        padded: Prompts may be shorter than `positions`, padded on the right: what follows the images is
            counted text, and keys beyond the end are masked.
        ragged: Prompts may be shorter, and come without padding: sizes follow the prompt.
    """

    grids: tuple[tuple[int, int], ...]
    slots: tuple[int, ...]
    positions: tuple[tuple[int, int, int], ...]
    steps: int
    mean: float
    std: float
    padded: bool = False
    ragged: bool = False

    def __post_init__(self) -> None:
        if self.padded and self.ragged:
            raise ValueError("shape: padded and ragged, expected one of them")

    @property
    def length(self) -> int:
        """Tokens of the longest prompt."""
        return len(self.positions)


def stacked(*layers: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """One matrix of several layers of the same input; they become views of it, so nothing is kept twice.

    Their weights share storage from then on, as `save_checkpoint` refuses.
    """
    first = layers[0]
    known = getattr(first, "_stacked", None)
    # Moving or loading a model may have given the layers weights of their own again.
    if known is not None and all(
        layer.weight.untyped_storage().data_ptr() == known[0].untyped_storage().data_ptr() for layer in layers
    ):
        return known
    with torch.no_grad():
        weight = torch.cat([layer.weight for layer in layers])
        bias = None if first.bias is None else torch.cat([layer.bias for layer in layers])
        start = 0
        for layer in layers:
            end = start + layer.out_features
            layer.weight.data = weight[start:end]
            if bias is not None:
                layer.bias.data = bias[start:end]
            start = end
    first._stacked = (weight, bias)  # type: ignore[assignment]
    return weight, bias


def folded(cos: Tensor, sin: Tensor, size: int, weight: Tensor | None = None) -> Tensor:
    """Factors (2, ..., size) such that x * f[0] + partner(x) * f[1] rotates a head of `size` channels.

    Args:
        cos, sin: Of the leading channels, both halves. Shape (..., rotary).
        size: Channels of a head.
        weight: Of the norm before the rotation, applied as well. Shape (size,).
    """
    rotary = cos.shape[-1]
    half = rotary // 2
    rest = (*cos.shape[:-1], size - rotary)
    own = torch.cat((cos, cos.new_ones(rest)), dim=-1)
    other = torch.cat((-sin[..., :half], sin[..., half:], sin.new_zeros(rest)), dim=-1)
    if weight is not None:
        own, other = own * weight, other * partner(weight, rotary)
    return torch.stack((own, other))


def partner(x: Tensor, rotary: int) -> Tensor:
    """Each rotated channel's partner in its place. x (..., size)."""
    half = rotary // 2
    parts = (x[..., half:rotary], x[..., :half], x[..., rotary:])
    return torch.cat(parts if int(x.shape[-1]) > rotary else parts[:2], dim=-1)


def turn(x: Tensor, factors: Tensor, rotary: int) -> Tensor:
    """Rotate heads. x (..., size), factors (2, ..., size) from `folded`."""
    return torch.addcmul(x * factors[0], partner(x, rotary), factors[1])


def halves(x: Tensor) -> tuple[Tensor, ...]:
    """Both halves of the channels."""
    return x.split(int(x.shape[-1]) // 2, dim=-1)


def normed(x: Tensor, eps: float, weight: Tensor | None = None) -> Tensor:
    """x over its root mean square, times a weight."""
    if torch.onnx.is_in_onnx_export():
        # As onnxruntime writes it, which makes one operation of it where there is a weight.
        x = x / torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps)
    elif x.device.type != "cpu":
        x = F.rms_norm(x, (x.shape[-1],), eps=eps)
    else:
        # torch has no kernel of its own for this on a CPU; the norm is the fastest reduction.
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        x = x * torch.rsqrt(length.square() * (1.0 / int(x.shape[-1])) + eps)
    return x if weight is None else x * weight


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh form of GELU, written as x * sigmoid: a third of the time of torch's on a CPU."""
    if torch.onnx.is_in_onnx_export():
        # As onnxruntime writes it, which makes one operation of it.
        return x * 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))
    if x.device.type != "cpu":
        return F.gelu(x, approximate="tanh")
    scale = 2.0 * math.sqrt(2.0 / math.pi)
    return x * torch.sigmoid(x * (scale + 0.044715 * scale * x.square()))


def tiles(matrix: Tensor, block: int, count: int, below: bool) -> Tensor:
    """Square tiles on the diagonal, or of every two of them the one below it and beside the other.

    matrix (heads, n, n) -> (heads, count, block, block).
    """
    size = int(matrix.shape[-1])
    steps = torch.arange(count, device=matrix.device) * block
    first = steps * (2 * size + 2) + block * size if below else steps * (size + 1)
    inside = torch.arange(block, device=matrix.device)
    indices = first[:, None, None] + inside[:, None] * size + inside
    return matrix.flatten(1).index_select(1, indices.flatten()).view(-1, count, block, block)


def inverse_of_unit_lower(strict: Tensor) -> Tensor:
    """(I + strict)^-1 by matrix products alone, for strictly lower triangular matrices.

    Blocks on the diagonal of up to `BLOCK` rows by the finite sum of powers, then joined two by two: larger
    powers would cancel badly where many keys are alike.

    Args:
        strict: Shape (heads, n, n), n = b * 2**k with b up to BLOCK; see `padded_length`.
    """
    heads, size = int(strict.shape[0]), int(strict.shape[1])
    block = size
    while block > BLOCK:
        block //= 2
    count = size // block
    diagonal = tiles(strict, block, count, below=False)
    unit = torch.eye(block, dtype=strict.dtype, device=strict.device)
    inverse, power, reach = unit - diagonal, diagonal, 2
    while reach < block:
        power = power @ power
        inverse = inverse + inverse @ power
        reach *= 2
    while block < size:
        count //= 2
        below = tiles(strict, block, count, below=True)
        first, second = inverse.view(heads, count, 2, block, block).unbind(dim=2)
        corner = -(second @ below @ first)
        upper = torch.cat((first, torch.zeros_like(first)), dim=-1)
        inverse = torch.cat((upper, torch.cat((corner, second), dim=-1)), dim=-2)
        block *= 2
    return inverse.view(heads, size, size)


def padded_length(length: int) -> int:
    """Smallest b * 2**k of at least `length` with b up to BLOCK."""
    block = length
    doublings = 0
    while block > BLOCK:
        block, doublings = -(-block // 2), doublings + 1
    return block << doublings


def pieces_of(slots: Sequence[int]) -> list[tuple[bool, int, int | None]]:
    """How a prompt is put together: rows a to b of its pictures (True) or of its words, in turn."""
    pieces: list[tuple[bool, int, int | None]] = []
    at = shown = 0
    while shown < len(slots):
        begin = slots[shown]
        if begin > at:
            pieces.append((False, at, begin))
        first = shown
        while shown < len(slots) and slots[shown] == begin + shown - first:
            shown += 1
        pieces.append((True, first, shown))
        at = begin + shown - first
    return [*pieces, (False, at, None)]


class FixedModel(nn.Module):
    """Images to chunk at one shape, batch of one.

    Args:
        model: Its weights are used in place, some of them moved into shared storage; see `stacked`.
        shape: See there.
        portable: Use only operations that ONNX has: no triangular solve, attention spelt out.

    Raises:
        ValueError: The shape has more than `MAX_TOKENS` tokens.
    """

    def __init__(self, model: QwenVLAForActionPrediction, shape: Shape, portable: bool = False) -> None:
        super().__init__()
        config, self.shape, self.portable = model.config, shape, portable
        if shape.length > MAX_TOKENS:
            raise ValueError(f"prompt: found {shape.length} tokens, fixed shapes hold at most {MAX_TOKENS}")
        self.expert_config, self.flow = config.action_expert, config.flow
        self.until = config.action_expert.vlm_layer
        weight: Any = model.backbone.get_input_embeddings().weight
        self.dtype: torch.dtype = weight.dtype
        self.device: torch.device = weight.device
        self._visual = model.backbone.model.visual
        self._text = model.backbone.model.language_model
        self._expert = model.action_expert
        self._embedding = weight
        # A CUDA graph cannot hold LAPACK's or MAGMA's solver.
        self._blockwise = portable or self.device.type != "cpu"
        with torch.no_grad():
            self._prepare_vision()
            self._prepare_text()
            self._prepare_expert(config)

    if TYPE_CHECKING:  # buffers are kept by name

        def __getattr__(self, name: str) -> Any: ...

    # What is computed once

    def _keep(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value.to(self.device).contiguous(), persistent=False)

    def _prepare_vision(self) -> None:
        visual, shape = self._visual, self.shape
        self._runs: list[tuple[int, int, int]] = []  # (images, rows, columns) of images of one size
        for rows, columns in shape.grids:
            if self._runs and self._runs[-1][1:] == (rows, columns):
                self._runs[-1] = (self._runs[-1][0] + 1, rows, columns)
            else:
                self._runs.append((1, rows, columns))
        embed = visual.patch_embed
        # A still image is the same frame twice: the temporal taps add up. In the order of an image's bytes.
        matrix = embed.proj.weight.sum(dim=2).permute(0, 2, 3, 1).flatten(1)
        # In 16 bits a scaled matrix would be rounded once more.
        self._scaled = self.dtype == torch.float32
        self._keep("patch_matrix", matrix / (255.0 * shape.std) if self._scaled else matrix)
        for index, (_, rows, columns) in enumerate(self._runs):
            indices, weights, positions = backbone._image_layout(
                rows, columns, visual.spatial_merge_size, visual.num_grid_per_side, self.device
            )
            place = (visual.pos_embed(indices) * weights[:, :, None].to(self.dtype)).sum(dim=1)
            cos, sin = visual.rotary_pos_emb(place, positions)
            self._keep(f"place_{index}", place + embed.proj.bias)
            size = int(cos.shape[-1])
            factors = folded(cos, sin, size, cos.new_full((size,), self._root(size)))
            self._keep(f"vision_turn_{index}", factors.to(self.dtype))

    def _prepare_text(self) -> None:
        shape, text = self.shape, self._text
        positions = torch.tensor(shape.positions, device=self.device).T[:, None]
        cos, sin = text.rotary_emb(self._embedding[:1].float(), positions)
        self._rotary = cos.shape[-1]
        size = padded_length(shape.length) if self._blockwise else shape.length
        future = torch.ones(shape.length, shape.length, dtype=torch.bool, device=self.device).triu(1)
        hidden = torch.zeros(future.shape, device=self.device).masked_fill(future, -math.inf)
        self._keep("causal", hidden)
        # For numbers that are finite everywhere: exp() of what is masked is exactly zero.
        self._keep("past", hidden.clamp(min=-1e4))
        self._keep("strictly_past", torch.ones_like(hidden).tril(-1))
        self._size = size
        self._pieces = pieces_of(shape.slots)
        layer: Any
        for index, layer in enumerate(text.layers):
            for name in ("input_layernorm", "post_attention_layernorm"):
                self._keep(f"text_{index}_{name}", 1.0 + getattr(layer, name).weight)
            self._keep(f"text_{index}_gate_up", stacked(layer.mlp.gate_proj, layer.mlp.up_proj)[0])
            if layer.block_type == "linear_attention":
                mixer = layer.linear_attn
                inputs = (mixer.in_proj_qkv, mixer.in_proj_z, mixer.in_proj_b, mixer.in_proj_a)
                self._keep(f"text_{index}_in", stacked(*inputs)[0])
                taps = mixer.conv1d.weight[:, 0].T.contiguous()
                self._keep(f"text_{index}_taps", taps)
                self._keep(f"text_{index}_rate", -mixer.A_log.float().exp())
            else:
                attention = layer.self_attn
                weight, bias = stacked(attention.q_proj, attention.k_proj, attention.v_proj)
                self._keep(f"text_{index}_in", weight)
                if bias is not None:
                    self._keep(f"text_{index}_in_bias", bias)
                for name in ("q_norm", "k_norm"):
                    norm = 1.0 + getattr(attention, name).weight.float()
                    factors = folded(cos[0], sin[0], norm.shape[0], norm)[:, None]
                    self._keep(f"text_{index}_{name}", factors.to(self.dtype))
        self._keep("text_norm", 1.0 + text.norm.weight)
        own = text.config
        self._keep("text_root", torch.full((own.head_dim,), self._root(own.head_dim), dtype=self.dtype))
        size = own.linear_key_head_dim
        self._keep("unit", torch.full((size,), size**-0.5))

    def _prepare_expert(self, config: Any) -> None:
        expert, shape, own = self._expert, self.shape, self.expert_config
        block: Any
        horizon, length = own.horizon, shape.length
        positions = torch.tensor(shape.positions, device=self.device).T
        # The chunk may begin after any number of tokens: a row of factors for every place.
        after = int(positions[:, -1].max()) + 1 if own.action_position == "after_max" else length
        self._first = 0 if shape.padded or shape.ragged else after
        places = torch.arange(self._first, after + horizon, device=self.device).expand(3, -1)
        # Action positions follow the number of tokens at this distance.
        self._distance = after - length
        sides = []
        for where in (positions, places):
            cos, sin = rotary_factors(where[:, None], expert.mrope_section, expert.rope_theta)
            rows = []
            for block in expert.blocks:
                attention: Any = block.attention
                norms = (attention.query_norm, attention.key_norm)
                root = torch.full((own.head_dim,), self._root(own.head_dim), device=self.device)
                weights = [root if norm is None else norm.weight.float() for norm in norms]
                pair = [folded(cos[0, 0], sin[0, 0], own.head_dim, weight) for weight in weights]
                rows.append(torch.stack(pair, dim=1)[:, :, None])  # (2, query and key, 1, S, size)
            sides.append(torch.stack(rows).to(self.dtype))
        self._keep("expert_root", torch.full((own.head_dim,), self._root(own.head_dim), dtype=self.dtype))
        self._expert_rotary = 2 * sum(expert.mrope_section)
        self._keep("expert_turn_tokens", sides[0])
        self._keep("expert_turn_places", sides[1])
        if not (shape.padded or shape.ragged):
            self._keep("expert_turn", torch.cat(sides, dim=-2))
        taus = [1.0 - step / shape.steps for step in range(shape.steps)]
        self._taus = taus
        condition = expert.embed_timestep(torch.tensor(taus, device=self.device))
        tables = []
        for block in expert.blocks:
            table = block.modulation(condition).view(shape.steps, 6, -1)
            table[:, (1, 4)] += 1.0
            tables.append(table)
        self._keep("modulation", torch.stack(tables))  # (blocks, steps, 6, d)
        last = expert.modulation_out(condition).view(shape.steps, 2, -1)
        last[:, 1] += 1.0
        self._keep("modulation_out", last)
        total = length + horizon
        if not own.bidirectional:
            ahead = torch.ones(total, total, dtype=torch.bool, device=self.device).triu(1)
            bias = torch.zeros(total, total, device=self.device).masked_fill(ahead, -math.inf)
            self._keep("ahead", bias.to(self.dtype))
        self._keep("token_index", torch.arange(length, device=self.device))
        self._keep("row_index", torch.arange(horizon, device=self.device))

    # What runs

    def _root(self, size: int) -> float:
        """What queries and keys are multiplied by before `_attend`, which scales scores where it can."""
        return size**-0.25 if self.portable else 1.0

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Softmax attention. query (..., heads, S, D), key and value (..., groups, T, D); see `_root`."""
        groups = int(query.shape[-3] // key.shape[-3])
        if not self.portable:
            return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, enable_gqa=groups > 1)
        if groups > 1:
            # Heads that share keys and values, side by side.
            query = query.unflatten(-3, (-1, groups))
            key, value = key.unsqueeze(-3), value.unsqueeze(-3)
        scores = query @ key.transpose(-1, -2)
        if bias is not None:
            scores = scores + bias
        mixed = scores.softmax(dim=-1) @ value
        return mixed.flatten(-4, -3) if groups > 1 else mixed

    def patches(self, images: Tensor) -> list[Tensor]:
        """What the patch embedding multiplies, for each run of images of one size; rows in its own order.

        Args:
            images: RGB of all views at the size of the model, one after another. uint8, shape (bytes,).

        Returns:
            float32, shape (images * rows * columns, p * p * 3) each.
        """
        visual = self._visual
        side, merge = visual.patch_embed.patch_size, visual.spatial_merge_size
        found, start = [], 0
        for count, rows, columns in self._runs:
            end = start + count * rows * columns * 3 * side * side
            tiles = images[start:end].view(
                count, rows // merge, merge, side, columns // merge, merge, 3 * side
            )
            tiles = tiles.permute(0, 1, 4, 2, 5, 3, 6).reshape(count * rows * columns, 3 * side * side)
            pixels = tiles.float() - 255.0 * self.shape.mean
            found.append(pixels if self._scaled else pixels / (255.0 * self.shape.std))
            start = end
        return found

    def embed_images(self, images: Tensor) -> Tensor:
        """Visual tokens. images as for `patches` -> (T, D)."""
        parts = [
            self._embed_run(index, run[0], pixels.to(self.dtype))
            for index, (run, pixels) in enumerate(zip(self._runs, self.patches(images), strict=True))
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _embed_run(self, index: int, count: int, pixels: Tensor) -> Tensor:
        visual: Any = self._visual
        turns = getattr(self, f"vision_turn_{index}")
        place = getattr(self, f"place_{index}")
        length, size = len(place), int(turns.shape[-1])
        x = F.linear(pixels, self.patch_matrix).view(count, length, len(self.patch_matrix))
        x = (x + place).flatten(0, 1)
        for block in visual.blocks:
            attention = block.attn
            heads = attention.num_heads
            qkv = attention.qkv(block.norm1(x)).view(count, length, 3, heads, size).permute(2, 0, 3, 1, 4)
            pair, value = qkv.split((2, 1))
            query, key = turn(pair, turns, size)
            mixed = self._attend(query, key, value[0], None).transpose(1, 2)
            x = x + attention.proj(mixed.reshape(count * length, heads * size))
            mlp = block.mlp
            x = x + mlp.linear_fc2(gelu_tanh(mlp.linear_fc1(block.norm2(x))))
        return visual.merger(x)

    def _delta_rule(self, layer: Any, index: int, x: Tensor) -> Tensor:
        """Gated DeltaNet over one chunk. x (L, D) -> (L, D)."""
        length = x.shape[0]
        key_heads, heads = layer.num_k_heads, layer.num_v_heads
        width = 2 * layer.key_dim + layer.value_dim
        found = F.linear(x, getattr(self, f"text_{index}_in"))
        mixed, gate, rates = found.split((width, layer.value_dim, 2 * heads), dim=-1)
        taps = getattr(self, f"text_{index}_taps")
        before = len(taps) - 1
        shifts = F.pad(mixed, (0, 0, before, 0))
        mixed = mixed * taps[before]
        for tap in range(before):
            mixed = torch.addcmul(mixed, shifts[tap : tap - before], taps[tap])
        mixed = F.silu(mixed).float()
        pair, value = mixed.split((2 * layer.key_dim, layer.value_dim), dim=-1)
        size = layer.head_k_dim
        pair = pair.view(-1, 2, key_heads, size).permute(1, 2, 0, 3)
        # Over its norm: the root of the mean square times the root of the number of channels.
        pair = normed(pair, 1e-6 / size, self.unit)
        value = value.view(-1, heads, layer.head_v_dim).transpose(0, 1)
        rates = rates.float()
        beta = rates[:, :heads].sigmoid().T[..., None]
        g = getattr(self, f"text_{index}_rate") * F.softplus(rates[:, heads:] + layer.dt_bias)
        total = g.T.cumsum(dim=-1)
        past, before_it = self._prompt(self.past, length), self._prompt(self.strictly_past, length)
        # Differences to later positions are positive, and beyond what `past` hides where prompts are long.
        decay = ((total[:, :, None] - total[:, None, :]).clamp(max=0.0) + past).exp()
        products = pair @ pair[1].transpose(-1, -2)
        if heads > key_heads:
            # Several heads of values share one of keys.
            decayed = (products.unsqueeze(2) * decay.unflatten(0, (key_heads, -1))).flatten(1, 2)
        else:
            decayed = products * decay
        scores, system = decayed.unbind()
        system = system * beta
        if self._blockwise:
            strict = system * before_it
            if self.shape.ragged or self._size > self.shape.length:
                extra = self._size - length
                strict = F.pad(strict, (0, extra, 0, extra)).view(heads, self._size, self._size)
            inverse = inverse_of_unit_lower(strict)[:, :length, :length]
            corrected = inverse @ (value * beta)
        else:
            corrected = torch.linalg.solve_triangular(system, value * beta, upper=False, unitriangular=True)
        out = ((scores * size**-0.5) @ corrected).transpose(0, 1)
        if self.dtype == torch.float32:
            out = normed(out, layer.norm.variance_epsilon, layer.norm.weight)
        else:  # rounded where the stock modules round
            out = (normed(out, layer.norm.variance_epsilon).to(x.dtype) * layer.norm.weight).float()
        out = out * F.silu(gate.view(-1, heads, layer.head_v_dim).float())
        return layer.out_proj(out.to(x.dtype).reshape(-1, layer.value_dim))

    def _full_attention(self, layer: Any, index: int, x: Tensor) -> Tensor:
        """Gated softmax attention. x (L, D) -> (L, D)."""
        length, size = x.shape[0], layer.head_dim
        found = F.linear(x, getattr(self, f"text_{index}_in"), getattr(self, f"text_{index}_in_bias", None))
        wide, narrow = layer.q_proj.out_features, layer.k_proj.out_features
        both, key, value = found.split((wide, narrow, narrow), dim=-1)
        query, gate = both.view(-1, wide // (2 * size), 2 * size).split(size, dim=-1)
        key, value = (part.view(-1, narrow // size, size).transpose(0, 1) for part in (key, value))
        turns = [getattr(self, f"text_{index}_{name}") for name in ("q_norm", "k_norm")]
        if self.shape.ragged:
            turns = [table[:, :, :length] for table in turns]
        root = self.text_root if self.portable else None
        query = turn(normed(query.transpose(0, 1), layer.q_norm.eps, root), turns[0], self._rotary)
        key = turn(normed(key, layer.k_norm.eps, root), turns[1], self._rotary)
        causal = self._prompt(self.causal, length).to(x.dtype)
        mixed = self._attend(query[None], key[None], value[None], causal)[0].transpose(0, 1)
        return layer.o_proj((mixed * gate.sigmoid()).reshape(-1, wide // 2))

    def _prompt(self, table: Tensor, length: int) -> Tensor:
        """The part of a square table that a prompt of so many tokens needs."""
        return table[:length, :length] if self.shape.ragged else table

    def read(self, features: Tensor, ids: Tensor) -> Tensor:
        """What the expert reads. features (T, D) from `embed_images`, ids (L,) -> (L, d)."""
        text: Any = self._text
        words, pictures = F.embedding(ids, self._embedding), features.to(self.dtype)
        x = torch.cat([(pictures if shown else words)[a:b] for shown, a, b in self._pieces])
        for index, layer in enumerate(text.layers):
            h = normed(x, layer.input_layernorm.eps, getattr(self, f"text_{index}_input_layernorm"))
            if layer.block_type == "linear_attention":
                x = x + self._delta_rule(layer.linear_attn, index, h)
            else:
                x = x + self._full_attention(layer.self_attn, index, h)
            h = normed(
                x, layer.post_attention_layernorm.eps, getattr(self, f"text_{index}_post_attention_layernorm")
            )
            gate, up = halves(F.linear(h, getattr(self, f"text_{index}_gate_up")))
            x = x + layer.mlp.down_proj(F.silu(gate) * up)
            if index == self.until:
                return self._expert.vlm_projection(x)
        return self._expert.vlm_projection(normed(x, text.norm.eps, self.text_norm))

    def _velocity(
        self, step: int, tokens: Tensor, noisy: Tensor, turns: Tensor, bias: Tensor | None
    ) -> Tensor:
        expert, own = self._expert, self.expert_config
        heads, size, eps = own.num_attention_heads, own.head_dim, own.norm_eps
        width = heads * size
        x = torch.cat((tokens, expert.action_in(noisy)))
        block: Any
        for index, block in enumerate(expert.blocks):
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation[index, step].unbind()
            h = F.layer_norm(x, (own.hidden_size,), scale_a, shift_a, eps)
            qkv = F.linear(h, block.attention.qkv.weight).view(-1, 3, heads, size).permute(1, 2, 0, 3)
            pair, value = qkv.split((2, 1))
            if own.qk_norm:
                pair = normed(pair, eps, self.expert_root if self.portable else None)
            query, key = turn(pair, turns[index], self._expert_rotary)
            seen = bias
            if index == own.num_hidden_layers - 1:
                # Nothing reads the VLM tokens after this block.
                x, query = x[-own.horizon :], query[:, -own.horizon :]
                if seen is not None and seen.shape[0] > 1:
                    seen = seen[-own.horizon :]
            mixed = self._attend(query[None], key[None], value, seen)[0].transpose(0, 1).reshape(-1, width)
            x = torch.addcmul(x, block.attention.out(mixed), gate_a)
            h = F.layer_norm(x, (own.hidden_size,), scale_m, shift_m, eps)
            gate, up = halves(block.mlp.gate_up(h))
            x = torch.addcmul(x, block.mlp.down(F.silu(gate) * up), gate_m)
        shift, scale = self.modulation_out[step].unbind()
        return expert.action_out(F.layer_norm(x, (own.hidden_size,), scale, shift, eps))

    def sample(self, tokens: Tensor, noise: Tensor, mask: Tensor, count: Tensor | None = None) -> Tensor:
        """Euler steps from tau = 1 to 0.

        Args:
            tokens: From `read`. Shape (L, d).
            noise: Y_1, float32. Shape (H, K).
            mask: 1 where the embodiment has an action, else 0; float32. Shape (H, K).
            count: Tokens of the prompt, where the shape is padded. int64, shape ().

        Returns:
            Y_0, float32, zero outside the mask. Shape (H, K).
        """
        bias = None if self.expert_config.bidirectional else self.ahead
        if self.shape.ragged:
            length = tokens.shape[0]
            total = length + self.expert_config.horizon
            bias = None if bias is None else bias[:total, :total]
            places = self.expert_turn_places.index_select(-2, self.row_index + (length + self._distance))
            turns = torch.cat((self.expert_turn_tokens[..., :length, :], places), dim=-2)
        elif self.shape.padded:
            if count is None:
                raise ValueError("count: missing, the shape is padded")
            places = self.expert_turn_places.index_select(-2, self.row_index + (count + self._distance))
            turns = torch.cat((self.expert_turn_tokens, places), dim=-2)
            hidden = torch.where(self.token_index < count, 0.0, -math.inf).to(self.dtype)
            padding = F.pad(hidden, (0, self.expert_config.horizon))[None]
            bias = padding if bias is None else bias + padding
        else:
            turns = self.expert_turn
        sample, delta, padded = noise, 1.0 / self.shape.steps, 1.0 - mask
        for step, tau in enumerate(self._taus):
            sample = sample * mask
            seen = (
                sample
                if self.flow.padding_noise == "zero"
                else torch.addcmul(sample, noise, padded, value=tau)
            )
            flow = self._velocity(step, tokens, seen.to(self.dtype), turns, bias)
            sample = sample - delta * flow.float()
        return sample * mask

    def context(self, images: Tensor, ids: Tensor) -> Tensor:
        """Images and prompt to what the expert reads. Arguments as for `forward` -> (L, d)."""
        return self.read(self.embed_images(images), ids)

    def forward(
        self, images: Tensor, ids: Tensor, noise: Tensor, mask: Tensor, count: Tensor | None = None
    ) -> Tensor:
        """Images and prompt to a chunk.

        Args:
            images: As for `patches`.
            ids: Token ids, padded on the right to the shape's length. int64, shape (L,).
            noise, mask, count: As for `sample`.

        Returns:
            As `sample`.
        """
        return self.sample(self.context(images, ids), noise, mask, count)


def shape_of(
    preparation: Preparation,
    token_ids: Sequence[int],
    views: Sequence[str],
    steps: int,
    length: int | None = None,
    ragged: bool = False,
) -> Shape:
    """Shape of a prompt.

    Args:
        preparation: That made the prompt; knows the sizes of the views.
        token_ids: Of the prompt.
        views: Of its images, in order.
        steps: Euler steps.
        length: Tokens that prompts of this shape may have; those of this one without it.

    Raises:
        ValueError: The prompt is longer.
    """
    total = len(token_ids) if length is None else length
    if total < len(token_ids):
        raise ValueError(f"length: found {total}, the prompt has {len(token_ids)} tokens")
    is_image = np.zeros((1, total), dtype=bool)
    is_image[0, : len(token_ids)] = np.asarray(token_ids) == preparation.image_id
    merged = [preparation.merged_grid(view) for view in views]
    positions = mrope_positions(is_image, np.ones((1, total), dtype=bool), [merged])[:, 0]
    config = preparation.config
    return Shape(
        tuple((rows * config.merge_size, columns * config.merge_size) for rows, columns in merged),
        tuple(np.flatnonzero(is_image[0]).tolist()),
        tuple((t, h, w) for t, h, w in positions.T.tolist()),
        steps,
        config.mean,
        config.std,
        padded=length is not None and not ragged,
        ragged=ragged,
    )
