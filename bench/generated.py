"""Mail as an archive of years has it: words, senders, folders and dates spread as they are in life.

Pure, and the same for the same seed. Frequencies of words, senders, mailboxes, folders and labels
follow Zipf's law: a few words are in every mail, most are in a handful. `Mail.raw` is the message;
everything else is what reading it gives, said at once: to read a million takes an hour.
"""

import base64
import bisect
import dataclasses
import datetime as dt
import email.utils
import functools
import hashlib
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

from ingestion.mail.attachments import Attachment
from ingestion.mail.digest import PREVIEW_CHARACTERS, Digest
from ingestion.mail.headers import Headers

_T = TypeVar("_T")

WORDS = 300_000
PEOPLE, DOMAINS = 20_000, 500
MAILBOXES = 60
#: Of the source with this number, so that there is somebody who may see some of the mail only.
SOURCES = 8
FIRST_DAY = dt.datetime(2011, 1, 1, tzinfo=dt.UTC)
SPAN = dt.timedelta(days=15 * 365)
FOLDERS = (
    *(("INBOX", "inbox"), ("Archive", "archive"), ("Sent", "sent")),
    *((f"Projects/{number:02}", "") for number in range(1, 13)),
)
#: A folder of the largest mailbox, with so many mails of all.
SMALL_FOLDER, IN_SMALL_FOLDER = "Small", 10
#: Words of their own: only in mails of the first years; `OLD` in one of a thousand of these,
#: `OLD_AND_COMMON` in one of ten.
OLD, OLD_AND_COMMON = "abacusold", "gazetteold"
_OLD_UNTIL = FIRST_DAY + dt.timedelta(days=4 * 365)
_WORDS_EXPONENT = 1.05
_ARCHIVED_MS = 1_767_225_600_000
_PHRASES = 2_000
_BLOCK = 2_000
_SYLLABLES = [
    a + b for a in "bcdfghjklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "ou")
]
_FILES = (("png", "image/png"), ("jpg", "image/jpeg"), ("zip", "application/zip"))


class Block(NamedTuple):
    """Some mails of one mailbox, in their order: `first` to before `end` of its `total`.

    `before`: how many there are in all blocks before this one.
    """

    mailbox: int
    before: int
    first: int
    end: int
    total: int


class Mail(NamedTuple):
    """One message, where it lies, and what is known of it."""

    raw: bytes
    sha256: bytes
    id: str
    place: int
    date: dt.datetime
    folder: str
    labels: tuple[str, ...]
    removed_at: dt.datetime | None
    thread: str  # the Message-ID that it began with
    digest: Digest


def source_of(mailbox: int) -> int:
    return mailbox % SOURCES


def address_of(mailbox: int) -> str:
    return f"owner{mailbox}@archive.example"


def blocks(messages: int) -> Iterator[Block]:
    """Yield so many messages as blocks: mailboxes by Zipf, each from its first mail to its last."""
    sums = _cumulated(MAILBOXES, 1.0)
    ends = [round(messages * value / sums[-1]) for value in sums]
    for mailbox, (begin, end) in enumerate(itertools.pairwise([0, *ends])):
        total = end - begin
        for first in range(0, total, _BLOCK):
            yield Block(mailbox, begin + first, first, min(first + _BLOCK, total), total)


def word(rank: int) -> str:
    """Return the word of a rank, from 0, as often as its rank says."""
    return _vocabulary()[rank]


def share(rank: int) -> float:
    """Return how much of all words the word of a rank is."""
    return _weight(rank, _WORDS_EXPONENT) / _cumulated(WORDS, _WORDS_EXPONENT)[-1]


def phrase(rank: int) -> str:
    """Return a phrase that is in mail as one, of a rank from 0."""
    return _phrases()[rank]


def person(rank: int) -> tuple[str, str]:
    """Return (address, name) of a sender."""
    return _people()[rank]


def warm() -> None:
    """Draw the vocabulary and the people, which takes some seconds the first time."""
    next(mails(Block(0, 0, 0, 1, 1), seed=0))


def mails(block: Block, *, seed: int) -> Iterator[Mail]:
    """Yield the messages of a block."""
    chance = random.Random(f"{seed}/{block.before}")
    recent: list[_Sent] = []
    for place in range(block.first, block.end):
        mail, sent = _mail(chance, block, place, recent)
        recent = [*recent[-30:], sent]
        yield mail


