"""Servers that misbehave, through the whole engine: it waits no longer than it must, takes no more
memory than it may, says what is wrong, and goes on by itself once the server behaves."""

import threading
from collections.abc import Iterator

import pytest
from django.test import override_settings

from connectors.generic_imap import replies, wire
from ingestion.models import FailedMessage, IngestionSource, Message, Run
from ingestion.services.engine import failures
from ingestion.services.sources import discovery
from tests.servers import imap_source
from tests.servers.imap_script import Box, Client, ImapScript
from tests.servers.imap_source import ACTOR, archived, held_by, stray_files

pytestmark = pytest.mark.django_db(transaction=True)
#: For as long as the server is silent: a busy machine is that, too, where nobody means to be.
_IMPATIENT = override_settings(NETWORK_TIMEOUT_SECONDS=0.7)


@pytest.fixture
def server() -> Iterator[ImapScript]:
    with ImapScript() as script:
        fill(script.inbox, 40)
        yield script


@pytest.fixture
def source(server: ImapScript) -> IngestionSource:
    return imap_source.create(server)


def fill(box: Box, count: int) -> None:
    for number in range(count):
        box.deliver(b"Subject: %d\r\n\r\nBody %d\r\n" % (number, number))


def worked(source: IngestionSource) -> str:
    """Give it one slice, which ends though the server goes on; return what the mailbox says then."""
    return imap_source.work(source).last_error


def assert_goes_on(server: ImapScript, source: IngestionSource) -> None:
    """The server behaves again, and nothing that happened before has left a trace."""
    source.refresh_from_db()
    assert source.status == "importing"
    assert imap_source.finish(source).messages_failed == 0
    assert archived(source) == held_by(server)
    assert Message.objects.count() == 40
    assert not stray_files(source)


@pytest.mark.parametrize("command", [b"LOGIN", b"LIST", b"EXAMINE", b"UID FETCH"], ids=bytes.decode)
def test_a_server_that_accepts_and_never_answers(
    server: ImapScript, source: IngestionSource, command: bytes
) -> None:
    imap_source.start(source)
    over = threading.Event()

    def be_silent(_client: Client, _tag: bytes, asked: bytes) -> bool:
        if asked.startswith(command):
            over.wait(60)
        return asked.startswith(command)

    server.hooks.append(be_silent)
    with _IMPATIENT:
        assert "did not answer in time" in worked(source)
    assert "did not answer" in Run.objects.get().warning
    server.hooks.clear()
    over.set()
    assert_goes_on(server, source)


def test_a_server_that_accepts_and_says_not_even_a_greeting(
    server: ImapScript, source: IngestionSource
) -> None:
    imap_source.start(source)
    server.greeting = b""
    with _IMPATIENT:
        assert "did not answer in time" in worked(source)
    server.greeting = b"* OK ready\r\n"
    assert_goes_on(server, source)


def test_a_server_that_answers_one_byte_per_second(
    server: ImapScript, source: IngestionSource
) -> None:
    """It is never silent for long, and it would take months."""
    imap_source.start(source)
    over = threading.Event()

    def drip(client: Client, uid: int) -> None:
        if uid == 20 and not over.is_set():
            client.send(b"* 20 FETCH (UID 20 BODY[] {1000}\r\n")
            while not over.wait(1):
                client.send(b"x")

    server.before_each_mail = drip
    with override_settings(NETWORK_TIMEOUT_SECONDS=2.5):
        assert "answer" in worked(source)  # "too slowly", or not in the time left
    assert Message.objects.count() == 19
    over.set()
    assert_goes_on(server, source)


@pytest.mark.parametrize("command", [b"LIST", b"BODY"], ids=bytes.decode)
def test_a_server_that_sends_untagged_lines_without_end(
    server: ImapScript,
    source: IngestionSource,
    command: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "MAX_REPLY_BYTES", 10_000_000)
    monkeypatch.setattr(replies, "_MAX_UNASKED", 200_000)
    imap_source.start(source)
    flood = b"* OK [ALERT] hear, hear\r\n* 40 EXISTS\r\n* 7 FETCH (FLAGS ())\r\n" * 20_000

    def chatter(client: Client, _tag: bytes, asked: bytes) -> bool:
        while command in asked:
            client.send(flood)
        return False

    server.hooks.append(chatter)
    assert "without end" in worked(source)
    server.hooks.clear()
    assert_goes_on(server, source)


def test_a_body_announced_with_4_gb_costs_one_message(
    server: ImapScript, source: IngestionSource
) -> None:
    server.inbox.mails[17].answer = b"{4294967295}\r\nand then a few bytes"
    imap_source.start(source)
    assert imap_source.finish(source).message.startswith("39 archived, 1 failed.")
    failure = FailedMessage.objects.get()
    assert (failure.remote_id, failure.code) == ("1:17", "too_large")
    server.inbox.mails[17].answer = None
    failures.retry(source, actor=ACTOR)
    discovery.discover(Run.objects.get(finished_at=None).pk)
    assert imap_source.finish(source).messages_new == 1
    assert archived(source) == held_by(server)


def test_a_folder_name_announced_with_4_gb_is_refused(
    server: ImapScript, source: IngestionSource
) -> None:
    imap_source.start(source)

    def announce(client: Client, _tag: bytes, asked: bytes) -> bool:
        if asked.startswith(b"LIST"):
            client.send(b'* LIST () "/" {4294967295}\r\nINBOX')
        return asked.startswith(b"LIST")

    server.hooks.append(announce)
    assert "announced 4,294,967,295 bytes" in worked(source)
    server.hooks.clear()
    assert_goes_on(server, source)


def test_sizes_in_the_listing_that_are_wrong_change_nothing(
    server: ImapScript, source: IngestionSource
) -> None:
    for uid, size in ((3, 0), (4, 1), (5, 900_000_000), (6, 4_000_001)):
        server.inbox.mails[uid].size = size
    imap_source.start(source)
    assert imap_source.finish(source).message == "40 archived."
    assert archived(source) == held_by(server)


@pytest.mark.parametrize("off", [-7, 3, 50, 1_000_000])
def test_a_body_announced_with_a_wrong_size_is_never_archived(
    server: ImapScript, source: IngestionSource, off: int
) -> None:
    """Too short a size would cut the message, too long a one would swallow the next."""
    body = server.inbox.mails[17].body
    server.inbox.mails[17].answer = b"{%d}\r\n%s" % (len(body) + off, body)
    imap_source.start(source)
    with override_settings(NETWORK_TIMEOUT_SECONDS=4):  # for what is announced and never comes
        run = imap_source.finish(source)
    assert run.message.startswith("39 archived, 1 failed.")
    held = held_by(server)
    del held["INBOX", "1:17"]
    assert archived(source) == held
    assert FailedMessage.objects.get().remote_id == "1:17"


def test_a_message_that_always_ends_the_connection_costs_only_itself(
    server: ImapScript, source: IngestionSource
) -> None:
    def crash(client: Client, uid: int) -> None:
        if uid == 17:
            client.hang_up()

    server.before_each_mail = crash
    imap_source.start(source)
    run = imap_source.finish(source)
    assert run.message.startswith("39 archived, 1 failed.")
    failure = FailedMessage.objects.get()
    assert (failure.remote_id, failure.code) == ("1:17", "breaks_connection")
    source.refresh_from_db()
    assert source.status == "active"
