# SPDX-License-Identifier: Apache-2.0
"""The launch files: what they declare and start."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "launch").glob("*.launch.py"))
ARGUMENTS = {
    "namespace",
    "embodiment",
    "checkpoint",
    "device",
    "use_sim_time",
    "autostart",
    "log_level",
    "fastdds_profile",
}


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.name.partition(".")[0], path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.generate_launch_description()


def needs_launch() -> None:
    # The checkout has a folder of the name: ask for what only the real package has.
    for module in ("launch.actions", "launch_ros.actions"):
        pytest.importorskip(module, reason=f"{module} is not among the ROS wheels; apt has it")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_compile_and_name_executables_that_exist(path):
    tree = ast.parse(path.read_text())
    compile(tree, str(path), "exec")
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert words & {"policy", "executor", "sim"}
    assert any(
        isinstance(node, ast.FunctionDef) and node.name == "generate_launch_description" for node in tree.body
    )


def test_robot_declares_its_arguments():
    tree = ast.parse((ROOT / "launch/robot.launch.py").read_text())
    declared = {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "DeclareLaunchArgument"
    }
    assert declared == ARGUMENTS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_launch_takes_the_arguments(path, ros_environment):
    needs_launch()
    description = load(path)
    assert {argument.name for argument in description.get_launch_arguments()} == ARGUMENTS
