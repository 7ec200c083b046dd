"""Each way in which the best-known peer loses or doubles mail, through the whole engine.

The servers are IMAP servers on sockets, PostgreSQL and the archive are real.
"""

import concurrent.futures
import datetime as dt
import re
import shutil
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import psycopg
import pytest
from django.conf import settings

from ingestion.models import FailedMessage, IngestionSource, Message, Pack, Placement, Run
from ingestion.packs.store import store
from ingestion.services.archive import housekeeping
from ingestion.services.engine import failures, lease
from ingestion.services.sources import discovery
from tests.servers import imap_source
from tests.servers.dovecot import Dovecot
from tests.servers.imap_script import Box, Client, ImapScript
from tests.servers.imap_source import ACTOR, Sent, archived, held_by, stray_files
from tests.servers.stack import wait_for

if TYPE_CHECKING:
    from tests.servers.stack import Service

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def server() -> Iterator[ImapScript]:
    with ImapScript() as script:
        yield script


@pytest.fixture
def source(server: ImapScript) -> IngestionSource:
    return imap_source.create(server)


def body(number: int) -> bytes:
    return b"Subject: %d\r\nMessage-ID: <%d@example.com>\r\n\r\nBody %d\r\n" % ((number,) * 3)


def fill(box: Box, count: int) -> None:
    for number in range(count):
        box.deliver(body(number))


def assert_exact(server: ImapScript, source: IngestionSource) -> None:
    assert archived(source) == held_by(server)
    assert not stray_files(source)
    source.refresh_from_db()
    assert source.status == "active"
    assert source.message_count == Message.objects.filter(mailbox__source=source).count()


def test_a_connection_dropped_at_the_sixth_body_of_forty(
    server: ImapScript, source: IngestionSource
) -> None:
    fill(server.inbox, 40)
    sent = Sent(server)

    def drop(client: Client, uid: int) -> None:
        if uid == 6 and sent.times[6] == 1:
            client.send(b"* 6 FETCH (UID 6 BODY[] {60}\r\nSubject: 5\r\nonly a part of it")
            client.hang_up()

    server.before_each_mail = drop
    sent = Sent(server)
    imap_source.start(source)
    mailbox = imap_source.work(source)
    assert (mailbox.message_count, mailbox.last_error_code) == (5, "unavailable")
    assert imap_source.finish(source).message == "40 archived."
    assert sent.times == {uid: 1 + (uid == 6) for uid in range(1, 41)}
    assert_exact(server, source)
    assert Message.objects.count() == 40


def test_no_to_one_message_of_forty(server: ImapScript, source: IngestionSource) -> None:
    fill(server.inbox, 40)
    server.inbox.mails[17].refusal = b"NO [SERVERBUG] Internal error occurred"
    assert imap_source.imported(source).message == "39 archived, 1 failed."
    failure = FailedMessage.objects.get()
    assert (failure.remote_id, failure.code) == ("1:17", "message_refused")
    assert "Internal error occurred" in failure.reason
    source.refresh_from_db()
    assert source.status == "active"

    server.inbox.mails[17].refusal = b""
    server.commands.clear()
    assert imap_source.synced(source).message == "0 archived."  # its time has not come
    assert not server.asked(b"BODY")
    assert failures.retry(source, actor=ACTOR) == 1
    discovery.discover(Run.objects.get(finished_at=None).pk)
    assert imap_source.finish(source).message == "1 archived."
    [asked] = server.asked(b"BODY")
    assert asked.startswith(b"UID FETCH 17 (")
    assert not FailedMessage.objects.exists()
    assert_exact(server, source)


