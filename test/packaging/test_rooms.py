# SPDX-License-Identifier: Apache-2.0
"""The rules between the rooms, and that breaking one is noticed."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROS_ROOMS = {"bench", "nodes"}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(program), "--no-cache"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_rules_are_kept():
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "statement", "contract"),
    [
        ("sim/extra.py", "import torch", "sim imports embodiment and motion"),
        ("motion/extra.py", "import rclpy", "ROS only in nodes and bench"),
        ("embodiment/extra.py", "from qwen_vla_ros.motion import stop", "embodiment imports nothing of ours"),
        ("model/extra.py", "from qwen_vla_ros import nodes", "Dependencies point down"),
        ("nodes/extra.py", "import torch", "torch only in model, policy, training"),
        ("nodes/executor_node.py", "import qwen_vla_ros.policy", "The executor reaches no model"),
    ],
)
def test_broken_rule_is_found(tmp_path, module, statement, contract):
    shutil.copytree(
        ROOT / "qwen_vla_ros", tmp_path / "qwen_vla_ros", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(ROOT / ".importlinter", tmp_path)
    with (tmp_path / "qwen_vla_ros" / module).open("a") as stream:
        stream.write(f"\n{statement}\n")
    result = lint(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    broken = [line for line in result.stdout.splitlines() if line.endswith("BROKEN")]
    assert any(line.startswith(contract) for line in broken), result.stdout


def test_generated_interfaces_are_used_where_ros_is_known():
    generated = ("qwen_vla_ros.action", "qwen_vla_ros.msg", "qwen_vla_ros.srv")
    for path in sorted((ROOT / "qwen_vla_ros").rglob("*.py")):
        room = path.relative_to(ROOT / "qwen_vla_ros").parts[0]
        if room in ROS_ROOMS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            assert not any(name.startswith(generated) for name in names), f"{path}:{node.lineno}"
