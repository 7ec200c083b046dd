"""Microsoft 365 through the real engine: what is archived, and how changes are followed."""

import datetime as dt
from collections.abc import Callable

import pytest
from django.utils import timezone

from ingestion.models import (
    FailedMessage,
    Folder,
    IngestionSource,
    Mailbox,
    Message,
    Placement,
    Run,
)
from ingestion.services.archive import reconcile
from ingestion.services.engine import failures, sync
from ingestion.services.sources import configuration, credentials, discovery, verbs
from tests.servers.graph import GraphServer, Request, Response, User
from tests.servers.graph.sources import (
    ACTOR,
    assert_exact,
    body,
    box,
    fill,
    finish,
    imported,
    labels_of,
    placed,
    synced,
)
from tests.servers.graph.words import error

Make = Callable[..., IngestionSource]


def test_a_whole_tree_of_folders_is_archived_and_a_second_sync_costs_one_request_for_each(
    server: GraphServer, make: Make, alice: User
) -> None:
    mailbox = box(alice)
    fill(mailbox, 30)
    projects = mailbox.add_folder("Projects", parent=mailbox.inbox)
    deep = mailbox.add_folder("2025/Q1\n", parent=mailbox.add_folder("Old", parent=projects))
    for number in range(30, 60):
        mailbox.deliver(body(number), deep)
    for number in range(15):
        mailbox.add_folder(f"Folder {number}")  # more than the default page of ten
    hidden = mailbox.add_folder("Hidden", hidden=True)
    search = mailbox.add_folder("Unread", search=True)
    source = make()
    assert imported(source).message == "60 archived."
    assert_exact(server, source)
    paths = dict(Folder.objects.values_list("remote_id", "path"))
    assert paths[deep.id] == "Inbox/Projects/Old/2025/Q1 "
    assert not {hidden.id, search.id} & set(paths)
    roles = set(Folder.objects.exclude(role="").values_list("path", "role"))
    assert ("Inbox", "inbox") in roles
    assert ("Deleted Items", "trash") in roles
    followed = Folder.objects.exclude(role="drafts").count()
    server.log.clear()
    assert synced(source).message == "0 archived."
    assert server.count("/$value") == 0
    assert server.count("/delta") == followed
    # The users, the first batch (top level and well-known names), one for each level below.
    assert len([e for e in server.log if not e.user]) == 1 + 4


def test_moves_flags_and_deletions_are_followed(
    server: GraphServer, make: Make, alice: User
) -> None:
    mailbox = box(alice)
    read, flagged, moved, deleted, plain = fill(mailbox, 5)
    source = make()
    imported(source)
    mailbox.mark(read, is_read=True)
    mailbox.mark(flagged, flagged=True, categories=("Blue category",))
    mailbox.mark(moved, is_read=True)
    mailbox.move(moved, mailbox.by_name["archive"])
    mailbox.remove(deleted)
    server.log.clear()
    assert synced(source).message == "0 archived, 1 recognised."
    assert server.count("/$value") == 0
    assert_exact(server, source)
    assert labels_of(read) == ["\\Seen"]
    assert labels_of(flagged) == ["Blue category", "\\Flagged"]
    assert labels_of(moved) == ["\\Seen"]
    assert labels_of(plain) == []
    mailbox.mark(flagged, is_read=True)  # delta tells only that: the rest must stay
    synced(source)
    assert labels_of(flagged) == ["Blue category", "\\Flagged", "\\Seen"]
    assert Message.objects.count() == 5  # what was deleted stays archived


def test_an_expired_state_lists_again_and_downloads_nothing_that_is_known(
    server: GraphServer, make: Make, alice: User
) -> None:
    mailbox = box(alice)
    mailbox.regenerates = True
    gone, *_ = fill(mailbox, 25)
    source = make()
    imported(source)
    codes = ("SyncStateNotFound", "syncStateInvalid", "resyncRequired", "whateverWith410")
    for number, code in enumerate(codes, 100):
        server.graph.deltas.error_code = code
        mailbox.remove(gone)
        gone = mailbox.deliver(body(number))
        mailbox.expire_state()
        server.log.clear()
        assert synced(source).message == "1 archived."
        assert server.count("/$value") == 1
        assert_exact(server, source)


