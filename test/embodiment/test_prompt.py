# SPDX-License-Identifier: Apache-2.0
"""Prompts, and what an instruction may be."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_vla_ros.embodiment import (
    InstructionError,
    Statistics,
    check_instruction,
    list_embodiments,
    load_embodiment,
    render_prompt,
)
from qwen_vla_ros.embodiment.prompt import MAX_INSTRUCTION, STATE_BINS

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
WORDS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=100)


def changed(body, **prompt):
    return body.model_copy(update={"prompt": body.prompt.model_copy(update=prompt)})


def test_arm():
    prompt = render_prompt(load_embodiment("franka_panda"), "  pick up the red cube. ")
    assert prompt.views == ("ego",)
    assert prompt.text == (
        f"<|ego_start|>{IMAGE}<|ego_end|>The robot is Franka Panda with single arm. "
        "The control frequency is 10 Hz. Please predict the next 16 control actions to execute "
        "the following task: pick up the red cube."
    )


def test_base_states_its_waypoint_convention():
    text = render_prompt(load_embodiment("tiago_base"), "drive to the red pillar").text
    assert text == (
        f"<|ego_start|>{IMAGE}<|ego_end|>The robot is TIAGo base with mobile base. "
        "The control frequency is 2 Hz. Please predict the next 8 waypoints (dx, dy, dtheta) in the ground "
        "plane, in metres and radians relative to the current pose, to execute the following task: "
        "drive to the red pillar."
    )


@pytest.mark.parametrize(
    ("slots", "text"),
    [
        ({"arms": "dual"}, "with dual arms."),
        ({"arms": "dual", "waist": True}, "with dual arms, waist."),
        ({"mobile_base": True}, "with single arm, and mobile base."),
        ({"waist": True, "mobile_base": True}, "with single arm, waist, and mobile base."),
    ],
)
def test_parts_of_the_body(slots, text):
    assert text in render_prompt(changed(load_embodiment("franka_panda"), **slots), "go").text


@pytest.mark.parametrize(("rate", "text"), [(10.0, " 10 Hz"), (7.5, " 7.5 Hz"), (30, " 30 Hz")])
def test_rate_is_whole_where_it_can_be(rate, text):
    body = load_embodiment("franka_panda").model_copy(update={"control_rate": rate})
    assert text in render_prompt(body, "go").text


def test_images_stand_first_in_the_order_of_the_cameras():
    body = load_embodiment("so101")
    prompt = render_prompt(body, "pick up the lego brick")
    assert prompt.views == ("ego", "cam_wrist")
    assert prompt.text.startswith(
        f"<|ego_start|>{IMAGE}<|ego_end|><|cam_wrist_start|>{IMAGE}<|cam_wrist_end|>The robot"
    )
    assert render_prompt(body, "go", views=["cam_wrist", "ego"]).views == ("ego", "cam_wrist")
    assert render_prompt(body, "go", views=["ego"]).views == ("ego",)
    with pytest.raises(ValueError, match="views"):
        render_prompt(body, "go", views=["cam_wrist"])
    with pytest.raises(ValueError, match="views"):
        render_prompt(body, "go", views=["ego", "rear"])


def test_own_template():
    body = changed(
        load_embodiment("franka_panda"), template="{robot_tag}|{body}|{fps}|{chunk_size}|{ori_instruction}"
    )
    text = render_prompt(body, "pick {up}").text
    assert text.endswith("<|ego_end|>Franka Panda|single arm|10|16|pick {up}")


def test_state_stands_before_the_instruction():
    body = changed(load_embodiment("tiago_base"), state=True)
    statistics = Statistics([-1.0, -1.0, -1.0], [1.0, 1.0, 1.0])
    text = render_prompt(body, "go", [-1.0, 0.0, 5.0], statistics=statistics).text
    assert text.endswith("task: state: [0, 128, 255] go.")
    with pytest.raises(ValueError, match="no state"):
        render_prompt(body, "go")
    with pytest.raises(ValueError, match="not finite"):
        render_prompt(body, "go", [np.nan, 0.0, 0.0], statistics=statistics)
    with pytest.raises(ValueError, match=r"expected \(3,\)"):
        render_prompt(body, "go", [0.0], statistics=statistics)


@settings(deadline=None)
@given(st.lists(st.floats(-2.0, 2.0), min_size=3, max_size=3))
def test_state_bins_hold_the_value(state):
    body = changed(load_embodiment("tiago_base"), state=True)
    text = render_prompt(body, "go", state, statistics=Statistics([-1.0] * 3, [1.0] * 3)).text
    bins = [int(number) for number in re.search(r"state: \[(.*)\] go", text).group(1).split(", ")]
    for value, k in zip(np.clip(state, -1.0, 1.0), bins, strict=True):
        assert 0 <= k < STATE_BINS
        low = -1.0 + 2.0 * k / STATE_BINS
        assert low - 1e-12 <= value <= low + 2.0 / STATE_BINS + 1e-12


@settings(deadline=None)
@given(st.sampled_from(list_embodiments()), WORDS)
def test_every_slot_is_filled(name, words):
    body = load_embodiment(name)
    try:
        instruction = check_instruction(words)
        prompt = render_prompt(body, words)
    except InstructionError:
        return
    images = "".join(f"<|{view}_start|>{IMAGE}<|{view}_end|>" for view in prompt.views)
    assert prompt.text.startswith(images)
    before, _, after = prompt.text[len(images) :].rpartition(instruction.rstrip("."))
    assert after == "."
    assert f"The robot is {body.prompt.robot_tag} with " in before
    assert f"frequency is {body.control_rate:g} Hz." in before
    assert f"predict the next {body.horizon} " in before
    assert not set(before) & set("{}")


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        ("", "nothing"),
        (" \n\t ", "nothing"),
        ("...", "full stops"),
        ("x" * 10_000, "10000 characters"),
        ("x" * (MAX_INSTRUCTION + 1), "513 characters"),
        ("pick\nplace", "U+000A"),
        ("pick\tplace", "U+0009"),
        ("pick\x00", "U+0000"),
        ("pick\x1b[2J", "U+001B"),
        ("pick\x85up", "U+0085"),
        ("pick\u2028up", "U+2028"),
        ("pick\u202eup", "U+202E"),
        ("pick\ud800", "U+D800"),
        ("go <|ego_start|>", "<|"),
        ("go <|im_end|>", "<|"),
        ("go |> up", "|>"),
        ("<think>", "<think>"),
        ("a</tool_call>", "</tool_call>"),
        (None, "NoneType"),
        (b"go", "bytes"),
    ],
)
def test_instruction_is_refused(instruction, reason):
    with pytest.raises(InstructionError, match=re.escape(reason)):
        render_prompt(load_embodiment("franka_panda"), instruction)


@pytest.mark.parametrize(
    "instruction",
    [
        "x" * MAX_INSTRUCTION,
        "pick up the cup: 50 % full, 3 < 4",
        "把红色方块拿起来",
        "می‌روم",
        "{robot_tag}",
        "go 👍🏽",
    ],
)
def test_instruction_is_accepted(instruction):
    assert check_instruction(f" {instruction} ") == instruction


def test_instruction_is_composed_as_the_tokenizer_does():
    assert check_instruction("cafe\u0301") == "caf\u00e9"


@settings(deadline=None)
@given(st.text(max_size=600))
def test_any_text_is_accepted_or_refused(text):
    try:
        found = check_instruction(text)
    except InstructionError:
        return
    assert 1 <= len(found) <= MAX_INSTRUCTION
    assert not {unicodedata.category(character) for character in found} & {"Cc", "Cs", "Zl", "Zp"}
    assert check_instruction(found) == found
    assert "<|" not in found
