"""What a message says, for people: its text, its other versions, its attachments. Pure.

All of the message is looked at, once; whatever is cut, not looked at, or may be read wrongly is
said in `notes`. Linear in the size of the message, never raises, and no more than MAX_TEXT_BYTES of
its texts are decoded: a text of markup alone costs most, about a second for all of them.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from ingestion.mail import html, mime, visible
from ingestion.mail.attachments import Attachment, attached, described, is_text
from ingestion.mail.charsets import decode
from ingestion.mail.mime import Part, Raw

MAX_TEXT_BYTES = 1_000_000
MAX_CHARACTERS = 100_000
MAX_HEADER_CHARACTERS = 50_000

#: WHATWG Encoding section 6: such a mark is believed before any label.
_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16le"), (b"\xfe\xff", "utf-16be"))
_UUENCODED = re.compile(r"^begin [0-7]{3,4} (\S.{0,200})$", re.MULTILINE)
_SEALED = {"application/pkcs7-mime", "application/x-pkcs7-mime"}
_UNCHECKED = "The signature is not checked here."


class Version(NamedTuple):
    """A text that a message has, in whole or for one of its parts. `kind` is "HTML" or "plain
    text"; `text` has no markup, and is "" where HTML has no words."""

    kind: str
    text: str


class Contents(NamedTuple):
    """All of it is text without characters that a page or terminal would obey, and never markup.

    `notes` are sentences about `text` and `attachments`: what they are not, cut or left out; those
    of something that was not read are `defects` too. `has_html`: there is HTML to show.
    """

    text: str = ""
    versions: tuple[Version, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    notes: tuple[str, ...] = ()
    defects: tuple[str, ...] = ()
    headers: str = ""
    headers_note: str = ""
    has_html: bool = False


def read(raw: Raw, *, max_characters: int = MAX_CHARACTERS) -> Contents:
    """Return what a message says, of whatever bytes; each text is cut at a number of characters."""
    raw = mime.with_line_ends(raw)
    structure = mime.parse(raw)
    headers, headers_note = _headers(raw, structure)
    reader = _Reader(raw, structure, max_characters)
    return reader.contents()._replace(headers=headers, headers_note=headers_note)


class _Reader:
    def __init__(self, raw: Raw, structure: mime.Structure, max_characters: int) -> None:
        self._raw = raw
        self._structure = structure
        self._room = MAX_TEXT_BYTES
        self._max_characters = max_characters
        self._versions: list[Version] = []
        self._notes: dict[str, bool] = {}  # each once, in their order, and whether it is a defect

    def contents(self) -> Contents:
        shown = self._read(self._structure.root)
        text = "\n\n".join([piece.text for piece in shown if piece.text])
        is_html = any(piece.kind == "HTML" for piece in shown)
        if not text:
            self._note(self._why_none(is_html=is_html))
        elif is_html:
            self._note("Text of an HTML message.")
        self._note_what_is_in(text)
        self._note_what_was_left_out()
        return Contents(
            text=self._cut(text),
            versions=tuple(
                [version._replace(text=self._cut(version.text)) for version in self._versions]
            ),
            attachments=tuple(
                [described(self._raw, part) for part in attached(self._structure.root)]
            ),
            notes=tuple(self._notes),
            defects=tuple([note for note, is_defect in self._notes.items() if is_defect]),
            has_html=is_html or any(version.kind == "HTML" for version in self._versions),
        )

    def _read(self, part: Part) -> list[Version]:
        """Return the texts of a part that are to be shown, in their order."""
        self._note_protection(part)
        if part.parts:
            read = [self._read(child) for child in part.parts]
            if part.type == "multipart/alternative":
                return self._best(read)
            return [text for texts in read for text in texts]
        if part.type.startswith("multipart/") and part.looked_into:
            if part.end > part.start:
                self._note("Its parts can't be told apart: their text is shown as it is.")
            return [Version("plain text", self._decoded(part).strip())]
        if not is_text(part):
            return []
        text = self._decoded(part)
        if part.type == "text/html":
            return [Version("HTML", html.text_of(text))]
        return [Version("plain text", text.strip())]

    def _best(self, alternatives: list[list[Version]]) -> list[Version]:
        """Choose the plain text, where there is one; what else there is becomes a version, also
        HTML without a word: its pictures may say more than the text does."""
        written = [texts for texts in alternatives if any(text.text for text in texts)]
        plain = [texts for texts in written if all(text.kind != "HTML" for text in texts)]
        chosen = (plain or written or alternatives)[0]
        for texts in alternatives:
            if texts is not chosen:
                self._versions.extend([text for text in texts if text.text or text.kind == "HTML"])
        return chosen

    def _decoded(self, part: Part) -> str:
        """Return a part's text, as far as there is room for it."""
        data = bytearray()
        for piece in mime.content(self._raw, part):
            data += piece
            if len(data) > self._room:
                break
        cut = len(data) > self._room
        if cut:
            self._note_defect(
                f"Cut: only the first {MAX_TEXT_BYTES:,} bytes of its texts are read."
            )
            del data[self._room :]
        self._room -= len(data)
        text, fits = text_of(bytes(data), part, cut=cut)
        if not fits and not data.isascii():
            self._note(
                "It doesn't say its character set, or not rightly: some characters may be wrong."
            )
        return visible.lines(text)

    def _cut(self, text: str) -> str:
        if len(text) > self._max_characters:
            self._note_defect(f"Cut: the first {self._max_characters:,} characters are shown.")
        return text[: self._max_characters]

    def _note(self, note: str) -> None:
        self._notes[note] = False

    def _note_defect(self, note: str) -> None:
        self._notes[note] = True

    def _note_protection(self, part: Part) -> None:
        if part.type == "multipart/signed":
            by = "PGP" if "pgp" in part.content_type.plain(b"protocol") else "S/MIME"
            self._note(f"Signed with {by}. {_UNCHECKED}")
        elif part.type == "multipart/encrypted":
            self._note("Encrypted with PGP: only its recipients can read it.")
        elif part.type in _SEALED:
            if part.content_type.plain(b"smime-type") == "signed-data":
                self._note(f"Signed with S/MIME, and its text is within the seal. {_UNCHECKED}")
            else:
                self._note("Encrypted with S/MIME: only its recipients can read it.")

    def _note_what_is_in(self, text: str) -> None:
        if "-----BEGIN PGP MESSAGE-----" in text:
            self._note("Holds text encrypted with PGP: only its recipients can read it.")
        if "-----BEGIN PGP SIGNED MESSAGE-----" in text:
            self._note(f"Signed with PGP. {_UNCHECKED}")
        names = [visible.line(found[1]) for found in _UUENCODED.finditer(text)]
        if names:
            more = f" and {len(names) - 10:,} more" if len(names) > 10 else ""
            self._note(f"Files are within the text (uuencode): {', '.join(names[:10])}{more}.")

    def _note_what_was_left_out(self) -> None:
        if self._structure.too_many:
            self._note_defect(
                f"It has more than {mime.MAX_PARTS:,} parts: those behind are not shown."
            )
        if self._structure.too_deep:
            self._note_defect(
                f"Nested more than {mime.MAX_DEPTH} deep: what is deeper is not looked at."
            )
        if self._structure.behind:
            self._note_defect(
                f"{self._structure.behind:,} bytes behind the end of its parts are not shown."
            )

    def _why_none(self, *, is_html: bool) -> str:
        if is_html:
            return "This message has no text: its HTML has no words."
        start, end = self._structure.header
        if end > start and not self._structure.has_end:
            return "This message has no text: it has no empty line, and all of it is header."
        return "This message has no text."


def text_of(data: bytes, part: Part, *, cut: bool) -> tuple[str, bool]:
    """Decode a part's text; return it, and whether it is what it says."""
    label, said = part.content_type.plain(b"charset"), ""
    if part.type == "text/html":
        said = html.charset_of(data)
    for mark, charset in _BOMS:
        if data.startswith(mark):
            data, label = data[len(mark) :], charset
    # A cut may lie within a character of up to four bytes.
    for less in range(4 if cut else 1):
        text, fits = decode(data[: len(data) - less], label or said, otherwise=said)
        if fits:
            return text, True
    text, _ = decode(data, label or said, otherwise=said)
    return text, False


def _headers(raw: Raw, structure: mime.Structure) -> tuple[str, str]:
    """Return the header section as text, and what is to be said of it. Each line is decoded by
    itself: programs on its way that wrote them had charsets of their own."""
    start, end = structure.header
    # A character has four bytes at most, so that many hold what is shown.
    section = raw[start : min(end, start + 4 * MAX_HEADER_CHARACTERS)]
    likely = structure.root.content_type.plain(b"charset")
    text = "\n".join(_lines(section, likely))
    if end - start > len(section) or len(text) > MAX_HEADER_CHARACTERS:
        note = f"The first {MAX_HEADER_CHARACTERS:,} characters of {end - start:,} bytes."
        return text[:MAX_HEADER_CHARACTERS], note
    return text, ""


def _lines(section: bytes, likely: str) -> Iterable[str]:
    for line in section.split(b"\n"):
        text, _ = decode(line.rstrip(b"\r"), otherwise=likely)
        yield visible.lines(text)
