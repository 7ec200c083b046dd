"""How commands show things: sizes, times, tables for people; camelCase objects for programs.

The objects have the names of the HTTP API, so that a script can read either. Every command starts
with this: what needs services is elsewhere (`management.source_objects`).
"""

import datetime as dt
import io
import shutil
import sys
from argparse import ArgumentTypeError
from collections.abc import Iterable, Sequence
from typing import Any

from django.utils import timezone
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ingestion.models import FailedMessage, Mailbox, Run

#: Of a table that is read later: in a file, or in a log.
_WIDTH = 200


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


def counted(number: int, noun: str) -> str:
    """Say "1 message", "2 messages", "1,000 mailboxes"."""
    plural = f"{noun}es" if noun.endswith("x") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


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


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: set[str]) -> str:
    """Lay out a table as text, as wide as the terminal: what has no room goes on below, within its
    column. The columns named in `numbers` are right-aligned and whole."""
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        if column in numbers:
            shown.add_column(column, justify="right", no_wrap=True)
        else:
            shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(printable(cell)) for cell in row))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDTH
    page = io.StringIO()
    Console(file=page, width=width, color_system=None).print(shown)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines())


def tsv(rows: Iterable[Sequence[str]]) -> str:
    """Write rows for `cut` and `awk`: a line each, a tab between the cells, which hold none."""
    return "\n".join("\t".join(map(printable, row)) for row in rows)


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
