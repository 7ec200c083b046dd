"""Proves the archive: reads every archived message back and compares it with its SHA-256.

Reports rows whose pack is missing or damaged, and packs that have no row. Changes nothing; a
restored backup or `services.rebuild` does.
"""

import dataclasses
import datetime as dt
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from django.utils import timezone

from connectors.types import SpooledBody
from ingestion.archive.store import Extent, PackFile, PackStore, store
from ingestion.errors import Corrupt
from ingestion.models import IngestionSource, Mailbox, Message, Pack
from ingestion.services import orphans

Kind = Literal["missing_pack", "unreadable_pack", "corrupt_message", "corrupt_pack", "orphan_pack"]

_BATCH_PACKS = 500
#: A worker writes a pack and commits its row within this; until then the pack is nobody's orphan.
_IN_FLIGHT = dt.timedelta(minutes=1)


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `messages`: how many messages it concerns; `text` is for people.

    missing_pack, unreadable_pack  a pack that has a row is not there, or this user may not read it
    corrupt_message                its bytes are not those that were archived
    corrupt_pack                   all messages are well, the headers for a rebuild are not
    orphan_pack                    a pack without a row; `messages` of it are known to no row
    """

    kind: Kind
    source_id: uuid.UUID
    pack_id: uuid.UUID
    messages: int
    text: str
    message_id: uuid.UUID | None = None


@dataclasses.dataclass(slots=True)
class Verification:
    """What was checked so far, and how many problems of each kind there are."""

    packs: int = 0
    messages: int = 0
    size_bytes: int = 0
    found: Counter[Kind] = dataclasses.field(default_factory=Counter)

    @property
    def ok(self) -> bool:
        return not self.found


def verify_archive(
    sources: Iterable[IngestionSource] | None = None,
    *,
    on_problem: Callable[[Problem], None],
    on_progress: Callable[[Verification], None] = lambda _: None,
) -> Verification:
    """Check the given sources' archives, or the whole of it. Memory does not grow with its size.

    Calls `on_problem` for each problem as it is found, `on_progress` after each pack. May run
    beside working workers. Packs of sources that the database does not know are only looked for
    when the whole archive is checked.
    """
    archive, result = store(), Verification()
    chosen = IngestionSource.objects.filter(deleted_at=None) if sources is None else sources

    def report(problem: Problem) -> None:
        result.found[problem.kind] += 1
        on_problem(problem)

    for source in chosen:
        for pack in _packs(source):
            for problem in _check_pack(archive, pack, result):
                report(problem)
            result.packs += 1
            on_progress(result)
    where = archive.sources() if sources is None else (source.pk for source in chosen)
    for source_id in where:
        for problem in _orphans(archive, source_id):
            report(problem)
    return result


def _packs(source: IngestionSource) -> Iterator[Pack]:
    after = uuid.UUID(int=0)
    while batch := list(
        Pack.objects.filter(source=source, pk__gt=after).order_by("pk")[:_BATCH_PACKS]
    ):
        yield from batch
        after = batch[-1].pk


def _check_pack(archive: PackStore, pack: Pack, result: Verification) -> Iterator[Problem]:
    """Check one pack: that it is there, each message in it, and its own record headers."""
    damage = _scan(archive, pack)
    if isinstance(damage, PermissionError) or (damage is not None and _is_missing(damage)):
        if _still_there(pack):
            count = Message.objects.filter(pack=pack).count()
            missing = _is_missing(damage)
            kind: Kind = "missing_pack" if missing else "unreadable_pack"
            text = str(damage) if missing else f"pack {pack.pk}: {_may_not_read(damage)}"
            yield Problem(kind, pack.source_id, pack.pk, count, text)
        return
    broken = 0
    for row in Message.objects.filter(pack=pack).order_by("pack_offset").iterator(2_000):
        try:
            body = archive.open(
                pack.source_id,
                pack.pk,
                Extent(row.pack_offset, row.pack_length),
                sha256=bytes(row.sha256),
                size=row.size_bytes,
            )
        except (Corrupt, OSError) as error:
            if not _still_there(pack):
                return
            broken += 1
            yield Problem("corrupt_message", pack.source_id, pack.pk, 1, str(error), row.pk)
        else:
            result.messages += 1
            result.size_bytes += row.size_bytes
            if isinstance(body, SpooledBody):
                body.close()
    if damage and not broken:
        text = f"{damage} Its messages can be read; the database could not be rebuilt from it."
        yield Problem("corrupt_pack", pack.source_id, pack.pk, 0, text)


def _scan(archive: PackStore, pack: Pack) -> Corrupt | OSError | None:
    """Walk the pack's record headers; return what is wrong with them."""
    try:
        for _ in archive.scan(pack.source_id, pack.pk):
            pass
    except (Corrupt, OSError) as error:
        return error
    return None


def _is_missing(error: BaseException) -> bool:
    return isinstance(error, FileNotFoundError) or isinstance(error.__cause__, FileNotFoundError)


def _may_not_read(error: BaseException) -> str:
    return f"this user may not read it ({error}). Run this as the service's user."


def _still_there(pack: Pack) -> bool:
    """Whether the pack's source was not deleted while we looked."""
    return Pack.objects.filter(pk=pack.pk, source__deleted_at=None).exists()


def _orphans(archive: PackStore, source_id: uuid.UUID) -> Iterator[Problem]:
    if IngestionSource.objects.filter(pk=source_id, deleted_at__isnull=False).exists():
        return  # being deleted: its packs go next
    batch: list[PackFile] = []
    for pack in archive.packs(source_id):
        if not pack.partial:
            batch.append(pack)
        if len(batch) >= _BATCH_PACKS:
            yield from _without_row(archive, batch)
            batch = []
    yield from _without_row(archive, batch)


def _without_row(archive: PackStore, batch: list[PackFile]) -> Iterator[Problem]:
    known = set(Pack.objects.filter(pk__in=[p.pack_id for p in batch]).values_list("pk", flat=True))
    for pack in batch:
        if pack.pack_id in known or _in_flight(pack):
            continue
        count = 0
        try:
            count = sum(1 for _ in orphans.unknown_records(archive, pack.source_id, pack.pack_id))
            what = _what_an_orphan_holds(pack.source_id, count)
        except PermissionError as error:
            what = _may_not_read(error)
        except (Corrupt, OSError) as error:
            if _is_missing(error):
                continue  # collected meanwhile
            what = f"is damaged: {error} Where there is none, move the file away: no row needs it."
        text = f"pack {pack.pack_id} has no row and {what}"
        yield Problem("orphan_pack", pack.source_id, pack.pack_id, count, text)


def _what_an_orphan_holds(source_id: uuid.UUID, count: int) -> str:
    if not count:
        return "holds only messages that are archived elsewhere too. It is removed by itself."
    mail = f"holds {count:,} messages that the database does not know."
    if IngestionSource.objects.filter(pk=source_id).exists():
        return f"{mail} rebuild_archive_index takes them in."
    return (
        f"{mail} Nor does it know their source: is this the right database? "
        f"rebuild_archive_index --recover {source_id} makes a source of them."
    )


def _in_flight(pack: PackFile) -> bool:
    """Whether a worker that is busy with the source may be about to commit this pack's row."""
    if timezone.now() - pack.modified_at > _IN_FLIGHT:
        return False
    busy = Mailbox.objects.filter(source_id=pack.source_id, lease_expires_at__gt=timezone.now())
    return busy.exists() or Pack.objects.filter(pk=pack.pack_id).exists()
