"""The feed: nothing is missed and nothing comes too late, whoever writes at the same time."""

import collections
import contextlib
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction

from ingestion import feed
from ingestion.models import ArchiveChange, Folder, IngestionSource, Message, Pack, Placement
from ingestion.services.archive import restored
from ingestion.services.sources import deletion, verbs
from tests.e2e import rows
from tests.servers import people, scripted_provider
from tests.servers.scripted_provider import Server
from tests.servers.scripted_source import ACTOR, create, fill, finish, start, synced

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("archive_dir"),
]


@pytest.fixture
def server() -> Iterator[Server]:
    with scripted_provider.installed() as installed:
        yield installed


@pytest.fixture
def folder(owner: User) -> Folder:
    return rows.a_folder(rows.a_mailbox(rows.a_source(owner)))


class Mirror:
    """What a program that follows the feed knows."""

    def __init__(self, user: User) -> None:
        self.user, self.cursor, self.placements = user, "", dict[int, feed.Change]()

    def read(self, *, limit: int = 100) -> list[feed.Change]:
        """Read on to the end of the feed as it is now; return what came."""
        came: list[feed.Change] = []
        more = True
        while more:
            page = feed.page(self.user, after=self.cursor, limit=limit)
            assert len(page.changes) <= limit
            for change in page.changes:
                self.take(change)
            came += page.changes
            self.cursor, more = page.cursor, page.more
        return came

    def take(self, change: feed.Change) -> None:
        known = self.placements
        if change.kind == "message.erased":
            self._forget(lambda p: p.message_id == change.message_id)
        elif change.kind == "source.deleted":
            self._forget(lambda p: p.source_id == change.source_id)
        elif change.placement_id is not None:
            known[change.placement_id] = change

    def _forget(self, gone: Callable[[feed.Change], bool]) -> None:
        self.placements = {pk: p for pk, p in self.placements.items() if not gone(p)}

    def there(self) -> collections.Counter[tuple[str | None, str | None, tuple[str, ...]]]:
        """What lies where: (SHA-256, folder, labels)."""
        return collections.Counter(
            (p.sha256, p.folder, tuple(p.labels or ()))
            for p in self.placements.values()
            if p.removed_at is None
        )


def archived(source: IngestionSource) -> collections.Counter[tuple[str, str, tuple[str, ...]]]:
    placed = Placement.objects.filter(mailbox__source=source, removed_at=None)
    return collections.Counter(
        (p.message.sha256_hex, p.folder.path, tuple(p.labels))
        for p in placed.select_related("message", "folder")
    )


def test_it_tells_what_the_engine_does(server: Server) -> None:
    source = create()
    mirror = Mirror(source.owner)
    fill(server, 30)
    server.deliver("Sent", b"Subject: sent\r\n\r\n")
    start(source)
    finish(source)
    came = mirror.read(limit=7)
    assert {change.kind for change in came} == {"message.placed"}
    assert len(came) == 31
    assert mirror.there() == archived(source)
    assert mirror.read() == []

    inbox = server.folders["INBOX"]
    server.deliver("Done", inbox.pop(3).body)  # moved
    inbox[4].labels = ("Work",)
    del inbox[5]
    synced(source)
    came = mirror.read()
    assert sorted(change.kind for change in came) == [
        *("message.placed", "placement.changed", "placement.removed", "placement.removed"),
    ]
    assert mirror.there() == archived(source)
    placed = next(change for change in came if change.kind == "message.placed")
    moved = [change for change in came if change.message_id == placed.message_id]
    assert {change.kind for change in moved} == {"message.placed", "placement.removed"}

    server.folders["INBOX"], server.validity["INBOX"] = dict(inbox), 2  # all ids are others now
    synced(source)
    mirror.read()
    assert mirror.there() == archived(source)

    assert mirror.read() == []
    synced(source)
    assert mirror.read() == [], "a sync that finds nothing tells nothing"

    verbs.delete(source, actor=ACTOR)
    assert [change.kind for change in mirror.read()] == ["source.deleted"]
    assert not mirror.there()
    deletion.delete_source(source.pk)
    assert mirror.read() == [], "its messages are not told one by one"
    assert ArchiveChange.objects.get().kind == "source.deleted"
    late = Mirror(source.owner)
    assert [change.kind for change in late.read()] == ["source.deleted"]


