"""Merges small packs, of which each sync with new mail makes one, into larger ones.

    small packs of a source, indexed and old enough
      -> their messages are copied into a new pack, each checked against its SHA-256
      -> the new pack is durable, and each message is read back from it
      -> one transaction: the rows name the new pack, the old ones are replaced
      -> the files of the old ones go, then their rows

Killed between any two, mail is where the rows say. A new pack without its transaction is an orphan,
which housekeeping collects; an old one whose file is still there is removed the next time, before
anything else. So nothing takes more room than by one new pack.

What is damaged, or other than its rows say, is left as it is: it is evidence. Nothing of this is
ever the only copy while it is changed. One process of the service does it at a time.
"""

import contextlib
import dataclasses
import datetime as dt
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import structlog
from django.db import transaction
from django.db.models import Count, Exists, OuterRef, Q, QuerySet, Sum
from django.utils import timezone

from connectors.types import Body, SpooledBody
from ingestion.errors import Corrupt, LostRace
from ingestion.models import INDEX_VERSION, SMALL_PACK_BYTES, IngestionSource, Message, Pack
from ingestion.packs.store import Extent, PackFile, PackStore, PackWriter, store
from ingestion.services.archive import orphans, reading, storage
from ingestion.services.archive.records import Record
from ingestion.services.engine import claims, lease
from ingestion.services.engine import statements as sql
from ingestion.services.transactions import in_transaction

log = structlog.get_logger(__name__)

#: The kind of this work (`engine.claims`): of a source, and of all of them.
KIND = "compact"
#: For so long it goes on before others have their turn.
SLICE_SECONDS = 20.0

#: No more than the packs of an import hold: what is good for those is good for these.
MERGED_BYTES = 16_000_000
#: One transaction moves the rows of so many.
MERGED_MESSAGES = 10_000
#: So many are read and removed between two looks at the clock: in a bucket each takes some 0.1 s.
MERGED_PACKS = 200
#: What was merged until it is full is not small any more, and so is never copied again.
SMALL_MESSAGES = MERGED_MESSAGES // 4
#: What makes less than a full pack is merged once there are so many.
MIN_PACKS = 32
#: By then it is indexed, and read less.
MIN_AGE = dt.timedelta(hours=1)


class _LeftApart(Exception):
    """A pack that must not be merged: the text is for the log."""


def work() -> None:
    """Merge what is small and old, for a slice of time; nothing where somebody is at it already.
    Opens its own transactions."""
    with claims.claimed(KIND, claims.EVERYTHING) as mine:
        if not mine:
            return
        until = time.monotonic() + SLICE_SECONDS
        try:
            storage.require()
            _end_what_was_begun()
            for source_id in _sources():
                while _merge_some(source_id):
                    if lease.leaving.is_set() or time.monotonic() >= until:
                        return
        except OSError as error:  # a full disk, a store that is away: nothing has changed
            log.warning("compaction_put_off", error=str(error))
        except Corrupt as error:  # of the new pack, which is dropped
            log.critical("merged_pack_not_as_written", error=str(error))


def claimed(source_id: uuid.UUID) -> AbstractContextManager[bool]:
    """Have the packs of a source to merge or to remove for the body; False where others have, or
    hold it off."""
    return claims.claimed(KIND, source_id)


def held_off(source_id: uuid.UUID) -> AbstractContextManager[None]:
    """Have no pack of a source merged or collected for the body: who reads all of them needs them
    to stay, and so does who writes one for hours. Waits for who is at it."""
    return claims.held_off(KIND, source_id)


# -- what is merged ------------------------------------------------------------------------------


def small_packs() -> QuerySet[Pack]:
    """Return what is merged once there is enough of it."""
    age = max(MIN_AGE, store().locked_for)
    return Pack.objects.filter(
        source__deleted_at=None,
        size_bytes__lt=SMALL_PACK_BYTES,
        message_count__lt=SMALL_MESSAGES,
        index_version__gte=INDEX_VERSION,  # else it would have to be indexed from both
        created_at__lt=timezone.now() - age,
        replaced_at=None,
        left_apart=False,
    )


