"""A deploy: workers are told to end (SIGTERM) in the middle of an import, and nobody pays for it."""

import os
import random
import signal
import threading
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from celery import current_app
from django.db import connection

from ingestion import tasks
from ingestion.models import IngestionSource, Mailbox, Message
from ingestion.services.engine import lease, sync
from ingestion.services.sources import verbs
from tests.e2e.test_crash import MESSAGES, fill, start_import
from tests.servers import imap_source
from tests.servers.dovecot import Dovecot
from tests.servers.slow_link import SlowLink
from tests.servers.stack import wait_for

if TYPE_CHECKING:
    from tests.servers.stack import Service


@pytest.mark.long(seconds=15)
def test_a_worker_that_is_told_to_end_gives_its_mailbox_back(
    service: "Service", api: httpx.Client, dovecot: Dovecot, wait_for: Callable[..., Any]
) -> None:
    """A slice is two minutes. It ends long before, and the next worker is not made careful by it."""
    account = dovecot.account()
    fill(dovecot, account.name, random.Random(1))
    with SlowLink(dovecot.host, dovecot.port, bytes_per_second=300_000) as link:
        source = start_import(api, link, account)
        wait_for(Message.objects.exists)
        old = service.pid("worker")
        os.kill(old, signal.SIGTERM)
        wait_for(lambda: service.supervised.children().get("worker", old) != old)
        had = Message.objects.count()
        assert had < MESSAGES, "there was nothing left to interrupt"
        assert Mailbox.objects.get().worker_deaths == 0
        wait_for(lambda: Message.objects.count() > had)
        assert Mailbox.objects.get().worker_deaths == 0
        link.bytes_per_second = None
        wait_for(lambda: IngestionSource.objects.get(pk=source).status == "active")
    assert Message.objects.count() == MESSAGES


@pytest.mark.long(seconds=15)
def test_tasks_by_names_that_are_no_more_are_passed_over(
    service: "Service", api: httpx.Client, dovecot: Dovecot, wait_for: Callable[..., Any]
) -> None:
    """Those of the release before, and in the old processes those of the new one: what they told of
    is found in the rows."""
    account = dovecot.account()
    dovecot.append(account.name, "INBOX", b"Subject: one\r\n\r\n")
    before = service.pid("control"), service.pid("worker")
    for queue in ("control", "sync"):
        current_app.send_task("ingestion.tasks.sync_mailbox", (str(uuid.uuid4()),), queue=queue)
        current_app.send_task("ingestion.tasks.do", ("compact", str(uuid.uuid4())), queue=queue)
    with SlowLink(dovecot.host, dovecot.port, bytes_per_second=None) as link:
        source = start_import(api, link, account)
        wait_for(lambda: IngestionSource.objects.get(pk=source).status == "active")
    assert (service.pid("control"), service.pid("worker")) == before
    assert Message.objects.count() == 1


def test_every_task_expires() -> None:
    """A queue that nobody serves holds what beat asked for in some minutes, and not in a month."""
    ours = [task for name, task in current_app.tasks.items() if name.startswith("ingestion.")]
    assert {task.name.rpartition(".")[2] for task in ours} == {
        *("compact", "dispatch", "do", "housekeeping"),
        *("look_at_database", "look_at_service", "look_at_sources", "look_at_workers"),
    }
    for task in ours:
        assert task.expires == tasks.EXPIRES_SECONDS


@pytest.fixture
def due(dovecot: Dovecot) -> Mailbox:
    """A mailbox that owes an import to its run."""
    source = imap_source.create(dovecot.account(b"Subject: one\r\n\r\n"))
    imap_source.start(source)
    return Mailbox.objects.get()


@pytest.mark.django_db(transaction=True)
def test_a_lease_is_given_back_where_the_run_ended_at_the_same_time(due: Mailbox) -> None:
    held = lease.acquire(due.pk)
    assert held is not None
    with pytest.MonkeyPatch.context() as patch:
        # Between taking the lease and reading the rows, somebody stops the source.
        verbs.pause(due.source, actor=imap_source.ACTOR)
        Mailbox.objects.update(run=None)
        patch.setattr(lease, "acquire", lambda _: held)
        assert sync.sync_mailbox(due.pk) is False
    assert Mailbox.objects.get().lease_expires_at is None


def _statements(text: str) -> int:
    """Return how many sessions do this just now."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE query = %s AND state = 'active'", [text]
        )
        [(count,)] = cursor.fetchall()
    connection.close()
    return int(count)


@pytest.mark.django_db(transaction=True)
def test_ctrl_c_in_the_middle_of_a_statement_gives_the_lease_back(due: Mailbox) -> None:
    """The connection can't be used after it, so the lease is given back on another."""
    held = lease.acquire(due.pk)
    assert held is not None
    main = threading.get_ident()

    def interrupt() -> None:
        try:
            wait_for(lambda: _statements("SELECT pg_sleep(600)"))
        finally:
            signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # xdist ignores it
    try:
        with pytest.raises(KeyboardInterrupt), held, connection.cursor() as cursor:
            thread.start()
            cursor.execute("SELECT pg_sleep(600)")
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    row = Mailbox.objects.get()
    assert (row.lease_expires_at, row.worker_deaths) == (None, 0)
    again = lease.acquire(due.pk)
    assert again is not None
    assert again.deaths == 0
    again.give_back()


@pytest.mark.django_db(transaction=True)
def test_who_is_about_to_end_takes_nothing_up(due: Mailbox) -> None:
    lease.leaving.set()
    try:
        assert lease.acquire(due.pk) is None
    finally:
        lease.leaving.clear()
