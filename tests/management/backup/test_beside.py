"""A backup, or a move, beside all that changes the archive: mail that comes, packs that are merged,
sources that are deleted."""

import contextlib
import datetime as dt
import itertools
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from ingestion.errors import NotAllowedNow, WrongArchive
from ingestion.models import INDEX_VERSION, IngestionSource, Message, Pack
from ingestion.packs.base import PackStore
from ingestion.packs.directory import DirectoryStore
from ingestion.packs.store import store
from ingestion.services.archive import compaction, housekeeping, refetch, storage, verify
from ingestion.services.operations import moving
from ingestion.services.operations.backup import making, restoring
from ingestion.services.operations.backup.place import Place
from ingestion.services.sources import deletion, verbs
from tests.management.backup.world import (
    Elsewhere,
    More,
    beside,
    file_of,
    mail,
    make,
    names,
    packs,
    problems_of,
    restore,
)
from tests.servers import imap_source
from tests.servers.dovecot import Dovecot
from tests.servers.elsewhere import another_machine
from tests.servers.imap_source import ACTOR
from tests.servers.mortal import MortalProcess
from tests.servers.stack import wait_for

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _merged_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "MIN_PACKS", 2)
    monkeypatch.setattr(compaction, "MIN_AGE", dt.timedelta())


@pytest.fixture
def some(source: IngestionSource, more: More) -> list[str]:
    """There are three small packs, to be merged; the names of all mail."""
    more(source, "three")
    more(source, "four")
    assert Pack.objects.count() == 3
    return ["four", "one", "three", "two"]


def merge() -> None:
    Pack.objects.update(index_version=INDEX_VERSION)
    compaction.work()


def problems() -> list[verify.Problem]:
    found: list[verify.Problem] = []
    verify.verify_archive(on_problem=found.append)
    return found


# -- merging that comes to a backup, or to a move, and these that come to merging ------------------


def test_packs_that_are_merged_while_they_are_copied_are_in_the_backup_as_the_new_one(
    some: list[str], place: Place, elsewhere: Elsewhere
) -> None:
    def work(done: making.Making) -> None:
        if done.packs == 1 and Pack.objects.count() == 3:
            beside(merge)

    done = making.make(place, keep=7, actor=ACTOR, on_progress=work)
    assert (Pack.objects.count(), done.lost, done.differing) == (1, (), [])
    assert packs(place.packs) == packs(store()), "what was merged is not kept beside it"
    elsewhere()
    assert restore(place).missing == []
    assert names() == some
    assert problems() == []


