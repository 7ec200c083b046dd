"""What lies on the server: messages as people get them, in Maildirs that are written directly.

The messages are the same for the same seed. Text is drawn from a vocabulary by Zipf's law, so that
it compresses as prose does (zstd makes a third of it); attachments are random bytes in base64,
which compress to three quarters. Nothing is identical.
"""

import base64
import dataclasses
import email.utils
import functools
import os
import quopri
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

_START = 1_600_000_000
_LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
_CORPUS_WORDS = 150_000


@functools.cache
def _corpus() -> str:
    chance = random.Random(11)
    words = [
        "".join(chance.choices(_LETTERS, range(26, 0, -1), k=chance.randint(2, 11)))
        for _ in range(6_000)
    ]
    drawn = chance.choices(words, [1 / rank for rank in range(1, 6_001)], k=_CORPUS_WORDS)
    lines = [" ".join(drawn[i : i + 11]) for i in range(0, len(drawn), 11)]
    return "\r\n".join(lines)


def _text(chance: random.Random, size: int) -> str:
    corpus = _corpus()
    at = chance.randrange(len(corpus) - size)
    return corpus[at : at + size].strip() + "\r\n"


def message(number: int, *, size: int = 8_000) -> bytes:
    """Return one message of about `size` bytes, CRLF line ends: text, alternative or attachment."""
    chance = random.Random(number)
    date = email.utils.formatdate(_START + number * 977, usegmt=True)
    mark = f"=_{chance.getrandbits(64):x}"
    room = max(400, int(size * chance.uniform(0.5, 1.5)) - 900)
    kind, body = (_plain, _alternative, _attached)[number % 3](chance, mark, room)
    subject = _text(chance, 60).replace("\r\n", " ").strip()
    signature = base64.b64encode(chance.randbytes(192)).decode()
    head = (
        f"Return-Path: <bounce-{number}@lists.example>\r\n"
        f"Received: from mx{number % 9}.example (mx.example [192.0.2.{number % 250}])\r\n"
        f"\tby in.example with ESMTPS id {chance.getrandbits(60):x}\r\n"
        f"\tfor <ada@example.com>; {date}\r\n"
        "DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=mail.example; s=k1;\r\n"
        f"\tb={signature[:64]}\r\n\t{signature[64:128]}\r\n\t{signature[128:]}\r\n"
        f"From: =?utf-8?Q?S=C3=B8ren_{number % 500}?= <p{number % 500}@mail.example>\r\n"
        "To: Ada <ada@example.com>, Grace <grace@example.com>\r\n"
        f"Subject: {subject} #{number}\r\n"
        f"Date: {date}\r\n"
        f"Message-ID: <{chance.getrandbits(80):x}.{number}@mail.example>\r\n"
        f"References: <{chance.getrandbits(80):x}@mail.example>\r\n"
        f"MIME-Version: 1.0\r\n{kind}\r\n\r\n"
    )
    return head.encode() + body


def _plain(chance: random.Random, mark: str, room: int) -> tuple[str, bytes]:
    del mark
    return "Content-Type: text/plain; charset=utf-8", _text(chance, room).encode()


def _alternative(chance: random.Random, mark: str, room: int) -> tuple[str, bytes]:
    text = _text(chance, room * 9 // 20)
    html = "<html><body><p>" + text.replace("\r\n", "</p>\r\n<p>") + "</p></body></html>"
    quoted = quopri.encodestring(html.encode()).replace(b"\n", b"\r\n").replace(b"\r\r", b"\r")
    return f'Content-Type: multipart/alternative; boundary="{mark}"', b"".join(
        [
            f"--{mark}\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n{text}\r\n".encode(),
            f"--{mark}\r\nContent-Type: text/html; charset=utf-8\r\n".encode(),
            b"Content-Transfer-Encoding: quoted-printable\r\n\r\n",
            quoted,
            f"\r\n--{mark}--\r\n".encode(),
        ]
    )


def _attached(chance: random.Random, mark: str, room: int) -> tuple[str, bytes]:
    text = _text(chance, min(room // 4, 4_000))
    data = chance.randbytes(int(max(300, room - len(text)) * 0.72))
    return f'Content-Type: multipart/mixed; boundary="{mark}"', b"".join(
        [
            f"--{mark}\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n{text}\r\n".encode(),
            f'--{mark}\r\nContent-Type: image/png; name="picture.png"\r\n'.encode(),
            b"Content-Transfer-Encoding: base64\r\n\r\n",
            base64.encodebytes(data).replace(b"\n", b"\r\n"),
            f"--{mark}--\r\n".encode(),
        ]
    )


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """A message as a file of the pool, to be linked into any number of Maildirs.

    It has LF line ends, as Dovecot itself writes; `size` is what IMAP tells, `stored` the file's.
    """

    path: Path
    size: int
    stored: int


class Pool:
    """Messages on the server's file system, made once and linked wherever they are wanted."""

    def __init__(self, directory: Path, *, owner: tuple[int, int]) -> None:
        self._directory, self._owner = directory, owner
        self._made: dict[tuple[int, int], File] = {}
        directory.mkdir()
        self._take(directory)

    def messages(self, count: int, *, size: int = 8_000, start: int = 0) -> Iterator[File]:
        for number in range(start, start + count):
            key = (number, size)
            if key not in self._made:
                self._made[key] = self._write(f"{size}.{number}", message(number, size=size))
            yield self._made[key]

    def huge(self, size: int) -> File:
        """Return one message of exactly about `size` bytes, an attachment in base64."""
        chance = random.Random(size)
        line = base64.encodebytes(chance.randbytes(57 * 100_000)).replace(b"\n", b"\r\n")
        kind, small = _attached(chance, "=_huge", 4_000)
        part, end = small[: small.rindex(b"--=_huge--")], b"--=_huge--\r\n"
        body = part + line * (size // len(line)) + line[: size % len(line) // 78 * 78] + end
        return self._write(
            f"huge.{size}", b"Subject: Huge\r\n" + kind.encode() + b"\r\n\r\n" + body
        )

    def fill(self, maildir: Path, files: Iterable[File], *, first_uid: int = 0) -> tuple[int, int]:
        """Make a Maildir of these; return how many messages and bytes there are.

        The names say the sizes, as Dovecot writes them. `first_uid` is where UIDs begin.
        """
        for sub in ("", "cur", "new", "tmp"):
            (maildir / sub).mkdir(parents=True, exist_ok=True)
            self._take(maildir / sub)
        count = total = 0
        names = []
        for number, file in enumerate(files):
            size = f"S={file.stored},W={file.size}"
            names.append(f"{_START + number}.M{number}P1.bench,{size}")
            os.link(file.path, maildir / "cur" / f"{names[-1]}:2,S")
            count, total = count + 1, total + file.size
        if first_uid:
            lines = [f"3 V{_START} N{first_uid + count} G{'0' * 31}1"]
            lines += [f"{first_uid + number} :{name}" for number, name in enumerate(names)]
            uids = maildir / "dovecot-uidlist"
            uids.write_text("\n".join(lines) + "\n")
            self._take(uids)
        return count, total

    def _write(self, name: str, body: bytes) -> File:
        path = self._directory / name
        stored = path.write_bytes(body.replace(b"\r\n", b"\n"))
        self._take(path)
        return File(path, len(body), stored)

    def _take(self, path: Path) -> None:
        if os.getuid() == 0:
            os.chown(path, *self._owner)
