"""Text from bytes whose charset was said, wrongly said, or not said. Pure, linear, never raises.

A label means what the WHATWG Encoding standard says that senders mean by it (webencodings has its
table): gb2312 is GBK, shift_jis is Windows' and iso-8859-1 is windows-1252. What mail knows besides
(UTF-7, code pages of DOS, the stateful codes of Korea and China) is added here.
"""

import codecs
import functools
import re

import webencodings

_OF_MAIL = {
    "utf-7": "utf-7",
    "unicode-1-1-utf-7": "utf-7",  # RFC 1642
    "iso-2022-kr": "iso2022_kr",  # RFC 1557
    "hz-gb-2312": "hz",  # RFC 1843
    "utf-16-le": "utf-16-le",
    "utf-16-be": "utf-16-be",
    "utf-32": "utf-32",
    "utf-32le": "utf-32-le",
    "utf-32be": "utf-32-be",
}
_CODE_PAGE = re.compile(r"(?:cp|ibm)-?(\d{3,4})")
_ASCII = frozenset({"us-ascii", "ascii", "ansi_x3.4-1968", "iso646-us", "us", "iso_646.irv:1991"})
#: ISO-2022-JP by its escapes (RFC 1468): each is followed by text in one set of characters.
_JIS_ESCAPE = re.compile(rb"\x1b(\([BJI]|\$[@B])")


def decode(data: bytes, label: str = "", *, otherwise: str = "") -> tuple[str, bool]:
    """Return the text, and whether it is what its label says.

    Tried in turn: `label`, where there is one; UTF-8; `otherwise`, a charset that is likely; then
    UTF-8 with a mark for each byte that does not fit, where most do, or else windows-1252.
    """
    if label:
        text = _strictly(data, label)
        if text is not None:
            return text, True
    text = _strictly(data, "utf-8")
    if text is not None:
        return text, not label
    text = _strictly(data, otherwise) if otherwise else None
    if text is None:
        text = data.decode("utf-8", "replace")
        if 2 * text.count("\ufffd") > sum(character > "\x7f" for character in text):
            text = data.decode("cp1252", "replace")
    return text, False


def _strictly(data: bytes, label: str) -> str | None:
    codec = _codec(label[:40])
    if codec is None:
        return None
    try:
        if codec == "iso2022_jp":
            return _japanese(data)
        return data.decode(codec)
    except (ValueError, LookupError):
        return None


@functools.lru_cache(maxsize=500)
def _codec(label: str) -> str | None:
    """Return the name of Python's codec for a charset's label, None where nobody knows it."""
    label = label.strip().strip("\"'").lower()
    if label in _ASCII:
        return "ascii"  # WHATWG's windows-1252 would take UTF-8 that is called so apart
    known = _OF_MAIL.get(label)
    if known:
        return known
    encoding = webencodings.lookup(label)
    if encoding is not None and encoding.name not in {"replacement", "x-user-defined"}:
        return str(encoding.codec_info.name)
    page = _CODE_PAGE.fullmatch(label)
    try:
        return codecs.lookup(f"cp{page[1]}").name if page else None
    except LookupError:
        return None


def _japanese(data: bytes) -> str:
    """Decode ISO-2022-JP as WHATWG does: with the characters of NEC, which all mailers send and
    Python's codec refuses. They are where Windows' Shift JIS has them. Raises ValueError."""
    parts = []
    state, *rest = [b"(B", *_JIS_ESCAPE.split(data)]
    for piece in (state, *rest):
        if piece in {b"(B", b"(J", b"(I", b"$@", b"$B"} and len(piece) == 2:
            state = piece
        elif state in {b"$@", b"$B"}:
            parts.append(_shift_jis(piece).decode("cp932"))
        elif state == b"(I":
            parts.append(bytes(byte | 0x80 for byte in piece).decode("cp932"))
        else:
            parts.append(piece.decode("ascii"))
    return "".join(parts)


def _shift_jis(pairs: bytes) -> bytes:
    """Turn the bytes of rows and cells (JIS X 0208) into Shift JIS. Raises ValueError."""
    shifted = bytearray()
    rows = pairs.replace(b"\r", b"").replace(b"\n", b"")
    for row, cell in zip(rows[::2], rows[1::2], strict=True):
        if not (0x21 <= row <= 0x7E and 0x21 <= cell <= 0x7E):
            raise ValueError("no character of JIS X 0208")
        first = (row - 0x21) // 2
        shifted.append(first + (0x81 if first < 0x1F else 0xC1))
        if row % 2:
            shifted.append(cell + (0x1F if cell < 0x60 else 0x20))
        else:
            shifted.append(cell + 0x7E)
    return bytes(shifted)
