"""move_archive: from a directory into a bucket and back, beside workers, broken off anywhere."""

import datetime as dt
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from ingestion.errors import ArchiveUnavailable, LeaseLost, NotAllowedNow, WrongArchive
from ingestion.models import IngestionSource, Installation, Mailbox, Message
from ingestion.packs.base import PackFile, PackStore
from ingestion.packs.directory import DirectoryStore
from ingestion.packs.store import at, store
from ingestion.services.archive import reading, storage
from ingestion.services.engine.lease import Lease
from ingestion.services.operations import moving
from ingestion_project.demo.object_store import ObjectStoreServer
from tests.servers import imap_source, people
from tests.servers.command_line import CommandLine
from tests.servers.dovecot import Account, Dovecot
from tests.servers.imap_source import ACTOR
from tests.services.test_deadlocks import crossing

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def owner(transactional_db: None) -> User:
    return people.superuser("root")


@pytest.fixture
def account(dovecot: Dovecot) -> Account:
    return dovecot.account(b"Subject: one\r\n\r\nfirst", b"Subject: two\r\n\r\nsecond")


@pytest.fixture
def source(account: Account, archive_dir: Path) -> IngestionSource:
    source = imap_source.create(account)
    imap_source.imported(source)
    return source


@pytest.fixture
def url(object_store: ObjectStoreServer, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(moving, "_REMEMBERED_SECONDS", 0.0)  # no other process is at work
    for name, value in object_store.env.items():
        monkeypatch.setenv(name, value)
    return object_store.url("archive", str(uuid.uuid4()))


def packs(archive: PackStore) -> dict[uuid.UUID, bytes]:
    return {pack.pack_id: archive.sha256(pack.source_id, pack.pack_id) for pack in archive.packs()}


def all_read() -> set[bytes]:
    bodies = (reading.opened(message) for message in Message.objects.all())
    return {bytes(body).partition(b"\r\n\r\n")[2] for body in bodies if isinstance(body, bytes)}


def use(settings: Any, place: str) -> None:
    settings.ARCHIVE_URL = place


def test_an_archive_moves_into_a_bucket_and_back_and_the_old_place_takes_no_mail(
    source: IngestionSource, manage: CommandLine, url: str, settings: Any, dovecot: Dovecot,
    account: Account, archive_dir: Path, tmp_path: Path,
) -> None:  # fmt: skip
    before = packs(store())
    moved = manage.here("move_archive", url, "--json")
    assert moved.code == 0, moved.stderr
    assert moved.json()["copied"] == len(before) == moved.json()["packs"]
    dovecot.append(account.name, "INBOX", b"Subject: three\r\n\r\nthird")
    imap_source.start(source, sync_only=True)
    assert "was moved" in imap_source.work(source).last_error
    assert Message.objects.count() == 2, "the old place takes no mail"
    use(settings, url)
    imap_source.finish(source)
    assert all_read() == {b"first", b"second", b"third"}
    assert packs(DirectoryStore(archive_dir)) == before

    back = tmp_path / "back"
    assert manage.here("move_archive", back.as_uri()).code == 0
    assert (store().fresh().mark() or "").startswith("moved to ")
    use(settings, back.as_uri())
    storage.require()
    assert len(packs(store())) == len(before) + 1
    assert all_read() == {b"first", b"second", b"third"}


@pytest.mark.parametrize("killed_at", ["copying", "waiting", "the end"])
def test_a_move_that_is_broken_off_goes_on(
    source: IngestionSource, url: str, killed_at: str, monkeypatch: pytest.MonkeyPatch,
    settings: Any,
) -> None:  # fmt: skip
    there, here = at(url), store()
    before = packs(here)
    steps = {"copying": "_copy_rest", "waiting": "_wait_for_writers", "the end": "audit"}
    with monkeypatch.context() as killed:

        def die(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        killed.setattr(moving, steps[killed_at], die)
        with pytest.raises(KeyboardInterrupt):
            moving.move(here, there, actor=ACTOR)
    assert there.fresh().mark() is None
    if killed_at == "copying":
        storage.require()
    else:
        with pytest.raises(WrongArchive, match=r"run manage\.py move_archive again"):
            storage.require()
    moved = moving.move(here, there, actor=ACTOR)
    assert moved.copied == (len(before) if killed_at == "copying" else 0)
    assert packs(there.fresh()) == before
    use(settings, url)
    storage.require()


def test_a_pack_that_differs_there_keeps_the_archive_where_it_is(
    source: IngestionSource, tmp_path: Path
) -> None:
    there = DirectoryStore(tmp_path / "there")
    pack = next(store().packs())
    with there.copier(pack.source_id, pack.pack_id) as copy:
        copy.file.write(b"something else")
        copy.commit()
    with pytest.raises(NotAllowedNow, match=f"pack {pack.pack_id} .* has other bytes"):
        moving.move(store(), there, actor=ACTOR)
    storage.require()
    assert there.mark() is None


def test_a_pack_that_can_not_be_read_keeps_the_archive_where_it_is(
    source: IngestionSource, manage: CommandLine, archive_dir: Path, tmp_path: Path
) -> None:
    [path] = archive_dir.rglob("*.pack")
    path.unlink()
    path.symlink_to("/proc/self/mem")  # an input/output error
    moved = manage.here("move_archive", (tmp_path / "there").as_uri())
    assert (moved.code, "can't be read" in moved.stderr, path.stem in moved.stderr) == (
        1,
        True,
        True,
    )
    storage.require()


def test_a_place_that_does_not_take_a_pack_is_told_with_what_to_do(
    source: IngestionSource, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / str(source.pk)).touch()  # where its directory would be
    with pytest.raises(ArchiveUnavailable, match=r"Make room, or mend it, and run this again"):
        moving.move(store(), DirectoryStore(there), actor=ACTOR)
    storage.require()


def test_a_volume_that_is_away_before_the_end_is_still_the_archive(
    source: IngestionSource, archive_dir: Path, tmp_path: Path
) -> None:
    """Else a part of the archive would be all of it, and the mark lie beneath the mount point."""
    there, away = DirectoryStore(tmp_path / "there"), tmp_path / "away"

    def unmount(_: moving.Moved) -> None:
        archive_dir.rename(away)

    with pytest.raises(WrongArchive, match="is its volume mounted"):
        moving.move(store(), there, actor=ACTOR, on_progress=unmount)
    assert (archive_dir.exists(), there.mark()) == (False, None)
    away.rename(archive_dir)
    storage.require()
    moving.move(store(), there, actor=ACTOR)
    assert there.mark() == str(Installation.objects.get())


def test_a_volume_that_is_away_once_nobody_writes_there_keeps_the_move_from_its_end(
    source: IngestionSource, archive_dir: Path, tmp_path: Path
) -> None:
    there, away = DirectoryStore(tmp_path / "there"), tmp_path / "away"

    def unmount(moved: moving.Moved) -> None:
        if moved.waiting:
            archive_dir.rename(away)

    with pytest.raises(WrongArchive, match="is its volume mounted"):
        moving.move(store(), there, actor=ACTOR, on_progress=unmount)
    assert there.mark() is None
    away.rename(archive_dir)
    moving.move(store(), there, actor=ACTOR)
    assert there.mark() == str(Installation.objects.get())


class SeenLater(DirectoryStore):
    """As over a network: what another machine wrote is there by its name, and not listed yet."""

    def _packs_of(self, source_id: uuid.UUID) -> Iterator[PackFile]:
        yield from ()


def test_a_pack_that_is_there_by_its_name_alone_is_not_left_behind_however_often_it_is_begun(
    source: IngestionSource, archive_dir: Path, tmp_path: Path
) -> None:
    there = DirectoryStore(tmp_path / "there")
    for _ in range(2):
        with pytest.raises(NotAllowedNow, match=r"is not in .*Run this again"):
            moving.move(SeenLater(archive_dir), there, actor=ACTOR)
        assert there.mark() is None
    assert moving.move(store(), there, actor=ACTOR).copied == 1


def test_packs_that_neither_place_has_are_told_at_the_end(
    source: IngestionSource, manage: CommandLine, archive_dir: Path, tmp_path: Path
) -> None:
    [path] = archive_dir.rglob("*.pack")
    path.rename(tmp_path / path.name)
    there = (tmp_path / "there").as_uri()
    moved = manage.here("move_archive", there)
    assert (moved.code, "In neither place: 1 pack that" in moved.stdout) == (3, True)
    path.parent.mkdir(exist_ok=True)
    (tmp_path / path.name).rename(path)
    again = manage.here("move_archive", there, "--json")
    assert (again.code, again.json()["copied"], again.json()["missing"]) == (0, 1, 0)
    path.unlink()  # it is there since
    last = manage.here("move_archive", there)
    assert (last.code, "In neither" in last.stdout) == (0, False)


def test_a_worker_that_holds_a_mailbox_is_waited_for(
    source: IngestionSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "_WAIT_SECONDS", 0.0)
    Mailbox.objects.update(lease_expires_at=timezone.now() + dt.timedelta(seconds=60))
    there = DirectoryStore(tmp_path / "there")
    with pytest.raises(NotAllowedNow, match="Workers are still at work"):
        moving.move(store(), there, actor=ACTOR)
    assert there.mark() is None

    def somebody_else_takes_it(_: float) -> None:
        Mailbox.objects.update(lease_token=F("lease_token") + 1)  # and is refused a pack

    monkeypatch.setattr(moving, "_WAIT_SECONDS", 30.0)
    monkeypatch.setattr(time, "sleep", somebody_else_takes_it)
    moving.move(store(), there, actor=ACTOR)
    assert there.mark() == str(Installation.objects.get())


def whose_lease_ended() -> Lease:
    """Return the lease of a worker that has not said a word for a minute."""
    mailbox = Mailbox.objects.get()
    Mailbox.objects.update(lease_expires_at=timezone.now() - dt.timedelta(seconds=60))
    return Lease(mailbox.pk, mailbox.lease_token, 0, timezone.now())


def test_a_worker_that_slept_through_the_move_commits_nothing(
    source: IngestionSource, tmp_path: Path
) -> None:
    suspended = whose_lease_ended()
    moving.move(store(), DirectoryStore(tmp_path / "there"), actor=ACTOR)
    with pytest.raises(LeaseLost), transaction.atomic():
        suspended.fence()


def test_a_worker_that_wakes_up_when_nobody_waits_for_it_any_more_is_waited_for(
    source: IngestionSource, tmp_path: Path
) -> None:
    """Its lease had ended, and is renewed before anybody could take it away."""
    suspended = whose_lease_ended()
    nobody_changes = "LOCK TABLE ingestion_mailbox IN SHARE MODE"
    renew = "UPDATE ingestion_mailbox SET lease_expires_at = now() + make_interval(secs => 2)"
    with crossing(nobody_changes, renew):
        moving.move(store(), DirectoryStore(tmp_path / "there"), actor=ACTOR)
    with pytest.raises(LeaseLost), transaction.atomic():
        suspended.fence()


def test_who_changes_mailboxes_meanwhile_does_not_break_a_move_off(
    source: IngestionSource, tmp_path: Path
) -> None:
    [first, second] = [Mailbox.objects.get(), Mailbox.objects.create(source=source, remote_id="2")]
    for number, mailbox in enumerate([first, second]):
        Mailbox.objects.filter(pk=mailbox.pk).update(
            attempts=number, lease_expires_at=timezone.now() - dt.timedelta(seconds=60)
        )
    there = DirectoryStore(tmp_path / "there")
    lock = "SELECT 1 FROM ingestion_mailbox WHERE attempts = {} FOR NO KEY UPDATE"
    with crossing(lock.format(1), lock.format(0)):
        moving.move(store(), there, actor=ACTOR)
    assert there.mark() == str(Installation.objects.get())


def test_nothing_is_moved_onto_itself_or_into_the_archive_of_another(
    source: IngestionSource, manage: CommandLine, archive_dir: Path, tmp_path: Path
) -> None:
    itself = manage.here("move_archive", archive_dir.as_uri())
    assert (itself.code, "already" in itself.stderr) == (1, True)
    other = DirectoryStore(tmp_path / "other")
    other.write_mark(str(uuid.uuid4()))
    refused = manage.here("move_archive", (tmp_path / "other").as_uri())
    assert (refused.code, "another installation" in refused.stderr) == (1, True)
    wrong = manage.here("move_archive", "s3://key:secret@bucket/")
    assert (wrong.code, "secret" in wrong.stderr) == (2, False)
    storage.require()
