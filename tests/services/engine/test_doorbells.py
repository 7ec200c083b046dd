"""Doorbells: what a server tells at once is looked at at once, and nothing depends on it."""

import datetime as dt
import threading
from collections.abc import Callable, Iterator

import pytest
from django.db import connection
from django.utils import timezone

from connectors.generic_imap import idling
from connectors.types import RemoteMailbox
from ingestion.models import IngestionSource, Mailbox
from ingestion.services.engine import backoff, claims, doorbells, lease, looking
from ingestion.services.sources import credentials, verbs
from ingestion.states import MailboxState
from tests.servers import imap_source
from tests.servers.dovecot import Dovecot
from tests.servers.imap_script import MODERN, Client, ImapScript
from tests.servers.imap_source import ACTOR
from tests.servers.stack import wait_for

pytestmark = pytest.mark.django_db(transaction=True)
LATER = dt.timedelta(minutes=20)
ME = RemoteMailbox("x", "x")


@pytest.fixture
def server() -> Iterator[ImapScript]:
    with ImapScript(capabilities=(*MODERN, "IDLE")) as server:
        yield server


@pytest.fixture
def source(server: ImapScript) -> IngestionSource:
    """Imported, listened to, and due in twenty minutes."""
    source = imap_source.create(server)
    imap_source.imported(source)
    options = source.options | {"listen": True}
    IngestionSource.objects.update(options=options)
    rest(source)
    return source


@pytest.fixture
def listener() -> Iterator[doorbells.Listener]:
    listener = doorbells.Listener()
    yield listener
    listener.end()


def rest(source: IngestionSource) -> None:
    now = timezone.now()
    finished = now - dt.timedelta(minutes=1)
    IngestionSource.objects.filter(pk=source.pk).update(
        next_sync_at=now + LATER, last_sync_finished_at=finished
    )


def is_due(source: IngestionSource) -> bool:
    source.refresh_from_db()
    return source.next_sync_at is not None and source.next_sync_at <= timezone.now()


def listen(listener: doorbells.Listener, server: ImapScript, source: IngestionSource) -> None:
    """Begin, and wait until the first ring, which is for what came before, was heard."""
    listener.keep_up()
    wait_for(lambda: len(server.idling) == 1 and is_due(source))
    rest(source)


def test_new_mail_makes_its_mailbox_due_at_once(
    server: ImapScript, source: IngestionSource, listener: doorbells.Listener
) -> None:
    listen(listener, server, source)
    server.inbox.deliver(b"Subject: new\r\n\r\n")
    server.idling[0].send(b"* OK Still here\r\n* 1 EXISTS\r\n")
    wait_for(lambda: is_due(source))
    looking.work(source.pk)
    imap_source.finish(source)
    assert imap_source.archived(source) == imap_source.held_by(server)


def test_a_flood_of_rings_is_a_look_in_ten_seconds(source: IngestionSource) -> None:
    finished = timezone.now() - dt.timedelta(seconds=2)
    IngestionSource.objects.update(last_sync_finished_at=finished)
    mailbox = Mailbox.objects.get(source=source)
    for _ in range(3):
        assert doorbells.ring(source.pk, {mailbox.pk})
    source.refresh_from_db()
    assert source.next_sync_at == finished + dt.timedelta(seconds=10)


def test_a_ring_while_it_is_looked_at_has_it_looked_at_again(
    server: ImapScript, source: IngestionSource
) -> None:
    """What rang may have come when its folder was listed already."""
    mailbox = Mailbox.objects.get(source=source)

    def while_listing(_client: Client, _tag: bytes, command: bytes) -> bool:
        if command.startswith(b"LIST"):
            assert doorbells.ring(source.pk, {mailbox.pk})
            connection.close()  # this thread's own
        return False

    IngestionSource.objects.update(next_sync_at=timezone.now())
    server.hooks.append(while_listing)
    looking.work(source.pk)
    source.refresh_from_db()
    assert source.next_sync_at is not None
    assert source.next_sync_at <= timezone.now() + dt.timedelta(seconds=10)