@dataclasses.dataclass(frozen=True, slots=True)
class _Sent:
    subject: str
    ids: tuple[str, ...]
    thread: str


def _mail(
    chance: random.Random, block: Block, place: int, recent: Sequence[_Sent]
) -> tuple[Mail, _Sent]:
    share = (place + chance.random()) / block.total
    date = (FIRST_DAY + SPAN * share**0.6).replace(microsecond=0)  # more and more of it
    sender = _drawn(chance, _people(), _cumulated(PEOPLE, 1.0))
    others = [_drawn(chance, _people(), _cumulated(PEOPLE, 0.8)) for _ in range(_few(chance))]
    own = f"{chance.getrandbits(80):020x}@{sender[0].partition('@')[2]}"
    answered = chance.choice(recent) if recent and chance.random() < 0.45 else None
    if answered:
        before = answered.ids[-10:]
        subject = f"Re: {answered.subject.removeprefix('Re: ')}"
    else:
        before = ()
        subject = " ".join(_words(chance, chance.randint(2, 7))).capitalize()
    text = _text(chance, date)
    attachments = tuple(_attachment(chance) for _ in range(_number_of_files(chance)))
    recipients = [(address_of(block.mailbox), f"Owner {block.mailbox}"), *dict.fromkeys(others)]
    head = {
        "From": _written(sender),
        "To": ", ".join(map(_written, recipients)),
        "Subject": subject,
        "Date": email.utils.format_datetime(date),
        "Message-ID": f"<{own}>",
    }
    fields: dict[str, str | list[str]] = {}
    if before:
        head["In-Reply-To"] = f"<{before[-1]}>"
        head["References"] = "\r\n ".join(f"<{one}>" for one in before)
        fields = {
            "inReplyTo": f"<{before[-1]}>",
            "references": [f"<{one}>" for one in before],
        }
    raw = _raw(chance, head, text, attachments)
    digest = Digest(
        text=text,
        preview=" ".join(text.split())[:PREVIEW_CHARACTERS],
        fields=fields,
        participants=(("from", *sender), *(("to", *one) for one in recipients)),
        attachments=tuple(file for file, _ in attachments),
        headers=Headers(subject, head["From"], head["To"], date, head["Message-ID"]),
    )
    mail = Mail(
        raw=raw,
        sha256=hashlib.sha256(raw).digest(),
        id=_id(chance, block.before + place - block.first),
        place=place,
        date=date,
        folder=_folder(chance, block, place),
        labels=_labels(chance),
        removed_at=date + dt.timedelta(days=90) if chance.random() < 0.04 else None,
        thread=answered.thread if answered else own,
        digest=digest,
    )
    return mail, _Sent(subject, (*before, own), mail.thread)


def _id(chance: random.Random, number: int) -> str:
    """Return a UUIDv7 as capture makes them (`statements.new_message_ids`), in hexadecimal digits:
    what was archived together lies together."""
    noise = chance.getrandbits(72)
    return f"{_ARCHIVED_MS + number // 10:012x}7{noise >> 60:03x}8{noise & (1 << 60) - 1:015x}"


def _few(chance: random.Random) -> int:
    return min(int(chance.expovariate(1.0)), 6)


def _number_of_files(chance: random.Random) -> int:
    return 1 + _few(chance) if chance.random() < 0.2 else 0


# -- text --------------------------------------------------------------------------------------


def _words(chance: random.Random, count: int) -> list[str]:
    weights = _cumulated(WORDS, _WORDS_EXPONENT)
    return chance.choices(_vocabulary(), cum_weights=weights, k=count)


