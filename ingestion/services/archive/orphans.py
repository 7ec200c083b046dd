"""Packs without a row: whether one holds mail that no row knows, and so must not be thrown away.

A crash between a pack and its transaction leaves such a pack; the messages are then fetched again
into another one. A database restored from an older backup, or a wrong DATABASE_URL, makes orphans
of packs that hold the only copy. The two can only be told apart by what is inside.
"""

import contextlib
import functools
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from ingestion.errors import Corrupt
from ingestion.models import AuditEvent, IngestionSource, Message
from ingestion.packs.store import PackStore
from ingestion.services.archive.records import Record

_BATCH_RECORDS = 1_000


class Unknown(NamedTuple):
    """A record that no row has in a pack that is there. `row`: one has it in a pack that is not."""

    record: Record
    row: bool


def is_needed(archive: PackStore, source_id: uuid.UUID, pack_id: uuid.UUID) -> bool:
    """Tell whether a pack without a row holds a message that no other pack has. Reads no body.

    Raises Corrupt where the pack is damaged. A pack of a source that was deleted on purpose is
    not needed; one of a source that this database never heard of is.
    """
    if not IngestionSource.objects.filter(pk=source_id, deleted_at=None).exists():
        return not was_deleted(source_id)
    return any(True for _ in unknown_records(archive, source_id, pack_id))


def unknown_records(
    archive: PackStore,
    source_id: uuid.UUID,
    pack_id: uuid.UUID,
    *,
    on_damage: Callable[[Corrupt], None] | None = None,
) -> Iterator[Unknown]:
    """Yield the records of a pack without a row whose bytes no message row of their mailbox has; or
    one has them in a pack that is not there: a backup of the database may be older than the merging
    of packs (`compaction`) that left all of it in this one.

    Leaves out records whose header is of no use to `archive.rebuild`. Damage is told as
    `PackStore.scan` tells it.
    """
    holds = held(archive, source_id)
    batch: list[Record] = []
    for entry in archive.scan(source_id, pack_id, on_damage=on_damage):
        with contextlib.suppress(ValueError):
            batch.append(Record.of(entry))
        if len(batch) >= _BATCH_RECORDS:
            yield from unknown(source_id, batch, holds)
            batch = []
    yield from unknown(source_id, batch, holds)


def held(archive: PackStore, source_id: uuid.UUID) -> Callable[[uuid.UUID], bool]:
    """Return what tells whether a pack of the source is there, and asks the store once for each."""
    return functools.lru_cache(maxsize=1_000)(functools.partial(archive.holds, source_id))


def unknown(
    source_id: uuid.UUID, records: Iterable[Record], holds: Callable[[uuid.UUID], bool]
) -> Iterator[Unknown]:
    """Yield those of some records that no row of their mailbox has in a pack that is there."""
    by_mailbox: dict[str, list[Record]] = {}
    for record in records:
        by_mailbox.setdefault(record.header.origin.mailbox, []).append(record)
    for remote_id, those in by_mailbox.items():
        rows = Message.objects.filter(
            mailbox__source_id=source_id,
            mailbox__remote_id=remote_id,
            sha256__in=[record.sha256 for record in those],
        ).values_list("sha256", "pack_id")
        known = {bytes(sha256): holds(pack_id) for sha256, pack_id in rows}
        for record in those:
            if not known.get(record.sha256):
                yield Unknown(record, row=record.sha256 in known)


def was_deleted(source_id: uuid.UUID) -> bool:
    """Whether somebody deleted this source: its audit outlives it."""
    tombstone = IngestionSource.objects.filter(pk=source_id, deleted_at__isnull=False)
    audit = AuditEvent.objects.filter(source_id=source_id, action="source.delete")
    return tombstone.exists() or audit.exists()
