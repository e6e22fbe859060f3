# SPDX-License-Identifier: Apache-2.0
"""`qwen-vla demo`, `qwen-vla run` and `qwen-vla eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_Task = Annotated[str, typer.Option(help="A task of the simulated world, or an instruction.")]
_Episodes = Annotated[int, typer.Option(min=1, max=1000, help="Episodes per body.")]
_Seed = Annotated[int, typer.Option(min=0, help="Seed of the first episode.")]
_Checkpoint = Annotated[str, typer.Option(help="Checkpoint folder; the shipped one by default.")]
_Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
_Backend = Annotated[
    str,
    typer.Option(
        help="auto (onnx on a CPU), eager, engine, onnx for what `qwen-vla export` wrote, or scripted."
    ),
]
_Setting = Annotated[str, typer.Option(help="easy or full: how much changes from scene to scene.")]
_Out = Annotated[Path, typer.Option(help="Folder for pictures, figures and logs.")]


def demo(
    embodiment: Annotated[
        list[str] | None, typer.Option(help="Body to run; repeat for several. All four by default.")
    ] = None,
    task: _Task = "",
    episodes: _Episodes = 3,
    seed: _Seed = 0,
    checkpoint: _Checkpoint = "",
    device: _Device = "cpu",
    backend: _Backend = "auto",
    setting: _Setting = "easy",
    out: _Out = Path("out/demo"),
) -> None:
    """Run the simulated bodies one after another with the same weights, and draw what happened."""
    from qwen_vla_ros.demo.run import BODIES

    bodies = tuple(embodiment or BODIES)
    _run(bodies, task, episodes, seed, checkpoint, device, backend, out, setting=setting)


def run(
    embodiment: Annotated[str, typer.Option(help="Name of an embodiment, or path of its YAML file.")],
    task: _Task = "",
    episodes: _Episodes = 1,
    seed: _Seed = 0,
    checkpoint: _Checkpoint = "",
    device: _Device = "cpu",
    backend: _Backend = "auto",
    model: Annotated[
        str, typer.Option(help="URDF or MJCF file that stands for the robot, in place of its own.")
    ] = "",
    setting: _Setting = "easy",
    out: _Out = Path("out/run"),
) -> None:
    """Run one simulated body. `--backend scripted` needs no model: it moves joint after joint a little."""
    _run((embodiment,), task, episodes, seed, checkpoint, device, backend, out, model, setting)


def _run(
    bodies: tuple[str, ...],
    task: str,
    episodes: int,
    seed: int,
    checkpoint: str,
    device: str,
    backend: str,
    out: Path,
    model: str = "",
    setting: str = "easy",
) -> None:
    from rich.console import Console

    from qwen_vla_ros.demo.run import DemoOptions, run_demo
    from qwen_vla_ros.sim.bodies import SETTINGS

    if setting not in SETTINGS:
        typer.echo(f"qwen-vla: --setting: found {setting!r}, expected {' or '.join(SETTINGS)}", err=True)
        raise typer.Exit(1)
    options = DemoOptions(
        bodies, task.strip(), episodes, seed, checkpoint, device, backend, out, model, setting
    )
    if not run_demo(options, Console(soft_wrap=True, markup=False, highlight=False)):
        raise typer.Exit(1)


def evaluate(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Result files for --report; with them, nothing is run.")
    ] = None,
    embodiment: Annotated[
        list[str] | None, typer.Option(help="Body; repeat for several. The four simulated ones by default.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="Task; repeat for several. In `full` every task of a body, in `easy` its first."),
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes per body and task.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Decides every episode; the first one's scene.")] = 0,
    setting: Annotated[
        str, typer.Option(help="easy or full: how much changes from scene to scene.")
    ] = "easy",
    wording: Annotated[str, typer.Option(help="Of the instructions: plain, seen or held-out.")] = "plain",
    control: Annotated[
        list[str] | None,
        typer.Option(help="none, wrong-object, blank, untrained or expert; repeat for several."),
    ] = None,
    convention: Annotated[
        list[str] | None,
        typer.Option(help="Two embodiments of one body, A/B: does the sentence choose? Repeat for several."),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint folder; the shipped one by default.")
    ] = None,
    ros: Annotated[bool, typer.Option("--ros", help="Through the ROS nodes, in place of lock-step.")] = False,
    latency: Annotated[float, typer.Option(min=0.0, help="In lock-step, from picture to chunk, in s.")] = 0.0,
    device: _Device = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write a report with pictures to this folder.")] = None,
) -> None:
    """Run a checkpoint closed-loop in simulated physics, and count."""
    from rich.console import Console

    from qwen_vla_ros.demo.evaluation import EvaluationFault, EvaluationPlan, run_evaluation
    from qwen_vla_ros.demo.evaluation_report import write_report

    console = Console(soft_wrap=True, markup=False, highlight=False)
    try:
        if files:
            from qwen_vla_ros.training.results import read_evaluation

            if report is None:
                raise EvaluationFault("result files were given; expected --report as well")
            found = [read_evaluation(path) for path in files]
        else:
            plan = EvaluationPlan(
                embodiments=tuple(embodiment or ()),
                tasks=tuple(task or ()),
                episodes=episodes,
                seed=seed,
                setting=setting,
                wording=wording,
                controls=tuple(control or ("none",)),
                conventions=tuple(convention or ()),
                checkpoint=checkpoint,
                ros=ros,
                latency=latency,
                device=device,
                threads=threads,
                out=json,
            )
            found = [run_evaluation(plan, console)]
        if report is not None:
            console.print(str(write_report(found, report)))
    except (EvaluationFault, ValueError, RuntimeError, OSError) as error:
        typer.echo(f"qwen-vla: {error}", err=True)
        raise typer.Exit(1) from error
