"""The archive's volume may be away, or another: nothing is written then, and everybody says so."""

import os
import re
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.stub import Stubber
from django.contrib.auth import authenticate
from django.db import connection

from ingestion.errors import ArchiveAway, ArchiveUnavailable, WrongArchive
from ingestion.models import (
    Alert,
    IngestionSource,
    Installation,
    Message,
    Pack,
    Placement,
    Proof,
)
from ingestion.packs import s3
from ingestion.packs.store import store
from ingestion.services.archive import compaction, housekeeping, reading, storage, verify
from ingestion.services.archive.exports import jobs
from ingestion.services.operations import doctor
from ingestion.services.sources import verbs
from ingestion_project import bootstrap
from tests.servers import imap_source
from tests.servers.command_line import CommandLine
from tests.servers.dovecot import Account, Dovecot
from tests.servers.imap_source import ACTOR
from tests.servers.stack import ROOT, free_port

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def account(dovecot: Dovecot) -> Account:
    return dovecot.account(b"Subject: one\r\n\r\n", b"Subject: two\r\n\r\n")


@pytest.fixture
def source(account: Account) -> IngestionSource:
    """A source with two messages archived."""
    source = imap_source.create(account)
    imap_source.imported(source)
    assert Message.objects.count() == 2
    return source


