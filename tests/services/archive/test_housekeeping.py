"""What crashes leave behind is collected, and nothing that came of it after all."""

import datetime as dt
import errno
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User

from ingestion.models import Message, Pack, Placement
from ingestion.packs import directory
from ingestion.packs.directory import DirectoryStore
from ingestion.packs.store import Entry, store
from ingestion.services.archive import housekeeping, reading
from ingestion.services.engine import lease
from tests.e2e.rows import a_folder, a_mailbox, a_source, archived

pytestmark = pytest.mark.django_db


def test_a_file_that_was_committed_since_it_was_listed_stays(tmp_path: Path) -> None:
    """A machine that slept makes a file under way look old; its worker goes on at the same time."""
    packs, source_id = DirectoryStore(tmp_path / "packs"), uuid.uuid4()
    with packs.writer(source_id) as writer:
        (listed,) = packs.packs(source_id)
        assert listed.partial
        writer.commit()
    packs.delete(listed)
    (kept,) = packs.packs(source_id)
    assert not kept.partial
    packs.delete(kept)
    assert list(packs.packs(source_id)) == []


def test_of_many_packs_only_those_without_a_row_go_a_few_at_a_time(
    owner: User, archive_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "_BATCH", 3)
    mailbox = a_mailbox(a_source(owner))
    for number in range(4):
        archived(a_folder(mailbox, f"Folder {number}"), b"Subject: %d\r\n\r\n" % number)
    source_id = mailbox.source_id
    with_rows = {pack.pack_id for pack in store().packs(source_id)}
    for _ in range(5):  # of nobody, and empty
        with store().writer(source_id) as writer:
            writer.commit()
    halves = [store().writer(source_id) for _ in range(2)]
    two_hours_ago = time.time() - 7_200
    for path in archive_dir.rglob("*"):
        os.utime(path, (two_hours_ago, two_hours_ago))
    with store().writer(source_id) as young:
        young.commit()
    lease.leaving.set()
    try:
        assert housekeeping.collect_orphans() == 0  # it is left to the next worker
    finally:
        lease.leaving.clear()
    assert housekeeping.collect_orphans() == 7
    left = {pack.pack_id for pack in store().packs(source_id)}
    assert left == {*with_rows, young.pack_id}
    assert housekeeping.collect_orphans(older_than=dt.timedelta()) == 1
    for half in halves:
        half.__exit__(None, None, None)


def test_what_another_user_left_behind_keeps_nothing_else_from_being_collected(
    owner: User, archive_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = a_source(owner)
    for _ in range(3):
        with store().writer(source.pk) as writer:
            writer.commit()
    anothers = next(store().packs(source.pk))
    opened = DirectoryStore._file

    def refused(*args: Any) -> Any:
        if args[2] == anothers.pack_id:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(*args)

    monkeypatch.setattr(DirectoryStore, "_file", refused)
    assert housekeeping.collect_orphans(older_than=dt.timedelta(seconds=-5)) == 2
    assert [pack.pack_id for pack in store().packs(source.pk)] == [anothers.pack_id]


def test_a_directory_of_another_user_keeps_no_other_source_from_being_collected(
    owner: User, archive_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with root's umask on a hardened machine."""
    sources = [a_source(owner), a_source(owner)]
    for source in sources:
        with store().writer(source.pk) as writer:
            writer.commit()
    listed = directory._names

    def refused(path: Path) -> Iterator[str]:
        if path.parent == archive_dir / str(sources[0].pk):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return listed(path)

    with monkeypatch.context() as as_anyone:  # as root, permissions keep nobody out
        as_anyone.setattr(directory, "_names", refused)
        assert housekeeping.collect_orphans(older_than=dt.timedelta(seconds=-5)) == 1
    assert [len(list(store().packs(source.pk))) for source in sources] == [1, 0]


def test_what_a_worker_that_slept_commits_meanwhile_stays(
    owner: User, archive_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pack is old, and has no row yet when that is asked first."""
    messages = archived(a_folder(a_mailbox(a_source(owner))), b"Subject: the only copy\r\n\r\n")
    packs = list(Pack.objects.all())
    for model in (Placement, Message, Pack):
        model.objects.all().delete()
    scanned = DirectoryStore.scan

    def after_the_commit(*args: Any, **kwargs: Any) -> Iterator[Entry]:
        monkeypatch.setattr(DirectoryStore, "scan", scanned)
        Pack.objects.bulk_create(packs)
        Message.objects.bulk_create(messages)
        yield from scanned(*args, **kwargs)

    monkeypatch.setattr(DirectoryStore, "scan", after_the_commit)
    assert housekeeping.collect_orphans(older_than=dt.timedelta(seconds=-5)) == 0
    assert reading.opened(Message.objects.get()) == b"Subject: the only copy\r\n\r\n"