def test_a_listing_that_is_cut_into_slices_still_finds_what_is_gone(
    server: GraphServer, make: Make, alice: User
) -> None:
    mailbox = box(alice)
    server.graph.deltas.largest_page = 10
    gone, *_ = fill(mailbox, 45)
    source = make()
    imported(source)
    mailbox.remove(gone)
    mailbox.expire_state()
    run = verbs.start_sync(source, actor=ACTOR)
    discovery.discover(run.pk)
    [row] = Mailbox.objects.filter(run=run)
    assert sync.sync_mailbox(row.pk, slice_seconds=0)  # one page, and the slice is over
    cursor = Folder.objects.get(role="inbox").cursor
    assert cursor is not None
    assert cursor["listed"] is False
    server.log.clear()
    assert finish(source).message == "0 archived."
    assert server.count("/$value") == 0
    assert_exact(server, source)


def test_replays_and_empty_pages_change_nothing(
    server: GraphServer, make: Make, alice: User
) -> None:
    mailbox = box(alice)
    mailbox.regenerates = True
    server.graph.deltas.largest_page = 10
    server.graph.deltas.replay = 4
    server.graph.deltas.empty_pages = True
    fill(mailbox, 45)
    source = make()
    assert imported(source).message == "45 archived."
    assert server.count("/$value") == 45 + 1  # and the one of the check
    assert_exact(server, source)
    mailbox.deliver(body(100))
    assert synced(source).message == "1 archived."
    assert_exact(server, source)


def test_a_cloud_without_delta_query_is_listed_whole_and_followed_all_the_same(
    server: GraphServer, make: Make, alice: User
) -> None:
    mailbox = box(alice)
    mailbox.regenerates = True
    server.graph.deltas.supported = False
    gone, moved, read, *_ = fill(mailbox, 30)
    source = make(cloud="china")
    assert imported(source).message == "30 archived."
    assert_exact(server, source)
    mailbox.remove(gone)
    mailbox.move(moved, mailbox.by_name["archive"])
    mailbox.mark(read, is_read=True)
    mailbox.deliver(body(100))
    server.log.clear()
    assert synced(source).message == "1 archived, 1 recognised."
    assert server.count("/$value") == 1
    assert labels_of(read) == ["\\Seen"]
    assert_exact(server, source)


@pytest.mark.parametrize("cloud", ["china", "global"])
def test_a_folder_without_delta_query_is_listed_over_several_slices(
    server: GraphServer, make: Make, alice: User, cloud: str
) -> None:
    """Also where delta query is tried first, and gives a page before it fails."""
    mailbox = box(alice)
    server.graph.deltas.largest_page = 10
    gone, *_ = fill(mailbox, 35)
    source = make(cloud=cloud)
    run = verbs.start_import(source, actor=ACTOR)
    assert credentials.check(source, actor=ACTOR).ok
    server.faults.intercept = lambda request, _user: (
        error(403, "ErrorQuotaExceeded", "The mailbox is full.")
        if request.path.endswith("/delta") and (cloud == "china" or "$skiptoken" in request.query)
        else None
    )
    discovery.discover(run.pk)
    work_a_page_at_a_time(run)
    assert_exact(server, source)
    mailbox.remove(gone)
    mailbox.deliver(body(100))
    run = verbs.start_sync(source, actor=ACTOR)
    discovery.discover(run.pk)
    work_a_page_at_a_time(run)
    assert server.count("/$value") == 36 + 1  # the check's
    assert_exact(server, source)  # what is gone is seen, though no slice saw all that is there


def work_a_page_at_a_time(run: Run) -> None:
    [row] = Mailbox.objects.filter(run=run)
    for _ in range(20):
        if not sync.sync_mailbox(row.pk, slice_seconds=0):
            break
    run.refresh_from_db()
    assert run.finished_at


def test_a_mail_that_was_archived_as_a_draft_is_archived_as_it_was_sent(
    server: GraphServer, make: Make, alice: User
) -> None:
    mailbox = box(alice)
    letter = mailbox.deliver(body(1), mailbox.by_name["drafts"], is_draft=True)
    source = make({"includeDrafts": True})
    imported(source)
    assert labels_of(letter) == ["\\Draft"]
    mailbox.send(letter, body(2))
    synced(source)
    assert labels_of(letter) == []
    assert_exact(server, source)
    assert Message.objects.count() == 2


def test_a_draft_that_has_a_stable_id_from_a_version_before_is_archived_as_it_was_sent(
    make: Make, alice: User
) -> None:
    """Such ones were written until the last worker of that version was restarted."""
    mailbox = box(alice)
    letter = mailbox.deliver(body(1), mailbox.by_name["drafts"], is_draft=True)
    source = make({"includeDrafts": True})
    imported(source)
    Placement.objects.filter(remote_id=letter).update(stable_id=letter)
    mailbox.send(letter, body(2))
    synced(source)
    assert labels_of(letter) == []
    assert Message.objects.count() == 2


