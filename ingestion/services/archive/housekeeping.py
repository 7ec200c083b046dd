"""Collects what crashes leave behind: packs whose transaction never came, and half-written ones.

Never the only copy of a message: after a crash the same messages are fetched again into another
pack, but a database that is lost, restored from an old backup, or the wrong one also makes packs
without a row. Those stay until `archive.rebuild` takes them in.
"""

import datetime as dt
import itertools
import uuid
from collections.abc import Sequence

import structlog
from django.core.cache import cache
from django.utils import timezone

from ingestion.errors import ArchiveUnavailable, Corrupt
from ingestion.models import Pack
from ingestion.packs.store import PackFile, PackStore, store
from ingestion.services.archive import compaction, orphans, storage
from ingestion.services.engine import lease

log = structlog.get_logger(__name__)

#: No worker takes this long between writing a pack and committing its rows. Who may, as a provider
#: is asked meanwhile, holds `compaction` off.
ORPHAN_AGE = dt.timedelta(hours=1)
#: Each sync with new mail makes a pack: so many are looked up by one query.
_BATCH = 500
#: To list an object store is paid for, by the thousand packs.
_LISTED_AGAIN = dt.timedelta(hours=6)


def unknown_pack(source_id: uuid.UUID) -> uuid.UUID | None:
    """Return a pack of the source that holds mail which no row knows, if there is one: then the
    database is older than the archive. Looks at packs of more than an hour ago, reads few."""
    archive, oldest = store(), timezone.now() - ORPHAN_AGE
    old = (p for p in archive.packs(source_id) if not p.partial and p.modified_at < oldest)
    while batch := list(itertools.islice(old, _BATCH)):
        for orphan in _without_row(batch):
            if _is_needed(archive, orphan):
                return orphan.pack_id
    return None


def collect_when_due() -> None:
    """Collect orphans, as often as the store may be listed. Where it is away, the next time."""
    archive = store()
    if archive.slow and not cache.add("orphans-looked-for", 1, _LISTED_AGAIN.total_seconds()):
        return
    try:
        collect_orphans()
    except ArchiveUnavailable as error:
        log.warning("orphans_not_looked_for", error=str(error))


def collect_orphans(*, older_than: dt.timedelta = ORPHAN_AGE) -> int:
    """Remove packs without a row that are older than `older_than` and hold nothing that is not
    archived elsewhere; return how many. Idempotent. A worker that is told to end leaves the rest
    to the next."""
    storage.require()  # beneath a mount point, or in another's archive, nothing is ours to remove
    archive = store()
    oldest_kept = timezone.now() - older_than
    removed = 0
    for source_id in archive.sources():
        old = (p for p in archive.packs(source_id) if p.modified_at < oldest_kept)
        try:
            while batch := list(itertools.islice(old, _BATCH)):
                if lease.leaving.is_set():  # millions of packs take longer than a deploy waits
                    return removed
                if _without_row(batch):
                    removed += _collected(archive, source_id, batch)
        except PermissionError as error:  # a directory of who ran a command as root
            log.warning("orphans_not_listed", source=str(source_id), error=error.strerror)
    if removed:
        log.info("orphans_collected", count=removed)
    return removed


def _collected(archive: PackStore, source_id: uuid.UUID, packs: Sequence[PackFile]) -> int:
    """Remove those of some packs that have no row and are not needed; return how many. None while
    packs of the source are merged, rebuilt or fetched again: one of these may be about to have a
    row, or be half-written for longer than a worker takes."""
    removed = 0
    with compaction.claimed(source_id) as alone:
        for orphan in _without_row(packs) if alone else ():
            # Asked again: a worker that slept may commit it meanwhile, and its own rows have its
            # mail then.
            try:
                if orphan.partial or (not _is_needed(archive, orphan) and _without_row([orphan])):
                    archive.delete(orphan)
                    removed += 1
            except PermissionError as error:  # of who ran a command as root: the others can go
                log.warning("orphan_kept", pack=str(orphan.pack_id), error=error.strerror)
    return removed


def _is_needed(archive: PackStore, orphan: PackFile) -> bool:
    try:
        needed = orphans.is_needed(archive, orphan.source_id, orphan.pack_id)
    except Corrupt:
        needed = True  # for a person to look at: verify_archive tells of it
    if needed:
        log.warning("orphan_kept", source=str(orphan.source_id), pack=str(orphan.pack_id))
    return needed


def _without_row(packs: Sequence[PackFile]) -> list[PackFile]:
    ids = [pack.pack_id for pack in packs if not pack.partial]
    known = set(Pack.objects.filter(pk__in=ids).values_list("pk", flat=True))
    return [pack for pack in packs if pack.partial or pack.pack_id not in known]
