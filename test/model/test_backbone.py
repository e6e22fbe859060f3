# SPDX-License-Identifier: Apache-2.0
"""The fast forward passes equal transformers' own."""

from __future__ import annotations

import copy
import inspect
import logging
import sys
from types import ModuleType

import pytest
import torch
from transformers.models.qwen3_5.modeling_qwen3_5 import l2norm, torch_chunk_gated_delta_rule

from qwen_vla_ros.model import backbone


def assert_equal(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 5e-6) -> None:
    """Largest difference against the largest value: what float32 sums in another order leave."""
    assert found.shape == expected.shape
    difference = float((found - expected).abs().max() / expected.abs().max())
    assert difference <= tolerance


def prompts(processor, *instructions: str):
    text = "<|ego_start|><|vision_start|><|image_pad|><|vision_end|><|ego_end|>The robot is X. "
    return processor.prompts([(text + instruction, ["ego"]) for instruction in instructions])


def test_image_features(tiny, picture) -> None:
    model, processor = tiny
    batch = processor.images([("ego", picture(seed)) for seed in range(3)])
    with torch.no_grad():
        fast = model.embed_images(**batch)
        model.implementation = "stock"
        stock = model.embed_images(**batch)
    assert_equal(fast, stock)


def test_image_features_of_several_sizes(tiny) -> None:
    model, _ = tiny
    grid = torch.tensor([[1, 8, 8], [1, 8, 8], [1, 4, 6], [1, 8, 8]])
    pixels = torch.randn(int(grid.prod(dim=1).sum()), 768, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        fast = model.embed_images(pixels, grid)
        model.implementation = "stock"
        stock = model.embed_images(pixels, grid)
    assert_equal(fast, stock)


@pytest.mark.parametrize("words", [1, 30, backbone.SINGLE_CHUNK + 40])
def test_text_states(tiny, picture, words: int) -> None:
    model, processor = tiny
    images = processor.images([("ego", picture(0)), ("ego", picture(1))])
    batch = prompts(processor, "reach " * words, "drive to the red pillar")
    results = []
    with torch.no_grad():
        for model.implementation in ("fast", "stock"):
            context = model.encode(
                batch["input_ids"],
                batch["attention_mask"],
                images["image_grid_thw"],
                pixel_values=images["pixel_values"],
            )
            results.append(context.hidden[context.mask])
    # The gated norm enlarges the rounding of small states.
    assert_equal(*results, tolerance=2e-5)


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_states_of_an_inner_layer(tiny, picture, layer: int) -> None:
    model, processor = tiny
    images = processor.images([("ego", picture(0))])
    batch = prompts(processor, "reach the red cube")
    model.config.action_expert.vlm_layer = layer
    results = []
    try:
        with torch.no_grad():
            for model.implementation in ("fast", "stock"):
                results.append(
                    model.encode(
                        batch["input_ids"],
                        batch["attention_mask"],
                        images["image_grid_thw"],
                        pixel_values=images["pixel_values"],
                    ).hidden
                )
    finally:
        model.config.action_expert.vlm_layer = -1
    # The gated norm enlarges the rounding of small states.
    assert_equal(*results, tolerance=2e-5)


def test_gradients(tiny, picture) -> None:
    model, processor = tiny
    images = processor.images([("ego", picture(0))])
    batch = prompts(processor, "reach the red cube")
    gradients = []
    for model.implementation in ("fast", "stock"):
        model.zero_grad()
        context = model.encode(
            batch["input_ids"],
            batch["attention_mask"],
            images["image_grid_thw"],
            pixel_values=images["pixel_values"],
        )
        context.hidden.square().mean().backward()
        gradients.append(
            {n: p.grad.clone() for n, p in model.backbone.named_parameters() if p.grad is not None}
        )
    model.zero_grad()
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) > 50
    for name, gradient in gradients[0].items():
        assert_equal(gradient, gradients[1][name], 2e-4)


def test_training_after_inference(tiny) -> None:
    model, _ = tiny
    pixels, grid = torch.randn(4 * 6, 768), torch.tensor([[1, 4, 6]])
    backbone._image_layout.__wrapped__.cache_clear()
    with torch.inference_mode():
        model.embed_images(pixels, grid)
    model.embed_images(pixels, grid).sum().backward()
    model.zero_grad()


