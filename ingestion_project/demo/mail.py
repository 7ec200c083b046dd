"""A mailbox as mailboxes are: deterministic, a few thousand messages, some of them awful.

Owns the folders and bytes of the demo's account; knows nothing of IMAP.
"""

import base64
import dataclasses
import datetime as dt
import email.utils
import random
from collections.abc import Callable, Iterator

START = dt.datetime(2021, 3, 1, 8, 0, tzinfo=dt.UTC)
_WORDS = (
    "account invoice delivery meeting schedule project review release notes regarding attached "
    "please find the quarterly report customer service update shipment payment confirmation "
    "reminder deadline budget proposal contract signature team weekly summary"
).split()
_PEOPLE = ("Ada Nowak", "Grace Okafor", "Linus Ek", "Zoë Müller", "Радик Иванов", "山田 太郎")

#: Folder -> share of the messages. Names nest, and are in no single alphabet.
_FOLDERS = {
    "INBOX": 30,
    "Sent": 12,
    "Archive/2021": 9,
    "Archive/2022": 9,
    "Archive/2023/Q1": 4,
    "Archive/2023/Q2": 4,
    "Customers/Ærø & Søn": 3,
    "Customers/Größe, Maß und Co.": 3,
    "Customers/Клиенты/Москва": 3,
    "日本語/請求書": 4,
    "日本語/会議": 2,
    "Projects/a.b.c": 3,
    "Projects/back\\slash": 1,
    'Projects/"quoted"': 1,
    "Projects/100% & more": 2,
    "Lists/python-dev": 6,
    "Lists/🐘 postgres": 4,
    "Empty": 0,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Mail:
    """One message as it lies on the server. Flags are IMAP's."""

    body: bytes
    received_at: dt.datetime
    flags: tuple[str, ...] = ()


def folders(count: int, *, seed: int = 2) -> dict[str, list[Mail]]:
    """Return about `count` messages by folder path, the same for the same seed."""
    chance = random.Random(seed)  # noqa: S311 - reproducible, not secret
    number = iter(range(10**9))
    total = sum(_FOLDERS.values())
    made = {
        path: [_mail(next(number), chance) for _ in range(count * share // total)]
        for path, share in _FOLDERS.items()
    }
    # The same bytes in two folders: archived once, placed twice.
    made["Archive/2022"] += made["INBOX"][:25]
    return made


def arriving(count: int, *, seed: int = 77) -> list[Mail]:
    """Return messages that are not among those of `folders`."""
    chance = random.Random(seed)  # noqa: S311 - reproducible, not secret
    return [_mail(1_000_000 + i, chance) for i in range(count)]


def _mail(number: int, chance: random.Random) -> Mail:
    make = _SPECIAL.get(number % 100) or chance.choices(_USUAL, weights=(45, 30, 20, 5))[0]
    flags = [
        f
        for f, p in (("\\Seen", 0.7), ("\\Answered", 0.2), ("\\Flagged", 0.05))
        if chance.random() < p
    ]
    return Mail(make(number, chance), START + dt.timedelta(minutes=37 * number), tuple(flags))


def _headers(number: int, chance: random.Random, *extra: str, message_id: bool = True) -> bytes:
    sent = email.utils.format_datetime(START + dt.timedelta(minutes=37 * number))
    person = chance.choice(_PEOPLE)
    name = person if person.isascii() else _encoded_word(person)
    subject = " ".join(chance.choice(_WORDS) for _ in range(chance.randint(2, 9))).capitalize()
    lines = [
        f"Received: from mx{number % 9}.example (mx.example [192.0.2.{number % 250}])",
        f"\tby in.example with ESMTPS id {chance.getrandbits(60):x}; {sent}",
        "DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=mail.example; s=k1;",
        f"\tbh={base64.b64encode(chance.randbytes(32)).decode()};",
        f"\tb={base64.b64encode(chance.randbytes(96)).decode()}",
        f"From: {name} <p{number % 97}@mail.example>",
        "To: Demo <demo@example.com>",
        f"Subject: {subject} #{number}",
        f"Date: {sent}",
        *([f"Message-ID: <{chance.getrandbits(80):x}.{number}@mail.example>"] * message_id),
        "MIME-Version: 1.0",
        *extra,
    ]
    return "\r\n".join(lines).encode() + b"\r\n"


def _encoded_word(text: str) -> str:
    return f"=?utf-8?B?{base64.b64encode(text.encode()).decode()}?="


def _text(chance: random.Random, size: int) -> str:
    lines = []
    while size > 0:
        line = " ".join(chance.choice(_WORDS) for _ in range(11))
        lines.append(line)
        size -= len(line) + 2
    return "\r\n".join(lines) + "\r\n"


def _base64_lines(data: bytes) -> bytes:
    return base64.encodebytes(data).replace(b"\n", b"\r\n")


def _plain(number: int, chance: random.Random) -> bytes:
    head = _headers(number, chance, "Content-Type: text/plain; charset=utf-8")
    return head + b"\r\n" + _text(chance, chance.randint(80, 9_000)).encode()


def _alternative(number: int, chance: random.Random) -> bytes:
    mark = f"=_{chance.getrandbits(64):x}"
    head = _headers(number, chance, f'Content-Type: multipart/alternative; boundary="{mark}"')
    text = _text(chance, chance.randint(200, 6_000))
    return (
        head
        + (
            f"\r\n--{mark}\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n{text}\r\n"
            f"--{mark}\r\nContent-Type: text/html; charset=utf-8\r\n\r\n"
            f"<html><body><p>{text}</p></body></html>\r\n--{mark}--\r\n"
        ).encode()
    )


def _attached(number: int, chance: random.Random, *, size: int = 0) -> bytes:
    mark = f"=_{chance.getrandbits(64):x}"
    head = _headers(number, chance, f'Content-Type: multipart/mixed; boundary="{mark}"')
    name = chance.choice(("report.pdf", "../../etc/passwd", "Größe.xlsx", "請求書.pdf", "a" * 200))
    data = chance.randbytes(size or chance.randint(500, 60_000))
    return b"".join(
        [
            head,
            f"\r\n--{mark}\r\nContent-Type: text/plain\r\n\r\n{_text(chance, 600)}\r\n".encode(),
            f"--{mark}\r\nContent-Type: application/octet-stream\r\n".encode(),
            f'Content-Disposition: attachment; filename="{name}"\r\n'.encode(),
            b"Content-Transfer-Encoding: base64\r\n\r\n",
            _base64_lines(data),
            f"--{mark}--\r\n".encode(),
        ]
    )


def _forwarded(number: int, chance: random.Random) -> bytes:
    """Messages within messages within messages."""
    inner = _alternative(number, chance)
    for level in range(4):
        mark = f"=_{level}{chance.getrandbits(48):x}"
        inner = b"".join(
            [
                _headers(number, chance, f'Content-Type: multipart/mixed; boundary="{mark}"'),
                f"\r\n--{mark}\r\nContent-Type: message/rfc822\r\n\r\n".encode(),
                inner,
                f"\r\n--{mark}--\r\n".encode(),
            ]
        )
    return inner


def _eight_bit(number: int, chance: random.Random) -> bytes:
    encoding, text = chance.choice(
        (
            ("iso-8859-1", "Grüße aus Köln"),
            ("utf-8", "Γειά σου Κόσμε 🐘"),
            ("shift_jis", "こんにちは"),
            ("koi8-r", "Привет"),
            ("x-unknown-8bit", "déjà vu"),
        )
    )
    charset = "utf-8" if encoding.startswith("x-") else encoding
    head = _headers(
        number,
        chance,
        f"Content-Type: text/plain; charset={encoding}",
        "Content-Transfer-Encoding: 8bit",
    )
    raw = text.encode(charset)
    return head + b"X-Raw: " + raw + b"\r\n\r\n" + raw + b"\r\n" + bytes(range(128, 256)) + b"\r\n"


def _bare_lf(number: int, chance: random.Random) -> bytes:
    """Unix line ends, and both kinds in one message: whoever normalises alters it."""
    return _plain(number, chance).replace(b"\r\n", b"\n") + b"mixed\r\nends\nand a lone\rone"


def _signed(number: int, chance: random.Random) -> bytes:
    head = _headers(
        number,
        chance,
        'Content-Type: multipart/signed; protocol="application/pkcs7-signature"; boundary="sig"',
    )
    part = b"Content-Type: text/plain\r\n\r\nTrailing space matters here: \t \r\n"
    return b"".join(
        [
            head,
            b"\r\n--sig\r\n",
            part,
            b"\r\n--sig\r\nContent-Type: application/pkcs7-signature\r\n",
            b"Content-Transfer-Encoding: base64\r\n\r\n",
            _base64_lines(chance.randbytes(1_500)),
            b"--sig--\r\n",
        ]
    )


def _without_id(number: int, chance: random.Random) -> bytes:
    return _headers(number, chance, message_id=False) + b"\r\nNo Message-ID.\r\n"


def _same_id(number: int, chance: random.Random) -> bytes:
    """Different mails that share one Message-ID: nothing may hold them for one."""
    head = _headers(number, chance, "Message-ID: <always-the-same@mail.example>", message_id=False)
    return head + f"\r\nMessage {number}.\r\n".encode()


def _broken(number: int, chance: random.Random) -> bytes:
    return (
        b"This line is no header\r\nSubject: =?utf-8?Q?broken_=FF=FE?= =?bad?X?word?=\r\n"
        b"Date: yesterday, around noon\r\nFrom: <<>>,,;\r\n"
        b'Content-Type: multipart/mixed; boundary="never"\r\n'
        + f"X-Number: {number}\r\n\r\n--never\r\n".encode()
        + b"Content-Transfer-Encoding: base64\r\n\r\n===not base64===\r\n"
    )


def _no_header(number: int, chance: random.Random) -> bytes:
    return f"\r\nOnly a body, number {number}.".encode()


def _long_line(number: int, chance: random.Random) -> bytes:
    return _headers(number, chance) + b"\r\n" + b"x" * 70_000 + f" {number}\r\n".encode()


def _large(number: int, chance: random.Random) -> bytes:
    return _attached(number, chance, size=700_000 if number > 300 else 5_500_000)


_Maker = Callable[[int, random.Random], bytes]
_USUAL: tuple[_Maker, ...] = (_plain, _alternative, _attached, _forwarded)
_SPECIAL: dict[int, _Maker] = {
    7: _eight_bit,
    17: _bare_lf,
    27: _signed,
    37: _without_id,
    47: _same_id,
    57: _broken,
    67: _no_header,
    77: _long_line,
    87: _eight_bit,
    97: _large,
}


def everything(mailbox: dict[str, list[Mail]]) -> Iterator[Mail]:
    for mails in mailbox.values():
        yield from mails
