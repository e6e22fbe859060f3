# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint folder says of action tensor, views and statistics, read without torch."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_vla_ros.embodiment.errors import value_text

# Names a folder that `qwen-vla export` wrote.
MANIFEST = "onnx.json"

_FIELDS: dict[str, tuple[type, ...]] = {
    "channels": (list,),
    "q01": (list,),
    "q99": (list,),
    "control_rate": (int, float),
    "horizon": (int,),
}


class CheckpointFolderError(ValueError):
    """A folder that is not a checkpoint. Names the file, what is wrong and what to do."""


@dataclass(frozen=True)
class CheckpointFacts:
    """A checkpoint as an embodiment sees it.

    Attributes:
        folder: where it was read.
        channels, horizon: K and H of its action tensor.
        views: views that its tokenizer has tags for; None where that cannot be told.
        statistics: by embodiment name: `channels` (c,), `q01` (c,), `q99` (c,), `control_rate`, `horizon`.
    """

    folder: str
    channels: int
    horizon: int
    views: tuple[str, ...] | None
    statistics: Mapping[str, Mapping[str, Any]]


def read_checkpoint_facts(folder: str | os.PathLike[str]) -> CheckpointFacts:
    """Read config.json, statistics.json and the tokenizer's tags. Weights are not looked at.

    Of a folder that `qwen-vla export` wrote, the manifest takes the place of config.json.

    Raises:
        CheckpointFolderError: see there.
    """
    root = Path(folder)
    if not root.is_dir():
        raise CheckpointFolderError(f"{root}: no such folder; give the folder that holds config.json")
    exported = (root / MANIFEST).is_file()
    source = root / (MANIFEST if exported else "config.json")
    content = _read(source)
    expert = content if exported else content.get("action_expert")
    channels, horizon = (expert.get(k) if isinstance(expert, dict) else None for k in ("channels", "horizon"))
    if not isinstance(channels, int) or not isinstance(horizon, int) or channels < 1 or horizon < 1:
        raise CheckpointFolderError(
            f"{source}: found no {'' if exported else 'action_expert with '}channels and horizon; expected a "
            "Qwen-VLA checkpoint (docs/model.md)"
        )
    statistics = _read(root / "statistics.json")
    for name, entry in statistics.items():
        _check_entry(root / "statistics.json", name, entry)
    return CheckpointFacts(str(root), channels, horizon, _views(root), statistics)


def _check_entry(path: Path, name: str, entry: Any) -> None:
    for key, kind in _FIELDS.items():
        if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
            raise CheckpointFolderError(f"{path}: {name}: found no {key}; write the checkpoint again")
    for key in ("q01", "q99", "control_rate"):
        for value in entry[key] if isinstance(entry[key], list) else [entry[key]]:
            if not _is_finite(value):
                raise CheckpointFolderError(
                    f"{path}: {name}: {key}: found {value_text(value)}, expected finite numbers; write the "
                    "checkpoint again"
                )
    if not len(entry["channels"]) == len(entry["q01"]) == len(entry["q99"]):
        raise CheckpointFolderError(f"{path}: {name}: as many channels, q01 and q99 expected")


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointFolderError(
            f"{path}: cannot be read ({error.strerror}); copy the whole folder"
        ) from error
    except ValueError as error:
        raise CheckpointFolderError(f"{path}: not JSON ({error}); copy the whole folder again") from error
    if not isinstance(content, dict):
        raise CheckpointFolderError(f"{path}: found {type(content).__name__}, expected an object")
    return content


def _views(root: Path) -> tuple[str, ...] | None:
    """Views with both tags among the tokenizer's added tokens."""
    path = root / "tokenizer.json"
    if not path.is_file():
        return None
    tokens = {
        token.get("content") for token in _read(path).get("added_tokens", []) if isinstance(token, dict)
    }
    tags = (
        _read(root / "processor_config.json").get("view_tags")
        if (root / "processor_config.json").is_file()
        else None
    )
    start, end = tags if isinstance(tags, list) and len(tags) == 2 else ("<|{view}_start|>", "<|{view}_end|>")
    pattern = re.compile(re.escape(start).replace(re.escape("{view}"), "(?P<view>[a-z0-9_]+)") + r"\Z")
    found = [match["view"] for token in tokens if isinstance(token, str) and (match := pattern.match(token))]
    return tuple(sorted(view for view in found if view != "vision" and end.format(view=view) in tokens))
