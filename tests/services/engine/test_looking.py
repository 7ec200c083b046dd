"""Looks at accounts: what they decide by themselves, and what they leave to a sync."""

import datetime as dt
import time
from collections.abc import Callable, Iterator

import pytest
from django.db import connection
from django.utils import timezone

from connectors import errors
from ingestion.models import FailedMessage, Folder, IngestionSource, Mailbox, Run
from ingestion.services.engine import due_work, folders, looking
from ingestion.services.sources import configuration, verbs
from ingestion.states import ListAnew, RunKind
from tests.servers import imap_source
from tests.servers.imap_script import MODERN, PLAIN, Box, Client, ImapScript
from tests.servers.imap_source import ACTOR
from tests.services.test_deadlocks import MAILBOX, SOURCE, crossing

pytestmark = pytest.mark.django_db(transaction=True)
INTERVAL = dt.timedelta(seconds=300)


@pytest.fixture(params=[MODERN, PLAIN], ids=["modern", "plain"])
def server(request: pytest.FixtureRequest) -> Iterator[ImapScript]:
    with ImapScript(capabilities=request.param) as server:
        server.boxes[b"Sent"] = Box()
        for number in range(3):
            server.inbox.deliver(b"Subject: %d\r\n\r\n" % number)
        yield server


@pytest.fixture
def source(server: ImapScript) -> IngestionSource:
    """Imported, and due."""
    source = imap_source.create(server)
    imap_source.imported(source)
    make_due(source)
    server.commands.clear()
    return source


def make_due(source: IngestionSource, *, ago: dt.timedelta = dt.timedelta(seconds=1)) -> None:
    IngestionSource.objects.filter(pk=source.pk).update(next_sync_at=timezone.now() - ago)


def look(source: IngestionSource) -> Run | None:
    """Look at what is due; return the sync that began, if one did."""
    assert looking.work(source.pk) is False
    source.refresh_from_db()
    return Run.objects.filter(source=source, finished_at=None).first()


def test_where_nothing_is_new_no_sync_begins(server: ImapScript, source: IngestionSource) -> None:
    before = Mailbox.objects.get().last_synced_at
    assert before is not None
    assert [work.kind for work in due_work.hand_out() if work.kind != "index"] == ["look"]
    assert look(source) is None
    assert not server.asked(b"EXAMINE")
    synced_at = Mailbox.objects.get().last_synced_at
    assert synced_at is not None
    assert synced_at > before
    assert source.next_sync_at is not None
    assert timezone.now() < source.next_sync_at <= timezone.now() + INTERVAL
    assert [work.kind for work in due_work.hand_out()] == []


@pytest.mark.parametrize("is_new", [False, True], ids=["nothing new", "new"])
def test_a_deadlock_is_no_error_of_a_look(
    server: ImapScript, source: IngestionSource, is_new: bool
) -> None:
    """Who went first may still have the source when it begins again: then it is looked at anew."""
    if is_new:
        server.inbox.deliver(b"Subject: new\r\n\r\n")
    with crossing(MAILBOX, SOURCE):
        look(source)
    IngestionSource.objects.update(handed_out_at=None)  # as if that were long ago
    assert (look(source) is not None) == is_new
    assert is_new or (source.next_sync_at is not None and source.next_sync_at > timezone.now())


