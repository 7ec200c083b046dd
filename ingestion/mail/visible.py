"""What of a stranger's text people may see: without what a page or a terminal would obey. Pure."""

import re

#: C0 and C1 controls, surrogates, and the marks that reverse the direction of text.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_UNSAFE_IN_LINES = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]"
)


def line(text: str) -> str:
    """Return one line of text, with a space for each character that is unsafe."""
    text = text.strip()
    return text if text.isprintable() else _UNSAFE.sub(" ", text).strip()


def lines(text: str) -> str:
    """Return text of many lines, each ended by "\\n"; tabs stay."""
    return _UNSAFE_IN_LINES.sub(" ", text.replace("\r\n", "\n").replace("\r", "\n"))
