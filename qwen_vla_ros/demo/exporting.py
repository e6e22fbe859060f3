# SPDX-License-Identifier: Apache-2.0
"""A checkpoint as ONNX graphs in the user's cache: the policy starts without torch."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.policy import MANIFEST

# Raised when what is exported changes for the same checkpoint.
_REVISION = 2
_NEEDED = ("onnx", "onnxruntime")


class ExportFailed(RuntimeError):
    """The graphs could not be written; the text is the exporter's."""


def can_export() -> bool:
    """Whether the packages that it takes are installed."""
    return all(find_spec(name) is not None for name in _NEEDED)


def exported(checkpoint: Path, making: Callable[[], None] = lambda: None) -> Path:
    """Folder with the graphs of a checkpoint, written at the first call.

    Args:
        checkpoint: Folder in Hugging Face layout.
        making: Called before they are written, which takes some seconds.

    Raises:
        ExportFailed: They could not be.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwen_vla_ros" / "onnx"
    folder = cache / _key(checkpoint)
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


def _key(checkpoint: Path) -> str:
    """Changes with everything that the graphs are made from."""
    digest = hashlib.sha256(f"revision {_REVISION}".encode())
    for path in sorted(checkpoint.glob("*")):
        if path.is_file() and path.suffix in (".json", ".safetensors"):
            digest.update(path.name.encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    statistics = checkpoint / "statistics.json"
    for name in sorted(json.loads(statistics.read_text())) if statistics.is_file() else ():
        digest.update(load_embodiment(name).model_dump_json().encode())
    return digest.hexdigest()[:16]