@pytest.mark.parametrize("expired", [False, True])
@pytest.mark.parametrize("retried_at_once", [False, True])
def test_a_message_that_failed_and_was_moved_is_archived_once(
    server: GraphServer, make: Make, alice: User, retried_at_once: bool, expired: bool
) -> None:
    mailbox = box(alice)
    mailbox.regenerates = True
    bad, *_ = fill(mailbox, 3)

    def refuse(request: Request, user: User | None) -> Response | None:
        if request.segments[-1] == "$value" and request.segments[-2] == bad:
            return error(400, "ErrorMimeContentConversionFailed", "Failed.")
        return None

    server.faults.intercept = refuse
    source = make()
    assert imported(source).message == "2 archived, 1 failed."
    failed = FailedMessage.objects.get()
    assert (failed.remote_id, failed.code) == (bad, "message_refused")
    server.faults.intercept = lambda _request, _user: None
    if expired:
        mailbox.expire_state()
    if retried_at_once:
        FailedMessage.objects.update(not_before=timezone.now())
    mailbox.move(bad, mailbox.by_name["archive"])
    synced(source)
    assert not FailedMessage.objects.exists()
    assert_exact(server, source)
    failures.retry(source, actor=ACTOR)
    assert mailbox.messages[bad].downloads == 1
    assert_exact(server, source)


def test_a_message_that_failed_and_was_archived_elsewhere_is_not_fetched_again(
    server: GraphServer, make: Make, alice: User
) -> None:
    """Between two slices: the new folder was followed, the old one not yet."""
    mailbox = box(alice)
    mailbox.regenerates = True
    bad = mailbox.deliver(body(1), mailbox.by_name["archive"])
    server.faults.intercept = lambda request, _user: (
        error(400, "ErrorMimeContentConversionFailed", "Failed.")
        if request.segments[-1] == "$value"
        else None
    )
    source = make()
    assert imported(source).message == "0 archived, 1 failed."
    server.faults.intercept = lambda _request, _user: None
    mailbox.move(bad, mailbox.inbox)
    run = verbs.start_sync(source, actor=ACTOR)
    discovery.discover(run.pk)
    sync.sync_mailbox(Mailbox.objects.get().pk, slice_seconds=0)  # the inbox, and no more
    assert mailbox.messages[bad].downloads == 1
    FailedMessage.objects.update(not_before=timezone.now())
    finish(source)
    assert mailbox.messages[bad].downloads == 1
    assert not FailedMessage.objects.exists()
    assert_exact(server, source)


def test_reconciling_finds_nothing_missing(server: GraphServer, make: Make, alice: User) -> None:
    fill(box(alice), 20)
    source = make()
    imported(source)
    reports = list(reconcile.reconcile(source))
    assert all(report.ok for report in reports)
    assert sum(report.present for report in reports) == 20


def test_recoverable_items_come_where_they_are_wanted(
    server: GraphServer, make: Make, alice: User
) -> None:
    mailbox = box(alice)
    deleted = mailbox.add_folder(
        "Deletions", parent=mailbox.recoverable, well_known="recoverableitemsdeletions"
    )
    mailbox.deliver(body(1), deleted)
    source = make(includeRecoverableItems=True)
    assert imported(source).message == "1 archived."
    assert Folder.objects.get(remote_id=deleted.id).path == "Recoverable Items/Deletions"


def test_what_becomes_wanted_is_listed_whole_and_once(
    server: GraphServer, make: Make, alice: User
) -> None:
    mailbox = box(alice)
    folder = mailbox.add_folder("Other")
    old = mailbox.deliver(body(1), received=dt.datetime(2023, 5, 1, tzinfo=dt.UTC))
    new = mailbox.deliver(body(2))
    junk = mailbox.deliver(body(3), mailbox.by_name["junkemail"])
    other = mailbox.deliver(body(4), folder)
    source = make({"includeJunk": False, "excludeFolders": ["Other"], "since": "2024-01-01"})
    imported(source)
    mailbox.mark(new, flagged=True)
    synced(source)
    assert placed() == {new}

    def wanting(**options: object) -> set[str]:
        configuration.update(source, changes={"options": options}, actor=ACTOR)
        synced(source)
        return placed()

    assert wanting(includeJunk=True) == {new, junk}
    assert wanting(excludeFolders=[]) == {new, junk, other}
    assert wanting(since=None) == {old, new, junk, other}
    # What changed while nobody wanted it is told from where the cursor stood.
    assert wanting(excludeFolders=["Other"]) == {old, new, junk, other}
    mailbox.remove(other)
    later = mailbox.deliver(body(5), folder)
    assert wanting(excludeFolders=[]) == {old, new, junk, later}
    assert server.count("/$value") == 5 + 1  # the check's
