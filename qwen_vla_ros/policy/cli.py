# SPDX-License-Identifier: Apache-2.0
"""`qwen-vla export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    onnx: Annotated[Path, typer.Option("--onnx", help="Folder to write ONNX graphs to.")],
    embodiment: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads it
        typer.Option("--embodiment", "-e", help="Name or file; all that the checkpoint knows without it."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Euler steps; the checkpoint's own without it.")] = None,
    tokens: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Longest prompt in tokens; the body's and 40 without it."),
    ] = None,
) -> None:
    """Write a checkpoint as ONNX graphs, for robots without torch: `backend: onnx`."""
    from qwen_vla_ros.model.checkpoint import CheckpointError
    from qwen_vla_ros.policy.export import export_onnx
    from qwen_vla_ros.policy.interface import PolicyError

    try:
        manifest = export_onnx(checkpoint, onnx, embodiment or (), steps, tokens)
    except (CheckpointError, PolicyError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    for graph in manifest["graphs"]:
        typer.echo(
            f"{onnx}: views {', '.join(graph['views'])}, up to {graph['tokens']} tokens, "
            f"{manifest['steps']} steps"
        )
