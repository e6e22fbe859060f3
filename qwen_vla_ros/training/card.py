# SPDX-License-Identifier: Apache-2.0
"""The model card of a checkpoint: what it is, how it was trained, how it scored, where it fails."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_vla_ros.model.checkpoint import CARD, CheckpointError, load_checkpoint
from qwen_vla_ros.model.modeling import QwenVLAForActionPrediction
from qwen_vla_ros.model.parameters import count_model
from qwen_vla_ros.training.errors import TrainingError
from qwen_vla_ros.training.results import Entry, Evaluation, gather

# Beside the weights: how they were trained.
FACTS_NAME = "training.json"


def machine(device: str) -> str:
    """What training runs on, for a reader."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return device
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{device}, {names[0]}" if names else device


def read_facts(folder: Path) -> dict[str, Any]:
    """How a checkpoint was trained; empty where the folder does not say. Raises TrainingError."""
    path = folder / FACTS_NAME
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise TrainingError(f"{path}: found {type(content).__name__}, expected an object")
    return content


def write_card(folder: Path, evaluations: Sequence[Evaluation] = (), notes: str = "") -> Path:
    """Write README.md of a checkpoint folder anew. Raises TrainingError where the folder is not one."""
    try:
        loaded = load_checkpoint(folder)
    except CheckpointError as error:
        raise TrainingError(str(error)) from error
    name = folder.resolve().name
    text = make_card(name, loaded.model, loaded.statistics, read_facts(folder), evaluations, notes)
    path, partial = folder / CARD, folder / (CARD + ".partial")
    partial.write_text(text)
    os.replace(partial, path)
    return path


def make_card(
    name: str,
    model: QwenVLAForActionPrediction,
    statistics: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Any],
    evaluations: Sequence[Evaluation] = (),
    notes: str = "",
) -> str:
    """The card's text.

    Args:
        facts: `data` (lines), `steps`, `seconds`, `machine`, `source`, `configuration`, and the same of the
            run `before`, whose weights this one began with; as far as known.
        evaluations: Whose scores to show; of entries about the same the last one counts.
        notes: Text of one's own, put at the end: what it is for, what it cannot do.
    """
    parts = [
        "---\nlicense: apache-2.0\nlibrary_name: qwen_vla_ros\npipeline_tag: robotics\n---",
        f"# {name}",
        _architecture(model),
        _embodiments(statistics),
    ]
    if facts:
        parts.append(_training(facts))
    entries = gather(evaluations)
    if entries:
        parts.append(_scores(entries))
    swaps = [swap for each in evaluations for swap in each.conventions]
    if swaps:
        lines = [f"- {swap.summary()}" for swap in swaps]
        parts.append("## Does the sentence choose the convention?\n\n" + "\n".join(lines))
    failures = _failures(entries)
    if failures:
        parts.append(failures)
    if notes.strip():
        parts.append(notes.strip())
    return "\n\n".join(parts) + "\n"


def _architecture(model: QwenVLAForActionPrediction) -> str:
    config, count = model.config, count_model(model)
    text, vision, expert = config.backbone.text_config, config.backbone.vision_config, config.action_expert
    return "\n".join(
        [
            f"Qwen-VLA architecture, {_millions(count.total)} parameters.",
            "",
            "| part | shape | parameters |",
            "|---|---|---|",
            f"| vision tower | {vision.depth} layers of {vision.hidden_size} | {_millions(count.vision)} |",
            f"| text model | {text.num_hidden_layers} layers of {text.hidden_size} | "
            f"{_millions(count.text)} |",
            f"| action expert | single-stream DiT, {expert.num_hidden_layers} blocks of "
            f"{expert.hidden_size}; H = {expert.horizon}, K = {expert.channels} | "
            f"{_millions(count.expert)} |",
            "",
            f"Flow matching, {config.flow.num_steps} Euler steps, initial noise x "
            f"{config.flow.noise_temperature:g}.",
        ]
    )


def _embodiments(statistics: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["## Embodiments", "", "| embodiment | channels | rows | rate |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {len(entry['channels'])} | {entry['horizon']} | {float(entry['control_rate']):g} Hz |"
        for name, entry in statistics.items()
    ]
    return "\n".join(lines)


def _training(facts: Mapping[str, Any]) -> str:
    runs = [facts]
    while runs[-1].get("before"):
        runs.append(runs[-1]["before"])
    if len(runs) == 1:
        return "## Training\n\n" + _run(facts)
    hours = sum(float(each.get("seconds", 0.0)) for each in runs) / 3600
    parts = [
        f"## Training\n\n{len(runs)} runs, each from the weights of the one before, {hours:.2f} h in all."
    ]
    parts += [f"### Run {number}\n\n{_run(each)}" for number, each in enumerate(reversed(runs), 1)]
    return "\n\n".join(parts)


def _run(facts: Mapping[str, Any]) -> str:
    lines = []
    if facts.get("source"):
        lines.append(f"- started from {facts['source']}")
    lines += [f"- {line}" for line in facts.get("data", [])]
    if "steps" in facts and "seconds" in facts:
        hours = float(facts["seconds"]) / 3600
        count = int(facts.get("processes", 1))
        where = f"{facts.get('machine', '?')}" + (f", {count} processes" if count > 1 else "")
        lines.append(f"- {facts['steps']} steps in {hours:.2f} h on {where}")
    text = "\n".join(lines)
    if facts.get("configuration"):
        listed = json.dumps(facts["configuration"], indent=1)
        text += f"\n\n<details><summary>configuration</summary>\n\n```json\n{listed}\n```\n\n</details>"
    return text


def _scores(entries: Sequence[Entry]) -> str:
    lines = [
        "## Scores",
        "",
        "Closed loop in MuJoCo physics, scenes that demonstrations never use; intervals: Wilson, 95 %.",
        "",
        "| embodiment | task | setting | wording | through | control | success | 95 % | at the one named |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in sorted(entries, key=lambda each: each.control != "none"):
        low, high = entry.interval
        trials = len(entry.episodes)
        lines.append(
            f"| {entry.embodiment} | {entry.task} | {entry.setting} | {entry.wording} | {entry.conditions} | "
            f"{entry.control} | {entry.successes}/{trials} | {100 * low:.0f} to {100 * high:.0f} % | "
            f"{entry.named}/{trials} |"
        )
    return "\n".join(lines)


def _failures(entries: Sequence[Entry]) -> str:
    lines = []
    for entry in entries:
        if entry.control != "none":
            continue
        words = Counter(episode.instruction for episode in entry.episodes if not episode.success)
        if words:
            worst = "; ".join(f"{text} ({count})" for text, count in words.most_common(3))
            lines.append(
                f"- {entry.embodiment} {entry.task} ({entry.setting}, {entry.wording}, {entry.conditions}): "
                f"{sum(words.values())} of {len(entry.episodes)}, most often: {worst}"
            )
    return "\n".join(["## Known failures", "", *lines]) if lines else ""


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"
