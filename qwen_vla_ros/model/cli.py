# SPDX-License-Identifier: Apache-2.0
"""`qwen-vla checkpoint`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Inspect checkpoints and count parameters.", no_args_is_help=True)

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="Checkpoint folder.")], as_json: _Json = False
) -> None:
    """Load a checkpoint, check all of it and say what it holds."""
    from qwen_vla_ros.model.checkpoint import CheckpointError, describe, load_checkpoint

    try:
        facts = describe(load_checkpoint(folder))
    except CheckpointError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    _table("Checkpoint", [(name, _text(value)) for name, value in facts.items() if name != "embodiments"])
    _table(
        "Embodiments",
        [
            (
                name,
                f"{len(entry['channels'])} channels, {entry['horizon']} rows at {entry['control_rate']:g} Hz",
            )
            for name, entry in facts["embodiments"].items()
        ],
    )


@app.command()
def params(
    preset: Annotated[str, typer.Option(help="paper or tiny.")] = "paper", as_json: _Json = False
) -> None:
    """Count the parameters of a preset, part by part, without allocating them."""
    from qwen_vla_ros.model.parameters import count_parameters
    from qwen_vla_ros.model.presets import PRESETS, preset_config

    if preset not in PRESETS:
        typer.echo(f"error: --preset: found {preset!r}, expected one of {', '.join(PRESETS)}", err=True)
        raise typer.Exit(2)
    count = count_parameters(preset_config(preset))
    if as_json:
        typer.echo(json.dumps({"preset": preset, **asdict(count)}, indent=2))
        return
    rows = [
        (f"{count.blocks} DiT blocks, each", count.block),
        ("action projections, in and out", count.projections),
        ("VLM to DiT linear", count.vlm_linear),
        ("timestep embedding", count.timestep),
        ("output AdaLN", count.output_adaln),
        ("action expert", count.expert),
        ("backbone, vision", count.vision),
        ("backbone, text", count.text),
        ("backbone", count.backbone),
        ("total", count.total),
    ]
    _table(f"Parameters, preset {preset}", [(name, _millions(value)) for name, value in rows])


def _millions(value: int) -> str:
    return (
        f"{value / 1e9:.2f} B"
        if value >= 1e9
        else f"{value / 1e6:.1f} M"
        if value >= 1e5
        else f"{value / 1e3:.1f} k"
    )


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(title: str, rows: list[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in rows:
        table.add_row(name, value)
    Console().print(table)
