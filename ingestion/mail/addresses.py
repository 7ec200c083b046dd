"""Lists of addresses (RFC 5322 section 3.4): first where each ends, then what its words say.

The order matters: decoded first, a comma in a name would make two people of one, and a name that
holds an address would pass for it. So a name that was encoded and holds specials is shown quoted,
and an encoded word within an address is none (RFC 2047 section 5). Pure, linear, never raises.
"""

import itertools
import re
from collections.abc import Iterator

from ingestion.mail.charsets import decode
from ingestion.mail.words import decoded, pieces

#: A quoted string, an address in angles, a comment, a separator, or text. What has no end goes as
#: far as it can; comments in comments are comments beside each other: all that is only shown.
_TOKEN = re.compile(
    rb'"(?:[^"\\]|\\.)*"?|<[^<>]*>?|\((?:[^()\\]|\\.)*\)?|[,;:]|[^"(<,;:]+', re.DOTALL
)
#: A name with one of these would be read as something else, were it not quoted.
_SPECIALS = frozenset('()<>[]:;@\\,"')
_TO_ESCAPE = re.compile(r'(["\\])')


def addresses(raw: bytes, otherwise: str = "") -> Iterator[tuple[str, bool]]:
    """Yield each address of a field as people read it, with its name and comments, and whether its
    words were sound. `raw` is unfolded; `otherwise` as in `words.decoded`. The name of a group goes
    with the first of its addresses."""
    written: list[str] = []
    sound = True
    for token, following in itertools.pairwise([*_TOKEN.findall(raw), b""]):
        if token == b",":
            yield " ".join("".join(written).split()), sound
            written, sound = [], True
            continue
        text, fits = _read(token, following, otherwise)
        written.append(text)
        sound = sound and fits
    yield " ".join("".join(written).split()), sound


def _read(token: bytes, following: bytes, otherwise: str) -> tuple[str, bool]:
    if token.startswith(b"("):
        return decoded(token, otherwise)
    if token.startswith(b'"') and b"=?" in token:
        return _quoted(token, otherwise)
    of_name = following.startswith(b"<") or b"@" not in token
    if token.startswith((b'"', b"<")) or not of_name:
        return decode(token, otherwise=otherwise)[0], True
    return _name(token, otherwise)


def _name(raw: bytes, otherwise: str) -> tuple[str, bool]:
    parts = list(pieces(raw, otherwise))
    text = "".join([part.text for part in parts])
    sound = all(part.sound for part in parts)
    if all(not part.encoded or _SPECIALS.isdisjoint(part.text) for part in parts):
        return text, sound
    inner = text.strip()
    return text.replace(inner, f'"{_TO_ESCAPE.sub(_ESCAPED, inner)}"'), sound


def _quoted(raw: bytes, otherwise: str) -> tuple[str, bool]:
    """Words are not allowed in quotes, written by many, and decoded by all."""
    parts = list(pieces(raw.removeprefix(b'"').removesuffix(b'"'), otherwise))
    inner = "".join(
        [_TO_ESCAPE.sub(_ESCAPED, part.text) if part.encoded else part.text for part in parts]
    )
    return f'"{inner}"', all(part.sound for part in parts)


_ESCAPED = r"\\\1"
