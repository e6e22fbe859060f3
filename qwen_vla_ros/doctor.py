# SPDX-License-Identifier: Apache-2.0
"""`qwen-vla doctor`: whether an embodiment fits itself, a checkpoint, a URDF and what runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from qwen_vla_ros.embodiment import EmbodimentError, load_embodiment
from qwen_vla_ros.embodiment.checkpoint_facts import CheckpointFolderError, read_checkpoint_facts
from qwen_vla_ros.embodiment.checkup import Finding, Subject, examine
from qwen_vla_ros.embodiment.live_checkup import description_broken, examine_live, ros_missing
from qwen_vla_ros.embodiment.live_topics import DESCRIPTION
from qwen_vla_ros.embodiment.registry import embodiment_file
from qwen_vla_ros.embodiment.reports import Source
from qwen_vla_ros.embodiment.urdf import UrdfError, parse_urdf, read_urdf


def doctor(
    embodiment: Annotated[str, typer.Option(help="Name of an embodiment, or path of its YAML file.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Folder of a checkpoint.")] = None,
    urdf: Annotated[
        Path | None,
        typer.Option(help="URDF of the robot; with --live, that on robot_description if not given."),
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Look at the running system, too.")] = False,
    namespace: Annotated[str, typer.Option(help="ROS namespace of the robot, for --live.")] = "",
    seconds: Annotated[
        float, typer.Option(min=0.5, max=600.0, help="Seconds for which --live listens to messages.")
    ] = 3.0,
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
    remarks: list[Finding] = []
    if live:
        subject, remarks = _look(subject, namespace, seconds, given=urdf is not None)
    findings = sorted(
        [*remarks, *examine_live(subject), *examine(subject)] if live else examine(subject),
        key=lambda finding: finding.warning,
    )
    errors = sum(not finding.warning for finding in findings)
    source = Source(file)
    described = None if subject.urdf is None else subject.urdf.source
    graph = subject.graph
    if as_json:
        record = {
            "embodiment": body.name,
            "file": str(file),
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "urdf": described,
            "live": None
            if graph is None
            else {"namespace": graph.namespace, "seconds": graph.seconds, "nodes": list(graph.nodes)},
            "errors": errors,
            "warnings": len(findings) - errors,
            "findings": source.records(findings),
        }
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        for line in source.finding_lines(findings):
            typer.echo(line)
        compared = [f"checkpoint {checkpoint}"] if checkpoint else []
        compared += [f"URDF {described}"] if described else []
        compared += [f"{len(graph.nodes)} running nodes, {graph.seconds:g} s"] if graph else []
        against = ", ".join(compared) or "itself alone; --checkpoint, --urdf and --live compare it with more"
        typer.echo(f"{body.name}: {errors} errors, {len(findings) - errors} warnings (against {against})")
    if errors or (strict and findings):
        raise typer.Exit(1)


def _look(subject: Subject, namespace: str, seconds: float, given: bool) -> tuple[Subject, list[Finding]]:
    """The subject with what runs, and with its URDF unless another was given."""
    try:
        from qwen_vla_ros.nodes.graph_checkup import look
    except ModuleNotFoundError as error:
        return subject, [ros_missing(str(error.name))]
    try:
        graph, description = look(subject.embodiment, namespace, seconds)
    except ValueError as error:
        _fail(f"--namespace {namespace}: {error}")
    subject = replace(subject, graph=graph)
    if not description or given:
        return subject, []
    topic = graph.topics[DESCRIPTION].name
    try:
        return replace(subject, urdf=parse_urdf(description.encode(), topic), chains_only=False), []
    except UrdfError as error:
        return subject, [description_broken(topic, str(error))]


def _own_urdf(body: object) -> Path | None:
    """The URDF that the inverse kinematics of the embodiment names."""
    chains = [getattr(group, "ik", None) for group in getattr(body, "actions", ())]
    files = {chain.urdf for chain in chains if chain is not None and chain.urdf is not None}
    return Path(files.pop()) if len(files) == 1 else None


def _fail(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(1)
