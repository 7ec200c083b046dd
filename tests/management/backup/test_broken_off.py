"""Backups and restores that are killed, or have no room: what was there is whole, and it goes on."""

import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import connection

from ingestion.errors import ArchiveUnavailable, NotAllowedNow, WrongArchive
from ingestion.models import IngestionSource
from ingestion.packs.directory import DirectoryStore
from ingestion.packs.store import store
from ingestion.services.archive import storage
from ingestion.services.operations import moving
from ingestion.services.operations.backup import making, restoring
from ingestion.services.operations.backup.place import Place
from tests.management.backup.world import (
    Elsewhere,
    More,
    beside,
    damage,
    end_idle_sessions,
    files_of,
    make,
    names,
    packs,
    problems_of,
    restore,
)
from tests.servers.command_line import CommandLine
from tests.servers.imap_source import ACTOR
from tests.servers.mortal import dies

pytestmark = pytest.mark.django_db(transaction=True)

_COMPLETE = [".dump", ".json", ".packs"]


# -- killed ----------------------------------------------------------------------------------------


def test_a_backup_that_is_killed_at_any_step_leaves_those_before_whole_and_goes_on(
    source: IngestionSource, place: Place, more: More, tmp_path: Path
) -> None:
    """At each file that it opens or renames: of what is done in between nobody sees a half."""
    make(place)
    more(source, "three")
    before = tmp_path / "before"
    shutil.copytree(place.root, before)
    seen: set[tuple[str, ...]] = set()
    step, killed = 0, True
    while killed:
        shutil.rmtree(place.root)
        shutil.copytree(before, place.root)
        step += 1
        killed = dies(
            lambda: make(place, keep=1), at_step=step, directory=place.root, statements=False
        )
        files = [path.suffix for path in place.root.rglob("*.*")]
        if (state := tuple(sorted(files))) in seen:
            continue
        seen.add(state)
        assert problems_of(place) == []
        make(place, keep=1)
        assert packs(place.packs) == packs(store())
        assert (files_of(place), problems_of(place)) == (_COMPLETE, [])
    assert len(seen) > 8, "it was killed at too few steps to say so"


def test_a_restore_that_is_killed_at_any_step_goes_on_and_the_last_words_are_not_lost(
    source: IngestionSource, place: Place, more: More, elsewhere: Elsewhere, settings: Any
) -> None:
    """At each file of the archive that it opens or renames; the database is filled by the first
    that comes so far, and is not filled again."""
    more(source, "three")
    made = make(place).manifest
    assert made
    elsewhere()
    step = 0
    while store().mark() != made.archive_id:  # of the last that was killed nobody saw the words
        step += 1
        dies(lambda: restore(place), at_step=step, directory=settings.ARCHIVE_DIR, statements=False)
    assert step > 8, "it was killed at too few steps to say so"
    storage.require()
    assert names() == ["one", "three", "two"]
    with pytest.raises(NotAllowedNow, match=r"was restored on .* nothing was missing"):
        restore(place)


