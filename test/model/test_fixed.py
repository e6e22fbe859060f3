# SPDX-License-Identifier: Apache-2.0
"""The model at a fixed shape gives transformers' own result, and decides nothing while it runs."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qwen_vla_ros.model.fixed import FixedModel, Shape, inverse_of_unit_lower, padded_length, shape_of
from qwen_vla_ros.model.processor import QwenVLAProcessor

# Of normalised actions, whose range is 2: what float32 sums in another order leave.
TOLERANCE = 2e-5
# Of bfloat16, whose steps are 0.4 %, against float32 with the same weights.
BFLOAT16_TOLERANCE = 0.02
INSTRUCTIONS = ("reach the red cube", "touch the ball with the left hand")
VIEWS = ("ego", "cam_wrist")
# Operations that wait for a value, whose output's shape depends on one, or that copy from the host.
UNFIT = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "lift_fresh", "masked_scatter")


def prompt(instruction: str) -> str:
    tags = [f"<|{v}_start|><|vision_start|><|image_pad|><|vision_end|><|{v}_end|>" for v in VIEWS]
    return "".join(tags) + instruction


def fixed_inputs(processor, instruction: str, pictures, length: int) -> dict[str, torch.Tensor]:
    ids = processor.token_ids(prompt(instruction), VIEWS)
    padded = torch.zeros(length, dtype=torch.int64)
    padded[: len(ids)] = torch.tensor(ids)
    frames = processor.frames(list(zip(VIEWS, pictures, strict=True)))
    return {"images": torch.from_numpy(frames), "ids": padded, "count": torch.tensor(len(ids))}


def stock(model, processor, instruction: str, pictures, noise, mask, steps: int) -> torch.Tensor:
    model.implementation = "stock"
    batch = processor.prompts([(prompt(instruction), VIEWS)])
    images = processor.images(list(zip(VIEWS, pictures, strict=True)))
    with torch.no_grad():
        context = model.encode(
            batch["input_ids"],
            batch["attention_mask"],
            images["image_grid_thw"],
            pixel_values=images["pixel_values"],
            position_ids=batch["position_ids"],
        )
        return model.sample(context, mask[None].bool(), steps, noise=noise[None])[0]


@pytest.fixture
def parts(tiny, picture):
    model, processor = tiny
    generator = torch.Generator().manual_seed(1)
    expert = model.config.action_expert
    noise = 0.6 * torch.randn(expert.horizon, expert.channels, generator=generator)
    mask = torch.zeros_like(noise)
    mask[:12, :9] = 1.0
    return copy.deepcopy(model), processor, [picture(1), picture(2)], noise, mask


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("length", ["exact", "padded", "ragged"])
@pytest.mark.parametrize("change", ["none", "causal", "inner layer", "zero padding"])
def test_equals_the_stock_forward(parts, portable: bool, length: str, change: str) -> None:
    model, processor, pictures, noise, mask = parts
    if change == "causal":
        model.config.action_expert.bidirectional = False
        model.config.action_expert.action_position = "after_length"
    elif change == "inner layer":
        model.config.action_expert.vlm_layer = 1
    elif change == "zero padding":
        model.config.flow.padding_noise = "zero"
    longest = max(INSTRUCTIONS, key=lambda text: len(processor.token_ids(prompt(text), VIEWS)))
    ids = processor.token_ids(prompt(longest), VIEWS)
    shape = shape_of(
        processor, ids, VIEWS, 3, None if length == "exact" else len(ids) + 5, length == "ragged"
    )
    fixed = FixedModel(model, shape, portable).eval()
    for instruction in (longest,) if length == "exact" else INSTRUCTIONS:
        inputs = fixed_inputs(processor, instruction, pictures, shape.length)
        ids = inputs["ids"][: int(inputs["count"])] if length == "ragged" else inputs["ids"]
        with torch.no_grad():
            found = fixed(inputs["images"], ids, noise, mask, inputs["count"])
        expected = stock(model, processor, instruction, pictures, noise, mask, 3)
        assert float((found - expected).abs().max()) <= TOLERANCE
        assert float(expected.abs().max()) > 0.1


@pytest.mark.parametrize("portable", [False, True])
def test_long_prompts_through_layers_that_forget_fast(parts, portable: bool) -> None:
    """What lies ahead decays by so much that its inverse is beyond float32."""
    model, processor, pictures, noise, mask = parts
    processor = QwenVLAProcessor(processor.tokenizer, replace(processor.config, image_size=(384, 512)))
    for layer in model.backbone.model.language_model.layers:
        if hasattr(layer, "linear_attn"):
            layer.linear_attn.A_log.data += 1.0
    ids = processor.token_ids(prompt(INSTRUCTIONS[0]), VIEWS)
    assert len(ids) > 380
    shape = shape_of(processor, ids, VIEWS, 2, len(ids) + 8, ragged=True)
    fixed = FixedModel(model, shape, portable).eval()
    inputs = fixed_inputs(processor, INSTRUCTIONS[0], pictures, shape.length)
    with torch.no_grad():
        found = fixed(inputs["images"], inputs["ids"][: len(ids)], noise, mask, inputs["count"])
    expected = stock(model, processor, INSTRUCTIONS[0], pictures, noise, mask, 2)
    assert float((found - expected).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("blockwise", [False, True])
def test_in_bfloat16_it_is_as_near_to_float32_as_the_stock_forward(parts, blockwise: bool) -> None:
    model, processor, pictures, _, mask = parts
    half = model.to(torch.bfloat16)
    whole = copy.deepcopy(half).float()
    ids = processor.token_ids(prompt(INSTRUCTIONS[1]), VIEWS)
    shape = shape_of(processor, ids, VIEWS, 3, len(ids) + 5)
    fixed = FixedModel(copy.deepcopy(half), shape).eval()
    if blockwise:  # as on CUDA, which has no solver that a graph could hold
        fixed._blockwise, fixed._size = True, padded_length(shape.length)
    found, theirs = [], []
    for seed in range(8):
        noise = 0.6 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed))
        inputs = fixed_inputs(processor, INSTRUCTIONS[1], pictures, shape.length)
        with torch.no_grad():
            ours = fixed(inputs["images"], inputs["ids"], noise, mask, inputs["count"])
        exact = stock(whole, processor, INSTRUCTIONS[1], pictures, noise, mask, 3)
        found.append(ours.float() - exact)
        theirs.append(stock(half, processor, INSTRUCTIONS[1], pictures, noise, mask, 3).float() - exact)
    ours, stocks = torch.stack(found), torch.stack(theirs)
    assert float(stocks.abs().max()) > 1e-3, "not in 16 bits"
    assert float(ours.square().mean().sqrt()) <= 1.25 * float(stocks.square().mean().sqrt())
    assert float(ours.abs().max()) <= BFLOAT16_TOLERANCE


class Record(TorchDispatchMode):
    """Names, shapes and types of what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        shape = tuple(result.shape) if isinstance(result, torch.Tensor) else None
        self.calls.append((str(func), shape))
        return result


