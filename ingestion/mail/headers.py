"""Mail headers for people, from bytes. Pure; malformed mail yields defects, never an exception.

Capture reads the header's few fields that lists and searches show. Nothing here decides whether
mail is kept, and nothing it returns is ever used as an identity, a path or markup.
"""

import datetime as dt
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ingestion.mail import dates
from ingestion.mail.addresses import addresses, people
from ingestion.mail.visible import line
from ingestion.mail.words import decoded

#: A header larger than this is cut for parsing (never in the archive).
MAX_HEAD_BYTES = 256_000
_MAX_CHARS = 2_000
_MAX_CHARS_OF_RECIPIENTS = 10_000
_MAX_CHARS_OF_ID = 1_000
#: So much of one field is looked at, which is more than is kept of it.
_MAX_FIELD_BYTES = 64_000
_SHORT_BYTES = 200
MAX_PARTICIPANTS = 1_000
MAX_REFERENCES = 100

#: Who writes such a field twice means all of both.
_JOINED = frozenset({"to", "cc", "bcc", "reply-to", "resent-from", "resent-to"})

#: As nearly all mail spells them.
_SPELLED = {
    spelled.encode(): spelled.lower()
    for spelled in ("Subject", "From", "To", "Cc", "CC", "Date", "Message-ID", "Message-Id")
}

#: Begins with a literal, which the regex engine looks for much faster than for "^" or classes.
_FIELD = re.compile(
    rb"\n(subject|from|to|cc|date|message-id)[ \t]*:[ \t]*([^\n]*(?:\n[ \t][^\n]*)*)",
    re.IGNORECASE,
)
_NAMING_FIELD = re.compile(
    rb"\n(from|to|cc|bcc|reply-to|sender|resent-from|resent-to|in-reply-to|references)[ \t]*:"
    rb"[ \t]*([^\n]*(?:\n[ \t][^\n]*)*)",
    re.IGNORECASE,
)
_MORE_PEOPLE = {
    "reply-to": "replyTo",
    "sender": "sender",
    "bcc": "bcc",
    "resent-from": "resentFrom",
    "resent-to": "resentTo",
}
_ROLES = ("from", "to", "cc", "bcc", "reply-to", "sender")
_CHARSET = re.compile(
    rb"\ncontent-type[ \t]*:[^\n]*(?:\n[ \t][^\n]*)*?charset[ \t]*=[ \t]*\"?([\w.:-]{1,40})",
    re.IGNORECASE,
)
_EMPTY_LINE = re.compile(rb"\n\r?\n")
_BOM = b"\xef\xbb\xbf"
_ID = re.compile(rb"<[^<>]*>")
#: What nearly all mail has: nothing in it is decoded, or taken out.
_PLAIN_ID = re.compile(rb"<[!-;=?-~]+>")


#: Takes a field, what charset its bytes are likely in, and how many characters are kept; returns
#: its text and what is wrong.
_Decode = Callable[[bytes, str, int], tuple[str, Sequence[str]]]


class Headers(NamedTuple):
    """Decoded, unfolded, cut to sane lengths; "" or None where absent. `sent_at` is aware UTC."""

    subject: str = ""
    sender: str = ""
    recipients: str = ""
    sent_at: dt.datetime | None = None
    message_id: str = ""
    defects: tuple[str, ...] = ()


class Named(NamedTuple):
    """Whom a message names, and which other messages: what Message has no columns for.

    `fields`, each where there is one: "replyTo", "sender", "bcc", "resentFrom", "resentTo" and
    "inReplyTo" (an id) as text, "references" as ids, eldest first. `participants` are (role,
    address in lower case, name); a role is the field's name in lower case.
    """

    fields: dict[str, str | list[str]] = {}
    participants: tuple[tuple[str, str, str], ...] = ()
    defects: tuple[str, ...] = ()


def head_of(message: bytes | memoryview) -> bytes:
    """Return the header section of a message (at most MAX_HEAD_BYTES), without the empty line."""
    empty_line = _EMPTY_LINE.search(message, 0, MAX_HEAD_BYTES)
    return bytes(message[: empty_line.start() if empty_line else MAX_HEAD_BYTES])


