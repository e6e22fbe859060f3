# SPDX-License-Identifier: Apache-2.0
"""Benchmarks. A module `qwen_vla_ros.bench.NAME` offers `run() -> list[BenchResult]`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class BenchResult:
    """One measured figure.

    Attributes:
        name: What was measured, for a reader of the table.
        value: The figure: the median over repetitions, or the percentile that `name` says.
        unit: Unit of `value` and `target`, such as "ms" or "chunk/s".
        target: The figure to reach, or None where there is none.
        higher_is_better: Decides on which side of the target a value is good.
        detail: JSON-serialisable facts beside it: repetitions, percentiles, sizes.
    """

    name: str
    value: float
    unit: str
    target: float | None = None
    higher_is_better: bool = False
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """How far the target is reached: 1 is on target, above 1 is better; None without a target."""
        if self.target is None:
            return None
        better, worse = (self.value, self.target) if self.higher_is_better else (self.target, self.value)
        if worse == 0.0:
            return 1.0 if better == 0.0 else float("inf")
        return better / worse
