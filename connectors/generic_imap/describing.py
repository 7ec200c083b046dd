"""What one line of a FETCH says of a message: size, date, flags, labels, stable ids. Pure."""

import datetime as dt
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from connectors.generic_imap import syntax
from connectors.generic_imap.folders import MAX_DIGITS, decoded
from connectors.types import MessageRef

#: What is asked of a message that is listed.
ITEMS = "UID RFC822.SIZE INTERNALDATE FLAGS"
#: What is asked with its body, which itself tells the size: some servers read the message for that.
ITEMS_WITH_BODY = "UID INTERNALDATE FLAGS BODY.PEEK[]"
#: The roles that a single message may have: Gmail's All Mail holds drafts beside the rest.
ROLES = frozenset({"drafts"})

#: The items of a plain answer, in whatever order.
_ITEMS = (
    rb"(?:(?:UID (\d{1,10})|RFC822\.SIZE (\d+)|FLAGS \(([^()]*)\)"
    rb'|INTERNALDATE "([^"]*)"|MODSEQ \(\d+\)) ?)*'
)
_PLAIN = re.compile(_ITEMS)
_PLAIN_RESPONSE = re.compile(rb"\d+ FETCH \(" + _ITEMS + rb"\)\s*")
_FEW_BYTES = 500
#: Gmail's have 225 at most; what is much longer no index takes.
_LABEL_CHARACTERS = 255
_UID = re.compile(rb"\bUID (\d{1,10})(?!\d)", re.IGNORECASE)
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_LIST = re.compile(rb"\([^()]*\)")
_FETCH = re.compile(rb"\d+ FETCH \(", re.IGNORECASE)
_MONTHS = {
    m: i for i, m in enumerate(b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)
}


def uid_of(items: bytes) -> int | None:
    """Return whose items these are, of the text around a body: a flag may be called "UID" too, and
    the next one "7"."""
    match = _UID.search(_LIST.sub(b"", _STRING.sub(b"", items)))
    return int(match[1]) if match else None


def items_of(response: Sequence[bytes]) -> dict[bytes, Any]:
    """Return the items of a FETCH response, as [text, literal, text, ...] without "* ", by name."""
    values = syntax.parse(response)
    return syntax.pairs(values[2]) if len(values) > 2 and isinstance(values[2], list) else {}


def reference(
    response: Sequence[bytes], validity: int, *, plain: bool
) -> tuple[int, MessageRef | None]:
    """Return what a response to ITEMS (and stable ids, unless `plain`) says, and of which UID;
    (0, None) for one that does not describe a message."""
    if plain and len(response) == 1 and (match := _PLAIN_RESPONSE.fullmatch(response[0])):
        uid, size, flags, date = match.groups()
        if uid is None or flags is None or date is None:
            return 0, None  # unsolicited: only flags
        return int(uid), MessageRef(
            f"{validity}:{int(uid)}",
            size_bytes=number(size),
            received_at=_internal_date(date),
            labels=_flags(flags),
        )
    items = items_of(response)
    uid = number(items.get(b"UID"))
    if uid is None or b"INTERNALDATE" not in items:
        return 0, None
    gmail_labels = items.get(b"X-GM-LABELS") or ()
    return uid, MessageRef(
        f"{validity}:{uid}",
        size_bytes=number(items.get(b"RFC822.SIZE")),
        stable_id=_object_id(items, b"X-GM-MSGID", b"EMAILID"),
        thread_id=_object_id(items, b"X-GM-THRID", b"THREADID"),
        received_at=_internal_date(items[b"INTERNALDATE"]),
        labels=_labels([*(items.get(b"FLAGS") or ()), *gmail_labels]),
        roles=tuple(ROLES) if b"\\Draft" in gmail_labels else (),
    )


