"""The words that documents are found by, and that queries look for: one normaliser for both. Pure.

A word is a run of letters and digits, in lower case, without accents, in compatibility form (NFKC).
Chinese, Japanese, Korean, Thai, Lao, Khmer and Burmese are found by pairs of characters instead:
they put no spaces between words, or endings onto them. Each character of such a run begins a pair
(the last one is alone), so each has a position, and a phrase of pairs finds any part of the run.

A document is a tsvector of

- the words of subject (weight A), participants (B), file names (C) and text (D), with positions and
  a gap between two of them, for words, phrases and relevance;
- tags without position, `=name:value`, for conditions that the index alone can answer: `=from:`
  (and `=to:`, `=cc:`, `=bcc:`) for the address, its local part, its domain, the domains that is in,
  and each word of name and address; `=subject:` and `=filename:` for each word, `=filename:` also
  for the whole; `=type:` of an attachment ("application/pdf", "application", "pdf");
  `=has:attachment`; `=id:` (Message-ID) and `=sha256:`, shortened; `=size:` for the number of bits
  of the size; `=source:` and `=mailbox:`, by id. No beginning of a word is one of a tag.

Beside it, in the same index, are numbers: of its month and its year, so that a search goes through
time without reading rows; and 12 bits of a hash of each two neighbours. Of the mails that have both
words of a phrase, these leave nearly all out that have them apart; the positions of the others are
compared, for one hash is of many pairs.

PostgreSQL's own parser is not used: it takes "end.Next" for a host, "-05" for a number, letters by
the database's locale, and a whole run of Chinese for a word.
"""

import datetime as dt
import hashlib
import re
import unicodedata
import uuid
import zlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from ingestion.mail.addresses import people
from ingestion.mail.digest import Digest
from ingestion.models import Message

#: A longer word is cut: it is encoded data, or an address.
MAX_CHARS = 64
_MAX_CHARS_OF_TAG = 300
#: PostgreSQL's manual, "Text Search Types: Limitations": lexemes with their positions fill less
#: than 1 MB, positions end at 16,383, and each lexeme has at most 255 of them.
_MAX_BYTES = 1_000_000
_MAX_POSITION = 16_383
_MAX_POSITIONS = 255

TOO_MANY_WORDS = "It has too many different words: the last ones of its text can't be searched."
TOO_LONG_FOR_PHRASES = (
    f"Its text is long: what comes after {_MAX_POSITION:,} words, and a word behind its "
    f"{_MAX_POSITIONS}th place, is searched by single words alone, not by phrases (which parts of "
    "Chinese, Japanese or Thai text are)."
)

_SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3041-\u309f"
    "\u30a1-\u30fa\u30fc-\u30ff\u3130-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7ff"
    "\uf900-\ufaff\uff66-\uffdc\U00020000-\U0003ffff"
)
#: Marks that belong to the letter before them, which `\w` leaves out.
_MARKS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a"
    "\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u0711\u0730-\u074a"
    "\u0900-\u0903\u093a-\u094f\u0951-\u0957\u0962\u0963\u0981-\u0983\u09bc-\u09d7\u0a01-\u0a51"
    "\u0a70-\u0a75\u0a81-\u0a83\u0abc-\u0acd\u0b01-\u0b03\u0b3c-\u0b57\u0b82-\u0b83\u0bbe-\u0bd7"
    "\u0c00-\u0c04\u0c3c-\u0c56\u0c81-\u0c83\u0cbc-\u0cd6\u0d00-\u0d03\u0d3b-\u0d4d\u0d57"
    "\u0d81-\u0d83\u0dca-\u0df3\u200c\u200d"
)
_LETTER = rf"[^\W_{_SPACELESS}]"
_RUN = re.compile(rf"[{_SPACELESS}]+|{_LETTER}+(?:[{_MARKS}]+{_LETTER}*)*")
_ASCII_RUN = re.compile("[0-9A-Za-z]+")
_PAIRED = re.compile(f"[{_SPACELESS}]")
#: Accents of Latin, Greek and Cyrillic, points of Hebrew and Arabic, joiners, Arabic's tatweel.
_DROPPED = re.compile(
    "[\u0300-\u036f\u0483-\u0487\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u200c\u200d\u0640]"
)
#: Letters that have no decomposition in Unicode, as people type them without the key.
_PLAIN = str.maketrans({"ø": "o", "đ": "d", "ð": "d", "ł": "l", "ħ": "h", "ı": "i", "ŧ": "t"})
_PLAIN |= str.maketrans({"æ": "ae", "œ": "oe", "þ": "th"})


class Span(NamedTuple):
    """A word where it stands in a text: from `start` to before `end`, in characters."""

    lexeme: str
    start: int
    end: int


def lexemes(text: str) -> Iterator[str]:
    """Yield the words of a text, each position one."""
    if text.isascii():
        for run in _ASCII_RUN.findall(text):
            yield run[:MAX_CHARS].lower()
        return
    for run in _RUN.findall(text):
        yield from _of_run(run) if len(run) <= MAX_CHARS else _of_run.__wrapped__(run)


