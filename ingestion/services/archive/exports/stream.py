"""An export at once: its bytes as they are made, for a response or a pipe."""

import contextlib
import datetime as dt
import tempfile
from collections.abc import Callable, Iterator

from django.utils import timezone

from connectors.types import SpooledBody
from ingestion.amounts import counted
from ingestion.errors import Corrupt
from ingestion.models import Message
from ingestion.services.archive import reading
from ingestion.services.archive.exports.formats import FORMATS, Writer
from ingestion.services.archive.exports.items import item
from ingestion.services.archive.exports.selection import Selection


def streamed(
    selection: Selection,
    kind: str,
    *,
    at: dt.datetime | None = None,
    on_progress: Callable[[Writer, Message], None] = lambda *_: None,
) -> Iterator[bytes]:
    """Yield the bytes of an export in a format of FORMATS. Memory grows with neither the number of
    messages nor their sizes; what comes at the end waits in temporary files."""
    with contextlib.ExitStack() as stack:
        manifest, directory, sums = (
            stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)
        )
        writer = FORMATS[kind](manifest, directory, sums, at or timezone.now())
        yield from writer.begin()
        for messages, _ in selection.batches():
            for message in messages:
                yield from added(writer, message)
                on_progress(writer, message)
        yield from writer.end(selection.left_out())


def added(writer: Writer, message: Message) -> Iterator[bytes]:
    """Add a message, verified as it is read; one that can't be is noted with the reason."""
    about = item(message)
    try:
        body = reading.opened(message)
    except Corrupt as error:
        writer.left_out(about, str(error))
        return
    with contextlib.ExitStack() as stack:
        if isinstance(body, SpooledBody):
            stack.callback(body.close)
        yield from writer.message(about, body)


def outcome(done: int, unreadable: int) -> str:
    """Say how much was taken out: "49,999 of 50,000 messages; 1 could not be read"."""
    total = done + unreadable
    if not unreadable:
        return counted(total, "message")
    return f"{done:,} of {total:,} messages; {unreadable:,} could not be read"
