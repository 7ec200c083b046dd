"""What is due: each thing once, by whoever asks, and again when nobody came."""

import concurrent.futures
import datetime as dt

import pytest
from django.db import connection
from django.utils import timezone

from ingestion.models import IngestionSource, Mailbox, Run
from ingestion.services.engine import due_work
from ingestion.services.sources import credentials, discovery, verbs
from tests.servers.scripted_provider import Server
from tests.servers.scripted_source import ACTOR, fill, finish, start

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_sync_asked_for_when_a_run_has_nothing_left_to_do_is_a_new_one(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 3)
    start(source)
    finish(source)
    settled = verbs.start_sync(source, actor=ACTOR)
    Run.objects.filter(pk=settled.pk).update(discovered_at=timezone.now())  # and not yet finished
    asked = verbs.start_sync(source, actor=ACTOR)
    assert asked.pk != settled.pk
    settled.refresh_from_db()
    assert settled.status == "completed"


def test_the_bell_does_not_ring_again_while_mailboxes_are_listed(
    server: Server, source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "_BATCH", 1)
    run = verbs.start_import(source, actor=ACTOR)
    credentials.check(source, actor=ACTOR)
    assert "discover" in [bell.kind for bell in due_work.due()]
    long_ago = timezone.now() - dt.timedelta(seconds=due_work.RING_AGAIN_SECONDS + 1)
    Run.objects.update(rung_at=long_ago)
    heard: list[list[str]] = []

    def listen() -> None:
        if Mailbox.objects.exists():  # the first is stored
            heard.append([bell.kind for bell in due_work.due()])

    server.accounts, server.before_mailbox = ("a", "b"), listen
    discovery.discover(run.pk)
    assert heard == [["mailbox"]]


def test_many_triggers_at_once_start_one_run(server: Server, source: IngestionSource) -> None:
    fill(server, 3)
    credentials.check(source, actor=ACTOR)

    def trigger(number: int) -> str:
        verb = verbs.start_import if number % 2 else verbs.start_sync
        try:
            return str(verb(source, actor=ACTOR).pk)
        finally:
            connection.close()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        runs = set(pool.map(trigger, range(16)))
    assert len(runs) == 1
    assert Run.objects.count() == 1


def test_a_doorbell_rings_once_and_again_when_nobody_came(
    server: Server, source: IngestionSource
) -> None:
    start(source)
    assert [bell.kind for bell in due_work.due()] == ["mailbox"]
    assert list(due_work.due()) == []
    later = dt.timedelta(seconds=due_work.RING_AGAIN_SECONDS + 1)
    Mailbox.objects.update(rung_at=timezone.now() - later)
    assert [bell.kind for bell in due_work.due()] == ["mailbox"]


def test_a_schedule_starts_the_next_sync(server: Server, source: IngestionSource) -> None:
    fill(server, 3)
    start(source)
    finish(source)
    assert list(due_work.due()) == []
    IngestionSource.objects.update(next_sync_at=timezone.now() - dt.timedelta(seconds=1))
    assert [bell.kind for bell in due_work.due()] == ["discover"]
    assert Run.objects.get(finished_at=None).kind == "sync"
