"""7,000 messages in 20 folders of a real Dovecot, malformed and very large ones among them.

Half of them are in one folder: several pages of its listing, and several commits.
"""

import hashlib
import random
from collections.abc import Iterator

import pytest

from ingestion.models import IngestionSource, Message, Placement
from ingestion_project.demo import mail
from tests.servers import imap_source
from tests.servers.dovecot import Dovecot
from tests.servers.imap_source import stray_files

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.long(seconds=30)]
_FOLDERS = 20
_MESSAGES = 7_000
_MALFORMED = 200
_LARGE_BYTES = (21_000_000, 25_000_000, 32_000_000)


def malformed(number: int, chance: random.Random) -> bytes:
    """Return bytes that no mail should have, each time others; only line ends are CRLF, since
    Dovecot itself alters bare ones."""
    noise = chance.randbytes(chance.randint(1, 3_000)).replace(b"\r", b"").replace(b"\n", b"\r\n")
    return (
        noise,
        b"Subject: cut =?utf-8?B?4pyT" + noise[:20].replace(b"\r\n", b""),
        b"Date: 99 Foo 0000 99:99:99 +9999\r\nFrom: <<<\r\nSubject\r\n: x\r\n\r\n" + noise,
        b"Content-Type: multipart/mixed; boundary=\r\n\r\n--\r\n----\r\n" + noise,
        b"Subject: " + b"a" * 70_000 + b"\r\n\r\n" + noise,
        b"Subject: nul \x00 and \xff\xfe\r\nSubject: twice\r\n\r\n" + noise,
        b"".join(b"X-%d: y\r\n" % n for n in range(3_000)) + b"\r\n" + noise,
        b"Subject: =?x-unknown?q?=FF?= =?utf-8?b?!!!?=\r\n\r\n" + noise,
    )[number % 8] + b"\r\n%d\r\n" % number


def usual(count: int) -> Iterator[bytes]:
    """Yield varied mail, as Dovecot serves it: bare line feeds become CRLF."""
    some = [each.body for each in mail.arriving(1_000) if len(each.body) < 100_000]
    for number in range(count):
        body = some[number % len(some)].replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        yield body + b"Copy %d.\r\n" % number


def test_every_message_of_7000_arrives_with_its_exact_bytes(
    dovecot: Dovecot,
) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    chance = random.Random(seed)
    bodies = [malformed(number, chance) for number in range(_MALFORMED)]
    bodies += [b"Subject: large\r\n\r\n" + b"%x" % chance.getrandbits(4 * s) for s in _LARGE_BYTES]
    bodies += usual(_MESSAGES - len(bodies))
    chance.shuffle(bodies)
    account = dovecot.account()
    half = _MESSAGES // 2
    dovecot.preload(account.name, "INBOX", bodies[:half])
    for number in range(1, _FOLDERS):
        dovecot.preload(account.name, f"Folder {number}", bodies[half + number - 1 :: _FOLDERS - 1])
    # IMAP4rev1 has no NUL in a literal (RFC 3501 section 4.3): Dovecot serves 0x80 for it.
    given = sorted(hashlib.sha256(body.replace(b"\0", b"\x80")).digest() for body in bodies)
    assert len(set(given)) == _MESSAGES
    del bodies

    source = imap_source.create(account)
    run = imap_source.imported(source)
    assert run.message == "7,000 archived."
    assert (run.messages_total, run.messages_failed, run.messages_gone) == (_MESSAGES, 0, 0)

    served = {place: hashlib.sha256(body).digest() for place, body in dovecot.each(account.name)}
    assert sorted(served.values()) == given
    assert len({folder for folder, _ in served}) == _FOLDERS
    assert read_back(source) == served
    assert Message.objects.count() == _MESSAGES
    assert not stray_files(source)


def read_back(source: IngestionSource) -> dict[tuple[str, str], bytes]:
    """Return (folder, remote id) -> SHA-256 of the bytes that the archive gives back now."""
    found = {}
    rows = Placement.objects.filter(mailbox__source=source).select_related(
        "message__mailbox", "folder"
    )
    for placement in rows.order_by("message__pack", "message__pack_offset").iterator():
        body = imap_source.read(placement.message)
        found[(placement.folder.remote_id, placement.remote_id)] = hashlib.sha256(body).digest()
    return found
