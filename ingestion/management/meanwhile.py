"""What a command shows on stderr while it works: a live line on a terminal, elsewhere nothing.

An import tells more, and elsewhere too: `management.progress`.
"""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from ingestion.management.presentation import printable


class Meanwhile:
    """`with Meanwhile("Verifying") as shown: shown.count("12 messages")`, where nobody knows how
    much there is; or `shown.bytes(...)`, which has a bar."""

    def __init__(self, what: str) -> None:
        console = Console(stderr=True, highlight=False)
        self._bar = Progress(console=console, transient=True, disable=not console.is_terminal)
        self._bar.columns = _COUNTING
        self._task = self._bar.add_task(printable(what), total=None, about="")

    def count(self, about: str) -> None:
        """Say how far it is."""
        self._bar.update(self._task, about=printable(about))

    def bytes(self, what: str, done: int, total: int, about: str) -> None:
        """Show how much of so many bytes is where it belongs. What was shown last stays."""
        self._bar.columns = _MOVING[: None if self._bar.console.width >= _WIDE else _OF_MOST_USE]
        self._bar.live.transient = False
        self._bar.update(
            self._task,
            description=printable(what),
            total=max(total, done),
            completed=done,
            about=printable(about),
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()


_COUNTING: tuple[ProgressColumn, ...] = (
    SpinnerColumn(),
    TextColumn("{task.description}", markup=False),
    TextColumn("{task.fields[about]}", markup=False),
)
_MOVING: tuple[ProgressColumn, ...] = (
    TextColumn("{task.description}", markup=False),
    BarColumn(bar_width=None),
    DownloadColumn(),
    TimeRemainingColumn(compact=True),
    TextColumn("{task.fields[about]}", markup=False),
)
#: So many columns have room for all of it; fewer, for what comes first.
_WIDE, _OF_MOST_USE = 100, 4