def described(ref: MessageRef, items: bytes) -> MessageRef:
    """Return a reference with what the items around a body say of it: anything or nothing."""
    size: Any
    date: Any
    flags: bytes | None
    if (match := _PLAIN.fullmatch(items)) is not None:
        _, size, flags, date = match.groups()
    else:
        found = syntax.pairs(syntax.parse([items]))
        size, date = found.get(b"RFC822.SIZE"), found.get(b"INTERNALDATE")
        words = found.get(b"FLAGS")
        flags = b" ".join(_words(words)) if isinstance(words, list) else None
    received_at = _internal_date(date) if isinstance(date, bytes) else None
    return MessageRef(
        ref.remote_id,
        number(size) or ref.size_bytes,
        ref.stable_id,
        ref.thread_id,
        received_at or ref.received_at,
        ref.labels if flags is None else _flags(flags),
        ref.roles,
    )


def number(value: Any) -> int | None:
    """Read a number that a database takes; None where it is none."""
    if isinstance(value, bytes) and value.isdigit() and len(value) < MAX_DIGITS:
        return int(value)
    return None


def _words(values: Iterable[Any]) -> list[bytes]:
    return [value for value in values if isinstance(value, bytes)]


def _object_id(items: dict[bytes, Any], *names: bytes) -> str:
    for name in names:
        value = items.get(name)
        if isinstance(value, list):
            value = value[0] if value else None
        if isinstance(value, bytes):
            return syntax.printable(value)
    return ""


def _labels(words: Iterable[Any]) -> tuple[str, ...]:
    texts = {decoded(word)[:_LABEL_CHARACTERS] for word in _words(words)}
    return tuple(sorted(texts - {"\\Recent"}))


def _flags(words: bytes) -> tuple[str, ...]:
    return _few_flags(words) if len(words) <= _FEW_BYTES else _labels(words.split())


@functools.lru_cache(maxsize=1000)  # few sets of flags are all there are
def _few_flags(words: bytes) -> tuple[str, ...]:
    return _labels(words.split())


def _internal_date(value: Any) -> dt.datetime | None:
    """Parse " 1-Feb-2024 12:34:56 +0100" (RFC 9051 section 9, date-time: of fixed width). None for
    anything else: it costs the message its date, and nothing more."""
    if not isinstance(value, bytes):
        return None
    text = value.strip().rjust(26)
    time = text[12:20].lstrip().rjust(8, b"0").decode("latin-1")
    if time.endswith(":60"):  # a leap second
        time = f"{time[:-2]}59"
    try:
        local = dt.datetime.fromisoformat(f"{_day(text[:11])}T{time}+00:00")
        return local if text[22:] == b"0000" else local - _offset(text[21:])
    except (ValueError, KeyError, OverflowError):
        return None


@functools.lru_cache(maxsize=2_000)  # a folder's messages are of few days: all else is quicker
def _day(text: bytes) -> str:
    """Return " 1-Feb-2024" as ISO 8601 has it. Raises ValueError or KeyError."""
    return f"{int(text[7:]):04}-{_MONTHS[text[3:6].title()]:02}-{int(text[:2]):02}"


def _offset(zone: bytes) -> dt.timedelta:
    """Parse "+0100". No place on earth is more than 14 hours off."""
    offset = dt.timedelta(hours=int(zone[1:3]), minutes=int(zone[3:5]))
    if offset > dt.timedelta(hours=14):
        raise ValueError("no time zone")
    return -offset if zone[:1] == b"-" else offset


def relabelled(response: Sequence[bytes], validity: int) -> tuple[str, tuple[str, ...]] | None:
    """Return the remote id and the labels that a response with UID and FLAGS tells, if it does."""
    if not _FETCH.match(response[0]):
        return None
    items = items_of(response)
    uid = number(items.get(b"UID"))
    if uid is None or b"FLAGS" not in items:
        return None
    words = [*(items[b"FLAGS"] or ()), *(items.get(b"X-GM-LABELS") or ())]
    return f"{validity}:{uid}", _labels(words)
