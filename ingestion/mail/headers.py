"""Mail headers for people, from bytes. Pure; malformed mail yields defects, never an exception.

Capture reads the header's few fields that lists and searches show. Nothing here decides whether
mail is kept, and nothing it returns is ever used as an identity, a path or markup.
"""

import datetime as dt
import email.errors
import email.header
import email.utils
import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

#: A header larger than this is cut for parsing (never in the archive).
MAX_HEAD_BYTES = 256_000
_MAX_CHARS = {"subject": 2_000, "from": 2_000, "to": 10_000, "message-id": 1_000}

#: Begins with a literal, which the regex engine looks for much faster than for "^" or classes.
_FIELD = re.compile(
    rb"\n(subject|from|to|cc|date|message-id)[ \t]*:[ \t]*([^\n]*(?:\n[ \t][^\n]*)*)",
    re.IGNORECASE,
)
#: So much of one field is looked at. Decoding words takes time that grows with the square of it:
#: 0.2 s for the worst of 16 kB, 5 s for 80 kB, and nothing else runs in the process meanwhile.
_MAX_FIELD_BYTES = 16_000
_SHORT_BYTES = 200
_EMPTY_LINE = re.compile(rb"\n\r?\n")
_ENCODED_GAP = re.compile(r"(\?=)\s+(=\?)")
#: What PostgreSQL text and a terminal must not see: C0/C1 controls, surrogates, bidi overrides.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_DATE = re.compile(
    r"(?:[A-Za-z]{3},?\s+)?(\d{1,2})\s+([A-Za-z]{3})\s+(\d{4})\s+(\d\d):(\d\d)(?::(\d\d))?\s+"
    r"(?:([+-])(\d\d)(\d\d)|(GMT|UTC?))"
)
_MONTHS = {
    name: number
    for number, name in enumerate(
        [
            "jan",
            "feb",
            "mar",
            "apr",
            "may",
            "jun",
            "jul",
            "aug",
            "sep",
            "oct",
            "nov",
            "dec",
        ],
        1,
    )
}


class Headers(NamedTuple):
    """Decoded, unfolded, cut to sane lengths; "" or None where absent. `sent_at` is aware UTC."""

    subject: str = ""
    sender: str = ""
    recipients: str = ""
    sent_at: dt.datetime | None = None
    message_id: str = ""
    defects: tuple[str, ...] = ()


def head_of(message: bytes | memoryview) -> bytes:
    """Return the header section of a message (at most MAX_HEAD_BYTES), without the empty line."""
    empty_line = _EMPTY_LINE.search(message, 0, MAX_HEAD_BYTES)
    return bytes(message[: empty_line.start() if empty_line else MAX_HEAD_BYTES])


def parse_headers(head: bytes) -> Headers:
    """Decode the fields of a header section. Never raises: what is wrong is in `defects`."""
    defects: list[str] = []
    found: dict[bytes, list[bytes]] = {}
    for name, value in _FIELD.findall(b"\n" + head):
        found.setdefault(name.lower(), []).append(value)
    if not found:
        defects.append("no header fields")

    def only(name: bytes) -> bytes:
        values = found.get(name)
        if not values:
            return b""
        if len(values) > 1:
            defects.append(f"repeated header: {name.decode()}")
        return values[0]

    date = only(b"date")
    return Headers(
        subject=_noted(_text(only(b"subject"), "subject"), defects),
        sender=_noted(_people(only(b"from"), "from"), defects),
        recipients=_recipients([*found.get(b"to", ()), *found.get(b"cc", ())], defects),
        sent_at=_date(date, defects) if date else None,
        message_id=_noted(_text(only(b"message-id"), "message-id"), defects),
        defects=tuple(dict.fromkeys(defects)) if defects else (),
    )


def _recipients(fields: list[bytes], defects: list[str]) -> str:
    limit = _MAX_CHARS["to"]
    recipients = ""
    for field in fields:
        if len(recipients) >= limit:
            break
        recipients += (", " if recipients else "") + _noted(_people(field, "to"), defects)
    return recipients[:limit]


def _unfolded(value: str) -> str:
    # No regular expression for the space around a line's end: one that looks for it from each of
    # many spaces in a row takes half a minute over 80 kB of them.
    return " ".join([line.strip(" \t\r") for line in value.split("\n")])


def _noted(found: tuple[str, Sequence[str]], defects: list[str]) -> str:
    text, own = found
    if own:
        defects.extend(own)
    return text


def _people(raw: bytes, name: str) -> tuple[str, Sequence[str]]:
    return (_short_text if len(raw) <= _SHORT_BYTES else _text)(raw, name)


def _text(raw: bytes, name: str) -> tuple[str, Sequence[str]]:
    """Decode a field; return its text and its defects."""
    defects = []
    raw = raw[:_MAX_FIELD_BYTES]
    try:
        value = raw.decode("ascii")
    except UnicodeDecodeError:
        defects.append(f"8-bit header: {name}")
        try:
            value = raw.decode("utf-8")
        except UnicodeDecodeError:
            value = raw.decode("latin-1")
    if "\n" in value:
        value = _unfolded(value)
    if "=?" in value:
        value, sound = _decode_words(value)
        if not sound:
            defects.append(f"undecodable header: {name}")
    value = value.strip()
    if not value.isprintable():
        value = _UNSAFE.sub(" ", value).strip()
    return value[: _MAX_CHARS[name]], defects


#: The same people write again and again, and to decode them is a third of the work of a header.
_short_text = functools.lru_cache(maxsize=4_000)(_text)


def _decode_words(value: str) -> tuple[str, bool]:
    """Decode encoded words (RFC 2047); tell whether all of them were sound."""
    try:
        decoded = email.header.decode_header(_ENCODED_GAP.sub(r"\1 \2", value))
    except (ValueError, email.errors.HeaderParseError):
        return value, False
    parts, sound = [], True
    for piece, charset in decoded:
        if isinstance(piece, str):
            parts.append(piece)
            continue
        try:
            parts.append(piece.decode(charset or "ascii"))
        except (LookupError, ValueError):
            sound = False
            parts.append(piece.decode("utf-8", "replace"))
    return "".join(parts), sound


def _date(raw: bytes, defects: list[str]) -> dt.datetime | None:
    text = raw[:200].decode("latin-1").strip()
    if "\n" in text:
        text = _unfolded(text)
    try:
        return _usual_date(text) or _any_date(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        defects.append("undecodable header: date")
        return None


def _usual_date(text: str) -> dt.datetime | None:
    """Parse what nearly all mail has (RFC 5322 section 3.3), in a tenth of the library's time."""
    match = _DATE.match(text)
    month = _MONTHS.get(match[2].lower()) if match else None
    if match is None or month is None:
        return None
    local = dt.datetime(
        int(match[3]),
        month,
        int(match[1]),
        int(match[4]),
        int(match[5]),
        int(match[6] or 0),
        tzinfo=dt.UTC,  # the offset is taken off below
    )
    if not match[7]:
        return local
    offset = dt.timedelta(hours=int(match[8]), minutes=int(match[9]))
    return local + offset if match[7] == "-" else local - offset


def _any_date(text: str) -> dt.datetime:
    parsed = email.utils.parsedate_to_datetime(text)
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=dt.UTC)
    return parsed.astimezone(dt.UTC)
