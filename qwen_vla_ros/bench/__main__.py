# SPDX-License-Identifier: Apache-2.0
"""Run the benchmarks one after the other, each in a process of its own: `make bench`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import qwen_vla_ros.bench as bench
from qwen_vla_ros.bench import BenchResult

TIMEOUT = 600.0  # [s] per module


def modules() -> list[str]:
    """Names of the benchmark modules: every module beside this one whose name has no leading underscore."""
    return sorted(module.name for module in pkgutil.iter_modules(bench.__path__) if module.name[0] != "_")


def run_module(name: str) -> list[BenchResult]:
    """Run one module in a fresh interpreter.

    Raises:
        RuntimeError: it failed or took longer than `TIMEOUT`; holds the end of what it printed.
    """
    with tempfile.TemporaryDirectory(prefix="qwen_vla_bench_") as folder:
        out = Path(folder) / "results.json"
        # A domain of its own: what else runs from this checkout must not be heard.
        environment = {**os.environ, "ROS_DOMAIN_ID": str(1 + os.getpid() % 101)}
        command = [sys.executable, "-m", "qwen_vla_ros.bench", "--module", name, "--out", str(out)]
        try:
            result = subprocess.run(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{name}: not done after {TIMEOUT:.0f} s") from error
        if result.returncode != 0:
            tail = "\n".join(result.stdout.splitlines()[-15:])
            raise RuntimeError(f"{name}: ended with {result.returncode}\n{tail}")
        return [BenchResult(**fields) for fields in json.loads(out.read_text())]


def machine() -> dict[str, object]:
    """Facts that the figures depend on."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "ros_distro": os.environ.get("ROS_DISTRO"),
    }


def table(results: dict[str, list[BenchResult]]) -> Table:
    """The results with their targets; a ratio of 1 or more reaches the target."""
    view = Table()
    for heading in ("benchmark", "figure"):
        view.add_column(heading)
    for heading in ("value", "target", "ratio"):
        view.add_column(heading, justify="right")
    for module, rows in results.items():
        for row in rows:
            ratio = row.ratio
            target = "" if row.target is None else f"{row.target:g} {row.unit}"
            shown = "" if ratio is None else f"[{'green' if ratio >= 1.0 else 'red'}]{ratio:.2f}[/]"
            view.add_row(module, row.name, f"{row.value:.4g} {row.unit}", target, shown)
    return view


def markdown(report: dict[str, Any]) -> str:
    """The report of `run_all` as a table."""
    facts = report["machine"]
    lines = [
        f"{facts['cpu']}, {facts['cores']} cores, load {facts['load']:.1f} at the end, "
        f"Python {facts['python']}, ROS {facts['ros_distro'] or 'none'}.",
        "",
        "| benchmark | figure | value | target | ratio |",
        "|---|---|---|---|---|",
    ]
    for module, rows in report["results"].items():
        for row in rows:
            target = "" if row["target"] is None else f"{row['target']:g} {row['unit']}"
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
            lines.append(
                f"| {module} | {row['name']} | {row['value']:.4g} {row['unit']} | {target} | {ratio} |"
            )
    faults = [f"- {name}: {' '.join(fault.split())}" for name, fault in report["faults"].items()]
    return "\n".join([*lines, "", "A ratio of 1 or more reaches the target.", "", *faults]).rstrip() + "\n"


def run_all(names: list[str], out: Path, console: Console) -> bool:
    """Run modules, print the table, write `out` and a .md beside it.

    True if all ran and every target was reached.
    """
    results: dict[str, list[BenchResult]] = {}
    faults: dict[str, str] = {}
    for name in names:
        console.print(f"bench: {name}")
        try:
            results[name] = run_module(name)
        except RuntimeError as error:
            faults[name] = str(error)
    console.print(table(results))
    for fault in faults.values():
        console.print(fault, style="red", markup=False, highlight=False, soft_wrap=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "machine": machine(),
        "results": {
            name: [{**asdict(row), "ratio": row.ratio} for row in rows] for name, rows in results.items()
        },
        "faults": faults,
    }
    out.write_text(json.dumps(report, indent=2) + "\n")
    out.with_suffix(".md").write_text(markdown(report))
    console.print(f"written to {out} and {out.with_suffix('.md')}")
    ratios = [row.ratio for rows in results.values() for row in rows if row.ratio is not None]
    return not faults and all(ratio >= 1.0 for ratio in ratios)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m qwen_vla_ros.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(modules())}")
    parser.add_argument("--out", type=Path, default=Path("out/bench.json"))
    parser.add_argument("--module", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.module:
        results = importlib.import_module(f"qwen_vla_ros.bench.{arguments.module}").run()
        arguments.out.write_text(json.dumps([asdict(result) for result in results]))
        return 0
    unknown = sorted(set(arguments.names) - set(modules()))
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}; there are {', '.join(modules())}")
    return 0 if run_all(arguments.names or modules(), arguments.out, Console()) else 1


if __name__ == "__main__":
    sys.exit(main())
