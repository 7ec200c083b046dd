"""Puts a backup back: the database into an empty one, the packs into an empty archive.

    the dump and the list are what was written, and this version knows its tables?
      -> the archive's mark says "being restored", and from what: nobody writes to it
      -> the database, in one transaction, then the migrations since, then its statistics
      -> all packs, each compared by its SHA-256
      -> what is missing is counted, and audited
      -> the mark: from now on that is the archive

Killed anywhere, it goes on when it is run again. Where the database alone is put back, or packs
alone, the other steps are the same. Packs that an earlier backup lists and this one does not were
deleted before it was made, and stay so; those that none lists came after the dump, and hold mail
that the database does not know: `archive.rebuild` takes it in.
"""

import contextlib
import dataclasses
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from django.core.management import call_command
from django.db import connection, transaction
from django.db.migrations.loader import MigrationLoader
from django.utils import timezone

from ingestion.errors import NotAllowedNow
from ingestion.models import AuditEvent, Installation, Message, Pack
from ingestion.packs.store import PackFile, store
from ingestion.services.archive import storage
from ingestion.services.audit import Actor, audit
from ingestion.services.engine import claims
from ingestion.services.operations import copying, credential_keys
from ingestion.services.operations.backup import dumps
from ingestion.services.operations.backup.place import Manifest, Place
from ingestion.services.operations.inventory import Inventory, Listed

