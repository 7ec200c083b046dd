"""Folders that are listed anew, or not at all: nothing is doubled, nothing is missed, and nothing
goes from view because of one answer."""

import datetime as dt

import pytest
from django.db import connection
from django.utils import timezone

from connectors.errors import IdsReused, MessageRefused, Unavailable
from connectors.types import RemoteFolder
from ingestion.models import (
    FailedMessage,
    Folder,
    IngestionSource,
    Mailbox,
    Message,
    Placement,
    Run,
)
from ingestion.services.engine import folders, sync
from ingestion.services.sources import configuration, credentials, discovery, verbs
from tests.servers import imap_source, scripted_provider
from tests.servers.imap_script import ImapScript
from tests.servers.scripted_provider import Mail, Server
from tests.servers.scripted_source import (
    ACTOR,
    assert_exact,
    body,
    due_now,
    fill,
    finish,
    start,
    synced,
    work,
)

pytestmark = pytest.mark.django_db(transaction=True)


def here(folder: str = "INBOX") -> dict[str, bytes]:
    """What is placed in a folder now: remote id -> bytes' hash."""
    rows = Placement.objects.filter(folder__path=folder, removed_at=None)
    return {row.remote_id: bytes(row.message.sha256) for row in rows.select_related("message")}


def test_ids_that_were_reused_are_recognised_by_bytes_alone(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 5)
    server.refused["1:5"] = MessageRefused("Too large.")
    start(source)
    finish(source)
    seen = dict(Placement.objects.values_list("message_id", "first_seen_at"))
    # A server that was restored: 3 to 5 are other mail now, under the same UIDVALIDITY.
    server.refused.clear()
    for uid in (3, 4, 5):
        server.folders["INBOX"][uid] = Mail(body(100 + uid))

    def reused(_: str) -> None:
        server.before_changes = lambda _: None
        raise IdsReused("The server counts lower than before.")

    server.before_changes = reused
    run = synced(source)
    assert (run.status, run.messages_new) == ("completed", 3)
    assert_exact(server, source)
    assert Message.objects.count() == 7  # what was archived before stays
    assert not FailedMessage.objects.exists()
    old = Placement.objects.filter(removed_at=None, message__in=seen)
    assert {row.message_id: row.first_seen_at for row in old} == {
        row.message_id: seen[row.message_id] for row in old
    }
    assert old.count() == 2
    assert synced(source).message == "0 archived."


def test_a_listing_by_bytes_that_is_broken_off_at_its_end_keeps_since_when_mail_is_there(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 5)
    start(source)
    finish(source)
    seen = set(Placement.objects.values_list("message_id", "first_seen_at"))
    folders.distrust(Mailbox.objects.all())
    run = verbs.start_sync(source, actor=ACTOR)
    discovery.discover(run.pk)
    with connection.cursor() as cursor:
        cursor.execute(
            """CREATE FUNCTION go_away() RETURNS trigger LANGUAGE plpgsql AS $$
               BEGIN RAISE 'The database goes away.' USING ERRCODE = 'admin_shutdown'; END $$;
               CREATE TRIGGER go_away BEFORE UPDATE OF first_seen_at ON ingestion_placement
               EXECUTE FUNCTION go_away()"""
        )
    try:
        work()
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP FUNCTION go_away CASCADE")
    assert Run.objects.filter(finished_at=None).exists()
    finish(source)
    there = Placement.objects.filter(removed_at=None)
    assert set(there.values_list("message_id", "first_seen_at")) == seen
    assert here().keys() == {f"1:{uid}" for uid in range(1, 6)}


def test_what_failed_under_an_id_that_is_distrusted_is_not_fetched_by_that_id(
    server: Server, source: IngestionSource
) -> None:
    """It may be another message's by now; the listing says which."""
    fill(server, 5)
    server.refused["1:5"] = MessageRefused("Too large.")
    start(source)
    finish(source)
    server.refused.clear()
    server.fetched.clear()
    FailedMessage.objects.update(not_before=timezone.now())
    folders.distrust(Mailbox.objects.all())
    synced(source)
    assert sorted(server.fetched) == [f"INBOX/1:{uid}" for uid in range(1, 6)]  # each once
    assert_exact(server, source)
    assert not FailedMessage.objects.exists()


def test_a_mailbox_that_is_distrusted_is_listed_anew_by_bytes(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 5)
    fill(server, 5, "Sent")
    start(source)
    finish(source)
    for name in ("INBOX", "Sent"):
        server.folders[name] = {uid: Mail(body(50 + uid)) for uid in range(1, 8)}
    folders.distrust(Mailbox.objects.all())
    synced(source)
    assert_exact(server, source)
    assert Message.objects.count() == 12


@pytest.mark.parametrize("later", ["2020-01-01", None])
def test_an_earlier_since_brings_the_older_mail(later: str | None) -> None:
    with ImapScript() as imap:
        for number in range(5):  # received in July 2024
            imap.inbox.deliver(b"Subject: %d\r\n\r\n" % number)
        source = imap_source.create(imap)
        configuration.update(source, changes={"options": {"since": "2025-01-01"}}, actor=ACTOR)
        imap_source.start(source)
        finish(source)
        assert Message.objects.count() == 0
        assert Folder.objects.get().listed_since == dt.date(2025, 1, 1)
        configuration.update(source, changes={"options": {"since": later}}, actor=ACTOR)
        synced(source)
        assert Message.objects.count() == 5
        # A later one needs no listing, and the way back neither.
        for since in ("2026-01-01", "2020-01-01"):
            configuration.update(source, changes={"options": {"since": since}}, actor=ACTOR)
            assert synced(source).message == "0 archived."
            assert here().keys() == {f"1:{uid}" for uid in range(1, 6)}


