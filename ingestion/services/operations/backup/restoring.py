"""Puts a backup back: the database into an empty one, the packs into an empty archive.

    the dump is what was written, and this version knows its tables?
      -> the archive's mark says "being restored": nobody writes to it
      -> the database, in one transaction, then the migrations since
      -> all packs, each compared by its SHA-256
      -> the mark: from now on that is the archive

Killed anywhere, it goes on when it is run again. Packs that an earlier backup lists and this one
does not were deleted before it was made, and stay so; those that none lists came after the dump,
and hold mail that the database does not know: `archive.rebuild` takes it in.
"""

import dataclasses
import uuid
from collections.abc import Callable, Iterator
from typing import Literal

from django.core.management import call_command
from django.db import connection, transaction
from django.db.migrations.loader import MigrationLoader
from django.utils import timezone

from ingestion.errors import NotAllowedNow
from ingestion.models import Installation, Message
from ingestion.packs.store import PackFile, PackStore, store
from ingestion.services.archive import storage
from ingestion.services.audit import Actor, audit
from ingestion.services.operations import copying, credential_keys
from ingestion.services.operations.backup import dumps
from ingestion.services.operations.backup.place import Listed, Manifest, Place

_THEN = "Make room, or mend it, and run this again: it goes on."


@dataclasses.dataclass(frozen=True, slots=True)
class Missing:
    """A pack that could not be put back, and why. `messages`: of the database's, in it."""

    source_id: uuid.UUID
    pack_id: uuid.UUID
    why: str
    messages: int = 0


@dataclasses.dataclass(slots=True)
class Restoring:
    """How far it is, and in the end what came back. `newer`: packs that came after the dump."""

    total_bytes: int
    backup: str
    stage: str = "Reading the dump"
    packs: int = 0
    size_bytes: int = 0
    newer: int = 0
    missing: list[Missing] = dataclasses.field(default_factory=list)
    unreadable_credentials: int = 0


def restore(
    place: Place,
    name: str | None = None,
    *,
    only: Literal["database", "packs"] | None = None,
    actor: Actor,
    on_progress: Callable[[Restoring], None] = lambda _: None,
) -> Restoring:
    """Put the backup of this name back, or the newest, or one half of it. Of packs alone there need
    not be a complete backup.

    Raises NotAllowedNow where they would not come into something empty, or the dump can't be used,
    and ArchiveUnavailable.
    """
    archive = store().fresh()
    packs_alone = only == "packs" and name is None and not place.manifests()
    manifest = None if packs_alone else place.chosen(name)
    archive_id = manifest.archive_id if manifest else place.archive_id()
    done = Restoring(manifest.pack_bytes if manifest else 0, manifest.name if manifest else "")
    on_progress(done)
    with copying.told_in_words(archive.name, _THEN):
        dump = None
        if manifest and only != "packs":
            _require_known(manifest)
            dump = place.dump(manifest)
        if only != "database":
            _require_empty_archive(archive, archive_id)
        elif archive.mark() != archive_id:
            raise NotAllowedNow(
                f"{archive.name} is not the archive of this backup ({archive_id}), whose database"
                " alone would be of no use. Restore the packs as well."
            )
        there_already = dump and not _require_empty_database(archive, archive_id)
        if only != "database":
            archive.try_out()
            archive.write_mark(storage.being_restored(archive_id))
        if dump:
            done.stage = "Restoring the database"
            if not there_already:
                dumps.put_back(dump, lambda: on_progress(done))
            call_command("migrate", interactive=False, verbosity=0)
        if only != "database":
            done.stage = "Restoring packs"
            _put_packs_back(place, manifest, archive, done, on_progress)
            archive.write_mark(archive_id)
    if _has_tables():
        _finish(manifest, done, actor, database=bool(dump))
    return done


