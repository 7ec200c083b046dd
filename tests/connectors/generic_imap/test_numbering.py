"""IMAP servers that number messages otherwise than RFC 9051 section 2.3.1.1 has it, through the whole
engine: whatever UIDNEXT tells, each message is archived."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from ingestion.models import Folder, IngestionSource, Message, Placement, StatusChange
from tests.servers import imap_source
from tests.servers.imap_script import MODERN, PLAIN, Box, Client, ImapScript
from tests.servers.imap_source import archived, held_by, imported, synced

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def short(settings: Any, tmp_path: Path) -> None:
    settings.ARCHIVE_DIR = tmp_path / "archive"


@pytest.fixture(params=[MODERN, PLAIN], ids=["modern", "plain"])
def server(request: pytest.FixtureRequest) -> Iterator[ImapScript]:
    with ImapScript(capabilities=request.param) as script:
        for uid in (1, 11, 21, 31, 41):
            deliver(script, uid)
        yield script


@pytest.fixture
def source(server: ImapScript) -> IngestionSource:
    return imap_source.create(server)


def deliver(server: ImapScript, uid: int | None = None, text: str = "") -> None:
    number = len(server.commands)
    server.inbox.deliver(f"Subject: {text or uid or number}\r\n\r\nText\r\n".encode(), uid=uid)


def told(monkeypatch: pytest.MonkeyPatch, pattern: bytes, instead: Any) -> None:
    """Have the server say something else."""
    send = Client.send
    monkeypatch.setattr(
        Client, "send", lambda self, data: send(self, re.sub(pattern, instead, data))
    )


@pytest.mark.parametrize(
    ("pattern", "instead"),
    [
        (rb"UIDNEXT \d+", b"UIDNEXT 0"),
        (rb"UIDNEXT \d+", b"UIDNEXT 1"),
        (rb"UIDNEXT (\d+)", lambda found: b"UIDNEXT %d" % (int(found[1]) - 1)),
        (rb"UIDNEXT (\d+)", b"UIDNEXT 99999999999999999999"),
        (rb"\* OK \[UIDNEXT \d+\] ok\r\n", b""),
        (rb"\* OK \[UIDNEXT \d+\] ok\r\n| UIDNEXT \d+", b""),
    ],
    ids=["0", "always 1", "the highest", "twenty digits", "in STATUS alone", "never"],
)
def test_new_mail_is_archived_whatever_number_is_said_to_be_next(
    server: ImapScript,
    source: IngestionSource,
    monkeypatch: pytest.MonkeyPatch,
    pattern: bytes,
    instead: Any,
) -> None:
    told(monkeypatch, pattern, instead)
    imported(source)
    for uid in (1, 11, 21):
        server.inbox.expunge(uid)  # so the count does not tell
        deliver(server)
        synced(source)
        assert archived(source) == held_by(server)


def test_a_folder_whose_next_number_nobody_tells_is_listed_whole_only_where_it_changed(
    server: ImapScript, source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(monkeypatch, rb"\* OK \[UIDNEXT \d+\] ok\r\n| UIDNEXT \d+", b"")
    imported(source)
    del server.commands[:]
    synced(source)
    assert not server.asked(b"SEARCH")
    server.inbox.expunge(11)
    synced(source)
    assert archived(source) == held_by(server)


def test_numbers_that_are_given_out_again_hide_nothing(
    server: ImapScript, source: IngestionSource
) -> None:
    """A mailbox restored from a backup: the same UIDVALIDITY, the same UIDs for other mail."""
    imported(source)
    for uid in (31, 41):
        server.inbox.expunge(uid)
    server.inbox.next_uid = 31
    for text in ("restored", "and later"):
        deliver(server, text=text)
        synced(source)
    assert len(held_by(server)) == 5
    assert sorted(archived(source).values()) == sorted(held_by(server).values())
    assert Message.objects.count() == 7


@pytest.mark.parametrize("days", [-1, 365], ids=["a day ago", "by a clock that was ahead"])
def test_a_message_that_comes_late_below_the_others_is_archived(
    server: ImapScript, source: IngestionSource, days: int
) -> None:
    imported(source)
    server.inbox.expunge(21)  # so the count does not tell
    deliver(server, 15)
    Folder.objects.update(cursor=listed(Folder.objects.get(), days=days))
    synced(source)
    assert archived(source) == held_by(server)


@pytest.mark.parametrize("ids", [(), ("OBJECTID",)], ids=["no ids", "ids"])
def test_a_late_message_is_seen_at_once_where_the_counts_differ(
    server: ImapScript, source: IngestionSource, ids: tuple[str, ...]
) -> None:
    server.capabilities += ids
    imported(source)
    server.inbox.expunge(21)
    deliver(server, 5)
    deliver(server, 6)
    synced(source)
    assert archived(source) == held_by(server)


@pytest.mark.parametrize("late", [5, 50], ids=["below", "above"])
def test_a_message_that_comes_late_and_is_archived_from_another_folder_is_in_both(
    late: int,
) -> None:
    with ImapScript(capabilities=(*MODERN, "OBJECTID")) as server:
        for uid in (1, 11, 21, 31, 41):
            server.inbox.deliver(b"Subject: %d\r\n\r\n" % uid, uid=uid, email_id=b"E%d" % uid)
        other = server.boxes[b"Other"] = Box(validity=5)
        other.deliver(b"Subject: both\r\n\r\n", email_id=b"E50")
        source = imap_source.create(server, name="Ids")
        imported(source)
        server.inbox.deliver(other.mails[1].body, uid=late, email_id=b"E50")
        synced(source)
        assert archived(source) == held_by(server)
        other.expunge(1)
        del server.commands[:]
        synced(source)
        assert archived(source) == held_by(server)
        assert not server.asked(b"BODY.PEEK[])")


def test_what_a_server_does_not_show_for_a_while_is_put_back_where_it_was(
    server: ImapScript, source: IngestionSource
) -> None:
    """Gmail, where a limit of messages by folder is set for IMAP and taken away again; a replica
    that lags."""
    imported(source)
    server.inbox.mails[11].flags = (b"\\Seen",)
    all_of_them = dict(server.inbox.mails)
    for uid in (1, 11, 21):
        del server.inbox.mails[uid]
    synced(source)
    assert archived(source) == held_by(server)
    server.inbox.mails = all_of_them
    del server.commands[:]
    synced(source)
    assert archived(source) == held_by(server)
    assert len(held_by(server)) == 5
    assert list(Placement.objects.get(remote_id="1:11").labels) == ["\\Seen"]
    assert not server.asked(b"BODY.PEEK[])")


def test_what_is_listed_again_is_looked_up_once(
    server: ImapScript, source: IngestionSource
) -> None:
    imported(source)
    server.inbox.expunge(21)
    Folder.objects.update(cursor=listed(Folder.objects.get(), days=-1))
    with CaptureQueriesContext(connection) as queries:
        synced(source)
    assert len([1 for query in queries if "remote_id = key" in query["sql"]]) == 1


def test_numbers_of_removed_messages_that_others_have_between_two_syncs_hide_nothing() -> None:
    """Restored, and filled up to where it was. Without VANISHED (RFC 7162) nothing tells of it."""
    with ImapScript() as server:
        for uid in (1, 11, 21, 31, 41):
            deliver(server, uid)
        source = imap_source.create(server)
        imported(source)
        for uid in (31, 41):
            server.inbox.expunge(uid)
            deliver(server, uid, text=f"restored {uid}")
        synced(source)
        assert archived(source) == held_by(server)
        assert Message.objects.count() == 7


@pytest.mark.parametrize("removed", [(), (11,)], ids=["flags", "removal"])
def test_modification_sequences_that_went_back_hide_nothing(removed: tuple[int, ...]) -> None:
    with ImapScript() as server:
        for uid in (1, 11, 21, 31, 41):
            deliver(server, uid)
        source = imap_source.create(server)
        imported(source)
        server.inbox.modseq = 1
        server.inbox.flag(21, b"\\Seen")
        for uid in removed:
            server.inbox.expunge(uid)
        synced(source)
        assert archived(source) == held_by(server)
        assert list(Placement.objects.get(remote_id="1:21").labels) == ["\\Seen"]


def test_a_folder_whose_status_is_stale_is_looked_into_once_a_day(
    server: ImapScript, source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported(source)
    told(
        monkeypatch,
        rb"(\* STATUS.*) \(MESSAGES.*UIDVALIDITY",
        rb"\1 (MESSAGES 5 UIDNEXT 42 UIDVALIDITY",
    )
    told(monkeypatch, rb"(\* STATUS.*HIGHESTMODSEQ) \d+", rb"\1 6")
    deliver(server)
    synced(source)
    assert Message.objects.count() == 5
    Folder.objects.update(cursor=listed(Folder.objects.get(), days=-1))
    synced(source)
    assert archived(source) == held_by(server)


@pytest.mark.parametrize("gone", [(), (31, 41)], ids=["all there", "some deleted"])
def test_a_message_that_takes_the_number_of_another_is_archived(
    source: IngestionSource, monkeypatch: pytest.MonkeyPatch, gone: tuple[int, ...]
) -> None:
    """Courier keeps the numbers that EXAMINE told only once somebody SELECTs: a delivery that began
    earlier and ended later then has the number under which another was seen."""
    with ImapScript(capabilities=PLAIN) as server:
        for uid in (1, 11, 21, 31, 41):
            deliver(server, uid)
        told(monkeypatch, rb"\* OK \[UIDNEXT \d+\] ok\r\n", b"")
        source = imap_source.create(server, name="Courier")
        imported(source)
        deliver(server, 51)
        synced(source)
        for uid in gone:
            server.inbox.expunge(uid)
        seen = server.inbox.mails.pop(51)
        deliver(server, 51, text="began earlier")
        server.inbox.deliver(seen.body)
        synced(source)
        assert archived(source) == held_by(server)
        deliver(server)
        del server.commands[:]
        synced(source)
        assert archived(source) == held_by(server)
        assert len(server.asked(b"BODY.PEEK[])")) == 1  # of the new one: nothing begins anew


def test_a_message_that_takes_the_number_of_another_is_seen_below_deleted_ones(
    source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ImapScript(capabilities=PLAIN) as server:
        for uid in (1, 11, 21, 31, 41):
            deliver(server, uid)
        told(monkeypatch, rb"\* OK \[UIDNEXT \d+\] ok\r\n", b"")
        source = imap_source.create(server, name="Courier")
        imported(source)
        server.inbox.expunge(41)
        server.inbox.expunge(31)
        deliver(server, 31, text="began earlier")
        synced(source)
        assert archived(source) == held_by(server)


def test_a_folder_that_is_numbered_anew_each_time_is_read_again_only_where_it_changed(
    source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Courier, a folder that no program has opened to write: another UIDVALIDITY at each EXAMINE."""
    with ImapScript(capabilities=PLAIN) as server:
        for uid in range(1, 16):
            deliver(server, uid)
        told(monkeypatch, rb"\* OK \[UIDNEXT \d+\] ok\r\n", b"")

        def number_anew(_client: Client, _tag: bytes, command: bytes) -> bool:
            server.inbox.validity += command.startswith((b"EXAMINE", b"STATUS"))
            return False

        server.hooks.append(number_anew)
        source = imap_source.create(server, name="Courier")
        imported(source)
        for _ in range(2):
            del server.commands[:]
            assert synced(source).status == "completed"
            assert not server.asked(b"BODY.PEEK[])")
        deliver(server, text="new")
        synced(source)
        assert sorted(archived(source).values()) == sorted(held_by(server).values())
        server.inbox.expunge(15)
        deliver(server, text="newer")
        synced(source)
        assert sorted(archived(source).values()) == sorted(held_by(server).values())
        Folder.objects.update(cursor=listed(Folder.objects.get(mailbox__source=source), days=-1))
        del server.commands[:]
        synced(source)
        assert server.asked(b"BODY.PEEK[])")
        assert Message.objects.count() == 17


