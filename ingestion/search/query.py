"""The query language: text to a tree and back. Pure, linear, bounded; QueryError is all it raises.

    all   = any { any }                     each of them: annual report
    any   = one { "OR" one }                binds tighter, as Gmail has it: a b OR c is a (b OR c)
    one   = [ "-" ] ( term | "(" all ")" )
    term  = [ operator ":" ] value          from:(a OR b) is (from:a OR from:b)
    value = quoted | characters without blanks, quotes and parentheses [ "*" ]
    quoted = '"' any characters '"'         a '"' among them stands twice: label:"12"" vinyl"
           | any other quote, characters without quotes, any quote

What has no letter or digit is no word: it is left out, as people write "Smith & Sons".
"""

import dataclasses
import datetime as dt
import re
import uuid
from collections.abc import Callable
from typing import Union

from ingestion.search import words

MAX_LENGTH = 2_000
MAX_TERMS = 100
MAX_DEPTH = 20


class QueryError(ValueError):
    """Not a query; the text says what is wanted. `position`: where, in characters from 0."""

    def __init__(self, text: str, position: int) -> None:
        super().__init__(text)
        self.position = position


@dataclasses.dataclass(frozen=True, slots=True)
class Term:
    """A condition. `name` is an operator, or "" for words; `value` as `OPERATORS` made it.

    `prefix`: the last word of the value may go on.
    """

    name: str
    value: str
    prefix: bool = False

    def __str__(self) -> str:
        operator = f"{self.name}:" if self.name else ""
        if _BARE.fullmatch(self.value) and not (
            self.value.endswith("*")
            or (not self.name and self.value in _JOINTS and not self.prefix)
            or (not self.name and _OPERATOR.match(self.value))
            or (not self.name and self.value.startswith("-"))
        ):
            return f"{operator}{self.value}{'*' * self.prefix}"
        doubled = self.value.replace('"', '""')
        return f'{operator}"{doubled}"'


@dataclasses.dataclass(frozen=True, slots=True)
class Not:
    node: "Node"

    def __str__(self) -> str:
        return f"-{_grouped(self.node)}"


@dataclasses.dataclass(frozen=True, slots=True)
class AllOf:
    """Each of its nodes; without one it is every message."""

    nodes: "tuple[Node, ...]" = ()

    def __str__(self) -> str:
        return " ".join(_grouped(n) if isinstance(n, AnyOf) else str(n) for n in self.nodes)


@dataclasses.dataclass(frozen=True, slots=True)
class AnyOf:
    """One of its nodes at least; it has two or more."""

    nodes: "tuple[Node, ...]"

    def __str__(self) -> str:
        return " OR ".join(map(_grouped, self.nodes))


Node = Union[Term, Not, AllOf, AnyOf]  # noqa: UP007 - they name each other


def _grouped(node: Node) -> str:
    return f"({node})" if isinstance(node, AllOf | AnyOf) else str(node)


def all_of(*nodes: Node) -> Node:
    """Return the node that asks for each of these, without one in another."""
    flat = [inner for n in nodes for inner in (n.nodes if isinstance(n, AllOf) else (n,))]
    return flat[0] if len(flat) == 1 else AllOf(tuple(flat))


def parse(text: str) -> Node:
    """Read a query; "" is every message. Raises QueryError."""
    if len(text) > MAX_LENGTH:
        raise QueryError(f"A query has at most {MAX_LENGTH:,} characters.", MAX_LENGTH)
    unsafe = _UNSAFE.search(text)
    if unsafe:
        raise QueryError(_NOT_SEARCHED, unsafe.start())
    reader = _Reader(text)
    node = reader.read_all("")
    if not reader.at_end():
        raise QueryError('This ")" closes nothing.', reader.at)
    if node is None:
        if text.strip():
            raise QueryError("There is no letter or digit to search for.", 0)
        return AllOf()
    return node


def term(name: str, value: str, *, prefix: bool = False) -> Term:
    """Make a term as `name:value` in a query does. Raises QueryError (at 0)."""
    if _UNSAFE.search(value):
        raise QueryError(_NOT_SEARCHED, 0)
    return _term(name, value, prefix, 0)


# -- what the operators take ---------------------------------------------------------------------


def _text(value: str) -> str:
    return value if next(words.lexemes(value), "") else ""


def _any_text(value: str) -> str:
    return value


def _attachment(value: str) -> str:
    return "attachment" if value.lower() in {"attachment", "attachments"} else ""


