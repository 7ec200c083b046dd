"""What an archived message says: its text, its HTML, its attachments, and what is searched of it.

Its bytes are verified, then read in a process with limits (`readers`): no mail can hold or end the
process that asks. What can't be read is said in words; only Corrupt is raised.
"""

import contextlib
import datetime as dt
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple, TypeVar

from django.db import transaction

from connectors.types import Body, SpooledBody
from ingestion.errors import Corrupt
from ingestion.mail.attachments import Attachment
from ingestion.mail.body import Contents, Version
from ingestion.mail.child import Request
from ingestion.mail.digest import Digest
from ingestion.mail.headers import Headers, Named, head_of, parse_headers, parse_named
from ingestion.mail.view import Html
from ingestion.models import AlertKind, IngestionSource, Message
from ingestion.models.webhook import Event
from ingestion.packs.store import Extent, store, told_of_tmpdir
from ingestion.services import alerts
from ingestion.services.alerts import Trouble
from ingestion.services.archive import readers
from ingestion.services.archive.readers import Unreadable
from ingestion.services.events import announce

#: Larger than providers take (150 MB). It bounds for how long the bytes are verified.
MAX_BYTES = 200_000_000
#: Of a reader for one message, beside a large message's own bytes. The costliest mail known takes
#: 0.6 s of a core and 160 MB, its attachments apart; the deadline is for a machine that is busy
#: with other things.
CPU_SECONDS = 5
MEMORY_BYTES = 500_000_000
DEADLINE_SECONDS = 20.0
#: For the index nobody waits.
INDEX_DEADLINE_SECONDS = 120.0

_TOO_LARGE = f"Larger than {MAX_BYTES:,} bytes. Download it to read it."
_UNREADABLE = "Nothing but its header can be read within the limits of a reader."
_BEYOND_LIMITS = "It can't be read within the limits of this page. Download it to read it."

#: Who looks at a damaged message looks at others of the same pack.
_TOLD_AGAIN = dt.timedelta(hours=1)

_T = TypeVar("_T")


class Reading(NamedTuple):
    """What a message says, and whom and which messages its header names. `html`: None where there
    is none, or it was not asked for."""

    contents: Contents = Contents()
    named: Named = Named()
    html: Html | None = None


class OpenedAttachment(NamedTuple):
    """An attachment and its decoded bytes, in a temporary file of their size: close it."""

    about: Attachment
    body: SpooledBody


def opened(message: Message) -> Body:
    """Return the exact bytes of a message: close a SpooledBody. Raises Corrupt, which is announced
    too, once an hour of each source."""
    while True:
        try:
            return store().open(
                message.mailbox.source_id,
                message.pack_id,
                Extent(message.pack_offset, message.pack_length),
                sha256=bytes(message.sha256),
                size=message.size_bytes,
            )
        except Corrupt as error:
            if not _moved(message):
                announce_damage(message.mailbox.source, error)
                raise


def _moved(message: Message) -> bool:
    """Tell whether a message lies in another pack now (`compaction`), and look for it there."""
    found = Message.objects.filter(pk=message.pk)
    there = found.values_list("pack_id", "pack_offset", "pack_length").first()
    if there in (None, (message.pack_id, message.pack_offset, message.pack_length)):
        return False
    message.pack_id, message.pack_offset, message.pack_length = there
    return True


def announce_damage(source: IngestionSource, error: Corrupt) -> None:
    """Have it told that bytes are not what was archived, once an hour of each source."""
    about = {"problems": {"corrupt_message": 1}, "message": str(error)}
    with transaction.atomic():
        announce(Event.ARCHIVE_CORRUPT, source, about, once_in=_TOLD_AGAIN)
        text = "A message that was asked for is not what was archived: run verify_archive."
        alerts.begin([Trouble(AlertKind.ARCHIVE_CORRUPT, source, text)])


def whole(message: Message, *, html: bool = True, remote: bool = False) -> Reading:
    """Return what `contents` and `html` do, and more, for one look into the archive. Raises
    Corrupt."""
    if message.size_bytes > MAX_BYTES:
        return Reading(Contents(notes=(_TOO_LARGE,)))
    with _opened(message) as body:
        contents = _contents(body)
        shown = _html(body, remote=remote) if html and contents.has_html else None
        return Reading(contents, parse_named(_head(body)), shown)


def contents(message: Message) -> Contents:
    """Return what a message says; where it can't be read, a note says that. Raises Corrupt."""
    return whole(message, html=False).contents


def html(message: Message, *, remote: bool = False) -> Html:
    """Return a message's HTML, sanitised; only with `remote` its pictures come from elsewhere.
    Where it can't be read, a note says that. Raises Corrupt."""
    if message.size_bytes > MAX_BYTES:
        return Html(notes=(_TOO_LARGE,))
    with _opened(message) as body:
        return _html(body, remote=remote)


