"""How commands show things: sizes, times, tables for people; camelCase objects for programs.

The objects have the names of the HTTP API, so that a script can read either. Every command starts
with this: what needs services is elsewhere (`management.source_objects`).
"""

import datetime as dt
import io
import sys
import textwrap
from argparse import ArgumentTypeError
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from django.utils import timezone
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ingestion.models import FailedMessage, Mailbox, Run

#: Of a table that is read later: in a file, or in a log.
_WIDTH = 200
_NARROWEST = 40
#: Between two columns.
_GAP = 2
#: An address or an id may be broken.
_LONGEST_WORD = 12


class Bytes(int):
    """How large something is, in a cell of a list."""


#: Of a list: a moment is a past or coming one, and None that there was none.
Cell = str | int | dt.datetime | None


def shown(cell: Cell) -> str:
    """Say what a cell has to people."""
    if isinstance(cell, Bytes):
        return size(cell)
    if isinstance(cell, int):
        return f"{cell:,}"
    return cell if isinstance(cell, str) else when(cell)


def plain(cell: Cell) -> str:
    """Say it to programs: a moment in UTC as ISO 8601 has it, or nothing; bytes as a number."""
    if isinstance(cell, dt.datetime):
        return cell.astimezone(dt.UTC).isoformat(timespec="seconds")
    return "" if cell is None else str(cell)


def limit(text: str) -> int:
    """Read a number of rows. Raises ArgumentTypeError, which argparse shows."""
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= 1_000_000:
        raise ArgumentTypeError("must be a number from 1 to 1,000,000")
    return int(text)


def printable(text: str) -> str:
    """Escape what a terminal would act on: folder names and servers' answers are strangers'."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def size(size_bytes: float) -> str:
    """Say a number of bytes in decimal units: "1.5 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:,.1f} TB"


def duration(seconds: float) -> str:
    """Say a time span roughly: "42 s", "3 min 5 s", "2 h 10 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def when(moment: dt.datetime | None) -> str:
    """Say a moment relative to now: "5 min 0 s ago", "in 20 s", "never"."""
    if moment is None:
        return "never"
    seconds = (timezone.now() - moment).total_seconds()
    return f"{duration(seconds)} ago" if seconds >= 0 else f"in {duration(-seconds)}"


def terminal_columns(stream: Any) -> int | None:
    """Return how wide the terminal is that a stream leads to; None where it leads elsewhere."""
    return max(_NARROWEST, Console(file=stream).width) if stream.isatty() else None


def fitted(text: str, columns: int | None) -> str:
    """Break lines that are wider than the terminal between words, as far in as they begin."""
    if columns is None or max(map(len, text.split("\n"))) <= columns:
        return text
    lines = []
    for line in text.split("\n"):
        indent = " " * (len(line) - len(line.lstrip(" ")))
        # An address, or a name of a file, stays whole to be copied.
        lines += textwrap.wrap(
            line,
            columns,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
    return "\n".join(lines)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    numbers: set[str],
    spare: Sequence[str] = (),
) -> str:
    """Lay out a table as text, as wide as the terminal: what has no room goes on below, within its
    column. The columns named in `numbers` are right-aligned and whole. Where there is no room for
    words, columns are left out: those that are empty, then those in `spare`, one after the other.
    """
    width = terminal_columns(sys.stdout) or _WIDTH
    cells = [[printable(shown(cell)) for cell in row] for row in rows]
    by_name = {name: [row[n] for row in cells] for n, name in enumerate(columns)}
    empty = [name for name, found in by_name.items() if not any(found)]
    widths = _widths(by_name, width, numbers=numbers, spare=[*empty, *spare])
    # The box has a blank between columns itself.
    laid_out = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, _GAP - 1, 0, 0))
    for name, wide in widths.items():
        justify: Literal["left", "right"] = "right" if name in numbers else "left"
        laid_out.add_column(name, justify=justify, overflow="fold", width=wide)
    for row in zip(*(by_name[name] for name in widths), strict=True):
        laid_out.add_row(*map(Text, row))
    page = io.StringIO()
    Console(file=page, width=width, color_system=None).print(laid_out)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines())


def _widths(
    columns: Mapping[str, Sequence[str]], width: int, *, numbers: set[str], spare: Sequence[str]
) -> dict[str, int]:
    """Return which columns there is room for, and how wide each is: as its longest word, and what
    is left goes to those that are narrowest and would have more."""
    full = {name: max(cell_len(text) for text in (name, *cells)) for name, cells in columns.items()}
    widths = {
        name: full[name] if name in numbers else _longest_word([name, *cells])
        for name, cells in columns.items()
    }

    def room() -> int:
        return width - sum(widths.values()) - _GAP * (len(widths) - 1)

    for name in spare:
        if room() < 0:
            widths.pop(name, None)
    while room() > 0 and (more := [name for name in widths if widths[name] < full[name]]):
        widths[min(more, key=widths.__getitem__)] += 1
    while room() < 0:
        widths[max(widths, key=widths.__getitem__)] -= 1
    return widths


def _longest_word(cells: Iterable[str]) -> int:
    longest = max((cell_len(word) for cell in cells for word in cell.split()), default=1)
    return min(longest, _LONGEST_WORD)


def tsv(rows: Iterable[Sequence[Cell]]) -> str:
    """Write rows for `cut` and `awk`: a line each, a tab between the cells, which hold none."""
    return "\n".join("\t".join(printable(plain(cell)) for cell in row) for row in rows)


def run_object(run: Run) -> dict[str, Any]:
    """Return a run as the API shows it."""
    return {
        "id": run.pk,
        "kind": run.kind,
        "status": run.status,
        "message": run.message,
        "warning": run.warning,
        "mailboxesTotal": run.mailboxes_total,
        "mailboxesDone": run.mailboxes_done,
        "messagesTotal": run.messages_total,
        "messagesDone": run.messages_done,
        "messagesNew": run.messages_new,
        "messagesFailed": run.messages_failed,
        "bytesDone": run.bytes_done,
        "messagesPerSecond": run.messages_per_second,
        "etaSeconds": run.eta_seconds,
        "startedAt": run.started_at,
        "finishedAt": run.finished_at,
    }


def mailbox_object(mailbox: Mailbox) -> dict[str, Any]:
    """Return a mailbox as the API shows it, with its last trouble."""
    return {
        "id": mailbox.pk,
        "address": mailbox.address,
        "state": mailbox.state,
        "stateReason": mailbox.state_reason,
        "messageCount": mailbox.message_count,
        "archivedBytes": mailbox.archived_bytes,
        "lastSyncedAt": mailbox.last_synced_at,
        "attempts": mailbox.attempts,
        "lastErrorCode": mailbox.last_error_code,
        "lastError": mailbox.last_error,
    }


def failure_object(failure: FailedMessage) -> dict[str, Any]:
    """Return a failed message as the API shows it."""
    return {
        "id": failure.pk,
        "mailbox": failure.mailbox.address,
        "folder": failure.folder.path,
        "remoteId": failure.remote_id,
        "code": failure.code,
        "reason": failure.reason,
        "attempts": failure.attempts,
        "notBefore": failure.not_before,
        "lastFailedAt": failure.last_failed_at,
    }