def spans(text: str) -> Iterator[Span]:
    """Yield the words of a text with where they stand: those of `lexemes`, in their order."""
    for match in _RUN.finditer(text):
        run, at = match[0], match.start()
        found = _of_run(run) if len(run) <= MAX_CHARS else _of_run.__wrapped__(run)
        if is_paired(run) and len(found) == len(run):
            for number, lexeme in enumerate(found):
                yield Span(lexeme, at + number, at + number + len(lexeme))
        else:  # also where compatibility form made it longer or shorter
            for lexeme in found:
                yield Span(lexeme, at, match.end())


def phrase(text: str) -> list[tuple[str, bool]]:
    """Return the words to look for where a text is asked for, one after the other; and of each,
    whether it is the beginning of one. A character alone begins a pair, or ends its run."""
    found = list(lexemes(text))
    if found and is_paired(found[-1]):
        if len(found) > 1 and len(found[-2]) == 2 and is_paired(found[-2]):
            found.pop()  # the run may go on
        else:
            return [*((lexeme, False) for lexeme in found[:-1]), (found[-1], True)]
    return [(lexeme, False) for lexeme in found]


def is_paired(run: str) -> bool:
    """Tell whether a word is of a script that is indexed by pairs of characters."""
    return _PAIRED.match(run) is not None


@lru_cache(20_000)
def _of_run(run: str) -> tuple[str, ...]:
    plain = normal(run)
    if not is_paired(run):
        return (plain[:MAX_CHARS],) if plain else ()
    return tuple(plain[at : at + 2] for at in range(len(plain)))


def normal(text: str) -> str:
    """Return a text in lower case, without accents, in compatibility form."""
    if text.isascii():
        return text.lower()
    apart = unicodedata.normalize("NFKD", text).casefold()
    plain = _DROPPED.sub("", apart).translate(_PLAIN)
    return unicodedata.normalize("NFC", plain)


# -- tags --------------------------------------------------------------------------------------


def tag(name: str, value: str) -> str:
    """Return the lexeme of a condition."""
    return f"={name}:{normal(value.strip())[:_MAX_CHARS_OF_TAG]}"


def id_tag(message_id: str) -> str:
    """Return the lexeme of a Message-ID, with or without its brackets: 96 bits of a hash."""
    bare = message_id.strip().removeprefix("<").removesuffix(">")
    return f"=id:{hashlib.blake2b(bare.encode('utf-8', 'replace'), digest_size=12).hexdigest()}"


def sha256_tag(sha256_hex: str) -> str:
    """Return the lexeme of a message's SHA-256: its first 128 bits."""
    return f"=sha256:{sha256_hex[:32].lower()}"


def size_tag(bits: int) -> str:
    """Return the lexeme of the sizes whose binary number has so many digits."""
    return f"=size:{bits}"


def scope_tag(kind: str, pk: uuid.UUID) -> str:
    """Return the lexeme of all mail of a source or mailbox (`kind`)."""
    return f"={kind}:{pk.hex}"


HAS_ATTACHMENT = "=has:attachment"
_TAGGED_ROLES = frozenset({"from", "to", "cc", "bcc"})


def _address_tags(role: str, address: str, name: str) -> Iterator[str]:
    local, at, domain = address.rpartition("@")
    yield tag(role, address)
    if at:
        yield tag(role, local)
        labels = domain.split(".")[-8:]
        for number in range(len(labels)):
            yield tag(role, ".".join(labels[number:]))
    for word in lexemes(f"{name} {address}"):
        yield f"={role}:{word}"


def _file_tags(name: str, kind: str) -> Iterator[str]:
    yield tag("filename", name)
    for word in lexemes(name):
        yield f"=filename:{word}"
    if kind:
        yield tag("type", kind)
        for half in kind.split("/", 1):
            yield tag("type", half)
    stem, _, extension = name.rpartition(".")
    if stem and extension and len(extension) <= 10:
        yield tag("type", extension)


# -- numbers -----------------------------------------------------------------------------------


_PAIRS = 4_096
#: Months are counted from this year on. What is dated before or after all of them, by a broken
#: clock, is of the first or last one.
_FIRST_YEAR = 1970
MONTHS = 12 * 130


def pair(word: str, following: str) -> int:
    """Return the number of two neighbours."""
    return zlib.crc32(f"{word} {following}".encode("utf-8", "replace")) % _PAIRS


def month(date: dt.datetime) -> int:
    """Return which month a moment is in, in UTC: 0 to before MONTHS."""
    date = date.astimezone(dt.UTC)
    return min(max((date.year - _FIRST_YEAR) * 12 + date.month - 1, 0), MONTHS - 1)


