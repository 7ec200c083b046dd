"""What the figures were measured on: they say little without it."""

import datetime as dt
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path


def describe(directory: Path, fsyncs: Sequence[float]) -> dict[str, str]:
    """Return date, CPU, memory, disk of `directory`, kernel and load, in words.

    `fsyncs`: what `fsync_milliseconds` told in the course of the run; others use the disk too.
    """
    return {
        "date": f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d %H:%M} UTC",
        "cpu": f"{_cpu()}, {os.cpu_count()} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "disk": disk(directory),
        "kernel": f"Linux {platform.release()}",
        "python": f"Python {platform.python_version()}",
        "load": f"load {os.getloadavg()[2]:.1f}",
        "fsync": f"fsync of 1 MB {min(fsyncs):.0f} to {max(fsyncs):.0f} ms",
    }


def _cpu() -> str:
    said = Path("/proc/cpuinfo").read_text()
    found = re.search(r"model name\s*:\s*(.+)", said)
    # Without them SHA-256 takes three to seven times as long, a tenth of an import and more.
    hashes = "with" if re.search(r"\bsha_ni\b|\bsha2\b", said) else "without"
    return f"{found[1] if found else platform.machine()} {hashes} SHA extensions"


def disk(directory: Path) -> str:
    """Return what `directory` lies on, e.g. "ext4 on /dev/vda"."""
    directory.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["df", "--output=fstype,source", str(directory)], capture_output=True, text=True, check=True
    )
    kind, _, source = done.stdout.splitlines()[1].partition(" ")
    return f"{kind} on {source.strip()}"


def fsync_milliseconds(directory: Path) -> float:
    """Return what it takes just now to make one more megabyte durable: the median of ten."""
    path = directory / "fsync.probe"
    taken = []
    with path.open("wb") as file:
        for _ in range(10):
            file.write(os.urandom(1_000_000))
            file.flush()
            started = time.perf_counter()
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - started)
    path.unlink()
    return statistics.median(taken) * 1000
