"""backup and restore: what is lost comes back, and what can't is told by name."""

import datetime as dt
import errno
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone
from psycopg.conninfo import conninfo_to_dict

from ingestion.errors import ArchiveUnavailable, NotAllowedNow, WrongArchive
from ingestion.models import AuditEvent, IngestionSource, Installation, Message, Pack
from ingestion.packs.store import store
from ingestion.services.archive import housekeeping, storage
from ingestion.services.operations.backup import dumps, making, restoring
from ingestion.services.operations.backup.place import Place
from ingestion.services.sources import verbs
from ingestion_project.demo.object_store import ObjectStoreServer
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
from tests.servers import imap_source, people, stack
from tests.servers.command_line import CommandLine
from tests.servers.dovecot import Account, Dovecot
from tests.servers.imap_source import ACTOR
from tests.servers.stack import ROOT

pytestmark = pytest.mark.django_db(transaction=True)

# -- all is well -----------------------------------------------------------------------------------


def test_a_backup_comes_back_on_another_machine_and_is_followed_there(
    source: IngestionSource, manage: CommandLine, place: Place, tmp_path: Path,
    elsewhere: Elsewhere, more: More,
) -> None:  # fmt: skip
    keys = tmp_path / "keys.json"
    where = str(place.root)
    made = manage.here("backup", where, f"--keys={keys}", "--json")
    assert made.code == 0, made.stderr
    said = made.json()
    assert (said["packs"], said["copied"], said["messages"]) == (1, 1, 2)
    assert (keys.stat().st_mode & 0o777, "ENCRYPTION_KEYS" in keys.read_text()) == (0o600, True)
    assert not any(b"ENCRYPTION" in file.read_bytes() for file in place.root.rglob("*.json"))
    begun, ended = AuditEvent.objects.filter(action__startswith="archive.backup").order_by("pk")
    assert (begun.action, begun.changes) == ("archive.backup.begin", {"to": place.packs.name})
    assert (ended.action, ended.changes["missing"]) == ("archive.backup", 0)
    more(source, "three")
    assert manage.here("backup", str(place.root), "--json").json()["copied"] == 1
    assert manage.here("backup", str(place.root), "--verify", "--json").json() | {"bytes": 0} == {
        "ok": True, "backups": 2, "packs": 2, "bytes": 0, "problems": [],
    }  # fmt: skip
    before = packs(store())

    elsewhere()
    back = manage.here("restore", where, "--json")
    assert back.code == 0, back.stderr
    assert (back.json()["packs"], back.json()["missing"], back.json()["newerPacks"]) == (2, [], 0)
    assert packs(store()) == before
    assert manage.here("verify_archive", "--json").json()["ok"]
    storage.require()
    more(source, "four")  # with the stored password, from the stored cursor
    assert names() == ["four", "one", "three", "two"]


def test_a_restored_database_has_the_statistics_that_no_dump_brings(
    source: IngestionSource, place: Place, elsewhere: Elsewhere
) -> None:
    make(place)
    elsewhere()
    told: list[str] = []
    restoring.restore(place, actor=ACTOR, on_progress=lambda done: told.append(done.stage))
    assert [stage for stage, _ in itertools.groupby(told)] == [
        "Reading the dump",
        "Restoring the database",
        "Collecting the database's statistics",
        "Restoring packs",
    ]
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND reltuples < 0"
            " AND relnamespace = 'public'::regnamespace"
        )
        assert cursor.fetchall() == []


