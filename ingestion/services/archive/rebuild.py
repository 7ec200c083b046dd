"""Makes database rows again from packs alone: after a lost database, or one older than the archive.

Adds what is missing and changes nothing that is there, so it can be killed and run again; but a row
whose pack is not there names one that has the same bytes: the database may be older than the
merging of packs (`archive.compaction`). A message comes back where and when it was first archived;
the folder's cursor is forgotten, so that the next sync lists the folder anew and finds labels,
removals and further copies. A copy in another folder is downloaded again where no stable id tells
what it is; no bytes are stored again.
What the records of a pack mean is `archive.records`.
"""

import dataclasses
import datetime as dt
import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Count, Exists, F, OuterRef, Sum
from django.db.models.functions import Greatest
from django.utils import timezone

from connectors import registry
from ingestion.errors import Corrupt, InvalidInput, LostRace, NotAllowedNow
from ingestion.models import Folder, IngestionSource, Mailbox, Message, Pack, Placement
from ingestion.packs.store import Entry, Extent, PackFile, PackStore, store
from ingestion.services.archive import compaction, orphans, storage
from ingestion.services.archive.records import Record
from ingestion.services.audit import Actor, audit
from ingestion.services.engine import counters
from ingestion.services.engine import statements as sql
from ingestion.services.sources.status import move
from ingestion.services.transactions import in_transaction
from ingestion.states import SourceStatus

#: One transaction holds at most this many messages: what a kill repeats.
_BATCH_RECORDS = 500
_MAX_NAME_CHARS = 200
#: By less, of the archive and of this machine.
_CLOCKS_DIFFER = dt.timedelta(hours=1)


@dataclasses.dataclass(frozen=True, slots=True)
class Damage:
    """A pack, or one message of it, that could not be read and so was not taken in."""

    pack_id: uuid.UUID
    text: str


@dataclasses.dataclass(slots=True)
class Rebuilt:
    """What was looked at and what was added."""

    packs: int = 0
    messages: int = 0
    messages_added: int = 0
    messages_moved: int = 0
    placements_added: int = 0
    damaged: int = 0


def rebuild(
    source: IngestionSource,
    *,
    actor: Actor,
    on_damage: Callable[[Damage], None],
    on_progress: Callable[[Rebuilt], None] = lambda _: None,
) -> Rebuilt:
    """Add the rows that the source's packs tell of and the database lacks. Idempotent.

    Opens its own transactions, one per batch. Raises NotAllowedNow while a worker is at work on
    the source: a pack that it is about to commit must not be taken from under it. Raises LostRace
    where the source is deleted meanwhile, ArchiveUnavailable where the archive is away, and OSError
    where this user may not read it, or this machine is in trouble.
    """
    started = timezone.now()
    if Mailbox.objects.filter(source=source, lease_expires_at__gt=started).exists():
        raise NotAllowedNow(
            f"A worker is at work on {source.name}. Pause the source, wait half a minute, "
            "and start this again."
        )
    storage.take_over()
    job = _Rebuild(source, on_damage)
    with compaction.held_off(source.pk):
        for pack in job.archive.packs(source.pk):
            # What a worker writes meanwhile is its own to commit. A time that is far ahead is of a
            # clock that was wrong.
            is_new = started < pack.modified_at < timezone.now() + _CLOCKS_DIFFER
            if not pack.partial and not is_new:
                job.take_in(pack)
                on_progress(job.result)
    _recount(source)
    with transaction.atomic():
        _hold(source)
        audit(actor, "source.rebuild", source, {"messages_added": job.result.messages_added})
    return job.result


def recover(
    source_id: uuid.UUID, *, owner: User, name: str, provider: str, actor: Actor
) -> IngestionSource:
    """Make a source, with the id that its packs carry, of an archive whose database is lost.

    It is in error until somebody gives it its configuration. Raises NotAllowedNow where the
    source exists or has no packs, InvalidInput for a name or provider that can't be. Opens its
    own transaction.
    """
    storage.take_over()
    if next(store().packs(source_id), None) is None:
        raise NotAllowedNow(f"The archive holds no pack of a source {source_id}.")
    if not 1 <= len(name.strip()) <= _MAX_NAME_CHARS:
        raise InvalidInput({"name": [f"Must have 1 to {_MAX_NAME_CHARS} characters."]})
    if provider not in registry.PROVIDERS:
        known = ", ".join(registry.PROVIDERS)
        raise InvalidInput({"provider": [f"Unknown provider. Known providers: {known}."]})
    with transaction.atomic():
        given = {"owner": owner, "name": name, "provider": provider}
        source, is_new = IngestionSource.objects.get_or_create(pk=source_id, defaults=given)
        if not is_new:
            raise NotAllowedNow(f"The source {source_id} exists: rebuild it, without --recover.")
        reason = "Recovered from the archive. Give it its providerConfig to follow it again."
        move(source, SourceStatus.ERROR, reason=reason, actor=actor)
        audit(actor, "source.recover", source, {"name": name, "provider": provider})
    source.refresh_from_db()
    return source


