# SPDX-License-Identifier: Apache-2.0
"""What a run leaves on disk: files are replaced whole, so that a full disk or a kill harms nothing older."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from qwen_vla_ros.model.checkpoint import CheckpointError, save_checkpoint
from qwen_vla_ros.model.modeling import QwenVLAForActionPrediction
from qwen_vla_ros.model.processor import QwenVLAProcessor
from qwen_vla_ros.training.card import FACTS_NAME, make_card
from qwen_vla_ros.training.errors import TrainingError

STATE_NAME = "state.pt"
METRICS_NAME = "metrics.jsonl"
CHECKPOINT_NAME = "checkpoint"


@contextmanager
def _writing(path: Path, partial: Path):
    try:
        yield
    except CheckpointError:
        raise
    # torch and safetensors have errors of their own for a full disk.
    except (OSError, RuntimeError, SafetensorError) as error:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            with suppress(OSError):
                partial.unlink()
        raise TrainingError(
            f"{path}: cannot be written ({_one_line(error)}); what was there before is unchanged. Make room "
            "and go on with --resume"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write `state.pt`. Raises TrainingError when it cannot be written."""
    path = folder / STATE_NAME
    partial = path.with_name(path.name + ".partial")
    with _writing(path, partial):
        torch.save(dict(state), partial)
        os.replace(partial, path)


def read_state(path: Path, device: torch.device) -> dict[str, Any]:
    """What `write_state` wrote, on the host. What is for another device stays in the file until it is copied:
    beside all that is there already, neither may have room for it."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", mmap=device.type != "cpu", weights_only=True)
    return state


def write_checkpoint(
    folder: Path,
    model: QwenVLAForActionPrediction,
    processor: QwenVLAProcessor,
    statistics: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Any],
) -> None:
    """Write a checkpoint folder in bfloat16, in place of the one that is there.

    facts: how it was trained; they go into `training.json` and the card.

    Raises TrainingError when it cannot be written; the old folder stays.
    """
    partial, old = (folder.with_name(folder.name + suffix) for suffix in (".partial", ".old"))
    shutil.rmtree(partial, ignore_errors=True)
    with _writing(folder, partial):
        text = make_card(folder.resolve().parent.name, model, statistics, facts)
        save_checkpoint(partial, model, processor, statistics, card=text, dtype=torch.bfloat16)
        (partial / FACTS_NAME).write_text(json.dumps(dict(facts), indent=1) + "\n")
        _sync(partial)
        _swap(partial, folder, old)
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Have a folder's files on the disk before they take the place of others."""
    for path in (*folder.iterdir(), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _swap(partial: Path, folder: Path, old: Path) -> None:
    # A run that was killed between the two renames has left the old one alone.
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    try:
        partial.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise


def step_of(checkpoint: Path) -> int | None:
    """After how many steps the weights of a checkpoint folder were written; None without any."""
    try:
        return int(json.loads((checkpoint / FACTS_NAME).read_text())["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load_optimiser(optimiser: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """What an optimiser has gathered, under the rates, betas and decay that it has been made with now."""
    groups = optimiser.state_dict()["param_groups"]
    found = [len(group["params"]) for group in state["param_groups"]]
    expected = [len(group["params"]) for group in groups]
    if found != expected:
        raise ValueError(f"optimiser: found groups of {found} parameters, expected {expected}")
    optimiser.load_state_dict({**state, "param_groups": groups})


def make_folder(folder: Path) -> None:
    """Raises TrainingError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be made ({error.strerror}); give another --out") from error


def append_metrics(folder: Path, line: Mapping[str, Any]) -> None:
    """Add a line to `metrics.jsonl`. Raises TrainingError when it cannot be written."""
    path = folder / METRICS_NAME
    try:
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise TrainingError(
            f"{path}: cannot be written ({error}); make room and go on with --resume"
        ) from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics file; one that a kill cut short is left out."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def forget_metrics(folder: Path, step: int) -> None:
    """Drop what was logged after `step`: those steps are run again."""
    path = folder / METRICS_NAME
    if not path.is_file():
        return
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    partial = path.with_name(path.name + ".partial")
    with _writing(path, partial):
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(partial, path)