def test_what_is_erased_or_renamed_is_told(folder: Folder, owner: User) -> None:
    first, second = rows.archived(folder, b"Subject: one\r\n\r\n", b"Subject: two\r\n\r\n")
    mirror = Mirror(owner)
    mirror.read()
    pk = first.pk
    first.delete()
    [erased] = mirror.read()
    assert (erased.kind, erased.message_id) == ("message.erased", pk)
    assert (erased.sha256, erased.size_bytes) == (first.sha256_hex, first.size_bytes)
    assert [p.message_id for p in mirror.placements.values()] == [second.pk]

    Folder.objects.filter(pk=folder.pk).update(path="Post", remote_count=3)
    type(folder.mailbox).objects.update(address="new@example.com")
    renamed, moved = mirror.read()
    assert (renamed.kind, renamed.folder_id, renamed.folder) == (
        "folder.renamed",
        folder.pk,
        "Post",
    )
    assert (moved.kind, moved.mailbox) == ("mailbox.renamed", "new@example.com")
    Folder.objects.filter(pk=folder.pk).update(path="Post", remote_count=4)
    Placement.objects.update(thread_id="t", remote_id="other")
    assert mirror.read() == [], "nothing that the feed tells changed"


# -- many writers ------------------------------------------------------------------------------

_WRITERS, _TRANSACTIONS, _PLACEMENTS = 8, 40, 25


class _Rollback(Exception):
    pass


class Writer(threading.Thread):
    """Writes placements in transactions that overlap with others', and takes some back.

    The label of a placement is a number that rises with each change."""

    def __init__(self, folder: Folder, seed: int) -> None:
        super().__init__()
        self.folder, self.random = folder, random.Random(seed)
        self.failed: BaseException | None = None

    def run(self) -> None:
        try:
            for _ in range(_TRANSACTIONS):
                with contextlib.suppress(_Rollback), transaction.atomic():
                    self._write()
        except BaseException as error:
            self.failed = error
            raise
        finally:
            connection.close()

    def _write(self) -> None:
        with connection.cursor() as cursor:
            for statement in self.random.choices(_STATEMENTS, k=self.random.randint(1, 3)):
                parameters: dict[str, Any] = {
                    "folder": self.folder.pk,
                    "mailbox": self.folder.mailbox_id,
                    "new": uuid.UUID(int=self.random.getrandbits(128)),
                    "which": self.random.randrange(_PLACEMENTS),
                }
                cursor.execute("SET LOCAL lock_timeout = 0")
                with contextlib.suppress(Exception), transaction.atomic():
                    cursor.execute(statement, parameters)  # a deadlock ends this statement alone
                time.sleep(self.random.choice((0, 0.001, 0.01, 0.03)))  # others commit meanwhile
        if self.random.random() < 0.3:
            raise _Rollback


_SOME = "folder_id = %(folder)s AND (id %% 25) = %(which)s"
_NEXT = "ARRAY[(labels[1]::bigint + 1)::text]"
_STATEMENTS = (
    # a message that is new, and where it is
    """WITH m AS (INSERT INTO ingestion_message
         (id, mailbox_id, sha256, size_bytes, pack_id, pack_offset, pack_length, subject, sender,
          recipients, message_id, defects)
       SELECT %(new)s, %(mailbox)s, sha256(%(new)s::text::bytea), 1, id, 0, 0, '', '', '', '', '{}'
         FROM ingestion_pack LIMIT 1 RETURNING id)
       INSERT INTO ingestion_placement
         (mailbox_id, folder_id, message_id, remote_id, stable_id, thread_id, labels)
       SELECT %(mailbox)s, %(folder)s, id, id::text, '', '', '{1}' FROM m""",
    f"UPDATE ingestion_placement SET labels = {_NEXT} WHERE {_SOME}",
    f"""UPDATE ingestion_placement SET labels = {_NEXT},
               removed_at = CASE WHEN removed_at IS NULL THEN now() END WHERE {_SOME}""",
    f"""WITH gone AS (DELETE FROM ingestion_placement WHERE {_SOME} AND labels <> '{{1}}'
                       AND id %% 3 = 0 RETURNING message_id)
        DELETE FROM ingestion_message WHERE id IN (SELECT message_id FROM gone)""",
)


