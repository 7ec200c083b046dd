"""What an error, or an end, does to mailbox, run and source."""

import datetime as dt

import pytest
from django.db import ProgrammingError, transaction
from django.utils import timezone

from connectors.errors import Fatal, MailboxUnavailable, NeedsReauth, Unavailable
from ingestion.models import IngestionSource, Mailbox, Run
from ingestion.services.engine import lease, outcomes, sync
from ingestion.services.sources import configuration, credentials, discovery, verbs
from tests.servers.scripted_provider import Server
from tests.servers.scripted_source import (
    ACTOR,
    assert_exact,
    due_now,
    fill,
    finish,
    start,
    synced,
    work,
)

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_worker_of_a_run_that_ended_settles_nothing_of_the_next_one(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 3)
    start(source)
    held = lease.acquire(due_now().pk)
    assert held is not None
    mailbox, first = Mailbox.objects.get(), Run.objects.get()
    source.refresh_from_db()
    with transaction.atomic():
        verbs.fail(source, "The password was changed.", actor="test")
    second = verbs.start_import(source, actor=ACTOR)
    credentials.check(source, actor=ACTOR)
    discovery.discover(second.pk)
    assert second.pk != first.pk
    outcomes.settle(held, mailbox, first)
    outcomes.act_on(Unavailable("Busy."), held, mailbox, first)
    assert Mailbox.objects.get().run_id == second.pk
    second.refresh_from_db()
    assert (second.mailboxes_done, second.warning) == (0, "")


def test_who_settles_a_mailbox_gives_it_back_and_a_renewal_on_its_way_takes_it_no_more(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 3)
    start(source)
    with lease.acquire(due_now().pk) or pytest.fail("it is not due") as held:
        assert outcomes.settle(held, Mailbox.objects.get(), Run.objects.get())
        held._renew_once()
        assert Mailbox.objects.get().lease_expires_at is None
    second = lease.acquire(Mailbox.objects.get().pk)
    assert second is None  # it owes nothing


def test_whoever_is_done_with_stands_behind_the_others_when_it_has_work_again(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 3)
    start(source)
    long_ago = timezone.now() - dt.timedelta(days=30)
    Mailbox.objects.update(not_before=long_ago)
    before = timezone.now()
    sync.sync_mailbox(Mailbox.objects.get().pk)
    run = verbs.start_sync(source, actor=ACTOR)
    discovery.discover(run.pk)
    mailbox = Mailbox.objects.get()
    assert mailbox.run_id == run.pk
    assert before <= mailbox.not_before <= timezone.now()


def test_repeated_authentication_failures_stop_the_source(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 3)
    start(source)
    server.open_error = NeedsReauth("The password was refused. Give the source a new one.")
    for _ in range(3):
        source.refresh_from_db()
        assert source.status == "importing"
        work()
    source.refresh_from_db()
    assert (source.status, source.status_message) == (
        "error",
        "The password was refused. Give the source a new one.",
    )
    server.open_error = None
    assert verbs.resume(source, actor=ACTOR).status == "pending_auth"
    start(source)
    finish(source)
    assert_exact(server, source)


@pytest.mark.parametrize(
    ("error", "status"),
    [(MailboxUnavailable("No licence."), "active"), (Fatal("Not an IMAP server."), "error")],
)
def test_only_a_fault_of_the_whole_source_makes_it_an_error(
    server: Server, source: IngestionSource, error: Exception, status: str
) -> None:
    start(source)
    server.open_error = error
    work()
    source.refresh_from_db()
    assert source.status == status


def test_an_import_that_gave_a_mailbox_up_says_so_and_the_next_sync_completes_it(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 3)
    start(source)
    server.open_error = Unavailable("The server is under maintenance.")
    run = finish(source)
    assert run.status == "incomplete"
    assert run.message.startswith(
        "0 archived; 1 mailbox was not copied to the end: me@example.com (unavailable)."
        " The next sync goes on there."
    )
    assert run.message.endswith("under maintenance.")
    server.open_error = None
    source.refresh_from_db()
    assert synced(source).message == "3 archived."
    assert_exact(server, source)


def test_a_bug_is_shown_as_one_and_the_mailbox_goes_on_later(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 3)
    server.open_error = ZeroDivisionError("secret-in-an-exception")
    start(source)
    work()
    mailbox = Mailbox.objects.get()
    assert mailbox.last_error_code == "internal_error"
    assert "secret" not in mailbox.last_error
    server.open_error = None
    finish(source)
    assert_exact(server, source)


def test_old_credentials_that_are_refused_do_not_stop_a_source_with_new_ones(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 3)

    def replace_the_password(_: int) -> None:
        server.before_message = lambda _: None
        configuration.update(source, changes={"providerConfig": {"password": "new"}}, actor=ACTOR)
        assert credentials.check(source, actor=ACTOR).ok
        raise Fatal("The old password is of no use any more.")

    server.before_message = replace_the_password
    start(source)
    work()
    source.refresh_from_db()
    assert source.status == "importing"
    assert finish(source).status == "completed"
    assert_exact(server, source)


def test_a_listing_gives_no_work_to_a_run_that_was_ended_meanwhile(
    server: Server, source: IngestionSource
) -> None:
    def fail() -> None:
        with transaction.atomic():
            source.refresh_from_db()
            verbs.fail(source, "The password was refused.", actor="test")

    server.before_mailbox = fail
    start(source)
    assert not Mailbox.objects.filter(run__isnull=False).exists()
    source.refresh_from_db()
    assert (source.status, source.status_message) == ("error", "The password was refused.")


def test_credentials_are_checked_in_the_background_and_failures_say_why(
    server: Server, source: IngestionSource
) -> None:
    server.check_error = Unavailable("The server does not answer.")
    began = timezone.now()
    credentials.check(source, actor=ACTOR)
    source.refresh_from_db()
    assert source.status == "pending_auth"
    assert "does not answer" in source.status_message
    assert source.check_not_before > began + dt.timedelta(seconds=1)
    server.check_error = NeedsReauth("The password was refused.")
    assert not credentials.check(source, actor=ACTOR).ok
    source.refresh_from_db()
    assert (source.status, source.status_message) == ("error", "The password was refused.")


def test_new_credentials_are_checked_and_the_source_returns_to_where_it_was(
    server: Server, source: IngestionSource
) -> None:
    start(source)
    finish(source)
    verbs.pause(source, actor=ACTOR)
    source = configuration.update(
        source, changes={"providerConfig": {"password": "new"}}, actor=ACTOR
    )
    assert source.status == "pending_auth"
    credentials.check(source, actor=ACTOR)
    source.refresh_from_db()
    assert source.status == "paused"
    assert verbs.resume(source, actor=ACTOR).status == "active"
    same = configuration.update(source, changes={"providerConfig": {"password": ""}}, actor=ACTOR)
    assert (same.status, same.secrets) == ("active", {"password": "new"})


def test_an_interrupt_within_a_commit_is_no_bug(server: Server, source: IngestionSource) -> None:
    """Django ends the transaction once more, and its error about that stands in front of it."""
    fill(server, 3)

    def interrupt(_: int) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise ProgrammingError("can't change 'autocommit' now: connection is ACTIVE")

    server.before_message = interrupt
    start(source)
    with pytest.raises(KeyboardInterrupt):
        work()
    mailbox = Mailbox.objects.get()
    assert (mailbox.last_error_code, mailbox.lease_expires_at) == ("", None)
