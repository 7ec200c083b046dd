"""A mailbox that takes long, or fails, holds up no other of its source."""

import datetime as dt

import pytest
from django.utils import timezone

from connectors.errors import MessageRefused, Unavailable
from ingestion.models import FailedMessage, IngestionSource, Mailbox, Run
from ingestion.services.engine import due_work, failures, sync
from ingestion.services.sources import verbs
from tests.servers.scripted_provider import Server
from tests.servers.scripted_source import ACTOR, body, fill, start

pytestmark = pytest.mark.django_db(transaction=True)


def later(**delta: float) -> None:
    """Put the times of all rows back."""
    past = dt.timedelta(**delta)
    for mailbox in Mailbox.objects.all():
        if mailbox.last_synced_at:
            mailbox.last_synced_at -= past
        mailbox.not_before -= past
        mailbox.save(update_fields=["last_synced_at", "not_before"])
    for run in Run.objects.filter(finished_at=None):
        run.not_before -= past
        run.save(update_fields=["not_before"])


def slice_of(name: str, *, seconds: float = 60) -> None:
    sync.sync_mailbox(Mailbox.objects.get(remote_id=name).pk, slice_seconds=seconds)


def settled(name: str) -> bool:
    return Mailbox.objects.get(remote_id=name).run is None


@pytest.fixture
def run(server: Server, source: IngestionSource) -> Run:
    """An import of two mailboxes: "small" is done with, of "large" a page."""
    server.accounts = ("small", "large")
    fill(server, 30)
    run = start(source)
    slice_of("small")
    slice_of("large", seconds=0)
    assert (settled("small"), settled("large")) == (True, False)
    return run


def listed_again(run: Run) -> bool:
    """Do what is due of listing; tell whether there was any."""
    handed_out = [work for work in due_work.hand_out() if work.kind == "discover"]
    for work in handed_out:
        due_work.do(work)
    return bool(handed_out)


def test_new_mail_of_a_mailbox_that_is_done_is_had_while_another_still_imports(
    server: Server, run: Run
) -> None:
    server.deliver("INBOX", body(99))
    assert not listed_again(run)  # not before an interval has passed
    later(minutes=6)
    assert listed_again(run)
    slice_of("small")
    assert Mailbox.objects.get(remote_id="small").message_count == 31
    assert settled("small")
    slice_of("large")
    run.refresh_from_db()
    assert run.status == "completed"
    assert (run.mailboxes_done, run.mailboxes_total) == (2, 2)
    assert run.messages_done == run.messages_total == 62


def test_while_mailboxes_end_one_after_the_other_none_begins_again(
    server: Server, run: Run
) -> None:
    """So that a run that takes longer than the interval comes to its end."""
    later(minutes=6)
    Mailbox.objects.filter(remote_id="small").update(last_synced_at=timezone.now())
    assert not listed_again(run)
    later(minutes=6)
    assert listed_again(run)


def test_a_source_of_one_mailbox_is_not_listed_over_and_over_while_it_imports(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 30)
    run = start(source)
    slice_of("me", seconds=0)
    later(hours=1)
    assert not listed_again(run)


def test_sync_now_follows_what_the_run_is_done_with(
    server: Server, source: IngestionSource, run: Run
) -> None:
    server.deliver("INBOX", body(99))
    assert verbs.start_sync(source, actor=ACTOR) == run
    assert listed_again(run)
    slice_of("small", seconds=0)  # one folder in several slices
    slice_of("small")
    assert Mailbox.objects.get(remote_id="small").message_count == 31


def test_sync_now_follows_again_the_folders_that_a_mailbox_under_way_is_done_with(
    server: Server, source: IngestionSource
) -> None:
    """Mail that came to the first folder meanwhile is had by this sync, not by the next."""
    for name in ("INBOX", "A", "B"):
        fill(server, 1, name)
    run = start(source)

    def broken(folder: str) -> None:
        if folder == "A":
            raise Unavailable("The connection was lost.")

    server.before_changes = broken
    slice_of("me")
    server.deliver("INBOX", body(98))
    assert verbs.start_sync(source, actor=ACTOR) == run
    begun: list[str] = []
    server.before_changes = begun.append
    slice_of("me")
    assert settled("me")
    assert begun == ["B", "INBOX", "A"]  # what had no turn first, what failed last
    assert Mailbox.objects.get().message_count == 2  # all folders have the same one


def test_sync_now_within_a_slice_has_it_follow_all_again(
    server: Server, source: IngestionSource
) -> None:
    for name in ("INBOX", "Z"):
        fill(server, 1, name)
    start(source)

    def ask(folder: str) -> None:
        if folder == "Z":
            server.before_changes = lambda _: None
            server.deliver("INBOX", body(98))
            verbs.start_sync(source, actor=ACTOR)

    server.before_changes = ask
    slice_of("me")
    assert not settled("me")
    slice_of("me")
    assert settled("me")
    assert Mailbox.objects.get().message_count == 2


def test_an_import_that_is_asked_for_twice_goes_on_as_it_was(
    server: Server, source: IngestionSource, run: Run
) -> None:
    assert verbs.start_import(source, actor=ACTOR) == run
    assert not listed_again(run)
    assert settled("small")


def test_retry_of_what_failed_is_done_while_another_mailbox_still_imports(
    server: Server, source: IngestionSource
) -> None:
    server.accounts = ("small", "large")
    fill(server, 30)
    server.refused["1:2"] = MessageRefused("The server said NO.")
    run = start(source)
    slice_of("small")
    slice_of("large", seconds=0)
    server.refused.clear()
    small = FailedMessage.objects.filter(mailbox__remote_id="small")
    assert failures.retry(source, actor=ACTOR, ids=[small.get().pk]) == 1
    assert listed_again(run)
    slice_of("small")
    assert not small.exists()
