# SPDX-License-Identifier: Apache-2.0
"""`ros2 vla ...`: the command `qwen-vla` as an extension of ros2cli."""

from __future__ import annotations

import argparse
from typing import Any

from ros2cli.command import CommandExtension


class VlaCommand(CommandExtension):
    """Give instructions, look at embodiments, name what does not fit: `qwen-vla` under `ros2`."""

    def add_arguments(self, parser: Any, cli_name: str, *, argv: Any = None) -> None:
        parser.add_argument(
            "arguments",
            nargs=argparse.REMAINDER,
            metavar="...",
            help="as those of qwen-vla: say TEXT, embodiment list, doctor, ...",
        )

    def main(self, *, parser: Any, args: Any) -> int:
        from qwen_vla_ros.cli import app

        # Ends by SystemExit, with the exit code of the command.
        app(args.arguments or ["--help"], prog_name="ros2 vla")
        return 0
