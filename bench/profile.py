"""Where a worker's time goes during an import: py-spy on its processes, pg_stat_statements beside.

A profiled import is slower and is never among the results.
"""

import contextlib
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import scenarios
from bench.service import Service
from bench.stage import Stage

_SAMPLES_PER_SECOND = 100  # more slows the import down
_SHOWN = 25
_START = re.compile(r"do \(ingestion/tasks|Fetch\._work ")
_OURS = re.compile(r"\((ingestion|connectors)/")


def run(stage: Stage, directory: Path, console: Console) -> None:
    """Import three times; leave a flame graph and raw stacks in `directory`, print a summary."""
    directory.mkdir(parents=True, exist_ok=True)
    service = stage.service
    service.count_statements()
    imported = scenarios.ours(service, stage.main, port=stage.dovecot.port)
    imported()  # not recorded: modules and plans are loaded, connections open
    flame, busy, holding = (
        directory / name for name in ("flamegraph.svg", "stacks.txt", "stacks-gil.txt")
    )
    seconds = {}
    for path, words in (
        (flame, ["--format", "flamegraph"]),
        (busy, ["--format", "raw"]),
        (holding, ["--format", "raw", "--gil"]),
    ):
        service.forget_statements()
        with _recording(service.worker_pid(), path, words):
            seconds[path] = imported().seconds or 0.0
    for title, path in (("running", busy), ("holding the GIL", holding)):
        own, ours = Counter[str](), Counter[str]()
        for frames, count in _stacks(path):
            own[frames[-1]] += count
            ours[next((f for f in reversed(frames) if _OURS.search(f)), "elsewhere")] += count
        sampled = own.total() / _SAMPLES_PER_SECOND
        text = f"Threads of the import {title}: {sampled:.1f} s in {seconds[path]:.1f} s"
        console.print(_table(f"{text}; by the innermost function of ours", ours))
        console.print(_table(f"{text}; by the innermost function", own))
    _show_statements(service, console)
    console.print(f"Flame graph and stacks: {directory}")


@contextlib.contextmanager
def _recording(pid: int, path: Path, words: list[str]) -> Iterator[None]:
    """Record the stacks of a process and its children meanwhile."""
    spy = str(Path(sys.executable).parent / "py-spy")
    path.unlink(missing_ok=True)
    command = [spy, "record", "--pid", str(pid), "--subprocesses", "--function", "--rate"]
    command += [str(_SAMPLES_PER_SECOND), "--output", str(path), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as recorder:
        assert recorder.stdout is not None
        recorder.stdout.readline()  # "Sampling process": it is attached
        try:
            yield
        finally:
            recorder.send_signal(signal.SIGINT)
            recorder.communicate(timeout=60)


def _stacks(path: Path) -> Iterator[tuple[list[str], int]]:
    """Yield (frames from the outermost, samples) of the import's threads, from py-spy's format.

    What Celery does around the task is left away.
    """
    for line in path.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        start = next((n for n, frame in enumerate(frames) if _START.match(frame)), None)
        if start is not None:
            yield frames[start:], int(count)


def _table(title: str, found: Counter[str]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    table.add_column("function")
    total = found.total() or 1
    for frame, count in found.most_common(_SHOWN):
        seconds = count / _SAMPLES_PER_SECOND
        table.add_row(f"{seconds:.2f}", f"{count / total:.0%}", frame)
    return table


def _show_statements(service: Service, console: Console) -> None:
    table = Table(title="PostgreSQL's statements in one import", title_justify="left")
    for heading in ("ms", "calls", "rows"):
        table.add_column(heading, justify="right")
    table.add_column("statement", no_wrap=True)
    for milliseconds, calls, count, text in service.statements(_SHOWN):
        words = " ".join(text.split())[:110]
        table.add_row(f"{milliseconds:,.0f}", f"{calls:,}", f"{count:,}", words)
    console.print(table)