def unknown_sources() -> list[uuid.UUID]:
    """Return the ids of sources that have packs and that the database never heard of."""
    return [
        pk
        for pk in store().sources()
        if not IngestionSource.objects.filter(pk=pk).exists()
        and not orphans.was_deleted(pk)
        and next(store().packs(pk), None) is not None
    ]


class _Archived(NamedTuple):
    """A message that has a row: where that says it lies, and whether it is placed anywhere."""

    pk: uuid.UUID
    pack_id: uuid.UUID
    placed: bool


class _Rebuild:
    """The rebuilding of one source."""

    def __init__(self, source: IngestionSource, on_damage: Callable[[Damage], None]) -> None:
        self.source, self.on_damage = source, on_damage
        self.archive: PackStore = store().fresh()
        self.result = Rebuilt()
        self._holds = orphans.held(self.archive, source.pk)

    def take_in(self, pack: PackFile) -> None:
        damaged = self.result.damaged

        def on_damage(error: Corrupt) -> None:
            self._report(pack, str(error))

        try:
            entries = self.archive.scan(self.source.pk, pack.pack_id, on_damage=on_damage)
            for batch in _batches(entries):
                self._take_in_batch(pack, batch)
        except Corrupt as error:
            self._report(pack, str(error))
        if self.result.damaged == damaged:
            # All of it has rows now, some perhaps with another pack: none is missing in this one.
            count = Message.objects.filter(pack=pack.pack_id).count()
            Pack.objects.filter(pk=pack.pack_id).update(message_count=count)
        self.result.packs += 1

    def _take_in_batch(self, pack: PackFile, batch: list[Entry]) -> None:
        by_mailbox: dict[str, list[Record]] = {}
        for entry in batch:
            try:
                record = Record.of(entry)
            except ValueError as error:
                self._report(pack, f"pack {pack.pack_id}: {error}. It was left out.")
                continue
            by_mailbox.setdefault(record.header.origin.mailbox, []).append(record)
        self.result.messages += len(batch)
        for remote_id, records in by_mailbox.items():
            archived = self._archived(remote_id, records)
            new = [self._read(pack, r) for r in records if r.sha256 not in archived]
            unplaced = [
                r for r in records if r.sha256 in archived and not archived[r.sha256].placed
            ]
            readable = [record for record in new if record is not None]
            if readable or unplaced:
                messages, placements = self._add(pack, remote_id, readable, unplaced)
                self.result.messages_added += messages
                self.result.placements_added += placements
            self._move(pack, records, archived)

    def _archived(self, remote_id: str, records: Iterable[Record]) -> dict[bytes, "_Archived"]:
        """Return the hashes that have a message row, and what of that is of interest."""
        rows = (
            Message.objects.filter(
                mailbox__source=self.source,
                mailbox__remote_id=remote_id,
                sha256__in=[record.sha256 for record in records],
            )
            .annotate(placed=Exists(Placement.objects.filter(message=OuterRef("pk"))))
            .values_list("sha256", "pk", "pack_id", "placed")
        )
        return {bytes(sha256): _Archived(pk, pack, placed) for sha256, pk, pack, placed in rows}

    def _read(self, pack: PackFile, record: Record) -> Record | None:
        """Return the record with its headers, having read and checked its bytes."""
        try:
            return record.read(self.archive, self.source.pk, pack.pack_id)
        except Corrupt as error:
            self._report(pack, str(error))
            return None

    def _report(self, pack: PackFile, text: str) -> None:
        _hold(self.source)  # else it was removed, and nothing is wrong with it
        self.result.damaged += 1
        self.on_damage(Damage(pack.pack_id, text))

    @in_transaction
    def _add(
        self, pack: PackFile, remote_id: str, new: list[Record], unplaced: list[Record]
    ) -> tuple[int, int]:
        """Return how many messages and placements were added."""
        _hold(self.source)
        everything, count = [*new, *unplaced], 0
        mailbox = self._mailbox(remote_id, everything[0].header.origin.address)
        if new:
            self._pack(pack)
            # What a capture archived since: from here on the mailbox is this transaction's.
            archived = sql.known_hashes(mailbox.pk, {record.sha256 for record in new})
            added = {r.sha256: r for r in new if r.sha256 not in archived}
            rows = [*zip(sql.new_message_ids(len(added)), added.values(), strict=True)]
            sql.insert_messages(r.message(pk, mailbox, pack.pack_id).encode() for pk, r in rows)
            sql.date_messages([(pk, r.archived_at) for pk, r in rows if r.archived_at])
            self._count(pack)
            count = len(rows)
        ids = sql.known_hashes(mailbox.pk, {record.sha256 for record in everything})
        folders = self._folders(mailbox, everything)
        places = [
            record.placement(mailbox, folders[record.header.origin.folder], ids)
            for record in everything
        ]
        Placement.objects.bulk_create(places, ignore_conflicts=True)
        return count, len(places)

    def _move(
        self, pack: PackFile, records: Iterable[Record], archived: Mapping[bytes, "_Archived"]
    ) -> None:
        """Have rows whose pack is not there name this one, which has their bytes."""
        moved: dict[uuid.UUID, Extent] = {}
        left: set[uuid.UUID] = set()
        for record in records:
            row = archived.get(record.sha256)
            if row is None or row.pack_id == pack.pack_id or self._holds(row.pack_id):
                continue
            if self._read(pack, record) is not None:
                moved[row.pk] = record.extent
                left.add(row.pack_id)
        if moved:
            self._lead_here(pack, moved, left)
            self.result.messages_moved += len(moved)

    @in_transaction
    def _lead_here(
        self, pack: PackFile, moved: Mapping[uuid.UUID, Extent], left: set[uuid.UUID]
    ) -> None:
        _hold(self.source)
        self._pack(pack)
        sql.move_messages(pack.pack_id, moved)
        self._count(pack)
        empty = Pack.objects.filter(pk__in=left, message_count__lte=0)
        empty.filter(~Exists(Message.objects.filter(pack=OuterRef("pk")))).delete()

    def _pack(self, pack: PackFile) -> None:
        """Have a row for the pack, which is to have messages."""
        row = Pack(pk=pack.pack_id, source=self.source, size_bytes=pack.size_bytes, message_count=0)
        Pack.objects.bulk_create([row], ignore_conflicts=True)

    def _count(self, pack: PackFile) -> None:
        """Have the row of the pack tell of messages that came to it."""
        counted = Message.objects.filter(pack=pack.pack_id).count()
        Pack.objects.filter(pk=pack.pack_id).update(
            message_count=Greatest(F("message_count"), counted),
            index_version=0,  # for those that were added
            replaced_at=None,
        )

    def _mailbox(self, remote_id: str, address: str) -> Mailbox:
        """Find or make the mailbox, and fence off a worker that began since: it knows less now."""
        mailbox, _ = Mailbox.objects.get_or_create(
            source=self.source, remote_id=remote_id, defaults={"address": address or remote_id}
        )
        Mailbox.objects.filter(pk=mailbox.pk).update(
            lease_token=F("lease_token") + 1, lease_expires_at=None, handed_out_at=None
        )
        return mailbox

    def _folders(self, mailbox: Mailbox, records: Iterable[Record]) -> Mapping[str, Folder]:
        """Find or make the folders, without cursor: the next sync lists them from the beginning."""
        origins = {record.header.origin for record in records}
        paths = {origin.folder: origin.path for origin in origins}
        made = [Folder(mailbox=mailbox, remote_id=k, path=v or k) for k, v in paths.items()]
        Folder.objects.bulk_create(made, ignore_conflicts=True)
        found = Folder.objects.filter(mailbox=mailbox, remote_id__in=paths)
        found.update(cursor=None)
        return {folder.remote_id: folder for folder in found}


def _hold(source: IngestionSource) -> None:
    """Keep the source from being removed while a transaction lasts. Raises LostRace where it was
    deleted: its packs go, and no row of them may come back."""
    if not sql.hold_source(source.pk):
        raise LostRace("The source was deleted meanwhile.")


def _batches(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    while batch := list(itertools.islice(entries, _BATCH_RECORDS)):
        yield batch


def _recount(source: IngestionSource) -> None:
    """Set the counters, and what was archived on each day, to what the rows say.

    Under the row lock that a capture takes too, so that what it adds meanwhile is counted once.
    """
    for pk in Mailbox.objects.filter(source=source).values_list("pk", flat=True):
        with transaction.atomic():
            list(Mailbox.objects.select_for_update(no_key=True).filter(pk=pk))
            messages = Message.objects.filter(mailbox=pk)
            counted = messages.aggregate(count=Count("pk"), size=Sum("size_bytes"))
            Mailbox.objects.filter(pk=pk).update(
                message_count=counted["count"], archived_bytes=counted["size"] or 0
            )
    counters.count_anew(source.pk)
