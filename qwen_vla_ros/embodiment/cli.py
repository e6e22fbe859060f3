# SPDX-License-Identifier: Apache-2.0
"""`qwen-vla embodiment`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from qwen_vla_ros.embodiment import (
    MAX_CHANNELS,
    MAX_HORIZON,
    Embodiment,
    EmbodimentError,
    InstructionError,
    list_embodiments,
    load_embodiment,
    render_prompt,
)
from qwen_vla_ros.embodiment.checkup import Subject, examine
from qwen_vla_ros.embodiment.registry import parse_content
from qwen_vla_ros.embodiment.reports import Source, fault_record
from qwen_vla_ros.embodiment.schema import JointGroup, json_schema
from qwen_vla_ros.embodiment.urdf import UrdfError, read_urdf

app = typer.Typer(help="List, show and validate embodiments; print prompts.", no_args_is_help=True)

_Name = Annotated[str, typer.Argument(help="Name of an embodiment, or path of its YAML file.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_command(as_json: _Json = False) -> None:
    """List the embodiments that come with the package."""
    found = [_load(name) for name in list_embodiments()]
    if as_json:
        _print_json([{"name": body.name, "description": body.description} for body in found])
        return
    rows = [
        (body.name, str(body.layout.count), f"{body.control_rate:g} Hz", body.description) for body in found
    ]
    _table(("name", "channels", "rate", "description"), rows)


@app.command()
def show(name: _Name, as_json: _Json = False) -> None:
    """Show what an embodiment says: cameras, channels, limits, controllers."""
    body = _load(name)
    if as_json:
        _print_json({**body.model_dump(mode="json", by_alias=True), "channels": list(body.layout.names)})
        return
    base = body.state.base
    rows = [
        ("name", body.name),
        ("description", body.description),
        ("control rate", f"{body.control_rate:g} Hz"),
        ("command rate", f"{body.command_rate:g} Hz"),
        ("chunk", f"{body.horizon} rows of {body.layout.count} channels, {body.execute_steps} followed"),
        ("joint states", ", ".join(body.state.joint_states) or "-"),
        ("pose of the base", f"{base.topic} ({base.type})" if base else "-"),
        ("simulation", (body.simulation and (body.simulation.body or body.simulation.model)) or "-"),
    ]
    _table((), rows)
    _table(
        ("camera", "topic", "transport", "size", "required"),
        [
            (
                camera.view,
                camera.topic,
                camera.transport,
                "x".join(map(str, camera.size)),
                _yes(camera.required),
            )
            for camera in body.cameras
        ],
    )
    _table(
        ("group", "kind", "reference", "controller", "topic"),
        [
            (group.name, group.kind, group.reference, group.controller.type, group.controller.topic)
            for group in body.actions
        ],
    )
    _table(("", "channel", "unit", "low", "high", "velocity", "acceleration", "jerk"), _channel_rows(body))


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(help="Embodiment YAML files.")],
    channels: Annotated[
        int, typer.Option(min=1, help="K, the channels of the checkpoint's action tensor.")
    ] = MAX_CHANNELS,
    horizon: Annotated[
        int, typer.Option(min=1, help="H, the rows of the checkpoint's action tensor.")
    ] = MAX_HORIZON,
    urdf: Annotated[
        Path | None, typer.Option(help="URDF to compare names, units, limits and frames with.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Report every fault of embodiment files: line, field, what was found, what was expected."""
    try:
        description = None if urdf is None else read_urdf(urdf)
    except UrdfError as error:
        _fail(str(error))
    reports: list[dict[str, Any]] = []
    for file in files:
        source = Source(file)
        try:
            body = load_embodiment(file)
            body.check_against(K=channels, H=horizon)
        except EmbodimentError as error:
            lines = source.fault_lines(error.faults)
            report = {"file": str(file), "valid": False, "faults": [fault_record(f) for f in error.faults]}
        else:
            findings = examine(Subject(body, urdf=description))
            lines, valid = source.finding_lines(findings), all(finding.warning for finding in findings)
            report = {"file": str(file), "valid": valid, "faults": source.records(findings)}
            if valid:
                lines.append(f"{file}: valid ({body.layout.count} channels, horizon {body.horizon})")
        reports.append(report)
        if not as_json:
            for line in lines:
                typer.echo(line)
    if as_json:
        _print_json(reports)
    if not all(report["valid"] for report in reports):
        raise typer.Exit(1)


