"""The HTML of a message, made safe to show in a frame that obeys nothing.

This is the first of two walls; the frame's sandbox and Content-Security-Policy are the other one.
nh3 (ammonia, a real HTML parser) keeps known elements and attributes; what would be fetched from
elsewhere is left out; pictures that came with the message are put in. Only the child process, whose
limits are the wall around parsers, may call it.
"""

import base64
import html as text_html
import re
import urllib.parse
from collections.abc import Iterator
from typing import NamedTuple

from ingestion.mail import html, mime, styles
from ingestion.mail.attachments import is_text
from ingestion.mail.body import text_of
from ingestion.mail.mime import Part, Raw, content

#: Of all HTML of a message, decoded; and of its own pictures, each as often as it is shown.
MAX_HTML_BYTES = 1_000_000
MAX_PICTURE_BYTES = 10_000_000
#: Browsers stop at 512; nh3 needs 5 ms here, 2 s for 10,000, and 100 s for 50,000.
MAX_DEPTH = 500

_MORE_TAGS = {"font", "big", "address", "main", "section", "figure", "nobr"}
_ATTRIBUTES = {
    "*": set(
        "align background bgcolor border cellpadding cellspacing class color colspan dir face"
        " height hspace id lang nowrap rowspan size start style type valign value vspace"
        " width alt".split()
    ),
    "a": {"href"},
    "img": {"src"},
}
_HIDDEN = {"script", "style", "title", "template", "iframe", "object", "svg", "math", "noembed"}
_SCHEMES = {"http", "https", "mailto", "tel", "cid", "data"}
_LINKED = ("http:", "https:", "mailto:", "tel:")
_FETCHED = ("http:", "https:")
#: Pictures by how they begin, whatever their part or URI says that they are.
_PICTURES = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
    (re.compile(rb"BM"), "image/bmp"),
)
_DATA = re.compile(r"data:image/(?:png|jpe?g|gif|webp|bmp);base64,[A-Za-z0-9+/=\s]*", re.IGNORECASE)
_APART = re.compile(r"<(?:!--|style(?=[\s/>]))", re.IGNORECASE)
_END_OF_STYLE = re.compile(r"</style", re.IGNORECASE)
_BODY = re.compile(r"<(/?)body(?=[\s/>])", re.IGNORECASE)
_TAG = re.compile(r"<(/?)([a-zA-Z][^\s/>]*)")
#: They are not within each other, because they have no end or HTML lets it be left out.
_FLAT = frozenset(
    "area base basefont bgsound br col embed frame hr img input link meta param source track wbr"
    " p li dd dt td th tr tbody thead tfoot colgroup html head body option".split()
)
#: As nh3 writes it: each attribute in quotes, and nothing in them that ends them.
_LINK = re.compile(r'<a((?: [a-z]+="[^"]*")*?) href="([^"]*)"')


class Html(NamedTuple):
    """`markup` is sanitised, "" where the message has no HTML. `remote` is how many things of it
    would have been fetched from elsewhere, and were left out. `notes` are sentences about it."""

    markup: str = ""
    remote: int = 0
    notes: tuple[str, ...] = ()


def html_of(raw: Raw, *, remote: bool = False) -> Html:
    """Return a message's HTML, of whatever bytes; with `remote`, its pictures may be fetched."""
    return _View(mime.with_line_ends(raw), remote=remote).html()


def picture_type(data: bytes) -> str:
    """Return the type of a picture by how it begins, "" for what is none that is shown."""
    return next((kind for beginning, kind in _PICTURES if beginning.match(data)), "")


