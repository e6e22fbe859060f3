# SPDX-License-Identifier: Apache-2.0
"""Tokens and patches."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen_vla_ros.embodiment import list_embodiments, load_embodiment, render_prompt
from qwen_vla_ros.model.backbone import expand_frames
from qwen_vla_ros.model.processor import ProcessorConfig, ProcessorError, QwenVLAProcessor
from qwen_vla_ros.model.tiny_tokenizer import build_tiny_tokenizer

TOKENIZER = build_tiny_tokenizer()
HEAD = "<|ego_start|><|vision_start|><|image_pad|><|vision_end|><|ego_end|>"


@pytest.fixture(scope="module")
def processor() -> QwenVLAProcessor:
    return QwenVLAProcessor(TOKENIZER, ProcessorConfig(image_size=(128, 128), chat=False))


def test_tiny_vocabulary_is_small() -> None:
    assert len(TOKENIZER) <= 1024


@given(st.text())
def test_any_text_encodes_and_comes_back_without_case(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    if "<|" not in text:
        assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text.lower()


def test_known_words_are_one_token_each_whatever_their_case() -> None:
    tokens = TOKENIZER.tokenize("The control frequency is 10 Hz, pick up the Blue cube")
    assert tokens[-7:] == ["Ġhz", ",", "Ġpick", "Ġup", "Ġthe", "Ġblue", "Ġcube"]


# The bodies that a tiny model can be trained for.
SIMULATED = [name for name in list_embodiments() if getattr(load_embodiment(name).simulation, "body", None)]


@pytest.mark.parametrize("name", SIMULATED)
def test_shipped_prompts_are_short_and_miss_no_word(processor: QwenVLAProcessor, name: str) -> None:
    embodiment = load_embodiment(name)
    prompt = render_prompt(embodiment, "reach the red cube with the left arm")
    ids = processor.token_ids(prompt.text, prompt.views)
    tokens = TOKENIZER.convert_ids_to_tokens(ids)
    text = [token for token in tokens if token != processor.config.image_token]
    assert len(text) <= 24 + 4 * len(prompt.views)
    spelled = [token for token in text if len(token) == 1 and token.isalpha()]
    assert not spelled, tokens


def test_one_image_takes_16_places_between_its_tags(processor: QwenVLAProcessor) -> None:
    ids = processor.token_ids(HEAD + "reach", ["ego"])
    tokens = TOKENIZER.convert_ids_to_tokens(ids)
    assert tokens[:2] == ["<|ego_start|>", "<|vision_start|>"]
    assert tokens[2:18] == ["<|image_pad|>"] * 16
    assert tokens[18:20] == ["<|vision_end|>", "<|ego_end|>"]
    assert ids.count(processor.image_id) == 16


def test_unknown_view_is_named(processor: QwenVLAProcessor) -> None:
    with pytest.raises(
        ProcessorError, match=r"view 'tail': the tokenizer has no tag '<\|tail_start\|>'.*ego"
    ):
        processor.token_ids(HEAD.replace("ego", "tail") + "reach", ["tail"])


@pytest.mark.parametrize(
    ("text", "views", "message"),
    [
        (HEAD + "reach <|image_pad|>", ["ego"], "2 image tokens"),
        ("reach", ["ego"], "0 image tokens"),
        (HEAD, ["cam_wrist"], "the image of view 'cam_wrist' is not between"),
    ],
)
def test_text_that_does_not_fit_its_views(processor, text, views, message) -> None:
    with pytest.raises(ProcessorError, match=message):
        processor.token_ids(text, views)


def test_chat_wraps_the_prompt() -> None:
    chat = QwenVLAProcessor(TOKENIZER, ProcessorConfig(image_size=(32, 32), chat=True))
    decoded = TOKENIZER.decode(chat.token_ids(HEAD + "reach", ["ego"]))
    assert decoded.startswith("<|im_start|>user\n<|ego_start|>")
    assert decoded.endswith("<|ego_end|>reach<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_batch_is_padded_on_the_right(processor: QwenVLAProcessor) -> None:
    batch = processor.prompts([(HEAD + "reach", ["ego"]), (HEAD + "reach the red cube", ["ego"])])
    assert batch["attention_mask"].tolist()[0][-3:] == [0, 0, 0]
    assert batch["attention_mask"][1].all()
    assert (batch["input_ids"][0, -3:] == processor.pad_id).all()
    assert batch["position_ids"].shape == (3, *batch["input_ids"].shape)


def test_patches_are_those_of_the_stock_processor(processor: QwenVLAProcessor, tiny) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    stock = Qwen2VLImageProcessorPil(
        patch_size=16, merge_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_resize=False
    )
    images = [np.random.default_rng(i).integers(0, 256, (128, 128, 3), dtype=np.uint8) for i in range(2)]
    expected = stock(images, return_tensors="pt")
    found = processor.images([("ego", image) for image in images])
    assert torch.equal(found["image_grid_thw"], expected["image_grid_thw"])
    expanded = expand_frames(found["pixel_values"], tiny[0].backbone.model.visual)
    torch.testing.assert_close(expanded, expected["pixel_values"], atol=1e-6, rtol=0)


def test_images_of_another_size_are_resized(processor: QwenVLAProcessor) -> None:
    image = np.zeros((480, 640, 3), dtype=np.uint8)
    image[:, 320:] = 200
    resized = processor.resize("ego", image)
    assert resized.shape == (128, 128, 3)
    assert (resized[:, :60] == 0).all()
    assert (resized[:, 68:] == 200).all()
    assert processor.resize("ego", np.full((64, 64, 3), 9, dtype=np.uint8)).shape == (128, 128, 3)


def test_views_may_have_sizes_of_their_own() -> None:
    config = ProcessorConfig(image_size=(128, 128), view_image_size={"cam_wrist": (64, 96)}, chat=False)
    processor = QwenVLAProcessor(TOKENIZER, config)
    image = np.zeros((100, 100, 3), dtype=np.uint8)
    batch = processor.images([("ego", image), ("cam_wrist", image)])
    assert batch["image_grid_thw"].tolist() == [[1, 8, 8], [1, 4, 6]]
    assert batch["pixel_values"].shape == (64 + 24, 768)
    assert processor.merged_grid("cam_wrist") == (2, 3)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), dtype=np.uint8),
        np.zeros((8, 8, 4), dtype=np.uint8),
        np.zeros((8, 8, 3), dtype=np.float32),
        np.zeros((0, 8, 3), dtype=np.uint8),
    ],
)
def test_malformed_image_is_an_error(processor: QwenVLAProcessor, image: np.ndarray) -> None:
    with pytest.raises(ProcessorError, match=r"view 'ego': expected uint8 \(h, w, 3\), found"):
        processor.images([("ego", image)])


def test_image_size_must_be_whole_tokens() -> None:
    with pytest.raises(ProcessorError, match=r"image_size: .*multiples of 32, found \[100, 128\]"):
        ProcessorConfig(image_size=(100, 128))


def test_round_trip(processor: QwenVLAProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    again = QwenVLAProcessor.from_pretrained(tmp_path)
    assert again.config == processor.config
    assert again.token_ids(HEAD + "Reach 7!", ["ego"]) == processor.token_ids(HEAD + "Reach 7!", ["ego"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, r"unknown fields \['colour'\]"),
        ({"image_size": [100, 100]}, "multiples of 32"),
        ({"image_token": "<|nothing|>"}, "the tokenizer has no token '<|nothing|>'"),
        ({"image_size": 224}, "'int' object"),
        ({"image_size": None}, "'NoneType' object"),
        ({"view_image_size": None}, "'NoneType' object"),
        ({"view_image_size": {"ego": 128}}, "'int' object"),
        ({"merge_size": 0}, "merge_size: found 0"),
        ({"mean": [0.5, 0.5, 0.5]}, r"mean: found \[0.5, 0.5, 0.5\], expected one number"),
        ({"std": 0}, "std: found 0, expected a number above 0"),
        ({"view_tags": ["<|start|>", "<|end|>"]}, "view_tags: .*{view}"),
    ],
)
def test_bad_configuration_names_the_file(processor, tmp_path, change, message) -> None:
    processor.save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ProcessorError, match="processor_config.json: .*" + message.replace("|", r"\|")):
        QwenVLAProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("size", [(480, 640), (128, 400), (1080, 1920), (130, 131)])
def test_large_images_shrink_to_the_mean_over_the_area(
    processor: QwenVLAProcessor, size: tuple[int, int]
) -> None:
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    # Waves of about ten pixels of the result, and one of two pixels of the picture, which must vanish.
    wave = 100 + 50 * np.sin(columns * 80 / width) * np.cos(rows * 80 / height) + 30 * ((rows + columns) % 2)
    image = np.repeat(wave[..., None], 3, axis=2).astype(np.uint8)
    exact = cv2.resize(image.astype(np.float64), (128, 128), interpolation=cv2.INTER_AREA)
    error = np.abs(processor.resize("ego", image) - exact)
    assert error.mean() < 2.0
