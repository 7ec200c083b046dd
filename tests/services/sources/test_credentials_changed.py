"""Credentials that are replaced while the old ones are still being asked about, or after an error."""

import datetime as dt
import threading

import pytest
from django.db import OperationalError, connection
from django.utils import timezone

from connectors.errors import Fatal, MessageRefused, NeedsReauth, RateLimited, Unavailable
from ingestion.models import FailedMessage, IngestionSource, Mailbox, Run
from ingestion.services.engine import due_work, failures, sync
from ingestion.services.sources import configuration, credentials, discovery, verbs
from tests.servers.scripted_provider import Server
from tests.servers.scripted_source import ACTOR, assert_exact, fill, finish, start, work

pytestmark = pytest.mark.django_db(transaction=True)

REFUSED = NeedsReauth("The password was refused.")


def give(source: IngestionSource, password: str) -> None:
    configuration.update(source, changes={"providerConfig": {"password": password}}, actor=ACTOR)


def test_the_late_refusal_of_an_old_password_does_not_fail_the_new_one(
    server: Server, source: IngestionSource
) -> None:
    def replaced() -> None:
        server.before_check = lambda: None
        give(source, "right")
        assert credentials.check(source, actor=ACTOR).ok
        raise REFUSED

    server.before_check = replaced
    assert not credentials.check(IngestionSource.objects.get(), actor=ACTOR).ok
    source.refresh_from_db()
    assert source.status == "auth_success"


def test_the_late_approval_of_an_old_password_does_not_prove_the_new_one(
    server: Server, source: IngestionSource
) -> None:
    def replaced() -> None:
        server.before_check = lambda: None
        give(source, "wrong")
        server.check_error = REFUSED
        credentials.check(source, actor=ACTOR)
        server.check_error = None

    server.before_check = replaced
    credentials.check(IngestionSource.objects.get(), actor=ACTOR)
    source.refresh_from_db()
    assert (source.status, source.proven_at) == ("error", None)


def test_a_listing_with_old_credentials_does_not_stop_a_source_with_new_ones(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 3)
    run = verbs.start_import(source, actor=ACTOR)
    credentials.check(source, actor=ACTOR)

    def replaced() -> None:
        server.before_mailbox = lambda: None
        give(source, "new")
        assert credentials.check(source, actor=ACTOR).ok
        raise Fatal("The old client was deleted.")

    server.before_mailbox = replaced
    discovery.discover(run.pk)
    source.refresh_from_db()
    assert source.status == "importing"
    assert [work.kind for work in due_work.hand_out()] == ["discover"]


def test_what_old_credentials_list_is_not_stored_for_new_ones(
    server: Server, source: IngestionSource
) -> None:
    run = verbs.start_import(source, actor=ACTOR)
    credentials.check(source, actor=ACTOR)

    def replaced() -> None:
        give(source, "new")
        assert credentials.check(source, actor=ACTOR).ok

    server.before_mailbox = replaced
    discovery.discover(run.pk)
    assert not Mailbox.objects.exists()
    server.before_mailbox = lambda: None
    assert [work.kind for work in due_work.hand_out()] == ["discover"]
    discovery.discover(run.pk)
    assert Mailbox.objects.count() == 1


def test_another_trouble_before_does_not_make_one_refused_listing_the_last(
    server: Server, source: IngestionSource
) -> None:
    run = verbs.start_import(source, actor=ACTOR)
    credentials.check(source, actor=ACTOR)
    troubles: list[Exception] = [Unavailable("Away.")] * 4 + [REFUSED]

    def fail() -> None:
        raise troubles.pop(0)

    server.before_mailbox = fail
    while troubles:
        Run.objects.update(not_before=timezone.now())
        discovery.discover(run.pk)
    source.refresh_from_db()
    run.refresh_from_db()
    assert source.status == "importing"
    assert run.not_before > timezone.now() + dt.timedelta(seconds=500)


def test_a_good_password_after_an_error_goes_on_with_the_import(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 30)
    start(source)
    server.before_message = lambda number: _refuse_from(number, 15)
    work()
    source.refresh_from_db()
    assert source.status == "error"
    server.before_message = lambda _: None
    give(source, "right")
    credentials.check(source, actor=ACTOR)
    source.refresh_from_db()
    assert source.status == "importing"
    discovery.discover(Run.objects.get(finished_at=None).pk)
    finish(source)
    assert_exact(server, source)
    assert len(server.fetched) < 45


