"""What one line of a FETCH says of a message: size, date, flags, labels, stable ids. Pure."""

import datetime as dt
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from connectors.generic_imap import wire
from connectors.generic_imap.folders import decoded
from connectors.types import MessageRef

#: The items of a plain answer, in whatever order.
_PLAIN = re.compile(
    rb"\d+ FETCH \((?:(?:UID (\d+)|RFC822\.SIZE (\d+)|FLAGS \(([^()]*)\)"
    rb'|INTERNALDATE "([^"]*)"|MODSEQ \(\d+\)) ?)*\)\s*'
)
_FETCH = re.compile(rb"\d+ FETCH \(", re.IGNORECASE)
_MONTHS = {
    m: i for i, m in enumerate(b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)
}


def reference(
    response: Sequence[bytes], validity: int, *, plain: bool
) -> tuple[int, MessageRef | None]:
    if plain and len(response) == 1 and (match := _PLAIN.fullmatch(response[0])):
        uid, size, flags, date = match.groups()
        if uid is None or flags is None or date is None:
            return 0, None  # unsolicited: only flags
        number = int(uid)
        return number, MessageRef(
            f"{validity}:{number}",
            size_bytes=int(size) if size else None,
            received_at=_internal_date(date),
            labels=_flags(flags),
        )
    values = wire.parse(response)
    items = wire.pairs(values[2]) if len(values) > 2 and isinstance(values[2], list) else {}
    if not isinstance(items.get(b"UID"), bytes) or b"INTERNALDATE" not in items:
        return 0, None
    uid_number = int(items[b"UID"])
    size_text = items.get(b"RFC822.SIZE")
    return uid_number, MessageRef(
        f"{validity}:{uid_number}",
        size_bytes=int(size_text) if size_text and size_text.isdigit() else None,
        stable_id=_object_id(items, b"X-GM-MSGID", b"EMAILID"),
        thread_id=_object_id(items, b"X-GM-THRID", b"THREADID"),
        received_at=_internal_date(items[b"INTERNALDATE"] or b""),
        labels=_labels([*(items.get(b"FLAGS") or ()), *(items.get(b"X-GM-LABELS") or ())]),
    )


def _object_id(items: dict[bytes, Any], *names: bytes) -> str:
    for name in names:
        value = items.get(name)
        if isinstance(value, list):
            value = value[0] if value else None
        if isinstance(value, bytes):
            return wire.printable(value)
    return ""


def _labels(words: Iterable[Any]) -> tuple[str, ...]:
    texts = {decoded(w) for w in words if isinstance(w, bytes)}
    return tuple(sorted(texts - {"\\Recent"}))


@functools.lru_cache(maxsize=1000)  # few sets of flags are all there are
def _flags(words: bytes) -> tuple[str, ...]:
    return _labels(words.split())


def _internal_date(text: bytes) -> dt.datetime | None:
    """Parse " 1-Feb-2024 12:34:56 +0100" (RFC 9051 section 9, date-time: of fixed width)."""
    text = text.strip().rjust(26)
    try:
        local = dt.datetime(  # the zone is taken off below
            int(text[7:11]),
            _MONTHS[text[3:6].title()],
            int(text[:2]),
            int(text[12:14]),
            int(text[15:17]),
            min(int(text[18:20]), 59),
            tzinfo=dt.UTC,
        )
        return local if text[22:] == b"0000" else local - _offset(text[21:])
    except (ValueError, KeyError, OverflowError):
        return None


def _offset(zone: bytes) -> dt.timedelta:
    """Parse "+0100"."""
    offset = dt.timedelta(hours=int(zone[1:3]), minutes=int(zone[3:5]))
    return -offset if zone[:1] == b"-" else offset


def relabelled(response: Sequence[bytes], validity: int) -> tuple[str, tuple[str, ...]] | None:
    if not _FETCH.match(response[0]):
        return None
    values = wire.parse(response)
    items = wire.pairs(values[2]) if len(values) > 2 and isinstance(values[2], list) else {}
    uid = items.get(b"UID")
    if not isinstance(uid, bytes) or b"FLAGS" not in items:
        return None
    words = [*(items[b"FLAGS"] or ()), *(items.get(b"X-GM-LABELS") or ())]
    return f"{validity}:{int(uid)}", _labels(words)
