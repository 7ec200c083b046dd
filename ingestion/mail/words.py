"""Encoded words of header fields (RFC 2047), decoded where they stand. Pure, linear, never raises.

All else stays as it is, and may be raw UTF-8 (RFC 6532) or what an old mailer wrote.
"""

import binascii
import re
from collections.abc import Iterator
from typing import NamedTuple

from ingestion.mail.charsets import decode

#: A word; `*language` is RFC 2231 section 5. Blanks inside, or none around, are seen often enough.
_WORD = re.compile(rb"=\?([^?*\s]+)(?:\*[^?\s]*)?\?([qQbB])\?([^?]*)\?=")
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]+")


class Piece(NamedTuple):
    """A part of a field: its text, whether it was encoded, and then whether it is what it says."""

    text: str
    encoded: bool
    sound: bool


def decoded(raw: bytes, otherwise: str = "") -> tuple[str, bool]:
    """Return a field's text, and whether its words were sound. `otherwise` is the charset that
    bytes beside them are likely in."""
    parts = list(pieces(raw, otherwise))
    return "".join([part.text for part in parts]), all(part.sound for part in parts)


def pieces(raw: bytes, otherwise: str = "") -> Iterator[Piece]:
    """Yield the parts of a field in their order; words of one charset that follow each other are
    one, because a character may be split between them."""
    label, waiting, end = "", b"", 0
    for word in _WORD.finditer(raw):
        between = raw[end : word.start()]
        charset = word[1].decode("latin-1").lower()
        if waiting and (between.strip() or charset != label):
            yield _of_word(waiting, label)
            waiting = b""
        if between.strip() or (between and not end):
            yield _beside(between, otherwise)
        label, waiting, end = charset, waiting + _bytes(word[2], word[3]), word.end()
    if waiting:
        yield _of_word(waiting, label)
    if end < len(raw):
        yield _beside(raw[end:], otherwise)


def _beside(data: bytes, otherwise: str) -> Piece:
    return Piece(decode(data, otherwise=otherwise)[0], encoded=False, sound=True)


def _of_word(data: bytes, label: str) -> Piece:
    text, sound = decode(data, label)
    return Piece(text, encoded=True, sound=sound)


def _bytes(encoding: bytes, text: bytes) -> bytes:
    if encoding in b"qQ":
        return binascii.a2b_qp(text, header=True)
    digits = _NOT_BASE64.sub(b"", text)
    digits = digits[: len(digits) - (len(digits) % 4 == 1)]  # six bits alone are no byte
    return binascii.a2b_base64(digits + b"=" * (-len(digits) % 4))
