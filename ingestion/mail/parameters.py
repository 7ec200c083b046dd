"""Content-Type and Content-Disposition: a word, and parameters (RFC 2045, 2183, 2231). Pure.

Linear, never raises. File names come in every form that a mailer ever wrote: continued and with a
charset (RFC 2231), in encoded words (which RFC 2047 forbids there, and all decode), or raw.
"""

import re
import urllib.parse

from ingestion.mail import visible
from ingestion.mail.charsets import decode
from ingestion.mail.words import decoded

#: So much of a field is read: a mailer's limit is 998 bytes a line.
_MAX_FIELD_BYTES = 8_000
_MAX_NAME_CHARACTERS = 200
_WORD = re.compile(rb"[ \t\r\n]*([^\s;,()=\"]+)")
_PARAMETER = re.compile(rb';\s*([^\s=;"]+)\s*=\s*("(?:[^"\\]+|\\.)*"?|[^;]*)', re.DOTALL)
_ESCAPED = re.compile(rb'\\(["\\])')
#: RFC 2231: name*0, name*1*, name*
_CONTINUED = re.compile(rb"([^*]+)\*(\d{1,3})(\*?)")


class Field:
    """A field's word, lower-case, and its parameters. `Field(b"")` is one that is not there."""

    def __init__(self, raw: bytes) -> None:
        raw = raw[:_MAX_FIELD_BYTES].replace(b"\r\n", b"").replace(b"\n", b"")
        word = _WORD.match(raw)
        self.word = word[1].decode("latin-1").lower() if word else ""
        self._parameters: dict[bytes, bytes] = {}
        for name, value in _PARAMETER.findall(raw):
            self._parameters.setdefault(name.lower(), _unquoted(value))

    def raw(self, name: bytes) -> bytes:
        """Return a parameter as it stands there, without its quotes."""
        return self._parameters.get(name, b"")

    def plain(self, name: bytes) -> str:
        """Return a parameter that is a token, such as a charset."""
        return self.raw(name).decode("latin-1").strip().lower()

    def text(self, name: bytes) -> str:
        """Return a parameter of words, such as a file's name."""
        extended = self._parameters.get(name + b"*")
        if extended is not None:
            return _extended([(extended, True)])
        pieces = self._continued(name)
        if any(is_extended for _, is_extended in pieces):
            return _extended(pieces)
        return decoded(b"".join([piece for piece, _ in pieces]) or self.raw(name))[0]

    def _continued(self, name: bytes) -> list[tuple[bytes, bool]]:
        """Return the pieces of a parameter in their order, and whether each is percent-encoded."""
        found = {}
        for key, value in self._parameters.items():
            piece = _CONTINUED.fullmatch(key)
            if piece and piece[1] == name:
                found[int(piece[2])] = (value, bool(piece[3]))
        return [found[number] for number in sorted(found)]


def file_name(disposition: Field, content_type: Field) -> str:
    """Return the name of a part as a file's, as `safe_name` has it; "" where it has none."""
    return safe_name(disposition.text(b"filename") or content_type.text(b"name"))


def safe_name(text: str) -> str:
    """Return a stranger's text as a name that is safe to show and to save under.

    Nothing of it leads into another directory (RFC 2183 section 2.3), and it is cut in the middle:
    what it ends with says what it is.
    """
    name = visible.line(text).replace("/", "_").replace("\\", "_")
    if name.startswith("."):
        name = "_" + name[1:]
    if len(name) > _MAX_NAME_CHARACTERS:
        name = f"{name[: _MAX_NAME_CHARACTERS - 41]}…{name[-40:]}"
    return name


def _unquoted(value: bytes) -> bytes:
    if value.startswith(b'"'):
        return _ESCAPED.sub(rb"\1", value[1:].removesuffix(b'"'))
    return value.strip()


def _extended(pieces: list[tuple[bytes, bool]]) -> str:
    """Decode charset'language'text, where only some pieces may be percent-encoded."""
    first, first_is_extended = pieces[0]
    charset = b""
    if first_is_extended and first.count(b"'") >= 2:
        charset, _, first = first.split(b"'", 2)
    octets = [
        urllib.parse.unquote_to_bytes(piece) if extended else piece
        for piece, extended in [(first, first_is_extended), *pieces[1:]]
    ]
    return decode(b"".join(octets), charset.decode("latin-1"))[0]