def test_a_listing_without_folders_removes_nothing_from_view(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 5)
    start(source)
    finish(source)
    placed = here()
    server.unlisted.add("INBOX")
    run = verbs.start_sync(source, actor=ACTOR)
    discovery.discover(run.pk)
    sync.sync_mailbox(due_now().pk)
    assert Mailbox.objects.get().last_error_code == "no_folders"
    assert here() == placed
    server.unlisted.clear()
    assert finish(source).message == "0 archived."


def test_a_folder_is_gone_where_the_provider_says_so_or_two_listings_in_a_row_lack_it(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 5)
    fill(server, 5, "Projects")
    fill(server, 5, "Deleted")
    start(source)
    finish(source)
    server.unlisted.add("Projects")  # it is there, if one asks
    del server.folders["Deleted"]
    synced(source)
    assert len(here("Projects")) == 5
    assert not here("Deleted")
    server.unlisted.clear()
    synced(source)
    assert Folder.objects.get(path="Projects").missing_since is None
    server.unlisted.add("Projects")
    synced(source)
    assert len(here("Projects")) == 5
    synced(source)
    assert not here("Projects")


def test_a_count_beyond_a_bigint_stops_nobody(
    server: Server, source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(server, 3)
    listed = [RemoteFolder("INBOX", "INBOX", message_count=10**20)]
    monkeypatch.setattr(scripted_provider.ScriptedSession, "folders", lambda _: listed)
    start(source)
    assert finish(source).message == "3 archived."
    assert Folder.objects.get().remote_count is None


# -- totals ------------------------------------------------------------------------------------


def slice_of(run: Run) -> Run:
    sync.sync_mailbox(due_now().pk, slice_seconds=0)  # one page of ten
    run.refresh_from_db()
    assert run.messages_total >= run.messages_done
    return run


def test_an_import_that_begins_again_after_an_error_counts_what_is_left(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 100)
    run = slice_of(start(source))
    assert (run.messages_total, run.messages_done) == (100, 10)
    assert slice_of(run).messages_total == 100
    source.refresh_from_db()
    verbs.pause(source, actor=ACTOR)
    Run.objects.update(status="failed", finished_at=timezone.now())
    Mailbox.objects.update(run=None, messages_expected=0)
    source.refresh_from_db()
    verbs.resume(source, actor=ACTOR)
    source.refresh_from_db()
    run = slice_of(start(source))
    assert (run.messages_total, run.messages_done) == (80, 10)


def test_a_second_import_counts_what_is_new(server: Server, source: IngestionSource) -> None:
    fill(server, 10)
    start(source)
    finish(source)
    for number in range(50):
        server.deliver("INBOX", body(100 + number))
    run = verbs.start_import(source, actor=ACTOR)
    discovery.discover(run.pk)
    assert slice_of(run).messages_total == 50


def test_a_page_that_is_listed_again_is_counted_once_until_its_last_message(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 3)
    start(source)
    finish(source)
    server.page_size = 1_000
    there = sync._WORTH_EXPECTING + 2
    for number in range(there):
        server.deliver("INBOX", body(100 + number))
    run = verbs.start_sync(source, actor=ACTOR)
    discovery.discover(run.pk)

    def total() -> int:
        return Run.objects.get(pk=run.pk).messages_total

    shown: list[int] = []
    for _ in range(5):  # the rest is soon less than is worth expecting
        sync.sync_mailbox(due_now().pk, slice_seconds=0, page_seconds=0)  # a message of the page
        shown.append(total())
        server.before_changes = lambda _: shown.append(total())
    assert set(shown) == {there}
    server.deliver("Drafts", body(1))
    server.deliver("INBOX", body(2))
    server.before_message = lambda _: shown.append(total())
    assert finish(source).messages_done == there + 2
    assert set(shown) == {there}
    assert (total(), Mailbox.objects.get().messages_expected) == (there + 2, 0)


def test_a_listing_that_begins_again_counts_no_mailbox_twice(
    server: Server, source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "_BATCH", 1)
    server.accounts = ("a", "b", "c")
    fill(server, 1)
    run = verbs.start_import(source, actor=ACTOR)
    credentials.check(source, actor=ACTOR)
    calls: list[None] = []

    def die() -> None:
        calls.append(None)
        if len(calls) == 3:
            raise Unavailable("The directory does not answer.")

    def work_on_all() -> None:
        for pk in Mailbox.objects.filter(run=run).values_list("pk", flat=True):
            sync.sync_mailbox(pk)

    server.before_mailbox = die
    discovery.discover(run.pk)
    work_on_all()
    Run.objects.update(not_before=timezone.now())
    discovery.discover(run.pk)
    work_on_all()
    run.refresh_from_db()
    assert (run.mailboxes_done, run.mailboxes_total) == (3, 3)
