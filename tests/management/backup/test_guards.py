"""What a backup or a restore looks at before it trusts it: each look has a test that fails without."""

import re
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from ingestion.errors import ArchiveUnavailable, NotAllowedNow, WrongArchive
from ingestion.models import IngestionSource, Installation, Message, Pack, Placement
from ingestion.packs.base import PackFile, PackStore, PackWriter
from ingestion.packs.directory import DirectoryStore
from ingestion.packs.store import store
from ingestion.services.archive import storage
from ingestion.services.operations.backup import dumps, making, restoring
from ingestion.services.operations.backup.place import Place
from ingestion.services.sources import verbs
from tests.management.backup.world import (
    Elsewhere,
    More,
    beside,
    broken_off_before_the_dump,
    damage,
    file_of,
    mail,
    make,
    merge_into_another,
    names,
    of_a_clock_ahead,
    one_pack,
    packs,
    restore,
)
from tests.servers import imap_source
from tests.servers.command_line import CommandLine
from tests.servers.dovecot import Dovecot
from tests.servers.imap_source import ACTOR

pytestmark = pytest.mark.django_db(transaction=True)


# -- making ----------------------------------------------------------------------------------------


def test_of_an_archive_of_another_installation_no_backup_is_made(
    source: IngestionSource, place: Place
) -> None:
    store().write_mark(str(uuid.uuid4()))
    with pytest.raises(WrongArchive):
        make(place)
    assert not place.root.exists()


def test_a_directory_of_backups_that_is_gone_is_not_begun_anew(
    source: IngestionSource, place: Place, tmp_path: Path
) -> None:
    """Its disk is away: a backup beneath the mount point would fill another."""
    make(place)
    place.root.rename(tmp_path / "unmounted")
    place.root.mkdir()
    with pytest.raises(NotAllowedNow, match=r"is its volume mounted"):
        make(place)
    assert not list(place.root.iterdir())
    make(Place(tmp_path / "another"))
    place.root.rmdir()
    (tmp_path / "unmounted").rename(place.root)
    make(place)


def test_two_directories_do_not_share_packs_for_each_would_remove_the_others(
    source: IngestionSource, place: Place, tmp_path: Path
) -> None:
    place.packs.write_mark(f"backup of {Installation.objects.get()}")  # as versions before did
    make(place)
    for model in (Placement, Message, Pack):
        model.objects.all().delete()  # the backup alone has them now
    held = packs(place.packs)
    assert held
    other = Place(tmp_path / "weekly", place.packs)
    with pytest.raises(NotAllowedNow, match="another directory of backups") as refused:
        make(other)
    assert packs(place.packs) == held
    make(place)  # the first goes on
    # Once it is lost, the words tell how the other does.
    assert (place.root / "directory-id").read_text().strip() in str(refused.value)
    shutil.copy(place.root / "directory-id", other.root)
    make(other)


@pytest.mark.parametrize("where", [".", "backup", ".."])
def test_a_backup_is_not_made_in_the_archive_nor_around_it(
    source: IngestionSource, archive_dir: Path, where: str
) -> None:
    with pytest.raises(NotAllowedNow, match="belongs elsewhere"):
        make(Place(archive_dir / where))


def test_packs_that_go_at_each_dump_end_it_and_the_backup_before_stays(
    source: IngestionSource, place: Place, dovecot: Dovecot
) -> None:
    make(place)
    account = dovecot.account(mail("doomed"))
    told: list[str] = []
    doomed: list[IngestionSource] = []
    gone: list[IngestionSource] = []

    def work(done: making.Making) -> None:
        before, now = told[-1:], done.stage
        told.append(now)
        if now != "Dumping the database":
            return
        if before != [now]:  # before the snapshot, which is to know of it
            doomed.append(imap_source.create(account, name=f"Doomed {len(told)}"))
            beside(lambda: imap_source.imported(doomed[-1]))
        elif len(gone) < len(doomed):
            gone.append(doomed[-1])
            beside(lambda: verbs.delete(doomed[-1], actor=ACTOR))
            store().delete_source(doomed[-1].pk)

    with pytest.raises(NotAllowedNow, match="Packs went faster"):
        making.make(place, keep=7, actor=ACTOR, on_progress=work)
    assert len(doomed) == 5
    assert sorted(path.suffix for path in (place.root / "databases").iterdir()) == [
        ".dump",
        ".json",
        ".packs",
    ]


def test_a_dump_takes_longer_than_the_server_allows_to_transactions(db: None) -> None:
    with connection.cursor() as cursor:
        for limit in ("idle_in_transaction_session_timeout", "transaction_timeout"):
            cursor.execute(f"SET {limit} = '50ms'")
    try:
        with dumps.snapshot() as snapshot:
            time.sleep(0.3)
            assert snapshot.messages() == 0
    finally:
        connection.close()


