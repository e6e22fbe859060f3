# SPDX-License-Identifier: Apache-2.0
"""Real-time priority for threads of this process."""

from __future__ import annotations

import os
from pathlib import Path

# Fast DDS gives its signs of life from a thread of this name.
LIFE = "dds.ev"


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
