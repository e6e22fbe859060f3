# SPDX-License-Identifier: Apache-2.0
"""Write a checkpoint as ONNX graphs of fixed shape, for `backend: onnx`."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qwen_vla_ros.embodiment import (
    Embodiment,
    EmbodimentError,
    list_embodiments,
    load_embodiment,
    render_prompt,
)
from qwen_vla_ros.model.checkpoint import STATISTICS, Checkpoint, load_checkpoint
from qwen_vla_ros.model.fixed import FixedModel, shape_of
from qwen_vla_ros.model.prepare import CONFIG_NAME, TOKENIZER_NAME
from qwen_vla_ros.policy import MANIFEST, serving
from qwen_vla_ros.policy.interface import PolicyError

OPSET = 17
FORMAT = 2
# Tokens that an instruction may have more than "reach the red cube".
SPARE_TOKENS = 40


def export_onnx(
    checkpoint: str | Path | Checkpoint,
    folder: str | Path,
    embodiments: Sequence[str] = (),
    steps: int | None = None,
    tokens: int | None = None,
) -> dict[str, Any]:
    """Write graphs, tokenizer, statistics and a manifest.

    One graph per set of views, from images and prompt to the chunk, the Euler loop unrolled; its size follows
    the prompt.

    Args:
        checkpoint: Folder, or what was loaded from one on a CPU.
        folder: Created when missing.
        embodiments: Names or files; all that the checkpoint has statistics for without them.
        steps: Euler steps; the checkpoint's own without it.
        tokens: Longest prompt; the body's prompt and `SPARE_TOKENS` without it.

    Returns:
        The manifest.

    Raises:
        CheckpointError: The folder is not a usable checkpoint.
        PolicyError: An embodiment does not fit, or is not known.
    """
    loaded = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)
    model, processor, folder = loaded.model, loaded.processor, Path(folder)
    expert, flow = model.config.action_expert, model.config.flow
    steps = flow.num_steps if steps is None else steps
    if steps < 1:
        raise PolicyError(f"steps: expected at least 1, found {steps}")
    if not (embodiments or loaded.statistics):
        raise PolicyError(f"{loaded.folder}: no statistics; name the embodiments to export for")
    foreign = sorted(set(loaded.statistics) - set(list_embodiments()))
    if foreign and not embodiments:
        raise PolicyError(
            f"{loaded.folder / STATISTICS}: {', '.join(foreign)} came from files of your own; name the "
            "embodiments to export for, a file for each of your own (--embodiment FILE)"
        )
    bodies = [_load(name) for name in (embodiments or sorted(loaded.statistics))]
    wanted: dict[tuple[str, ...], list[int]] = {}
    for body in bodies:
        _, statistics = serving.fit(
            body,
            str(loaded.folder),
            expert.horizon,
            expert.channels,
            loaded.statistics,
            processor.views,
        )
        every = serving.known_views(body, processor.views)
        sizes = {view: processor.config.size_of(view) for view in every}
        observation = serving.blank(body, sizes, statistics)
        needed = tuple(camera.view for camera in body.cameras if camera.required)
        for views in dict.fromkeys((every, needed)):
            prompt = render_prompt(
                body, observation.instruction, observation.state, statistics=statistics, views=views
            )
            ids = processor.token_ids(prompt.text, views)
            if len(ids) > len(wanted.get(views, ())):
                wanted[views] = ids
    folder.mkdir(parents=True, exist_ok=True)
    graphs: list[dict[str, Any]] = []
    for views, ids in wanted.items():
        length = tokens or -(-(len(ids) + SPARE_TOKENS) // 8) * 8
        try:
            shape = shape_of(processor, ids, views, steps, length, ragged=True)
            fixed = FixedModel(model, shape, portable=True).eval()
        except ValueError as error:
            raise PolicyError(f"views {', '.join(views)}: {error}") from error
        stem = "_".join(views) or "blind"
        entry: dict[str, Any] = {
            "views": list(views),
            "tokens": length,
            "slots": list(shape.slots),
            # In a folder of its own: over 2 GB weights lie beside it, under names that graphs have in common.
            "graph": f"{stem}/graph.onnx",
        }
        size = sum(3 * height * width for height, width in map(processor.config.size_of, views))
        chunk = torch.zeros(expert.horizon, expert.channels)
        inputs = {
            "images": torch.zeros(size, dtype=torch.uint8),
            "ids": torch.tensor(ids),
            "noise": chunk,
            "mask": torch.ones_like(chunk),
        }
        _write(fixed, folder / entry["graph"], inputs)
        graphs.append(entry)
    for name in (CONFIG_NAME, TOKENIZER_NAME):
        shutil.copyfile(loaded.folder / name, folder / name)
    (folder / STATISTICS).write_text(json.dumps(loaded.statistics, indent=2) + "\n")
    manifest = {
        "format": FORMAT,
        "checkpoint": loaded.folder.name,
        "horizon": expert.horizon,
        "channels": expert.channels,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "temperature": float(flow.noise_temperature),
        "graphs": graphs,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def _load(name: str) -> Embodiment:
    try:
        return load_embodiment(name)
    except EmbodimentError as error:
        raise PolicyError(str(error)) from error


def _write(module: nn.Module, path: Path, inputs: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # Deprecations, and sizes that are constant on purpose.
            warnings.simplefilter("ignore")
            # The exporter over torch.export takes minutes for an unrolled Euler loop; this one takes seconds.
            torch.onnx.export(
                module.eval(),
                tuple(inputs.values()),
                str(partial),
                input_names=list(inputs),
                output_names=["chunk"],
                opset_version=OPSET,
                dynamo=False,
                dynamic_axes={"ids": {0: "length"}},
            )
    except ModuleNotFoundError as error:
        raise PolicyError(f"the Python module {error.name!r} is missing: pip install onnx") from error
    finally:
        quiet.setLevel(level)
    partial.replace(path)