def programs(directory: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have PostgreSQL's programs on the PATH say that they are of a version."""
    for name in ("pg_dump", "pg_restore"):
        program = directory / name
        program.write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version}.1'\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/bin")


def test_of_an_old_server_no_dump_is_made_that_it_could_not_take_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs(tmp_path, 17, monkeypatch)
    with pytest.raises(NotAllowedNow, match=r"before 17.*only that of 17.*postgresql-client-13"):
        dumps._program("pg_dump", 13)
    assert dumps._program("pg_dump", 17) == str(tmp_path / "pg_dump")
    programs(tmp_path, 16, monkeypatch)
    assert dumps._program("pg_dump", 13) == str(tmp_path / "pg_dump")


def test_a_dump_that_an_old_server_can_not_take_back_is_told_by_each_look_at_the_backup(
    source: IngestionSource, place: Place, manage: CommandLine
) -> None:
    """Versions before took the newest pg_dump for any server."""
    made = make(place).manifest
    assert made
    path = place.root / "databases" / f"{made.name}.json"
    path.write_bytes(re.sub(rb'"postgres": \d+', b'"postgres": 16', path.read_bytes()))
    seen = manage.here("backup", str(place.root), "--verify")
    assert (seen.code, "PostgreSQL 16 can't take it back" in seen.stdout) == (1, True), seen.stdout
    dump = place.dump(made)
    dumps.require_fits(dump, 17)
    dump.write_bytes(b"PGDMP\1\x0e\0")  # as pg_dump 15 begins
    dumps.require_fits(dump, 14)


