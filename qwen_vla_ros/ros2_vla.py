# SPDX-License-Identifier: Apache-2.0
"""`ros2 vla ...`: the command `qwen-vla` as an extension of ros2cli."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from ros2cli.command import CommandExtension


def program() -> str | None:
    """The installed qwen-vla: that of the package's prefix, else the first on PATH."""
    try:
        installed = Path(get_package_prefix("qwen_vla_ros")) / "bin" / "qwen-vla"
    except PackageNotFoundError:
        installed = None
    if installed is not None and os.access(installed, os.X_OK):
        return str(installed)
    return shutil.which("qwen-vla")


class VlaCommand(CommandExtension):
    """Give instructions, look at embodiments, name what does not fit: `qwen-vla` under `ros2`."""

    def add_arguments(self, parser: Any, cli_name: str, *, argv: Any = None) -> None:
        parser.add_argument(
            "arguments",
            nargs=argparse.REMAINDER,
            metavar="...",
            help="as those of qwen-vla: say TEXT, embodiment list, doctor, ...",
        )

    def main(self, *, parser: Any, args: Any) -> NoReturn:
        # Not in this process: `ros2` runs in the system's Python, which has not what qwen-vla needs.
        found = program()
        if found is None:
            raise RuntimeError("qwen-vla is not installed; build the ROS package and source its setup file")
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(found, [found, *(args.arguments or ["--help"])])
