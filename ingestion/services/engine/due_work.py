"""What work there is (KINDS), and the way of each: found due, handed out, claimed, done.

PostgreSQL is the truth: lose the whole broker, and the work is found again. A row that was handed
out is left alone for HAND_OUT_AGAIN_SECONDS: by then its task has run, or waits behind others, or
is lost, and it is handed out again. What is handed out once too often is claimed, or not due.
"""

import dataclasses
import datetime as dt
import operator
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import structlog
from django.db import connection
from django.db.models.functions import Now

from ingestion.errors import LostRace, NotAllowedNow
from ingestion.models import IngestionSource, Mailbox, Run
from ingestion.services.archive import indexing
from ingestion.services.archive.exports import jobs as exports
from ingestion.services.engine import claims, heartbeat, lease, looking, runs, sync
from ingestion.services.engine.places import Places
from ingestion.services.operations import webhooks
from ingestion.services.operations.alerting import sending
from ingestion.services.sources import credentials, deletion, discovery
from ingestion.services.transactions import in_transaction
from ingestion.states import SourceStatus

log = structlog.get_logger(__name__)

HAND_OUT_AGAIN_SECONDS = 20
_INLINE_POLL_SECONDS = 0.2


class Work(NamedTuple):
    """A row that is due, and the kind of work that it is due for."""

    kind: str
    pk: uuid.UUID


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """One kind of work. Its rows are those of `table` where `due` holds, and the column `since`
    says how long each waits; `verb` does the work of one, by its id."""

    table: str
    due: str
    since: str
    verb: Callable[[uuid.UUID], object]
    #: What a row is called in the logs.
    name: str
    #: As SQL: since when a row is due, where `since` may be of long before that.
    due_since: str = ""
    #: As SQL: whose place it takes.
    owner: str = "owner_id"
    #: None: `verb` claims its row itself, and tells whether there is more to do at once; by None
    #: that it did nothing, for want of a place of its own.
    places: Places[Work] | None = None
    queue: str = "control"
    #: As SQL: in which order they are handed out, where that is not by `since`.
    first: str = ""
    #: How many are handed out at a time, where its verb goes on with others by itself: more would
    #: only fill the queue. None: all.
    at_a_time: int | None = None
    #: Whether it makes other work due, which is looked for at once.
    leads_to_more: bool = False


def _check(pk: uuid.UUID) -> None:
    try:
        credentials.check(IngestionSource.objects.get(pk=pk))
    except LostRace:  # it was deleted or changed meanwhile: nobody waits for the verdict
        log.info("check_overtaken")


#: Of the sixteen threads of `control` (Procfile) two look (`looking`), and two are always left for
#: dispatching. Alerts stand in no line with webhooks, whose servers may say nothing for days.
_asking_providers = Places[Work](4, each=2)
cleaning_up = Places[Work](2, each=1)
_delivering = Places[Work](2, each=1)
_alerting = Places[Work](2, each=1)
_exporting = Places[Work](2, each=1)

_OWNER_OF_SOURCE = "(SELECT s.owner_id FROM ingestion_ingestionsource s WHERE s.id = source_id)"