def test_what_comes_between_the_list_of_packs_and_the_dump_is_in_neither(
    source: IngestionSource, place: Place, more: More, elsewhere: Elsewhere,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The dump is of the very snapshot by which the packs were read."""
    read = dumps.Snapshot.messages

    def mail_comes(snapshot: dumps.Snapshot) -> int:
        beside(lambda: more(source, "late"))
        return read(snapshot)

    monkeypatch.setattr(dumps.Snapshot, "messages", mail_comes)
    make(place)
    elsewhere()
    assert restore(place).missing == []
    assert names() == ["one", "two"]


@pytest.mark.parametrize("how", ["never listed", "cut off"])
def test_a_pack_of_the_backup_that_was_not_proven_is_compared_and_told(
    source: IngestionSource, place: Place, manage: CommandLine, monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:  # fmt: skip
    if how == "never listed":
        broken_off_before_the_dump(place, monkeypatch)
        damage(one_pack(place.packs))
    else:
        make(place)
        one_pack(place.packs).write_bytes(one_pack(place.packs).read_bytes()[:-7])
    pack = Pack.objects.get().pk
    for _ in range(3):  # until somebody mends it
        made = manage.here("backup", str(place.root), "--json")
        assert (made.code, made.json()["differing"]) == (3, [str(pack)])
    said = manage.here("backup", str(place.root))
    assert "has other bytes in the backup than in the archive" in said.stdout
    checked = manage.here("backup", str(place.root), "--verify")
    assert (checked.code, f"pack {pack} had other bytes" in checked.stdout) == (1, True)
    one_pack(place.packs).unlink()
    assert manage.here("backup", str(place.root)).code == 0
    checked = manage.here("backup", str(place.root), "--verify")  # of what was, and no more
    assert "had other bytes" in checked.stdout
    assert "is damaged" not in checked.stdout
    assert manage.here("backup", str(place.root), "--keep=1").code == 0
    assert manage.here("backup", str(place.root), "--verify").code == 0


class Forgetful(DirectoryStore):
    """A disk that has other bytes than it was given."""

    def copier(self, source_id: uuid.UUID, pack_id: uuid.UUID) -> PackWriter:
        copy = super().copier(source_id, pack_id)
        commit = copy.commit

        def committed(*given: Any, **more: Any) -> Any:
            done = commit(*given, **more)
            damage(one_pack(self))
            return done

        copy.commit = committed  # type: ignore[method-assign] # what is tested meets it from outside
        return copy


def test_what_a_disk_did_not_keep_is_told_at_once_and_copied_again(
    source: IngestionSource, tmp_path: Path, elsewhere: Elsewhere
) -> None:
    bad = Place(tmp_path / "backup", Forgetful(tmp_path / "packs"))
    pack = Pack.objects.get().pk
    first = make(bad)
    assert (first.differing, packs(bad.packs)) == ([pack], {})
    good = Place(bad.root, DirectoryStore(tmp_path / "packs"))
    assert (make(good).differing, packs(good.packs)) == ([], packs(store()))
    good.packs.delete(file_of(Pack.objects.get()))
    elsewhere()
    assert first.manifest
    [missing] = restoring.restore(good, first.manifest.name, actor=ACTOR).missing
    assert (missing.pack_id, missing.why) == (pack, "could not be copied into the backup")


@pytest.mark.parametrize("lost", [False, True])
def test_what_a_backup_copied_that_was_broken_off_is_not_copied_again_nor_given_up(
    source: IngestionSource, place: Place, elsewhere: Elsewhere, lost: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """No list has it yet; where the archive has lost it since, it is the only one."""
    broken_off_before_the_dump(place, monkeypatch)
    if lost:
        one_pack(store()).unlink()
    done = make(place)
    assert (done.copied, done.lost, done.packs) == (0, (), 1)
    elsewhere()
    assert restore(place).missing == []
    assert names() == ["one", "two"]


def test_a_pack_that_the_archive_lacked_is_told_by_each_look_at_the_backup(
    source: IngestionSource, place: Place, manage: CommandLine
) -> None:
    one_pack(store()).unlink()
    assert make(place).lost == (str(Pack.objects.get().pk),)
    seen = manage.here("backup", str(place.root), "--verify")
    assert (seen.code, "was missing or damaged in the archive when" in seen.stdout) == (1, True)


# -- sectors that a disk can't read ----------------------------------------------------------------


def break_sectors(path: Path) -> None:
    """Have who reads it be told of an input/output error."""
    path.unlink()
    path.symlink_to("/proc/self/mem")


def test_a_pack_that_can_not_be_read_is_told_and_all_else_is_in_the_backup(
    source: IngestionSource, place: Place, more: More, manage: CommandLine, elsewhere: Elsewhere
) -> None:
    """When a disk fails, a backup is wanted most."""
    more(source, "three")
    bad = Message.objects.get(subject="three").pack_id
    break_sectors(next(Path(store().name).rglob(f"{bad}.pack")))
    made = manage.here("backup", str(place.root), "--json")
    assert (made.code, made.json()["missing"]) == (3, [str(bad)]), made.stderr
    assert len(packs(place.packs)) == 1
    elsewhere()
    back = manage.here("restore", str(place.root))
    assert (back.code, "(1 message) was missing or damaged already" in back.stdout) == (3, True)
    assert manage.here("verify_archive", "--refetch").code == 1
    assert names() == ["one", "three", "two"]


def test_a_pack_of_the_backup_that_can_not_be_read_is_left_out_and_all_else_comes_back(
    source: IngestionSource, place: Place, more: More, manage: CommandLine, elsewhere: Elsewhere
) -> None:
    more(source, "three")
    make(place)
    bad = Message.objects.get(subject="three").pack_id
    break_sectors(next(place.root.rglob(f"{bad}.pack")))
    checked = manage.here("backup", str(place.root), "--verify")
    assert (checked.code, "is damaged in the backup" in checked.stdout) == (1, True)
    elsewhere()
    back = manage.here("restore", str(place.root))
    assert (back.code, "(1 message) is damaged in the backup" in back.stdout) == (3, True)
    assert manage.here("verify_archive", "--refetch").code == 1
    assert names() == ["one", "three", "two"]


def test_a_copy_that_can_not_be_read_and_that_no_list_proves_is_made_again(
    source: IngestionSource, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_off_before_the_dump(place, monkeypatch)
    break_sectors(one_pack(place.packs))
    assert make(place).differing == [Pack.objects.get().pk]
    assert (make(place).differing, packs(place.packs)) == ([], packs(store()))


@pytest.mark.parametrize("form", [1, 3])
def test_a_backup_of_another_form_is_not_guessed_at(
    source: IngestionSource, place: Place, form: int
) -> None:
    made = make(place).manifest
    assert made
    path = place.root / "databases" / f"{made.name}.json"
    path.write_bytes(path.read_bytes().replace(b'"format": 2', f'"format": {form}'.encode()))
    with pytest.raises(NotAllowedNow, match="another version of this software: use that one"):
        place.chosen()


def half_written(archive: PackStore, beside: Path, pack_id: uuid.UUID) -> PackFile:
    """Have a pack be there that was never committed: somebody is at it, or was killed."""
    beside.with_name(f".{pack_id}.partial").write_bytes(b"half of it")
    [half] = [pack for pack in archive.packs() if pack.partial]
    return half


def test_half_a_copy_is_none(source: IngestionSource, place: Place) -> None:
    """Killed copies of before were named by the pack's id."""
    make(place)
    pack, copy = Pack.objects.get().pk, one_pack(place.packs)
    half_written(place.packs, copy, pack)
    copy.unlink()
    one_pack(store()).unlink()
    assert make(place).lost == (str(pack),)
    assert list(place.packs.packs()) == []  # it went, too


# -- restoring -------------------------------------------------------------------------------------


def test_a_database_that_can_not_be_restored_in_whole_stays_empty_and_no_row_is_quoted(
    source: IngestionSource, place: Place, elsewhere: Elsewhere
) -> None:
    """pg_restore fails near its end, where it makes indexes, and goes on when that is mended."""
    make(place)
    elsewhere()
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS"
            " $$BEGIN RAISE 'no room' USING DETAIL = 'Key (subject)=(secret)'; END$$;"
            " CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN TAG IN ('CREATE INDEX')"
            " EXECUTE FUNCTION refuse()"
        )
    with pytest.raises(NotAllowedNow, match=r"pg_restore failed: .*no room") as refused:
        restore(place)
    assert "secret" not in str(refused.value)
    assert connection.introspection.table_names() == []
    with connection.cursor() as cursor:
        cursor.execute("DROP EVENT TRIGGER refuse; DROP FUNCTION refuse")
    assert restore(place).missing == []
    assert names() == ["one", "two"]


