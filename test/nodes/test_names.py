# SPDX-License-Identifier: Apache-2.0
"""Our nodes leave rclpy's own attributes alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

NODES = Path(__file__).resolve().parents[2] / "qwen_vla_ros" / "nodes"


def assigned(path: Path) -> set[str]:
    """Names that the file assigns as attributes of self."""
    return {
        target.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Attribute)
        and isinstance(target.value, ast.Name)
        and target.value.id == "self"
    }


def test_no_attribute_hides_one_of_rclpy(ros_node):
    # A timer list of our own in place of the node's made every later timer silent.
    files = [path for path in NODES.glob("*.py") if "Node)" in path.read_text()]
    assert len(files) >= 4
    taken = set(vars(ros_node))
    assert len(taken) > 5
    for path in files:
        assert sorted(assigned(path) & taken) == [], path.name
