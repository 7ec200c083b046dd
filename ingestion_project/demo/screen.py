"""What the demo shows: steps with ticks and progress bars; plain lines where no terminal is."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator

from rich.console import Console
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

_LINE_EVERY_SECONDS = 5.0


@dataclasses.dataclass
class Step:
    """A step under way; what it found goes into `detail`."""

    detail: str = ""


class Screen:
    """A terminal, or a log."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.live = self.console.is_terminal

    def title(self, name: str, text: str) -> None:
        if self.live:
            self.console.print(
                Panel(text, title=f"[bold]{name}[/]", title_align="left", expand=False)
            )
        else:
            self.console.print(f"{name}: {text}", soft_wrap=True)

    @contextlib.contextmanager
    def step(self, label: str) -> Iterator[Step]:
        """Show that something is being done, then that it is done and how long it took."""
        step, began = Step(), time.monotonic()
        try:
            with self.console.status(f"{label} …") if self.live else contextlib.nullcontext():
                yield step
        except BaseException:
            self.line(label, step.detail, ok=False, seconds=time.monotonic() - began)
            raise
        self.line(label, step.detail, ok=True, seconds=time.monotonic() - began)

    def line(self, label: str, detail: str, *, ok: bool, seconds: float | None = None) -> None:
        mark = "[bold green]✓[/]" if ok else "[bold red]✗[/]"
        took = f" [dim]({seconds:.1f} s)[/]" if seconds is not None else ""
        self.console.print(
            f" {mark} [bold]{label:<14}[/] {detail}{took}", soft_wrap=True, emoji=False
        )

    @contextlib.contextmanager
    def bar(self, label: str) -> Iterator["Bar"]:
        """Show progress until the block ends."""
        if not self.live:
            yield _Lines(self.console, label)
            return
        progress = Progress(
            SpinnerColumn(),
            TextColumn(f"[bold]{label:<14}[/]"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
        with progress:
            yield _Live(progress)

    def table(self, title: str, rows: list[tuple[str, str]]) -> None:
        table = Table.grid(padding=(0, 2))
        for name, value in rows:
            table.add_row(f"[bold]{name}[/]", value)
        if self.live:
            self.console.print(
                Panel(table, title=f"[bold]{title}[/]", title_align="left", expand=False)
            )
            return
        self.console.print(title)
        for name, value in rows:
            self.console.print(f"  {name}: {value}", soft_wrap=True)


class Bar:
    """Where something stands: `done` of `total`, and what else there is to say."""

    def show(self, done: float, total: float, text: str, /) -> None:
        raise NotImplementedError


class _Live(Bar):
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None, text="")

    def show(self, done: float, total: float, text: str, /) -> None:
        self._progress.update(self._task, completed=done, total=total or None, text=text)


class _Lines(Bar):
    def __init__(self, console: Console, label: str) -> None:
        self._console, self._label = console, label
        self._next = time.monotonic() + _LINE_EVERY_SECONDS

    def show(self, _done: float, _total: float, text: str, /) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _LINE_EVERY_SECONDS
            self._console.print(f"   {self._label}: {text}", soft_wrap=True)