KINDS = {
    "delete": Kind(
        "ingestion_ingestionsource",
        "deleted_at IS NOT NULL",
        since="deleted_at",
        verb=deletion.delete_source,
        name="source",
        places=cleaning_up,
    ),
    "check": Kind(
        "ingestion_ingestionsource",
        "status = 'pending_auth' AND deleted_at IS NULL AND check_not_before <= now()",
        since="check_not_before",
        verb=_check,
        name="source",
        places=_asking_providers,
    ),
    "discover": Kind(
        "ingestion_run",
        f"""finished_at IS NULL AND discovered_at IS NULL AND not_before <= now()
            AND {lease.SOURCE_RUNNABLE}""",
        since="not_before",
        verb=discovery.discover,
        name="run",
        owner=_OWNER_OF_SOURCE,
        places=_asking_providers,
        leads_to_more=True,
    ),
    "look": Kind(
        "ingestion_ingestionsource",
        looking.DUE,
        since="next_sync_at",
        verb=looking.work,
        name="source",
        at_a_time=1,
        leads_to_more=True,
    ),
    "mailbox": Kind(
        "ingestion_mailbox",
        lease.DUE,
        since="not_before",
        due_since="greatest(not_before, (SELECT started_at FROM ingestion_run WHERE id = run_id))",
        verb=sync.sync_mailbox,
        name="mailbox",
        owner=_OWNER_OF_SOURCE,
        queue="sync",
    ),
    indexing.KIND: Kind(
        "ingestion_pack",
        indexing.DUE,
        since="index_not_before",
        # What is read again has waited since it was archived, and is found meanwhile.
        due_since="CASE WHEN index_version = 0 THEN index_not_before END",
        first="index_version, index_not_before",
        verb=indexing.work,
        name="pack",
        owner=_OWNER_OF_SOURCE,
        queue="index",
        at_a_time=16,
    ),
    "export": Kind(
        "ingestion_export",
        exports.DUE,
        since="not_before",
        verb=exports.work,
        name="export",
        places=_exporting,
    ),
    "deliver": Kind(
        "ingestion_webhookdelivery",
        webhooks.DUE,
        since="not_before",
        verb=webhooks.deliver,
        name="delivery",
        owner="(SELECT e.owner_id FROM ingestion_webhookendpoint e WHERE e.id = endpoint_id)",
        places=_delivering,
    ),
    "alert": Kind(
        "ingestion_alertrule",
        sending.DUE,
        since="not_before",
        verb=sending.tell,
        name="rule",
        places=_alerting,
    ),
    "ring": Kind(
        "ingestion_webhookendpoint",
        """enabled AND 'archive.changed' = ANY(events) AND ring_not_before <= now()
            AND NOT EXISTS (SELECT 1 FROM ingestion_webhookdelivery d
                 WHERE d.endpoint_id = ingestion_webhookendpoint.id AND d.outcome = 'pending'
                   AND d.event = 'archive.changed')
            AND (EXISTS (SELECT 1 FROM ingestion_placement
                          WHERE (changed_xid, id) > (rung_xid, rung_id))
                 OR EXISTS (SELECT 1 FROM ingestion_archivechange
                          WHERE (changed_xid, id) > (rung_xid, rung_id)))""",
        since="ring_not_before",
        verb=webhooks.ring,
        name="webhook",
        places=_alerting,
        leads_to_more=True,
    ),
}

#: SKIP LOCKED lets two dispatchers share the work. By an array, because IN is a join, which reads
#: whole tables.
_HAND_OUT = f"""
UPDATE {{kind.table}} SET handed_out_at = now() WHERE id = ANY(ARRAY(
    SELECT id FROM {{kind.table}}
     WHERE {{kind.due}}
       AND (handed_out_at IS NULL OR handed_out_at < now() - %(again)s OR handed_out_at > now())
       AND {claims.FREE}
     ORDER BY {{order}} LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
RETURNING id, {{order}}"""


#: From one to the next, by an index: to read all sources for it takes too long for a beat.
_PROVIDERS = """
WITH RECURSIVE provider (slug) AS (
    SELECT min(provider) FROM ingestion_ingestionsource
     WHERE status = 'active' AND deleted_at IS NULL
     UNION ALL
    SELECT (SELECT min(s.provider) FROM ingestion_ingestionsource s
             WHERE s.status = 'active' AND s.deleted_at IS NULL AND s.provider > slug)
      FROM provider WHERE slug IS NOT NULL)
SELECT slug FROM provider WHERE slug <> ALL(%s)"""


def hand_out(*, limit: int = 1000) -> Iterator[Work]:
    """Start the syncs whose time has come, and yield the work that is due, to be done elsewhere.

    At most `limit` of each kind, and as many as it takes; each kind in a transaction of its own.
    """
    heartbeat.beat()
    _start_scheduled_syncs(limit)
    _finish_settled_runs(limit)
    runs.follow_meanwhile(limit)
    parameters = {
        **_parameters(),
        "again": dt.timedelta(seconds=HAND_OUT_AGAIN_SECONDS),
    }
    for name, kind in KINDS.items():
        with connection.cursor() as cursor:
            own = {"kind": name, "limit": min(limit, kind.at_a_time or limit)}
            cursor.execute(
                _HAND_OUT.format(kind=kind, order=kind.first or kind.since), parameters | own
            )
            rows = cursor.fetchall()
        # RETURNING is in the order of the update, which is the table's: who waits longest is first.
        for pk, *_ in sorted(rows, key=operator.itemgetter(slice(1, None))):
            yield Work(name, pk)


