"""Since when a mailbox, or a listing of mailboxes, fails: what sets it, what keeps it, what ends it.

What follows from that for a source is `ingestion.freshness`, and tests/test_freshness.py.
"""

import datetime as dt
import itertools

import pytest
from django.db.models import F

from connectors.errors import MailboxUnavailable, NeedsReauth, RateLimited, Unavailable
from ingestion import explaining, freshness
from ingestion.models import IngestionSource, Mailbox, Run
from ingestion.services.engine import careful, counters, lease, outcomes, sync
from ingestion.services.engine.counters import Progress
from ingestion.services.sources import configuration, credentials, discovery, verbs
from tests.servers.scripted_provider import Server
from tests.servers.scripted_source import ACTOR, due_now, finish, start, synced, work

pytestmark = pytest.mark.django_db(transaction=True)
GONE = Unavailable("The server is gone.")
LONG_AGO = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


def since() -> dt.datetime | None:
    return Mailbox.objects.get().failing_since


def test_it_lasts_from_the_first_failure_to_the_next_success_also_into_the_next_run(
    server: Server, source: IngestionSource
) -> None:
    start(source)
    assert since() is None
    server.open_error = GONE
    work()
    began = since()
    assert began is not None
    assert finish(source).status == "incomplete"  # after many tries, none of which is the first
    assert since() == began
    source.refresh_from_db()
    run = verbs.start_sync(source, actor=ACTOR)
    discovery.discover(run.pk)
    work()
    assert since() == began
    server.open_error = NeedsReauth("The password was refused.")
    work()
    assert since() == began
    server.open_error = None
    finish(source)
    assert since() is None


def test_progress_ends_it(server: Server, source: IngestionSource) -> None:
    run = start(source)
    server.open_error = GONE
    work()
    assert since() is not None
    counters.count(run.pk, Mailbox.objects.get().pk, Progress(messages=1))
    assert since() is None


def test_who_is_asked_to_wait_does_not_fail(server: Server, source: IngestionSource) -> None:
    start(source)
    server.open_error = RateLimited("Too many requests.", retry_after_seconds=600)
    work()
    assert (since(), Mailbox.objects.get().last_error_code) == (None, "rate_limited")


def test_what_can_not_be_had_at_all_is_no_failure_any_more(
    server: Server, source: IngestionSource
) -> None:
    start(source)
    server.open_error = GONE
    work()
    server.open_error = MailboxUnavailable("No licence.")
    work()
    assert (since(), Mailbox.objects.get().state) == (None, "unavailable")


def test_other_credentials_and_a_resumption_begin_anew(
    server: Server, source: IngestionSource
) -> None:
    start(source)
    server.open_error = GONE
    work()
    began = since()
    source.refresh_from_db()
    verbs.pause(source, actor=ACTOR)
    assert since() == began
    source.refresh_from_db()
    verbs.resume(source, actor=ACTOR)
    assert since() is None
    work()
    assert since() is not None
    source.refresh_from_db()
    configuration.update(source, changes={"providerConfig": {"password": "new"}}, actor=ACTOR)
    assert credentials.check(source, actor=ACTOR).ok
    assert since() is None


def test_workers_that_die_over_a_mailbox_are_a_failure(
    server: Server, source: IngestionSource
) -> None:
    run = start(source)
    mailbox = due_now()
    held = lease.acquire(mailbox.pk)
    assert held is not None
    outcomes.defer_before(held, mailbox, run)
    assert (since() is None, Mailbox.objects.get().last_error_code) == (False, careful.WORKER_DIED)


def test_what_a_worker_of_an_older_version_left_there_is_forgotten(
    server: Server, source: IngestionSource
) -> None:
    """It ends the error, and knows nothing of since when there was one."""
    start(source)
    Mailbox.objects.update(failing_since=LONG_AGO, last_error_code="")
    server.open_error = GONE
    work()
    began = since()
    assert began is not None
    assert began > LONG_AGO


def test_a_listing_fails_until_one_is_through(server: Server, source: IngestionSource) -> None:
    start(source)
    finish(source)
    source.refresh_from_db()
    run = verbs.start_sync(source, actor=ACTOR)

    def listed() -> dt.datetime | None:
        discovery.discover(run.pk)
        return Run.objects.get(pk=run.pk).failing_since

    def gone() -> None:
        raise GONE

    def busy() -> None:
        raise RateLimited("Too many requests.")

    server.before_mailbox = gone
    began = listed()
    assert began is not None
    assert listed() == began
    server.before_mailbox = busy
    assert listed() is None
    server.before_mailbox = gone
    assert listed() is not None
    server.before_mailbox = lambda: None
    assert listed() is None
    assert synced(source).status == "completed"


def test_a_listing_that_breaks_off_is_told_though_a_mailbox_that_came_before_is_copied(
    server: Server, source: IngestionSource
) -> None:
    server.accounts = [str(number) for number in range(discovery._BATCH + 1)]
    listed = itertools.count(1)

    def break_off() -> None:
        if next(listed) % len(server.accounts) == 0:
            raise GONE

    server.before_mailbox = break_off
    run = start(source)
    assert Mailbox.objects.count() == discovery._BATCH
    Run.objects.update(failing_since=F("failing_since") - dt.timedelta(seconds=31))
    first = Mailbox.objects.earliest("pk")
    sync.sync_mailbox(first.pk)
    first.refresh_from_db()
    assert first.last_synced_at is not None

    def told() -> list[str]:
        [judged] = freshness.read(freshness.judged(IngestionSource.objects.all()))
        return [f"{reason.code}: {reason.text}" for reason in explaining.reasons(judged)]

    [words] = told()
    assert words.startswith("failing: Its mailboxes can't be listed to the end")
    assert str(GONE) in words
    server.before_mailbox = lambda: None
    discovery.discover(run.pk)
    assert told() == []