def parse_headers(head: bytes) -> Headers:
    """Decode the fields of a header section. Never raises: what is wrong is in `defects`."""
    fields = _Fields(head, _FIELD)
    if not fields.found:
        fields.defects.append("no header fields")
    if len(head) >= MAX_HEAD_BYTES:
        fields.defects.append("cut: header")
    # Who is named in copy has half of the room, however many are in front.
    cc = fields.read("cc", _people, _MAX_CHARS_OF_RECIPIENTS // 2)
    to = fields.read("to", _people, _MAX_CHARS_OF_RECIPIENTS - len(cc) - len(", "))
    return Headers(
        fields.read("subject", _text, _MAX_CHARS),
        fields.read("from", _people, _MAX_CHARS),
        f"{to}, {cc}" if to and cc else to or cc,
        fields.date(),
        fields.read("message-id", _id, _MAX_CHARS_OF_ID),
        tuple(dict.fromkeys(fields.defects)) if fields.defects else (),
    )


def parse_named(head: bytes) -> Named:
    """Decode whom a header section names. Never raises; `defects` are of these fields alone, and
    of participants beyond MAX_PARTICIPANTS."""
    fields = _Fields(head, _NAMING_FIELD)
    found: dict[str, str | list[str]] = {}
    for name, key in _MORE_PEOPLE.items():
        text = fields.read(name, _people, _MAX_CHARS)
        if text:
            found[key] = text
    in_reply_to = fields.ids("in-reply-to")
    if in_reply_to:
        found["inReplyTo"] = in_reply_to[0]
    references = list(dict.fromkeys(fields.ids("references")))
    if references:
        # The eldest begins the thread, and the newest is what this one answers.
        found["references"] = references[:1] + references[1:][1 - MAX_REFERENCES :]
    everybody = ((role, *who) for role in _ROLES for who in fields.people(role))
    named = list(itertools.islice(dict.fromkeys(everybody), MAX_PARTICIPANTS + 1))
    if len(named) > MAX_PARTICIPANTS:
        fields.defects.append("cut: participants")
    return Named(found, tuple(named[:MAX_PARTICIPANTS]), tuple(dict.fromkeys(fields.defects)))


class _Fields:
    """The fields of a header section that a pattern finds, and what is wrong in them."""

    def __init__(self, head: bytes, pattern: re.Pattern[bytes]) -> None:
        head = b"\n" + head.removeprefix(_BOM)
        self.defects: list[str] = []
        #: By name, as they stand there; b", " between those of a field that is repeated.
        self.found: dict[str, bytes] = {}
        found = self.found
        repeated: dict[str, list[bytes]] = {}
        for spelled, value in pattern.findall(head):
            name = _SPELLED.get(spelled) or spelled.lower().decode()
            # Most have one CR, their last byte: that of the end of the line.
            if -1 < value.find(b"\r") < len(value) - 1 and (
                b"\r" in value.replace(b"\r\n", b"")[:-1]
            ):
                self.defects.append(f"bare CR: {name}")
            if name not in found:
                found[name] = value
            elif name in _JOINED:
                repeated.setdefault(name, [found[name]]).append(value)
            else:
                self.defects.append(f"repeated header: {name}")
        for name, values in repeated.items():
            found[name] = b", ".join([_unfolded(value) for value in values])
        self._otherwise = "" if head.isascii() else _charset(head)

    def read(self, name: str, decode: _Decode, kept: int) -> str:
        raw = self.found.get(name)
        if not raw:
            return ""
        text, own = decode(raw, self._otherwise, kept)
        if own:
            self.defects.extend([f"{defect}: {name}" for defect in own])
        return text

    def people(self, name: str) -> Iterator[tuple[str, str]]:
        """Yield whom a field names: an address in lower case, or "", and a name."""
        value, _ = _looked_at(self.found.get(name, b""))
        for address, called in people(value, self._otherwise):
            yield line(address), line(called)

    def ids(self, name: str) -> list[str]:
        """Return the ids in a field, each in its angle brackets."""
        found = _ID.findall(self.found.get(name, b"")[:_MAX_FIELD_BYTES])
        return [_text(b"".join(raw.split()), self._otherwise, _MAX_CHARS_OF_ID)[0] for raw in found]

    def date(self) -> dt.datetime | None:
        raw = self.found.get("date")
        if not raw:
            return None
        raw = raw[:_SHORT_BYTES]
        found = dates.plain(raw) or dates.parse(_unfolded(raw).decode("latin-1"))
        if found is None:
            self.defects.append("undecodable header: date")
        return found


def _charset(head: bytes) -> str:
    """Return the charset that the message says its text is in, and most likely its 8-bit fields."""
    found = _CHARSET.search(head)
    return found[1].decode("latin-1") if found else ""


def _unfolded(raw: bytes) -> bytes:
    """Join a field's lines. A bare CR is no end of a line, but all behind it was meant to be
    another field: it ends the value."""
    # No regular expression for the space around a line's end: one that looks for it from each of
    # many spaces in a row takes half a minute over 80 kB of them.
    if b"\n" in raw:
        raw = b" ".join([line.strip(b" \t\r") for line in raw.split(b"\n")])
    raw = raw.rstrip(b"\r")
    return raw.partition(b"\r")[0] if b"\r" in raw else raw


def _plain_line(raw: bytes) -> str:
    """Return a field that is ASCII alone as one line."""
    text = raw.decode("ascii").rstrip().lstrip(" ")
    return text if text.isprintable() else line(_unfolded(raw).decode("ascii"))


def _id(raw: bytes, otherwise: str, kept: int) -> tuple[str, Sequence[str]]:
    """Decode a Message-ID: it alone, no comment beside it, no fold within."""
    if plain := _PLAIN_ID.match(raw):
        alone = plain[0]
        if len(alone) <= kept and b"=?" not in alone:
            return alone.decode("ascii"), ()
    found = _ID.search(raw)
    if found is None:
        return _text(raw, otherwise, kept)
    alone = b"".join(found[0].split())
    return _text(alone, otherwise, kept)


def _text(raw: bytes, otherwise: str, kept: int) -> tuple[str, Sequence[str]]:
    """Decode a field of words; return its text and what is wrong with it."""
    if len(raw) <= kept and raw.isascii() and b"=?" not in raw:
        return _plain_line(raw), ()
    value, defects = _looked_at(raw)
    text, sound = decoded(value, otherwise)
    if not sound:
        defects.append("undecodable header")
    text = line(text)
    if len(text) > kept:
        defects.append("cut")
    return text[:kept], defects


def _people(raw: bytes, otherwise: str, kept: int) -> tuple[str, Sequence[str]]:
    """Decode a field of addresses; return them and what is wrong. None of them is cut in itself."""
    return (_short_people if len(raw) <= _SHORT_BYTES else _any_people)(raw, otherwise, kept)


def _any_people(raw: bytes, otherwise: str, kept: int) -> tuple[str, Sequence[str]]:
    if len(raw) <= kept and raw.isascii() and b"=?" not in raw:
        return _plain_line(raw), ()
    value, defects = _looked_at(raw)
    shown: list[str] = []
    room = kept
    for address, sound in addresses(value, otherwise):
        text = line(address)
        if not sound and "undecodable header" not in defects:
            defects.append("undecodable header")
        room -= len(text) + 2
        if room < -2:
            defects.append("cut")
            break
        if text:
            shown.append(text)
    return ", ".join(shown), defects


#: The same people write again and again, and to decode them is a third of the work of a header.
_short_people = functools.lru_cache(maxsize=4_000)(_any_people)


def _looked_at(raw: bytes) -> tuple[bytes, list[str]]:
    value = _unfolded(raw[:_MAX_FIELD_BYTES])
    defects = ["cut"] if len(raw) > _MAX_FIELD_BYTES else []
    if not value.isascii():
        try:
            value.decode("utf-8")  # which RFC 6532 allows
        except UnicodeDecodeError:
            defects.append("8-bit header")
    return value, defects
