"""What a query asks of words, as tsqueries: what the index of words answers. Pure."""

import re
from collections.abc import Iterable

from ingestion.search import words
from ingestion.search.query import AllOf, AnyOf, Node, Not, Term


def any_tag(found: Iterable[str]) -> str:
    return "(" + " | ".join(map(words.quoted, found)) + ")"


def tsquery(node: Node) -> str | None:
    """Return the tsquery that finds exactly what a node asks for; None where words can't tell."""
    if isinstance(node, Not):
        inner = tsquery(node.node)
        return inner and f"!({inner})"
    if isinstance(node, AllOf | AnyOf):
        parts = [tsquery(inner) for inner in node.nodes]
        known = [f"({part})" for part in parts if part]
        joint = " & " if isinstance(node, AllOf) else " | "
        return joint.join(known) if known and len(known) == len(parts) else None
    return _of_term(node)


def _of_term(term: Term) -> str | None:
    match term.name:
        case "":
            return _phrase(term)
        case "from" | "to" | "cc" | "bcc":
            return _of_people(term)
        case "subject":
            return _tagged_phrase(term, "A")
        case "filename":
            whole = words.quoted(words.tag("filename", term.value))
            return f"{whole}{':*' * term.prefix} | ({_tagged_phrase(term, 'C')})"
    tag = _tag(term)
    return tag and words.quoted(tag)


_ADDRESS = re.compile(r"[^\s<>@,;]+@[^\s<>@,;]+")


def _of_people(term: Term) -> str:
    """An address is that one, and nobody's whose words it has: those of a message are of all whom
    it names."""
    bare = term.value.lstrip("<'").rstrip(">',;")  # it may be copied out of a list of them
    address = _ADDRESS.fullmatch(bare)
    values = [bare, term.value] if address else [term.value.removeprefix("@")]
    tags = (words.quoted(words.tag(term.name, value)) for value in dict.fromkeys(values))
    whole = " | ".join(f"{tag}{':*' * term.prefix}" for tag in tags)
    return whole if address else f"{whole} | ({_tagged_words(term)})"


def _tag(term: Term) -> str | None:
    match term.name:
        case "has":
            return words.HAS_ATTACHMENT
        case "type":
            return words.tag("type", term.value.removeprefix("."))
        case "message-id":
            return words.id_tag(term.value)
        case "sha256":
            return words.sha256_tag(term.value)
    return None


def _lexemes(term: Term) -> list[tuple[str, bool]]:
    """Return the words of a term, and of each whether it is the beginning of one."""
    found = words.phrase(term.value)
    return [*found[:-1], (found[-1][0], found[-1][1] or term.prefix)]


def _phrase(term: Term, weight: str = "") -> str:
    marks = {False: f":{weight}" if weight else "", True: f":*{weight}"}
    return " <-> ".join(f"{words.quoted(word)}{marks[begins]}" for word, begins in _lexemes(term))


def pairs(node: Node) -> set[int]:
    """Return the numbers of neighbours that all that a node finds has."""
    if not isinstance(node, Term) or node.name not in {"", "subject"}:
        return set()
    whole = [word for word, begins in _lexemes(node) if not begins]
    return set(map(words.pair, whole, whole[1:]))


def _tagged_words(term: Term) -> str:
    return " & ".join(
        f"{words.quoted(f'={term.name}:{word}')}{':*' * begins}" for word, begins in _lexemes(term)
    )


def _tagged_phrase(term: Term, weight: str) -> str:
    """Each word by its tag, which the index answers alone; their order by their places."""
    tagged = _tagged_words(term)
    return f"{tagged} & ({_phrase(term, weight)})" if len(_lexemes(term)) > 1 else tagged


def of_sizes(term: Term) -> str:
    """Return the tsquery of what may be larger or smaller, by the bits of its size."""
    bits = int(term.value).bit_length()
    sizes = range(bits, _MAX_BITS) if term.name == "larger" else range(bits + 1)
    return any_tag(words.size_tag(size) for size in sizes)


#: Of a size in bytes that the query language takes, and of any message.
_MAX_BITS = 72


def begins_with(node: Node) -> bool:
    """Tell whether the index can begin with a node: it names words that are there."""
    if isinstance(node, Term):
        return True
    if isinstance(node, Not):
        return False
    return (any if isinstance(node, AllOf) else all)(map(begins_with, node.nodes))


def ranked(node: Node) -> list[str]:
    """Return the tsqueries of the words that are asked for: what relevance goes by."""
    if isinstance(node, Not):
        return []
    if isinstance(node, AllOf | AnyOf):
        return [query for inner in node.nodes for query in ranked(inner)]
    if node.name == "":
        return [f"({_phrase(node)})"]
    return [f"({_phrase(node, 'A')})"] if node.name == "subject" else []
