# SPDX-License-Identifier: Apache-2.0
"""The `qwen-vla` command.

Commands live in the room that they are about and are imported when they run, so that `qwen-vla --help` and
the embodiment tools stay fast and need neither torch nor rclpy. To add one, write a function with typer's
annotations (one command) or a `typer.Typer` (several) in the room's `cli.py`, and add a line to `COMMANDS`:
name, where it is, one line of help. Torch, mujoco and rclpy are imported inside the functions of that module.
"""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import qwen_vla_ros

COMMANDS = (
    ("embodiment", "qwen_vla_ros.embodiment.cli:app", "List, show and validate embodiments; print prompts."),
    ("doctor", "qwen_vla_ros.doctor:doctor", "Name what does not fit: YAML, checkpoint, URDF, robot."),
    ("checkpoint", "qwen_vla_ros.model.cli:app", "Inspect checkpoints and count parameters."),
    ("data", "qwen_vla_ros.training.cli:data", "Make demonstrations in simulation."),
    ("train", "qwen_vla_ros.training.cli:train", "Train a checkpoint."),
    ("eval", "qwen_vla_ros.demo.cli:evaluate", "Evaluate a checkpoint in simulation; write a report."),
    ("card", "qwen_vla_ros.training.cli:card", "Write the model card of a checkpoint, with its scores."),
    ("export", "qwen_vla_ros.policy.cli:export", "Write a checkpoint as ONNX graphs."),
    ("bench", "qwen_vla_ros.bench._cli:bench", "Measure where the time of a model goes."),
    ("demo", "qwen_vla_ros.demo.cli:demo", "Run the simulated bodies one after another."),
    ("run", "qwen_vla_ros.demo.cli:run", "Run one simulated body."),
    ("say", "qwen_vla_ros.nodes.say:say", "Give a running robot an instruction; Ctrl-C cancels it."),
)

_GENERATED = tuple(f"{qwen_vla_ros.__name__}.{kind}" for kind in ("action", "msg", "srv"))


class _Later(TyperCommand):
    """A command that is known by name and help until it is called."""

    def __init__(self, name: str, target: str, text: str) -> None:
        super().__init__(name=name, help=text, short_help=text)
        self._target = target

    def load(self) -> Any:
        module_name, _, attribute = self._target.partition(":")
        found = getattr(importlib.import_module(module_name), attribute)
        if not isinstance(found, typer.Typer):
            application = typer.Typer(add_completion=False)
            application.command()(found)
            found = application
        command = typer.main.get_command(found)
        command.name = self.name
        return command


class _Commands(TyperGroup):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        for name, target, text in COMMANDS:
            self.add_command(_Later(name, target, text), name)

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name, _, _ in COMMANDS]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, _Later) else command, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            name = error.name or ""
            if name in _GENERATED:
                advice = "build the ROS package and source its setup file (in a checkout: make setup)"
            elif name.partition(".")[0] == qwen_vla_ros.__name__:
                raise
            elif name.partition(".")[0] == "rclpy":
                advice = "source the setup file of ROS 2 (in a checkout: make setup)"
            else:
                advice = "pip install '.[model,motion,sim,demo,train]' in a checkout"
            typer.echo(f"qwen-vla: the Python module '{name}' is missing; {advice}", err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Commands,
    help="Run Qwen-VLA policies on robots, and the tools around them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"qwen_vla_ros {qwen_vla_ros.__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


if __name__ == "__main__":
    app()
