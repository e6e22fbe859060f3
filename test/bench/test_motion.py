# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of limits and of hand-overs: what they count, and what they print."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from qwen_vla_ros.bench.handover import Cell, plot, table
from qwen_vla_ros.bench.limits import Adversary, tallies
from qwen_vla_ros.embodiment import load_embodiment


def test_no_command_of_a_few_hundred_breaks_a_limit():
    for tally in tallies(400, seed=5, bodies=["koch", "tiago_base", "tiago_base:path", "widowx"]):
        assert not any(tally.violations.values()), tally
        assert tally.ticks > 20


@pytest.mark.parametrize(
    ("change", "kind"), [(9.0, "position"), (0.2, "velocity"), (0.004, "acceleration"), (np.nan, "finite")]
)
def test_a_broken_limit_is_counted(change, kind):
    adversary = Adversary(load_embodiment("koch"), 1)
    adversary._tick(6)
    arm = adversary._path[3]["arm"]
    adversary._path[3]["arm"] = replace(arm, position=arm.position + change)
    adversary._audit()
    assert adversary.tally.violations[kind] > 0


def test_hand_overs_are_tabled_and_drawn(tmp_path):
    cells = [
        Cell("rtc", 0.1, 4, 3, 1.25, 1.0, 200.0, 0.05),
        Cell("naive", 0.1, 4, 0, math.nan, 300.0, 30000.0, math.nan),
    ]
    rows = table(cells).splitlines()
    assert rows[2] == "| 100 ms | rtc | 3/4 | 1.2 s | 1.00 | 200 rad/s³ | 50.0 mrad |"
    assert rows[3] == "| 100 ms | naive | 0/4 |  | 300.00 | 30000 rad/s³ |  |"
    plot(cells, tmp_path / "handover.png")
    assert (tmp_path / "handover.png").stat().st_size > 10_000
