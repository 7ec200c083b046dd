"""Makes a backup, while the service works.

    copy all packs of the archive that the backup does not have     long, the first time
      -> dump the database, and read which packs that very snapshot names
      -> copy those that came meanwhile; one is gone? -> dump again, which names it no more
      -> leave out what was copied, is gone, and the dump does not name: merged, or deleted
      -> the list of packs and the manifest: now there is a backup
      -> backups beyond `keep` go, and packs that no backup lists any more

Packs before the dump, so that what the dump names is copied within moments of it; a dump again
where one of them went in between (compaction, a deleted source), so that a backup never lacks what
the archive had. Killed anywhere, it goes on when it is run again, and what was there is whole.
"""

import contextlib
import dataclasses
import json
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from django.conf import settings
from django.db import transaction
from django.db.models import Sum
from django.utils import timezone

from ingestion.errors import Corrupt, NotAllowedNow
from ingestion.models import AuditEvent, Installation, Pack
from ingestion.packs.store import PackFile, PackStore, store
from ingestion.services.archive import compaction, storage
from ingestion.services.audit import Actor, audit
from ingestion.services.engine import claims
from ingestion.services.operations import copying
from ingestion.services.operations.backup import dumps
from ingestion.services.operations.backup.place import Manifest, Place, durable, hash_file
from ingestion.services.operations.inventory import Inventory, Listed

#: A pack goes within moments of the dump only by chance: not so often in a row.
_DUMPS = 5


@dataclasses.dataclass(slots=True)
class Making:
    """How far it is, and in the end what was made. `differing`: packs that have other bytes in the
    backup than in the archive; `lost`: packs that can be read in neither; `unreadable`: what is
    wrong with backups of before, so that nobody knows which packs they need, and none is removed.
    """

    stage: str = "Copying packs"
    total_bytes: int = 0
    packs: int = 0
    size_bytes: int = 0
    copied: int = 0
    dump_bytes: int = 0
    differing: list[uuid.UUID] = dataclasses.field(default_factory=list)
    unreadable: list[str] = dataclasses.field(default_factory=list)
    manifest: Manifest | None = None
    removed_backups: int = 0
    removed_packs: int = 0

    @property
    def lost(self) -> tuple[str, ...]:
        return self.manifest.lost if self.manifest else ()


def make(
    place: Place,
    *,
    keep: int,
    actor: Actor,
    on_progress: Callable[[Making], None] = lambda _: None,
) -> Making:
    """Make a backup. Raises ArchiveUnavailable (WrongArchive among it) and NotAllowedNow."""
    here = store().fresh()
    storage.require()
    _require_apart(here, place)
    _require_there(place)
    archive_id = str(Installation.objects.get(pk=1))
    with copying.told_in_words(str(place.root)), place.ours(archive_id):
        with transaction.atomic():
            audit(actor, "archive.backup.begin", None, {"to": place.packs.name})
        job = _Making(here, place, on_progress)
        if len(job.manifests()) > keep:  # else nothing could be done by it for want of room
            job.remove_old(keep)
        job.look_around()
        job.copy(here.packs())
        with claims.held_off(compaction.KIND, claims.EVERYTHING):  # what a dump names stays
            manifest = job.take_database(archive_id)
        place.keep(manifest)
        job.done.manifest = manifest
        what = {"to": place.packs.name, "backup": manifest.name, "packs": manifest.packs}
        wrong = {"missing": len(manifest.lost), "differing": len(manifest.differing)}
        with transaction.atomic():
            audit(actor, "archive.backup", None, what | wrong)
        job.remove_old(keep)
    return job.done


def write_keys(path: Path) -> None:
    """Write the keys into a file of their own, as VAR_DIR/secrets.json has them. Those that it had
    stay, behind: they alone read what is in backups of before a rotation."""
    held: list[str] = []
    with copying.told_in_words(str(path), "The keys were not written."):
        # Only what is not there, or is no such file, has none: of others nobody knows.
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            held = json.loads(path.read_bytes())["ENCRYPTION_KEYS"]
        every = [*settings.ENCRYPTION_KEYS, *held]
        keys = {"SECRET_KEY": settings.SECRET_KEY, "ENCRYPTION_KEYS": [*dict.fromkeys(every)]}
        with durable(path) as file:
            file.write(json.dumps(keys, indent=2).encode())


