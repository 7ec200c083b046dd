"""What `backup`, `restore` and `move_archive` show while bytes go from one place to another."""

from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from ingestion.management.base import UsageError
from ingestion.packs.store import at
from ingestion.services.operations.backup.place import Place


class Transfer:
    """A bar on stderr: on a terminal, else nothing."""

    def __init__(self) -> None:
        console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TextColumn("{task.fields[about]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("Beginning", total=None, about="")

    def show(self, what: str, done_bytes: int, total_bytes: int, about: str) -> None:
        self._bar.update(
            self._task,
            description=what,
            total=max(total_bytes, done_bytes),
            completed=done_bytes,
            about=about,
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


def place(directory: Path, packs: str | None) -> Place:
    """Return a place of backups. Raises UsageError where the packs' URL is none."""
    try:
        return Place(directory.expanduser().resolve(), at(packs).fresh() if packs else None)
    except ValueError as error:
        raise UsageError(f"--packs: {error}.") from None
