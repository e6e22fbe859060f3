# SPDX-License-Identifier: Apache-2.0
"""Frames come out by their exact stamps, in any order, whatever the codec refers to."""

import av
import numpy as np
import pytest

from qwen_vla_ros.training.errors import TrainingError
from qwen_vla_ros.training.video import Videos, index_video

FRAMES = 40


def write(path, codec, options, rate=30):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for frame in range(FRAMES):
            picture = np.full((64, 96, 3), 10 + 5 * frame, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


# LeRobot writes AV1 with a key frame every second frame.
@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"g": "250", "bf": "3"}),
        ("libsvtav1", {"g": "2", "preset": "10"}),
    ],
)
def test_frames_by_stamp(tmp_path, codec, options):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    path = tmp_path / "video.mp4"
    write(path, codec, options)
    index, videos = index_video(path), Videos()
    np.testing.assert_allclose(index.seconds, np.arange(FRAMES) / 30, atol=1e-4)
    for frame in np.random.default_rng(0).permutation(FRAMES):
        picture = videos.frame(path, index, int(index.stamps[frame]))
        assert picture.shape == (64, 96, 3)
        # Less than half the step to the next frame.
        assert abs(picture.mean() - (10 + 5 * frame)) < 2.5, frame


def test_stamp_that_is_not_there(tmp_path):
    path = tmp_path / "video.mp4"
    write(path, "mpeg4", {})
    index, videos = index_video(path), Videos()
    with pytest.raises(TrainingError, match="no frame comes out at tick"):
        videos.frame(path, index, int(index.stamps[-1]) + 1)
    assert videos.frame(path, index, int(index.stamps[3])).mean() == pytest.approx(25, abs=5)