@pytest.mark.parametrize(
    "command", [b"LIST", b"EXAMINE", b"UID SEARCH", b"UID FETCH"], ids=bytes.decode
)
def test_a_drop_while_listing(server: ImapScript, source: IngestionSource, command: bytes) -> None:
    if command == b"UID FETCH":
        server.capabilities.append("OBJECTID")  # others are described together with the body
    fill(server.inbox, 600)
    server.boxes[b"Later"] = Box(validity=7)
    fill(server.boxes[b"Later"], 10)
    dropped: list[bytes] = []

    def drop(client: Client, _tag: bytes, asked: bytes) -> bool:
        if not dropped and asked.startswith(command) and b"BODY" not in asked:
            dropped.append(asked)
            send = client.send

            def send_half(data: bytes) -> None:
                send(data[: len(data) // 2])
                client.hang_up()

            client.send = send_half  # type: ignore[method-assign] # this one connection
        return False

    server.hooks.append(drop)
    imap_source.imported(source)
    assert dropped
    assert_exact(server, source)
    assert Placement.objects.count() == 610


@pytest.mark.parametrize("after", [100, 250])
def test_a_drop_in_the_middle_of_the_list_of_messages(
    server: ImapScript, source: IngestionSource, after: int
) -> None:
    """What was listed before the drop is no complete listing: nothing behind it may be passed."""
    server.capabilities.append("OBJECTID")  # others are described together with the body
    fill(server.inbox, 300)
    lines: list[bytes] = []

    def count(client: Client, _tag: bytes, asked: bytes) -> bool:
        send = client.send

        def counted(data: bytes) -> None:
            lines.append(data)
            if len(lines) == after:
                client.hang_up()
            send(data)

        if b"RFC822.SIZE" in asked and not lines:
            client.send = counted  # type: ignore[method-assign] # this one connection
        return False

    server.hooks.append(count)
    imap_source.imported(source)
    assert len(lines) >= after
    assert_exact(server, source)
    assert Message.objects.count() == 300


def test_a_uidvalidity_reset_with_lower_uids(server: ImapScript, source: IngestionSource) -> None:
    """The new numbers lie below the old cursor: whoever only asks for higher ones sees nothing."""
    for number in range(40):
        server.inbox.deliver(body(number), uid=1_001 + number)
    imap_source.imported(source)
    server.boxes[b"INBOX"] = Box(validity=2)
    for number in (*range(44, 39, -1), *range(39, -1, -1)):
        server.inbox.deliver(body(number))
    assert imap_source.synced(source).messages_new == 5
    assert_exact(server, source)
    assert Message.objects.count() == 45
    assert Placement.objects.filter(removed_at__isnull=False).count() == 40
    assert imap_source.synced(source).message == "0 archived."


def test_two_messages_with_one_message_id_and_different_contents(
    server: ImapScript, source: IngestionSource
) -> None:
    for text in (b"the invoice", b"the reminder"):
        server.inbox.deliver(b"Message-ID: <same@example.com>\r\n\r\n" + text)
    assert imap_source.imported(source).message == "2 archived."
    assert Message.objects.filter(message_id="<same@example.com>").count() == 2
    assert_exact(server, source)


def test_messages_without_message_id_in_two_accounts(server: ImapScript) -> None:
    """The same bytes in both, none with an identity of its own: each account keeps all of its."""
    with ImapScript() as other:
        other.name = "other@example.com"
        both = [(one, imap_source.create(one, name=one.name)) for one in (server, other)]
        for one, _ in both:
            for number in range(5):
                one.inbox.deliver(b"Subject: report\r\n\r\nNumber %d\r\n" % number)
        for one, its_source in both:
            assert imap_source.imported(its_source).message == "5 archived."
            assert_exact(one, its_source)
    assert Message.objects.count() == 10


def test_the_archive_failing_between_body_and_row(
    server: ImapScript, source: IngestionSource
) -> None:
    """The bodies have come and are being packed when the archive's directory is lost."""
    fill(server.inbox, 300)
    directory = settings.ARCHIVE_DIR / str(source.pk)

    def lose(_client: Client, uid: int) -> None:
        if uid == 300:
            wait_for(lambda: directory.is_dir() and any(directory.iterdir()))
            shutil.rmtree(directory)
            directory.write_bytes(b"in the way")

    server.before_each_mail = lose
    imap_source.start(source)
    mailbox = imap_source.work(source)
    assert mailbox.last_error_code == "storage"
    assert "ARCHIVE_DIR" in mailbox.last_error
    assert not Message.objects.exists()
    assert not Pack.objects.exists()
    server.before_each_mail = lambda _client, _uid: None
    directory.unlink()
    assert imap_source.finish(source).messages_new == 300
    assert_exact(server, source)


def test_the_database_failing_between_body_and_row(
    server: ImapScript, source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pack is durable when its transaction's session is killed: no row, and then one of each."""
    monkeypatch.setattr(lease, "RENEW_SECONDS", 3_600)  # it would wait for the row, too
    fill(server.inbox, 40)
    imap_source.start(source)
    packs_then: list[int] = []

    def kill_the_waiting_session(lock: "psycopg.Connection[Any]") -> None:
        waits = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        with lock, connected() as watcher:  # leaving it lets go of the mailbox's row
            watcher.autocommit = True  # or it would see one moment again and again
            pid = wait_for(lambda: watcher.execute(waits).fetchone())
            packs_then.append(len(list(store().packs())))
            watcher.execute("SELECT pg_terminate_backend(%s)", pid)

    def lock_the_mailbox(_client: Client, uid: int) -> None:
        if uid == 40 and not killers:
            lock = connected()
            lock.execute("SELECT 1 FROM ingestion_mailbox FOR UPDATE")
            killers.append(threading.Thread(target=kill_the_waiting_session, args=(lock,)))
            killers[0].start()

    killers: list[threading.Thread] = []
    server.before_each_mail = lock_the_mailbox
    imap_source.work(source)
    killers[0].join()
    assert packs_then == [1]
    assert not Message.objects.exists()
    assert imap_source.finish(source).message == "40 archived."
    assert archived(source) == held_by(server)
    assert Message.objects.count() == 40
    orphans = stray_files(source)
    assert len(orphans) == 1
    assert housekeeping.collect_orphans(older_than=dt.timedelta(seconds=-5)) == 1
    assert_exact(server, source)


def connected() -> "psycopg.Connection[Any]":
    """Return a session of the test's own on the test's database."""
    database = settings.DATABASES["default"]
    return psycopg.connect(host=database["HOST"], user=database["USER"], dbname=database["NAME"])


@pytest.mark.long(seconds=15)
def test_an_import_and_four_other_triggers_at_once_on_3000_messages(
    service: "Service", api: httpx.Client, dovecot: Dovecot
) -> None:
    account = dovecot.account()
    bodies = [body(number) for number in range(3_000)]
    dovecot.preload(account.name, "INBOX", bodies)
    made = api.post(
        "/ingestion",
        json={
            "name": "Triggered",
            "provider": "generic_imap",
            "providerConfig": imap_source.config(account),
        },
    )
    url = f"/ingestion/{made.json()['id']}"
    wait_for(lambda: api.get(url).json()["status"] == "auth_success")

    def pull(verb: str) -> set[int]:
        return {api.post(f"{url}/{verb}").status_code for _ in range(10)}

    said = len(service.output())  # before that, the end of another test may have been in the way
    triggers = ["import", "sync", "import", "sync", "failures/retry"]
    with concurrent.futures.ThreadPoolExecutor(len(triggers)) as pool:
        codes = set.union(*pool.map(pull, triggers))
    assert codes <= {200, 202}
    wait_for(lambda: api.get(url).json()["status"] == "active")
    wait_for(lambda: not Run.objects.filter(finished_at=None).exists())
    assert Message.objects.count() == Placement.objects.count() == 3_000
    assert sum(Run.objects.values_list("messages_new", flat=True)) == 3_000
    assert not {"deadlock", "others_went_first"} & set(re.findall(r"\w+", service.output()[said:]))
    source = IngestionSource.objects.get()
    assert source.message_count == 3_000
    assert archived(source) == dovecot.contents(account.name)
    assert not stray_files(source)
