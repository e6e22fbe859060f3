# SPDX-License-Identifier: Apache-2.0
"""The demonstration as a user runs it: real processes, real DDS, the shipped weights."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

BODIES = ("franka_panda", "aloha_viperx", "tiago_base", "unitree_g1")
TIMEOUT = 400.0


def _demo(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qwen_vla_ros.cli", "demo", "--out", str(out), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        # It ends its nodes, which are in sessions of their own.
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30.0)
        pytest.fail(f"not done in {TIMEOUT:.0f} s: {said}")
    return subprocess.CompletedProcess(command, process.returncode, *said)


def _processes_of(out: Path) -> list[str]:
    """Command lines of living processes that name `out`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # ended meanwhile
            continue
        if str(out) in line:
            found.append(line)
    return found


@pytest.mark.usefixtures("ros_environment")
def test_four_bodies_move_by_the_same_weights(tmp_path):
    done = _demo(tmp_path, "--episodes", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("demo: 4/4 bodies ran")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert tuple(summary) == BODIES
    for body in BODIES:
        figures = summary[body]["figures"]
        assert figures["chunks"] > 0
        assert figures["frames_sent"] > 0
        with Image.open(tmp_path / body / f"{body}.gif") as animation:
            assert animation.n_frames > 5
        assert (tmp_path / body / f"{body}.png").stat().st_size > 10_000
    # One may fail by chance; weights that do not work would fail all.
    assert sum(summary[body]["figures"]["successes"] for body in BODIES) >= 3
    assert _processes_of(tmp_path) == []


@pytest.mark.usefixtures("ros_environment")
def test_a_wrong_checkpoint_is_named_and_nothing_is_left_running(tmp_path):
    missing = tmp_path / "no_such_checkpoint"
    done = _demo(tmp_path / "out", "--embodiment", "franka_panda", "--checkpoint", str(missing))
    assert done.returncode == 1
    assert str(missing) in done.stdout
    assert done.stdout.rstrip().endswith("demo: 0/1 bodies ran")
    assert _processes_of(tmp_path / "out") == []
