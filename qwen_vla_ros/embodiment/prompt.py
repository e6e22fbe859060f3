# SPDX-License-Identifier: Apache-2.0
"""The prompt of an embodiment (Qwen-VLA, section on the embodiment-aware prompt)."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwen_vla_ros.embodiment.errors import InstructionError
from qwen_vla_ros.embodiment.normalise import Statistics, normalise
from qwen_vla_ros.embodiment.schema import Embodiment

MAX_INSTRUCTION = 512
STATE_BINS = 256
SLOTS = ("robot_tag", "body", "fps", "chunk_size", "ori_instruction")

CONTROL_TEMPLATE = (
    "The robot is {robot_tag} with {body}. The control frequency is {fps} Hz. "
    "Please predict the next {chunk_size} control actions to execute the following task: {ori_instruction}."
)
NAVIGATION_TEMPLATE = (
    "The robot is {robot_tag} with {body}. The control frequency is {fps} Hz. "
    "Please predict the next {chunk_size} waypoints (dx, dy, dtheta) in the ground plane, in metres and "
    "radians relative to the current pose, to execute the following task: {ori_instruction}."
)

# Text that the tokenizer would turn into control tokens: <|...|>, and the bare tags of Qwen's vocabulary.
_TOKEN_TEXT = re.compile(r"<\||\|>|</?(?:think|tool_call|tool_response|tts_pad|tts_text_bos|tts_text_eod)>")
# Format characters that Persian, Indic scripts and emoji need: zero-width joiner and non-joiner.
_FORMAT_ALLOWED = "\u200c\u200d"


@dataclass(frozen=True)
class Prompt:
    """What the processor is given.

    Attributes:
        text: image place-holders in the order of `views`, then the sentence.
        views: names of the images.
    """

    text: str
    views: tuple[str, ...]


def text_fault(text: str) -> str | None:
    """Why the text must not stand in a prompt, or None: control characters and the text of special tokens."""
    for character in text:
        category = unicodedata.category(character)
        if category in ("Cc", "Cs", "Zl", "Zp") or (category == "Cf" and character not in _FORMAT_ALLOWED):
            return f"the control character U+{ord(character):04X}"
    token = _TOKEN_TEXT.search(text)
    return f"the special-token text '{token.group()}'" if token else None


def check_instruction(instruction: str) -> str:
    """The instruction as it goes into a prompt: trimmed, Unicode NFC (as the tokenizer makes it), one line.

    Raises:
        InstructionError: not text, empty, longer than 512 characters, or it holds a control character or the
            text of a special token.
    """
    if not isinstance(instruction, str):
        raise InstructionError(f"instruction: found {type(instruction).__name__}, expected text")
    text = unicodedata.normalize("NFC", instruction.strip())
    if not text:
        raise InstructionError(f"instruction: found nothing, expected 1 to {MAX_INSTRUCTION} characters")
    if len(text) > MAX_INSTRUCTION:
        raise InstructionError(f"instruction: found {len(text)} characters, expected 1 to {MAX_INSTRUCTION}")
    fault = text_fault(text)
    if fault is not None:
        raise InstructionError(f"instruction: found {fault}, expected one line of plain text")
    return text


def template_of(embodiment: Embodiment) -> str:
    """The sentence with its slots: the embodiment's own, else the default of its kind."""
    if embodiment.prompt.template is not None:
        return embodiment.prompt.template
    navigates = any(group.kind == "waypoint" for group in embodiment.actions)
    return NAVIGATION_TEMPLATE if navigates else CONTROL_TEMPLATE


def template_slots(template: str) -> list[str]:
    """Slots of a template, in order.

    Raises:
        ValueError: braces that do not match, or a slot with a conversion or a format of its own.
    """
    slots = []
    for _, slot, spec, conversion in string.Formatter().parse(template):
        if slot is None:
            continue
        if spec or conversion:
            raise ValueError(f"a format in the slot '{{{slot}}}'")
        slots.append(slot)
    return slots


def body_text(arms: str, waist: bool, mobile_base: bool) -> str:
    """The parts that the actions move, as the paper's template lists them."""
    text = {"single": "single arm", "dual": "dual arms", "none": ""}[arms]
    if waist:
        text += ", waist" if text else "waist"
    if mobile_base:
        text += ", and mobile base" if text else "mobile base"
    return text


def render_prompt(
    embodiment: Embodiment,
    instruction: str,
    state: npt.ArrayLike | None = None,
    *,
    statistics: Statistics | None = None,
    views: Sequence[str] | None = None,
) -> Prompt:
    """The prompt of one observation: images first, each between its view's tags, then the sentence.

    Args:
        instruction: what to do; goes through `check_instruction`.
        state: Shape (c,), in the units and the order of the channels. Needed where `prompt.state` is set.
        statistics: of the channels. Needed where `prompt.state` is set.
        views: views that have an image, when an optional camera has none; all by default.

    Raises:
        InstructionError: see `check_instruction`.
        ValueError: the state or its statistics are missing, misshapen or not finite; a view is unknown or a
            required one is missing.
    """
    task = check_instruction(instruction).rstrip(".")
    if not task:
        raise InstructionError("instruction: found only full stops, expected words")
    if embodiment.prompt.state:
        task = f"state: {state_bins(embodiment, state, statistics)} {task}"
    shown = _views(embodiment, views)
    images = "".join(
        f"<|{view}_start|><|vision_start|><|image_pad|><|vision_end|><|{view}_end|>" for view in shown
    )
    slots = embodiment.prompt
    sentence = template_of(embodiment).format(
        robot_tag=slots.robot_tag,
        body=body_text(slots.arms, slots.waist, slots.mobile_base),
        fps=_number(embodiment.control_rate),
        chunk_size=embodiment.horizon,
        ori_instruction=task,
    )
    return Prompt(images + sentence, shown)


def state_bins(
    embodiment: Embodiment, state: npt.ArrayLike | None, statistics: Statistics | None
) -> list[int]:
    """The normalised state in 256 equal bins over [-1, 1]; the highest value is in the last. Shape (c,).

    Raises:
        ValueError: see `render_prompt`.
    """
    count = embodiment.layout.count
    if state is None or statistics is None:
        raise ValueError(
            f"prompt of {embodiment.name}: found no state or no statistics, expected both (prompt.state)"
        )
    values = np.asarray(state, dtype=np.float64)
    if values.shape != (count,) or statistics.count != count:
        raise ValueError(
            f"prompt of {embodiment.name}: found state {values.shape} and statistics ({statistics.count},), "
            f"expected ({count},)"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"prompt of {embodiment.name}: found a state that is not finite")
    bins = np.floor((normalise(values, statistics) + 1.0) / 2.0 * STATE_BINS).astype(int)
    return [int(value) for value in np.clip(bins, 0, STATE_BINS - 1)]


def _views(embodiment: Embodiment, views: Sequence[str] | None) -> tuple[str, ...]:
    known = [camera.view for camera in embodiment.cameras]
    if views is None:
        return tuple(known)
    unknown = [view for view in views if view not in known]
    missing = [camera.view for camera in embodiment.cameras if camera.required and camera.view not in views]
    if unknown or missing:
        raise ValueError(f"prompt of {embodiment.name}: found views {list(views)}, expected those of {known}")
    # The order is the embodiment's, whatever the caller's.
    return tuple(view for view in known if view in views)


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