def _sources() -> list[uuid.UUID]:
    """Return the sources that have enough small packs, in the order of chance."""
    enough = Q(n__gte=MIN_PACKS) | Q(size__gt=MERGED_BYTES) | Q(messages__gt=MERGED_MESSAGES)
    sums = {"n": Count("pk"), "size": Sum("size_bytes"), "messages": Sum("message_count")}
    found = small_packs().order_by().values("source").annotate(**sums).filter(enough)
    return list(found.order_by("?").values_list("source", flat=True))


def _chosen(source_id: uuid.UUID) -> list[Pack]:
    """Return what is to be one pack: neighbours in time, as many as fill it; else the eldest
    MERGED_PACKS that are small, or all but the largest of them. Then it is at least twice the
    largest, so that no message is copied more often than its pack can double. None where it is not
    worth it yet."""
    chosen: list[Pack] = []
    size = messages = 0
    for pack in small_packs().filter(source=source_id).order_by("created_at")[:MERGED_PACKS]:
        size += pack.size_bytes
        messages += pack.message_count
        if size > MERGED_BYTES or messages > MERGED_MESSAGES:
            return chosen
        chosen.append(pack)
    chosen.sort(key=lambda pack: pack.size_bytes)
    while len(chosen) >= MIN_PACKS and 2 * chosen[-1].size_bytes > size:
        size -= chosen.pop().size_bytes
    enough = len(chosen) >= MIN_PACKS
    return sorted(chosen, key=lambda pack: pack.created_at) if enough else []


# -- merging -------------------------------------------------------------------------------------


def _merge_some(source_id: uuid.UUID) -> bool:
    """Merge some packs of a source; tell whether there may be more."""
    with claimed(source_id) as mine:
        packs = _chosen(source_id) if mine else []
        if not packs:
            return False
        try:
            _merge(source_id, packs)
        except LostRace:
            log.info("compaction_overtaken", source=str(source_id))
            return False
        _remove_replaced(source_id)
        return True


def _merge(source_id: uuid.UUID, packs: Sequence[Pack]) -> None:
    archive = store().fresh()
    with archive.writer(source_id) as writer:
        copying = _Copying(archive, source_id, writer)
        merged = [pack for pack in packs if copying.copied(pack)]
        if len(merged) < 2:
            return
        size_bytes = writer.commit()
        try:
            copying.read_back()
            # Behind the pack: while the archive is not moved, it is moved with it. The claim, which
            # `operations.moving` waits for, goes with its session.
            storage.require()
            _commit(source_id, merged, writer.pack_id, size_bytes, copying.moved)
        except (Corrupt, LostRace):  # after another error nobody knows whether the rows name it
            writer.drop()
            raise
    log.info(
        "packs_merged",
        source=str(source_id),
        pack=str(writer.pack_id),
        count=len(merged),
        messages=len(copying.moved),
        size_bytes=size_bytes,
    )


@dataclasses.dataclass(slots=True)
class _Row:
    """What a message's row says of its bytes."""

    pk: uuid.UUID
    sha256: bytes
    size: int
    extent: Extent


class _Copying:
    """The copying of packs into a new one."""

    def __init__(self, archive: PackStore, source_id: uuid.UUID, writer: PackWriter) -> None:
        self._archive, self._source_id, self._writer = archive, source_id, writer
        self._holds = orphans.held(archive, source_id)
        self._copies: list[_Row] = []

    @property
    def moved(self) -> dict[uuid.UUID, Extent]:
        return {row.pk: row.extent for row in self._copies}

    def copied(self, pack: Pack) -> bool:
        """Append a pack's messages, all of them or none; tell whether it may be replaced."""
        end, before = self._writer.file.seek(0, 2), len(self._copies)
        try:
            self._copy(pack)
        except (Corrupt, _LeftApart, ValueError) as error:
            self._writer.file.truncate(end)
            del self._copies[before:]
            self._leave_apart(pack, error)
            return False
        return True

    def _copy(self, pack: Pack) -> None:
        rows = {row.extent.offset: row for row in _rows(pack)}
        if len(rows) != pack.message_count:
            raise _LeftApart("some of its messages have no row")
        others: list[Record] = []
        for entry in self._archive.scan(self._source_id, pack.pk):
            record = Record.of(entry)
            row = rows.pop(entry.extent.offset, None)
            if row is None:  # it was packed, and its batch never committed
                others.append(record)
                continue
            if not entry.sealed:
                raise _LeftApart("it is of the first format: no checksum proves its records")
            said = entry.extent, record.sha256, record.header.size
            if (row.extent, row.sha256, row.size) != said:
                raise _LeftApart("a record says something else than its row")
            with self._opened(pack.pk, row) as body:
                [extent] = self._writer.append([(record.header.dumps(), body)])
            self._copies.append(dataclasses.replace(row, extent=extent))
        if rows:
            raise _LeftApart("some of its messages have no record")
        if any(True for _ in orphans.unknown(self._source_id, others, self._holds)):
            raise _LeftApart("it holds messages that no row knows")

    def read_back(self) -> None:
        """Read each message from where the new pack lies. Raises Corrupt."""
        self._archive = self._archive.fresh()
        for row in self._copies:
            with self._opened(self._writer.pack_id, row):
                pass

    @contextlib.contextmanager
    def _opened(self, pack_id: uuid.UUID, row: _Row) -> Iterator[Body]:
        body = self._archive.open(
            self._source_id, pack_id, row.extent, sha256=row.sha256, size=row.size
        )
        try:
            yield body
        finally:
            if isinstance(body, SpooledBody):
                body.close()

    def _leave_apart(self, pack: Pack, error: Exception) -> None:
        log.warning("pack_left_apart", pack=str(pack.pk), error=str(error))
        Pack.objects.filter(pk=pack.pk).update(left_apart=True)
        if isinstance(error, Corrupt):
            reading.announce_damage(IngestionSource.objects.get(pk=self._source_id), error)


