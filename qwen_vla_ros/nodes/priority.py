# SPDX-License-Identifier: Apache-2.0
"""Real-time priority for threads of this process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Threads of Fast DDS, and the one of them that gives its signs of life.
DDS, LIFE = "dds.", "dds.ev"


def claim(priority: int, log: Any, names: str = "") -> int:
    """`run_first`, and the calling thread as well, where the system allows it.

    Args:
        priority: 1 to 99; 0 to leave all as it is.
        log: A node's logger, told once where the system does not.

    Returns:
        The priority that was given, 0 for none.
    """
    if not priority:
        return 0
    try:
        run_first(priority, names)
        go_first(priority)
    except OSError as error:
        how = "docs/nodes.md says how to allow it"
        log.info(f"runs without real-time priority {priority} ({error}); {how}")
        return 0
    return priority


def run_first(priority: int, names: str = "") -> None:
    """Run threads before all others that want the processor (SCHED_FIFO).

    Args:
        priority: 1 to 99.
        names: What their names begin with; all threads without it.

    Raises:
        OSError: The system does not allow it (docs/nodes.md).
    """
    for thread in Path("/proc/self/task").iterdir():
        try:
            if (thread / "comm").read_text().startswith(names):
                os.sched_setscheduler(int(thread.name), os.SCHED_FIFO, os.sched_param(priority))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile


def go_first(priority: int) -> None:
    """Run the calling thread before all others that want the processor (SCHED_FIFO); with 0, in its turn.

    Raises:
        OSError: The system does not allow it.
    """
    kind = os.SCHED_FIFO if priority else os.SCHED_OTHER
    os.sched_setscheduler(0, kind, os.sched_param(priority))


@contextlib.contextmanager
def in_turn() -> Iterator[None]:
    """Let the calling thread, and threads that it makes, wait for the processor like all others meanwhile."""
    priority = os.sched_getparam(0).sched_priority
    if not priority:
        yield
        return
    go_first(0)
    try:
        yield
    finally:
        go_first(priority)
