# SPDX-License-Identifier: Apache-2.0
"""`qwen-vla data`, `qwen-vla train` and `qwen-vla card`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from qwen_vla_ros.training.finetuning import Finetuner
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
    setting: Annotated[
        str, typer.Option(help="How the scenes vary: easy, full, or several in turn, as easy+full+full.")
    ] = "easy",
    states_per_scene: Annotated[
        int | None, typer.Option(min=1, help="Pictures of each scene; by default 2 in easy, else 4.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="A task; may be repeated, by default the body's first (easy) or all (full). One that is "
            "named twice comes twice as often."
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            help="A checkpoint that moves the robot in place of the expert: states are those it errs into."
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes; the pictures do not depend on it.")] = 1,
) -> None:
    """Render states around the scripted expert's ways, with what the expert does there."""
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
                body,
                out,
                samples,
                seed,
                states_per_scene=states_per_scene,
                progress=lambda done: progress.update(bar, completed=done),
                setting=setting,
                tasks=task,
                policy=policy,
                jobs=jobs,
            )
    except (EmbodimentError, SimulationError, TrainingError, ValueError) as error:
        raise _fail(error) from error
    typer.echo(f"{out}: {meta.samples} pictures of {meta.embodiment} in {meta.shards} shards")


def train(
    out: Annotated[Path, typer.Option(help="Folder for state, metrics and the checkpoint.")],
    config: Annotated[
        Path | None,
        typer.Option(
            help="Configuration (YAML); with --dataset, what differs from config/training/finetune.yaml."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with folders of simulated demonstrations, one named after each embodiment."
        ),
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="A LeRobot dataset (v2.0, v2.1 or v3.0) to fine-tune on.")
    ] = None,
    embodiment: Annotated[str, typer.Option(help="With --dataset: the robot, a name or a YAML file.")] = "",
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="To start from. With --dataset the shipped one by default, with --data fresh weights."
        ),
    ] = None,
    backbone: Annotated[
        Path | None,
        typer.Option(help="With --dataset: plain Qwen3.5 folder to start from, with a new decoder."),
    ] = None,
    lora: Annotated[
        bool, typer.Option("--lora", help="Adapters in the backbone in place of all of it.")
    ] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="In place of the configuration's.")] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="In place of the configuration's; with --data, pictures of all bodies in its shares.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the state in the folder.")] = False,
    until: Annotated[int | None, typer.Option(min=1, help="Stop after this step.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Train on simulated demonstrations (--data), or fine-tune on a recorded dataset (--dataset)."""
    import torch

    from qwen_vla_ros.embodiment import EmbodimentError
    from qwen_vla_ros.training.errors import TrainingError
    from qwen_vla_ros.training.saving import STATE_NAME, make_folder

    torch.set_num_threads(threads)
    try:
        if (data is None) == (dataset is None):
            raise TrainingError("found --data and --dataset, or neither; expected one of them")
        own = {"--backbone": backbone, "--embodiment": embodiment, "--lora": lora}
        given = [option for option, value in own.items() if value]
        if data is not None and given:
            raise TrainingError(f"found {' and '.join(given)} with --data, expected with --dataset only")
        if (out / STATE_NAME).exists() and not resume:
            raise TrainingError(f"{out / STATE_NAME}: a run is here; pass --resume, or another --out")
        make_folder(out)
        changes = {name: value for name, value in (("steps", steps), ("batch", batch)) if value is not None}
        trainer: Trainer | Finetuner
        if data is not None:
            trainer = _trainer(config, data, checkpoint, out, device, changes)
        else:
            assert dataset is not None
            trainer = _finetuner(
                config, dataset, embodiment, checkpoint, backbone, lora, device, out, changes
            )
        if resume:
            trainer.resume()
            if trainer.main:
                typer.echo(f"resumed at step {trainer.step}")
        _train(trainer, until)
    except (EmbodimentError, TrainingError) as error:
        raise _fail(error) from error


def _trainer(
    config: Path | None,
    data: Path,
    checkpoint: Path | None,
    out: Path,
    device: str,
    changes: dict[str, Any],
) -> Trainer:
    from qwen_vla_ros.training.configuration import load_configuration
    from qwen_vla_ros.training.errors import TrainingError
    from qwen_vla_ros.training.trainer import prepare

    if config is None:
        raise TrainingError(
            "--config: missing; config/training/tiny.yaml is for the easy setting, full.yaml for the other"
        )
    configuration = load_configuration(config)
    if "batch" in changes:
        changes = {**changes, "batch": configuration.batch.scaled(changes["batch"])}
    configuration = configuration.model_copy(update=changes)
    return prepare(configuration, data, out, device, checkpoint)


def _finetuner(
    config: Path | None,
    dataset: Path,
    embodiment: str,
    checkpoint: Path | None,
    backbone: Path | None,
    lora: bool,
    device: str,
    out: Path,
    changes: dict[str, Any],
) -> Finetuner:
    from rich.console import Console

    from qwen_vla_ros import resources
    from qwen_vla_ros.embodiment import load_embodiment
    from qwen_vla_ros.training.configuration import load_finetuning
    from qwen_vla_ros.training.errors import TrainingError
    from qwen_vla_ros.training.finetuning import Finetuner, RecordedChunks
    from qwen_vla_ros.training.lerobot import LeRobotFolder
    from qwen_vla_ros.training.starting import prepare_start

    if not embodiment:
        raise TrainingError("--embodiment: missing; the robot whose cameras and channels the dataset has")
    body = load_embodiment(embodiment)
    shipped = resources.config_directory() / "training" / "finetune.yaml"
    settings = load_finetuning(shipped, config).model_copy(update=changes)
    recorded = RecordedChunks(LeRobotFolder(dataset), body, settings)
    if checkpoint is None and backbone is None:
        checkpoint = resources.checkpoints_directory() / "qwen_vla_tiny"
    start = prepare_start(body, recorded.views, settings, checkpoint, backbone, lora)
    trainer = Finetuner(settings, recorded, start, out, device)
    if trainer.main:
        console = Console(soft_wrap=True, markup=False, highlight=False)
        for own, theirs in recorded.mapping.describe(recorded.dataset):
            console.print(f"{own}  <-  {theirs}")
        trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        console.print(
            f"{len(recorded.training)} episodes to train on, {len(recorded.validation)} kept out; "
            f"{trained / 1e6:.1f} M parameters are trained, on {trainer.device}"
        )
    return trainer


def _train(trainer: Trainer | Finetuner, until: int | None) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from qwen_vla_ros.training.plot import draw
    from qwen_vla_ros.training.saving import METRICS_NAME

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]}  error {task.fields[error]}"),
    )
    total = trainer.configuration.total
    with Progress(*columns, disable=not trainer.main) as progress:
        bar = progress.add_task("", total=total, completed=trainer.step, loss="-", error="-")

        def report(line: dict[str, Any]) -> None:
            errors = [
                value
                for name, value in line.items()
                if name.endswith("/action_error") or name == "validation_error"
            ]
            loss = f"{line['loss']:.3f}"
            progress.update(bar, completed=line["step"], loss=loss)
            error = ""
            if errors:
                error = f"{sum(errors) / len(errors):.4f}"
                progress.update(bar, error=error)
            if not progress.console.is_terminal:
                progress.console.print(
                    f"step {line['step']}/{total}  {line['seconds']:.0f} s  loss {loss}"
                    + (f"  error {error}" if error else "")
                )

        trainer.run(until, report=report, save=lambda each: each.save_checkpoint())
    if not trainer.main:
        return
    typer.echo(f"{trainer.checkpoint}: weights of step {trainer.step}")
    picture = trainer.folder / "metrics.png"
    try:
        draw(trainer.folder / METRICS_NAME, picture)
    except ModuleNotFoundError as error:
        typer.echo(f"{picture}: not drawn, the module {error.name!r} is missing", err=True)
    except OSError as error:
        typer.echo(f"{picture}: not drawn: {error.strerror}", err=True)


def card(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    results: Annotated[list[Path] | None, typer.Argument(help="Result files of `qwen-vla eval`.")] = None,
    notes: Annotated[Path | None, typer.Option(help="Text for the end of the card (Markdown).")] = None,
) -> None:
    """Write the model card of a checkpoint anew, with the scores of result files."""
    from qwen_vla_ros.training.card import write_card
    from qwen_vla_ros.training.errors import TrainingError
    from qwen_vla_ros.training.results import read_evaluation

    try:
        evaluations = [read_evaluation(path) for path in results or ()]
        text = notes.read_text() if notes is not None else ""
        typer.echo(str(write_card(checkpoint, evaluations, text)))
    except (OSError, TrainingError) as error:
        raise _fail(error) from error


def _fail(error: Exception) -> typer.Exit:
    typer.echo(f"qwen-vla: {error}", err=True)
    return typer.Exit(1)