def _refuse_from(number: int, first: int) -> None:
    if number >= first:
        raise Fatal("The account was closed.")


@pytest.mark.parametrize("wanted", [Unavailable("The server is away."), RateLimited("Busy.")])
def test_a_first_check_that_meets_a_server_that_is_away_says_so_at_once(
    server: Server, source: IngestionSource, wanted: Exception
) -> None:
    server.check_error = wanted
    credentials.check(source, actor=ACTOR)
    source.refresh_from_db()
    assert str(wanted) in source.last_sync_status_message
    server.check_error = None
    credentials.check(source, actor=ACTOR)
    source.refresh_from_db()
    assert str(wanted) not in source.last_sync_status_message


def test_any_trouble_that_passes_leaves_the_source_to_be_checked_again(
    server: Server, source: IngestionSource
) -> None:
    """A code of its own does not make a source's error of what time mends."""
    server.check_error = Unavailable("The server refuses everything.", code="refuses_all")
    credentials.check(source, actor=ACTOR)
    source.refresh_from_db()
    assert source.status == "pending_auth"


def test_a_shorter_interval_counts_at_once(server: Server, source: IngestionSource) -> None:
    fill(server, 1)
    changes = {"options": {"syncIntervalSeconds": 604_800}}
    configuration.update(source, changes=changes, actor=ACTOR)
    start(source)
    finish(source)
    changes = {"options": {"syncIntervalSeconds": 60}}
    source = configuration.update(source, changes=changes, actor=ACTOR)
    assert source.next_sync_at is not None
    assert source.next_sync_at < timezone.now() + dt.timedelta(seconds=61)


def test_retry_does_not_deadlock_with_a_worker_that_records_failures(
    server: Server, source: IngestionSource, caplog: pytest.LogCaptureFixture
) -> None:
    server.page_size = 1000
    fill(server, 1500)
    for uid in range(1, 1501):
        server.refused[f"1:{uid}"] = MessageRefused("The server said NO.")
    start(source)
    finish(source)
    assert FailedMessage.objects.count() == 1500
    over, said = threading.Event(), []

    def press() -> None:
        while not over.wait(0.2):
            try:
                failures.retry(source, actor=ACTOR)
            except OperationalError as error:
                said.append(str(error))
        connection.close()

    failures.retry(source, actor=ACTOR)
    discovery.discover(Run.objects.get(finished_at=None).pk)
    thread = threading.Thread(target=press)
    thread.start()
    try:
        for _ in range(4):
            Mailbox.objects.update(not_before=timezone.now())
            sync.sync_mailbox(Mailbox.objects.get().pk)
            if run := Run.objects.filter(finished_at=None, discovered_at=None).first():
                discovery.discover(run.pk)
    finally:
        over.set()
        thread.join()
    assert not said
    assert "database_unavailable" not in caplog.text


def test_what_old_credentials_met_makes_no_mailbox_wait_for_new_ones(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 3)
    start(source)

    def replaced(_: int) -> None:
        server.before_message = lambda _: None
        give(source, "new")
        assert credentials.check(source, actor=ACTOR).ok
        raise REFUSED

    server.before_message = replaced
    assert sync.sync_mailbox(Mailbox.objects.get().pk)
    assert Mailbox.objects.get().attempts == 0


def test_what_old_credentials_met_makes_no_listing_wait_for_new_ones(
    server: Server, source: IngestionSource
) -> None:
    run = verbs.start_import(source, actor=ACTOR)
    credentials.check(source, actor=ACTOR)

    def replaced() -> None:
        give(source, "new")
        assert credentials.check(source, actor=ACTOR).ok
        raise REFUSED

    server.before_mailbox = replaced
    discovery.discover(run.pk)
    server.before_mailbox = lambda: None
    run.refresh_from_db()
    assert (run.attempts, run.warning) == (0, "")
    assert [work.kind for work in due_work.hand_out()] == ["discover"]