def test_a_backup_waits_for_the_merging_that_is_under_way(
    some: list[str], place: Place, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    with meanwhile(
        lambda: making.make(place, keep=7, actor=ACTOR, on_progress=lambda m: told.append(m.stage)),
        until=lambda: sum(not pack.partial for pack in place.packs.packs()) >= 3,
        monkeypatch=monkeypatch,
    ):
        merge()
        assert "Dumping the database" not in told
    assert Pack.objects.count() == 1
    assert packs(place.packs) == packs(store())
    elsewhere()
    assert restore(place).missing == []
    assert names() == some
    assert problems() == []


@pytest.mark.parametrize("how", ["unmounted", "moved"])
def test_of_an_archive_that_is_not_there_any_more_nothing_is_told_to_be_lost(
    source: IngestionSource, place: Place, more: More, archive_dir: Path, tmp_path: Path, how: str
) -> None:
    """What the dump names, and nobody copied yet, is not gone: it is elsewhere."""
    there = tmp_path / "there"

    def work(done: making.Making) -> None:
        if done.stage == "Dumping the database" and not there.exists():
            beside(lambda: more(source, "three"))
            if how == "unmounted":
                archive_dir.rename(there)
            else:
                beside(lambda: moving.move(store(), DirectoryStore(there), actor=ACTOR))
                for path in archive_dir.rglob("*.pack"):
                    path.unlink()  # somebody trusts the new one

    with pytest.raises(WrongArchive):
        making.make(place, keep=7, actor=ACTOR, on_progress=work)
    assert place.manifests() == []


def test_packs_that_are_merged_while_the_archive_moves_are_there_as_the_new_one(
    some: list[str], settings: Any, tmp_path: Path
) -> None:
    there = DirectoryStore(tmp_path / "there")

    def work(moved: moving.Moved) -> None:
        if moved.packs == 1 and Pack.objects.count() == 3:
            beside(merge)

    moving.move(store(), there, actor=ACTOR, on_progress=work)
    assert_all_is(there, some, settings)


def test_a_move_waits_for_the_merging_that_is_under_way(
    some: list[str], settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The merging asked whose the archive is before the move said that it is nobody's any more."""
    there, here = DirectoryStore(tmp_path / "there"), store()
    with meanwhile(
        lambda: moving.move(here, there, actor=ACTOR),
        until=lambda: (here.mark() or "").startswith("moved to"),
        monkeypatch=monkeypatch,
    ):
        merge()
        assert there.mark() is None
    assert Pack.objects.count() == 3, "merging sees that the archive is being moved"
    use(there, settings)
    merge()
    assert_all_is(there, some, settings)


def test_who_merges_and_lost_the_claim_on_it_has_no_row_name_what_did_not_move(
    some: list[str], settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody ended its sessions that idle in a transaction: nobody waits for it any more."""
    there, here = DirectoryStore(tmp_path / "there"), store()

    def move() -> None:
        with connection.cursor() as cursor:
            cursor.execute(END_CLAIMS)
        moving.move(here, there, actor=ACTOR)

    with meanwhile(move, until=lambda: there.mark() is not None, monkeypatch=monkeypatch):
        merge()
    assert Pack.objects.count() == 3
    use(there, settings)
    assert names() == some
    merge()
    assert_all_is(there, some, settings)


def test_what_is_fetched_again_while_the_archive_moves_is_told_not_to_be_there(
    source: IngestionSource, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the move comes between the last look at the archive's mark and the new pack."""
    there, here = DirectoryStore(tmp_path / "there"), store()
    lost = Pack.objects.get()
    here.delete(file_of(lost))
    with here.writer(source.pk) as one:
        writer, commit = type(one), type(one).commit

    def move_first(self: Any) -> int:
        beside(lambda: moving.move(here, there, actor=ACTOR))
        return commit(self)

    with monkeypatch.context() as late, pytest.raises(WrongArchive, match="was moved"):
        late.setattr(writer, "commit", move_first)
        refetch.refetch(source, [lost.pk], actor=ACTOR, on_left=pytest.fail)
    use(there, settings)
    assert refetch.refetch(source, [lost.pk], actor=ACTOR, on_left=pytest.fail).fetched == 2
    assert names() == ["one", "two"]


def test_mail_that_comes_while_the_archive_moves_goes_along_whatever_the_clocks_say(
    source: IngestionSource, more: More, settings: Any, tmp_path: Path
) -> None:
    """They are set back by a day meanwhile: the machine's, which files go by, and the database's."""
    there, [old] = DirectoryStore(tmp_path / "there"), packs(store())

    def come(moved: moving.Moved) -> None:
        if Pack.objects.count() == 1:
            beside(lambda: more(source, "three"))
            new = Pack.objects.exclude(pk=old)
            new.update(created_at=timezone.now() - dt.timedelta(days=1))
            os.utime(path_of(new.get().pk), (time.time() - 86_400,) * 2)

    done = moving.move(store(), there, actor=ACTOR, on_progress=come)
    assert (done.packs, done.copied) == (2, 2)
    use(there, settings)
    assert names() == ["one", "three", "two"]
    assert problems() == []


def test_a_pack_that_a_row_names_and_no_listing_tells_of_keeps_the_move_from_its_end(
    source: IngestionSource, more: More, settings: Any, tmp_path: Path
) -> None:
    """As a directory over a network may be: what another machine wrote is seen later."""
    there, [old], unseen = DirectoryStore(tmp_path / "there"), packs(store()), tmp_path / "unseen"
    seen: list[Path] = []

    def come(moved: moving.Moved) -> None:
        if not seen:
            beside(lambda: more(source, "three"))
            new = Pack.objects.exclude(pk=old)
            new.update(created_at=timezone.now() - dt.timedelta(days=1))
            seen.append(path_of(new.get().pk))
            seen[0].rename(unseen)

    with pytest.raises(NotAllowedNow, match=r"is not in .*Run this again"):
        moving.move(store(), there, actor=ACTOR, on_progress=come)
    assert there.mark() is None
    assert moving.move(store(), there, actor=ACTOR).missing == 1, "begun again it still tells of it"
    unseen.rename(seen[0])
    moving.move(store(), there, actor=ACTOR)
    use(there, settings)
    assert names() == ["one", "three", "two"]


def path_of(pack_id: uuid.UUID) -> Path:
    return next(Path(store().name).rglob(f"{pack_id}.pack"))


#: Of whoever has a claim on work (`engine.claims`).
END_CLAIMS = """SELECT pg_terminate_backend(pid) FROM pg_locks
                 WHERE locktype = 'advisory' AND classid = hashtext('due work')::oid"""


def use(there: PackStore, settings: Any) -> None:
    settings.ARCHIVE_URL = f"file://{there.name}"
    storage.require()


def assert_all_is(there: PackStore, some: list[str], settings: Any) -> None:
    assert Pack.objects.count() == 1
    use(there, settings)
    assert names() == some
    assert {problem.kind for problem in problems()} <= {"orphan_pack"}  # copied before
    housekeeping.collect_orphans(older_than=dt.timedelta(seconds=-5))
    assert problems() == []


@contextlib.contextmanager
def meanwhile(
    act: Callable[[], object], *, until: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Have merging pause where its new pack is written, and no row names it yet, for another to
    begin and come so far; wait for that one's end."""
    read_back, errors = compaction._Copying.read_back, []

    def run() -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - told in the test's thread
            errors.append(error)
        finally:
            connection.close()

    other = threading.Thread(target=run)

    def pause(self: Any) -> None:
        read_back(self)
        other.start()
        wait_for(lambda: errors or until())

    with monkeypatch.context() as paused:
        paused.setattr(compaction._Copying, "read_back", pause)
        yield
        other.join(240)
    assert not other.is_alive()
    assert errors == []


# -- everything at once ----------------------------------------------------------------------------


def test_beside_processes_that_import_sync_merge_and_delete_each_backup_is_whole(
    source: IngestionSource, place: Place, more: More, dovecot: Dovecot, settings: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Each message that a dump names is there, byte for byte; nothing is in its way."""
    with contextlib.ExitStack() as all_of_them:
        for work in at_work(source, more, dovecot):
            process = MortalProcess(work, at_step=None, directory=tmp_path)
            all_of_them.enter_context(process)
        made = []
        for _ in range(2):
            count = Message.objects.filter(mailbox__source=source).count()
            wait_for(lambda n=count: Message.objects.filter(mailbox__source=source).count() > n + 1)  # type: ignore[misc] # a lambda's default
            done = make(place)
            assert done.manifest
            assert (done.lost, done.differing) == ((), [])
            made.append(done.manifest.name)
    assert problems_of(place) == []
    for name in made:
        with another_machine(settings, tmp_path):
            assert restoring.restore(place, name, actor=ACTOR).missing == []
            storage.require()
            read_all()
            # Its own mail alone may be in a pack whose transaction had not come yet.
            assert all(one.kind == "orphan_pack" and one.messages for one in problems())
            housekeeping.collect_orphans(older_than=dt.timedelta(seconds=-5))


def at_work(source: IngestionSource, more: More, dovecot: Dovecot) -> list[Callable[[], None]]:
    """What goes on without end, each in a process of its own."""
    doomed = [dovecot.account(mail("doomed"), mail("too")) for _ in range(2)]

    def mail_comes() -> None:
        while True:
            more(source, f"mail {uuid.uuid4().hex}")

    def small_packs_are_merged() -> None:
        while True:
            merge()

    def sources_come_and_go() -> None:
        for account in itertools.cycle(doomed):
            one = imap_source.create(account, name=uuid.uuid4().hex)
            imap_source.imported(one)
            verbs.delete(one, actor=ACTOR)
            deletion.delete_source(one.pk)

    return [mail_comes, small_packs_are_merged, sources_come_and_go]


def read_all() -> None:
    """Read each message that a row knows of, which must be what was sent by its name."""
    for message in Message.objects.filter(mailbox__source__deleted_at=None):
        body = imap_source.read(message)
        assert body == mail(body.split(b"\r\n")[0].removeprefix(b"Subject: ").decode())