_DATE = re.compile(r"(\d{4})(?:[-/](\d{1,2})(?:[-/](\d{1,2}))?)?", re.ASCII)


def _date(value: str) -> str:
    found = _DATE.fullmatch(value)
    if not found:
        return ""
    year, month, day = found.groups()
    try:
        dt.date(int(year), int(month or 1), int(day or 1))
    except ValueError:
        return ""
    if year == "9999":  # it has no day after it
        return ""
    return "-".join([year, *(part.zfill(2) for part in (month, day) if part)])


def days(value: str) -> tuple[dt.datetime, dt.datetime]:
    """Return when the day, month or year of a date's term begins, and when the next begins."""
    year, month, day = [*map(int, value.split("-")), 0, 0][:3]
    begin = dt.datetime(year, month or 1, day or 1, tzinfo=dt.UTC)
    if day:
        return begin, begin + dt.timedelta(days=1)
    if month:
        return begin, begin.replace(year=year + month // 12, month=month % 12 + 1)
    return begin, begin.replace(year=year + 1)


_SIZE = re.compile(r"(\d{1,12})([kKmMgG]?)[bB]?", re.ASCII)
_UNITS = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}


def _size(value: str) -> str:
    found = _SIZE.fullmatch(value)
    return str(int(found[1]) * _UNITS[found[2].lower()]) if found else ""


def _sha256(value: str) -> str:
    return value.lower() if re.fullmatch("[0-9a-fA-F]{64}", value) else ""


def _number(value: str) -> str:
    if not re.fullmatch(r"-?\d{1,19}", value, re.ASCII):
        return ""
    return str(int(value)) if -(2**63) <= int(value) < 2**63 else ""


def _name_or_id(value: str) -> str:
    try:
        return str(uuid.UUID(value))
    except ValueError:
        return value


#: Of each operator: what makes its value ("" where it is none), and what is wanted.
OPERATORS: dict[str, tuple[Callable[[str], str], str]] = {
    "from": (_text, "an address, a part of one or a name, as from:ada@example.com"),
    "to": (_text, "an address, a part of one or a name, as to:example.com"),
    "cc": (_text, "an address, a part of one or a name, as cc:ada"),
    "bcc": (_text, "an address, a part of one or a name, as bcc:ada"),
    "subject": (_text, 'words of the subject, as subject:invoice or subject:"annual report"'),
    "in": (_any_text, "a folder's path, name or role, as in:inbox"),
    "was-in": (_any_text, "a folder's path, name or role, as was-in:inbox"),
    "folder": (_number, "a folder's id, as folder:42"),
    "label": (_any_text, "a label, as label:important"),
    "mailbox": (_name_or_id, "a mailbox's address or id, as mailbox:ada@example.com"),
    "source": (_name_or_id, "a source's name or id, as source:Sales"),
    "after": (_date, "a day, month or year (UTC), as after:2024-05-31: that day or later"),
    "before": (_date, "a day, month or year (UTC), as before:2024-05-31: earlier than that day"),
    "on": (_date, "a day, month or year (UTC), as on:2024-05-31 or on:2024"),
    "larger": (_size, "a number of bytes, as larger:500k or larger:10M"),
    "smaller": (_size, "a number of bytes, as smaller:500k or smaller:10M"),
    "has": (_attachment, "attachment: has:attachment"),
    "filename": (_text, "words of an attachment's name, as filename:report.pdf"),
    "type": (_any_text, "an attachment's type or extension, as type:pdf or type:image"),
    "message-id": (_any_text, "a Message-ID, as message-id:<1@example.com>"),
    "sha256": (_sha256, "the 64 hexadecimal digits of a message's SHA-256"),
    "thread": (_number, "a conversation's number, as thread:42"),
}
#: Where a "*" at the end means that the last word may go on.
PREFIXED = frozenset({"", "from", "to", "cc", "bcc", "subject", "filename"})


def _term(name: str, value: str, prefix: bool, at: int) -> Term:
    reads, wanted = OPERATORS[name]
    read = reads(value.strip())
    if not read:
        raise QueryError(f"{name}: wants {wanted}.", at)
    return Term(name, read, prefix)


# -- the reader ----------------------------------------------------------------------------------

