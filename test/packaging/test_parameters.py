# SPDX-License-Identifier: Apache-2.0
"""The reference of parameters is that of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_vla_ros.nodes.parameters import NODES, declared, reference

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_up_to_date():
    advice = "run: python -m qwen_vla_ros.nodes.parameters > docs/parameters.md"
    assert (ROOT / "docs/parameters.md").read_text() == reference(), advice


def test_what_a_node_declares_is_in_it(ros_environment):
    pytest.importorskip("rclpy", reason="needs ROS 2")
    import rclpy
    from rclpy.parameter import Parameter

    from qwen_vla_ros.nodes.executor_node import ExecutorNode

    rclpy.init(args=[])
    try:
        node = ExecutorNode()
        folder = ROOT / "qwen_vla_ros/nodes"
        listed = {
            parameter.name: parameter
            for module, where in ((folder / "lifecycle.py", "BodyNode"), (folder / "executor_node.py", None))
            for parameter in declared(module, where)
        }
        for name, parameter in listed.items():
            descriptor = node.describe_parameter(name)
            assert descriptor.read_only
            assert descriptor.description == parameter.description
            assert node.get_parameter(name).value == parameter.default
            (bounds,) = [*descriptor.integer_range, *descriptor.floating_point_range] or [None]
            found = None if bounds is None else (bounds.from_value, bounds.to_value)
            assert found == parameter.bounds
        own = {name for name in node.list_parameters([], 0).names if "." not in name}
        assert own - set(listed) <= {"use_sim_time", "start_type_description_service"}
        assert node.get_parameter("embodiment").type_ == Parameter.Type.STRING
        node.destroy_node()
    finally:
        rclpy.try_shutdown()


def test_every_node_has_a_section():
    text = reference()
    for node in NODES:
        assert f"\n## {node}\n" in text
        assert text.count("| `embodiment` |") == len(NODES)