def test_a_reader_who_stops_and_resumes_misses_nothing_of_eight_writers(
    folder: Folder, owner: User
) -> None:
    seed = int(os.environ.get("FEED_SEED", random.randrange(2**32)))
    print(f"FEED_SEED={seed}")
    chance = random.Random(seed)
    Pack.objects.create(source=folder.mailbox.source, size_bytes=0, message_count=0)
    writers = [Writer(folder, seed + number) for number in range(_WRITERS)]
    mirror = Mirror(owner)
    #: What came of each placement, in the order it was read: its number.
    told: dict[int | None, int] = {}
    erased: set[uuid.UUID | None] = set()

    def read() -> bool:
        page = feed.page(owner, after=mirror.cursor, limit=chance.choice((1, 3, 50)))
        for change in page.changes:
            if chance.random() < 0.05:
                return True  # killed here: what was taken is kept, the cursor is not
            if change.kind == "message.erased":
                erased.add(change.message_id)
            elif change.labels:
                assert change.message_id not in erased, "told after the message was gone"
                number = int(change.labels[0])
                assert number >= told.get(change.placement_id, 0), "went back"
                told[change.placement_id] = number
            mirror.take(change)
        mirror.cursor = page.cursor
        return bool(page.changes) or page.more

    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        read()
    for writer in writers:
        writer.join()
        assert writer.failed is None
    while read():
        pass
    assert mirror.there() == archived(folder.mailbox.source)
    assert set(mirror.placements) == set(Placement.objects.values_list("pk", flat=True))
    assert erased, "some were erased"
    assert len(mirror.placements) > _PLACEMENTS
    assert Message.objects.count() == len(mirror.placements)


def test_what_is_under_way_is_waited_for(folder: Folder, owner: User) -> None:
    """A transaction that began earlier commits later: the later one is not told before it."""
    mirror = Mirror(owner)
    first, second = rows.archived(folder, b"Subject: one\r\n\r\n", b"Subject: two\r\n\r\n")
    mirror.read()
    began, may_end = threading.Event(), threading.Event()

    def slow() -> None:
        try:
            with transaction.atomic():
                Placement.objects.filter(message=first).update(labels=["slow"])
                began.set()
                assert may_end.wait(240)
        finally:
            connection.close()

    thread = threading.Thread(target=slow)
    thread.start()
    try:
        assert began.wait(120)
        Placement.objects.filter(message=second).update(labels=["quick"])
        assert mirror.read() == []
    finally:
        may_end.set()
        thread.join()
    assert [change.labels for change in mirror.read()] == [["slow"], ["quick"]]


# -- pages -------------------------------------------------------------------------------------