_QUOTES = '"“”„'
#: What no database takes, and half characters.
_UNSAFE = re.compile("[\0\ud800-\udfff]")
_NOT_SEARCHED = "This character can't be searched for."
_BARE = re.compile(rf"[^\s(){_QUOTES}]+")
#: As it is printed; or as phones and word processors write it.
_QUOTED = re.compile(rf'"((?:[^"]|"")*)"|[{_QUOTES}]([^{_QUOTES}]*)[{_QUOTES}]')
_OPERATOR = re.compile(r"([A-Za-z][0-9A-Za-z-]*):")
_BLANKS = re.compile(r"\s*")
_JOINTS = ("OR", "AND")
_JOINT = re.compile(rf"(OR|AND)(?=[\s(){_QUOTES}]|\Z)")


class _Reader:
    """Reads a query from left to right. None is what has no word in it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self._terms = 0
        self._depth = 0

    def at_end(self) -> bool:
        blanks = _BLANKS.match(self.text, self.at)
        assert blanks
        self.at = blanks.end()
        return self.at == len(self.text)

    def read_all(self, operator: str) -> Node | None:
        """Read up to the end, or the parenthesis that closes this group."""
        found = []
        while not self.at_end() and self.text[self.at] != ")":
            node = self._read_any(operator)
            if node is not None:
                found.append(node)
        return all_of(*found) if found else None

    def _read_any(self, operator: str) -> Node | None:
        found: list[Node] = []
        while True:
            start = self.at
            if joint := self._joint():
                raise QueryError(f"{joint} wants something before it.", start)
            node = self._read_one(operator)
            if node is not None:
                found += node.nodes if isinstance(node, AnyOf) else (node,)
            if not (joint := self._joint()):
                break
            if self.at_end() or self.text[self.at] == ")":
                raise QueryError(f"{joint} wants something after it.", self.at)
            if joint == "AND":  # as a blank
                break
        return AnyOf(tuple(found)) if len(found) > 1 else found[0] if found else None

    def _joint(self) -> str:
        found = None if self.at_end() else _JOINT.match(self.text, self.at)
        if not found:
            return ""
        self.at = found.end()
        return found[1]

    def _read_one(self, operator: str) -> Node | None:
        start = self.at
        while self.text.startswith("-", self.at):
            self.at += 1
        negated = self.at > start
        if negated and self._at_blank():
            return None  # a dash between words
        node = self._read_operator(operator) if not operator else self._read_value(operator)
        if node is None or not negated:
            return node
        return node.node if isinstance(node, Not) else Not(node)

    def _at_blank(self) -> bool:
        return (
            self.at == len(self.text) or self.text[self.at] == ")" or (self.text[self.at].isspace())
        )

    def _read_operator(self, operator: str) -> Node | None:
        found = _OPERATOR.match(self.text, self.at)
        if not found:
            return self._read_value(operator)
        name = found[1].lower()
        if name not in OPERATORS:
            known = ", ".join(f"{known}:" for known in OPERATORS)
            raise QueryError(
                f'There is no operator "{name[:50]}:". Known: {known}. To search for the text '
                "itself, put it in quotes.",
                self.at,
            )
        start, self.at = self.at, found.end()
        if self._at_blank():
            raise QueryError(f"{name}: wants {OPERATORS[name][1]}.", start)
        return self._read_value(name)

    def _read_value(self, operator: str) -> Node | None:
        if self.text[self.at] == "(":
            return self._read_group(operator)
        start, prefix = self.at, False
        if self.text[self.at] in _QUOTES:
            quoted = _QUOTED.match(self.text, self.at)
            if not quoted:
                raise QueryError("This quote is never closed.", self.at)
            self.at = quoted.end()
            value = (quoted[1] or quoted[2] or "").replace('""', '"')
        else:
            bare = _BARE.match(self.text, self.at)
            assert bare
            self.at, value = bare.end(), bare[0]
            if operator in PREFIXED:
                prefix, value = value.endswith("*"), value.rstrip("*")
        self._terms += 1
        if self._terms > MAX_TERMS:
            raise QueryError(f"A query has at most {MAX_TERMS} terms.", start)
        if operator:
            return _term(operator, value, prefix, start)
        return Term("", value.strip(), prefix) if _text(value) else None

    def _read_group(self, operator: str) -> Node | None:
        start = self.at
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise QueryError(f"Parentheses are nested at most {MAX_DEPTH} deep.", start)
        self.at += 1
        node = self.read_all(operator)
        if self.at_end():
            raise QueryError("This parenthesis is never closed.", start)
        self.at += 1
        self._depth -= 1
        return node