_AT_WORK = """SELECT 1 FROM pg_stat_activity
 WHERE datname = current_database() AND application_name = 'pg_restore' LIMIT 1"""


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

    Raises NotAllowedNow where they would not come into something empty, the dump can't be used, or
    another is at it, and ArchiveUnavailable.
    """
    with _alone():
        packs_alone = only == "packs" and name is None and not place.manifests(on_damage=_ignore)
        manifest = None if packs_alone else place.chosen(name)
        job = _Restoring(place, manifest, on_progress, without_packs=only == "database")
        with copying.told_in_words(job.archive.name):
            if only == "database":
                job.require_our_archive()
            else:
                job.require_packs()
            if only != "packs":
                job.require_database()
            job.begin()
            if only != "packs":
                job.put_database_back()
            if only != "database":
                job.put_packs_back()
            if _has_tables():
                job.count_what_is_missing(actor, database=only != "packs")
            job.archive.write_mark(job.archive_id)
        return job.done


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    with claims.claimed("restore", claims.EVERYTHING) as mine:
        if not mine:
            raise NotAllowedNow(
                "Another restore into this database is under way. Wait until it has ended; run this"
                " again where that one was broken off."
            )
        yield


class _Restoring:
    """The restoring of one backup; `manifest` is None for packs alone."""

    def __init__(
        self,
        place: Place,
        manifest: Manifest | None,
        on_progress: Callable[[Restoring], None],
        *,
        without_packs: bool,
    ) -> None:
        self.archive = store().fresh()
        self.archive_id = manifest.archive_id if manifest else place.archive_id()
        self.done = Restoring(*((manifest.pack_bytes, manifest.name) if manifest else (0, "")))
        self._place, self._manifest, self._without_packs = place, manifest, without_packs
        self._tell: Callable[[], None] = lambda: on_progress(self.done)
        self._listed = Inventory()
        # Which backup it is, too: the rest of another one's packs would not fit its database. And
        # whether packs come: a restore of the database alone does not end one that put back half.
        what = (self.archive_id, self.done.backup, "without packs" if without_packs else "")
        self._under_way = storage.being_restored(" ".join(word for word in what if word))
        self._begun = self.archive.mark() == self._under_way
        self._dump: Path | None = None
        self._tell()

    # -- before anything is written ----------------------------------------------------------------

    def require_our_archive(self) -> None:
        self._refuse_what_another_began()
        if not self._begun and self.archive.mark() != self.archive_id:
            raise NotAllowedNow(
                f"{self.archive.name} is not the archive of this backup ({self.archive_id}), whose"
                " database alone would be of no use. Restore the packs as well."
            )

    def require_packs(self) -> None:
        """Have the list of packs, and an empty archive."""
        if self._manifest:
            self._listed.add(self._place.listed(self._manifest))
        mark, name = self.archive.mark() or "", self.archive.name
        if self._begun:
            return
        self._refuse_what_another_began()
        if mark or next(self.archive.packs(), None) is not None:
            what = (mark == self.archive_id and _restored_already()) or mark or "it has packs"
            raise NotAllowedNow(
                f"{name} is not empty ({what}). restore fills an empty archive only: set"
                f" {self.archive.setting} to another place. Where it is whole, and the database is"
                " lost, restore --database-only."
            )

    def _refuse_what_another_began(self) -> None:
        mark = self.archive.mark() or ""
        if not self._begun and storage.is_being_restored(mark):
            raise NotAllowedNow(
                f'{self.archive.name}: another restore was broken off there ("{mark}"). Run that'
                " one again, of the same backup (--backup); or have an empty archive and an empty"
                f" database. Where it was --database-only: write {self.archive_id} into"
                f" {self.archive.mark_name}, and have an empty database."
            )

    def require_database(self) -> None:
        """Have the dump, and an empty database; or the one that a killed restore filled."""
        assert self._manifest
        _require_known(self._manifest)
        dump = self._place.dump(self._manifest)
        _require_nobody_at_it()
        if not _has_tables():
            dumps.require_fits(dump, dumps.server())
            self._dump = dump
            return
        if self._begun and _is_database_of(self.archive_id):
            return
        name = connection.settings_dict["NAME"]
        raise NotAllowedNow(
            f"The database {name} is not empty. restore fills an empty one only: make another and"
            " set DATABASE_URL to it, or move VAR_DIR/postgres away where it is the service's own."
            " Starting the service makes its tables: run restore before that."
        )

    # -- writing -----------------------------------------------------------------------------------

    def begin(self) -> None:
        self.archive.try_out()
        self.archive.write_mark(self._under_way)

    def put_database_back(self) -> None:
        self.done.stage = "Restoring the database"
        if self._dump:
            dumps.put_back(self._dump, self._tell)
        call_command("migrate", interactive=False, verbosity=0)
        # A dump has none, and PostgreSQL plans badly without: a search would read whole tables.
        self.done.stage = "Collecting the database's statistics"
        self._tell()
        with connection.cursor() as cursor:
            cursor.execute("SET statement_timeout = 0")
            cursor.execute("ANALYZE")
            cursor.execute("RESET statement_timeout")

    def put_packs_back(self) -> None:
        self.done.stage = "Restoring packs"
        for one in copying.copied(
            self._wanted(), self._place.packs, self.archive, known=self._known
        ):
            pack = one.pack
            if one.outcome in ("copied", "there"):
                self.done.packs += 1
                self.done.size_bytes += pack.size_bytes
                self.done.newer += pack.pack_id not in self._listed
            else:
                why = _WHY[one.outcome]
                self.done.missing.append(Missing(pack.source_id, pack.pack_id, why))
            self._tell()

    def _known(self, pack_id: uuid.UUID) -> bytes | None:
        doubted = self._manifest.differing if self._manifest else ()
        return None if str(pack_id) in doubted else self._listed.sha256(pack_id)

    def _wanted(self) -> Iterator[PackFile]:
        for one in self._listed:
            yield PackFile(one.source_id, one.pack_id, one.size_bytes, timezone.now())
        before = Inventory(self._listed_before())
        for pack in self._place.packs.packs():
            if pack.pack_id not in self._listed and pack.pack_id not in before:
                yield pack

    def _listed_before(self) -> Iterator[Listed]:
        """Yield what earlier backups list. Where one can't be read, what was deleted since comes
        back, and is collected again."""
        for earlier in self._place.manifests(on_damage=_ignore) if self._manifest else ():
            if self._manifest and earlier.name < self._manifest.name:
                with contextlib.suppress(NotAllowedNow):
                    yield from self._place.listed(earlier)

    def count_what_is_missing(self, actor: Actor, *, database: bool) -> None:
        """Tell what is missing of what the database knows."""
        self.done.missing = [
            dataclasses.replace(one, messages=Message.objects.filter(pack=one.pack_id).count())
            for one in self.done.missing
        ]
        lost = self._manifest.lost if self._manifest else ()
        bad = self._manifest.differing if self._manifest and not self._without_packs else ()
        for pack in Pack.objects.filter(pk__in=[*lost, *bad]):
            if str(pack.pk) in lost:
                why = "was missing or damaged already when the backup was made"
            elif self.archive.holds(pack.source_id, pack.pk):
                why = "had other bytes in the backup than in the archive: verify_archive tells more"
            else:
                why = "could not be copied into the backup"
            count = Message.objects.filter(pack=pack).count()
            self.done.missing.append(Missing(pack.source_id, pack.pk, why, count))
        if database:
            self.done.unreadable_credentials = len(credential_keys.survey().unreadable)
        about = {"backup": self.done.backup, "packs": self.done.packs}
        with transaction.atomic():
            audit(actor, "archive.restore", None, about | {"missing": len(self.done.missing)})


_WHY = {
    "gone": "is not in the backup",
    "damaged": "is damaged in the backup, and was left out",
    "differs": "lies in the archive with other bytes, and was left as it is",
}


def _ignore(_: NotAllowedNow) -> None:
    """What can't be read of other backups is in nobody's way."""


def _require_known(manifest: Manifest) -> None:
    known = {f"{app}.{name}" for app, name in MigrationLoader(None).disk_migrations}
    newer = sorted(set(manifest.migrations) - known)
    if newer:
        raise NotAllowedNow(
            f"{manifest.name} is of a newer version of this software, whose database has"
            f" {', '.join(newer[-3:])}. Install that version, and restore with it."
        )


def _require_nobody_at_it() -> None:
    with connection.cursor() as cursor:
        cursor.execute(_AT_WORK)
        if cursor.fetchone():
            raise NotAllowedNow(
                "pg_restore is at work in this database, for another restore or for one that was"
                " killed. Wait until it has ended, and run this again."
            )


def _has_tables() -> bool:
    return bool(connection.introspection.table_names())


def _is_database_of(archive_id: str) -> bool:
    return (
        "ingestion_installation" in connection.introspection.table_names()
        and Installation.objects.filter(archive_id=archive_id).exists()
    )


def _restored_already() -> str:
    """Tell of the restore that ended here last, whose own words may be lost; "" of none."""
    if "ingestion_auditevent" not in connection.introspection.table_names():
        return ""
    last = AuditEvent.objects.filter(action="archive.restore").order_by("pk").last()
    if last is None:
        return ""
    missing = last.changes.get("missing", 0)
    what = "nothing was missing"
    if missing:
        what = f"packs were missing ({missing:,}): manage.py verify_archive names them"
    backup = last.changes["backup"] or "a backup without a database"
    return f"{backup} was restored on {last.at:%Y-%m-%d %H:%M} UTC, and {what}"
