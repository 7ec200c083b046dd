"""A folder that can't be read fails by itself: the others go on, and people are told which and why."""

import time
from collections.abc import Callable, Mapping

import pytest
from django.utils import timezone

from connectors.errors import (
    ConnectorError,
    CursorExpired,
    FolderGone,
    FolderRefused,
    MailboxUnavailable,
    MessageRefused,
    Unavailable,
)
from ingestion import freshness
from ingestion.models import FailedMessage, Folder, IngestionSource, Mailbox, Placement, Run
from ingestion.services.engine import lease, sync
from ingestion.services.sources import configuration, discovery, verbs
from tests.servers.scripted_provider import Server
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

REFUSED = FolderRefused("The server says: NO [NOPERM] You may not read this.", code="noperm")


def refusing(refused: Mapping[str, Exception]) -> Callable[[str], None]:
    def refuse(name: str) -> None:
        if name in refused:
            raise refused[name]

    return refuse


def fill_three(server: Server) -> None:
    for number, name in enumerate("ABC"):
        for mail in range(3):
            server.deliver(name, body(10 * number + mail))


def placed() -> set[str]:
    return set(Placement.objects.values_list("folder__path", flat=True))


def test_a_folder_that_is_refused_is_told_and_the_others_go_on(
    server: Server, source: IngestionSource
) -> None:
    fill_three(server)
    refused: dict[str, ConnectorError] = {"B": REFUSED}
    server.before_changes = refusing(refused)
    start(source)
    run = finish(source)
    assert (run.status, run.message) == (
        "incomplete",
        "6 archived; 1 folder could not be read: B (noperm). The next sync goes on there.",
    )
    assert placed() == {"A", "C"}
    folder = Folder.objects.get(path="B")
    assert (folder.attempts, folder.last_error_code) == (1, "noperm")
    assert "NOPERM" in folder.last_error
    assert folder.failing_since is not None
    assert folder.not_before is not None
    assert folder.not_before > timezone.now()
    mailbox = Mailbox.objects.get()
    assert (mailbox.last_error_code, mailbox.last_synced_at is not None) == ("", True)
    source.refresh_from_db()
    assert source.status == "active"
    assert source.next_sync_at is not None
    assert source.next_sync_at <= folder.not_before  # sooner than after a whole interval

    refused.clear()
    assert synced(source).message == "3 archived."
    folder.refresh_from_db()
    assert (folder.attempts, folder.last_error_code) == (0, "")
    assert not Folder.objects.exclude(failing_since=None, not_before=None).exists()
    assert_exact(server, source)


def test_a_folder_waits_longer_each_time_and_the_mailboxes_syncs_pass_it_by(
    server: Server, source: IngestionSource
) -> None:
    fill_three(server)
    asked: list[str] = []
    refuse = refusing({"B": REFUSED})

    def changes(name: str) -> None:
        asked.append(name)
        refuse(name)

    server.before_changes = changes
    start(source)
    finish(source)
    waits = []
    for _ in range(5):
        folder = Folder.objects.get(path="B")
        assert folder.not_before is not None
        waits.append((folder.not_before - timezone.now()).total_seconds())
        Folder.objects.filter(pk=folder.pk).update(not_before=timezone.now())
        synced(source)
    assert waits == sorted(waits)
    assert waits[0] < 60
    assert 1_500 < waits[-1] <= 4_000
    asked.clear()
    Run.objects.create(source=source, kind="sync", actor="schedule")  # as the schedule does
    discovery.discover(Run.objects.latest("started_at").pk)
    assert finish(source).status == "incomplete"
    assert asked == ["A", "C"]
    synced(source)  # somebody asked
    assert "B" in asked


@pytest.mark.parametrize(
    ("error", "code"),
    [(Unavailable("The server hung up."), "unavailable"), (KeyError("odd"), "internal_error")],
)
def test_what_goes_wrong_at_the_same_folder_each_time_holds_up_no_other(
    server: Server, source: IngestionSource, error: Exception, code: str
) -> None:
    fill_three(server)
    server.before_changes = refusing({"B": error})
    start(source)
    run = finish(source)
    assert placed() == {"A", "C"}
    assert (run.status, f"B ({code})" in run.message) == ("incomplete", True)
    assert Mailbox.objects.get().last_error_code == ""


def test_where_no_folder_can_be_read_it_is_the_mailboxes_trouble(
    server: Server, source: IngestionSource
) -> None:
    fill_three(server)
    server.before_changes = refusing(dict.fromkeys("ABC", REFUSED))
    start(source)
    work()
    mailbox = Mailbox.objects.get()
    assert (mailbox.attempts, mailbox.last_error_code, mailbox.last_synced_at) == (
        1,
        "noperm",
        None,
    )
    server.before_changes = lambda _: None
    assert finish(source).message == "9 archived."  # none waits longer than the mailbox does
    assert_exact(server, source)


def test_where_one_of_all_folders_can_be_read_again_the_mailbox_is_well(
    server: Server, source: IngestionSource
) -> None:
    fill_three(server)
    server.before_changes = refusing(dict.fromkeys("ABC", REFUSED))
    start(source)
    work()
    server.before_changes = refusing(dict.fromkeys("BC", REFUSED))
    work()
    assert placed() == {"A"}
    mailbox = Mailbox.objects.get()
    assert (mailbox.run, mailbox.last_error_code) == (None, "")


def test_a_cursor_is_no_progress_of_a_mailbox_that_fails_elsewhere(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 3, "A")
    fill(server, 3, "B")
    start(source)
    finish(source)
    server.before_changes = refusing({"B": Unavailable("The server hung up.")})
    run = verbs.start_sync(source, actor=ACTOR)
    discovery.discover(run.pk)
    for attempts in (1, 2):
        server.folders["A"][1].labels = (f"flag {attempts}",)
        work()
        assert Mailbox.objects.get().attempts == attempts