def test_the_check_tells_of_a_server_that_may_number_messages_anew(
    server: ImapScript, source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "number" not in StatusChange.objects.get(source=source).reason
    told(monkeypatch, rb"\* OK \[UIDNEXT \d+\] ok\r\n", b"")
    courier = imap_source.create(server, name="Courier")
    told_of_it = "until a mail program has opened it"
    assert told_of_it in StatusChange.objects.get(source=courier).reason


def listed(folder: Folder, *, days: int) -> dict[str, Any]:
    """Return the folder's cursor, as if all of it had been listed so many days after it was."""
    cursor = folder.cursor
    assert cursor is not None
    return {**cursor, "t": cursor.get("t", 0) + days * 86_400}


@pytest.mark.parametrize("offered", [MODERN, PLAIN], ids=["modern", "plain"])
def test_a_folder_of_stable_ids_costs_nothing_unchanged_for_a_week(
    offered: tuple[str, ...],
) -> None:
    with ImapScript(capabilities=(*offered, "OBJECTID")) as server:
        deliver(server, 1)
        source = imap_source.create(server, name="Ids")
        imported(source)
        for days, looks in ((-2, False), (-5, True)):  # in all
            Folder.objects.update(cursor=listed(Folder.objects.get(), days=days))
            del server.commands[:]
            synced(source)
            assert bool(server.asked(b"EXAMINE")) == looks


def test_a_folder_that_keeps_no_modification_sequences_costs_nothing_unchanged(
    source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ImapScript() as server:
        deliver(server, 1)
        told(monkeypatch, rb"\[HIGHESTMODSEQ \d+\]", b"[NOMODSEQ]")
        told(monkeypatch, rb"HIGHESTMODSEQ \d+", b"HIGHESTMODSEQ 0")
        source = imap_source.create(server, name="None")
        imported(source)
        del server.commands[:]
        synced(source)
        assert not server.asked(b"FETCH")
        assert not server.asked(b"EXAMINE")
