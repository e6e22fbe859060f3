# SPDX-License-Identifier: Apache-2.0
"""`qwen-vla bench`."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def bench(
    preset: Annotated[str, typer.Option(help="tiny, scaled or paper.")] = "tiny",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    views: Annotated[str, typer.Option(help="Numbers of views, with commas.")] = "1,2,3",
    horizon: Annotated[str, typer.Option(help="Rows of the chunk, with commas.")] = "16,32,50",
    steps: Annotated[str, typer.Option(help="Euler steps, with commas.")] = "1,4,10",
    runs: Annotated[int, typer.Option(help="Chunks per figure.", min=1)] = 20,
    threads: Annotated[int, typer.Option(help="CPU threads of torch.", min=1)] = 1,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16; without it what suits the device.")] = "",
    own_time: Annotated[
        bool, typer.Option("--own-time", help="Without what other programs take: CPU, one thread.")
    ] = False,
    start_up: Annotated[
        bool,
        typer.Option("--start-up", help="Also time the start; writes the weights beside --out meanwhile."),
    ] = False,
    out: Annotated[Path, typer.Option(help="Written with .json, .md and .png.")] = Path("out/latency"),
) -> None:
    """Measure where the time of a model goes, with random weights, one thing changed at a time."""
    import torch

    from qwen_vla_ros.bench import _latency as latency
    from qwen_vla_ros.bench import _start_up

    try:
        numbers = [[int(value) for value in text.split(",") if value] for text in (views, horizon, steps)]
        if preset not in latency.PRESETS:
            raise ValueError(f"--preset: found {preset!r}, expected one of {', '.join(latency.PRESETS)}")
        if not all(1 <= count <= len(latency.VIEWS) for count in numbers[0]):
            raise ValueError(f"--views: found {views}, expected 1 to {len(latency.VIEWS)}")
        chosen = torch.device(device)
        kind = dtype or ("bfloat16" if chosen.type == "cuda" else "float32")
        if kind not in ("float32", "bfloat16"):
            raise ValueError(f"--dtype: found {dtype!r}, expected float32 or bfloat16")
        if own_time and (chosen.type != "cpu" or threads != 1):
            raise ValueError(f"--own-time: found {device}, {threads} threads, expected cpu and 1")
        torch.set_num_threads(threads)
        torch.empty(1, device=chosen)
    except (ValueError, RuntimeError, AssertionError) as error:
        typer.echo(f"error: {str(error).splitlines()[0]}", err=True)
        raise typer.Exit(2) from error
    latency.timer = time.thread_time if own_time else time.perf_counter
    number = getattr(torch, kind)
    speed = latency.throughput(chosen, number)
    rows = [
        latency.measure(preset, setting, chosen, number, runs, speed)
        for setting in latency.settings(*numbers)
    ]
    start, fault = None, ""
    if start_up:
        try:
            start = asdict(_start_up.measure(preset, device, kind, out.parent))
        except (OSError, RuntimeError) as error:
            fault = f"error: --start-up: {error}"
    found = latency.report(preset, rows, chosen, number, runs, speed, start)
    written = latency.write(found, out)
    typer.echo(latency.markdown(found))
    typer.echo(f"written to {', '.join(map(str, written))}")
    if len(written) < 3:
        typer.echo("no picture: pip install matplotlib", err=True)
    if fault:
        typer.echo(fault, err=True)
        raise typer.Exit(1)
