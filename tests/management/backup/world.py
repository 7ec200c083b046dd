"""What the tests of backups do and read back."""

import dataclasses
import datetime as dt
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from django.db import connection

from ingestion.models import IngestionSource, Message, Pack, Placement
from ingestion.packs.base import PackFile, PackStore
from ingestion.packs.directory import DirectoryStore
from ingestion.packs.store import store
from ingestion.services.archive import reading
from ingestion.services.operations.backup import checking, making, restoring
from ingestion.services.operations.backup.place import Manifest, Place
from tests.servers.imap_source import ACTOR

Elsewhere = Callable[[], None]
More = Callable[[IngestionSource, str], None]


def mail(name: str) -> bytes:
    return f"Subject: {name}\r\nFrom: a@example.com\r\n\r\nbody of {name}\r\n".encode()


def make(place: Place, keep: int = 7) -> making.Making:
    return making.make(place, keep=keep, actor=ACTOR)


def restore(place: Place) -> restoring.Restoring:
    return restoring.restore(place, actor=ACTOR)


def packs(archive: PackStore) -> dict[uuid.UUID, bytes]:
    return {pack.pack_id: archive.sha256(pack.source_id, pack.pack_id) for pack in archive.packs()}


def names() -> list[str]:
    """Read back all that is archived and placed, and say which it is."""
    placed = Placement.objects.filter(removed_at=None).select_related("message__pack")
    bodies = [reading.opened(placement.message) for placement in placed]
    assert Message.objects.count() == len(bodies)
    found = [bytes(body) for body in bodies if isinstance(body, bytes)]
    said = [body.split(b"\r\n")[0].removeprefix(b"Subject: ").decode() for body in found]
    assert found == [mail(name) for name in said]
    return sorted(said)


def file_of(pack: Pack) -> PackFile:
    return next(file for file in store().packs(pack.source_id) if file.pack_id == pack.pk)


def one_pack(archive: PackStore) -> Path:
    assert isinstance(archive, DirectoryStore)
    return next(archive.root.rglob("*.pack"))


def beside(act: Callable[[], object]) -> None:
    """Do it in a thread, whose connection is its own, and wait for its end."""

    def run() -> None:
        try:
            act()
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def end_idle_sessions(*_: object) -> None:
    """As a server does that allows none to idle (idle_session_timeout), or that is restarted."""
    beside(_end_them)


def _end_them() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND state = 'idle'
                  AND application_name <> 'pg_restore'"""
        )


def damage(path: Path) -> None:
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))


def merge_into_another(old: uuid.UUID) -> None:
    """Have the only other pack take a pack's messages, as compaction does when all has moved."""
    Message.objects.filter(pack=old).update(pack=Pack.objects.exclude(pk=old).get())
    store().delete(file_of(Pack.objects.get(pk=old)))
    Pack.objects.filter(pk=old).delete()


def of_a_clock_ahead(place: Place, made: Manifest) -> Manifest:
    """Have a backup be as it is where the clock was decades ahead when it was made."""
    ahead = dataclasses.replace(
        made, name=f"2099{made.name[4:-3]}999", taken_at=made.taken_at + dt.timedelta(days=26_000)
    )
    for path in (place.root / "databases").glob(f"{made.name}.*"):
        path.rename(path.with_stem(ahead.name))
    (place.root / "databases" / f"{ahead.name}.json").write_bytes(ahead.dumps())
    return ahead


def broken_off_before_the_dump(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a backup whose packs are copied, and that then dies."""

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(making._Making, "take_database", die)
        with pytest.raises(KeyboardInterrupt):
            make(place)


def problems_of(place: Place) -> list[str]:
    return checking.check(place).problems


def files_of(place: Place) -> list[str]:
    return sorted(path.suffix for path in (place.root / "databases").iterdir())
