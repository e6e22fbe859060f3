# SPDX-License-Identifier: Apache-2.0
"""Large images between processes through the Fast DDS profiles."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qwen_vla_ros.launching import fastdds_profile

CONFIG = Path(__file__).resolve().parents[2] / "config"
PROFILES = ("fastdds.xml", "fastdds_network.xml")
VARIABLES = ("FASTDDS", "FASTRTPS")  # Kilted, Jazzy
IMAGES = 60
# Sends images of 640x480 rgb8 (921,600 bytes) at 30 Hz, best effort, once somebody listens.
SENDER = f"""
import rclpy, rclpy.qos, sensor_msgs.msg as m
rclpy.init()
node = rclpy.create_node("sender")
publisher = node.create_publisher(m.Image, "image", rclpy.qos.qos_profile_sensor_data)
image = m.Image(height=480, width=640, step=1920, encoding="rgb8", data=bytes(921600))
sent = 0
def send():
    global sent
    if publisher.get_subscription_count() and sent < {IMAGES}:
        image.header.frame_id = str(sent)
        publisher.publish(image)
        sent += 1
        if sent == {IMAGES}:
            print("done", flush=True)
timer = node.create_timer(1 / 30, send)
rclpy.spin(node)
"""


@pytest.mark.parametrize("profile", PROFILES)
def test_images_of_900_kb_arrive(spawn, ros_node, wait_for, profile):
    # This process keeps the profile that it was started with; the sender takes the one under test.
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import Image

    received = []
    ros_node.create_subscription(
        Image,
        "image",
        lambda image: received.append((int(image.header.frame_id), len(image.data))),
        # The queue holds all: what counts is what the transport loses, not how soon a callback runs.
        QoSProfile(depth=IMAGES, reliability=ReliabilityPolicy.BEST_EFFORT),
    )
    sender = spawn(
        sys.executable,
        ["-c", SENDER],
        environment={f"{name}_DEFAULT_PROFILES_FILE": fastdds_profile(CONFIG, profile) for name in VARIABLES},
    )
    sender.wait_for_output("done", timeout=60.0)
    enough = 0.95 * IMAGES
    wait_for(lambda: len(received) >= enough, 10.0, f"{enough:.0f} of {IMAGES} images")
    assert {size for _, size in received} == {921600}
    # What Fast DDS does not understand it complains of, and goes on without the whole file.
    assert "XML" not in sender.output


@pytest.mark.parametrize("profile", PROFILES)
def test_jazzy_reads_the_same_by_other_names(profile, monkeypatch):
    monkeypatch.setenv("ROS_DISTRO", "kilted")
    ours = Path(fastdds_profile(CONFIG, profile))
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    theirs = Path(fastdds_profile(CONFIG, profile))
    assert theirs != ours
    renamed = ours.read_text().replace("heartbeat_response_delay", "heartbeatResponseDelay")
    assert theirs.read_text() == renamed


def test_profile_sends_nothing_beyond_loopback(spawn):
    sockets = """
import glob, os, socket, struct, rclpy
rclpy.init()
node = rclpy.create_node("quiet")
own = {os.readlink(path) for path in glob.glob("/proc/self/fd/*") if os.path.exists(path)}
for line in open("/proc/net/udp").read().splitlines()[1:]:
    fields = line.split()
    address, port = fields[1].split(":")
    if f"socket:[{fields[9]}]" in own and int(port, 16) < 32768:
        print("receives on", socket.inet_ntoa(struct.pack("<I", int(address, 16))))
print("end")
"""
    process = spawn(sys.executable, ["-c", sockets])
    process.wait_for_output("end")
    addresses = {line.split()[-1] for line in process.output.splitlines() if line.startswith("receives on")}
    assert addresses == {"127.0.0.1"}