@pytest.mark.parametrize("step", ["put_database_back", "count_what_is_missing"])
def test_a_restore_that_is_broken_off_goes_on(
    source: IngestionSource, place: Place, elsewhere: Elsewhere, step: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """After each step. What it told before is told again."""
    make(place)
    lost = next(place.packs.packs())
    place.packs.delete(lost)
    elsewhere()
    broken_off_behind(step, lambda: restore(place), monkeypatch)
    with pytest.raises(WrongArchive, match="being restored"):
        storage.require()
    [missing] = restore(place).missing
    assert (missing.pack_id, missing.messages) == (lost.pack_id, 2)
    storage.require()
    with pytest.raises(NotAllowedNow, match=r"packs were missing \(1\): manage\.py verify"):
        restore(place)


def test_what_one_restore_began_no_other_backup_ends(
    source: IngestionSource, place: Place, more: More, elsewhere: Elsewhere,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Its packs would not be those of the database."""
    first = make(place).manifest
    more(source, "three")
    make(place)
    elsewhere()
    assert first

    def die(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(restoring._Restoring, "put_packs_back", die)
        with pytest.raises(KeyboardInterrupt):
            restoring.restore(place, first.name, actor=ACTOR)
    for other in (restore, restore_database):
        with pytest.raises(NotAllowedNow, match=f"another restore was broken off .*{first.name}"):
            other(place)
    with pytest.raises(NotAllowedNow, match="another restore"):
        restoring.restore(place, first.name, only="database", actor=ACTOR)
    restoring.restore(place, first.name, actor=ACTOR)
    assert names() == ["one", "two"]


@pytest.mark.parametrize("step", ["begin", "put_database_back", "count_what_is_missing"])
def test_a_restore_of_the_database_alone_that_is_broken_off_goes_on(
    source: IngestionSource, place: Place, elsewhere: Elsewhere, archive_dir: Path, settings: Any,
    step: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Nobody writes to the archive meanwhile, and no other restore takes it for its own."""
    make(place)
    elsewhere()
    settings.ARCHIVE_DIR = archive_dir
    broken_off_behind(step, lambda: restore_database(place), monkeypatch)
    assert storage.is_being_restored(store().mark() or "")
    with pytest.raises(NotAllowedNow, match="another restore was broken off"):
        restore(place)
    assert restore_database(place).missing == []
    storage.require()
    assert names() == ["one", "two"]


def restore_database(place: Place) -> restoring.Restoring:
    return restoring.restore(place, only="database", actor=ACTOR)


def broken_off_behind(
    step: str, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = getattr(restoring._Restoring, step)

    def die_behind(*given: Any, **more: Any) -> None:
        done(*given, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(restoring._Restoring, step, die_behind)
        with pytest.raises(KeyboardInterrupt):
            act()


def test_a_restore_waits_for_what_a_killed_one_left_at_work_in_the_database(
    source: IngestionSource, place: Place, elsewhere: Elsewhere
) -> None:
    make(place)
    elsewhere()
    where = connection.settings_dict
    with psycopg.connect(
        host=where["HOST"], user="postgres", dbname=where["NAME"], application_name="pg_restore"
    ):
        with pytest.raises(NotAllowedNow, match="pg_restore is at work in this database"):
            restore(place)
        assert store().mark() is None
    assert restore(place).missing == []


def test_a_restore_beside_another_one_ends_with_a_sentence_and_changes_nothing(
    source: IngestionSource, place: Place, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(place)
    elsewhere()
    refused: list[str] = []

    def second() -> None:
        with pytest.raises(NotAllowedNow, match="Another restore into this database") as said:
            restore(place)
        refused.append(str(said.value))

    begin = restoring._Restoring.begin

    def begin_beside(job: restoring._Restoring) -> None:
        beside(second)  # which looked when nothing was written yet
        begin(job)

    monkeypatch.setattr(restoring._Restoring, "begin", begin_beside)
    assert restore(place).missing == []
    assert len(refused) == 1


# -- sessions that are ended -----------------------------------------------------------------------


def test_who_copies_for_hours_finds_the_database_again(
    source: IngestionSource, place: Place, elsewhere: Elsewhere, settings: Any, tmp_path: Path
) -> None:
    """Else neither would ever come to its end, and an archive that was half moved took no mail."""

    def in_copying(done: making.Making | restoring.Restoring) -> None:
        if done.stage in ("Copying packs", "Restoring the database", "Restoring packs"):
            end_idle_sessions()

    there = DirectoryStore(tmp_path / "there")
    moving.move(store(), there, actor=ACTOR, on_progress=end_idle_sessions)
    settings.ARCHIVE_URL = f"file://{there.name}"
    made = making.make(place, keep=7, actor=ACTOR, on_progress=in_copying)
    assert made.manifest
    elsewhere()
    settings.ARCHIVE_URL = ""
    done = restoring.restore(place, actor=ACTOR, on_progress=in_copying)
    assert done.missing == []
    assert names() == ["one", "two"]


# -- no room ---------------------------------------------------------------------------------------


@pytest.fixture
def small(place: Place) -> Iterator[Path]:
    """The place of backups is a file system of its own; return what fills it."""
    place.root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", place.root], check=True)
    yield place.root / "ballast"
    subprocess.run(["umount", "--lazy", place.root], check=True)


def fill(ballast: Path) -> None:
    with pytest.raises(OSError, match="No space"), ballast.open("ab", buffering=0) as file:
        while file.write(b"\0" * (1 << 20)):
            pass


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount")
@pytest.mark.parametrize(
    "moment", ["Copying packs", "Dumping the database", "Copying what came meanwhile"]
)
def test_on_a_disk_that_fills_the_backup_before_stays_and_with_room_the_next_one_is_made(
    source: IngestionSource, place: Place, more: More, elsewhere: Elsewhere, small: Path,
    moment: str,
) -> None:  # fmt: skip
    """There is no room for a pack, for the dump, for the list of packs."""
    make(place)
    more(source, "three")
    if moment == "Copying packs":
        fill(small)

    def work(done: making.Making) -> None:
        if done.stage == moment and not small.exists():
            fill(small)

    with pytest.raises((ArchiveUnavailable, NotAllowedNow), match=r"No space left.*ake room"):
        making.make(place, keep=7, actor=ACTOR, on_progress=work)
    assert files_of(place) == _COMPLETE, "the room that the rest of it took is free"
    assert problems_of(place) == []
    small.unlink()
    done = make(place)
    assert done.copied == (moment == "Copying packs")
    assert problems_of(place) == []
    elsewhere()
    assert restore(place).missing == []
    assert names() == ["one", "three", "two"]


def test_fewer_backups_are_room_before_the_next_one_is_made(
    source: IngestionSource, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else there would be none on a disk that has no room for one more."""
    for _ in range(3):
        make(place)
    monkeypatch.setattr(making._Making, "copy", lambda *_: pytest.fail("no room"))
    with pytest.raises(pytest.fail.Exception):
        make(place, keep=1)
    assert (len(place.manifests()), problems_of(place)) == (1, [])
    assert packs(place.packs) == packs(store())


# -- what can't be read of other backups -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["packs", "json"])
def test_a_backup_that_can_not_be_read_stops_no_other_and_keeps_all_packs(
    source: IngestionSource, place: Place, kind: str, manage: CommandLine, elsewhere: Elsewhere
) -> None:
    where, bad = str(place.root), make(place).manifest
    assert bad
    file = place.root / "databases" / f"{bad.name}.{kind}"
    damage(file)
    if kind == "json":
        file.write_bytes(file.read_bytes()[:-9])
    [pack] = place.packs.packs()
    with place.packs.copier(pack.source_id, uuid.uuid4()) as perhaps_its:
        perhaps_its.commit()
    made = manage.here("backup", where)
    assert (made.code, "no pack is removed" in made.stdout) == (3, True), made.stderr
    assert perhaps_its.pack_id in packs(place.packs)
    listed = manage.here("backup", where, "--list")
    assert (listed.code, len(listed.stdout.splitlines())) == ((1, 1) if kind == "json" else (0, 2))
    assert manage.here("backup", where, "--verify").code == 1
    elsewhere()
    assert restore(place).missing == []
    assert names() == ["one", "two"]


def test_a_backup_whose_list_is_damaged_is_refused_before_anything_is_written(
    source: IngestionSource, place: Place, elsewhere: Elsewhere
) -> None:
    bad = make(place).manifest
    assert bad
    damage(place.root / "databases" / f"{bad.name}.packs")
    elsewhere()
    with pytest.raises(NotAllowedNow, match="nobody can tell which packs belong"):
        restore(place)
    assert connection.introspection.table_names() == []
    assert store().mark() is None
