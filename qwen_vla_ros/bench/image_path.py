# SPDX-License-Identifier: Apache-2.0
"""From the image callback to the policy's input: three 640x480 rgb8 cameras at 30 Hz, resize included."""

from __future__ import annotations

import os
import sys
import threading
import time

import numpy as np

from qwen_vla_ros.bench import BenchResult, _image_traffic
from qwen_vla_ros.embodiment import Embodiment, load_embodiment

SECONDS = 20.0


def run() -> list[BenchResult]:
    """The policy node's own inbox, inputs and processor; every triple of images is prepared."""
    environment = _image_traffic.private_environment()
    # The receiver is this process: what the sender gets must hold here, too.
    os.environ.update(
        {name: environment[name] for name in ("ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE")}
    )
    with _image_traffic.process("send", SECONDS, environment) as sender:
        latencies, received = _receive(_embodiment())
        sent = _image_traffic.report(sender, _image_traffic.DISCOVERY)["sent"]
    values = np.array(latencies) * 1e3
    return [
        BenchResult(
            "image callback to policy input, p99",
            float(np.percentile(values, 99)),
            "ms",
            target=5.0,
            detail={
                "p50": float(np.median(values)),
                "worst": float(values.max()),
                "observations": len(values),
            },
        ),
        BenchResult(
            "image frames delivered to the policy",
            100.0 * received / sent,
            "%",
            target=99.9,
            higher_is_better=True,
            detail={"sent": sent, "received": received},
        ),
    ]


def _embodiment() -> Embodiment:
    body = load_embodiment("franka_panda")
    camera = body.cameras[0]
    cameras = tuple(
        camera.model_copy(
            update={
                "view": view,
                "topic": _image_traffic.topic(view),
                "size": (_image_traffic.WIDTH, _image_traffic.HEIGHT),
            }
        )
        for view in _image_traffic.VIEWS
    )
    return body.model_copy(update={"cameras": cameras})


def _receive(body: Embodiment) -> tuple[list[float], int]:
    """Callback of the last image of a triple to the processor's output [s], and frames received."""
    import rclpy
    from sensor_msgs.msg import Image

    from qwen_vla_ros.model.presets import build_tiny
    from qwen_vla_ros.nodes import qos
    from qwen_vla_ros.nodes.inputs import Inputs
    from qwen_vla_ros.nodes.lifecycle import SWITCH_INTERVAL
    from qwen_vla_ros.nodes.observing import Inbox, NotObserved

    sys.setswitchinterval(SWITCH_INTERVAL)
    _, processor = build_tiny()
    rclpy.init()
    node = rclpy.create_node("policy")
    inbox, inputs = Inbox(body), Inputs(body, processor.resize)
    arrived = threading.Event()
    arrivals: dict[str, float] = {}
    latencies: list[float] = []
    done = threading.Event()

    def keep(view: str, message: Image) -> None:
        arrivals[view] = time.perf_counter()
        inbox.keep(view, message)
        inputs.image(view, message)
        arrived.set()
        inbox.compare(view)

    def prepare() -> None:
        last = -np.inf
        while not done.is_set():
            arrived.wait(0.1)
            arrived.clear()
            now = node.get_clock().now().nanoseconds * 1e-9
            try:
                views = inbox.views(now, 0.0)
            except NotObserved:
                continue
            if views.oldest <= last or views.skew > 0:
                continue
            last, began = views.oldest, max(arrivals.values())
            processor.images(list(inputs.of(views)[0].items()))
            latencies.append(time.perf_counter() - began)

    for camera in body.cameras:
        node.create_subscription(Image, camera.topic, lambda m, v=camera.view: keep(v, m), qos.IMAGE)
    thread = threading.Thread(target=prepare)
    thread.start()
    deadline = time.perf_counter() + _image_traffic.DISCOVERY
    try:
        while time.perf_counter() < (max(arrivals.values()) + 1.0 if arrivals else deadline):
            rclpy.spin_once(node, timeout_sec=0.1)
    finally:
        done.set()
        thread.join()
        _, frames, _ = inbox.counts(0.0)
        node.destroy_node()
        rclpy.shutdown()
    if not latencies:
        raise RuntimeError("no image arrived")
    return latencies, sum(frames)