def test_postgresqls_programs_are_told_nothing_that_one_of_an_older_version_refuses() -> None:
    """libpq says of itself what it chose, with names of its own time (sslcertmode: 16)."""
    connection.ensure_connection()
    here = connection.connection.info
    told = conninfo_to_dict(dumps._address())
    assert set(told) <= {
        *("dbname", "host", "port", "user", "options", "client_encoding", "connect_timeout"),
        *("keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
    }
    assert (told["host"], told["dbname"], told["user"]) == (here.host, here.dbname, here.user)
    assert "sslcertmode" in here.dsn, "then this tells nothing any more"


def test_the_list_is_a_line_for_each_backup_with_tabs(
    source: IngestionSource, manage: CommandLine, place: Place
) -> None:
    nothing = manage.here("backup", str(place.root), "--list")
    assert (nothing.code, "no complete backup" in nothing.stderr) == (0, True)
    make(place)
    make(place)
    rows = [
        line.split("\t")
        for line in manage.here("backup", str(place.root), "--list").stdout.splitlines()
    ]
    assert [row[0] for row in rows] == [manifest.name for manifest in place.manifests()]
    assert [row[3:] for row in rows] == [["2", "1", rows[0][5], "0"]] * 2


def test_a_backup_keeps_so_many_databases_and_the_packs_that_one_of_them_lists(
    source: IngestionSource, place: Place, more: More
) -> None:
    make(place)
    [old] = packs(place.packs)
    more(source, "three")
    merge_into_another(old)
    done = make(place, keep=2)
    assert (done.removed_backups, done.removed_packs) == (0, 0)
    assert old in packs(place.packs)
    done = make(place, keep=2)
    assert (done.removed_backups, done.removed_packs) == (1, 1)
    assert packs(place.packs) == packs(store())
    assert len(place.manifests()) == 2


def test_what_is_made_after_the_clock_was_ahead_is_the_newest(
    source: IngestionSource, place: Place, more: More
) -> None:
    """It would be taken for the oldest: the first to go, and never what is restored."""
    first = make(place).manifest
    assert first is not None
    ahead = of_a_clock_ahead(place, first)
    for number in range(3):
        more(source, f"{number}")
        made = make(place, keep=2).manifest
        assert made is not None
        assert made.name > ahead.name
        assert made.taken_at < timezone.now() < ahead.taken_at
        assert place.chosen() == made
    assert len(place.manifests()) == 2


def test_packs_may_lie_in_a_bucket_here_there_and_in_the_backup(
    account: Account, manage: CommandLine, place: Place, elsewhere: Elsewhere, settings: Any,
    object_store: ObjectStoreServer, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in object_store.env.items():
        monkeypatch.setenv(name, value)
    here, backup, there = (object_store.url("archive", str(uuid.uuid4())) for _ in range(3))
    settings.ARCHIVE_URL = here
    imap_source.imported(imap_source.create(account))
    assert manage.here("backup", str(place.root), "--packs", here).code == 1, "onto itself"
    made = manage.here("backup", str(place.root), "--packs", backup, "--json")
    assert (made.code, made.json()["copied"]) == (0, 1), made.stderr
    assert manage.here("backup", str(place.root), "--packs", backup, "--verify").code == 0
    elsewhere()
    settings.ARCHIVE_URL = there
    back = manage.here("restore", str(place.root), "--packs", backup, "--json")
    assert (back.code, back.json()["packs"]) == (0, 1), back.stderr
    assert names() == ["one", "two"]


def test_the_commands_of_the_page_work_on_an_empty_machine(
    source: IngestionSource, manage: CommandLine, account: Account, dovecot: Dovecot, tmp_path: Path
) -> None:
    """With a VAR_DIR, a PostgreSQL and a Redis of its own."""
    page = (ROOT / "docs" / "backup.md").read_text()
    for there, here in {
        ".venv/bin/python ": f"{sys.executable} ",
        "/media/backup": tmp_path / "backup",
        "/safe/ingestion-keys.json": tmp_path / "keys.json",
        "/var/lib/ingestion": tmp_path / "new",
    }.items():
        page = page.replace(there, str(here))
    blocks = re.findall(r"(?:^    .*\n)+", page, re.MULTILINE)
    backup, machine, restore = blocks[0], blocks[2], blocks[3]
    shell(f"{sys.executable} {backup.strip()}", manage.env)
    dovecot.append(account.name, "INBOX", mail("three"))

    env = {name: value for name, value in manage.env.items() if name != "ARCHIVE_DIR"}
    begin, _, run = machine.strip().rpartition("\n")
    assert run.endswith("ingestion_project.run --only-services")
    shell(begin, env)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    running = stack.Supervised.start(
        "--only-services", "--no-fsync", env=env | {"VAR_DIR": str(tmp_path / "new")},
        log=tmp_path / "log",
    )  # fmt: skip
    try:
        running.wait_for_line("are ready")
        said = shell(f"{restore}    {sys.executable} manage.py sync_source Scripted --now", env)
        assert "2 messages in 1 pack" in said, said
    finally:
        running.stop()
    assert "is done: 1 archived" in said, said


def shell(text: str, env: Mapping[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-euc", text], cwd=ROOT, env=dict(env), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# -- beside the service ----------------------------------------------------------------------------


def test_mail_that_comes_while_it_is_made_harms_nothing(
    source: IngestionSource, place: Place, elsewhere: Elsewhere,
    more: More,
) -> None:  # fmt: skip
    """Before the dump it is in the backup, with its pack; later it is in the next one."""
    came: list[str] = []

    def work(done: making.Making) -> None:
        if done.stage not in came:
            came.append(done.stage)
            beside(lambda: more(source, done.stage))

    making.make(place, keep=7, actor=ACTOR, on_progress=work)
    assert came[:3] == ["Copying packs", "Dumping the database", "Copying what came meanwhile"]
    elsewhere()
    assert restore(place).missing == []
    assert names() == sorted(["one", "two", *came[:2]])


@pytest.mark.parametrize("by", ["compaction", "deletion"])
def test_a_pack_that_goes_between_dump_and_copy_has_the_database_dumped_again(
    source: IngestionSource, place: Place, dovecot: Dovecot, by: str
) -> None:
    """The first dump names it, and the backup could never have it."""
    doomed = imap_source.create(dovecot.account(mail("doomed")), name="Doomed")
    told: list[str] = []

    def work(done: making.Making) -> None:
        told.append(done.stage)
        if told.count("Dumping the database") == 1 and told[-1] == "Dumping the database":
            beside(lambda: imap_source.imported(doomed))
        elif told.count("Dumping the database") == 2 and told[-1] == "Dumping the database":
            beside(lambda: go(doomed))  # while the dump is written

    def go(source: IngestionSource) -> None:
        if by == "deletion":
            verbs.delete(source, actor=ACTOR)
            store().delete_source(source.pk)
        else:
            [old], new = Pack.objects.filter(source=source), uuid.uuid4()
            with store().copier(source.pk, new) as copy:
                copy.fill(store().chunks(source.pk, old.pk))
                copy.commit()
            Pack.objects.create(pk=new, source=source, size_bytes=old.size_bytes, message_count=1)
            Message.objects.filter(pack=old).update(pack=new)
            store().delete(file_of(old))
            old.delete()

    done = making.make(place, keep=7, actor=ACTOR, on_progress=work)
    assert [stage for stage, _ in itertools.groupby(told)].count("Dumping the database") == 2
    assert (done.lost, done.packs) == ((), 1 if by == "deletion" else 2)


# -- disasters -------------------------------------------------------------------------------------


def test_a_database_older_than_the_packs_finds_its_mail_in_them(
    source: IngestionSource, place: Place, elsewhere: Elsewhere, manage: CommandLine,
    more: More, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    make(place)
    more(source, "three")
    broken_off_before_the_dump(place, monkeypatch)
    elsewhere()
    back = manage.here("restore", str(place.root))
    assert (back.code, "1 pack came after the database was dumped" in back.stdout) == (0, True)
    assert names() == ["one", "two"]
    assert manage.here("rebuild_archive_index", "--json").json()["sources"][0]["messagesAdded"] == 1
    imap_source.synced(source)
    assert names() == ["one", "three", "two"]
    assert manage.here("verify_archive", "--json").json()["ok"]


def test_a_database_older_than_the_packs_has_the_next_sync_fetch_what_it_lacks(
    source: IngestionSource, place: Place, elsewhere: Elsewhere, manage: CommandLine,
    more: More, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    make(place)
    more(source, "three")
    broken_off_before_the_dump(place, monkeypatch)
    elsewhere()
    assert restore(place).newer == 1
    imap_source.synced(source)
    assert names() == ["one", "three", "two"]
    assert len(packs(store())) == 3
    housekeeping.collect_orphans(older_than=dt.timedelta())  # held twice: the copy goes
    assert len(packs(store())) == 2
    assert manage.here("verify_archive", "--json").json()["ok"]


def test_packs_older_than_the_database_are_named_and_fetched_again(
    source: IngestionSource, place: Place, elsewhere: Elsewhere, manage: CommandLine,
    more: More,
) -> None:  # fmt: skip
    more(source, "three")
    make(place)
    lost = Message.objects.get(subject="three").pack
    place.packs.delete(file_of(lost))
    elsewhere()
    back = manage.here("restore", str(place.root), "--json")
    assert back.code == 3
    [missing] = back.json()["missing"]
    assert (missing["packId"], missing["messages"]) == (str(lost.pk), 1)
    assert manage.here("verify_archive", "--refetch").code == 1
    assert manage.here("verify_archive", "--json").json()["ok"]
    assert names() == ["one", "three", "two"]


def test_packs_alone_are_enough_for_all_mail(
    source: IngestionSource, place: Place, archive_dir: Path, manage: CommandLine
) -> None:
    make(place)
    shutil.rmtree(place.root / "databases")
    shutil.rmtree(archive_dir)
    stack.empty_database()
    assert manage.here("restore", str(place.root)).code == 1
    back = manage.here("restore", str(place.root), "--packs-only", "--json")
    assert (back.code, back.json()["newerPacks"]) == (0, 1), back.stderr
    people.superuser("root")
    recovered = manage.here(
        "rebuild_archive_index", "--recover", str(source.pk), "--owner=root", "--name=Again"
    )
    assert recovered.code == 0, recovered.stderr
    assert names() == ["one", "two"]
    assert manage.here("verify_archive", "--json").json()["ok"]


def test_one_half_comes_back_beside_the_other(
    source: IngestionSource, place: Place, elsewhere: Elsewhere, manage: CommandLine,
    archive_dir: Path, settings: Any,
) -> None:  # fmt: skip
    make(place)
    shutil.rmtree(archive_dir)
    assert manage.here("restore", str(place.root)).code == 1, "the database is not empty"
    assert not archive_dir.exists()
    assert manage.here("restore", str(place.root), "--packs-only").code == 0
    assert names() == ["one", "two"]
    elsewhere()
    refused = manage.here("restore", str(place.root), "--database-only")
    assert (refused.code, "is not the archive of this backup" in refused.stderr) == (1, True)
    settings.ARCHIVE_DIR = archive_dir
    assert manage.here("restore", str(place.root), "--database-only").code == 0
    assert names() == ["one", "two"]


def test_without_the_keys_credentials_are_lost_and_mail_is_not(
    source: IngestionSource, place: Place, elsewhere: Elsewhere, manage: CommandLine, settings: Any
) -> None:
    make(place)
    elsewhere()
    settings.ENCRYPTION_KEYS = settings.FERNET_KEYS = ["another-key-than-the-one-it-was"]
    back = manage.here("restore", str(place.root))
    assert (back.code, "1 stored secret can't be read" in back.stdout) == (3, True)
    assert names() == ["one", "two"]


def test_keys_that_backups_of_before_a_rotation_need_stay_in_the_file(
    tmp_path: Path, settings: Any
) -> None:
    file = tmp_path / "keys.json"
    file.write_text("half of")
    for keys in (["old"], ["new", "old"], ["new"], ["newest", "new"]):
        settings.ENCRYPTION_KEYS = keys
        making.write_keys(file)
    assert json.loads(file.read_text())["ENCRYPTION_KEYS"] == ["newest", "new", "old"]


def test_a_file_of_keys_that_cannot_be_read_is_not_written_over(
    tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of root's in a directory of the service's, or of a share that fails."""
    file = tmp_path / "keys.json"
    settings.ENCRYPTION_KEYS = ["old"]
    making.write_keys(file)
    before = file.read_bytes()

    def refused(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    settings.ENCRYPTION_KEYS = ["new"]
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refused)
        with pytest.raises(ArchiveUnavailable, match=r"denied\. The keys were not written"):
            making.write_keys(file)
    assert file.read_bytes() == before


def test_a_damaged_pack_of_a_backup_is_found_and_copied_again(
    source: IngestionSource, place: Place, manage: CommandLine
) -> None:
    make(place)
    damage(one_pack(place.packs))
    checked = manage.here("backup", str(place.root), "--verify", "--json")
    assert checked.code == 1
    assert "is damaged in the backup. Remove it there" in checked.json()["problems"][0]
    one_pack(place.packs).unlink()
    assert "is not in the backup" in manage.here("backup", str(place.root), "--verify").stdout
    assert make(place).copied == 1
    assert manage.here("backup", str(place.root), "--verify").code == 0


def test_a_damaged_pack_is_not_put_into_an_archive(
    source: IngestionSource, place: Place, elsewhere: Elsewhere, manage: CommandLine
) -> None:
    make(place)
    damage(one_pack(place.packs))
    elsewhere()
    back = manage.here("restore", str(place.root))
    assert (back.code, "(2 messages) is damaged in the backup" in back.stdout) == (3, True)
    assert packs(store()) == {}
    assert manage.here("verify_archive", "--refetch").code == 1
    assert names() == ["one", "two"]


def test_a_pack_that_the_archive_lost_is_told_and_one_that_the_backup_has_stays(
    source: IngestionSource, place: Place, manage: CommandLine, elsewhere: Elsewhere,
    more: More,
) -> None:  # fmt: skip
    make(place)
    more(source, "three")
    for path in list(Path(store().name).rglob("*.pack")):
        path.unlink()
    made = manage.here("backup", str(place.root), "--keep=1", "--json")
    lost = str(Message.objects.get(subject="three").pack_id)
    assert (made.code, made.json()["missing"]) == (3, [lost])
    elsewhere()
    [missing] = restore(place).missing
    assert (str(missing.pack_id), missing.messages) == (lost, 1)
    assert manage.here("verify_archive", "--refetch").code == 1
    assert names() == ["one", "three", "two"]


# -- refusals --------------------------------------------------------------------------------------


def test_what_is_not_empty_or_not_ours_is_refused_in_words(
    source: IngestionSource, place: Place, manage: CommandLine, elsewhere: Elsewhere,
    archive_dir: Path, tmp_path: Path, settings: Any,
) -> None:  # fmt: skip
    inside = manage.here("backup", str(archive_dir / "backup"))
    assert (inside.code, "belongs elsewhere" in inside.stderr) == (1, True)
    for where in (place.root, tmp_path / "packs"):
        packs_are = ("--packs", f"file://{tmp_path / 'packs'}")
        apart = manage.here("backup", str(place.root), *packs_are, "--keys", str(where / "keys"))
        assert (apart.code, "Name a place elsewhere" in apart.stderr) == (2, True)
    make(place)
    other = Place(tmp_path / "other")
    other.packs.write_mark(f"backup of {uuid.uuid4()}")
    with pytest.raises(NotAllowedNow, match="not for backups of this installation"):
        make(other)
    unmarked = Place(tmp_path / "unmarked")
    with unmarked.packs.copier(uuid.uuid4(), uuid.uuid4()) as somebodys:
        somebodys.commit()
    with pytest.raises(NotAllowedNow, match="has packs, and is no backup"):
        make(unmarked)
    with (
        place.ours(str(Installation.objects.get())),
        pytest.raises(NotAllowedNow, match="under way already"),
    ):
        make(place)
    full = manage.here("restore", str(place.root))
    assert (full.code, "is not empty" in full.stderr) == (1, True)
    nothing = manage.here("restore", str(tmp_path / "nothing"))
    assert (nothing.code, "no directory of backups" in nothing.stderr) == (1, True)
    assert manage.here("restore", str(place.root), "--backup=20000101").code == 1
    settings.ARCHIVE_DIR = place.root / "packs"
    with pytest.raises(WrongArchive):
        storage.require()  # a backup is no archive to write to
    elsewhere()
    settings.ARCHIVE_DIR = archive_dir
    kept = manage.here("restore", str(place.root))
    assert (kept.code, "--database-only" in kept.stderr) == (1, True)


def test_a_dump_that_is_damaged_or_of_a_newer_version_is_refused_before_anything_is_written(
    source: IngestionSource, place: Place, manage: CommandLine, elsewhere: Elsewhere
) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO django_migrations (app, name, applied) VALUES"
            " ('ingestion', '9999_of_tomorrow', now())"
        )
    newer = make(place).manifest
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_migrations WHERE name = '9999_of_tomorrow'")
    assert newer
    damage(place.root / "databases" / f"{make(place).manifest.name}.dump")  # type: ignore[union-attr] # made just now
    checked = manage.here("backup", str(place.root), "--verify")
    assert (checked.code, "not what was written" in checked.stdout) == (1, True)
    elsewhere()
    refused = manage.here("restore", str(place.root), f"--backup={newer.name}")
    assert (refused.code, "ingestion.9999_of_tomorrow. Install that" in refused.stderr) == (1, True)
    refused = manage.here("restore", str(place.root))
    assert (refused.code, "not what was written" in refused.stderr) == (1, True)
    assert connection.introspection.table_names() == []
    assert store().mark() is None
