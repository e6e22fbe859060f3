# SPDX-License-Identifier: Apache-2.0
"""Normalisation of actions by quantiles, per channel (Qwen-VLA, section on the unified action tensor)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen_vla_ros.embodiment.errors import EmbodimentError, Fault, value_text
from qwen_vla_ros.embodiment.schema import Embodiment

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Statistics:
    """First and 99th percentile of every channel, in the channel's physical unit.

    Attributes:
        q01: Shape (c,).
        q99: Shape (c,); above `q01` everywhere.

    Raises:
        ValueError: shapes differ, a value is not finite, or q01 >= q99 somewhere.
    """

    q01: Array
    q99: Array

    def __post_init__(self) -> None:
        for name in ("q01", "q99"):
            # A copy of our own: nobody changes the statistics of a running robot.
            value = np.array(getattr(self, name), dtype=np.float64)
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        if self.q01.ndim != 1 or self.q01.shape != self.q99.shape or not self.q01.size:
            raise ValueError(
                f"statistics: found shapes {self.q01.shape}, {self.q99.shape}, expected (c,) for q01 and q99"
            )
        if not (np.isfinite(self.q01).all() and np.isfinite(self.q99).all()):
            raise ValueError("statistics: found a value that is not finite, expected finite q01 and q99")
        bad = np.flatnonzero(self.q01 >= self.q99)
        if bad.size:
            k = int(bad[0])
            raise ValueError(
                f"statistics: found q01 {self.q01[k]}, q99 {self.q99[k]} in channel {k}, expected q01 < q99"
            )
        with np.errstate(over="ignore"):
            if not np.isfinite(self.q99 - self.q01).all():
                raise ValueError(
                    "statistics: found a range q99 - q01 that overflows, expected a finite range"
                )

    @property
    def count(self) -> int:
        """Number of channels c."""
        return int(self.q01.size)


def normalise(actions: npt.ArrayLike, statistics: Statistics) -> Array:
    """Physical units to [-1, 1]: `2 (a - q01) / (q99 - q01) - 1`, clipped.

    Args:
        actions: Shape (..., c).

    Raises:
        ValueError: the last axis is not c.
    """
    values = _channels(actions, statistics)
    scaled = 2.0 * ((values - statistics.q01) / (statistics.q99 - statistics.q01)) - 1.0
    return np.clip(scaled, -1.0, 1.0)


def denormalise(actions: npt.ArrayLike, statistics: Statistics) -> Array:
    """[-1, 1] to physical units: `(a + 1) / 2 (q99 - q01) + q01`.

    Values beyond [-1, 1] are clipped first: no training target lies there. NaN stays NaN, for the caller to
    refuse.

    Args:
        actions: Shape (..., c).

    Raises:
        ValueError: the last axis is not c.
    """
    values = np.clip(_channels(actions, statistics), -1.0, 1.0)
    return (values + 1.0) / 2.0 * (statistics.q99 - statistics.q01) + statistics.q01


def _channels(actions: npt.ArrayLike, statistics: Statistics) -> Array:
    values = np.asarray(actions, dtype=np.float64)
    if values.ndim == 0 or values.shape[-1] != statistics.count:
        raise ValueError(f"actions: found shape {values.shape}, expected (..., {statistics.count})")
    return values


def resolve_statistics(embodiment: Embodiment, checkpoint_statistics: Mapping[str, Any]) -> Statistics:
    """Statistics of every channel: the group's `normalisation` where it has one, else the checkpoint's.

    Args:
        checkpoint_statistics: by embodiment name, `Statistics` or a mapping with `q01` (c,) and `q99` (c,),
            and optionally `channels` (c,), the names they belong to.

    Raises:
        EmbodimentError: the checkpoint knows no statistics of this embodiment and a group has none of its
            own; their number or their channel names are not those of the embodiment; or a value is not valid.
    """
    layout = embodiment.layout
    source = f"statistics of {embodiment.name}"
    q01 = np.full(layout.count, np.nan)
    q99 = np.full(layout.count, np.nan)
    missing = [group for group in embodiment.actions if group.normalisation is None]
    if missing:
        entry = checkpoint_statistics.get(embodiment.name)
        if entry is None:
            known = ", ".join(sorted(checkpoint_statistics)) or "none"
            names = ", ".join(group.name for group in missing)
            raise EmbodimentError(
                source,
                [
                    Fault(
                        (),
                        f"none in the checkpoint (it has: {known})",
                        f"an entry '{embodiment.name}', or `normalisation` in the YAML of {names}",
                    )
                ],
            )
        try:
            given, channels = _entry(entry)
        except (ValueError, TypeError, KeyError) as error:
            raise EmbodimentError(
                source, [Fault((embodiment.name,), str(error), "q01 (c,) below q99 (c,)")]
            ) from error
        if given.count != layout.count:
            raise EmbodimentError(
                source,
                [
                    Fault(
                        (embodiment.name,),
                        f"{given.count} channels",
                        f"{layout.count}: {', '.join(layout.names)}",
                    )
                ],
            )
        if channels is not None and tuple(channels) != layout.names:
            raise EmbodimentError(
                source,
                [
                    Fault(
                        (embodiment.name, "channels"),
                        value_text(list(channels)),
                        f"{list(layout.names)}, in this order",
                    )
                ],
            )
        q01[:], q99[:] = given.q01, given.q99
    for group in embodiment.actions:
        if group.normalisation is not None:
            part = layout.slice_of(group.name)
            q01[part], q99[part] = group.normalisation.q01, group.normalisation.q99
    return Statistics(q01, q99)


def _entry(entry: Any) -> tuple[Statistics, list[str] | None]:
    if isinstance(entry, Statistics):
        return entry, None
    if not isinstance(entry, Mapping):
        raise TypeError(value_text(entry))
    absent = [key for key in ("q01", "q99") if key not in entry]
    if absent:
        raise KeyError(f"no {' and no '.join(absent)}")
    channels = entry.get("channels")
    return Statistics(entry["q01"], entry["q99"]), None if channels is None else [
        str(name) for name in channels
    ]
