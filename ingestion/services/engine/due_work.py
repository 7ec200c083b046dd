"""Finds work that is due. PostgreSQL is the truth: lose the whole broker, and this finds it again.

A row that was rung for is left alone for RING_AGAIN_SECONDS: by then its task has run, or waits
behind others, or is lost, and it is rung for again. One bell too many does nothing.
"""

import dataclasses
import datetime as dt
import operator
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Literal

import structlog
from django.conf import settings
from django.core.cache import cache
from django.db import connection, transaction
from django.db.models.functions import Now

from ingestion.crypto import key_id
from ingestion.errors import LostRace, NotAllowedNow
from ingestion.models import IngestionSource, Mailbox, Run
from ingestion.services.audit import SYSTEM
from ingestion.services.engine import lease, runs, sync
from ingestion.services.engine.places import Places
from ingestion.services.sources import credentials, deletion, discovery
from ingestion.states import SourceStatus

log = structlog.get_logger(__name__)

RING_AGAIN_SECONDS = 20
_HEARTBEAT_KEY = "ingestion:dispatched_at"
_KEYS_KEY = "ingestion:key_ids"
_INLINE_POLL_SECONDS = 0.2

Kind = Literal["check", "discover", "mailbox", "delete"]


@dataclasses.dataclass(frozen=True, slots=True)
class Doorbell:
    """A row whose work is due: the task of `kind` is to be started for `pk`."""

    kind: Kind
    pk: uuid.UUID


#: Of the eight threads of `control` (Procfile): two are always left for dispatching.
asking_providers = Places[Doorbell](4, each=2)
cleaning_up = Places[Doorbell](2, each=1)

_RUNG = "(rung_at IS NULL OR rung_at < now() - %(again)s OR rung_at > now())"

#: As a scalar: a join would read all sources once the planner expects some hundred rows.
_RUNNABLE = """(SELECT s.deleted_at IS NULL AND s.status = ANY(%(runnable)s)
                  FROM ingestion_ingestionsource s WHERE s.id = {row}.source_id)"""

#: Each claims its rows by setting rung_at; SKIP LOCKED lets two dispatchers share the work. By an
#: array, because IN is a join too.
_QUERIES: tuple[tuple[Kind, str], ...] = (
    (
        "delete",
        f"""UPDATE ingestion_ingestionsource SET rung_at = now() WHERE id = ANY(ARRAY(
            SELECT id FROM ingestion_ingestionsource
             WHERE deleted_at IS NOT NULL AND {_RUNG}
             ORDER BY deleted_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
            RETURNING id, deleted_at""",
    ),
    (
        "check",
        f"""UPDATE ingestion_ingestionsource SET rung_at = now() WHERE id = ANY(ARRAY(
            SELECT id FROM ingestion_ingestionsource
             WHERE status = 'pending_auth' AND deleted_at IS NULL
               AND check_not_before <= now() AND {_RUNG}
             ORDER BY check_not_before LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
            RETURNING id, check_not_before""",
    ),
    (
        "discover",
        f"""UPDATE ingestion_run r SET rung_at = now() WHERE id = ANY(ARRAY(
            SELECT r.id FROM ingestion_run r
             WHERE r.finished_at IS NULL AND r.discovered_at IS NULL AND r.not_before <= now()
               AND {_RUNNABLE.format(row="r")} AND {_RUNG.replace("rung_at", "r.rung_at")}
             ORDER BY r.not_before LIMIT %(limit)s FOR UPDATE OF r SKIP LOCKED))
            RETURNING id, not_before""",
    ),
    (
        "mailbox",
        f"""UPDATE ingestion_mailbox m SET rung_at = now() WHERE id = ANY(ARRAY(
            SELECT m.id FROM ingestion_mailbox m
             WHERE m.run_id IS NOT NULL AND m.not_before <= now() AND {lease.FREE}
               AND {_RUNNABLE.format(row="m")} AND {_RUNG.replace("rung_at", "m.rung_at")}
             ORDER BY m.not_before LIMIT %(limit)s FOR UPDATE OF m SKIP LOCKED))
            RETURNING id, not_before""",
    ),
)


def due(*, limit: int = 1000) -> Iterator[Doorbell]:
    """Start the syncs whose time has come, and claim the rows whose work is due.

    At most `limit` of each kind; each claim is its own transaction.
    """
    cache.set(_HEARTBEAT_KEY, time.time(), timeout=None)
    cache.set(_KEYS_KEY, [key_id(key) for key in settings.ENCRYPTION_KEYS], timeout=None)
    _start_scheduled_syncs(limit)
    _finish_settled_runs(limit)
    runs.follow_meanwhile(limit)
    parameters: dict[str, Any] = {
        **lease.parameters(),
        "limit": limit,
        "again": dt.timedelta(seconds=RING_AGAIN_SECONDS),
    }
    for kind, query in _QUERIES:
        with connection.cursor() as cursor:
            cursor.execute(query, parameters)
            rows = cursor.fetchall()
        # RETURNING is in the order of the update, which is the table's: who waits longest is first.
        for pk, _ in sorted(rows, key=operator.itemgetter(1)):
            yield Doorbell(kind, pk)


