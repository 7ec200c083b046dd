"""A message's text for people, from bytes of strangers. Pure; plain text, never markup.

The stored bytes are what counts; this only shows what the mail is about. It parses with limits, so
that no crafted mail can hold a web process: size, depth, the number of parts and the length of each
header are all bounded, and character sets whose decoders are not linear are not used.
"""

import codecs
import dataclasses
import email.errors
import email.message
import email.parser
import email.policy
import html
import re

#: What of a message is parsed, and what of its text is shown.
MAX_BYTES = 256_000
MAX_CHARACTERS = 20_000
_MAX_BOUNDARIES = 200
_HIDDEN = frozenset({"script", "style", "head", "title", "template"})
_BREAKS = frozenset({"p", "br", "div", "tr", "li", "h1", "h2", "h3", "table", "blockquote"})
#: Controls but tab and newline, surrogates, and the marks that reverse the direction of text.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_TAG = re.compile(r"<([!?/]?[a-zA-Z][a-zA-Z0-9]*)")
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")


#: The library reads a header's parameters in quadratic time: 204 s for 256 kB of semicolons.
_MAX_HEADER_CHARACTERS = 2_000
#: Python's decoders of these take seconds for 100 kB, and no mail is in them.
_NO_CHARSETS = frozenset({"punycode", "idna"})


class _ShortHeaders(type(email.policy.compat32)):  # type: ignore[misc] # its class is private
    """compat32, with each header cut."""

    def header_source_parse(self, sourcelines: list[str]) -> tuple[str, str]:
        name, value = super().header_source_parse(sourcelines)
        return name, value[:_MAX_HEADER_CHARACTERS]


_POLICY = _ShortHeaders()


@dataclasses.dataclass(frozen=True, slots=True)
class Preview:
    """`note` says what the text is not: from HTML, cut, or why there is none."""

    text: str = ""
    note: str = ""
    parts: tuple[str, ...] = ()


def preview(start: bytes) -> Preview:
    """Return the text of a message from its first MAX_BYTES. Never raises on malformed mail."""
    start = start[:MAX_BYTES]
    if start.count(b"boundary") > _MAX_BOUNDARIES or start.count(b"\n--") > _MAX_BOUNDARIES * 10:
        return Preview(note="Too deeply nested for a preview. Download it to read it.")
    try:
        message = email.parser.BytesParser(policy=_POLICY).parsebytes(start)
        parts = [part for part in message.walk() if not part.is_multipart()]
        return _chosen(parts)
    except (RecursionError, email.errors.MessageError, LookupError, ValueError, TypeError):
        return Preview(note="Too malformed for a preview. Download it to read it.")


def _chosen(parts: list[email.message.Message]) -> Preview:
    described = tuple(_description(part) for part in parts if not _is_body(part))
    for kind in ("text/plain", "text/html"):
        for part in parts:
            if part.get_content_type() != kind or not _is_body(part):
                continue
            text = _decoded(part)
            if kind == "text/html":
                text = text_of_html(text)
            if text.strip():
                notes = ["Text of an HTML message."] if kind == "text/html" else []
                if len(text) > MAX_CHARACTERS:
                    notes.append(f"The first {MAX_CHARACTERS:,} characters.")
                return Preview(text[:MAX_CHARACTERS].strip(), " ".join(notes), described)
    return Preview(note="This message has no text.", parts=described)


def _is_body(part: email.message.Message) -> bool:
    return part.get_content_maintype() == "text" and not part.get_filename()


def _description(part: email.message.Message) -> str:
    name = _safe(str(part.get_filename() or "unnamed"))
    return f"{name[:200]} ({_safe(part.get_content_type())[:100]})"


def _decoded(part: email.message.Message) -> str:
    raw = part.get_payload(decode=True)
    if not isinstance(raw, bytes):
        return ""
    return _safe(raw.decode(_charset(part), "replace"))


def _charset(part: email.message.Message) -> str:
    try:
        name = codecs.lookup(part.get_content_charset() or "utf-8").name
        "".encode(name)  # raises where it is a codec of something else than text
    except LookupError:
        return "utf-8"
    return "utf-8" if name in _NO_CHARSETS else name


def _safe(text: str) -> str:
    return _UNSAFE.sub(" ", text.replace("\r\n", "\n").replace("\r", "\n"))


def text_of_html(markup: str) -> str:
    """Return the words of HTML without its tags; what it returns is text and must be escaped.

    A scan in linear time: html.parser takes 13 s for 64 kB of unfinished tags.
    """
    pieces: list[str] = []
    at = 0
    while (tag := markup.find("<", at)) >= 0:
        pieces.append(markup[at:tag])
        at, shown = _after_tag(markup, tag)
        pieces.append(shown)
    pieces.append(markup[at:])
    return _BLANK_LINES.sub("\n\n", _safe(html.unescape("".join(pieces)))).strip()


def _after_tag(markup: str, start: int) -> tuple[int, str]:
    """Return where the text goes on after what begins with "<" at `start`, and what it shows."""
    if markup.startswith("<!--", start):
        return _past(markup, "-->", start + 4), ""
    name = _TAG.match(markup, start)
    if name is None:
        return start + 1, "<"
    end = _past(markup, ">", start)
    tag = name[1].lower()
    if tag in _HIDDEN:
        closing = re.compile(f"</{tag}", re.IGNORECASE).search(markup, end)
        return (closing.start() if closing else len(markup)), ""
    return end, "\n" if tag.removeprefix("/") in _BREAKS else ""


def _past(markup: str, what: str, start: int) -> int:
    found = markup.find(what, start)
    return len(markup) if found < 0 else found + len(what)
