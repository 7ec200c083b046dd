"""A counter on stderr for work whose end is not known: a live line on a terminal, else silence."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.status import Status

from ingestion.management.presentation import printable


class Counting:
    """`with Counting("Verifying") as c: c.show("12 messages")`. Shows nothing in a pipe or log."""

    def __init__(self, what: str) -> None:
        console = Console(stderr=True, highlight=False)
        self._what = printable(what)
        self._status = Status(self._what, console=console) if console.is_terminal else None

    def show(self, about: str) -> None:
        if self._status is not None:
            self._status.update(f"{self._what}: {about}".replace("[", r"\["))

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()