def _require_known(manifest: Manifest) -> None:
    known = {f"{app}.{name}" for app, name in MigrationLoader(None).disk_migrations}
    newer = sorted(set(manifest.migrations) - known)
    if newer:
        raise NotAllowedNow(
            f"{manifest.name} is of a newer version of this software, whose database has"
            f" {', '.join(newer[-3:])}. Install that version, and restore with it."
        )


def _require_empty_archive(archive: PackStore, archive_id: str) -> None:
    mark = archive.mark()
    if mark == storage.being_restored(archive_id):
        return
    if mark is not None or next(archive.packs(), None) is not None:
        raise NotAllowedNow(
            f"{archive.name} is not empty ({mark or 'it has packs'}). restore fills an empty"
            f" archive only: set {archive.setting} to another place. Where it is whole, and the"
            " database is lost, restore --database-only."
        )


def _require_empty_database(archive: PackStore, archive_id: str) -> bool:
    """Return whether it is empty; it may also be the one that a killed restore filled."""
    if not _has_tables():
        return True
    if (
        archive.mark() == storage.being_restored(archive_id)
        and "ingestion_installation" in connection.introspection.table_names()
        and Installation.objects.filter(archive_id=archive_id).exists()
    ):
        return False
    name = connection.settings_dict["NAME"]
    raise NotAllowedNow(
        f"The database {name} is not empty. restore fills an empty one only: make another and set"
        " DATABASE_URL to it, or move VAR_DIR/postgres away where it is the service's own. Starting"
        " the service makes its tables: run restore before that."
    )


def _has_tables() -> bool:
    return bool(connection.introspection.table_names())


def _put_packs_back(
    place: Place,
    manifest: Manifest | None,
    archive: PackStore,
    done: Restoring,
    on_progress: Callable[[Restoring], None],
) -> None:
    listed: dict[uuid.UUID, Listed] = {}
    deleted: set[uuid.UUID] = set()
    if manifest:
        listed = {one.pack_id: one for one in place.listed(manifest)}
        earlier = [m for m in place.manifests() if m.taken_at < manifest.taken_at]
        deleted = {one.pack_id for m in earlier for one in place.listed(m)} - listed.keys()

    def wanted() -> Iterator[PackFile]:
        for one in listed.values():
            yield PackFile(one.source_id, one.pack_id, one.size_bytes, timezone.now())
        for pack in place.packs.packs():
            if pack.pack_id not in listed and pack.pack_id not in deleted:
                yield pack

    known = {pack_id: one.sha256 for pack_id, one in listed.items()}
    for one in copying.copied(wanted(), place.packs, archive, known=known):
        pack = one.pack
        if one.outcome in ("copied", "there"):
            done.packs += 1
            done.size_bytes += pack.size_bytes
            done.newer += pack.pack_id not in listed
        else:
            done.missing.append(Missing(pack.source_id, pack.pack_id, _WHY[one.outcome]))
        on_progress(done)


_WHY = {
    "gone": "is not in the backup",
    "damaged": "is damaged in the backup, and was left out",
    "differs": "lies in the archive with other bytes, and was left as it is",
}


def _finish(manifest: Manifest | None, done: Restoring, actor: Actor, *, database: bool) -> None:
    """Tell what is missing of what the database knows."""
    done.missing = [
        dataclasses.replace(one, messages=Message.objects.filter(pack=one.pack_id).count())
        for one in done.missing
    ]
    for lost in manifest.lost if manifest else ():
        rows = Message.objects.filter(pack=uuid.UUID(lost))
        for source_id in rows.values_list("pack__source_id", flat=True)[:1]:
            why = "was missing already when the backup was made"
            done.missing.append(Missing(source_id, uuid.UUID(lost), why, rows.count()))
    if database:
        Installation.objects.filter(pk=1).update(archive_marked=True)
        done.unreadable_credentials = len(credential_keys.survey().unreadable)
    with transaction.atomic():
        audit(actor, "archive.restore", None, {"backup": done.backup})