def _text(chance: random.Random, date: dt.datetime) -> str:
    """Return about 120 words, on lines."""
    count = min(max(int(chance.lognormvariate(4.6, 0.6)), 10), 1_000)
    found = _words(chance, count)
    for _ in range(1 + count // 50):
        found.insert(chance.randrange(count), _drawn(chance, _phrases(), _cumulated(_PHRASES, 0.9)))
    if date < _OLD_UNTIL:
        for word, share in ((OLD, 0.001), (OLD_AND_COMMON, 0.1)):
            if chance.random() < share:
                found[chance.randrange(count)] = word
    return "\n".join(" ".join(found[at : at + 11]) for at in range(0, len(found), 11))


@functools.cache
def _vocabulary() -> list[str]:
    """Return words, the commonest first: short ones are more common; one of fifty has an accent."""
    chance = random.Random(12)
    found: dict[str, None] = {}
    while len(found) < WORDS:
        parts = 1 + min(int(len(found) ** 0.13 * chance.random() * 1.4), 5)
        made = "".join(chance.choices(_SYLLABLES, k=parts))
        if len(found) > 1_000 and len(found) % 50 == 0:
            made = made.replace("a", "ä").replace("e", "é")
        found[made] = None
    return list(found)


@functools.cache
def _phrases() -> list[str]:
    chance = random.Random(13)
    return [" ".join(_words(chance, chance.randint(2, 4))) for _ in range(_PHRASES)]


@functools.cache
def _people() -> list[tuple[str, str]]:
    chance = random.Random(14)
    domains = [f"{_vocabulary()[2_001 + 7 * n]}{n}.example" for n in range(DOMAINS)]
    domains = [domain.replace("ä", "a").replace("é", "e") for domain in domains]
    found = []
    for number in range(PEOPLE):
        first, last = ("".join(chance.choices(_SYLLABLES, k=k)).capitalize() for k in (2, 3))
        domain = _drawn(chance, domains, _cumulated(DOMAINS, 0.7))
        found.append((f"{first}.{last}{number}@{domain}".lower(), f"{first} {last}"))
    return found


@functools.cache
def _cumulated(count: int, exponent: float) -> list[float]:
    """Return Zipf's weights of so many ranks, as Mandelbrot has them, added up."""
    return list(itertools.accumulate(_weight(rank, exponent) for rank in range(count)))


def _weight(rank: int, exponent: float) -> float:
    return math.pow(rank + 3.7, -exponent)


def _drawn(chance: random.Random, among: Sequence[_T], weights: Sequence[float]) -> _T:
    return among[bisect.bisect(weights, chance.random() * weights[-1], 0, len(among) - 1)]


# -- where it lies -----------------------------------------------------------------------------


def _folder(chance: random.Random, block: Block, place: int) -> str:
    if block.mailbox == 0:
        each, rest = divmod(place, max(block.total // IN_SMALL_FOLDER, 1))
        if rest == 0 and each < IN_SMALL_FOLDER:
            return SMALL_FOLDER
    return _drawn(chance, FOLDERS, _cumulated(len(FOLDERS), 1.6))[0]


def _labels(chance: random.Random) -> tuple[str, ...]:
    found = ["\\Seen"] if chance.random() < 0.9 else []
    if chance.random() < 0.1:
        found.append(f"Label {_drawn(chance, range(1, 41), _cumulated(40, 1.2)):02}")
    return tuple(found)


# -- bytes -------------------------------------------------------------------------------------


def _attachment(chance: random.Random) -> tuple[Attachment, bytes]:
    extension, kind = chance.choice(_FILES)
    name = " ".join(_words(chance, chance.randint(1, 3)))
    name = name.replace("ä", "a").replace("é", "e")
    data = chance.randbytes(int(200 * 50 ** chance.random()))
    sha256 = hashlib.sha256(data).hexdigest()
    return Attachment(f"{name}.{extension}", kind, len(data), sha256, inline=False), data


def _written(one: tuple[str, str]) -> str:
    return f"{one[1]} <{one[0]}>"


def _raw(
    chance: random.Random,
    head: dict[str, str],
    text: str,
    attachments: Sequence[tuple[Attachment, bytes]],
) -> bytes:
    plain = "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    lines += "MIME-Version: 1.0\r\n"
    text = text.replace("\n", "\r\n")
    if not attachments:
        return f"{lines}{plain}{text}\r\n".encode()
    mark = f"=_{chance.getrandbits(64):x}"
    parts = [
        f'{lines}Content-Type: multipart/mixed; boundary="{mark}"\r\n\r\n'.encode(),
        f"--{mark}\r\n{plain}{text}\r\n".encode(),
    ]
    for file, data in attachments:
        parts += [
            f'--{mark}\r\nContent-Type: {file.type}; name="{file.name}"\r\n'.encode(),
            f'Content-Disposition: attachment; filename="{file.name}"\r\n'.encode(),
            b"Content-Transfer-Encoding: base64\r\n\r\n",
            base64.encodebytes(data).replace(b"\n", b"\r\n"),
        ]
    return b"".join([*parts, f"--{mark}--\r\n".encode()])