@pytest.fixture
def read_only(archive_dir: Path) -> Iterator[None]:
    """The archive's volume as the kernel mounts it after an error of the disk; by root alone."""
    if os.geteuid() == 0:
        bind = ["mount", "--bind", str(archive_dir), str(archive_dir)]
        subprocess.run(bind, check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", str(archive_dir)], check=True)
        yield
        subprocess.run(["umount", "--lazy", str(archive_dir)], check=True)
    else:
        for path in (archive_dir, *archive_dir.glob("*/")):
            path.chmod(0o500)
        yield
        for path in (archive_dir, *archive_dir.glob("*/")):
            path.chmod(0o700)


def storage_of(manage: CommandLine) -> dict[str, Any]:
    found = manage.here("doctor", "--json").json()["findings"]
    return next(one for one in found if one["name"] == "storage")


def test_nothing_is_written_beneath_a_mount_point_and_nothing_is_lost(
    source: IngestionSource, archive_dir: Path, dovecot: Dovecot, account: Account,
    manage: CommandLine, tmp_path: Path,
) -> None:  # fmt: skip
    assert storage_of(manage)["state"] in ("ok", "warning")
    archive_dir.rename(tmp_path / "unmounted")
    archive_dir.mkdir()
    dovecot.append(account.name, "INBOX", b"Subject: three\r\n\r\n")
    imap_source.start(source, sync_only=True)
    mailbox = imap_source.work(source)
    assert mailbox.last_error_code == "storage"
    assert "is its volume mounted?" in mailbox.last_error
    assert list(archive_dir.iterdir()) == []
    told = storage_of(manage)
    assert told["state"] == "problem"
    assert "is its volume mounted?" in told["message"]
    assert list(archive_dir.iterdir()) == []
    archive_dir.rmdir()
    (tmp_path / "unmounted").rename(archive_dir)
    imap_source.work(source)
    assert Message.objects.count() == 3
    assert manage.here("verify_archive").code == 0
    assert storage_of(manage)["state"] in ("ok", "warning")


def test_mail_of_a_volume_that_is_away_is_not_told_as_lost(
    source: IngestionSource, archive_dir: Path, dovecot: Dovecot, account: Account, tmp_path: Path
) -> None:
    dovecot.append(account.name, "INBOX", b"Subject: three\r\n\r\n")
    imap_source.start(source, sync_only=True)
    imap_source.finish(source)
    assert Pack.objects.count() == 2

    def unmount(_: verify.Verification) -> None:
        archive_dir.rename(tmp_path / "unmounted")
        archive_dir.mkdir()

    told: list[verify.Problem] = []
    for meanwhile in (unmount, lambda _: None):  # within it, and before
        with pytest.raises(ArchiveUnavailable, match="is its volume mounted"):
            verify.verify_archive(on_problem=told.append, on_progress=meanwhile)
    for message in Message.objects.all():
        with pytest.raises(ArchiveUnavailable, match="is its volume mounted"):
            reading.opened(message)
    with pytest.raises(ArchiveUnavailable, match="is its volume mounted"):
        compaction._merge(source.pk, list(Pack.objects.all()))
    assert not Pack.objects.filter(left_apart=True).exists()
    assert (told, Alert.objects.count(), Proof.objects.count()) == ([], 0, 0)


def test_another_volume_is_not_verified(source: IngestionSource, archive_dir: Path) -> None:
    (archive_dir / ".installation").write_text(f"{uuid.uuid4()}\n")
    for path in archive_dir.rglob("*.pack"):
        path.unlink()
    with pytest.raises(WrongArchive):
        verify.verify_archive(on_problem=print)
    assert not Alert.objects.exists()


def test_a_deletion_waits_for_the_volume(
    source: IngestionSource, archive_dir: Path, tmp_path: Path
) -> None:
    from ingestion.services.sources import deletion

    archive_dir.rename(tmp_path / "unmounted")
    verbs.delete(source, actor=ACTOR)
    with pytest.raises(WrongArchive):
        deletion.delete_source(source.pk)
    (tmp_path / "unmounted").rename(archive_dir)
    deletion.delete_source(source.pk)
    assert not IngestionSource.objects.filter(pk=source.pk).exists()
    assert not list(archive_dir.rglob("*.pack"))


def test_another_installations_volume_is_refused(
    source: IngestionSource, archive_dir: Path
) -> None:
    other = uuid.uuid4()
    (archive_dir / ".installation").write_text(f"{other}\n")
    with pytest.raises(WrongArchive, match=f"another installation.*{other}"):
        storage.require()


def test_a_volume_that_is_read_only_is_told_at_the_start_and_at_the_first_write(
    source: IngestionSource, read_only: None, dovecot: Dovecot, account: Account,
) -> None:  # fmt: skip
    with pytest.raises(ArchiveUnavailable, match=r"can't be written .*Make it writable"):
        storage.require_writable()
    assert "can't be written" in bootstrap.archive_trouble()
    dovecot.append(account.name, "INBOX", b"Subject: three\r\n\r\n")
    imap_source.start(source, sync_only=True)
    mailbox = imap_source.work(source)
    assert mailbox.last_error_code == "storage"
    assert "The archive can't be written" in mailbox.last_error
    assert Message.objects.count() == 2


def test_a_store_that_does_not_answer_is_waited_for_and_one_that_refuses_is_told(
    db: None, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    settings.ARCHIVE_URL = f"s3://archive?endpoint=http://127.0.0.1:{port}&region=here"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "nobody's")
    with pytest.raises(ArchiveAway, match="can't be reached"):
        bootstrap.archive_trouble()
    client = s3._client(f"http://127.0.0.1:{port}", "here", 30.0)
    for code, status, is_away in [
        ("SlowDown", 503, True),
        ("502", 502, True),
        ("XMinioServerNotInitialized", 503, True),  # MinIO, while it comes up
        ("AccessDenied", 403, False),
        ("NotImplemented", 501, False),
        ("QuotaExceeded", 503, False),
    ]:
        with Stubber(client) as answers:
            answers.add_client_error("get_object", code, http_status_code=status)
            if is_away:
                with pytest.raises(ArchiveAway, match=code):
                    bootstrap.archive_trouble()
            else:
                assert code in bootstrap.archive_trouble()


def test_a_bucket_that_no_store_can_have_is_told_at_the_start(
    db: None, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.ARCHIVE_URL = "s3://Bad_Bucket!?endpoint=http://127.0.0.1:1&region=here"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "nobody's")
    assert "Correct ARCHIVE_URL" in bootstrap.archive_trouble()


def test_nothing_is_collected_in_another_installations_archive(
    source: IngestionSource, archive_dir: Path
) -> None:
    (archive_dir / ".installation").write_text(f"{uuid.uuid4()}\n")
    half = archive_dir / str(source.pk) / f".{uuid.uuid4()}.partial"
    half.touch()
    os.utime(half, (0, 0))
    with pytest.raises(WrongArchive):
        housekeeping.collect_orphans()
    housekeeping.collect_when_due()  # which others go on after
    assert half.exists()


def test_a_database_that_restarts_while_the_store_is_waited_for_ends_no_start(db: None) -> None:
    other = connection.copy()
    with connection.cursor() as cursor, other.cursor() as by:
        cursor.execute("SELECT pg_backend_pid()")
        by.execute("SELECT pg_terminate_backend(%s, 5000)", cursor.fetchone())
    other.close()
    assert bootstrap._once_it_answers(bootstrap.archive_trouble) == ""


def test_two_installations_do_not_share_the_directory_of_exports(
    source: IngestionSource, settings: Any, tmp_path: Path
) -> None:
    """The housekeeping of each would remove the other's."""
    settings.EXPORT_DIR = tmp_path / "exports"
    assert bootstrap.archive_trouble() == ""
    assert bootstrap.archive_trouble() == ""
    others = settings.EXPORT_DIR / f"{uuid.uuid4()}.zip"
    others.touch()
    (settings.EXPORT_DIR / ".installation").write_text(f"{uuid.uuid4()}\n")
    assert "in use by another installation" in bootstrap.archive_trouble()
    jobs.expire()
    assert others.exists()
    export = jobs.start(source.owner, query="", format="mbox", actor=ACTOR)
    jobs.work(export.pk)
    export.refresh_from_db()
    assert (export.state, list(settings.EXPORT_DIR.glob("*.part"))) == ("running", [])
    assert "in use by another installation" in export.message


def test_doctor_writes_beneath_no_mount_point_where_the_database_is_away(
    archive_dir: Path, db: None
) -> None:
    away = doctor.Finding("database", "problem", "It does not answer.")
    assert "no mark" in doctor._storage(away).message
    assert not archive_dir.exists()
    storage.require()
    assert doctor._storage(away).state in ("ok", "warning")


def test_an_installation_of_before_gets_its_mark(
    source: IngestionSource, archive_dir: Path
) -> None:
    """It has packs and no mark, and the volume may still be away at the first start."""
    Installation.objects.all().delete()
    (archive_dir / ".installation").unlink()
    moved = archive_dir.rename(archive_dir.with_name("elsewhere"))
    with pytest.raises(WrongArchive, match=r"none of this installation.s packs"):
        storage.require()
    moved.rename(archive_dir)
    storage.require()
    assert (archive_dir / ".installation").read_text().strip() == str(Installation.objects.get())


def test_a_lost_database_takes_its_archive_over(source: IngestionSource, archive_dir: Path) -> None:
    mark = (archive_dir / ".installation").read_text()
    for model in (Placement, Message, Pack, IngestionSource, Installation):
        model.objects.all().delete()
    with pytest.raises(WrongArchive, match=r"take it over with manage\.py rebuild"):
        storage.require()
    storage.take_over()
    storage.require()
    assert (archive_dir / ".installation").read_text() == mark


def test_an_archive_that_is_being_restored_is_nobodys(
    source: IngestionSource, archive_dir: Path
) -> None:
    """Neither a new database's that takes over what is there, nor one's that begins an archive."""
    for model in (Placement, Message, Pack, IngestionSource, Installation):
        model.objects.all().delete()
    mark = archive_dir / ".installation"
    mark.write_text(storage.being_restored("20261130-0100"))
    with pytest.raises(WrongArchive, match=r"being restored .* restore again"):
        storage.take_over()
    shutil.rmtree(archive_dir / str(source.pk))
    with pytest.raises(WrongArchive, match=r"being restored .* restore again"):
        storage.require()
    assert storage.is_being_restored(mark.read_text())


def test_the_first_password_is_told_also_where_the_first_start_was_refused(
    archive_dir: Path, db: None, manage: CommandLine
) -> None:
    def start() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "ingestion_project.bootstrap"],
            cwd=ROOT, env=manage.env, capture_output=True, text=True, check=False,
        )  # fmt: skip

    archive_dir.mkdir()
    mark = archive_dir / ".installation"
    mark.write_text(storage.being_restored("20261130-0100"))
    refused = start()
    assert (refused.returncode, "being restored" in refused.stderr) == (1, True)
    mark.unlink()
    [password] = re.findall(r"password: (\S+)", start().stdout)
    assert authenticate(username="admin", password=password)


