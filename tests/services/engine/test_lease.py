"""One worker has a mailbox: it may die, be told to stop, or take too long, and nothing is lost."""

import datetime as dt
import os
import threading
import time
from pathlib import Path

import pytest
from django.db import connection, transaction
from django.utils import timezone

from connectors.errors import MessageRefused, Unavailable
from ingestion.errors import LeaseLost, NotAllowedNow
from ingestion.models import (
    FailedMessage,
    Folder,
    IngestionSource,
    Mailbox,
    Message,
    Pack,
    Placement,
    Run,
    StatusChange,
)
from ingestion.packs.store import store
from ingestion.services.engine import commit, due_work, lease, sync
from ingestion.services.sources import credentials, deletion, verbs
from tests.servers.mortal import MortalProcess, dies
from tests.servers.scripted_provider import Server
from tests.servers.scripted_source import (
    ACTOR,
    assert_exact,
    due_now,
    fill,
    finish,
    start,
    work,
    work_as_soon_as_it_is_free,
)
from tests.servers.stack import wait_for

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_lease_is_exclusive_expires_and_survives_a_clock_set_back(
    server: Server, source: IngestionSource
) -> None:
    start(source)
    mailbox = due_now()
    first = lease.acquire(mailbox.pk)
    assert first is not None
    assert lease.acquire(mailbox.pk) is None
    for expires in (dt.timedelta(seconds=-1), dt.timedelta(hours=1)):
        Mailbox.objects.update(lease_expires_at=timezone.now() + expires)
        other = lease.acquire(mailbox.pk)
        assert other is not None
    with pytest.raises(LeaseLost), transaction.atomic():
        first.fence()


def test_the_lease_of_a_worker_that_died_is_free_at_once(
    server: Server, source: IngestionSource
) -> None:
    start(source)
    mailbox = due_now()

    def die() -> None:
        lease.acquire(mailbox.pk)
        connection.close()  # as the end of a process does

    worker = threading.Thread(target=die)
    worker.start()
    worker.join()
    row = Mailbox.objects.get()
    assert row.lease_expires_at is not None
    assert row.lease_expires_at > timezone.now()
    wait_for(lambda: due_work.Work("mailbox", mailbox.pk) in due_work.hand_out())
    assert lease.acquire(mailbox.pk) is not None
    assert list(due_work.hand_out()) == []


def die_at_work() -> None:
    """Leave the mailbox's lease behind, as a worker that was killed does."""
    pk = due_now().pk

    def die() -> None:
        wait_for(lambda: lease.acquire(pk))  # PostgreSQL may not have missed the last one yet
        connection.close()

    dead = threading.Thread(target=die)
    dead.start()
    dead.join()


def test_who_renews_a_token_keeps_the_lease(server: Server, source: IngestionSource) -> None:
    """The lease goes with the session that took it, and a worker's token is renewed in it."""
    start(source)
    mailbox = due_now()
    assert lease.acquire(mailbox.pk) is not None
    with credentials.environment(source).exchanging() as secrets:
        secrets["password"] = "renewed"
    assert lease.acquire(mailbox.pk) is None
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        assert Mailbox.objects.get().lease_session_pid == cursor.fetchone()[0]


