"""Small packs become few, in a directory and in a bucket; killed anywhere, every byte is there."""

import datetime as dt
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from connectors.types import Body
from ingestion import index_health
from ingestion.errors import ArchiveUnavailable
from ingestion.models import (
    INDEX_VERSION,
    Alert,
    Folder,
    IngestionSource,
    Message,
    Pack,
    Placement,
)
from ingestion.packs.directory import DirectoryStore
from ingestion.packs.format import Extent
from ingestion.packs.s3 import ObjectStore
from ingestion.packs.store import PackStore, store
from ingestion.services.archive import (
    compaction,
    housekeeping,
    indexing,
    reading,
    rebuild,
    storage,
    verify,
)
from ingestion.services.engine import claims
from ingestion.services.operations import doctor
from ingestion_project.demo.object_store import ObjectStoreServer
from tests.e2e.rows import a_folder, a_mailbox, a_source, archived
from tests.servers.mortal import dies
from tests.servers.scripted_source import ACTOR

pytestmark = pytest.mark.django_db(transaction=True)

_AT_ONCE = dt.timedelta(seconds=-5)
_LONG_AGO = dt.timedelta(days=2)


@pytest.fixture(params=["directory", "s3"])
def archive(request: pytest.FixtureRequest, settings: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the packs are: in either of the two."""
    if request.param == "s3":
        server: ObjectStoreServer = request.getfixturevalue("object_store")
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        settings.ARCHIVE_URL = server.url("archive", str(uuid.uuid4()))
    monkeypatch.setattr(compaction, "MIN_PACKS", 4)
    storage.require()
    return str(request.param)


@pytest.fixture
def folder(archive: str, owner: User) -> Folder:
    return a_folder(a_mailbox(a_source(owner)))


def mail(number: int, characters: int = 100) -> bytes:
    return b"Subject: %d\r\nFrom: a@example.com\r\n\r\n%s\r\n" % (number, b"x" * characters)


def synced(folder: Folder, count: int = 5, *, first: int = 0) -> list[Message]:
    """Archive so many messages, each by a sync of its own, long ago; they are indexed."""
    made = small(folder, count, first=first)
    Pack.objects.update(index_version=0)
    indexing.index_now(on_progress=lambda _: None)
    return made


def small(folder: Folder, count: int, *, first: int = 0) -> list[Message]:
    """Do as `synced` does, but nobody has read them for the index."""
    numbers = range(first, first + count)
    made = [archived(a_folder(folder.mailbox, f"{n}"), mail(n)) for n in numbers]
    Pack.objects.update(index_version=INDEX_VERSION)
    grown_old()
    return [message for messages in made for message in messages]


def grown_old() -> None:
    Pack.objects.update(created_at=timezone.now() - _LONG_AGO)


def contents() -> dict[uuid.UUID, Body]:
    """Read back, through the verified path, what is archived."""
    return {message.pk: reading.opened(message) for message in Message.objects.all()}


def problems() -> list[verify.Kind]:
    found: list[verify.Problem] = []
    verify.verify_archive(on_problem=found.append)
    return [problem.kind for problem in found]


def files() -> set[uuid.UUID]:
    return {pack.pack_id for pack in store().fresh().packs()}


def change(pack: Pack, how: Callable[[bytes], bytes]) -> None:
    """Damage a pack behind everybody's back."""
    archive = store().fresh()
    data = how(b"".join(archive.chunks(pack.source_id, pack.pk)))
    if isinstance(archive, DirectoryStore):
        archive.paths(pack.source_id, f"{pack.pk}.pack")[0].write_bytes(data)
    else:
        assert isinstance(archive, ObjectStore)
        archive._ask("put_object", Key=archive._key(pack.source_id, pack.pk), Body=data)


# -- what comes of it ------------------------------------------------------------------------------


def test_many_small_packs_become_one_and_nothing_else_changes(folder: Folder) -> None:
    synced(folder)
    before, health = contents(), index_health.in_all(IngestionSource.objects.all())
    rows = set(Message.objects.values_list("pk", "sha256", "archived_at", "subject"))
    created = max(Pack.objects.values_list("created_at", flat=True))
    compaction.work()
    pack = Pack.objects.get()
    assert (pack.message_count, pack.created_at) == (5, created)
    assert files() == {pack.pk}
    assert next(store().packs()).size_bytes == pack.size_bytes
    assert contents() == before
    assert set(Message.objects.values_list("pk", "sha256", "archived_at", "subject")) == rows
    assert index_health.in_all(IngestionSource.objects.all()) == health
    assert indexing.next_due() is None, "nothing is read again for the index"
    assert problems() == []
    compaction.work()
    assert Pack.objects.get() == pack, "one is not merged with itself"
    indexing.owe(everything=True)
    indexing.index_now(on_progress=lambda _: None)
    assert index_health.in_all(IngestionSource.objects.all()) == health


def test_who_holds_the_old_place_of_a_message_reads_it_from_the_new_one(folder: Folder) -> None:
    held = synced(folder)
    compaction.work()
    assert [reading.opened(message) for message in held] == [mail(n) for n in range(5)]
    assert not Alert.objects.exists()


def test_a_full_pack_is_made_of_neighbours_in_time_and_never_copied_again(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "MERGED_MESSAGES", 6)
    monkeypatch.setattr(compaction, "SMALL_MESSAGES", 4)
    made = small(folder, 15)
    for number, message in enumerate(made):
        at = timezone.now() - _LONG_AGO + dt.timedelta(minutes=number)
        Pack.objects.filter(pk=message.pack_id).update(created_at=at)
    compaction.work()
    compaction.work()
    packs = [message.pack_id for message in Message.objects.all()]
    assert sorted(packs.count(pack) for pack in set(packs)) == [1, 1, 1, 6, 6]
    assert len({Message.objects.get(pk=message.pk).pack_id for message in made[:6]}) == 1
    assert len({Message.objects.get(pk=message.pk).pack_id for message in made[6:12]}) == 1


def test_so_few_are_merged_at_a_time_that_it_ends_with_its_slice(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "MERGED_PACKS", 5)
    synced(folder, 12)
    before = contents()
    with monkeypatch.context() as short:
        short.setattr(compaction, "SLICE_SECONDS", 0.0)
        compaction.work()
    assert len(files()) == 12 - 5 + 1
    compaction.work()
    assert len(files()) == 1
    assert contents() == before


def test_a_pack_that_outweighs_the_others_is_not_copied_with_them(
    folder: Folder,
) -> None:
    large = archived(a_folder(folder.mailbox, "large"), uuid.uuid4().bytes * 10, *(
        b"Subject: large\r\n\r\n" + uuid.uuid4().hex.encode() * 50 for _ in range(20)
    ))  # fmt: skip
    synced(folder)
    compaction.work()
    assert Message.objects.filter(pack=large[0].pack_id).count() == 21
    assert Pack.objects.count() == 2


# -- what is left as it is -------------------------------------------------------------------------


def test_young_unindexed_and_few_packs_wait(folder: Folder) -> None:
    synced(folder)
    few = files()
    Pack.objects.update(created_at=timezone.now())
    compaction.work()
    grown_old()
    Pack.objects.update(index_version=INDEX_VERSION - 1)
    compaction.work()
    Pack.objects.update(index_version=INDEX_VERSION)
    Pack.objects.filter(pk__in=list(few)[:2]).update(created_at=timezone.now())
    compaction.work()
    assert files() == few


def damage_a_body(pack: Pack) -> None:
    row = Message.objects.get(pack=pack)
    at = row.pack_offset + row.pack_length // 2
    change(pack, lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def damage_a_header(pack: Pack) -> None:
    change(pack, lambda data: data.replace(b'"remote_id":"1:1"', b'"remote_id":"1:7"'))


def cut(pack: Pack) -> None:
    change(pack, lambda data: data[:-3])


def lose_a_row(pack: Pack) -> None:
    Pack.objects.filter(pk=pack.pk).update(message_count=2)


def lose_all_of_it(pack: Pack) -> None:
    archive = store()
    [found] = [found for found in archive.packs() if found.pack_id == pack.pk]
    archive.delete(found)


@pytest.mark.parametrize("harm", [damage_a_body, damage_a_header, cut, lose_a_row, lose_all_of_it])
def test_what_is_not_as_its_rows_say_stays_as_evidence_and_the_others_are_merged(
    folder: Folder, harm: Callable[[Pack], None]
) -> None:
    bad = Pack.objects.get(pk=small(folder, 6)[2].pack_id)
    harm(bad)
    found, before = problems(), files()
    assert found
    compaction.work()
    assert Pack.objects.get(pk=bad.pk).left_apart
    assert Message.objects.filter(pack=bad).count() == 1
    assert problems() == found
    assert len(files()) == len(before) - 4
    if harm in (damage_a_body, lose_all_of_it):
        assert Alert.objects.filter(kind="archive.corrupt").exists()
    compaction.work()
    assert problems() == found


def test_of_a_pack_that_is_damaged_at_its_end_nothing_stays_in_the_new_one(folder: Folder) -> None:
    small(folder, 5)
    _, second = archived(a_folder(folder.mailbox, "two"), mail(60), mail(61))
    bad = second.pack
    at = second.pack_offset + second.pack_length // 2
    change(bad, lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    Pack.objects.update(index_version=INDEX_VERSION)
    grown_old()
    compaction.work()
    assert Message.objects.filter(pack=bad).count() == 2
    [merged] = Pack.objects.exclude(pk=bad.pk)
    assert len(list(store().scan(merged.source_id, merged.pk))) == 5


def test_a_pack_that_holds_mail_without_a_row_stays(folder: Folder) -> None:
    synced(folder)
    archived(a_folder(folder.mailbox, "more"), mail(50), mail(51))
    Message.objects.filter(subject="50").delete()
    pack = Message.objects.get(subject="51").pack
    Pack.objects.update(message_count=1, index_version=INDEX_VERSION)
    grown_old()
    compaction.work()
    pack.refresh_from_db()
    assert pack.left_apart
    assert pack.pk in files()


def test_nothing_is_merged_while_somebody_reads_all_of_a_source(folder: Folder) -> None:
    synced(folder)
    before = files()
    with (
        compaction.held_off(folder.mailbox.source_id),
        compaction.held_off(folder.mailbox.source_id),  # several may read
    ):
        compaction.work()
    assert files() == before
    with store().writer(folder.mailbox.source_id) as writer:
        writer.commit()
    with claims.claimed(compaction.KIND, folder.mailbox.source_id):
        assert housekeeping.collect_orphans(older_than=_AT_ONCE) == 0, (
            "it may be about to have rows"
        )
    assert housekeeping.collect_orphans(older_than=_AT_ONCE) == 1
    compaction.work()
    assert len(files()) == 1


def test_what_was_replaced_stays_while_somebody_reads_all_of_a_source(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rebuild has rows name it again where the pack that replaced it is not there."""
    synced(folder)
    before = contents()
    with monkeypatch.context() as full:
        full.setattr(type(store()), "delete", lambda *_: int("no"))
        with pytest.raises(ValueError, match="no"):
            compaction.work()
    with compaction.held_off(folder.mailbox.source_id):
        compaction.work()
        assert len(files()) == 6
        lose_all_of_it(Pack.objects.get(replaced_at=None))
        rebuild.rebuild(IngestionSource.objects.get(), actor=ACTOR, on_damage=print)
    compaction.work()
    assert contents() == before


def test_what_is_locked_is_merged_when_the_lock_is_over(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its room would be taken twice until then. What it is merged into is locked, too."""
    synced(folder)
    monkeypatch.setattr(PackStore, "locked_for", dt.timedelta(days=3))
    if isinstance(store(), ObjectStore):
        monkeypatch.setattr(store(), "locked_for", dt.timedelta(days=3))
    compaction.work()
    assert len(files()) == 5
    Pack.objects.update(created_at=timezone.now() - dt.timedelta(days=4))
    compaction.work()
    [merged] = Pack.objects.all()
    synced(folder, first=5)
    before_it = Pack.objects.exclude(pk=merged.pk)
    before_it.update(created_at=timezone.now() - dt.timedelta(days=4))
    Pack.objects.filter(pk=merged.pk).update(created_at=merged.created_at)
    compaction.work()
    assert len(files()) == 2
    assert merged.pk in files()


def test_where_old_packs_can_not_be_removed_no_more_are_merged_and_doctor_tells(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced(folder)

    def refuse(*_: object) -> None:
        raise ArchiveUnavailable("The store does not let these credentials do this.")

    with monkeypatch.context() as refused:
        refused.setattr(type(store()), "delete", refuse)
        compaction.work()
        synced(folder, first=10)
        Pack.objects.filter(replaced_at=None).update(created_at=timezone.now() - _LONG_AGO)
        compaction.work()
        assert len(files()) == 11
        Pack.objects.exclude(replaced_at=None).update(replaced_at=timezone.now() - _LONG_AGO)
        [finding] = [found for found in doctor.examine() if found.name == "storage"]
        assert finding.state == "warning"
        assert "not removed" in finding.message
        assert problems() == []
    compaction.work()
    assert len(files()) == 1
    assert len(contents()) == 10


# -- crashes ---------------------------------------------------------------------------------------


def test_killed_at_any_step_no_byte_is_lost_and_the_next_time_ends_it(
    folder: Folder, archive: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a bucket: at each statement, of which there is one between any two requests that change
    it."""
    monkeypatch.setattr(compaction, "MIN_PACKS", 2)
    where = Path(settings.ARCHIVE_DIR) if archive == "directory" else Path("/nowhere")
    stride = 1 if archive == "directory" else 2  # a statement's end is the next one's beginning
    left: set[tuple[int, int, int]] = set()
    step, killed = 0, True
    small(folder, 2)
    while killed:
        if Pack.objects.filter(replaced_at=None).count() != 2:  # it was merged: anew
            compaction.work()
            assert len(files()) == 1
            lose_rows()
            store().delete_source(folder.mailbox.source_id)
            Folder.objects.exclude(pk=folder.pk).delete()
            small(folder, 2)
        before, step = contents(), step + stride
        killed = dies(compaction.work, at_step=step, directory=where)
        assert contents() == before
        state = len(files()), Pack.objects.count(), Pack.objects.exclude(replaced_at=None).count()
        if state not in left:
            left.add(state)
            assert set(problems()) <= {"orphan_pack"}
            housekeeping.collect_orphans(older_than=_AT_ONCE)
            assert problems() == []
            assert contents() == before
        housekeeping.collect_orphans(older_than=_AT_ONCE)
    assert len(files()) == 1
    # Nothing done; a pack without a row; old ones that wait, none or one of them removed; done.
    assert left >= {(2, 2, 0), (3, 2, 0), (3, 3, 2), (2, 3, 2), (1, 2, 1), (1, 1, 0)}


# -- databases that are lost, or older -------------------------------------------------------------


def lose_rows() -> None:
    Placement.objects.all().delete()
    Message.objects.all().delete()
    Pack.objects.all().delete()


def test_the_rows_are_made_again_of_packs_old_and_new(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill, or a copy of the archive that was made meanwhile, leaves the same mail in both."""
    synced(folder)
    before = {bytes(cast("bytes", body)) for body in contents().values()}
    with monkeypatch.context() as kept:
        kept.setattr(type(store()), "delete", lambda *_: None)
        compaction.work()
    assert len(files()) == 6
    lose_rows()
    result = rebuild.rebuild(IngestionSource.objects.get(), actor=ACTOR, on_damage=print)
    assert (result.messages_added, result.damaged) == (5, 0)
    assert {bytes(cast("bytes", body)) for body in contents().values()} == before
    housekeeping.collect_orphans(older_than=_AT_ONCE)
    assert problems() == []


def test_a_database_of_before_the_merging_finds_its_mail_in_the_new_packs(
    folder: Folder,
) -> None:
    """A dump names packs that are gone. The one that has all of their mail has no row: it must
    outlive housekeeping, and a rebuild has the rows name it."""
    synced(folder)
    before = contents()
    packs, rows = list(Pack.objects.all()), list(Message.objects.all())
    compaction.work()
    merged = Pack.objects.get()
    merged_id = merged.pk
    Pack.objects.bulk_create(packs)
    Message.objects.bulk_update(rows, ["pack", "pack_offset", "pack_length"])
    merged.delete()

    found: list[verify.Problem] = []
    verify.verify_archive(on_problem=found.append)
    assert {problem.kind for problem in found} == {"missing_pack", "orphan_pack"}
    [orphan] = [problem for problem in found if problem.kind == "orphan_pack"]
    assert (orphan.pack_id, orphan.messages) == (merged_id, 5)
    assert "5 messages that the database looks for in packs that are gone" in orphan.text
    assert housekeeping.collect_orphans(older_than=_AT_ONCE) == 0
    result = rebuild.rebuild(IngestionSource.objects.get(), actor=ACTOR, on_damage=print)
    assert (result.messages_added, result.messages_moved) == (0, 5)
    assert problems() == []
    assert contents() == before
    assert [pack.pk for pack in Pack.objects.all()] == [merged_id]
    again = rebuild.rebuild(IngestionSource.objects.get(), actor=ACTOR, on_damage=print)
    assert (again.messages_added, again.messages_moved) == (0, 0)


def test_a_message_that_moved_meanwhile_stops_the_merging_and_leaves_no_pack(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = synced(folder)
    before, read_back = files(), compaction._Copying.read_back

    def reindexed_meanwhile(self: Any) -> None:
        read_back(self)
        indexing.owe(everything=True)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(compaction._Copying, "read_back", reindexed_meanwhile)
        compaction.work()
    assert files() == before
    assert {row.pack_id for row in Message.objects.all()} == {row.pack_id for row in rows}


def test_a_new_pack_that_can_not_be_read_back_replaces_nothing(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced(folder)
    before = files()
    with store().writer(folder.mailbox.source_id) as one:
        writer, append = type(one), type(one).append

    def append_other_bytes(self: Any, records: Any) -> list[Extent]:
        return append(self, [(header, bytes(body)[::-1]) for header, body in records])

    with monkeypatch.context() as broken:
        broken.setattr(writer, "append", append_other_bytes)
        compaction.work()
    assert files() == before
    assert len(contents()) == 5