@pytest.mark.parametrize("length", [1, 2, 17, 64, 100])
def test_single_chunk_delta_rule(length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    query, key, value = (torch.randn(2, length, 3, 8, generator=generator) for _ in range(3))
    beta = torch.rand(2, length, 3, generator=generator)
    g = -5 * torch.rand(2, length, 3, generator=generator)
    expected, _ = torch_chunk_gated_delta_rule(
        query, key, value, g=g, beta=beta, use_qk_l2norm_in_kernel=True
    )
    q, k, v, decay, rate = (t.transpose(1, 2) for t in (l2norm(query) * 8**-0.5, l2norm(key), value, g, beta))
    found = backbone.single_chunk_delta_rule(q, k, v, decay, rate).transpose(1, 2)
    assert_equal(found, expected)


@pytest.fixture
def choice():
    backbone.fused_delta_rule.cache_clear()
    yield backbone.fused_delta_rule
    backbone.fused_delta_rule.cache_clear()


def install(monkeypatch, **names) -> None:
    """A package `fla` with these names where its gated delta rule is."""
    for name in ("fla", "fla.ops", "fla.ops.gated_delta_rule"):
        module = ModuleType(name)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
    vars(sys.modules["fla.ops.gated_delta_rule"]).update(names)


def test_flash_linear_attention_where_it_can_run(monkeypatch, choice) -> None:
    def kernel() -> None: ...

    install(monkeypatch, chunk_gated_delta_rule=kernel)
    assert choice("cuda", torch.bfloat16) is choice("cuda", torch.float16) is kernel
    assert choice("cuda", torch.float32) is choice("cpu", torch.bfloat16) is None


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (None, "flash-linear-attention is not installed: Gated DeltaNet runs in torch"),
        ({}, "flash-linear-attention cannot be used, Gated DeltaNet runs in torch: cannot import name"),
    ],
)
def test_without_flash_linear_attention_a_log_line_says_so_once(
    monkeypatch, caplog, choice, names, told: str
) -> None:
    if names is None:
        monkeypatch.setitem(sys.modules, "fla", None)
    else:
        install(monkeypatch, **names)
    with caplog.at_level(logging.WARNING):
        assert choice("cuda", torch.bfloat16) is None
        assert choice("cuda", torch.bfloat16) is None
    assert len([record for record in caplog.records if record.message.startswith(told)]) == 1


@pytest.mark.parametrize("value_heads", [1, 2])
def test_a_fused_rule_takes_the_place_of_ours(tiny, monkeypatch, value_heads: int) -> None:
    config = copy.deepcopy(tiny[0].config.backbone.text_config)
    config.linear_num_value_heads = value_heads * config.linear_num_key_heads
    layer = type(tiny[0].backbone.model.language_model.layers[0].linear_attn)(config, 0).float()
    x = torch.randn(2, 40, config.hidden_size, generator=torch.Generator().manual_seed(0))
    calls = []

    # transformers' own has the interface and the meaning of flash-linear-attention's.
    def fused(query, key, value, **options):
        assert query.shape[:3] == key.shape[:3] == value.shape[:3]
        assert set(options) == {"g", "beta", "use_qk_l2norm_in_kernel"}
        calls.append(query.shape)
        return inspect.unwrap(torch_chunk_gated_delta_rule)(query, key, value, **options)

    with torch.no_grad():
        expected = backbone.linear_mixer(layer, x)
        monkeypatch.setattr(backbone, "fused_delta_rule", lambda *_: fused)
        found = backbone.linear_mixer(layer, x)
    assert len(calls) == 1
    assert_equal(found, expected, 2e-5)


def test_on_a_cpu_transformers_choice_of_a_kernel_is_not_taken() -> None:
    rule = backbone._chunked_delta_rule
    assert rule.__module__.startswith("transformers.")
    assert not hasattr(rule, "__wrapped__")
    assert rule is not torch_chunk_gated_delta_rule


def test_causal_depthwise_convolution() -> None:
    x, weight = torch.randn(2, 9, 5), torch.randn(5, 4)
    expected = torch.nn.functional.conv1d(x.transpose(1, 2), weight[:, None], padding=3, groups=5)
    torch.testing.assert_close(backbone.causal_depthwise(x, weight), expected[..., :9].transpose(1, 2))
