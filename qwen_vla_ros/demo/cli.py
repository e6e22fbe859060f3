# SPDX-License-Identifier: Apache-2.0
"""`qwen-vla demo` and `qwen-vla run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_Task = Annotated[str, typer.Option(help="A task of the simulated world, or an instruction.")]
_Episodes = Annotated[int, typer.Option(min=1, max=1000, help="Episodes per body.")]
_Seed = Annotated[int, typer.Option(min=0, help="Seed of the first episode.")]
_Checkpoint = Annotated[str, typer.Option(help="Checkpoint folder; the shipped one by default.")]
_Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
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
    out: _Out = Path("out/demo"),
) -> None:
    """Run the simulated bodies one after another with the same weights, and draw what happened."""
    from qwen_vla_ros.demo.run import BODIES

    _run(tuple(embodiment or BODIES), task, episodes, seed, checkpoint, device, out)


def run(
    embodiment: Annotated[str, typer.Option(help="Name of an embodiment, or path of its YAML file.")],
    task: _Task = "",
    episodes: _Episodes = 1,
    seed: _Seed = 0,
    checkpoint: _Checkpoint = "",
    device: _Device = "cpu",
    out: _Out = Path("out/run"),
) -> None:
    """Run one simulated body."""
    _run((embodiment,), task, episodes, seed, checkpoint, device, out)


def _run(
    bodies: tuple[str, ...], task: str, episodes: int, seed: int, checkpoint: str, device: str, out: Path
) -> None:
    from rich.console import Console

    from qwen_vla_ros.demo.run import DemoOptions, run_demo

    options = DemoOptions(bodies, task.strip(), episodes, seed, checkpoint, device, out)
    if not run_demo(options, Console(soft_wrap=True, markup=False, highlight=False)):
        raise typer.Exit(1)