def test_a_new_installation_may_take_an_empty_directory(archive_dir: Path, db: None) -> None:
    archive_dir.mkdir()
    (archive_dir / ".installation").write_text(f"{uuid.uuid4()}\n")  # somebody's, without a pack
    storage.require()
    storage.require()
    shutil.rmtree(archive_dir)
    with pytest.raises(WrongArchive):
        storage.require()


def test_doctor_tells_of_a_database_that_is_older_than_the_archive(
    source: IngestionSource, manage: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in (Placement, Message, Pack):
        model.objects.all().delete()
    assert storage_of(manage)["state"] in ("ok", "warning")  # it may be on its way
    monkeypatch.setattr(housekeeping, "ORPHAN_AGE", housekeeping.ORPHAN_AGE * 0)
    told = storage_of(manage)
    assert told["state"] == "problem"
    assert "rebuild_archive_index" in told["advice"]
    status = manage.here("source_status", str(source.pk))
    assert status.code == 1
    assert "rebuild_archive_index" in status.stdout
    manage.here("rebuild_archive_index")
    assert "rebuild_archive_index" not in manage.here("source_status", str(source.pk)).stdout


def test_doctor_tells_of_an_archive_that_is_older_than_the_database(
    source: IngestionSource, archive_dir: Path, manage: CommandLine
) -> None:
    for path in archive_dir.rglob("*.pack"):
        path.unlink()
    told = storage_of(manage)
    assert told["state"] == "problem"
    assert "does not hold the pack" in told["message"]


def test_many_workers_may_be_the_first_at_once(archive_dir: Path, db: None) -> None:
    """Each writes as soon as it may: what another wrote meanwhile is of this installation."""
    start = threading.Barrier(8)
    said: list[str] = []

    def work() -> None:
        try:
            start.wait(120)
            storage.require()
            with store().writer(uuid.uuid4()) as writer:
                storage.require()
                writer.commit()
        except OSError as error:
            said.append(str(error))
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == []
    assert [path.name for path in archive_dir.iterdir() if path.is_file()] == [".installation"]
