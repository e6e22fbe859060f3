# SPDX-License-Identifier: Apache-2.0
"""`qwen-vla data`, `qwen-vla train` and `qwen-vla eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from qwen_vla_ros.training.evaluation import Control
    from qwen_vla_ros.training.trainer import Trainer

data = typer.Typer(help="Make demonstrations in simulation.", no_args_is_help=True, add_completion=False)

_Embodiment = Annotated[str, typer.Option(help="Name of an embodiment, or path of its YAML file.")]


@data.callback()
def _data() -> None:
    pass


@data.command("make")
def make(
    embodiment: _Embodiment,
    out: Annotated[Path, typer.Option(help="Folder to write to; an interrupted run goes on.")],
    samples: Annotated[int, typer.Option(min=1, help="Pictures.")] = 8192,
    seed: Annotated[int, typer.Option(min=0, help="Decides every scene and state.")] = 0,
) -> None:
    """Render teleported states around the scripted expert's ways, with what the expert does there."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from qwen_vla_ros.embodiment import EmbodimentError, load_embodiment
    from qwen_vla_ros.sim import SimulationError
    from qwen_vla_ros.training import demonstrations
    from qwen_vla_ros.training.errors import TrainingError

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        body = load_embodiment(embodiment)
        with Progress(*columns) as progress:
            bar = progress.add_task(body.name, total=samples)
            meta = demonstrations.make(
                body, out, samples, seed, progress=lambda done: progress.update(bar, completed=done)
            )
    except (EmbodimentError, SimulationError, TrainingError, ValueError) as error:
        raise _fail(error) from error
    typer.echo(f"{out}: {meta.samples} pictures of {meta.embodiment} in {meta.shards} shards")


def train(
    config: Annotated[Path, typer.Option(help="Training configuration (YAML).")],
    data: Annotated[Path, typer.Option(help="Folder with a folder of demonstrations per embodiment.")],
    out: Annotated[Path, typer.Option(help="Folder for state, metrics and the checkpoint.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the state in the folder.")] = False,
    until: Annotated[int | None, typer.Option(min=1, help="Stop after this step.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Train one set of weights on demonstrations of several bodies."""
    import torch

    from qwen_vla_ros.embodiment import EmbodimentError
    from qwen_vla_ros.training.configuration import load_configuration
    from qwen_vla_ros.training.errors import TrainingError
    from qwen_vla_ros.training.trainer import STATE_NAME, prepare

    torch.set_num_threads(threads)
    try:
        settings = load_configuration(config)
        if (out / STATE_NAME).exists() and not resume:
            raise TrainingError(f"{out / STATE_NAME}: a run is here; pass --resume, or another --out")
        trainer = prepare(settings, data, out)
        if resume:
            trainer.resume()
            typer.echo(f"resumed at step {trainer.step}")
        _train(trainer, until)
    except (EmbodimentError, TrainingError) as error:
        raise _fail(error) from error


def _train(trainer: Trainer, until: int | None) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from qwen_vla_ros.training.plot import draw
    from qwen_vla_ros.training.trainer import METRICS_NAME

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]}  action {task.fields[action]}"),
    )
    total = trainer.configuration.steps
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=total, completed=trainer.step, loss="-", action="-")

        def report(line: dict[str, Any]) -> None:
            errors = [value for name, value in line.items() if name.endswith("/action_error")]
            action = f"{sum(errors) / len(errors):.4f}"
            progress.update(bar, completed=line["step"], loss=f"{line['loss']:.3f}", action=action)
            if not progress.console.is_terminal:
                progress.console.print(
                    f"step {line['step']}/{total}  {line['seconds']:.0f} s  "
                    f"loss {line['loss']:.3f}  action {action}"
                )

        trainer.run(until, report=report, save=lambda each: each.save_checkpoint())
    typer.echo(f"{trainer.checkpoint}: weights of step {trainer.step}")
    picture = trainer.folder / "metrics.png"
    try:
        draw(trainer.folder / METRICS_NAME, picture)
    except ModuleNotFoundError as error:
        typer.echo(f"{picture}: not drawn, the module {error.name!r} is missing", err=True)


def evaluate(
    embodiment: _Embodiment,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint folder; the shipped one by default.")
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes per task.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first episode.")] = 0,
    task: Annotated[str, typer.Option(help="A task of the body; its first by default.")] = "",
    control: Annotated[
        str,
        typer.Option(help="none, or a control: wrong-colour (another object is named), untrained, expert."),
    ] = "none",
    latency: Annotated[float, typer.Option(min=0.0, help="From picture to chunk [s].")] = 0.0,
    json: Annotated[Path | None, typer.Option(help="Write the result to this file.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Run a checkpoint closed-loop in simulated physics, in lock-step, without ROS."""
    import json as encoder
    from dataclasses import asdict

    import torch
    from rich.progress import Progress

    from qwen_vla_ros.embodiment import EmbodimentError, load_embodiment
    from qwen_vla_ros.sim import SimulationError
    from qwen_vla_ros.training import evaluation
    from qwen_vla_ros.training.errors import TrainingError

    torch.set_num_threads(threads)
    try:
        body = load_embodiment(embodiment)
        with Progress() as progress:
            bar = progress.add_task(body.name, total=episodes)
            result = evaluation.evaluate(
                body,
                checkpoint,
                episodes,
                seed,
                task or None,
                _control(control),
                latency,
                progress=lambda _: progress.advance(bar),
            )
    except (EmbodimentError, SimulationError, TrainingError, ValueError) as error:
        raise _fail(error) from error
    typer.echo(result.summary())
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(encoder.dumps(asdict(result), indent=1) + "\n")


def _control(name: str) -> Control:
    from qwen_vla_ros.training.errors import TrainingError
    from qwen_vla_ros.training.evaluation import Control

    try:
        return Control(name)
    except ValueError as error:
        expected = ", ".join(each.value for each in Control)
        raise TrainingError(f"--control: found {name!r}, expected one of {expected}") from error


def _fail(error: Exception) -> typer.Exit:
    typer.echo(f"qwen-vla: {error}", err=True)
    return typer.Exit(1)
