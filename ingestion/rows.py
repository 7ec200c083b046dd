"""Rows as text, in PostgreSQL's own forms: psycopg's adaptation of Python lists costs several times
what hashing a message does. Pure, so that the packing process writes them too.
"""

from collections.abc import Iterable

from ingestion.mail.headers import Headers
from ingestion.packs.format import Extent
from ingestion.packs.record import RecordHeader

_NULL = r"\N"
#: COPY's text format: what delimits columns and rows, and the backslash; NUL can't be stored.
_COPY_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r", "\0": ""})


#: What `message` writes.
COLUMNS = (
    "mailbox_id, pack_id, id, sha256, size_bytes, pack_offset, pack_length, received_at,"
    " subject, sender, recipients, sent_at, message_id, defects"
)


def message(
    pk: str, record: RecordHeader, extent: Extent, headers: Headers, *, mailbox: str, pack: str
) -> str:
    """Write the row of a message that is in a pack in COPY's text format, of what its record says,
    where that is, and what the message's own headers say. All ids are hexadecimal digits."""
    defects = copied(array_literal(headers.defects)) if headers.defects else "{}"
    return (
        f"{mailbox}\t{pack}\t{pk}\t\\\\x{record.sha256.hex()}\t{record.size}\t"
        f"{extent.offset}\t{extent.length}\t{record.received_at or _NULL}\t"
        f"{copied(headers.subject)}\t{copied(headers.sender)}\t"
        f"{copied(headers.recipients)}\t{headers.sent_at or _NULL}\t"
        f"{copied(headers.message_id)}\t{defects}\n"
    )


def array_literal(values: Iterable[str]) -> str:
    """Write a PostgreSQL text[] literal."""
    return "{" + ",".join(map(element, values)) + "}"


def element(value: str) -> str:
    """Write one element of a text[] literal."""
    if not value.isascii():
        value = _whole(value)
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\0", "") + '"'


def copied(text: str) -> str:
    """Write a text in COPY's text format."""
    if text.isprintable():
        return text.replace("\\", r"\\")
    return _whole(text).translate(_COPY_ESCAPES)


def _whole(text: str) -> str:
    """Replace half characters, which JSON may name and no database takes."""
    return text.encode("utf-8", "replace").decode("utf-8")
