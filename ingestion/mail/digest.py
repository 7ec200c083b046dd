"""What is kept of a message for search, lists and threads. Pure."""

import itertools
import re
from collections.abc import Callable, Container
from typing import NamedTuple

from ingestion.mail import body, documents
from ingestion.mail.attachments import ATTACHED_MESSAGES, Attachment, attached, is_text
from ingestion.mail.headers import MAX_HEAD_BYTES, Headers, head_of, parse_headers, parse_named
from ingestion.mail.mime import Part, Raw, content, parse, with_line_ends

#: Of all text of a message that is searched.
MAX_TEXT_BYTES = 200_000
PREVIEW_CHARACTERS = 150
#: Messages in messages are read so deep.
_MAX_DEPTH = 3
#: "On Tuesday Ann wrote:", and what Outlook puts there.
_REPLIED = re.compile(
    r"^(?:On|Am|Le|El|Il|Op) [^\n]{1,150}\n?[^\n]{0,80}"
    r"(?:wrote|schrieb|écrit|escribió|scritto|schreef)[^\n]{0,60}:$"
    r"|^-{2,} ?(?:Original Message|Ursprüngliche Nachricht) ?-{2,}$",
    re.MULTILINE,
)
#: A full line of a file in the text (POSIX, uuencode): 45 bytes, which are no words.
_UUENCODED = re.compile(r"^M[ -`]{60}\n", re.MULTILINE)


class Digest(NamedTuple):
    """All of it is text without characters that a page or terminal would obey, and never markup.

    `headers` are Message's own columns, as they are read today. `fields` has what Message has not,
    each where the message has it: "replyTo", "sender", "bcc", "resentFrom", "resentTo",
    "inReplyTo" (an id) as text; "references" as a list of ids, eldest first. `participants` are
    (role, address in lower case, display name) with the roles "from", "to", "cc", "bcc",
    "reply-to" and "sender". `text` is what there is to search in, of the body, of attached messages
    and of readable attachments, cut at MAX_TEXT_BYTES; `defects` says what was cut or not read.
    """

    text: str = ""
    preview: str = ""
    fields: dict[str, str | list[str]] = {}
    participants: tuple[tuple[str, str, str], ...] = ()
    attachments: tuple[Attachment, ...] = ()
    defects: tuple[str, ...] = ()
    headers: Headers = Headers()


def digest(
    raw: Raw, *, skip: Container[int] | None = (), began: Callable[[int], object] = lambda _: None
) -> Digest:
    """Return what is kept of a message, of whatever bytes.

    Parsers of files are not ours and may not come back: `began` is called with the number of each
    file before it is read, and those in `skip` are not read; None: none of them is.
    """
    raw = with_line_ends(raw)
    head = head_of(raw[: MAX_HEAD_BYTES + 1])
    named = parse_named(head)
    contents = body.read(raw, max_characters=body.MAX_TEXT_BYTES)
    text = _Text(skip, began)
    text.take(_words(contents))
    if contents.attachments:
        text.take_attachments(raw, contents.attachments, depth=1)
    return Digest(
        text=text.joined(),
        preview=_preview(contents.text),
        fields=named.fields,
        participants=named.participants,
        attachments=contents.attachments,
        defects=tuple(dict.fromkeys((*named.defects, *contents.defects, *text.defects))),
        headers=parse_headers(head),
    )


def _words(contents: body.Contents) -> str:
    """Return a body's text, and a version that says much more: the plain text of some mail only
    says that it has HTML."""
    more = [
        version.text for version in contents.versions if len(version.text) > 2 * len(contents.text)
    ]
    text = "\n\n".join([contents.text, *more[:1]])
    return _UUENCODED.sub("", text) if "\nbegin " in f"\n{text}" else text


def _preview(text: str) -> str:
    """Return how a text begins, without what it replies to, where there is anything else."""
    beginning = text[: 20 * PREVIEW_CHARACTERS]
    own = _REPLIED.split(beginning, maxsplit=1)[0]
    lines = [line for line in own.splitlines() if not line.startswith(">")]
    folded = " ".join(" ".join(lines).split()) or " ".join(beginning.split())
    return folded[:PREVIEW_CHARACTERS]


class _Text:
    """The text of a message and of what is in it, as far as there is room, and what is not read."""

    def __init__(self, skip: Container[int] | None, began: Callable[[int], object]) -> None:
        self.defects: list[str] = []
        self._skip = skip
        self._began = began
        self._numbers = itertools.count()
        self._pieces: list[str] = []
        self._room = MAX_TEXT_BYTES

    def take(self, text: str) -> None:
        text = text.strip()
        if len(text) > self._room:
            self.defects.append(_CUT)
        text = text[: self._room]
        if text:
            self._pieces.append(text)
            self._room -= len(text) + 2

    def joined(self) -> str:
        text = "\n\n".join(self._pieces)
        encoded = text.encode("utf-8", "replace")
        if len(encoded) <= MAX_TEXT_BYTES:
            return text
        if _CUT not in self.defects:
            self.defects.append(_CUT)
        return encoded[:MAX_TEXT_BYTES].decode("utf-8", "ignore")

    def take_attachments(self, raw: Raw, listed: tuple[Attachment, ...], *, depth: int) -> None:
        for part, attachment in zip(attached(parse(raw).root), listed, strict=True):
            if self._room <= 0:
                self.defects.append(_CUT)
                return
            called = attachment.name or attachment.type
            if part.type in ATTACHED_MESSAGES:
                if self._has_size(attachment, called):
                    self._take_message(_data(raw, part), depth)
            elif not is_text(part):
                self._take_file(raw, part, attachment, called)

    def _take_message(self, raw: Raw, depth: int) -> None:
        raw = with_line_ends(raw)
        headers = parse_headers(head_of(raw[: MAX_HEAD_BYTES + 1]))
        contents = body.read(raw, max_characters=body.MAX_TEXT_BYTES)
        self.defects.extend(contents.defects)
        self.take(f"{headers.subject}\n{headers.sender}\n{headers.recipients}")
        self.take(_words(contents))
        self.take("\n".join([attachment.name for attachment in contents.attachments]))
        if contents.attachments and depth < _MAX_DEPTH:
            self.take_attachments(raw, contents.attachments, depth=depth + 1)
        elif contents.attachments:
            self.defects.append(f"Nested more than {_MAX_DEPTH} deep: files there are not read.")

    def _take_file(self, raw: Raw, part: Part, attachment: Attachment, called: str) -> None:
        reader = documents.reader_of(attachment.type, attachment.name)
        if reader is None:
            return
        number = next(self._numbers)
        if self._skip is None or number in self._skip:
            self.defects.append(
                f"{called}: could not be read in the time and memory for a message."
            )
        elif self._has_size(attachment, called):
            self._began(number)
            charset = part.content_type.plain(b"charset")
            text, defect = documents.text_of(reader, _data(raw, part), charset, self._room)
            self.take(text)
            if defect:
                self.defects.append(f"{called}: {defect}.")

    def _has_size(self, attachment: Attachment, called: str) -> bool:
        if attachment.size_bytes > documents.MAX_FILE_BYTES:
            self.defects.append(f"{called}: larger than {documents.MAX_FILE_BYTES:,} bytes.")
            return False
        return True


def _data(raw: Raw, part: Part) -> bytes:
    return b"".join(content(raw, part))


_CUT = f"Cut: only the first {MAX_TEXT_BYTES:,} bytes of its text are searched."