Change = Callable[[ImapScript], object]
CHANGES: dict[str, Change] = {
    "new mail": lambda server: server.inbox.deliver(b"Subject: new\r\n\r\n"),
    "a message gone": lambda server: server.inbox.expunge(2),
    "a new folder": lambda server: server.boxes.update({b"Lists": Box()}),
    "a folder gone": lambda server: server.boxes.pop(b"Sent"),
    "another UIDVALIDITY": lambda server: setattr(server.boxes[b"Sent"], "validity", 7),
    "a folder refused": lambda server: setattr(server.boxes[b"Sent"], "status_refusal", b"NO"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_changed_is_left_to_a_sync_that_need_not_list_the_mailbox(
    server: ImapScript, source: IngestionSource, change: Change
) -> None:
    change(server)
    run = look(source)
    assert run is not None
    assert (run.kind, run.actor, run.mailboxes_total) == (RunKind.SYNC, "schedule", 1)
    assert source.next_sync_at is None
    handed_out = [work.kind for work in due_work.hand_out()]
    assert "mailbox" in handed_out
    assert "discover" not in handed_out
    assert imap_source.finish(source).pk == run.pk
    if b"Sent" in server.boxes:
        assert imap_source.archived(source) == imap_source.held_by(server)


def test_a_changed_flag_is_left_to_a_sync(server: ImapScript, source: IngestionSource) -> None:
    server.inbox.flag(1, b"\\Seen")
    assert bool(look(source)) is server.has("CONDSTORE")  # others don't tell of flags


def failed(source: IngestionSource) -> None:
    folder = Folder.objects.filter(mailbox__source=source)[0]
    FailedMessage.objects.create(
        mailbox=folder.mailbox,
        folder=folder,
        remote_id="1:9",
        code="x",
        reason="x",
        not_before=timezone.now(),
    )


OWED: dict[str, Callable[[IngestionSource], object]] = {
    "a message that failed": failed,
    "a folder to be listed anew": lambda _: folders.list_anew(Folder.objects.all()[0]),
    "other mail wanted": lambda _: Folder.objects.update(listed_since=dt.date(2024, 1, 1)),
    "a mailbox that failed": lambda _: Mailbox.objects.update(last_error_code="x"),
    "a folder that fails": lambda _: Folder.objects.update(failing_since=timezone.now()),
    "a folder of which nothing is known": lambda _: Folder.objects.update(cursor=None),
    "a mailbox never synced": lambda _: Mailbox.objects.update(last_synced_at=None),
}


@pytest.mark.parametrize("owe", OWED.values(), ids=OWED)
@pytest.mark.parametrize("server", [MODERN], indirect=True, ids=["modern"])
def test_what_is_owed_begins_a_sync_without_a_look(
    server: ImapScript, source: IngestionSource, owe: Callable[[IngestionSource], object]
) -> None:
    owe(source)
    run = look(source)
    assert run is not None
    assert run.discovered_at is not None
    assert server.commands == []


@pytest.mark.parametrize("server", [MODERN], indirect=True, ids=["modern"])
def test_a_folder_that_is_left_out_by_now_owes_nothing(
    server: ImapScript, source: IngestionSource
) -> None:
    Folder.objects.filter(path="Sent").update(list_anew=ListAnew.BY_ID)
    IngestionSource.objects.update(options={"excludeFolders": ["Sent"]})
    assert look(source) is None
    make_due(source)
    IngestionSource.objects.update(options={})
    assert look(source) is not None


@pytest.mark.parametrize("server", [MODERN], indirect=True, ids=["modern"])
def test_who_is_another_account_by_now_lists_the_mailbox(
    server: ImapScript, source: IngestionSource
) -> None:
    config = source.config | {"username": "somebody.else"}
    IngestionSource.objects.update(config=config)
    run = look(source)
    assert run is not None
    assert run.discovered_at is None
    assert server.commands == []


@pytest.mark.parametrize("server", [MODERN], indirect=True, ids=["modern"])
def test_a_server_that_is_away_is_the_syncs_trouble(
    server: ImapScript, source: IngestionSource
) -> None:
    server.greeting = b"* BYE Maintenance\r\n"
    run = look(source)
    assert run is not None
    imap_source.work(source)
    assert Mailbox.objects.get().last_error_code == errors.Unavailable.code
    server.greeting = b"* OK ready\r\n"
    assert imap_source.finish(source).pk == run.pk


def paused(source: IngestionSource) -> None:
    verbs.pause(source, actor=ACTOR)


def synced(source: IngestionSource) -> None:
    verbs.start_sync(source, actor=ACTOR)


def other_password(source: IngestionSource) -> None:
    given = {"providerConfig": {"password": "another"}}
    configuration.update(source, changes=given, actor=ACTOR)


@pytest.mark.parametrize("server", [MODERN], indirect=True, ids=["modern"])
@pytest.mark.parametrize("meddle", [paused, synced, other_password])
def test_what_is_done_to_a_source_while_it_is_looked_at_counts(
    server: ImapScript, source: IngestionSource, meddle: Callable[[IngestionSource], object]
) -> None:
    before = Mailbox.objects.get().last_synced_at
    runs_before = Run.objects.count()

    def while_listing(_client: Client, _tag: bytes, command: bytes) -> bool:
        if command.startswith(b"LIST"):
            meddle(IngestionSource.objects.get())
            connection.close()  # this thread's own
        return False

    server.hooks.append(while_listing)
    look(source)
    assert Mailbox.objects.get().last_synced_at == before
    assert Run.objects.count() == runs_before + (meddle is synced)
    assert source.next_sync_at is None or source.next_sync_at < timezone.now()


@pytest.mark.parametrize("server", [MODERN], indirect=True, ids=["modern"])
def test_a_look_that_died_is_done_again(server: ImapScript, source: IngestionSource) -> None:
    assert len(looking._take(10)) == 1  # and its process dies
    assert looking._take(10) == []
    IngestionSource.objects.update(handed_out_at=timezone.now() - looking._AGAIN)
    assert len(looking._take(10)) == 1


@pytest.mark.parametrize("server", [MODERN], indirect=True, ids=["modern"])
def test_after_an_outage_accounts_come_back_spread_over_their_interval(
    server: ImapScript, source: IngestionSource
) -> None:
    due_again = []
    for _ in range(20):
        make_due(source, ago=dt.timedelta(hours=1))
        assert look(source) is None
        assert source.next_sync_at is not None
        due_again.append(source.next_sync_at - timezone.now())
    assert max(due_again) - min(due_again) > INTERVAL / 4
    assert max(due_again) <= INTERVAL


@pytest.mark.parametrize("server", [MODERN], indirect=True, ids=["modern"])
def test_one_server_bears_no_more_than_some_looks_at_once(
    server: ImapScript, source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking._room_at.cache_clear()
    monkeypatch.setattr(looking, "_AT_ONE_SERVER", 2)
    for number in range(5):
        other = imap_source.create(server, name=f"Other {number}")
        imap_source.imported(other)
        make_due(other)
    listing: list[Client] = []
    most: list[int] = []

    def linger(client: Client, _tag: bytes, command: bytes) -> bool:
        if command.startswith(b"LIST"):
            listing.append(client)
            time.sleep(0.1)  # so that others would come in between
            most.append(len(listing))
            listing.remove(client)
        return False

    server.hooks.append(linger)
    assert look(source) is None
    looking._room_at.cache_clear()
    assert len(most) == 6
    assert max(most) <= 2


def test_a_look_without_a_place_has_no_work_looked_for(source: IngestionSource) -> None:
    """It would be handed out the next, which finds no place either, for as long as any is due."""
    work = due_work.Work("look", source.pk)
    assert work in due_work.hand_out()
    with looking._looking.taken(None), looking._looking.taken(None):
        assert due_work.do(work) == (None, False)
    assert work in due_work.hand_out()  # it need not wait for its turn
    assert due_work.do(work) == (None, True)