def attachment(message: Message, number: int) -> OpenedAttachment | None:
    """Return an attachment by its place in `Contents.attachments`; memory does not grow with it.

    None: there is no such attachment, or it can't be read. Raises Corrupt, and ArchiveUnavailable
    where TMPDIR can't hold it.
    """
    if message.size_bytes > MAX_BYTES:
        return None
    with told_of_tmpdir():
        file = tempfile.TemporaryFile()  # noqa: SIM115 - whoever gets it closes it
    about = None
    try:
        with _opened(message) as body, contextlib.suppress(Unreadable):
            about = _asked("attachment", body, _attachment_of, taker=file, number=number)
    finally:
        if about is None:
            file.close()
    if about is None:
        return None
    return OpenedAttachment(about, SpooledBody(file, os.fstat(file.fileno()).st_size))


def digest(body: Body) -> Digest:
    """Return what is kept of a message for search, lists and threads; what of it could not be read
    is in `defects`. Of what a message holds, nothing makes it raise.

    Where that comes to nothing, the file that was being read is left out; then all of them; then
    all but the header.
    """
    if _size(body) > MAX_BYTES:
        return _digest_of_head(body, _TOO_LARGE)
    skip: list[int] | None = []
    while True:
        with os.fdopen(os.memfd_create("progress"), "w+b", buffering=0) as file:
            try:
                return _asked(
                    "digest",
                    body,
                    _digest_of,
                    deadline_seconds=INDEX_DEADLINE_SECONDS,
                    taker=file,
                    skip=skip,
                )
            except Unreadable:
                at = os.pread(file.fileno(), 20, 0)
        if skip is None:
            return _digest_of_head(body, _UNREADABLE)
        skip = [int(at)] if at.isdigit() and not skip else None


def read(body: Body, *, deadline_seconds: float | None = None) -> Contents:
    """Return what a message says. Raises Unreadable."""
    return _asked("contents", body, _contents_of, deadline_seconds=deadline_seconds)


def text(message: Message, *, deadline_seconds: float) -> str:
    """Return the text of a message. Raises Unreadable, also where it takes longer; and Corrupt."""
    with _opened(message) as body:
        return read(body, deadline_seconds=deadline_seconds).text


@contextlib.contextmanager
def _opened(message: Message) -> Iterator[Body]:
    body = opened(message)
    try:
        yield body
    finally:
        if isinstance(body, SpooledBody):
            body.close()


def _contents(body: Body) -> Contents:
    try:
        return read(body)
    except Unreadable:
        return Contents(notes=(_BEYOND_LIMITS,))


def _html(body: Body, *, remote: bool) -> Html:
    try:
        return _asked("html", body, _html_of, remote=remote)
    except Unreadable:
        return Html(notes=(_BEYOND_LIMITS,))


def _head(body: Body) -> bytes:
    return head_of(next(body.chunks(), b"") if isinstance(body, SpooledBody) else body)


def _size(body: Body) -> int:
    return body.size if isinstance(body, SpooledBody) else len(body)


def _digest_of_head(body: Body, defect: str) -> Digest:
    """Read header fields, and here, as capture does."""
    head = _head(body)
    named = parse_named(head)
    return Digest(
        fields=named.fields,
        participants=named.participants,
        defects=(*named.defects, defect),
        headers=parse_headers(head),
    )


# -- what a reader answers -------------------------------------------------------------------------


def _asked(
    verb: str,
    body: Body,
    made: Callable[[Any], _T],
    *,
    deadline_seconds: float | None = None,
    taker: IO[bytes] | None = None,
    **arguments: object,
) -> _T:
    request = Request(verb, arguments, CPU_SECONDS, MEMORY_BYTES)
    deadline = DEADLINE_SECONDS if deadline_seconds is None else deadline_seconds
    answer = readers.ask(request, body, deadline_seconds=deadline, taker=taker)
    try:
        return made(answer)
    except (
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
    ) as error:  # whoever answered was no longer ours
        raise Unreadable(verb) from error


def _contents_of(said: Any) -> Contents:
    lists = {
        "versions": tuple([Version(*version) for version in said["versions"]]),
        "attachments": tuple([Attachment(*attachment) for attachment in said["attachments"]]),
        "notes": tuple(said["notes"]),
        "defects": tuple(said["defects"]),
    }
    return Contents(**said | lists)


def _html_of(said: Any) -> Html:
    return Html(**said | {"notes": tuple(said["notes"])})


def _attachment_of(said: Any) -> Attachment | None:
    if isinstance(said, int):
        with told_of_tmpdir():
            raise OSError(said, os.strerror(said))
    return Attachment(*said) if said is not None else None


def _digest_of(said: Any) -> Digest:
    headers = Headers(*said["headers"])
    sent_at = dt.datetime.fromisoformat(str(headers.sent_at)) if headers.sent_at else None
    lists = {
        "participants": tuple(
            [(role, address, name) for role, address, name in said["participants"]]
        ),
        "attachments": tuple([Attachment(*attachment) for attachment in said["attachments"]]),
        "defects": tuple(said["defects"]),
        "headers": headers._replace(sent_at=sent_at, defects=tuple(headers.defects)),
    }
    return Digest(**said | lists)
