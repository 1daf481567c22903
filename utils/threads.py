"""The cores this process may use, and how long its threads waited for one on a busy machine."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_TASKS = Path("/proc/self/task")


def usable_cores() -> int:
    """Cores this process may use: a job's share of a cluster node, for example."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class CoreTime(NamedTuple):
    """Seconds in which the current threads ran, and in which they were runnable but waited for a core."""

    ran: float
    waited: float

    def waited_since(self, earlier: CoreTime) -> float:
        """Share, in [0, 1], of the threads' runnable time since then in which they waited for a core."""
        ran, waited = (max(0.0, now - then) for now, then in zip(self, earlier, strict=True))
        return waited / (ran + waited) if ran + waited else 0.0


def core_time() -> CoreTime:
    """Times as counted by Linux; zeros where unavailable."""
    ran = waited = 0
    for task in _TASKS.glob("*"):
        with suppress(OSError, ValueError):  # the thread has ended, or the kernel doesn't count
            nanoseconds = (task / "schedstat").read_text().split()
            ran, waited = ran + int(nanoseconds[0]), waited + int(nanoseconds[1])
    return CoreTime(ran / 1e9, waited / 1e9)