def test_a_page_looks_at_so_many_rows_and_no_more(
    folder: Folder, owner: User, other_user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others' mail is passed by in steps: empty pages, each with a cursor."""
    monkeypatch.setattr(feed, "_LOOKS_AT", 10)
    rows.archived(folder, *(b"Subject: %d\r\n\r\n" % n for n in range(25)))
    others = rows.a_folder(rows.a_mailbox(rows.a_source(other_user)))
    [seen] = rows.archived(others, b"Subject: mine\r\n\r\n")

    cursor, pages = "", list[feed.Page]()
    while not pages or pages[-1].more:
        pages.append(feed.page(other_user, after=cursor, limit=5))
        cursor = pages[-1].cursor
    assert [len(page.changes) for page in pages] == [0, 0, 1]
    assert pages[-1].changes[0].message_id == seen.pk
    assert len(Mirror(owner).read(limit=4)) == 25


def test_only_one_source_may_be_asked_for(folder: Folder, owner: User) -> None:
    rows.archived(folder, b"Subject: one\r\n\r\n")
    other = rows.a_folder(rows.a_mailbox(rows.a_source(owner, "Other")))
    [message] = rows.archived(other, b"Subject: two\r\n\r\n")
    verbs.delete(rows.a_source(owner, "Gone"), actor=ACTOR)
    source = other.mailbox.source_id
    page = feed.page(owner, after="", limit=10, source=source)
    assert [change.message_id for change in page.changes] == [message.pk]
    assert len(feed.page(owner, after="", limit=10).changes) == 3


def test_now_is_behind_all_that_came(folder: Folder, owner: User) -> None:
    rows.archived(folder, b"Subject: one\r\n\r\n")
    page = feed.page(owner, after=feed.NOW, limit=10)
    assert (page.changes, page.more) == ((), False)
    Placement.objects.update(labels=["new"])
    [change] = feed.page(owner, after=page.cursor, limit=10).changes
    assert change.kind == "placement.changed"


def test_a_cursor_of_another_database_is_known_as_one(
    folder: Folder, owner: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these differs after a restore: the cluster, its timeline, the database, the table."""
    rows.archived(folder, b"Subject: one\r\n\r\n")
    cursor = feed.page(owner, after="", limit=10).cursor
    here = feed._NOW
    for what in (
        "system_identifier",
        "timeline_id",
        "oid FROM pg_database",
        "placement'::regclass",
    ):
        monkeypatch.setattr(feed, "_NOW", here.replace(what, _OTHER[what]))
        with pytest.raises(feed.OtherDatabase):
            feed.page(owner, after=cursor, limit=10)
    monkeypatch.setattr(feed, "_NOW", here)
    assert feed.page(owner, after=cursor, limit=10).changes == []


_OTHER = {
    "system_identifier": "system_identifier + 1",
    "timeline_id": "timeline_id + 1",
    "oid FROM pg_database": "oid::int + 1 FROM pg_database",
    "placement'::regclass": "message'::regclass",
}


@pytest.mark.parametrize("cursor", ["x", "!", "bnVsbA", "WzEsMiwzXQ", "WyJhIiwtMSwyXQ", "A" * 300])
def test_what_is_no_cursor_is_refused(owner: User, cursor: str) -> None:
    with pytest.raises(ValueError, match="not a cursor"):
        feed.page(owner, after=cursor, limit=10)


def test_rows_of_a_restored_dump_come_into_the_feed(folder: Folder, owner: User) -> None:
    """Their transactions were another cluster's, which had counted further."""
    rows.archived(folder, *(b"Subject: %d\r\n\r\n" % n for n in range(3)))
    verbs.delete(rows.a_source(owner, "Gone"), actor=ACTOR)
    Placement.objects.update(changed_xid=2**40)
    ArchiveChange.objects.update(changed_xid=2**41)
    mirror = Mirror(owner)
    assert mirror.read() == []
    assert restored.bring_back_feed() == 4
    assert [change.kind for change in mirror.read()] == ["message.placed"] * 3 + ["source.deleted"]
    assert restored.bring_back_feed() == 0
    Placement.objects.update(labels=["new"])
    assert len(mirror.read()) == 3


def test_staff_who_may_see_all_mail_are_told_of_all(
    folder: Folder, owner: User, other_user: User
) -> None:
    rows.archived(folder, b"Subject: one\r\n\r\n")
    verbs.delete(rows.a_source(owner, "Gone"), actor=ACTOR)
    told = {
        name: len(Mirror(user).read())
        for name, user in {
            "owner": owner,
            "other": other_user,
            "staff": people.staff("looks", "view_ingestionsource"),
            "reader": people.staff("reads", "view_ingestionsource", "view_message"),
        }.items()
    }
    assert told == {"owner": 2, "other": 0, "staff": 0, "reader": 2}
