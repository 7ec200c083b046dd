"""Archived mail gets documents, each once, whatever happens meanwhile."""

import concurrent.futures
import datetime as dt
import functools
import itertools
import os
import signal
import sys
import uuid
from pathlib import Path

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from connectors.types import Body
from ingestion import index_health
from ingestion.mail.digest import Digest
from ingestion.models import INDEX_VERSION, Document, IngestionSource, Message, Pack, Placement
from ingestion.packs.directory import MARK
from ingestion.search.words import TOO_LONG_FOR_PHRASES
from ingestion.services.archive import indexing, readers, reading, rebuild, refetch
from ingestion.services.archive.exports.selection import Selection
from ingestion.services.engine import claims, due_work, lease
from ingestion.services.sources import deletion, verbs
from tests.servers.command_line import CommandLine
from tests.servers.mortal import dies
from tests.servers.scripted_provider import Server
from tests.servers.scripted_source import ACTOR, fill, finish, start, synced
from tests.servers.stack import wait_for

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def pack(server: Server, source: IngestionSource) -> Pack:
    """A pack of nine imported messages."""
    server.page_size = 1000
    fill(server, 9)
    start(source)
    finish(source)
    return Pack.objects.get()


def path_of(pack: Pack) -> Path:
    return next(settings.ARCHIVE_DIR.rglob(f"{pack.pk}.pack"))


def index_all() -> None:
    while (due := indexing.next_due()) is not None:
        indexing.index_pack(due)


def test_each_message_gets_a_document_and_the_pack_is_done(pack: Pack) -> None:
    assert indexing.index_pack(pack.pk) == 9
    pack.refresh_from_db()
    assert (pack.index_version, pack.index_defects) == (INDEX_VERSION, 0)
    for message in Message.objects.all():
        document = message.document
        assert document.version == INDEX_VERSION
        assert f"'{message.subject}':" in document.words
        assert document.date == message.archived_at
    assert Document.objects.count() == 9
    assert indexing.next_due() is None
    assert indexing.index_pack(pack.pk) == 0


def test_a_first_imports_index_reads_no_other_messages_placements(pack: Pack) -> None:
    """As long as nothing is known of the tables: they were filled a moment ago."""
    with connection.cursor() as cursor:
        cursor.execute("SET session_replication_role = replica")  # there are no such messages
        cursor.execute(
            """INSERT INTO ingestion_placement
                 (mailbox_id, folder_id, message_id, remote_id, stable_id, thread_id, labels)
               SELECT mailbox_id, folder_id, gen_random_uuid(), '0:' || n, '', '', '{}'
                 FROM (SELECT mailbox_id, folder_id FROM ingestion_placement LIMIT 1) AS p,
                      generate_series(1, 20000) AS n"""
        )
        cursor.execute("SET session_replication_role = origin")
        cursor.execute("DELETE FROM pg_statistic WHERE starelid = 'ingestion_placement'::regclass")
    with CaptureQueriesContext(connection) as queries:
        indexing.index_pack(pack.pk)
    [asked] = [q["sql"] for q in queries if "SELECT thread_id" in q["sql"]]
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN " + asked.replace("%", "%%"), [])
        plan = str(cursor.fetchall())
    assert "ingestion_placement_message_id" in plan
    assert "ingestion_placement_pkey" not in plan


def test_the_command_indexes_here_or_says_what_waits(
    manage: CommandLine, pack: Pack, source: IngestionSource
) -> None:
    said = manage.here("reindex", source.name, "--json")
    assert said.code == 0
    assert said.json() == {
        "packsDue": 1,
        "indexedMessages": 0,
        "unindexedMessages": 9,
        "outdatedMessages": 0,
        "indexDefects": 0,
        "unreadablePacks": 0,
    }
    assert "9 of 9 indexed" in manage.here("reindex", "--now").stdout
    before = Document.objects.get(message__subject="3").words
    assert manage.here("reindex", "--json").json()["packsDue"] == 0
    Document.objects.update(words="")
    assert "9 of 9 indexed, 9 to be read again" in manage.here("reindex", "--all").stdout
    assert manage("reindex", "--now", "--json").json()["indexedMessages"] == 9
    assert Document.objects.get(message__subject="3").words == before