def test_the_same_operations_whatever_the_input(parts) -> None:
    model, processor, pictures, noise, mask = parts
    ids = processor.token_ids(prompt(INSTRUCTIONS[1]), VIEWS)
    shape = shape_of(processor, ids, VIEWS, 2, len(ids) + 4)
    fixed = FixedModel(model, shape).eval()
    records = []
    for instruction, images, scale in (
        (INSTRUCTIONS[0], pictures, 1.0),
        (INSTRUCTIONS[1], pictures[::-1], 0.0),
    ):
        inputs = fixed_inputs(processor, instruction, images, shape.length)
        with torch.no_grad(), Record() as record:
            fixed(inputs["images"], inputs["ids"], scale * noise, mask, inputs["count"])
        records.append(record.calls)
    assert len(records[0]) > 100
    assert records[0] == records[1]
    assert not [name for name, _ in records[0] if any(unfit in name for unfit in UNFIT)]


def test_runs_without_a_value_or_a_copy_from_the_host(parts) -> None:
    # Meta tensors have no values and refuse company on other devices, as a CUDA graph's capture does.
    model, processor, pictures, noise, mask = parts
    ids = processor.token_ids(prompt(INSTRUCTIONS[1]), VIEWS)
    shape = shape_of(processor, ids, VIEWS, 2, len(ids) + 4)
    fixed = FixedModel(model, shape).eval().to("meta")
    fixed._blockwise = True
    fixed._size = padded_length(shape.length)
    inputs = fixed_inputs(processor, INSTRUCTIONS[1], pictures, shape.length)
    arguments = (inputs["images"], inputs["ids"], noise, mask, inputs["count"])
    with torch.no_grad():
        out = fixed(*(argument.to("meta") for argument in arguments))
    assert out.device.type == "meta"
    assert out.shape == noise.shape


@pytest.mark.parametrize("length", [1, 5, 12, 13, 58, 100])
@pytest.mark.parametrize("alike", [False, True])
def test_blockwise_inverse(length: int, alike: bool) -> None:
    size = padded_length(length)
    assert size >= length
    if alike:
        # Equal keys that nothing forgets: the worst case of sums of powers.
        strict = torch.ones(2, size, size).tril(-1)
    else:
        strict = torch.randn(2, size, size, generator=torch.Generator().manual_seed(length)).tril(-1) * 0.3
    expected = torch.linalg.inv((torch.eye(size) + strict).double())
    found = inverse_of_unit_lower(strict).double()
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-4


def test_refuses_prompts_that_do_not_fit(parts) -> None:
    model, processor, *_ = parts
    ids = processor.token_ids(prompt(INSTRUCTIONS[0]), VIEWS)
    with pytest.raises(ValueError, match="length: found 10, the prompt has"):
        shape_of(processor, ids, VIEWS, 4, 10)
    shape = Shape(((8, 8),), (), tuple((i, i, i) for i in range(2000)), 4, 0.5, 0.5)
    with pytest.raises(ValueError, match="found 2000 tokens, fixed shapes hold at most"):
        FixedModel(model, shape)
