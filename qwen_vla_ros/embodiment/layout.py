# SPDX-License-Identifier: Apache-2.0
"""Which columns of the action tensor belong to which group of an embodiment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ChannelLayout:
    """The leading channels of the checkpoint's action tensor, as one embodiment uses them.

    Attributes:
        names: "group/channel", in the order of the columns. Shape (c,).
        groups: names of the groups, in order.
        sizes: number of channels of each group.
        horizon: rows that the embodiment uses.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    sizes: tuple[int, ...]
    horizon: int

    @property
    def count(self) -> int:
        """Number of channels c."""
        return len(self.names)

    def slice_of(self, group: str) -> slice:
        """Columns of a group.

        Raises:
            KeyError: there is no such group.
        """
        if group not in self.groups:
            raise KeyError(f"no action group '{group}'; there are: {', '.join(self.groups)}")
        index = self.groups.index(group)
        start = sum(self.sizes[:index])
        return slice(start, start + self.sizes[index])

    def mask(self, H: int, K: int) -> npt.NDArray[np.bool_]:
        """True where the embodiment uses the checkpoint's action tensor. Shape (H, K).

        Raises:
            ValueError: the tensor is too small for the embodiment.
        """
        if self.horizon > H or self.count > K:
            raise ValueError(
                f"action tensor: found (H, K) = ({H}, {K}), expected at least ({self.horizon}, {self.count})"
            )
        mask = np.zeros((H, K), dtype=bool)
        mask[: self.horizon, : self.count] = True
        return mask