def begin_of_month(month: int) -> dt.datetime:
    return dt.datetime(_FIRST_YEAR + month // 12, month % 12 + 1, 1, tzinfo=dt.UTC)


def date_numbers(date: dt.datetime) -> tuple[int, int]:
    """Return the numbers of a date."""
    return of_month(month(date)), of_year(month(date))


def time_numbers(first: int, end: int) -> Iterator[int]:
    """Yield the numbers of which each date of some months (`first` to before `end`) has one: those
    of years, where they are whole."""
    while first < end:
        whole = first % 12 == 0 and first + 12 <= end
        yield of_year(first) if whole else of_month(first)
        first += 12 if whole else 1


def of_month(month: int) -> int:
    """Return the number of a month: each month's is the next one."""
    return _PAIRS + month


def of_year(month: int) -> int:
    """Return the number of the year that a month is in: each year's is the next one."""
    return _PAIRS + MONTHS + month // 12


# -- the vector --------------------------------------------------------------------------------


class Vector(NamedTuple):
    """`literal` is a tsvector in PostgreSQL's text form: `%s::tsvector`, or a column of COPY (by
    `rows.copied`); `numbers` is what stands beside it. `defects` says what it has not."""

    literal: str
    numbers: tuple[int, ...]
    defects: tuple[str, ...]


def vector(message: Message, digest: Digest, *, source: uuid.UUID, date: dt.datetime) -> Vector:
    """Return what a message is found by; `date` is that of its document.

    A tsvector is bounded: what has no room is left out, the end of the text first.
    """
    made = _Builder()
    made.tags((scope_tag("source", source), scope_tag("mailbox", message.mailbox_id)))
    made.tags((sha256_tag(bytes(message.sha256).hex()), size_tag(message.size_bytes.bit_length())))
    if message.message_id:
        made.tags((id_tag(message.message_id),))
    made.tags(f"=subject:{word}" for word in lexemes(message.subject))
    made.text(message.subject, "A")
    for role, address, name in digest.participants or _of_headers(message):
        if role in _TAGGED_ROLES:
            made.tags(_address_tags(role, address, name))
        made.text(f"{name} {address}", "B")
    if any(not file.inline for file in digest.attachments):
        made.tags((HAS_ATTACHMENT,))
    for file in digest.attachments:
        made.tags(_file_tags(file.name, file.type))
        made.text(file.name, "C")
    made.text(digest.text, "")
    return Vector(made.literal(), (*date_numbers(date), *made.pairs), tuple(made.defects))


def _of_headers(message: Message) -> Iterator[tuple[str, str, str]]:
    """Yield whom a message names where its participants were not read."""
    for role, field in (("from", message.sender), ("to", message.recipients)):
        for address, name in people(field.encode("utf-8", "replace")):
            yield role, address, name


class _Builder:
    def __init__(self) -> None:
        self.defects: dict[str, None] = {}
        self.pairs: set[int] = set()
        self._places: dict[str, list[str]] = {}
        self._position = 0
        self._room = _MAX_BYTES

    def tags(self, found: Iterable[str]) -> None:
        for lexeme in found:
            if lexeme not in self._places and not lexeme.endswith(":"):  # a tag of nothing
                self._add(lexeme, [])

    def text(self, text: str, weight: str) -> None:
        """Take in the words of a text, apart from those of the text before."""
        places, position = self._places, self._position + 1
        before = ""
        for lexeme in lexemes(text):
            position += 1
            if before:
                self.pairs.add(pair(before, lexeme))
            before = lexeme
            if position >= _MAX_POSITION:
                if lexeme not in places:
                    self._add(lexeme, [f"{_MAX_POSITION}{weight}"])
                continue
            known = places.get(lexeme)
            if known is None:
                self._add(lexeme, [f"{position}{weight}"])
            elif len(known) < _MAX_POSITIONS:
                known.append(f"{position}{weight}")
                self._room -= 2
            else:
                self.defects[TOO_LONG_FOR_PHRASES] = None
        self._position = position
        if position >= _MAX_POSITION:
            self.defects[TOO_LONG_FOR_PHRASES] = None

    def _add(self, lexeme: str, places: list[str]) -> None:
        self._room -= len(lexeme.encode("utf-8", "replace")) + 6  # aligned, a count, a position
        if self._room < 2 * _MAX_POSITION:  # which known words may still need
            self._room += len(lexeme.encode("utf-8", "replace")) + 6
            self.defects[TOO_MANY_WORDS] = None
        else:
            self._places[lexeme] = places

    def literal(self) -> str:
        return " ".join(
            f"{quoted(lexeme)}:{','.join(places)}" if places else quoted(lexeme)
            for lexeme, places in self._places.items()
        )


def quoted(lexeme: str) -> str:
    """Write a lexeme as tsvector and tsquery take it."""
    if not lexeme.isalnum():
        lexeme = lexeme.replace("\\", r"\\").replace("'", "''").replace("\0", "")
        lexeme = lexeme.encode("utf-8", "replace").decode()
    return f"'{lexeme}'"
