# SPDX-License-Identifier: Apache-2.0
"""Whether a process has been asked to end."""

from __future__ import annotations

import time

# How late a wait may notice [s].
STEP = 0.02


class Ending:
    """As `threading.Event`, without its lock.

    A handler of signals runs between any two steps of the thread that it interrupts: were that in the middle
    of `set` or `wait` of an event, the handler's own `set` would wait for the lock for ever.
    """

    def __init__(self) -> None:
        self._asked = False

    def set(self) -> None:
        self._asked = True

    def is_set(self) -> bool:
        return self._asked

    def wait(self, timeout: float) -> bool:
        """Sleep for `timeout` [s], or until it is set. Returns whether it is."""
        deadline = time.monotonic() + timeout
        while not self._asked and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, STEP))
        return self._asked