def _parameters() -> dict[str, Any]:
    """Return what the kinds' `due` refer to."""
    return {**lease.parameters(), "one_account": looking.one_account()}


def backlog() -> Iterator[tuple[str, int, float]]:
    """Yield each kind of work with how many rows are due for it, and how many seconds the one has
    waited that waits longest."""
    for name, kind in KINDS.items():
        since = kind.due_since or kind.since
        query = f"""SELECT count(*), extract(epoch FROM now() - min({since}))
                    FROM {kind.table} WHERE {kind.due}"""
        with connection.cursor() as cursor:
            cursor.execute(query, _parameters())
            [(count, seconds)] = cursor.fetchall()
        yield name, count, float(seconds or 0)


def _start_scheduled_syncs(limit: int) -> None:
    """Start those of providers whose sources are not looked at first; of one that is not installed
    any more, too: its sync says so. By provider: what waits for a look, as all of many thousands do
    after an outage, is not read."""
    with connection.cursor() as cursor:
        cursor.execute(_PROVIDERS, [looking.one_account()])
        providers = [slug for (slug,) in cursor.fetchall()]
    for provider in providers:
        _start_syncs_of(provider, limit)


@in_transaction
def _start_syncs_of(provider: str, limit: int) -> None:
    ready = (
        IngestionSource.objects.filter(
            provider=provider,
            status=SourceStatus.ACTIVE,
            deleted_at=None,
            next_sync_at__lte=Now(),
        )
        .order_by("next_sync_at")
        .select_for_update(no_key=True, skip_locked=True)
        .values_list("pk", flat=True)
    )
    runs.start_syncs(list(ready[:limit]))


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
        _work_once(run)
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


def _work_once(run: Run) -> None:
    do_now(Work("check", run.source_id))
    do_now(Work("discover", run.pk))
    owed = Mailbox.objects.filter(run=run, not_before__lte=Now()).order_by("address")
    for pk in owed.values_list("pk", flat=True):
        sync.sync_mailbox(pk)
    runs.finish_if_done(run.pk)


def do(work: Work) -> tuple[Work | None, bool]:
    """Do what was handed out, in its turn.

    Return what is to be handed out next, now that this is done (the same mailbox, where it has more
    to do, or what found no place before), and whether it was done and made other work due. Who did
    nothing must not have work looked for: that would find the like, and so on without a pause.
    """
    kind = KINDS[work.kind]
    if kind.places is None:
        more = kind.verb(work.pk)
        return work if more else None, kind.leads_to_more and more is not None
    owner, done = _owner_if_due(work), False
    if owner is not None:
        with kind.places.taken(owner, work) as free:
            done = free and do_now(work)
    return kind.places.next(), kind.leads_to_more and done


def do_now(work: Work) -> bool:
    """Do this work and wait for no place; False where it is not due, or somebody else is at it."""
    if _owner_if_due(work) is None:
        return False
    with claims.claimed(*work) as mine:
        if not mine or _owner_if_due(work) is None:  # somebody else did it meanwhile
            return False
        kind = KINDS[work.kind]
        with structlog.contextvars.bound_contextvars(**{kind.name: str(work.pk)}):
            kind.verb(work.pk)
        return True


def _owner_if_due(work: Work) -> int | None:
    kind = KINDS[work.kind]
    query = f"SELECT {kind.owner} FROM {kind.table} WHERE id = %(id)s AND {kind.due}"
    with connection.cursor() as cursor:
        cursor.execute(query, {**_parameters(), "id": work.pk})
        row = cursor.fetchone()
    return row[0] if row else None
