# SPDX-License-Identifier: Apache-2.0
"""The fixtures that the node tests stand on."""

from __future__ import annotations

import signal
import sys

import pytest


def test_environment_is_on_loopback_in_a_domain_of_its_own(ros_environment):
    assert 1 <= int(ros_environment["ROS_DOMAIN_ID"]) <= 101
    assert ros_environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    assert ros_environment["FASTDDS_DEFAULT_PROFILES_FILE"].endswith("fastdds.xml")


def test_generated_interfaces_and_modules_are_one_package():
    from qwen_vla_ros.action import ExecuteTask
    from qwen_vla_ros.msg import ActionChunk
    from qwen_vla_ros.srv import ResetWorld

    from qwen_vla_ros import resources

    assert ExecuteTask.Result.POLICY_LOST == 200
    assert ActionChunk().horizon == 0
    assert ResetWorld.Request().seed == 0
    assert (resources.embodiments_directory() / "franka_panda.yaml").is_file()


def test_spawned_process_is_ended_and_its_output_kept(spawn):
    stubborn = (
        "import signal; signal.signal(signal.SIGINT, lambda *_: print('asked', flush=True)); print('up')\n"
        "while True: signal.pause()"
    )
    process = spawn(sys.executable, ["-c", stubborn])
    process.wait_for_output("up")
    assert process.end() == -signal.SIGTERM
    assert "asked" in process.output


def test_waiting_for_output_of_a_dead_process_fails_at_once(spawn):
    process = spawn(sys.executable, ["-c", "print('short')"])
    with pytest.raises(AssertionError, match="ended with 0 before"):
        process.wait_for_output("never", timeout=60.0)


def test_node_in_another_process_hears_us(spawn, ros_node, wait_for):
    listener = (
        "import rclpy, rclpy.node, std_msgs.msg as m; rclpy.init(); n = rclpy.node.Node('listener');"
        "n.declare_parameter('word', '');"
        "word = n.get_parameter('word').value;"
        "n.create_subscription(m.String, 'words', lambda s: print('heard', s.data, word), 10);"
        "rclpy.spin(n)"
    )
    from std_msgs.msg import String

    process = spawn(sys.executable, ["-c", listener], {"word": "1.0"}, ros_arguments=["-r", "__ns:=/left"])
    publisher = ros_node.create_publisher(String, "/left/words", 10)
    wait_for(publisher.get_subscription_count, 20.0, "the listener")
    publisher.publish(String(data="hello"))
    process.wait_for_output("heard hello 1.0")
