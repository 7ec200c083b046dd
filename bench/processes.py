"""CPU seconds and peak memory of trees of processes, as /proc tells them."""

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from tests.servers.stack import child_pids

_TICKS = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    return [pid, *(p for child in child_pids(pid) for p in tree(child))]


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process and all below it, those that ended included.

    A process that ends moves its time to its parent, so the difference of two calls is what was
    used between them.
    """
    return sum(_cpu_ticks(p) for p in tree(pid)) / _TICKS


def _cpu_ticks(pid: int) -> int:
    with contextlib.suppress(OSError):
        # The name may hold anything; what follows its parenthesis starts with field 3.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(int(field) for field in fields[11:15])
    return 0


def forget_peaks(pids: Iterable[int]) -> None:
    """Let peak memory be counted from now on."""
    for pid in pids:
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_rss_bytes(pids: Iterable[int]) -> int:
    """Return the most that any of these processes has held at once."""
    peaks = [0]
    for pid in pids:
        with contextlib.suppress(OSError):
            found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
            peaks.append(int(found[1]) * 1024 if found else 0)
    return max(peaks)
