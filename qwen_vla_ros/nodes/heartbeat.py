# SPDX-License-Identifier: Apache-2.0
"""Whether the policy is there: its process by the middleware's word, its Python by the heartbeat."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

# What of a late look counts as listening, of a loop that looks more often than that [s]. With the period
# of the heartbeat it must be less than a lease.
LONGEST_LOOK = 0.02


class Heartbeat:
    """The life of the policy, in time that this process spent listening.

    A process that was not scheduled could not hear, and what came meanwhile waits behind the look that is
    late: of the time between two looks only `period`, or `LONGEST_LOOK`, counts.

    Args:
        patience: silence of a policy whose process lives, before it counts as lost [s].
        lease: silence of a policy without a sign of life of its process [s].
        period: of the looks [s].
        clock: wall time [s]; a process is alive or not, however fast the simulated clock runs.
    """

    def __init__(
        self, patience: float, lease: float, period: float, clock: Callable[[], float] = time.monotonic
    ):
        self._patience, self._lease, self._clock = patience, lease, clock
        self._longest = max(period, LONGEST_LOOK)
        self._looked, self._listened = clock(), 0.0
        self._heard = -math.inf
        self._lives: bool | None = None

    def look(self) -> None:
        """Called every period of the loop."""
        now = self._clock()
        self._listened += min(now - self._looked, self._longest)
        self._looked = now

    def hear(self) -> None:
        """A heartbeat came."""
        self._heard = self._listened

    def count(self, alive: int) -> None:
        """How many publishers of the heartbeat are alive, by the liveliness that the middleware watches."""
        self._lives = alive > 0

    @property
    def silence(self) -> str:
        """Why the policy counts as lost; empty while it does not."""
        silent = self._listened - self._heard
        # The sign of life and the heartbeat come from two threads of the policy: one alone may be late.
        if self._lives is False and self._lease <= silent < math.inf:
            return (
                f"no heartbeat of the policy for {silent:.2f} s, nor a sign of life of its process "
                f"(allowed {self._lease} s); was it killed or stopped?"
            )
        if silent <= self._patience:
            return ""
        heard = "never" if math.isinf(silent) else f"last {silent:.2f} s ago"
        why = (
            "its process lives: is the node active, or does it hang"
            if self._lives
            else "is its process running"
        )
        return f"no heartbeat of the policy (heard {heard}, allowed {self._patience} s); {why}?"