class _View:
    def __init__(self, raw: Raw, *, remote: bool) -> None:
        self._raw = raw
        self._remote = remote
        self._left_out = 0
        self._notes: dict[str, None] = {}  # each once, in their order
        self._parts = list(_leaves(mime.parse(raw).root))
        self._by_id = {part.id: part for part in self._parts if part.id}
        self._room = MAX_PICTURE_BYTES

    def html(self) -> Html:
        texts = [part for part in self._parts if part.type == "text/html" and is_text(part)]
        room = MAX_HTML_BYTES
        shown = []
        for part in texts:
            data = b"".join(content(self._raw, part))
            if len(data) > room:
                self._note(f"Cut: only the first {MAX_HTML_BYTES:,} bytes of its HTML are shown.")
            text, _ = text_of(data[:room], part, cut=len(data) > room)
            room -= min(len(data), room)
            shown.append(self._cleaned(text))
        if not texts:
            self._note("This message has no HTML.")
        return Html("\n<hr>\n".join(shown), self._left_out, tuple(self._notes))

    def _cleaned(self, markup: str) -> str:
        import nh3  # noqa: PLC0415 - most messages are read by others

        markup, css = _apart(markup)
        style = styles.of_element(css, remote=self._remote)
        self._left_out += style.remote
        cleaned = nh3.clean(
            self._cut_deep(_BODY.sub(r"<\1div", markup)),
            tags=nh3.ALLOWED_TAGS - {"map", "area"} | _MORE_TAGS,
            clean_content_tags=_HIDDEN,
            attributes=_ATTRIBUTES,
            attribute_filter=self._attribute,
            url_schemes=_SCHEMES,
            url_relative=lambda url: f"https:{url}" if url.startswith("//") else None,
            set_tag_attribute_values={"a": {"target": "_blank"}},
        )
        # Where a link leads is shown by pointing at it; it is escaped already.
        cleaned = _LINK.sub(r'<a\1 href="\2" title="\2"', cleaned)
        return f"<style>\n{style.css}</style>\n{cleaned}" if style.css else cleaned

    def _cut_deep(self, markup: str) -> str:
        at = _too_deep_from(markup)
        if at is None:
            return markup
        self._note(f"Nested more than {MAX_DEPTH} deep: from there on it is shown as text.")
        return f"{markup[:at]}<pre>{text_html.escape(html.text_of(markup[at:]))}</pre>"

    def _attribute(self, _tag: str, name: str, value: str) -> str | None:
        if name == "style":
            style = styles.of_attribute(value, remote=self._remote)
            self._left_out += style.remote
            return style.css or None
        if name == "href":
            return value if value.lower().startswith(_LINKED) else None
        if name in {"src", "background"}:
            return self._picture(value.strip())
        return value

    def _picture(self, url: str) -> str | None:
        scheme = url[:6].lower()
        if scheme.startswith("cid:"):
            return self._own_picture(url[4:])
        if scheme.startswith("data:"):
            return url if _DATA.fullmatch(url) else None
        if url.startswith("//"):
            url, scheme = f"https:{url}", "https:"
        if not scheme.startswith(_FETCHED):
            return None
        if self._remote:
            return url
        self._left_out += 1
        return None

    def _own_picture(self, cid: str) -> str | None:
        part = self._by_id.get(urllib.parse.unquote(cid).strip())
        if part is None:
            return None
        data = b"".join(content(self._raw, part)) if part.end - part.start < 2 * self._room else b""
        if not data or len(data) > self._room:
            self._note(f"Its pictures beyond {MAX_PICTURE_BYTES:,} bytes are not shown.")
            return None
        kind = picture_type(data)
        if not kind:
            return None
        self._room -= len(data)
        return f"data:{kind};base64,{base64.b64encode(data).decode()}"

    def _note(self, note: str) -> None:
        self._notes[note] = None


def _leaves(part: Part) -> Iterator[Part]:
    if part.parts:
        for child in part.parts:
            yield from _leaves(child)
    else:
        yield part


def _apart(markup: str) -> tuple[str, str]:
    """Return markup without its comments and styles, and the CSS of those."""
    pieces: list[str] = []
    css: list[str] = []
    at = 0
    while found := _APART.search(markup, at):
        pieces.append(markup[at : found.start()])
        if found[0] == "<!--":
            end = markup.find("-->", found.start() + 2)  # "<!-->" is one too
            at = len(markup) if end < 0 else end + 3
            continue
        start = markup.find(">", found.end()) + 1
        closing = _END_OF_STYLE.search(markup, start) if start else None
        if closing is None:
            at = len(markup)
            break
        css.append(markup[start : closing.start()])
        at = markup.find(">", closing.end()) + 1 or len(markup)
    pieces.append(markup[at:])
    return "".join(pieces), "\n".join(css)


def _too_deep_from(markup: str) -> int | None:
    """Return where markup is nested deeper than MAX_DEPTH, if it is. An end tag closes only what
    has its name, so that none makes it look flat."""
    if markup.count("<") <= MAX_DEPTH:
        return None
    opened: dict[str, int] = {}
    depth = 0
    for tag in _TAG.finditer(markup):
        name = tag[2].lower()
        if name in _FLAT:
            continue
        if not tag[1]:
            opened[name] = opened.get(name, 0) + 1
            depth += 1
            if depth > MAX_DEPTH:
                return tag.start()
        elif opened.get(name):
            opened[name] -= 1
            depth -= 1
    return None
