"""IMAP's syntax (RFC 9051 section 9): arguments on their way out, responses as values. Pure."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

_CAPABILITY = re.compile(rb"(?:^|\[)CAPABILITY ([^\]\r\n]*)", re.IGNORECASE)
_TOKEN = re.compile(rb'[ \r\n]*(?:(\()|(\))|"((?:[^"\\]|\\.|\\\Z)*)(?:"|\Z)|([^ ()"\r\n]+))')
_RANGE = re.compile(rb"(\d{1,19})(?::(\d{1,19}))?")
#: Before anything else a backslash is one that a server forgot to escape.
_ESCAPE = re.compile(rb'\\(["\\])')

#: A parsed response: atoms, strings and literals as bytes, NIL as None, parentheses as lists.
Value = Any


class Literal:
    """An argument that no quoted string can carry."""

    def __init__(self, data: bytes) -> None:
        self.data = data


def string(data: bytes) -> bytes | Literal:
    """Return an argument as a quoted string, or as a literal where it must be one."""
    if re.search(rb"[\x00\r\n\x80-\xff]", data):
        return Literal(data)
    return b'"' + data.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def parse(parts: Sequence[bytes]) -> list[Value]:
    """Parse a response into values. Anything that is no response gives what could be read of it."""
    root: list[Value] = []
    stack = [root]
    for index, part in enumerate(parts):
        if index % 2:
            stack[-1].append(part)
            continue
        for match in _TOKEN.finditer(part):
            opened, closed, quoted, atom = match.groups()
            if opened:
                child: list[Value] = []
                stack[-1].append(child)
                stack.append(child)
            elif closed:
                if len(stack) > 1:
                    stack.pop()
            elif quoted is not None:
                stack[-1].append(_ESCAPE.sub(rb"\1", quoted) if b"\\" in quoted else quoted)
            else:
                stack[-1].append(None if atom.upper() == b"NIL" else atom)
    return root


def capabilities(lines: Iterable[bytes]) -> frozenset[str]:
    """Return what a server tells that it can do: in a response of its own, or in a status line's
    code (RFC 9051 section 7.1)."""
    found = (match[1] for line in lines if (match := _CAPABILITY.search(line)))
    return frozenset(printable(word).upper() for words in found for word in words.split())


def pairs(values: Sequence[Value]) -> dict[bytes, Value]:
    """Read [name, value, name, value ...] as a dictionary with upper-case names."""
    names = (v.upper() if isinstance(v, bytes) else b"" for v in values[::2])
    return dict(zip(names, values[1::2], strict=False))


def ranges(text: bytes) -> Iterator[tuple[int, int]]:
    """Parse a UID set ("1:5,9") into ascending-by-pair (low, high)."""
    for piece in text.split(b","):
        if found := _RANGE.fullmatch(piece):
            first, last = int(found[1]), int(found[2] or found[1])
            yield min(first, last), max(first, last)


def printable(data: bytes) -> str:
    """Return a server's text for people: one line, no controls, at most 300 characters."""
    text = data[:300].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else " " for c in text).strip()
