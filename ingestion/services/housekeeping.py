"""Collects what crashes leave behind: packs whose transaction never came, and half-written ones."""

import datetime as dt

import structlog
from django.utils import timezone

from ingestion.archive.store import PackFile, store
from ingestion.models import Pack

log = structlog.get_logger(__name__)

#: No worker takes this long between writing a pack and committing its rows.
ORPHAN_AGE = dt.timedelta(hours=1)


def collect_orphans(*, older_than: dt.timedelta = ORPHAN_AGE) -> int:
    """Remove packs without a row that are older than `older_than`; return how many. Idempotent."""
    archive = store()
    oldest_kept = timezone.now() - older_than
    removed = 0
    for source_id in archive.sources():
        old = [p for p in archive.packs(source_id) if p.modified_at < oldest_kept]
        for orphan in _without_row(old):
            archive.delete(orphan.source_id, orphan.pack_id)
            removed += 1
    if removed:
        log.info("orphans_collected", count=removed)
    return removed


def _without_row(packs: list[PackFile]) -> list[PackFile]:
    ids = [pack.pack_id for pack in packs if not pack.partial]
    known = set(Pack.objects.filter(pk__in=ids).values_list("pk", flat=True))
    return [pack for pack in packs if pack.partial or pack.pack_id not in known]
