"""The bytes of an mbox file, in the variant that can be undone ("mboxrd"). Pure.

Each line that begins with "From ", or with any number of ">" before it, gets one ">" more; whoever
reads takes one away. Python's `mailbox` quotes "From " alone, which nobody can tell from a line
that was ">From " before.
"""

import datetime as dt
import re
import time
import uuid
from collections.abc import Iterable, Iterator

_FROM = re.compile(rb"\n(>*)From ")
#: The end of a piece that may be the beginning of a "From " at the beginning of a line.
_BEGUN = re.compile(rb"\n>*(F(?:r(?:om?)?)?)?\Z")


def from_line(message_id: uuid.UUID, at: dt.datetime) -> bytes:
    """Return the line that begins a message. RFC 4155 wants an address: this names the message in
    the manifest, and nobody's mail can be sent to it (RFC 2606)."""
    when = time.asctime(at.astimezone(dt.UTC).timetuple())
    return f"From {message_id}@archive.invalid {when}\n".encode()


def quoted(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Quote a message, whose lines may go over any number of pieces."""
    held, begins_line = b"", True
    for chunk in chunks:
        data = (b"\n" if begins_line else b"x") + held + chunk
        begun = _begun(data)
        held = begun or b""
        # ">" that have gone out already stand at the beginning of a line: one more may follow.
        yield _FROM.sub(rb"\n>\1From ", data[: len(data) - len(held)])[1:]
        begins_line = begun is not None
    yield held


def _begun(data: bytes) -> bytes | None:
    """Return what of "From" ends a piece at the beginning of a line, "" too; None elsewhere."""
    match = _BEGUN.search(data, data.rfind(b"\n"))
    return None if match is None else match[1] or b""