def test_an_archive_that_can_not_be_written_is_told_before_the_database_is_filled(
    source: IngestionSource, place: Place, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(place)
    elsewhere()

    def is_read_only(_: DirectoryStore) -> float:
        raise OSError(30, "Read-only file system", "/archive")

    monkeypatch.setattr(DirectoryStore, "try_out", is_read_only)
    with pytest.raises(ArchiveUnavailable, match="Read-only file system"):
        restore(place)
    assert connection.introspection.table_names() == []
    assert store().mark() is None


@pytest.mark.parametrize("whose", ["ours", "another's"])
def test_an_archive_that_is_marked_and_empty_is_somebodys(
    source: IngestionSource, place: Place, elsewhere: Elsewhere, whose: str
) -> None:
    """It may be beneath a mount point, or wait for its first mail."""
    made = make(place).manifest
    assert made
    elsewhere()
    mark = made.archive_id if whose == "ours" else str(uuid.uuid4())
    store().write_mark(mark)
    with pytest.raises(NotAllowedNow, match=rf"is not empty \({mark}\)"):
        restore(place)
    assert connection.introspection.table_names() == []
    assert (store().mark(), packs(store())) == (mark, {})


def test_an_archive_that_was_restored_is_marked_and_known_to_be(
    source: IngestionSource, place: Place, elsewhere: Elsewhere
) -> None:
    """Until then nobody writes to it; from then on where the mark is away, so is the archive."""
    made = make(place).manifest
    assert made
    elsewhere()
    restore(place)
    assert store().mark() == made.archive_id
    storage.require()
    Path(store().mark_name).unlink()
    with pytest.raises(WrongArchive):
        storage.require()


def test_half_a_copy_is_not_put_back_nor_missed(
    source: IngestionSource, place: Place, elsewhere: Elsewhere
) -> None:
    make(place)
    half_written(place.packs, one_pack(place.packs), uuid.uuid4())
    elsewhere()
    done = restore(place)
    assert (done.missing, done.newer, done.packs) == ([], 0, 1)
    assert [pack for pack in store().packs() if pack.partial] == []


def test_a_restore_that_was_begun_does_not_go_on_in_another_database(
    source: IngestionSource, place: Place, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(place)
    elsewhere()

    def die(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(restoring._Restoring, "put_database_back", die)
        with pytest.raises(KeyboardInterrupt):
            restore(place)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE somebodys (id int)")
    with pytest.raises(NotAllowedNow, match="is not empty"):
        restore(place)


def test_packs_that_were_deleted_before_the_backup_stay_away_and_later_ones_come(
    source: IngestionSource, place: Place, more: More, elsewhere: Elsewhere
) -> None:
    make(place)
    old = Pack.objects.get().pk
    more(source, "three")
    merge_into_another(old)
    second = make(place).manifest
    more(source, "four")
    make(place)
    assert second
    later = Pack.objects.order_by("created_at").last()
    assert later
    assert {old, later.pk} <= packs(place.packs).keys()
    elsewhere()
    done = restoring.restore(place, second.name, actor=ACTOR)
    assert (done.newer, done.missing) == (1, [])
    assert old not in packs(store())
    assert later.pk in packs(store())


def test_which_backup_is_the_earlier_one_is_told_by_names_where_the_clock_was_ahead(
    source: IngestionSource, place: Place, more: More, elsewhere: Elsewhere
) -> None:
    """By their times the first is the later one, and what was deleted since it would come back."""
    first = make(place).manifest
    assert first
    ahead = of_a_clock_ahead(place, first)
    old = Pack.objects.get().pk
    more(source, "three")
    merge_into_another(old)
    second = make(place).manifest
    assert second
    assert second.taken_at < ahead.taken_at
    assert old in packs(place.packs), "the first one lists it"
    elsewhere()
    done = restoring.restore(place, second.name, actor=ACTOR)
    assert (done.newer, done.missing) == (0, [])
    assert old not in packs(store())
