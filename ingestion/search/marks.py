"""Where a text has what a query asks for: the text in pieces, found and not. Pure, linear.

It goes by the words of `search.words`, as the search does. Pieces, and no places in a text: what
counts characters differs between languages.
"""

from typing import NamedTuple

from ingestion.search import words
from ingestion.search.query import AllOf, AnyOf, Node, Not, Term

#: Of an excerpt, and so much of it before the first word that was found.
_EXCERPT_CHARS = 240
_BEFORE_CHARS = 60
#: A text that is longer is looked through up to here; for more than five words, less of it:
#: characters times words are at most so many, which takes 0.3 s (for 90 phrases it took 9 s).
_MAX_CHARS = 200_000
_MAX_COMPARED = 1_000_000


class Piece(NamedTuple):
    """A part of a text, and whether the query asks for it."""

    text: str
    found: bool


Phrase = list[tuple[str, bool]]


def phrases(node: Node, *names: str) -> list[Phrase]:
    """Return the phrases that a query asks for by terms of these names ("" for words)."""
    if isinstance(node, Not):
        return []
    if isinstance(node, AllOf | AnyOf):
        return [phrase for inner in node.nodes for phrase in phrases(inner, *names)]
    return [_phrase(node)] if node.name in names else []


def _phrase(term: Term) -> Phrase:
    found = words.phrase(term.value)
    return [*found[:-1], (found[-1][0], found[-1][1] or term.prefix)]


def marked(text: str, wanted: list[Phrase]) -> list[Piece]:
    """Return a whole text in pieces; without "" of them."""
    return _pieces(text, _places(text, wanted))


def excerpt(text: str, wanted: list[Phrase]) -> list[Piece]:
    """Return what stands around the first words found, on one line; [] where there are none."""
    compared = max(sum(map(len, wanted)), 1)
    places = _places(text[: min(_MAX_CHARS, _MAX_COMPARED // compared)], wanted)
    if not places:
        return []
    start = max(places[0][0] - _BEFORE_CHARS, 0)
    if start:  # at a word
        start = text.find(" ", start, places[0][0]) + 1 or start
    end = max(start + _EXCERPT_CHARS, places[0][1])
    inside = [(a - start, b - start) for a, b in places if b <= end]
    shown = text[start:end].translate(_BLANKS)
    pieces = _pieces(shown, inside)
    if start:
        pieces.insert(0, Piece("… ", found=False))
    if end < len(text):
        pieces.append(Piece(" …", found=False))
    return pieces


_BLANKS = dict.fromkeys(map(ord, "\n\r\t\x0b\x0c\x85\u2028\u2029"), " ")


def _places(text: str, wanted: list[Phrase]) -> list[tuple[int, int]]:
    """Return where phrases stand, in order and apart from each other."""
    if not wanted:
        return []
    by_first: dict[str, list[Phrase]] = {}
    beginnings: list[Phrase] = []
    for phrase in wanted:
        if phrase[0][1]:
            beginnings.append(phrase)
        else:
            by_first.setdefault(phrase[0][0], []).append(phrase)
    spans = list(words.spans(text))
    found: list[tuple[int, int]] = []
    for number, span in enumerate(spans):
        here = by_first.get(span.lexeme, [])
        for phrase in [*here, *beginnings] if beginnings else here:
            last = number + len(phrase)
            if last <= len(spans) and all(map(_fits, spans[number:last], phrase)):
                start, end = span.start, spans[last - 1].end
                if phrase[-1] == (words.normal(text[start : start + 1]), True):
                    end = start + 1  # a character alone, of a pair
                if found and start < found[-1][1]:
                    found[-1] = found[-1][0], max(found[-1][1], end)
                else:
                    found.append((start, end))
    return found


def _fits(span: words.Span, wanted: tuple[str, bool]) -> bool:
    lexeme, begins = wanted
    return span.lexeme.startswith(lexeme) if begins else span.lexeme == lexeme


def _pieces(text: str, places: list[tuple[int, int]]) -> list[Piece]:
    pieces, at = [], 0
    for start, end in places:
        pieces += [Piece(text[at:start], found=False), Piece(text[start:end], found=True)]
        at = end
    pieces.append(Piece(text[at:], found=False))
    return [piece for piece in pieces if piece.text]
