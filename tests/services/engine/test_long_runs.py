"""A mailbox that takes long, or fails, holds up no other of its source."""

import datetime as dt
from collections.abc import Callable

import pytest
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from connectors.errors import MessageRefused, Unavailable
from ingestion import freshness
from ingestion.models import FailedMessage, Folder, IngestionSource, Mailbox, Placement, Run
from ingestion.services.engine import due_work, failures, runs, sync
from ingestion.services.sources import discovery, verbs
from tests.servers.scripted_provider import Server
from tests.servers.scripted_source import ACTOR, assert_exact, body, fill, finish, start, synced

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


def a_day_later() -> None:
    """Have unfinished runs been begun, asked for and listed so long ago."""
    past = dt.timedelta(hours=25)
    Run.objects.filter(finished_at=None).update(
        started_at=F("started_at") - past,
        asked_at=F("asked_at") - past,
        discovered_at=F("discovered_at") - past,
        not_before=F("not_before") - past,
    )


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


def test_a_run_of_days_lists_its_mailboxes_each_day(
    server: Server, source: IngestionSource
) -> None:
    """A domain's mailbox is opened by its address, which may be somebody else's since."""
    fill(server, 30)
    run = start(source)
    slice_of("me", seconds=0)
    Run.objects.update(discovered_at=F("discovered_at") - dt.timedelta(hours=25))
    later(hours=1)
    assert listed_again(run)
    later(hours=1)
    assert not listed_again(run)
    server.accounts = ("another",)
    Run.objects.update(discovered_at=F("discovered_at") - dt.timedelta(hours=25))
    later(hours=1)
    assert listed_again(run)
    mailbox = Mailbox.objects.get(remote_id="me")
    assert (mailbox.state, mailbox.run) == ("gone", None)


@pytest.mark.parametrize("asked", [False, True])
def test_who_is_done_with_stays_so_where_an_import_of_days_lists_its_mailboxes(
    server: Server, source: IngestionSource, run: Run, asked: bool
) -> None:
    """While they end one after the other: else it begins again each day."""
    if asked:
        verbs.start_sync(source, actor=ACTOR)
        assert listed_again(run)
        slice_of("small")
    a_day_later()
    Mailbox.objects.filter(remote_id="small").update(last_synced_at=timezone.now())
    server.accounts = ("small", "large", "new")
    assert listed_again(run)
    run.refresh_from_db()
    assert (run.mailboxes_done, run.mailboxes_total) == (1, 3)
    assert settled("small")
    assert not settled("new")


def test_who_asks_while_an_import_of_days_lists_its_mailboxes_has_all_followed(
    server: Server, source: IngestionSource, run: Run
) -> None:
    verbs.start_sync(source, actor=ACTOR)
    assert listed_again(run)
    slice_of("small")
    a_day_later()
    Mailbox.objects.filter(remote_id="small").update(last_synced_at=timezone.now())

    def ask() -> None:
        server.before_mailbox = lambda: None
        verbs.start_sync(source, actor=ACTOR)

    server.before_mailbox = ask
    assert listed_again(run)
    assert listed_again(run)
    assert not settled("small")


def test_a_sync_of_days_has_each_mailbox_followed_each_day(
    server: Server, source: IngestionSource
) -> None:
    """Also while others end all the time, as those do that ring."""
    server.accounts = ("rings", "quiet", "large")
    fill(server, 1)
    start(source)
    for name in server.accounts:
        slice_of(name)
    with transaction.atomic():
        runs.start_syncs([source.pk])
    run = Run.objects.get(finished_at=None)
    discovery.discover(run.pk)
    slice_of("rings")
    slice_of("quiet")
    a_day_later()
    for name, hours in (("rings", 0), ("quiet", 20)):
        at = timezone.now() - dt.timedelta(hours=hours)
        Mailbox.objects.filter(remote_id=name).update(last_synced_at=at)
    assert settled("quiet")
    assert listed_again(run)
    assert not settled("quiet")


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


def put_back(run: Run, **delta: float) -> None:
    """Have all that was done until now been done so much earlier."""
    past = dt.timedelta(**delta)
    Run.objects.filter(pk=run.pk).update(started_at=F("started_at") - past)
    Folder.objects.update(followed_at=F("followed_at") - past)


def breaking_at(name: str) -> Callable[[str], None]:
    def breaks(folder: str) -> None:
        if folder == name:
            raise Unavailable("The connection was lost.")

    return breaks


def test_a_mailbox_is_archived_up_to_when_the_first_of_its_folders_was_listed(
    server: Server, source: IngestionSource
) -> None:
    """Of an import of hours: what came to that folder since, only the next sync finds, at once."""
    for name in ("INBOX", "A"):
        fill(server, 1, name)
    run = start(source)
    came: list[dt.datetime] = []

    def come(folder: str) -> None:
        if folder == "A":
            server.deliver("INBOX", body(98))
            came.append(timezone.now())
            raise Unavailable("The connection was lost.")

    server.before_changes = come
    slice_of("me")
    server.before_changes = lambda _: None
    put_back(run, minutes=20)
    listed_at = Folder.objects.get(path="INBOX").followed_at
    assert listed_at is not None
    assert listed_at + dt.timedelta(minutes=20) < came[0]
    finish(source)
    mailbox = Mailbox.objects.get()
    assert mailbox.last_synced_at is not None
    assert mailbox.last_synced_at > timezone.now() - dt.timedelta(minutes=1)
    assert mailbox.archived_up_to == listed_at
    [judged] = freshness.judged(IngestionSource.objects.all())
    assert (judged.archived_up_to, judged.is_late) == (listed_at, False)
    assert judged.next_sync_at <= timezone.now()
    began = timezone.now()
    synced(source)
    [judged] = freshness.judged(IngestionSource.objects.all())
    assert judged.archived_up_to > began
    assert judged.next_sync_at > timezone.now()
    assert_exact(server, source)


def test_what_came_while_a_slice_went_on_is_not_told_as_archived(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 1)
    fill(server, 1, "Z")
    start(source)
    came: list[dt.datetime] = []

    def come(folder: str) -> None:
        if folder == "Z":
            server.deliver("INBOX", body(98))
            came.append(timezone.now())

    server.before_changes = come
    slice_of("me")
    [told] = freshness.judged(IngestionSource.objects.all())
    assert settled("me")
    assert told.archived_up_to < came[0]
    assert told.next_sync_at > timezone.now()


def test_folders_that_are_done_with_are_followed_each_hour_while_others_import(
    server: Server, source: IngestionSource
) -> None:
    for name in ("INBOX", "Failing", "Large"):
        fill(server, 1, name)
    run = start(source)
    server.before_changes = breaking_at("Large")
    slice_of("me")
    Folder.objects.filter(path="Failing").update(failing_since=timezone.now())
    server.deliver("INBOX", body(98))

    def followed() -> list[str]:
        begun: list[str] = []

        def breaks(folder: str) -> None:
            begun.append(folder)
            breaking_at("Large")(folder)

        server.before_changes = breaks
        Mailbox.objects.update(not_before=timezone.now())
        Folder.objects.filter(path="Large").update(attempts=0, not_before=None)
        slice_of("me")
        return begun

    put_back(run, minutes=59)
    assert [followed(), followed()] == [["Large"], ["Large"]]
    put_back(run, minutes=2)
    assert sorted([followed(), followed()]) == [["INBOX", "Large"], ["Large"]]
    assert Placement.objects.filter(folder__path="INBOX").count() == 2
    assert [followed(), followed()] == [["Large"], ["Large"]]