@pytest.mark.parametrize("limit", ["idle_in_transaction_session_timeout", "transaction_timeout"])
def test_a_token_is_kept_however_long_its_renewal_takes(
    source: IngestionSource, limit: str
) -> None:
    """A provider takes seconds, and the token of before may be good no more."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET {limit} = 50")
    try:
        with credentials.environment(source).exchanging() as secrets:
            time.sleep(0.2)
            secrets["password"] = "renewed"
    finally:
        connection.close()
    source.refresh_from_db()
    assert source.secrets["password"] == "renewed"


def test_a_process_that_is_killed_while_it_asks_keeps_nobody_from_leaving() -> None:
    begins, begun = os.pipe()

    def ask() -> None:
        os.write(begun, b".")
        while True:
            lease.leaving.is_set()

    def hears() -> None:
        assert lease.leaving.is_set()

    for _ in range(20):  # of which any one may be in the midst of asking
        with MortalProcess(ask, at_step=None, directory=Path("/nowhere")):
            os.read(begins, 1)
            time.sleep(0.005)
    os.close(begins)
    os.close(begun)
    told = threading.Thread(target=lease.leaving.set, daemon=True)
    told.start()
    told.join(10)
    assert not told.is_alive()
    try:
        assert not dies(hears, at_step=None, directory=Path("/nowhere")), "a fork hears it"
    finally:
        lease.leaving.clear()


def test_care_leaves_no_trace_where_nobody_dies(server: Server, source: IngestionSource) -> None:
    """A message alone that is refused is a failure like any; one that breaks off is none."""
    fill(server, 8)
    server.refused["1:3"] = MessageRefused("The server said NO to this message.")

    def drop(handed_out: int) -> None:
        if handed_out == 5:
            server.before_message = lambda _: None
            raise Unavailable("The connection was dropped.")

    server.before_message = drop
    start(source)
    die_at_work()
    work_as_soon_as_it_is_free()
    assert Message.objects.count() == 5  # each was committed alone
    for run in (Run.objects.get(), finish(source)):
        failure = FailedMessage.objects.get()
        assert (failure.remote_id, failure.code) == ("1:3", "message_refused")
        assert (failure.attempts, run.messages_failed) == (1, 1)
    assert Run.objects.get().message == "7 archived, 1 failed."
    assert len(server.fetched) == len(set(server.fetched)) == 7
    assert Mailbox.objects.get().worker_deaths == 0


def test_care_ends_after_the_bytes_of_a_batch_whatever_the_listing_tells(
    server: Server, source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "COMMIT_BYTES", 150)
    server.lists_bare = True
    fill(server, 6)
    start(source)
    Mailbox.objects.update(worker_deaths=1)
    deaths: list[int] = []
    server.before_message = lambda _: deaths.append(Mailbox.objects.get().worker_deaths)
    work()
    assert (deaths[0], deaths[-1]) == (1, 0)


def test_a_mailbox_over_which_workers_keep_dying_waits_before_the_next(
    server: Server, source: IngestionSource
) -> None:
    """Whatever it is that kills them: the wait is written down before the work, as nobody may be
    left to do it afterwards."""
    fill(server, 5)
    start(source)
    for _ in range(4):
        die_at_work()
    seen: list[tuple[Mailbox, Run]] = []
    server.before_message = lambda _: seen.append((Mailbox.objects.get(), Run.objects.get()))
    before = timezone.now()
    work_as_soon_as_it_is_free()
    mailbox, run = seen[0]
    assert (mailbox.worker_deaths, mailbox.last_error_code) == (4, "worker_died")
    assert mailbox.not_before > before + dt.timedelta(seconds=0.5)
    assert run.warning.startswith("4 workers in a row died")
    mailbox = Mailbox.objects.get()
    assert (mailbox.worker_deaths, mailbox.attempts, mailbox.last_error) == (0, 0, "")
    assert_exact(server, source)


def test_pause_stops_within_a_page_and_keeps_all_it_has(
    server: Server, source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.01)
    held: list[lease.Lease] = []
    renew = lease.Lease._renew

    def renewed(self: lease.Lease) -> None:
        held.append(self)
        renew(self)

    monkeypatch.setattr(lease.Lease, "_renew", renewed)
    fill(server, 40)

    def pause(handed_out: int) -> None:
        if handed_out == 15:
            verbs.pause(source, actor=ACTOR)
            wait_for(held[0].stopping.is_set)  # the lease's thread looks at the row meanwhile

    server.before_message = pause
    start(source)
    work()
    source.refresh_from_db()
    assert source.status == "paused"
    kept = Message.objects.count()
    assert 10 <= kept < 40
    with pytest.raises(NotAllowedNow):
        verbs.start_sync(source, actor=ACTOR)
    work()
    assert Message.objects.count() == kept
    server.before_message = lambda _: None
    verbs.resume(source, actor=ACTOR)
    finish(source)
    assert_exact(server, source)
    assert len(server.fetched) == 40


def test_a_page_that_takes_too_long_goes_on_in_the_next_slice(
    server: Server, source: IngestionSource
) -> None:
    """A worker that stayed with it would be killed by Celery's time limit, in the end."""
    server.page_size = 1_000
    fill(server, 5)
    start(source)
    for expected in (1, 2, 3, 4):
        assert sync.sync_mailbox(due_now().pk, slice_seconds=0, page_seconds=0)
        assert Message.objects.count() == expected
        assert Folder.objects.get().cursor is None
    finish(source)
    assert_exact(server, source)
    assert len(server.fetched) == 5


def test_deletion_leaves_nothing_and_stops_a_running_worker(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 40)

    def delete(handed_out: int) -> None:
        if handed_out == 15:
            verbs.delete(source, actor=ACTOR)

    server.before_message = delete
    start(source)
    work()
    assert Message.objects.count() in (0, 10)  # the first page was being committed meanwhile
    assert [work.kind for work in due_work.hand_out()] == ["delete"]
    deletion.delete_source(source.pk)
    for model in (IngestionSource, Mailbox, Folder, Message, Placement, Pack, Run, StatusChange):
        assert not model.objects.exists(), model
    assert list(store().packs()) == []


def test_a_deletion_that_is_told_to_end_is_gone_on_with_by_the_next_worker(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 3)
    start(source)
    finish(source)
    source.refresh_from_db()
    verbs.delete(source, actor=ACTOR)
    lease.leaving.set()
    try:
        deletion.delete_source(source.pk)
    finally:
        lease.leaving.clear()
    assert (Message.objects.count(), IngestionSource.objects.count()) == (3, 1)
    assert len(list(store().packs())) == 1
    deletion.delete_source(source.pk)
    assert not IngestionSource.objects.exists()
