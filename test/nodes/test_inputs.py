# SPDX-License-Identifier: Apache-2.0
"""Images are made ready once, by whoever comes first; what is wrong is told where they are used."""

from __future__ import annotations

import threading

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from std_msgs.msg import Header

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.nodes.images import depth_to_message, rgb_to_encoding
from qwen_vla_ros.nodes.inputs import Inputs
from qwen_vla_ros.nodes.observing import Inbox, NotObserved, Views

BODY = load_embodiment("franka_panda")
WIDTH, HEIGHT = BODY.cameras[0].size


def image(shade, width=WIDTH):
    return rgb_to_encoding(np.full((HEIGHT, width, 3), shade, dtype=np.uint8), "rgb8", Header())


def seen(*messages):
    return [Views({"ego": message}, 0.0, 0.0) for message in messages]


@pytest.fixture
def made():
    """What was resized: its shade."""
    return []


@pytest.fixture
def inputs(made):
    def resize(view, rgb):
        made.append(int(rgb[0, 0, 0]))
        return rgb[::2, ::2]

    return Inputs(BODY, resize)


def test_each_image_is_made_ready_once(inputs, made):
    one, two = image(1), image(2)
    inputs.image("ego", one)
    inputs.image("ego", one)
    for views in seen(one, one, two, two):
        images, depths = inputs.of(views)
        np.testing.assert_array_equal(
            images["ego"], np.full((HEIGHT // 2, WIDTH // 2, 3), made[-1], dtype=np.uint8)
        )
        assert not depths
    assert made == [1, 2]


def test_an_image_of_equal_bytes_is_another_image(inputs, made):
    for views in seen(image(3), image(3)):
        inputs.of(views)
    assert made == [3, 3]


def test_depth_is_made_ready_too(tmp_path):
    camera = BODY.cameras[0].model_copy(update={"depth": "camera/ego/depth"})
    inputs = Inputs(BODY.model_copy(update={"cameras": (camera,)}), lambda view, rgb: rgb)
    depth = np.full((HEIGHT, WIDTH), 0.5, dtype=np.float32)
    message = depth_to_message(depth, Header())
    inputs.depth("ego", message)
    first, second = (inputs.of(Views({}, 0.0, 0.0, {"ego": message}))[1]["ego"] for _ in range(2))
    assert first is second
    np.testing.assert_array_equal(first, depth)


def test_what_is_wrong_is_told_where_the_image_is_used(inputs, made):
    bad, good = image(4, WIDTH + 1), image(5)
    inputs.image("ego", bad)
    for _ in range(2):
        with pytest.raises(
            NotObserved, match=f"size {WIDTH + 1}x{HEIGHT}, expected {WIDTH}x{HEIGHT}"
        ) as told:
            inputs.of(seen(bad)[0])
        assert told.value.lasting
    inputs.of(seen(good)[0])
    assert made == [5]


def test_who_needs_what_another_thread_is_making_waits_for_it():
    begun, go_on, count = threading.Event(), threading.Event(), []

    def resize(view, rgb):
        count.append(rgb)
        begun.set()
        assert go_on.wait(20.0)
        return rgb

    inputs, message = Inputs(BODY, resize), image(6)
    maker = threading.Thread(target=inputs.image, args=("ego", message))
    maker.start()
    assert begun.wait(20.0)
    got: list = []
    asker = threading.Thread(target=lambda: got.append(inputs.of(seen(message)[0])))
    asker.start()
    asker.join(0.1)
    assert not got
    go_on.set()
    for thread in (maker, asker):
        thread.join(20.0)
    assert len(count) == len(got) == 1


def test_a_frozen_camera_is_used_again_once_it_shows_another_picture():
    inbox = Inbox(BODY)

    def show(shade, sec):
        message = image(shade)
        message.header.stamp.sec = sec
        inbox.keep("ego", message)
        inbox.compare("ego")

    show(1, 10)
    show(1, 11)
    assert inbox.unchanged() == {"ego": (10.0, 11.0)}
    inbox.freeze("ego", "is it frozen?")
    show(1, 12)
    with pytest.raises(NotObserved, match=r"is it frozen\?"):
        inbox.views(12.1, 0.0)
    show(2, 13)
    assert inbox.views(13.1, 0.0).oldest == 13.0
    assert inbox.unchanged() == {"ego": (13.0, 13.0)}
