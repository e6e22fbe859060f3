# SPDX-License-Identifier: Apache-2.0
"""A checkpoint as ONNX graphs in the user's cache, and when the policy runs those in its place."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from qwen_vla_ros.embodiment import Embodiment, list_embodiments, load_embodiment
from qwen_vla_ros.policy import MANIFEST
from qwen_vla_ros.resources import checkpoints_directory

# Raised when what is exported changes for the same checkpoint.
_REVISION = 3
_NEEDED = ("onnx", "onnxruntime")


class ExportFailed(RuntimeError):
    """The graphs could not be written; the text is the exporter's."""


@dataclass(frozen=True)
class PolicyChoice:
    """What the policy node runs.

    Attributes:
        checkpoint: Folder; empty for the shipped one.
        device, backend: As the node knows them.
        graphs: Folder of the same checkpoint's ONNX graphs; empty for none.
    """

    checkpoint: str
    device: str
    backend: str
    graphs: str = ""

    def parameters(self, embodiment: Embodiment) -> dict[str, object]:
        """Of the policy node for a body."""
        found: dict[str, object] = {"device": self.device, "backend": self.backend}
        # Graphs continue no plan.
        if self.graphs and embodiment.motion.mode != "rtc":
            return {**found, "backend": "onnx", "checkpoint": self.graphs}
        return {**found, "checkpoint": self.checkpoint} if self.checkpoint else found


def choose_policy(
    checkpoint: str, device: str, backend: str, embodiments: Mapping[str, Embodiment], console: Console
) -> PolicyChoice:
    """On a CPU `auto` is ONNX graphs, where they can be made: the policy starts sooner and thinks faster.

    embodiments: that will be run, by name or file.
    """
    choice = PolicyChoice(checkpoint, device, backend)
    if backend != "auto" or device != "cpu":
        return choice
    folder = Path(checkpoint) if checkpoint else checkpoints_directory() / "qwen_vla_tiny"
    bodies = _served(folder, embodiments)
    if (folder / MANIFEST).is_file() or not bodies or not _can_export():
        return choice  # of a folder that is no checkpoint, or not these bodies', the policy tells more
    try:
        graphs = exported(
            folder, bodies, lambda: console.print("writing the checkpoint's ONNX graphs, once ...")
        )
    except ExportFailed as error:
        console.print(f"no ONNX graphs, the policy takes torch: {error}", style="yellow")
        return choice
    return replace(choice, graphs=str(graphs))


def _can_export() -> bool:
    """Whether the packages that it takes are installed."""
    return all(find_spec(name) is not None for name in _NEEDED)


def _served(checkpoint: Path, embodiments: Mapping[str, Embodiment]) -> list[str]:
    """Names and files of what graphs of a checkpoint can serve: what it knows of those that come with the
    package, so that one export does for many runs, and of those that will be run."""
    statistics = checkpoint / "statistics.json"
    if not (checkpoint / "config.json").is_file() or not statistics.is_file():
        return []
    known = set(json.loads(statistics.read_text()))
    own = {source for source, body in embodiments.items() if body.name in known}
    return sorted(own | (known & set(list_embodiments())))


def exported(checkpoint: Path, embodiments: Sequence[str], making: Callable[[], None] = lambda: None) -> Path:
    """Folder with the graphs of a checkpoint, written at the first call.

    Args:
        checkpoint: Folder in Hugging Face layout.
        embodiments: Names or files, of which it has statistics.
        making: Called before they are written, which takes some seconds.

    Raises:
        ExportFailed: They could not be.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwen_vla_ros" / "onnx"
    folder = cache / _key(checkpoint, embodiments)
    if (folder / MANIFEST).is_file():
        return folder
    making()
    cache.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix="partial-", dir=cache))
    try:
        # In a process of its own: torch would stay in this one.
        command = [
            sys.executable,
            "-m",
            "qwen_vla_ros.cli",
            "export",
            str(checkpoint),
            "--onnx",
            str(partial),
            *(f"--embodiment={each}" for each in embodiments),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise ExportFailed(f"{checkpoint}: {done.stderr.strip() or done.stdout.strip()}")
        try:
            partial.rename(folder)
        except OSError:
            # Another process was faster.
            if not (folder / MANIFEST).is_file():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _key(checkpoint: Path, embodiments: Sequence[str]) -> str:
    """Changes with everything that the graphs are made from."""
    digest = hashlib.sha256(f"revision {_REVISION}".encode())
    for path in sorted(checkpoint.glob("*")):
        if path.is_file() and path.suffix in (".json", ".safetensors"):
            digest.update(path.name.encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    for each in embodiments:
        digest.update(load_embodiment(each).model_dump_json().encode())
    return digest.hexdigest()[:16]