def document_of(subject: str) -> Document:
    return Document.objects.get(message__subject=subject)


def damage(path: Path, message: Message) -> None:
    data = bytearray(path.read_bytes())
    data[message.pack_offset + message.pack_length // 2] ^= 1
    path.write_bytes(data)


def test_a_corrupt_frame_gets_a_defect_and_the_rest_goes_on(pack: Pack) -> None:
    damage(path_of(pack), Message.objects.get(subject="4"))
    indexing.index_pack(pack.pk)
    health = index_health.in_all(IngestionSource.objects.all())
    assert str(health) == "9 of 9 indexed, 1 with defects"
    bad = document_of("4")
    assert bad.version == 0
    assert "can't be read from the archive" in bad.defects[0]
    assert "'4':" in bad.words  # by its subject, which the row has
    assert Document.objects.filter(defects=[]).count() == 8


def test_what_is_fetched_again_is_indexed_again(
    server: Server, source: IngestionSource, pack: Pack
) -> None:
    for subject in ("4", "5"):
        damage(path_of(pack), Message.objects.get(subject=subject))
    del server.folders["INBOX"][6]  # "5" is gone there
    indexing.index_pack(pack.pk)
    refetch.refetch(source, [pack.pk], actor=ACTOR, on_left=lambda _: None)
    index_all()
    assert document_of("4").version == INDEX_VERSION
    assert document_of("5").version == 0
    health = index_health.in_all(IngestionSource.objects.all())
    assert (health.indexed, health.defects) == (9, 1)


def test_a_document_made_without_the_bytes_never_takes_the_place_of_one_made_with_them(
    pack: Pack,
) -> None:
    indexing.index_pack(pack.pk)
    before = document_of("4").words
    damage(path_of(pack), Message.objects.get(subject="4"))
    indexing.owe(everything=True)
    index_all()
    after = document_of("4")
    assert (after.version, after.words, after.defects) == (INDEX_VERSION, before, [])


def test_a_restored_pack_is_read_again_on_demand(pack: Pack) -> None:
    whole = path_of(pack).read_bytes()
    damage(path_of(pack), Message.objects.get(subject="4"))
    indexing.index_pack(pack.pk)
    path_of(pack).write_bytes(whole)
    assert indexing.owe() == 1
    assert indexing.index_pack(pack.pk) == 1  # the others are as they should be
    assert document_of("4").version == INDEX_VERSION
    pack.refresh_from_db()
    assert pack.index_defects == 0


def test_a_document_of_version_2_gets_its_numbers_without_its_bytes(pack: Pack) -> None:
    """Else no document's were used for as long as one has none."""
    indexing.index_pack(pack.pk)
    right = set(document_of("4").numbers)
    Document.objects.update(version=2, numbers=[])
    damage(path_of(pack), Message.objects.get(subject="4"))
    indexing.owe(everything=True)
    index_all()
    assert set(document_of("4").numbers) == right != set()
    assert not Document.objects.filter(numbers=[]).exists()


@pytest.mark.parametrize("trouble", ["missing", "not mounted", "forbidden"])
def test_a_pack_that_cant_be_read_waits_and_is_told(pack: Pack, trouble: str) -> None:
    path = path_of(pack)
    aside = path.with_suffix(".aside")
    if trouble == "missing":
        path.rename(aside)
    elif trouble == "not mounted":
        (settings.ARCHIVE_DIR / MARK).rename(aside)
    else:
        path.rename(aside)
        path.symlink_to(path)  # ELOOP: as root, permissions keep nobody out
    for attempts in (1, 2):
        assert indexing.index_pack(pack.pk) == 0
        pack.refresh_from_db()
        assert (pack.index_version, pack.index_attempts) == (0, attempts)
        assert pack.index_not_before > timezone.now()
        assert indexing.next_due() is None
        Pack.objects.update(index_not_before=timezone.now())
    health = index_health.in_all(IngestionSource.objects.all())
    assert str(health) == "0 of 9 indexed, 1 pack can't be read"
    if trouble == "not mounted":
        aside.rename(settings.ARCHIVE_DIR / MARK)
    else:
        aside.replace(path)
    index_all()
    pack.refresh_from_db()
    assert (pack.index_version, pack.index_attempts) == (INDEX_VERSION, 0)


def test_what_the_database_does_not_take_keeps_no_other_message_back(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that a mail took over may answer anything."""

    def taken_over(body: Body) -> Digest:
        digest = read(body)
        return digest._replace(fields={"sender": "\0"}) if digest.headers.subject == "4" else digest

    read = reading.digest
    monkeypatch.setattr(reading, "digest", taken_over)
    assert indexing.index_pack(pack.pk) == 9
    bad = document_of("4")
    assert (bad.version, len(bad.defects)) == (INDEX_VERSION, 1)
    assert Document.objects.filter(defects=[]).count() == 8
    assert indexing.next_due() is None


def test_a_message_that_we_fail_at_keeps_no_other_back(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(body: Body) -> Digest:
        digest = read(body)
        return digest._replace(participants=("from",)) if digest.headers.subject == "4" else digest  # type: ignore[arg-type] # that is the failure

    read = reading.digest
    monkeypatch.setattr(reading, "digest", fail)
    assert indexing.index_pack(pack.pk) == 9
    assert len(document_of("4").defects) == 1
    assert Document.objects.filter(defects=[]).count() == 8


def test_a_machine_that_starts_no_reader_leaves_the_pack_to_be_read_later(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers._end_all()
    with monkeypatch.context() as away:
        away.setattr(sys, "executable", "/bin/false")
        assert indexing.index_pack(pack.pk) == 0
    pack.refresh_from_db()
    assert (pack.index_version, pack.index_attempts) == (0, 1)
    assert not Document.objects.exists()
    indexing.owe()
    assert indexing.index_pack(pack.pk) == 9


def test_new_mail_goes_before_what_is_read_again(source: IngestionSource, pack: Pack) -> None:
    indexing.index_pack(pack.pk)
    indexing.owe(everything=True)
    new = Pack.objects.create(source=source, size_bytes=1, message_count=1)
    assert indexing.next_due() == new.pk
    assert [work.pk for work in due_work.hand_out()] == [new.pk, pack.pk]


def test_new_mail_goes_before_what_is_read_again_of_all_other_sources(
    source: IngestionSource, pack: Pack, other_user: User
) -> None:
    """Else it could not be found for as long as an upgrade has all mail read again."""
    waiting = {"size_bytes": 1, "message_count": 1}
    for number in range(20):
        other = IngestionSource.objects.create(
            owner=source.owner, name=str(number), provider="generic_imap", status="active"
        )
        Pack.objects.create(source=other, index_version=INDEX_VERSION - 1, **waiting)
    new = IngestionSource.objects.create(
        owner=other_user, name="New", provider="generic_imap", status="active"
    )
    ids = {pack.pk, Pack.objects.create(source=new, **waiting).pk}
    assert {indexing.next_due() for _ in range(20)} <= ids
    for one in ids:
        with claims.claimed(indexing.KIND, one) as mine:
            assert mine
            assert {indexing.next_due() for _ in range(20)} == ids - {one}
    old = Pack.objects.filter(index_version__gt=0)[0]
    assert indexing.next_due([old.source_id]) == old.pk
    IngestionSource.objects.filter(pk__in=[source.pk, new.pk]).update(deleted_at=timezone.now())
    assert indexing.next_due() not in {None, *ids}


def test_what_an_earlier_version_indexed_is_told_as_found(
    source: IngestionSource, pack: Pack
) -> None:
    """For as long as an upgrade has it read again: search finds it as before."""
    indexing.index_pack(pack.pk)
    Document.objects.update(version=INDEX_VERSION - 1)
    long_ago = timezone.now() - dt.timedelta(days=400)
    Pack.objects.update(index_version=INDEX_VERSION - 1, index_not_before=long_ago)
    everything = IngestionSource.objects.all()
    health = index_health.in_all(everything)
    assert (str(health), health.waiting) == ("9 of 9 indexed, 9 to be read again", 0)
    assert index_health.waiting_since(everything) is None
    assert Selection(source.owner, "rare").left_out() == ""
    assert {kind: (rows, waited) for kind, rows, waited in due_work.backlog()}["index"] == (1, 0.0)
    Pack.objects.create(source=source, size_bytes=1, message_count=3, index_not_before=long_ago)
    assert str(index_health.in_all(everything)) == "9 of 12 indexed, 9 to be read again"
    assert index_health.waiting_since(everything) == long_ago
    assert "3 messages were not indexed" in Selection(source.owner, "rare").left_out()
    assert {kind: waited for kind, _, waited in due_work.backlog()}["index"] > 3_600


def test_a_word_that_is_repeated_is_told_of_its_message_and_is_no_defect_of_the_index(
    server: Server, source: IngestionSource, pack: Pack
) -> None:
    """Nearly each spreadsheet has one: who looks for what could not be read would not see it."""
    server.deliver(
        "Work", b"Subject: table\r\n\r\n" + b"".join(b"0 x%d\r\n" % n for n in range(300))
    )
    synced(source)
    index_all()
    assert document_of("table").defects == [TOO_LONG_FOR_PHRASES]
    assert str(index_health.in_all(IngestionSource.objects.all())) == "10 of 10 indexed"


def test_reindexing_gives_old_rows_the_better_fields_and_no_other_is_touched(pack: Pack) -> None:
    indexing.index_pack(pack.pk)
    Message.objects.filter(subject="4").update(sender="forged", subject="old", defects=["x"])
    Document.objects.update(version=INDEX_VERSION - 1)
    Pack.objects.update(index_version=INDEX_VERSION - 1)
    with CaptureQueriesContext(connection) as queries:
        index_all()
    message = Message.objects.get(subject="4")
    assert (message.sender, message.defects) == ("", [])
    changes = [q["sql"] for q in queries if "UPDATE ingestion_message" in q["sql"]]
    assert len(changes) == 1
    assert changes[0].count('"subject"') == 1
    assert set(Document.objects.values_list("version", flat=True)) == {INDEX_VERSION}


def test_rows_that_were_rebuilt_are_indexed(source: IngestionSource, pack: Pack) -> None:
    indexing.index_pack(pack.pk)
    lost = Message.objects.get(subject="4")
    Document.objects.filter(message=lost).delete()
    Placement.objects.filter(message=lost).delete()
    lost.delete()
    rebuild.rebuild(source, actor=ACTOR, on_damage=lambda damage: pytest.fail(damage.text))
    index_all()
    assert Document.objects.count() == 9
    assert document_of("4").version == INDEX_VERSION


def test_the_words_of_a_message_that_moved_meanwhile_are_right(
    server: Server, source: IngestionSource, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pack is replaced after its rows were read, and the file is gone before its bytes are."""
    read = reading.digest
    moved: list[uuid.UUID] = []

    def move(body: Body) -> Digest:
        if not moved:
            moved.append(pack.pk)
            damage(path_of(pack), Message.objects.get(subject="4"))
            refetch.refetch(source, [pack.pk], actor=ACTOR, on_left=lambda _: None)
            path_of(pack).unlink()
        return read(body)

    monkeypatch.setattr(reading, "digest", move)
    index_all()
    assert not Pack.objects.filter(pk=pack.pk).exists()
    assert set(Document.objects.values_list("version", flat=True)) == {INDEX_VERSION}
    assert Document.objects.count() == 9


def test_a_source_that_is_deleted_meanwhile_gets_no_document_back(
    source: IngestionSource, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = reading.digest

    def delete(body: Body) -> Digest:
        if not IngestionSource.objects.filter(deleted_at__isnull=False).exists():
            verbs.delete(source, actor=ACTOR)
        return read(body)

    monkeypatch.setattr(reading, "digest", delete)
    indexing.index_pack(pack.pk)
    assert Document.objects.count() == 0
    deletion.delete_source(source.pk)
    assert not IngestionSource.objects.exists()
    indexing.index_pack(pack.pk)


def test_deletion_waits_for_documents_that_are_being_written(
    source: IngestionSource, pack: Pack
) -> None:
    """Else it would delete messages that get a document just then, and fail."""
    verbs.delete(source, actor=ACTOR)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with transaction.atomic(), connection.cursor() as cursor:  # began just before
            cursor.execute(
                "SELECT 1 FROM ingestion_ingestionsource WHERE id = %s FOR KEY SHARE", [source.pk]
            )

            def delete() -> None:
                try:
                    deletion.delete_source(source.pk)
                finally:
                    connection.close()

            deleting = pool.submit(delete)
            wait_for(somebody_waits_for_a_lock)
            assert Message.objects.count() == 9
        deleting.result()
    assert not IngestionSource.objects.exists()


def somebody_waits_for_a_lock() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        row = cursor.fetchone()
    return bool(row and row[0])


def test_a_killed_process_loses_and_repeats_nothing_that_was_written(
    server: Server, source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.page_size = 800
    fill(server, 800)
    start(source)
    finish(source)
    digest, read = reading.digest, itertools.count(1)

    def read_or_die(body: Body) -> Digest:
        if next(read) == 300:
            os.kill(os.getpid(), signal.SIGKILL)
        return digest(body)

    with monkeypatch.context() as deadly:
        deadly.setattr(reading, "digest", read_or_die)
        index = functools.partial(indexing.index_now, on_progress=lambda _: None)
        assert dies(index, at_step=None, directory=settings.ARCHIVE_DIR)
    written = Document.objects.count()
    assert 0 < written < 300, "nothing was written, or nothing was left to be lost"
    pack = indexing.next_due()
    assert pack is not None
    assert indexing.index_pack(pack) == 800 - written
    assert Document.objects.filter(version=INDEX_VERSION).count() == 800
    assert indexing.next_due() is None


def test_a_worker_that_is_told_to_end_leaves_the_rest_to_the_next(
    server: Server, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = reading.digest

    def tell(body: Body) -> Digest:
        digest = read(body)
        if digest.headers.subject == "3":
            lease.leaving.set()
        return digest

    monkeypatch.setattr(reading, "digest", tell)
    try:
        assert not indexing.work(pack.pk)
    finally:
        lease.leaving.clear()
    assert Document.objects.count() == 4
    assert indexing.index_pack(pack.pk) == 5


def test_what_is_handed_out_once_too_often_is_indexed_once(pack: Pack) -> None:
    [work] = due_work.hand_out()
    with claims.claimed(*work) as mine:
        assert mine
        assert indexing.index_pack(pack.pk) == 0
        assert indexing.next_due() is None
    assert due_work.do(work) == (None, False)
    assert due_work.do(work) == (None, False)
    assert Document.objects.count() == 9


def test_owners_take_turns(pack: Pack, other_user: User) -> None:
    """Whoever imports a million messages does not keep another's few waiting."""
    other = IngestionSource.objects.create(
        owner=other_user, name="Other", provider="generic_imap", status="active"
    )
    waiting = {"size_bytes": 1, "message_count": 1}
    Pack.objects.bulk_create(Pack(source=pack.source, **waiting) for _ in range(200))
    few = Pack.objects.create(source=other, **waiting)
    assert few.pk in {indexing.next_due() for _ in range(40)}
