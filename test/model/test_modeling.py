# SPDX-License-Identifier: Apache-2.0
"""The whole model: batches, sharing, sampling, a training step."""

from __future__ import annotations

import copy

import pytest
import torch

from qwen_vla_ros.model.flow_matching import FlowDraw
from qwen_vla_ros.model.presets import build_tiny

HEAD = "<|ego_start|><|vision_start|><|image_pad|><|vision_end|><|ego_end|>The robot is X with single arm: "
TWO = HEAD + "<|cam_wrist_start|><|vision_start|><|image_pad|><|vision_end|><|cam_wrist_end|> also "


def mask_of(*shapes: tuple[int, int]) -> torch.Tensor:
    mask = torch.zeros(len(shapes), 16, 32, dtype=torch.bool)
    for row, (horizon, channels) in zip(mask, shapes, strict=True):
        row[:horizon, :channels] = True
    return mask


@torch.no_grad()
def encode(tiny, prompts, images, **options):
    model, processor = tiny
    return model.encode(**processor.prompts(prompts), **processor.images(images), **options)


def test_results_do_not_depend_on_padding(tiny, picture) -> None:
    model, _ = tiny
    short, long = (HEAD + "reach", ["ego"]), (HEAD + "reach " * 60, ["ego"])
    images = [("ego", picture(0)), ("ego", picture(1))]
    # oneDNN adds up products of another shape in another order, by how much depends on the processor.
    with torch.backends.mkldnn.flags(enabled=False):
        together = encode(tiny, [short, long], images)
        alone = encode(tiny, [short], images[:1])
    length = int(alone.mask.sum())
    assert together.hidden.shape[1] > length + 40
    torch.testing.assert_close(together.hidden[0, :length], alone.hidden[0], atol=3e-6, rtol=0)
    noise = torch.randn(2, 16, 32)
    mask = mask_of((16, 8), (16, 8))
    torch.testing.assert_close(
        model.sample(together, mask, noise=noise)[:1],
        model.sample(alone, mask[:1], noise=noise[:1]),
        atol=1e-5,
        rtol=0,
    )


@torch.no_grad()
def test_what_stands_in_the_padding_reaches_no_token(tiny, picture) -> None:
    """To the last bit: nothing but the padding differs."""
    model, processor = tiny
    batch = processor.prompts([(HEAD + "reach", ["ego"]), (HEAD + "reach " * 60, ["ego"])])
    images = processor.images([("ego", picture(0)), ("ego", picture(1))])
    before = model.encode(**batch, **images)
    length = int(batch["attention_mask"][0].sum())
    batch["input_ids"][0, length:] = batch["input_ids"][1, length - 1]
    after = model.encode(**batch, **images)
    assert not torch.equal(after.hidden[0, length:], before.hidden[0, length:])
    assert torch.equal(after.hidden[0, :length], before.hidden[0, :length])
    assert torch.equal(after.hidden[1], before.hidden[1])


def test_padding_on_the_left_is_refused(tiny, picture) -> None:
    model, processor = tiny
    batch = processor.prompts([(HEAD + "reach", ["ego"])])
    batch["attention_mask"][0, 0] = 0
    with pytest.raises(ValueError, match="padding on the right only"):
        model.encode(**batch, **processor.images([("ego", picture(0))]))


def test_shared_features_equal_repeated_images(tiny, picture) -> None:
    model, processor = tiny
    prompts = [(HEAD + word, ["ego"]) for word in ("red", "green", "blue", "reach the red cube")]
    index = [1, 0, 1, 1]
    repeated = encode(tiny, prompts, [("ego", picture(i)) for i in index])
    images = processor.images([("ego", picture(i)) for i in range(2)])
    with torch.no_grad():
        shared = model.encode(
            **processor.prompts(prompts),
            image_grid_thw=images["image_grid_thw"],
            image_features=model.embed_images(**images),
            image_index=torch.tensor(index),
        )
    torch.testing.assert_close(shared.hidden, repeated.hidden, atol=3e-6, rtol=0)


def test_prompts_with_different_numbers_of_views(tiny, picture) -> None:
    prompts = [(TWO + "reach", ["ego", "cam_wrist"]), (HEAD + "reach", ["ego"])]
    images = [("ego", picture(0)), ("cam_wrist", picture(1)), ("ego", picture(2))]
    together = encode(tiny, prompts, images)
    for row, (start, stop) in enumerate([(0, 2), (2, 3)]):
        alone = encode(tiny, prompts[row : row + 1], images[start:stop])
        length = alone.hidden.shape[1]
        torch.testing.assert_close(together.hidden[row, :length], alone.hidden[0], atol=3e-6, rtol=0)


def test_positions_from_the_processor_and_from_the_model_agree(tiny, picture) -> None:
    model, processor = tiny
    prompts = [(TWO + "reach", ["ego", "cam_wrist"]), (HEAD + "reach the cube now", ["ego"])]
    batch = processor.prompts(prompts)
    given = batch.pop("position_ids")
    images = processor.images([("ego", picture(0)), ("cam_wrist", picture(1))])
    with torch.no_grad():
        context = model.encode(**batch, **images, image_index=torch.tensor([0, 1, 0]))
    assert torch.equal(context.positions, given)