def seconds_since_heartbeat() -> float | None:
    """How long ago `due` ran anywhere, as the cache remembers it; None: it does not."""
    at: float | None = cache.get(_HEARTBEAT_KEY)
    return None if at is None else max(0.0, time.time() - at)


def keys_at_heartbeat() -> list[str] | None:
    """Return the ids of the ENCRYPTION_KEYS that `due` last ran with, as the cache remembers."""
    ids: list[str] | None = cache.get(_KEYS_KEY)
    return ids


def _start_scheduled_syncs(limit: int) -> None:
    with transaction.atomic():
        ready = (
            IngestionSource.objects.filter(
                status=SourceStatus.ACTIVE, deleted_at=None, next_sync_at__lte=Now()
            )
            .order_by("next_sync_at")
            .select_for_update(no_key=True, skip_locked=True)
            .values_list("pk", flat=True)
        )
        runs.start_syncs(list(ready[:limit]), actor="schedule")


def _finish_settled_runs(limit: int) -> None:
    """Finish runs whose last worker died between settling its mailbox and finishing the run."""
    settled = Run.objects.filter(
        finished_at=None, discovered_at__isnull=False, mailboxes_due=None
    ).values_list("pk", flat=True)
    for pk in settled[:limit]:
        runs.finish_if_done(pk)


def work_until_done(source: IngestionSource, *, on_progress: Callable[[Run], None]) -> Run:
    """Do all work of a source's unfinished run here and now, without worker or broker.

    Waits out retry times and other workers' leases. Raises NotAllowedNow where there is no run or
    the source stops being runnable (its status_message says why).
    """
    run = Run.objects.filter(source=source, finished_at=None).first()
    if run is None:
        raise NotAllowedNow("The source has no import or sync under way. Start one first.")
    while True:
        _work_once(source, run)
        run.refresh_from_db()
        on_progress(run)
        if run.finished_at is not None:
            return run
        source.refresh_from_db()
        if source.deleted_at or source.status in (
            SourceStatus.PAUSED,
            SourceStatus.ERROR,
        ):
            raise NotAllowedNow(f"The source is {source.status}: {source.status_message}")
        time.sleep(_INLINE_POLL_SECONDS)  # between retries; work itself blocks above


def _work_once(source: IngestionSource, run: Run) -> None:
    source.refresh_from_db()
    if source.status == SourceStatus.PENDING_AUTH:
        if IngestionSource.objects.filter(pk=source.pk, check_not_before__lte=Now()).exists():
            credentials.check(source, actor=SYSTEM)
        return
    if run.discovered_at is None:
        if Run.objects.filter(pk=run.pk, not_before__lte=Now()).exists():
            discovery.discover(run.pk)
        return
    owed = Mailbox.objects.filter(run=run, not_before__lte=Now()).order_by("address")
    for pk in owed.values_list("pk", flat=True):
        sync.sync_mailbox(pk)
    runs.finish_if_done(run.pk)


def do(bell: Doorbell) -> Doorbell | None:
    """Do the work of one doorbell; return what is to be rung for at once, now that this is done.

    That is the same mailbox, where it has more to do, or what found no place before.
    """
    if bell.kind == "mailbox":
        return bell if sync.sync_mailbox(bell.pk) else None
    if bell.kind == "delete":
        with cleaning_up.taken(bell.pk, bell) as free:
            if free:
                deletion.delete_source(bell.pk)
        return cleaning_up.next()
    if bell.kind == "discover":
        owner = Run.objects.filter(pk=bell.pk).values_list("source__owner_id", flat=True).first()
        with asking_providers.taken(owner, bell) as free:
            if free:
                discovery.discover(bell.pk)
    else:
        _check(bell)
    return asking_providers.next()


def _check(bell: Doorbell) -> None:
    source = IngestionSource.objects.filter(
        pk=bell.pk, status=SourceStatus.PENDING_AUTH, deleted_at=None
    ).first()
    if source is None:
        return
    with asking_providers.taken(source.owner_id, bell) as free:
        if not free:
            return
        try:
            credentials.check(source, actor=SYSTEM)
        except LostRace:  # it was deleted or changed meanwhile: nobody waits for the verdict
            log.info("check_overtaken", source=str(bell.pk))
