# SPDX-License-Identifier: Apache-2.0
"""`qwen-vla doctor`: whether an embodiment fits itself, a checkpoint and a URDF."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from qwen_vla_ros.embodiment import EmbodimentError, load_embodiment
from qwen_vla_ros.embodiment.checkpoint_facts import CheckpointFolderError, read_checkpoint_facts
from qwen_vla_ros.embodiment.checkup import Subject, examine
from qwen_vla_ros.embodiment.registry import embodiment_file
from qwen_vla_ros.embodiment.reports import Source
from qwen_vla_ros.embodiment.urdf import UrdfError, read_urdf


def doctor(
    embodiment: Annotated[str, typer.Option(help="Name of an embodiment, or path of its YAML file.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Folder of a checkpoint.")] = None,
    urdf: Annotated[Path | None, typer.Option(help="URDF of the robot.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Count warnings as errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Name everything that does not fit together, and what to do.

    Exit status: 0 nothing, or warnings only; 1 errors; 2 wrong usage.
    """
    try:
        body = load_embodiment(embodiment)
    except EmbodimentError as error:
        _fail(str(error))
    file = embodiment_file(embodiment)
    description = urdf or _own_urdf(body)
    try:
        subject = Subject(
            body,
            None if checkpoint is None else read_checkpoint_facts(checkpoint),
            None if description is None else read_urdf(description),
            chains_only=urdf is None,
        )
    except (CheckpointFolderError, UrdfError) as error:
        _fail(str(error))
    findings = examine(subject)
    errors = sum(not finding.warning for finding in findings)
    source = Source(file)
    if as_json:
        record = {
            "embodiment": body.name,
            "file": str(file),
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "urdf": None if description is None else str(description),
            "findings": source.records(findings),
        }
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        for line in source.finding_lines(findings):
            typer.echo(line)
        compared = [f"checkpoint {checkpoint}"] if checkpoint else []
        compared += [f"URDF {description}"] if description else []
        against = ", ".join(compared) or "itself alone; --checkpoint and --urdf compare it with more"
        typer.echo(f"{body.name}: {errors} errors, {len(findings) - errors} warnings (against {against})")
    if errors or (strict and findings):
        raise typer.Exit(1)


def _own_urdf(body: object) -> Path | None:
    """The URDF that the inverse kinematics of the embodiment names."""
    chains = [getattr(group, "ik", None) for group in getattr(body, "actions", ())]
    files = {chain.urdf for chain in chains if chain is not None and chain.urdf is not None}
    return Path(files.pop()) if len(files) == 1 else None


def _fail(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(1)
