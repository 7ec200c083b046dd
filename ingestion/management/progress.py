"""Watches a run until it ends, with a live bar on a terminal and a line now and then elsewhere.

Everything goes to stderr. What is shown is read from the rows, so it does not matter who does the
work: workers, or this process itself (`--now`). A database that restarts is waited for.
"""

import contextlib
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Self

from django.db import InterfaceError, OperationalError, connection
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from ingestion.management.presentation import duration, printable, size
from ingestion.models import IngestionSource, Run
from ingestion.services.engine import heartbeat
from ingestion.states import SourceStatus

_POLL_SECONDS = 0.4
_LINE_SECONDS = 5.0
#: Work is handed out every 3 s: longer silence than this means that nobody is there to do the work.
_SILENCE_SECONDS = 15.0


class Ended(Exception):
    """The run will not go on by itself: paused, in error or deleted. The text says which."""


def follow(run_id: uuid.UUID) -> Run:
    """Show the run until it is finished and return it. Raises Ended."""
    with _Display() as display:
        while True:
            run = display.show(run_id)
            if run is not None:
                if run.finished_at is not None:
                    return run
                _raise_if_ended(run.source)
            time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def shown_meanwhile(run_id: uuid.UUID) -> Iterator[None]:
    """Show the run while the body works on it in this thread."""
    done = threading.Event()

    def show() -> None:
        try:
            with _Display() as display:
                while not done.wait(_POLL_SECONDS):
                    display.show(run_id, worked_here=True)
                display.show(run_id, worked_here=True)
        finally:
            connection.close()  # this thread's own

    thread = threading.Thread(target=show, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def nobody_works() -> bool:
    """Whether the dispatcher has been silent for so long that nothing will happen by itself."""
    return not heartbeat.last().younger_than(_SILENCE_SECONDS)


def _raise_if_ended(source: IngestionSource) -> None:
    if source.deleted_at is not None:
        raise Ended(f"{source.name} was deleted meanwhile.")
    if source.status == SourceStatus.PAUSED:
        raise Ended(
            f"{source.name} is paused: what is archived is kept. resume_source goes on from there."
        )
    if source.status == SourceStatus.ERROR:
        raise Ended(
            f"{source.name} is in error: {source.status_message} "
            "Mend that, then start it again: it goes on from where it was."
        )


class _Display:
    """One line that tells how far a run is. Not thread-safe."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[about]}"),
            console=self._console,
            transient=False,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("Waiting", total=None, about="")
        self._next_line = 0.0
        self._stage = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def show(self, run_id: uuid.UUID, *, worked_here: bool = False) -> Run | None:
        """Read the run and show it; None where the database does not answer just now."""
        try:
            run = Run.objects.select_related("source").get(pk=run_id)
        except (OperationalError, InterfaceError):
            connection.close()
            self._update("Waiting for the database", None, 0, "")
            return None
        settled = run.messages_done + run.messages_failed
        total = run.messages_total or None
        self._update(_stage(run), total, settled, self._about(run, worked_here=worked_here))
        return run

    def _update(self, stage: str, total: int | None, settled: int, about: str) -> None:
        shown = printable(about)
        self._bar.update(self._task, description=stage, total=total, completed=settled, about=shown)
        now = time.monotonic()
        if self._bar.disable and (now >= self._next_line or stage != self._stage):
            self._next_line, self._stage = now + _LINE_SECONDS, stage
            self._console.print(f"{stage}: {shown}", markup=False, soft_wrap=True)

    def _about(self, run: Run, *, worked_here: bool) -> str:
        known = f"/{run.messages_total:,}" if run.messages_total else ""
        parts = [f"{run.messages_done:,}{known} messages", size(run.bytes_done)]
        if run.finished_at is None:
            if run.messages_per_second:
                parts.append(f"{run.messages_per_second:,.0f} msg/s")
            if run.eta_seconds:
                parts.append(f"ETA {duration(run.eta_seconds)}")
        if run.finished_at is not None:
            took = (run.finished_at - run.started_at).total_seconds()
            parts.append(f"in {duration(took)}")
        if run.messages_failed:
            parts.append(f"{run.messages_failed:,} failed")
        if run.warning:
            parts.append(run.warning)
        elif not worked_here and run.finished_at is None and nobody_works():
            parts.append("no worker is running: start the service, or use --now")
        return ", ".join(parts)


def _stage(run: Run) -> str:
    if run.finished_at is not None:
        return run.get_status_display()
    if run.source.status == SourceStatus.PENDING_AUTH:
        return "Checking credentials"
    if run.discovered_at is None:
        return "Listing mailboxes"
    return "Importing" if run.kind == "import" else "Syncing"
