"""What a day's archiving comes to is counted with the source's counters, and never twice."""

import datetime as dt

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.db.models import F, Sum
from django.test.utils import CaptureQueriesContext

from ingestion.models import ArchivedDay, IngestionSource, Mailbox
from ingestion.services.audit import Actor
from ingestion.services.engine.counters import recount_source
from ingestion.services.sources import deletion, verbs
from tests.e2e.rows import a_mailbox, a_source
from tests.servers.scripted_provider import Server
from tests.servers.scripted_source import fill, finish, start, synced

pytestmark = pytest.mark.django_db(transaction=True)


def test_the_days_of_a_source_come_to_what_is_archived_of_it(owner: User) -> None:
    source = a_source(owner)
    mailboxes = [a_mailbox(source, f"{n}@example.com") for n in range(2)]

    def arrived(mailbox: Mailbox, messages: int, size: int) -> None:
        Mailbox.objects.filter(pk=mailbox.pk).update(
            message_count=F("message_count") + messages, archived_bytes=F("archived_bytes") + size
        )
        recount_source(source.pk)

    arrived(mailboxes[0], 3, 300)
    recount_source(source.pk)  # nothing came
    today = ArchivedDay.objects.get()
    assert (today.messages, today.size_bytes) == (3, 300)
    ArchivedDay.objects.update(day=F("day") - dt.timedelta(days=1))
    arrived(mailboxes[1], 2, 50)
    arrived(mailboxes[0], 1, 1)

    assert list(ArchivedDay.objects.values_list("messages", "size_bytes")) == [(3, 300), (3, 51)]
    source.refresh_from_db()
    whole = ArchivedDay.objects.aggregate(n=Sum("messages"), size=Sum("size_bytes"))
    assert whole == {"n": source.message_count, "size": source.archived_bytes}


def test_a_worker_that_counts_while_its_source_is_removed_takes_nothing_away(owner: User) -> None:
    """It committed before the source was deleted, and counts after its mailboxes are gone."""
    source = a_source(owner)
    mailbox = a_mailbox(source, message_count=3, archived_bytes=300)
    recount_source(source.pk)
    ArchivedDay.objects.update(day=F("day") - dt.timedelta(days=1))
    verbs.delete(source, actor=Actor.system("tests"))
    mailbox.delete()
    recount_source(source.pk)
    assert list(ArchivedDay.objects.values_list("messages", "size_bytes")) == [(3, 300)]


def test_rows_that_are_lost_take_nothing_away_from_a_day(owner: User) -> None:
    source = a_source(owner)
    mailbox = a_mailbox(source, message_count=3, archived_bytes=300)
    recount_source(source.pk)
    ArchivedDay.objects.update(day=F("day") - dt.timedelta(days=1))
    mailbox.delete()
    recount_source(source.pk)
    assert list(ArchivedDay.objects.values_list("messages", "size_bytes")) == [(3, 300)]
    source.refresh_from_db()
    assert source.message_count == 0


def test_a_run_that_archives_nothing_counts_nothing(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 3)
    start(source)
    finish(source)
    source.refresh_from_db()
    assert source.message_count == ArchivedDay.objects.get().messages == 3

    def counted() -> int:
        with CaptureQueriesContext(connection) as done:
            synced(source)
        source.refresh_from_db()
        return sum("sum(message_count)" in query["sql"] for query in done)

    assert counted() == 0
    Mailbox.objects.update(message_count=4)  # as one that died left it, of this run
    server.deliver("INBOX", b"Subject: more\r\n\r\n")
    assert counted() == 1  # another thread's commit had its own
    assert source.message_count == ArchivedDay.objects.get().messages == 5


def test_they_go_with_the_source(owner: User) -> None:
    source = a_source(owner)
    ArchivedDay.objects.create(source=source, day=dt.date(2026, 1, 1), messages=1)
    verbs.delete(source, actor=Actor.system("tests"))
    deletion.delete_source(source.pk)
    assert not IngestionSource.objects.exists()
    assert not ArchivedDay.objects.exists()
