"""Takes an answer of Gmail's apart: what it says of a message, and the bytes, decoded in pieces."""

import binascii
import dataclasses
import json
import re
from typing import Any

from connectors.types import SPOOL_BYTES, Body, SpooledBody

_RAW = re.compile(rb'"raw"\s*:\s*"')
_STEP = 4 << 18  # of base64: a multiple of 4
_STANDARD = bytes.maketrans(b"-_", b"+/")


@dataclasses.dataclass(slots=True)
class Answered:
    """A message as Google gave it."""

    about: dict[str, Any]
    body: Body
    size: int


class Unreadable(Exception):
    """The answer has no bytes that can be decoded."""


def read(content: bytes | bytearray) -> Answered:
    """Take an answer apart without a copy of the whole: json would make two. Raises Unreadable,
    or MessageRefused where there is no room for it."""
    start = _RAW.search(content)
    end = content.find(b'"', start.end()) if start else -1
    if start is None or end < 0:
        raise Unreadable("Google's answer has no message in it.")
    rest = bytes(content[: start.start()]) + b'"raw":null' + bytes(content[end + 1 :])
    try:
        about = json.loads(rest)
    except ValueError:
        raise Unreadable("Google's answer is not valid JSON.") from None
    for padding in (b"=", b"=", b"\\u003d", b"\\u003d"):  # JSON may spell it so
        end -= len(padding) if content.endswith(padding, start.end(), end) else 0
    encoded = memoryview(content)[start.end() : end]
    size = len(encoded) * 3 // 4
    if size <= SPOOL_BYTES:
        body = _decoded(bytes(encoded))
        return Answered(about, body, len(body))
    spooled = SpooledBody.begin()
    try:
        for at in range(0, len(encoded), _STEP):
            spooled.write(_decoded(bytes(encoded[at : at + _STEP])))
    except BaseException:
        spooled.close()
        raise
    return Answered(about, spooled, spooled.size)


def _decoded(text: bytes) -> bytes:
    """Decode base64url, strictly: a lenient decoder would leave out what it does not know."""
    standard = text.translate(_STANDARD)
    try:
        return binascii.a2b_base64(standard + b"=" * (-len(standard) % 4), strict_mode=True)
    except binascii.Error:
        raise Unreadable("Google's answer is not valid base64.") from None