@app.command()
def new(
    urdf: Annotated[Path, typer.Option(help="URDF of the robot.")],
    name: Annotated[
        str | None,
        typer.Argument(help="Name of the embodiment; the URDF's by default. Written to NAME.yaml."),
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where NAME.yaml is written.")] = Path(),
    tag: Annotated[str | None, typer.Option(help="Name of the robot in the prompt.")] = None,
    rate: Annotated[float | None, typer.Option(help="Rate of the model's actions, in Hz.")] = None,
    controller: Annotated[
        str | None, typer.Option(help="joint_trajectory, forward_command or joint_state.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="none, diff_drive or omni_drive.")] = None,
    view: Annotated[
        list[str] | None, typer.Option(help="A camera as VIEW=TOPIC; repeat it for more.")
    ] = None,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(help="Joint, or pattern such as '*_hip_*', that is not moved; repeatable."),
    ] = None,
    ask: Annotated[
        bool | None,
        typer.Option("--ask/--no-ask", help="Ask for what is not given; by default on a terminal."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
) -> None:
    """Write a commented embodiment file from a URDF."""
    from qwen_vla_ros.embodiment import skeleton

    try:
        description = read_urdf(urdf)
    except UrdfError as error:
        _fail(str(error))
    parts = skeleton.guess_parts(description, leave_out or ())
    asks = sys.stdin.isatty() if ask is None else ask

    def answer(given: Any, question: str, default: Any) -> Any:
        if given is not None or not asks:
            return default if given is None else given
        return typer.prompt(question, default=default)

    for part in parts.groups:
        typer.echo(f"{part.name} ({part.kind}): {', '.join(joint.name for joint in part.joints)}")
    if parts.left_out:
        typer.echo(f"left out: {', '.join(parts.left_out)}")
    chosen = str(answer(name, "Name of the embodiment", skeleton.identifier(description.name)))
    if chosen != skeleton.identifier(chosen):
        expected = f"lower-case letters, digits and '_', such as {skeleton.identifier(chosen)!r}"
        _fail(f"name: found {chosen!r}, expected {expected}")
    file = folder / f"{chosen}.yaml"
    if file.exists() and not force:
        _fail(f"{file} exists; choose another name, or --force to replace it")
    plan = skeleton.Plan(
        name=chosen,
        tag=str(answer(tag, "Name of the robot in the prompt", description.name)),
        control_rate=float(answer(rate, "Rate of the model's actions [Hz]", 10.0)),
        controller=_one_of(
            "controller",
            answer(controller, "Controller of the arms", "joint_trajectory"),
            skeleton.CONTROLLERS,
        ),
        base=_one_of("base", answer(base, "Base", "diff_drive" if parts.wheels else "none"), skeleton.BASES),
        views=tuple(
            skeleton.View(*_view(text))
            for text in view or [str(answer(None, "First camera, as VIEW=TOPIC", "ego=camera/ego/image_raw"))]
        ),
    )
    try:
        text = skeleton.skeleton(description, parts, plan)
        body = parse_content(text.encode(), file)
    except (EmbodimentError, ValueError) as error:
        _fail(str(error))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        _fail(f"{file}: cannot be written ({error.strerror}); choose another --folder")
    for line in Source(file).finding_lines(examine(Subject(body, urdf=description))):
        typer.echo(line)
    checks = text.count("CHECK") - 1
    typer.echo(
        f"{file}: valid ({body.layout.count} channels); {checks} lines marked CHECK are yours to look at"
    )


def _one_of(option: str, value: str, choices: tuple[str, ...]) -> Any:
    if value not in choices:
        _fail(f"{option}: found {value!r}, expected {' or '.join(choices)}")
    return value


def _view(text: str) -> tuple[str, str]:
    name, _, topic = text.partition("=")
    if not name or not topic:
        _fail(f"view: found {text!r}, expected VIEW=TOPIC, such as ego=camera/ego/image_raw")
    return name, topic


@app.command()
def prompt(
    name: _Name,
    task: Annotated[str, typer.Option(help="The instruction.")],
    as_json: _Json = False,
) -> None:
    """Print the prompt of an embodiment for an instruction."""
    body = _load(name)
    try:
        rendered = render_prompt(body, task)
    except (InstructionError, ValueError) as error:
        _fail(str(error))
    if as_json:
        _print_json({"text": rendered.text, "views": list(rendered.views)})
    else:
        typer.echo(rendered.text)


@app.command()
def schema() -> None:
    """Print the JSON Schema of embodiment files, for editors."""
    _print_json(json_schema())


def _load(name: str) -> Embodiment:
    try:
        return load_embodiment(name)
    except EmbodimentError as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(1)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _channel_rows(body: Embodiment) -> Iterable[tuple[str, ...]]:
    k = 0
    for group in body.actions:
        for j, channel in enumerate(group.channels):
            if isinstance(group, JointGroup):
                limits = group.limits
                numbers = [*limits.position[j], limits.velocity[j], limits.acceleration[j], limits.jerk[j]]
                shown = [f"{number:g}" for number in numbers]
            else:
                rates = group.limits.linear if group.units[j].startswith("m") else group.limits.angular
                shown = [
                    "-",
                    "-",
                    *(f"{rate:g}" for rate in (rates.velocity, rates.acceleration, rates.jerk)),
                ]
            yield (str(k), f"{group.name}/{channel}", group.units[j], *shown)
            k += 1


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table for people; tab-separated lines when the output goes elsewhere."""
    if not sys.stdout.isatty():
        for row in ([header] if any(header) else []) + list(rows):
            typer.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*header, show_header=bool(header), box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
