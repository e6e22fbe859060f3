# SPDX-License-Identifier: Apache-2.0
"""Start the nodes of one body as processes of their own, watch them, and end exactly those."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

_ENDING = ((signal.SIGINT, 5.0), (signal.SIGTERM, 2.0), (signal.SIGKILL, 2.0))
_TROUBLE = ("[ERROR]", "[FATAL]", "Traceback (most recent call last)")


class ProcessError(RuntimeError):
    """A node ended or reported an error; the text holds what it printed last."""


class NodeProcess:
    """One node in one process, its output in one log file."""

    def __init__(self, name: str, arguments: list[str], log: Path, environment: dict[str, str]):
        self.name = name
        self.log = log
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches the caller alone, which then ends its nodes in order
            )

    def check(self) -> None:
        """Raise `ProcessError` if the process has ended or logged an error."""
        code = self._process.poll()
        if code is not None:
            raise ProcessError(f"{self.name} ended with exit code {code}; end of {self.log}:\n{self.tail()}")
        trouble = [line for line in self._lines() if any(mark in line for mark in _TROUBLE)]
        if trouble:
            raise ProcessError(f"{self.name} reported an error, see {self.log}:\n" + "\n".join(trouble[-5:]))

    def wait(self, timeout: float) -> int:
        """Wait up to `timeout` [s] for the process to end by itself. Returns its exit code."""
        return self._process.wait(timeout)

    def end(self) -> int:
        """Ask the process to end, insist if it does not, and return its exit code."""
        for number, patience in _ENDING:
            if self._process.poll() is not None:
                break
            self._process.send_signal(number)
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
        return self._process.wait()

    @property
    def process_id(self) -> int:
        return self._process.pid

    def tail(self, lines: int = 15) -> str:
        """The last lines that the process printed."""
        return "\n".join(self._lines()[-lines:])

    def _lines(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines()


class NodeGroup:
    """The nodes of one body. A context manager: leaving it ends every process it started.

    Args:
        namespace: ROS namespace of all nodes.
        parameters: Parameters by node name, `{"policy": {"embodiment": ...}, ...}`.
        log_directory: Receives one log file per node.
    """

    def __init__(self, namespace: str, parameters: dict[str, dict[str, object]], log_directory: Path):
        self._namespace = namespace
        self._parameters = parameters
        self._log_directory = log_directory
        self._processes: dict[str, NodeProcess] = {}

    def __enter__(self) -> NodeGroup:
        self._log_directory.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "RCUTILS_COLORIZED_OUTPUT": "0",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }
        try:
            for name, parameters in self._parameters.items():
                self._processes[name] = NodeProcess(
                    name,
                    self._arguments(name, parameters),
                    self._log_directory / f"{name}.log",
                    environment,
                )
        except OSError:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def check(self) -> None:
        """Raise `ProcessError` if any of the processes is in trouble."""
        for process in self._processes.values():
            process.check()

    def process_id(self, name: str) -> int:
        return self._processes[name].process_id

    def end(self) -> dict[str, int]:
        """End all processes, the one started last first. Returns exit codes by node name."""
        return {name: process.end() for name, process in reversed(list(self._processes.items()))}

    def _arguments(self, name: str, parameters: dict[str, object]) -> list[str]:
        arguments = [sys.executable, "-m", f"qwen_vla_ros.nodes.{name}_node", "--ros-args"]
        arguments += ["-r", f"__ns:=/{self._namespace}"]
        for key, value in parameters.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            arguments += ["-p", f"{key}:={text}"]
        return arguments