def test_a_mailbox_that_comes_back_is_listened_to(
    server: ImapScript,
    source: IngestionSource,
    listener: doorbells.Listener,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doorbells, "_LOOK_SECONDS", 0.05)
    Mailbox.objects.update(state=MailboxState.UNAVAILABLE)
    listener.keep_up()
    [(thread, _)] = listener._threads.values()
    thread.join(1)  # it has looked, and does not end for that
    Mailbox.objects.update(state=MailboxState.ACTIVE)
    listener.keep_up()
    wait_for(lambda: len(server.idling) == 1)


def test_a_ring_while_a_sync_runs_is_kept_until_it_ended(source: IngestionSource) -> None:
    verbs.start_sync(source, actor=ACTOR)
    mailbox = Mailbox.objects.get(source=source)
    assert not doorbells.ring(source.pk, {mailbox.pk})


def test_a_connection_that_was_lost_is_opened_again_and_what_came_meanwhile_rings(
    server: ImapScript,
    source: IngestionSource,
    listener: doorbells.Listener,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backoff, "delay", lambda _: dt.timedelta(seconds=0.1))
    listen(listener, server, source)
    first = server.idling[0]
    first.send(b"* BYE Restarting\r\n")
    first.end()
    wait_for(lambda: bool(server.idling) and server.idling[-1] is not first and is_due(source))


def unchosen(_: IngestionSource) -> None:
    IngestionSource.objects.update(options={})


def paused(source: IngestionSource) -> None:
    verbs.pause(source, actor=ACTOR)


@pytest.mark.parametrize("end", [unchosen, paused])
def test_whoever_is_not_to_be_listened_to_any_more_is_not(
    server: ImapScript,
    source: IngestionSource,
    listener: doorbells.Listener,
    end: Callable[[IngestionSource], None],
) -> None:
    listen(listener, server, source)
    end(source)
    listener.keep_up()
    wait_for(lambda: server.open_connections == 0)


def test_one_process_listens_at_a_time(
    server: ImapScript, source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doorbells, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(lease, "leaving", threading.Event())
    idle = threading.Semaphore(0)

    class Seen(doorbells.Listener):
        def end(self) -> None:
            super().end()
            idle.release()

    thread = threading.Thread(target=Seen().run, daemon=True)
    with claims.claimed("listen", claims.EVERYTHING) as mine:
        assert mine
        thread.start()
        for _ in range(2):
            assert idle.acquire(timeout=120)
        assert server.idling == []
    wait_for(lambda: len(server.idling) == 1)
    lease.leaving.set()
    thread.join(120)
    wait_for(lambda: server.open_connections == 0)


def test_dead_doorbells_lose_nothing(
    server: ImapScript, source: IngestionSource, listener: doorbells.Listener
) -> None:
    listen(listener, server, source)
    listener.end()
    server.inbox.deliver(b"Subject: nobody heard\r\n\r\n")
    assert not is_due(source)
    IngestionSource.objects.update(next_sync_at=timezone.now())  # its turn has come
    looking.work(source.pk)
    imap_source.finish(source)
    assert imap_source.archived(source) == imap_source.held_by(server)


def test_idling_begins_anew_before_a_server_ends_it(
    server: ImapScript, source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idling, "_BEGIN_ANEW_SECONDS", 0.1)
    with (
        credentials.connect(source) as connector,
        connector.watch([ME]) as watch,  # type: ignore[union-attr] # it has IDLE
    ):
        assert watch.wait(0) == [ME]  # for what came before
        assert not watch.wait(0.2)
        assert not watch.wait(0.2)
        assert len(server.asked(b"IDLE")) >= 2
        wait_for(lambda: bool(server.idling))
        server.idling[0].send(b"* 1 EXISTS\r\n")
        assert watch.wait(60) == [ME]


def test_a_server_without_idle_is_not_listened_to(source: IngestionSource) -> None:
    with ImapScript() as plain, credentials.connect(imap_source.create(plain)) as connector:
        assert connector.watch([ME]) is None
        wait_for(lambda: plain.open_connections == 0)


def test_dovecot_rings(dovecot: Dovecot) -> None:
    account = dovecot.account(b"Subject: old\r\n\r\n")
    with credentials.connect(imap_source.create(account)) as connector:
        watch = connector.watch([ME])
        assert watch is not None
        with watch:
            assert watch.wait(0) == [ME]
            assert not watch.wait(0.1)
            dovecot.append(account.name, "INBOX", b"Subject: new\r\n\r\n")
            assert watch.wait(120) == [ME]
