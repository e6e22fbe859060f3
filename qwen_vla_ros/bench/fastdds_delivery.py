# SPDX-License-Identifier: Apache-2.0
"""Large images between processes, with the Fast DDS profile of this package and without."""

from __future__ import annotations

from qwen_vla_ros import launching
from qwen_vla_ros.bench import BenchResult, _image_traffic
from qwen_vla_ros.resources import config_directory

SECONDS = 10.0
PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")


def deliver(profile: bool) -> dict[str, float]:
    """Frames sent and received, counted from the match on."""
    changes: dict[str, str | None] = dict.fromkeys(PROFILE_VARIABLES)
    if profile:
        path = launching.fastdds_profile(config_directory(), "fastdds.xml")
        changes.update(dict.fromkeys(launching.fastdds_variables(), path))
    environment = _image_traffic.private_environment(**changes)
    with (
        _image_traffic.process("receive", SECONDS, environment) as receiver,
        _image_traffic.process("send", SECONDS, environment) as sender,
    ):
        timeout = _image_traffic.DISCOVERY + 3 * SECONDS
        return {**_image_traffic.report(sender, timeout), **_image_traffic.report(receiver, timeout)}


def run() -> list[BenchResult]:
    """Three 640x480 rgb8 cameras at 30 Hz, best effort, depth 1."""
    results = []
    for profile, name in ((True, "with config/fastdds.xml"), (False, "without a profile")):
        counts = deliver(profile)
        results.append(
            BenchResult(
                f"image frames delivered {name}",
                100.0 * counts["received"] / counts["sent"],
                "%",
                target=99.9 if profile else None,
                higher_is_better=True,
                detail={**counts, "cameras": 3, "size": [640, 480], "rate": _image_traffic.RATE},
            )
        )
    return results