def test_a_message_that_breaks_the_connection_is_found_and_the_folders_rest_is_had(
    server: Server, source: IngestionSource
) -> None:
    fill_three(server)
    server.breaking.add("B/1:2")
    start(source)
    run = finish(source)
    assert (run.status, run.message) == ("completed", "8 archived, 1 failed.")
    server.breaking.clear()
    FailedMessage.objects.update(not_before=timezone.now())
    synced(source)
    assert_exact(server, source)


@pytest.mark.parametrize("error", [FolderGone("Deleted."), CursorExpired("Renumbered.")])
def test_a_folder_that_goes_or_expires_while_it_is_listed_anew_is_told(
    server: Server, source: IngestionSource, error: ConnectorError
) -> None:
    fill_three(server)
    start(source)
    finish(source)
    server.renumber("B")
    calls: list[str] = []

    def changes(name: str) -> None:
        calls.append(name)
        if calls.count("B") == 2 and name == "B":
            raise error

    server.before_changes = changes
    run = synced(source)
    assert f"1 folder could not be read: B ({error.code})" in run.message
    assert Mailbox.objects.get().last_error_code == ""
    server.before_changes = lambda _: None
    assert synced(source).status == "completed"
    assert_exact(server, source)


def test_a_mailbox_that_is_set_aside_makes_its_run_incomplete(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 3)
    start(source)
    server.before_changes = refusing({"INBOX": MailboxUnavailable("No licence.")})
    run = finish(source)
    assert run.status == "incomplete"
    assert "me@example.com (mailbox_unavailable)" in run.message


def test_names_of_folders_are_told_on_one_line_and_not_all_of_them(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 1)
    names = [f"{number}\r\nX: {'y' * 300}" for number in range(5)]
    for name in names:
        server.deliver(name, body(1))
    server.before_changes = refusing(dict.fromkeys(names, REFUSED))
    start(source)
    message = finish(source).message
    assert "5 folders could not be read: " in message
    assert ", and 2 more." in message
    assert message.isprintable()
    assert len(message) < 600


def test_pause_is_heard_between_folders_without_changes(
    server: Server, source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.01)
    for number in range(50):
        fill(server, 1, f"F{number:02}")
    start(source)
    finish(source)
    run = verbs.start_sync(source, actor=ACTOR)
    discovery.discover(run.pk)
    asked: list[str] = []

    def changes(name: str) -> None:
        asked.append(name)
        if len(asked) == 5:
            verbs.pause(source, actor=ACTOR)
        time.sleep(0.05)  # a round trip

    server.before_changes = changes
    sync.sync_mailbox(due_now().pk)
    assert len(asked) < 45  # on a busy machine the lease hears of it after half a second


def test_a_mailbox_of_many_folders_gets_on_from_slice_to_slice(
    server: Server, source: IngestionSource
) -> None:
    for number in range(10):
        fill(server, 1, f"F{number}")
    start(source)
    finish(source)
    run = verbs.start_sync(source, actor=ACTOR)
    discovery.discover(run.pk)
    asked: list[str] = []
    server.before_changes = asked.append
    slices = 1
    while sync.sync_mailbox(due_now().pk, slice_seconds=0):
        slices += 1
    assert asked == [f"F{number}" for number in range(10)]
    assert slices == 10
    run.refresh_from_db()
    assert run.status == "completed"


def test_a_message_of_no_bytes_is_recorded_and_not_archived(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 3)
    uid = server.deliver("INBOX", b"")
    start(source)
    assert finish(source).message == "3 archived, 1 failed."
    assert FailedMessage.objects.get().code == "empty"
    server.folders["INBOX"][uid].body = body(9)
    FailedMessage.objects.update(not_before=timezone.now())
    synced(source)
    assert_exact(server, source)


def test_a_refusal_while_failures_are_tried_again_stops_nobody(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 3)
    server.refused["1:2"] = MessageRefused("Too large.")
    start(source)
    finish(source)
    server.refused.clear()
    FailedMessage.objects.update(not_before=timezone.now())
    fill(server, 1, "Other")

    def refuse(_: int) -> None:
        server.before_message = lambda _: None
        raise FolderRefused("In use.", code="inuse")

    server.before_message = refuse
    synced(source)
    assert placed() == {"INBOX", "Other"}


def test_what_failed_in_a_folder_that_is_left_out_later_fails_no_more_and_comes_once_it_is_wanted(
    server: Server, source: IngestionSource
) -> None:
    """Else it would be due for ever: its owner is synced each time, and told to wait for it."""
    fill_three(server)
    server.deliver("B", body(100))
    server.refused["1:4"] = MessageRefused("A calendar is no mail.")
    start(source)
    finish(source)
    [failed] = FailedMessage.objects.values_list("folder__path", flat=True)
    assert failed == "B"
    [judged] = freshness.judged(IngestionSource.objects.all())
    assert judged.lacks_messages

    configuration.update(source, changes={"options": {"excludeFolders": ["B"]}}, actor=ACTOR)
    synced(source)
    assert not FailedMessage.objects.exists()
    [judged] = freshness.judged(IngestionSource.objects.all())
    assert not judged.lacks_messages

    server.refused.clear()
    configuration.update(source, changes={"options": {"excludeFolders": []}}, actor=ACTOR)
    server.fetched.clear()
    synced(source)
    assert_exact(server, source)
    assert len(server.fetched) == 1
