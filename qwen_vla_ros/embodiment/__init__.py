# SPDX-License-Identifier: Apache-2.0
"""Robots as the model and the controllers see them: schema, registry, channels, prompt, normalisation."""

from qwen_vla_ros.embodiment.errors import EmbodimentError, Fault, InstructionError
from qwen_vla_ros.embodiment.layout import ChannelLayout
from qwen_vla_ros.embodiment.normalise import Statistics, denormalise, normalise, resolve_statistics
from qwen_vla_ros.embodiment.prompt import Prompt, check_instruction, render_prompt
from qwen_vla_ros.embodiment.registry import list_embodiments, load_embodiment, parse_embodiment
from qwen_vla_ros.embodiment.schema import MAX_CHANNELS, MAX_HORIZON, Embodiment

__all__ = [
    "MAX_CHANNELS",
    "MAX_HORIZON",
    "ChannelLayout",
    "Embodiment",
    "EmbodimentError",
    "Fault",
    "InstructionError",
    "Prompt",
    "Statistics",
    "check_instruction",
    "denormalise",
    "list_embodiments",
    "load_embodiment",
    "normalise",
    "parse_embodiment",
    "render_prompt",
    "resolve_statistics",
]