def test_images_that_do_not_fit_the_prompt_are_an_error(tiny, picture) -> None:
    with pytest.raises(ValueError, match="32 image tokens, the images have 16"):
        encode(tiny, [(TWO, ["ego", "cam_wrist"])], [("ego", picture(0))])


def test_batch_of_several_bodies_equals_each_alone(tiny, picture) -> None:
    model, _ = tiny
    prompts = [(HEAD + "reach", ["ego"]), (TWO + "drive", ["ego", "cam_wrist"])]
    images = [("ego", picture(0)), ("ego", picture(1)), ("cam_wrist", picture(2))]
    mask, noise = mask_of((16, 8), (8, 3)), torch.randn(2, 16, 32)
    context = encode(tiny, prompts, images)
    actions = torch.rand(2, 16, 32) * 2 - 1
    tau = torch.tensor([0.3, 0.8])
    with torch.no_grad():
        together = model.flow_loss(context, actions, mask, FlowDraw(noise, tau))
        for row, span in enumerate([slice(0, 1), slice(1, 3)]):
            alone = model.flow_loss(
                encode(tiny, prompts[row : row + 1], images[span]),
                actions[row : row + 1],
                mask[row : row + 1],
                FlowDraw(noise[row : row + 1], tau[row : row + 1]),
            )
            torch.testing.assert_close(together.sample_loss[row], alone.loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.loss, together.sample_loss.mean())


def test_actions_outside_the_mask_reach_nothing(tiny, picture) -> None:
    model, _ = tiny
    context = encode(tiny, [(HEAD + "reach", ["ego"])], [("ego", picture(0))])
    mask, noise, tau = mask_of((8, 3)), torch.randn(1, 16, 32), torch.tensor([0.4])
    actions = torch.rand(1, 16, 32)
    losses = []
    for filling in (0.0, float("nan")):
        filled = torch.where(mask, actions, filling)
        model.zero_grad()
        loss = model.flow_loss(context, filled, mask, FlowDraw(noise, tau)).loss
        loss.backward()
        losses.append((loss.item(), model.action_expert.action_out[-1].weight.grad.clone()))
    model.zero_grad()
    assert losses[0][0] == losses[1][0]
    assert torch.equal(losses[0][1], losses[1][1])
    # The output rows of unused channels learn nothing.
    assert (losses[0][1][3:] == 0).all()
    assert (losses[0][1][:3] != 0).any()


def test_unused_channels_look_like_used_ones_at_the_start(tiny, picture) -> None:
    """At tau = 1 the expert's input must not give away the number of channels."""
    model, _ = tiny
    context = encode(tiny, [(HEAD + "reach", ["ego"])], [("ego", picture(0))])
    first_inputs = []
    hook = model.action_expert.register_forward_pre_hook(lambda _, args: first_inputs.append(args[1]))
    noise = torch.randn(1, 16, 32)
    try:
        for shape in ((16, 8), (8, 3)):
            model.sample(context, mask_of(shape), steps=1, noise=noise)
    finally:
        hook.remove()
    assert torch.equal(*first_inputs)


def test_sampling_repeats_under_a_seed(tiny, picture) -> None:
    model, _ = tiny
    context = encode(tiny, [(HEAD + "reach", ["ego"])], [("ego", picture(0))])
    mask = mask_of((16, 8))
    first, second, other = (
        model.sample(context, mask, generator=torch.Generator().manual_seed(seed)) for seed in (7, 7, 8)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_temperature_scales_the_noise(tiny, picture) -> None:
    model, _ = tiny
    context = encode(tiny, [(HEAD + "reach", ["ego"])], [("ego", picture(0))])
    mask = mask_of((16, 32))
    noise = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(1))
    drawn = model.sample(context, mask, generator=torch.Generator().manual_seed(1), temperature=0.25)
    torch.testing.assert_close(drawn, model.sample(context, mask, noise=0.25 * noise))
    default = model.sample(context, mask, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(default, model.sample(context, mask, noise=0.6 * noise))


def test_16_bit_weights_sample_nearly_the_same(tiny, picture) -> None:
    model, processor = tiny
    half = copy.deepcopy(model)
    for parameter in half.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    noise = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(2))
    chunks = []
    for each in (model, half):
        context = encode((each, processor), [(HEAD + "reach", ["ego"])], [("ego", picture(0))])
        chunks.append(each.sample(context, mask_of((16, 32)), noise=noise))
    assert chunks[1].dtype == torch.float32
    assert (chunks[0] - chunks[1]).abs().mean() < 0.05 * chunks[0].abs().mean()


def test_a_few_steps_of_training_fit_one_chunk(picture) -> None:
    model, processor = build_tiny()
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    batch = processor.prompts([(HEAD + "reach", ["ego"])] * 8)
    images = processor.images([("ego", picture(0))])
    mask = mask_of(*[(16, 8)] * 8)
    actions = (torch.rand(1, 16, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1).expand(8, -1, -1)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(40):
        features = model.embed_images(**images)
        out = model(
            **batch,
            actions=actions,
            action_mask=mask,
            image_grid_thw=images["image_grid_thw"],
            image_features=features,
            image_index=torch.zeros(8, dtype=torch.long),
            generator=generator,
        )
        optimiser.zero_grad()
        out.loss.backward()
        optimiser.step()
        losses.append(out.loss.item())
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])