def _require_apart(here: PackStore, place: Place) -> None:
    root, archive = place.root.resolve(), settings.ARCHIVE_DIR
    inside = not settings.ARCHIVE_URL and (
        root == archive or archive in root.parents or root in archive.parents
    )
    if inside or place.packs.name == here.name:
        raise NotAllowedNow(
            f"A backup belongs elsewhere than the archive ({here.name}), best on another machine:"
            " what takes the one must not take the other."
        )


def _require_there(place: Place) -> None:
    """What is not mounted looks like an empty directory: a backup that begins there fills another
    disk, and lies beneath the mount point once that is back."""
    begun = ("archive.backup.begin", "archive.backup")  # versions before told of it by the latter
    before = AuditEvent.objects.filter(action__in=begun, changes__to=place.packs.name)
    if not (place.begun or place.packs.mark()) and before.exists():
        raise NotAllowedNow(
            f"{place.root} had backups and has none any more: is its volume mounted? Where it is to"
            " begin anew, name another directory."
        )


class _Making:
    def __init__(
        self, here: PackStore, place: Place, on_progress: Callable[[Making], None]
    ) -> None:
        self._here, self._place, self._tell = here, place, on_progress
        self.done = Making(total_bytes=Pack.objects.aggregate(size=Sum("size_bytes"))["size"] or 0)
        self._held, self._there, self._listed = Inventory(), Inventory(), Inventory()
        self._doubted: set[str] = set()

    def manifests(self) -> list[Manifest]:
        """Return the backups before. Of one that can't be read, neither what it lists is known."""
        return self._place.manifests(on_damage=self._note)

    def look_around(self) -> None:
        """Learn what the backup has."""
        self._there.add(
            Listed(pack.source_id, pack.pack_id, pack.size_bytes, b"")
            for pack in self._place.packs.packs()
            if not pack.partial
        )
        # What a backup lists was read back when it was copied. Of others nothing is known.
        newest = self.manifests()[:1]
        self._listed.add(self._all_listed(newest))
        self._doubted = {pack_id for manifest in newest for pack_id in manifest.differing}

    def copy(self, packs: Iterable[PackFile]) -> set[uuid.UUID]:
        """Have packs be in the backup; return those that nobody has any more, or can read."""
        gone: set[uuid.UUID] = set()
        for one in copying.copied(self._not_held(packs), self._here, self._place.packs):
            if one.outcome in ("copied", "there"):
                self.done.copied += one.outcome == "copied"
                self._hold(one.pack, one.sha256)
                if one.pack.pack_id in self.done.differing:
                    self.done.differing.remove(one.pack.pack_id)
                continue
            there = self._there.get(one.pack.pack_id)
            if one.outcome in ("gone", "damaged"):
                gone.add(one.pack.pack_id)
            else:
                self._differs(one.pack, is_copy=there is None)
            if there:  # perhaps the only good one
                self._hold_as_it_is(one.pack, there.size_bytes)
        return gone

    def _differs(self, pack: PackFile, *, is_copy: bool) -> None:
        """Tell of it, now and each time until it is mended. A copy made just now is a bad one."""
        if is_copy:
            self._place.packs.delete(pack)
        if pack.pack_id not in self.done.differing:
            self.done.differing.append(pack.pack_id)

    def take_database(self, archive_id: str) -> Manifest:
        """Dump the database, until the backup has all packs that the dump names."""
        for _ in range(_DUMPS):
            manifest, named = self._dump(archive_id)
            self._stage("Copying what came meanwhile")
            gone = self.copy(PackFile(*one[:3], manifest.taken_at) for one in named)
            storage.require()  # moved, or unmounted, meanwhile: what is not here is not gone
            gone = {pack_id for pack_id in gone if pack_id not in self._held}
            lost = {
                *Pack.objects.filter(pk__in=gone, source__deleted_at=None).values_list(
                    "pk", flat=True
                )
            }
            if gone == lost:
                self._let_go_of_what_is_gone(named)
                return self._listing(manifest, lost)
            self._place.partial_dump(manifest.name).unlink()
        raise NotAllowedNow(
            "Packs went faster than the database could be dumped. What was copied is kept: run"
            " this again when there is less to do."
        )

    def _dump(self, archive_id: str) -> tuple[Manifest, Inventory]:
        self._stage("Dumping the database")
        now = timezone.now()
        name = self._place.name_at(now)
        path = self._place.partial_dump(name)
        with dumps.snapshot() as snapshot:
            named = Inventory(Listed(*row, b"") for row in snapshot.packs())
            migrations, messages = snapshot.migrations(), snapshot.messages()
            snapshot.dump(path, self._tell_dumped)
        self._tell_dumped(path.stat().st_size)
        manifest = Manifest(
            name=name, taken_at=now, archive_id=archive_id, migrations=migrations,
            postgres=dumps.server(), dump_bytes=path.stat().st_size, dump_sha256=hash_file(path),
            packs=0, pack_bytes=0, packs_sha256="", messages=messages, lost=(), differing=(),
        )  # fmt: skip
        return manifest, named

    def _let_go_of_what_is_gone(self, named: Inventory) -> None:
        """Of packs that were merged or deleted since they were copied: their mail is in others, or
        in none on purpose, and a restore need not bring them back."""
        for one in self._held:
            if one.pack_id not in named and not self._here.holds(one.source_id, one.pack_id):
                self._held.remove(one.pack_id)

    def _listing(self, manifest: Manifest, lost: set[uuid.UUID]) -> Manifest:
        packs, pack_bytes = self._held.totals()
        return dataclasses.replace(
            manifest,
            packs=packs,
            pack_bytes=pack_bytes,
            packs_sha256=self._place.write_list(manifest.name, self._held),
            lost=tuple(sorted(map(str, lost))),
            differing=tuple(sorted(map(str, self.done.differing))),
        )

    def remove_old(self, keep: int) -> None:
        """Remove backups but for the newest, and then packs that none of those lists."""
        self._stage("Removing what no backup needs")
        manifests = self.manifests()
        for manifest in manifests[keep:]:
            self._place.remove(manifest)
            self.done.removed_backups += 1
        kept = Inventory(self._all_listed(manifests[:keep]))
        for pack in self._place.packs.packs():
            if pack.partial or (pack.pack_id not in kept and not self.done.unreadable):
                self._place.packs.delete(pack)
                self.done.removed_packs += not pack.partial

    def _all_listed(self, manifests: Iterable[Manifest]) -> Iterator[Listed]:
        for manifest in manifests:
            try:
                yield from self._place.listed(manifest)
            except NotAllowedNow as error:
                self._note(error)

    def _note(self, error: NotAllowedNow) -> None:
        if str(error) not in self.done.unreadable:
            self.done.unreadable.append(str(error))

    def _not_held(self, packs: Iterable[PackFile]) -> Iterable[PackFile]:
        """Yield those that must be copied or compared; hold those that were proven before."""
        for pack in packs:
            proven = str(pack.pack_id) not in self._doubted
            before = self._listed.get(pack.pack_id) if proven else None
            if pack.pack_id in self._held:
                continue
            there = self._there.get(pack.pack_id)
            if before and there and there.size_bytes == before.size_bytes == pack.size_bytes:
                self._hold(pack, before.sha256)
            else:
                yield pack

    def _hold(self, pack: PackFile, sha256: bytes) -> None:
        self._held.add([Listed(pack.source_id, pack.pack_id, pack.size_bytes, sha256)])
        self.done.packs += 1
        self.done.size_bytes += pack.size_bytes
        self._tell(self.done)

    def _hold_as_it_is(self, pack: PackFile, size_bytes: int) -> None:
        known = self._listed.sha256(pack.pack_id)
        with contextlib.suppress(Corrupt):  # one that can't be read is of no use: it goes
            sha256 = known or self._place.packs.sha256(pack.source_id, pack.pack_id)
            self._hold(dataclasses.replace(pack, size_bytes=size_bytes), sha256)

    def _stage(self, stage: str) -> None:
        self.done.stage = stage
        self._tell(self.done)

    def _tell_dumped(self, size_bytes: int) -> None:
        self.done.dump_bytes = size_bytes
        self._tell(self.done)
