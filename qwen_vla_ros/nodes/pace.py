# SPDX-License-Identifier: Apache-2.0
"""Calls once a period: by the steady clock from a thread of its own, in simulation by the node's clock."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable

from rclpy.node import Node

# Of calls while nothing moves [s].
REST_PERIOD = 0.02

# A beat that is later than this share of the period moves those after it.
LATE = 0.25


class Pace:
    """Calls until it is stopped, or a call raises.

    A thread, because a timer of rclpy costs a wait set of all that the node waits for. A period that is
    missed is not made up for.

    Args:
        period: [s], at least 1 ms.
        call: made while `lock` is held.
        rests: whether a call every `REST_PERIOD` is enough for now.
        failed: told the stack of what `call` raised; no call follows.
        simulated: keep step with the clock of the node, by a timer.
    """

    def __init__(
        self,
        node: Node,
        period: float,
        call: Callable[[], None],
        rests: Callable[[], bool],
        lock: threading.RLock,
        failed: Callable[[str], None],
        simulated: bool,
    ):
        self._node, self._period, self._call, self._rests = node, period, call, rests
        self._lock, self._failed = lock, failed
        self._going = True
        self._timer = self._thread = None
        if simulated:
            self._timer = node.create_timer(period, self._beat)
        else:
            self._thread = threading.Thread(target=self._run, name="pace", daemon=True)
            self._thread.start()

    @property
    def going(self) -> bool:
        return self._going

    def stop(self) -> None:
        """No call is made any more when this returns; not to be called while the lock is held."""
        self._going = False
        if self._thread is not None:
            self._thread.join()
        if self._timer is not None:
            self._node.destroy_timer(self._timer)

    def _run(self) -> None:
        due = time.monotonic()
        while self._going:
            began = self._beat()
            # Of a late beat the whole period follows: what moves is told how far to go in a period.
            due = began if began - due > LATE * self._period else due
            due += max(self._period, REST_PERIOD) if self._rests() else self._period
            time.sleep(max(0.0, due - time.monotonic()))

    def _beat(self) -> float:
        """Call once. Returns when that began [s]: whoever held the lock may have held it up."""
        with self._lock:
            began = time.monotonic()
            try:
                if self._going:
                    self._call()
            except Exception:
                self._going = False
                self._failed(traceback.format_exc())
        return began
