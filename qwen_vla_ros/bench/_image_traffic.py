# SPDX-License-Identifier: Apache-2.0
"""Image traffic between processes: three cameras that send, and a receiver.

    python -m qwen_vla_ros.bench._image_traffic send SECONDS
    python -m qwen_vla_ros.bench._image_traffic receive SECONDS

Each prints one line of JSON at its end. The cameras stand for drivers, which are no Python: their images are
serialised once and get a new stamp each time.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

VIEWS = ("ego", "cam_left_wrist", "cam_right_wrist")
RATE = 30.0
WIDTH, HEIGHT = 640, 480
DISCOVERY = 60.0


def topic(view: str) -> str:
    return f"camera/{view}/image_raw"


class Serialised:
    """An Image as it goes over the wire, ready but for its stamp."""

    # After four bytes that name the encoding, the header begins with the stamp: sec and nanosec.
    _STAMP = struct.Struct("<iI")

    def __init__(self, image: Any):
        from rclpy.serialization import serialize_message

        content = serialize_message(image)
        if content[1] != 1:
            raise RuntimeError(f"expected little-endian CDR of this middleware, found kind {content[1]}")
        self._head, self._rest = content[:4], memoryview(content)[4 + self._STAMP.size :]

    def at(self, stamp: Any) -> bytes:
        """For a publisher. With a stamp message."""
        return b"".join((self._head, self._STAMP.pack(stamp.sec, stamp.nanosec), self._rest))


def send(seconds: float) -> dict[str, float]:
    """Send the images of three cameras for some seconds, from the moment that all are subscribed to."""
    import array

    import numpy as np
    import rclpy
    from rclpy.signals import SignalHandlerOptions
    from sensor_msgs.msg import Image

    from qwen_vla_ros.nodes import qos

    # rclpy's own handler would leave publishers that cannot publish.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("cameras")
    publishers = [node.create_publisher(Image, topic(view), qos.IMAGE) for view in VIEWS]
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    # Two in turn per camera: one that repeats a picture counts as frozen.
    images = [
        Serialised(
            Image(
                height=HEIGHT,
                width=WIDTH,
                step=3 * WIDTH,
                encoding="rgb8",
                data=array.array("B", np.roll(pixels, i).tobytes()),
            )
        )
        for i in range(2 * len(VIEWS))
    ]
    deadline = time.monotonic() + DISCOVERY
    while not all(publisher.get_subscription_count() for publisher in publishers):
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody subscribed within {DISCOVERY} s")
        time.sleep(0.01)
    # The receiver matches a moment after the sender.
    time.sleep(0.5)
    frames = round(seconds * RATE)
    start = time.monotonic()
    for k in range(frames):
        stamp = node.get_clock().now().to_msg()
        for image, publisher in zip(images[k % 2 :: 2], publishers, strict=True):
            publisher.publish(image.at(stamp))
        time.sleep(max(0.0, start + (k + 1) / RATE - time.monotonic()))
    time.sleep(0.5)
    node.destroy_node()
    rclpy.shutdown()
    return {"sent": frames * len(VIEWS)}


def receive(seconds: float) -> dict[str, float]:
    """Count images until none has come for a second.

    `p50`, `p99`: capture to callback [ms]. `share`: of a core, per camera [%].
    """
    import numpy as np
    import rclpy
    from sensor_msgs.msg import Image

    from qwen_vla_ros.nodes import qos

    rclpy.init()
    node = rclpy.create_node("receiver")
    seen: list[float] = []
    ages: list[float] = []
    used: list[float] = []

    def count(message: Image) -> None:
        seen.append(time.monotonic())
        stamp = message.header.stamp
        ages.append(time.time() - stamp.sec - stamp.nanosec * 1e-9)
        used.append(time.process_time())

    for view in VIEWS:
        node.create_subscription(Image, topic(view), count, qos.IMAGE)
    deadline = time.monotonic() + DISCOVERY + 2 * seconds
    while time.monotonic() < (seen[-1] + 1.0 if seen else deadline):
        rclpy.spin_once(node, timeout_sec=0.1)
    node.destroy_node()
    rclpy.shutdown()
    if len(seen) < 2:
        return {"received": len(seen)}
    p50, p99 = (1e3 * float(value) for value in np.percentile(ages, (50, 99)))
    share = 100.0 * (used[-1] - used[0]) / (seen[-1] - seen[0]) / len(VIEWS)
    return {"received": len(seen), "p50": p50, "p99": p99, "share": share}


@contextmanager
def process(role: str, seconds: float, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """The process of a role; ended when left."""
    command = [sys.executable, "-m", __spec__.name, role, str(seconds)]
    popen = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        yield popen
    finally:
        if popen.poll() is None:
            popen.terminate()
        popen.wait(10.0)


def report(popen: subprocess.Popen[str], timeout: float) -> dict[str, float]:
    """What a process printed last."""
    output, _ = popen.communicate(timeout=timeout)
    if popen.returncode:
        raise RuntimeError(f"{popen.args} ended with {popen.returncode}")
    return json.loads(output.splitlines()[-1])


def private_environment(**changes: str | None) -> dict[str, str]:
    """This environment in a ROS domain that only this benchmark uses, on loopback."""
    environment = {
        **os.environ,
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_DOMAIN_ID": str(1 + os.getpid() % 101),
    }
    for name, value in changes.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    return environment


if __name__ == "__main__":
    print(json.dumps({"send": send, "receive": receive}[sys.argv[1]](float(sys.argv[2]))))
