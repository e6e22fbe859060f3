# SPDX-License-Identifier: Apache-2.0
"""Point the CMake files of the ROS wheels at this interpreter; they name the build machine's.

Usage: VENV/bin/python tools/repair_wheels.py. It may run any number of times.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from pathlib import Path

import numpy

# The wheels are built in manylinux images, whose interpreters live in /opt/python/cpXY-cpXY.
BUILD_PYTHON = re.compile(r"/opt/python/cp\d+-cp\d+/(?P<rest>[^;\"\s>]*)")


def replacement(rest: str) -> str:
    """Path on this machine for a path below the build machine's Python prefix."""
    if rest.startswith("include/"):
        return sysconfig.get_path("include")
    if rest.endswith(("numpy/_core/include", "numpy/core/include")):
        return numpy.get_include()
    raise SystemExit(
        f"repair_wheels: do not know what stands for {rest!r} of the build machine's Python here"
    )


def main() -> None:
    changed = 0
    for path in sorted((Path(sys.prefix) / "share").glob("*/cmake/*.cmake")):
        text = path.read_text()
        repaired = BUILD_PYTHON.sub(lambda match: replacement(match["rest"]), text)
        if repaired != text:
            path.write_text(repaired)
            changed += 1
    print(f"repair_wheels: {changed} files changed")


if __name__ == "__main__":
    main()
