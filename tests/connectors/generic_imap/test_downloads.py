"""Bodies that can't be had by IMAP: an outage, bad messages, and what Exchange serves instead."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors import registry
from connectors.base import MailboxSession
from connectors.config import Environment
from connectors.errors import FolderRefused, MessageRefused, Unavailable
from connectors.types import MessageRef, Missing, RawMessage
from ingestion.models import FailedMessage, Folder
from ingestion.services.engine import failures
from tests.servers import imap_source
from tests.servers.imap_script import Box, Client, ImapScript

STAND_IN = (
    b"Subject: Retrieval using the IMAP4 protocol failed for the following message: 7\r\n"
    b"From: Microsoft Exchange Server <me@example.com>\r\nMIME-Version: 1.0\r\n\r\n"
    b"The server couldn't retrieve the following message:\r\n\r\n"
    b'Subject: "Quarterly figures"\r\nThe message hasn\'t been deleted.\r\n'
)


#: What Courier serves where it can't open a message's file (imap/fetch.c: `unavailable`), and of some
#: versions where a header has bytes above 127 (`canned_msg`).
NOT_OPENED = (
    b"From: System Administrator <root@localhost>\r\nSubject: message unavailable\r\n\r\n"
    b"This message is no longer available on the server.\r\n"
)
NOT_SHOWN = (
    b"From: Mail Delivery Subsystem <postmaster@localhost>\r\nSubject: Message unavailable\r\n\r\n"
    b"This is a Unicode message that cannot be correctly\r\n"
    b"opened by your E-mail program. Please upgrade to\r\n"
    b"an E-mail program that supports IMAP with UTF-8.\r\n"
)


def fill(box: Box, count: int) -> None:
    for number in range(count):
        box.deliver(b"Subject: %d\r\n\r\nOf folder %d\r\n" % (number, box.validity))


@contextlib.contextmanager
def opened(server: ImapScript) -> Iterator[MailboxSession]:
    config = imap_source.config(server)
    with (
        registry.build("generic_imap", config, Environment(timeout_seconds=30)) as connector,
        connector.open(next(iter(connector.mailboxes()))) as session,
    ):
        yield session


def answers(session: MailboxSession, *uids: int) -> list[RawMessage | Missing]:
    """Fetch these of the inbox, or all of it."""
    inbox = next(folder for folder in session.folders() if folder.role == "inbox")
    refs = [ref for page in session.changes(inbox, None) for ref in page.added]
    if uids:
        refs = [MessageRef(f"1:{uid}") for uid in uids]
    return list(session.fetch(inbox, refs))


def refused(found: list[RawMessage | Missing]) -> list[str]:
    errors = [answer.error for answer in found if isinstance(answer, Missing)]
    return [error.code for error in errors if isinstance(error, MessageRefused)]


# -- outages and bad messages ----------------------------------------------------------------------

_OUTAGE = b"NO [UNAVAILABLE] UID FETCH Service is temporarily not available"


@pytest.mark.django_db(transaction=True)
def test_an_outage_at_the_bodies_leaves_no_message_failed(
    server: ImapScript, archive_dir: Path
) -> None:
    fill(server.inbox, 800)
    source = imap_source.create(server)
    sent = imap_source.Sent(server)

    counted = server.before_each_mail

    def goes_out_of_order(client: Client, uid: int) -> None:
        counted(client, uid)
        if sum(sent.times.values()) == 200:
            for mail in server.inbox.mails.values():
                mail.refusal = _OUTAGE

    server.before_each_mail = goes_out_of_order
    imap_source.start(source)
    mailbox = imap_source.work(source)
    assert mailbox.last_error_code == "refuses_all"
    assert not FailedMessage.objects.exists()
    assert len(server.asked(b"BODY.PEEK[])")) < 40
    for mail in server.inbox.mails.values():
        mail.refusal = b""
    assert imap_source.finish(source).messages_failed == 0
    assert imap_source.archived(source) == imap_source.held_by(server)


def test_many_bad_messages_among_good_ones_are_each_refused(server: ImapScript) -> None:
    fill(server.inbox, 60)
    bad = range(5, 45)
    for uid in bad:
        server.inbox.mails[uid].refusal = b"NO [SERVERBUG] can't read it"
    with opened(server) as session:
        found = answers(session)
        assert len(found) == 60
        assert len(refused(found)) == len(bad)
        # Also where they alone are asked for again.
        assert len(refused(answers(session, *bad))) == len(bad)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("refusal", [b"NO can't read it", b"OK done"])
def test_bad_messages_alone_in_a_folder_end_as_failed_and_the_others_arrive(
    server: ImapScript, archive_dir: Path, refusal: bytes
) -> None:
    bad = server.boxes[b"Alpha"] = Box(validity=5)
    fill(bad, 25)
    for mail in bad.mails.values():
        mail.refusal = refusal
    server.boxes = {b"Alpha": bad, b"INBOX": server.inbox, b"Zulu": Box(validity=6)}
    fill(server.inbox, 10)
    fill(server.boxes[b"Zulu"], 10)
    source = imap_source.create(server)
    run = imap_source.imported(source)
    assert (run.message, run.messages_failed) == ("20 archived, 25 failed.", 25)
    assert set(FailedMessage.objects.values_list("code", flat=True)) == {"message_refused"}


# -- stand-ins of Exchange and Courier -------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "stand_in", [STAND_IN, NOT_OPENED, NOT_SHOWN], ids=["exchange", "courier", "courier_unicode"]
)
def test_a_stand_in_is_not_the_message_and_the_message_is_had_later(
    server: ImapScript, archive_dir: Path, stand_in: bytes
) -> None:
    fill(server.inbox, 10)
    whole, server.inbox.mails[7].body = server.inbox.mails[7].body, stand_in
    source = imap_source.create(server)
    run = imap_source.imported(source)
    assert (run.message, run.messages_failed) == ("9 archived, 1 failed.", 1)
    failed = FailedMessage.objects.get()
    assert (failed.code, failed.remote_id) == ("stand_in", "1:7")
    server.inbox.mails[7].body = whole
    failures.retry(source, actor=imap_source.ACTOR)
    imap_source.synced(source)
    assert imap_source.archived(source) == imap_source.held_by(server)


@pytest.mark.parametrize(
    "body",
    [
        STAND_IN.replace(b"Subject: Retrieval", b"Subject: Fwd: Retrieval"),
        STAND_IN.replace(b"The server couldn't retrieve", b"Our server couldn't get"),
        STAND_IN + b"x" * 8_192,
        b"Subject: Look at this\r\n\r\n" + STAND_IN,
        b"Received: from a.example\r\n" + NOT_OPENED,
        NOT_OPENED + b"\r\n",
        NOT_OPENED.replace(b"root@localhost", b"root@example.com"),
    ],
    ids=[
        *("forwarded", "another_text", "large", "quoted"),
        *("courier_delivered", "courier_longer", "courier_elsewhere"),
    ],
)
def test_mail_about_stand_ins_is_mail(server: ImapScript, body: bytes) -> None:
    server.inbox.deliver(body)
    with opened(server) as session:
        [answer] = answers(session)
    assert isinstance(answer, RawMessage)
    assert answer.body == body


@pytest.mark.parametrize("apostrophe", [b"'", "’".encode(), b"=92"])
def test_a_stand_in_is_known_however_it_is_written(server: ImapScript, apostrophe: bytes) -> None:
    server.inbox.deliver(STAND_IN.replace(b"couldn't", b"couldn" + apostrophe + b"t"))
    with opened(server) as session:
        assert refused(answers(session)) == ["stand_in"]


def test_a_folder_of_stand_ins_alone_holds_no_mail(server: ImapScript) -> None:
    for _ in range(300):
        server.inbox.deliver(STAND_IN)
    with opened(server) as session, pytest.raises(FolderRefused, match="calendars") as caught:
        answers(session)
    assert caught.value.code == "no_mail"


def test_many_stand_ins_among_mail_are_each_refused(server: ImapScript) -> None:
    for _ in range(60):
        server.inbox.deliver(STAND_IN)
    fill(server.inbox, 100)
    with opened(server) as session:
        assert len(refused(answers(session, *range(1, 61)))) == 60
        found = answers(session)
        assert (len(found), len(refused(found))) == (160, 60)


def test_a_few_stand_ins_alone_are_each_refused(server: ImapScript) -> None:
    for _ in range(19):
        server.inbox.deliver(STAND_IN)
    with opened(server) as session:
        assert refused(answers(session)) == ["stand_in"] * 19


def test_a_server_that_can_open_no_message_for_a_while_is_an_outage(server: ImapScript) -> None:
    fill(server.inbox, 60)
    for mail in server.inbox.mails.values():
        mail.body = NOT_OPENED
    with opened(server) as session, pytest.raises(Unavailable, match="outage") as caught:
        answers(session)
    assert caught.value.code == "refuses_all"


def test_an_outage_that_begins_with_the_first_body_is_one(server: ImapScript) -> None:
    fill(server.inbox, 60)
    for mail in server.inbox.mails.values():
        mail.refusal = _OUTAGE
    with opened(server) as session, pytest.raises(Unavailable, match="outage"):
        answers(session)


@pytest.mark.django_db(transaction=True)
def test_a_folder_without_mail_is_told_once_and_the_others_arrive(
    server: ImapScript, archive_dir: Path
) -> None:
    calendar = server.boxes[b"Calendar"] = Box(validity=5)
    for _ in range(50):
        calendar.deliver(STAND_IN)
    fill(server.inbox, 10)
    source = imap_source.create(server)
    said = "1 folder could not be read: Calendar (no_mail)"
    assert said in imap_source.imported(source).message
    for _ in range(4):  # also once its messages are asked for one by one
        Folder.objects.update(not_before=None)
        assert said in imap_source.synced(source).message
    assert "calendars" in Folder.objects.get(path="Calendar").last_error
    assert not FailedMessage.objects.exists()
    del server.boxes[b"Calendar"]
    assert imap_source.archived(source) == imap_source.held_by(server)
