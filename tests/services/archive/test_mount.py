"""The archive's volume may be away, or another: nothing is written then, and everybody says so."""

import shutil
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection

from ingestion.errors import WrongArchive
from ingestion.models import IngestionSource, Installation, Mailbox, Message, Pack, Placement, Run
from ingestion.packs.store import store
from ingestion.services.archive import housekeeping, storage
from ingestion.services.audit import Actor
from ingestion.services.engine import sync
from ingestion.services.sources import configuration, credentials, discovery, verbs
from tests.servers.command_line import CommandLine
from tests.servers.dovecot import Dovecot

pytestmark = pytest.mark.django_db(transaction=True)
ACTOR = Actor.system("tests")
#: What a worker waits between two tries is over.
Synced = Callable[[], Run]


@pytest.fixture
def archive(settings: Any, tmp_path: Path) -> Path:
    settings.ARCHIVE_DIR = tmp_path / "archive"
    return tmp_path / "archive"


@pytest.fixture
def account(dovecot: Dovecot) -> tuple[str, str]:
    name, password = dovecot.user()
    dovecot.append(name, "INBOX", b"Subject: one\r\n\r\n", b"Subject: two\r\n\r\n")
    return name, password


@pytest.fixture
def source(
    archive: Path, dovecot: Dovecot, account: tuple[str, str], owner: User
) -> IngestionSource:
    """A source with two messages archived."""
    name, password = account
    source = configuration.create(
        owner=owner, name="Ada", provider="generic_imap", actor=ACTOR,
        provider_config={
            "host": dovecot.host, "port": dovecot.port, "secure": False,
            "username": name, "password": password,
        },
    )  # fmt: skip
    run = verbs.start_import(source, actor=ACTOR)
    assert credentials.check(source).ok
    worked(run)
    assert Message.objects.count() == 2
    return source


def worked(run: Run) -> Mailbox:
    discovery.discover(run.pk)
    mailbox = Mailbox.objects.get()
    Mailbox.objects.update(not_before=run.started_at)
    sync.sync_mailbox(mailbox.pk)
    mailbox.refresh_from_db()
    return mailbox


def storage_of(manage: CommandLine) -> dict[str, Any]:
    found = manage.here("doctor", "--json").json()["findings"]
    return next(one for one in found if one["name"] == "storage")


def test_nothing_is_written_beneath_a_mount_point_and_nothing_is_lost(
    source: IngestionSource, archive: Path, dovecot: Dovecot, account: tuple[str, str],
    manage: CommandLine, tmp_path: Path,
) -> None:  # fmt: skip
    assert storage_of(manage)["state"] in ("ok", "warning")
    archive.rename(tmp_path / "unmounted")
    archive.mkdir()
    dovecot.append(account[0], "INBOX", b"Subject: three\r\n\r\n")
    mailbox = worked(verbs.start_sync(source, actor=ACTOR))
    assert mailbox.last_error_code == "storage"
    assert "is its volume mounted?" in mailbox.last_error
    assert list(archive.iterdir()) == []
    told = storage_of(manage)
    assert told["state"] == "problem"
    assert "is its volume mounted?" in told["message"]
    assert list(archive.iterdir()) == []
    archive.rmdir()
    (tmp_path / "unmounted").rename(archive)
    worked(Run.objects.latest("started_at"))
    assert Message.objects.count() == 3
    assert manage.here("verify_archive").code == 0
    assert storage_of(manage)["state"] in ("ok", "warning")


def test_a_deletion_waits_for_the_volume(
    source: IngestionSource, archive: Path, tmp_path: Path
) -> None:
    from ingestion.services.sources import deletion

    archive.rename(tmp_path / "unmounted")
    verbs.delete(source, actor=ACTOR)
    with pytest.raises(WrongArchive):
        deletion.delete_source(source.pk)
    (tmp_path / "unmounted").rename(archive)
    assert deletion.delete_source(source.pk)
    assert not list(archive.rglob("*.pack"))


def test_another_installations_volume_is_refused(source: IngestionSource, archive: Path) -> None:
    other = uuid.uuid4()
    (archive / ".installation").write_text(f"{other}\n")
    with pytest.raises(WrongArchive, match=f"another installation.*{other}"):
        storage.require()


def test_an_installation_of_before_gets_its_mark(source: IngestionSource, archive: Path) -> None:
    """It has packs and no mark, and the volume may still be away at the first start."""
    Installation.objects.all().delete()
    (archive / ".installation").unlink()
    moved = archive.rename(archive.with_name("elsewhere"))
    with pytest.raises(WrongArchive, match=r"none of this installation.s packs"):
        storage.require()
    moved.rename(archive)
    storage.require()
    assert (archive / ".installation").read_text().strip() == str(Installation.objects.get())


def test_a_lost_database_takes_its_archive_over(source: IngestionSource, archive: Path) -> None:
    mark = (archive / ".installation").read_text()
    for model in (Placement, Message, Pack, IngestionSource, Installation):
        model.objects.all().delete()
    with pytest.raises(WrongArchive, match=r"take it over with manage\.py rebuild"):
        storage.require()
    storage.take_over()
    storage.require()
    assert (archive / ".installation").read_text() == mark


def test_a_new_installation_may_take_an_empty_directory(archive: Path, db: None) -> None:
    archive.mkdir()
    (archive / ".installation").write_text(f"{uuid.uuid4()}\n")  # somebody's, without a pack
    storage.require()
    storage.require()
    shutil.rmtree(archive)
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
    source: IngestionSource, archive: Path, manage: CommandLine
) -> None:
    for path in archive.rglob("*.pack"):
        path.unlink()
    told = storage_of(manage)
    assert told["state"] == "problem"
    assert "does not hold the pack" in told["message"]


def test_many_workers_may_be_the_first_at_once(archive: Path, db: None) -> None:
    """Each writes as soon as it may: what another wrote meanwhile is of this installation."""
    start = threading.Barrier(8)
    said: list[str] = []

    def work() -> None:
        try:
            start.wait(20)
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
    assert [path.name for path in archive.iterdir() if path.is_file()] == [".installation"]
