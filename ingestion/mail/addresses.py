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
_ESCAPED_PAIR = re.compile(r"\\(.)")
#: RFC 5321 section 4.5.3.1: 64 octets, "@", 255 octets.
_MAX_ADDRESS = 320
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


def people(raw: bytes, otherwise: str = "") -> Iterator[tuple[str, str]]:
    """Yield whom a field names: an address in lower case, "" where there is none, and a name. They
    are apart, so that no name passes for an address. Also ";" ends one, as Outlook writes it."""
    names: list[str] = []
    address = comment = ""
    for token, following in itertools.pairwise([*_TOKEN.findall(raw), b",", b""]):
        if token in {b",", b";", b":"}:
            name = " ".join("".join(names).split()) or comment
            if token != b":" and (address or name):  # before ":" is the name of a group
                yield address, name
            names, address, comment = [], "", ""
        elif token.startswith(b"<"):
            address = _bare(token[1:].removesuffix(b">"), otherwise)
        elif token.startswith(b"("):
            comment = decoded(token[1:].removesuffix(b")"), otherwise)[0]
        elif b"@" in token and not token.startswith(b'"') and not following.startswith(b"<"):
            start = token.rfind(b" ", 0, token.index(b"@")) + 1
            names.append(decoded(token[:start], otherwise)[0])
            address = _bare(token[start:].partition(b" ")[0], otherwise)
        else:
            inner = token[1:].removesuffix(b'"') if token.startswith(b'"') else token
            names.append(_ESCAPED_PAIR.sub(r"\1", decoded(inner, otherwise)[0]))


def _bare(raw: bytes, otherwise: str) -> str:
    """Decode an address, without the route before it (RFC 5322 section 4.4), and without the
    apostrophes that Outlook puts around one that is its own name."""
    text = decode(raw, otherwise=otherwise)[0]
    if text.startswith("@"):
        text = text.rpartition(":")[2]
    text = "".join(text.split())
    if text.startswith("'") and text.endswith("'"):
        text = text[1:-1]
    return text.lower()[:_MAX_ADDRESS]


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
