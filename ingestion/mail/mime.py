"""The structure of a message (RFC 2045, 2046): its parts, where each lies, and their bytes. Pure.

One pass over the lines that begin with "--", with the open boundaries in a dict: linear in the size
of the message whatever it holds, in one more copy of its largest header, and it never raises. An
attached message is one part: what is in it is another message's.
"""

import binascii
import dataclasses
import mmap
import re
from collections.abc import Iterator
from typing import Final

from ingestion.mail.parameters import Field

#: A message as bytes, or as the mapped file of a large one.
Raw = bytes | mmap.mmap

#: Far more than mailers make, and few enough for a page.
MAX_DEPTH: Final = 200
MAX_PARTS: Final = 1_000
_CHUNK_BYTES = 1_000_000

_BOM = b"\xef\xbb\xbf"
_LINE_ENDS = re.compile(rb"[\r\n]*")
#: A header ends at an empty line, and at a delimiter where that was forgotten.
_END_OF_HEADER = re.compile(rb"\n\r*\n|\n--")
_ANY_FIELD = re.compile(rb"\n(?:>?From |[^\s:]+[ \t]*:)")
_FIELD = re.compile(
    rb"\ncontent-(type|transfer-encoding|disposition|id)[ \t]*:[ \t]*([^\n]*(?:\n[ \t][^\n]*)*)",
    re.IGNORECASE,
)
_DELIMITER = re.compile(rb"\n--([^\n]{0,8002})")
_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]{1,60}/[a-z0-9!#$&^_.+-]{1,100}")
_NOT_BASE64 = bytes(
    set(range(256)) - set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")
)


@dataclasses.dataclass(slots=True)
class Part:
    """A part: its fields, and from where to where its content lies in the message.

    `type` is well-formed and lower-case, `id` without its brackets. `parts` has what a multipart
    holds: one that never begins has none, and one that lies too deep is not `looked_into`.
    """

    type: str
    content_type: Field
    disposition: Field
    encoding: str
    id: str
    start: int
    end: int
    looked_into: bool = True
    parts: list["Part"] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class Structure:
    """A message's parts. `header` is where its own header lies; `has_end` says whether an empty
    line ends it."""

    root: Part
    header: tuple[int, int]
    has_end: bool
    too_many: bool = False
    too_deep: bool = False
    #: How many bytes lie behind the end of a multipart, in no part.
    behind: int = 0


def with_line_ends(raw: Raw) -> Raw:
    """Return a message with ends of lines, where what ends them was lost on the way."""
    if raw.find(b"\n") < 0 and raw.find(b"\r") >= 0:
        return raw[:].replace(b"\r", b"\n")
    return raw


def parse(raw: Raw) -> Structure:
    """Return the structure of a message, of whatever bytes."""
    start = len(_BOM) if raw[: len(_BOM)] == _BOM else 0
    first = _LINE_ENDS.match(raw, start)
    start = first.end() if first else start
    root, end, has_end = _begun(raw, start, start, "text/plain")
    structure = Structure(root, (start, end), has_end)
    _Walk(raw, structure).go()
    return structure


class _Walk:
    """The pass over a message's delimiters. The part that is read now ends at the next of them;
    a multipart, whose preamble is passed, does not."""

    def __init__(self, raw: Raw, structure: Structure) -> None:
        self._raw = raw
        self._structure = structure
        self._open: list[tuple[bytes, Part]] = []
        #: Where each boundary is in `_open`, the innermost last.
        self._levels: dict[bytes, list[int]] = {}
        self._count = 1
        self._now: Part | None = None

    def go(self) -> None:
        root = self._structure.root
        self._enter(root)
        if not self._open:
            return
        closed: int | None = None
        for found in _DELIMITER.finditer(self._raw, max(0, root.start - 1)):
            line = found[1].rstrip(b" \t\r")
            levels = self._levels.get(line)
            closes = not levels and line.endswith(b"--")
            if closes:
                levels = self._levels.get(line[:-2])
            if not levels:
                continue
            if closed is not None:
                self._count_behind(closed, found.start())
                closed = None
            end = found.start() - (self._raw[found.start() - 1 : found.start()] == b"\r")
            self._leave(levels[-1] + (0 if closes else 1), end)
            if closes:
                closed = found.end()
                if not self._open:
                    break
            elif self._count == MAX_PARTS:
                self._structure.too_many = True
                return
            else:
                self._add(found.end())
        if closed is not None:
            self._count_behind(closed, len(self._raw))

    def _count_behind(self, start: int, end: int) -> None:
        self._structure.behind += len(self._raw[start:end].strip())

    def _add(self, line_end: int) -> None:
        self._count += 1
        _, parent = self._open[-1]
        default = "message/rfc822" if parent.type == "multipart/digest" else "text/plain"
        part, _, _ = _begun(self._raw, line_end, line_end + 1, default)
        parent.parts.append(part)
        self._enter(part)

    def _enter(self, part: Part) -> None:
        self._now = part
        boundary = part.content_type.raw(b"boundary").rstrip()
        if not part.type.startswith("multipart/") or not boundary:
            return
        if len(self._open) == MAX_DEPTH:
            self._structure.too_deep, part.looked_into = True, False
            return
        self._levels.setdefault(boundary, []).append(len(self._open))
        self._open.append((boundary, part))
        self._now = None

    def _leave(self, level: int, end: int) -> None:
        """End the part that is read now and all multiparts from `level` on."""
        if self._now is not None:
            self._now.end = max(self._now.start, end)
            self._now = None
        while len(self._open) > level:
            boundary, part = self._open.pop()
            self._levels[boundary].pop()
            part.end = max(part.start, end)


def _begun(raw: Raw, search: int, start: int, default: str) -> tuple[Part, int, bool]:
    """Return the part whose header begins at `start`, where that ends, and whether by an empty
    line. Its end is sought from `search` on: a part may begin with the empty line."""
    found = _END_OF_HEADER.search(raw, search)
    end = found.start() if found else len(raw)
    header = b"\n" + raw[start:end]
    has_end = found is not None and not found[0].endswith(b"-")
    content = (found.end() if has_end else end + 1) if found else end
    if end > start and not _ANY_FIELD.search(header):
        end, content, has_end = start, start, True  # no field in it: it is text already
    fields: dict[bytes, bytes] = {}
    for field in _FIELD.finditer(header):
        fields.setdefault(field[1].lower(), field[2])
    content_type = Field(fields.get(b"type", b""))
    part = Part(
        type=_type(content_type, default),
        content_type=content_type,
        disposition=Field(fields.get(b"disposition", b"")),
        encoding=Field(fields.get(b"transfer-encoding", b"")).word,
        id=_id(fields.get(b"id", b"")),
        start=min(content, len(raw)),
        end=len(raw),
    )
    return part, end, has_end


def _id(raw: bytes) -> str:
    return b"".join(raw.split()).removeprefix(b"<").removesuffix(b">").decode("latin-1")


def _type(field: Field, default: str) -> str:
    if _TYPE.fullmatch(field.word):
        return field.word
    # RFC 2045 section 5.2: a type that can't be read is text. A file is none, whoever named it so.
    return "application/octet-stream" if field.word and field.raw(b"name") else default


def content(raw: Raw, part: Part) -> Iterator[bytes]:
    """Yield the decoded bytes of a part, about a megabyte at a time. What is in no encoding that
    is known comes as it is."""
    pieces = (
        raw[at : min(at + _CHUNK_BYTES, part.end)]
        for at in range(part.start, part.end, _CHUNK_BYTES)
    )
    if part.encoding == "base64":
        return _of_base64(pieces)
    if part.encoding == "quoted-printable":
        return _of_quoted_printable(pieces)
    return pieces


def _of_base64(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Decode to the first "=", behind which mailing lists write their footers."""
    digits = b""
    for piece in pieces:
        digits, pad, _ = (digits + piece.translate(None, _NOT_BASE64)).partition(b"=")
        if pad:
            break
        whole = len(digits) - len(digits) % 4
        yield binascii.a2b_base64(digits[:whole])
        digits = digits[whole:]
    digits = digits[: len(digits) - (len(digits) % 4 == 1)]  # six bits alone are no byte
    yield binascii.a2b_base64(digits + b"=" * (-len(digits) % 4))


def _of_quoted_printable(pieces: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        data = rest + piece
        end = data.rfind(b"\n") + 1
        if not end:  # a megabyte of one line: only what an "=" begins is kept together
            escape = data.rfind(b"=", len(data) - 2)
            end = escape if escape >= 0 else len(data)
        rest = data[end:]
        yield binascii.a2b_qp(data[:end])
    yield binascii.a2b_qp(rest)