def _rows(pack: Pack) -> Iterator[_Row]:
    fields = "pk", "sha256", "size_bytes", "pack_offset", "pack_length"
    for pk, sha256, size, offset, length in Message.objects.filter(pack=pack).values_list(*fields):
        yield _Row(pk, bytes(sha256), size, Extent(offset, length))


@in_transaction
def _commit(
    source_id: uuid.UUID,
    packs: Sequence[Pack],
    new_id: uuid.UUID,
    size_bytes: int,
    moved: dict[uuid.UUID, Extent],
) -> None:
    """Let the rows name the new pack, which is as old as the youngest of those, but where packs are
    locked: its lock begins now. Raises LostRace where anything is not as it was copied.

    (This is where a ledger of the archive has its entry "packs replaced by".)
    """
    if not sql.hold_source(source_id):
        raise LostRace("The source was deleted meanwhile.")
    ids = [pack.pk for pack in packs]
    old = Pack.objects.select_for_update().filter(pk__in=ids).order_by("pk")
    counts = {pack.pk: pack.message_count for pack in old if pack.index_version >= INDEX_VERSION}
    if counts != {pack.pk: pack.message_count for pack in packs}:
        raise LostRace("A pack was changed meanwhile.")
    sql.insert_pack(new_id, source_id, size_bytes, len(moved))
    youngest = max(pack.created_at for pack in packs)
    Pack.objects.filter(pk=new_id).update(
        created_at=timezone.now() if store().locked_for else youngest,
        index_version=min(pack.index_version for pack in old),
        index_defects=sum(pack.index_defects for pack in old),
        index_offset=max((extent.offset for extent in moved.values()), default=0),
    )
    if (
        sql.move_messages(new_id, moved) != len(moved)
        or Message.objects.filter(pack__in=ids).exists()
    ):
        raise LostRace("A message was changed meanwhile.")
    old.update(replaced_at=timezone.now(), index_defects=0)


def _end_what_was_begun() -> None:
    """Remove what was replaced, and stayed where that was broken off. Not of a source of which
    somebody reads all packs: what is found there may have rows name it again (`archive.rebuild`).
    """
    replaced = Pack.objects.filter(replaced_at__isnull=False).order_by()
    for source_id in list(replaced.values_list("source", flat=True).distinct()):
        with claimed(source_id) as mine:
            if mine:
                _remove_replaced(source_id)


def _remove_replaced(source_id: uuid.UUID) -> None:
    """Remove the files of replaced packs, then their rows. Needs the claim on the source."""
    archive = store()
    replaced = Pack.objects.filter(source=source_id, replaced_at__isnull=False)
    empty = replaced.filter(~Exists(Message.objects.filter(pack=OuterRef("pk"))))
    for pack in empty.iterator():
        archive.delete(PackFile(pack.source_id, pack.pk, pack.size_bytes, pack.created_at))
        with transaction.atomic():
            Pack.objects.filter(pk=pack.pk).delete()
