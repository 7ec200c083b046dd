"""Runs: start one, make its work due, finish it when nothing of it is owed any more.

Row locks are taken in one order, so that nobody waits in a circle: source, mailbox, run. (Only a
statement that locks many mailboxes takes them as it finds them: see `services.transactions`.)
"""

import datetime as dt
import uuid
from collections.abc import Collection, Iterable

import structlog
from django.db import connection, transaction
from django.db.models import F, Min, QuerySet, Value
from django.db.models.expressions import CombinedExpression
from django.db.models.functions import Coalesce, Greatest, Least, Now

from ingestion.errors import LostRace
from ingestion.models import AlertKind, FailedMessage, Folder, IngestionSource, Mailbox, Run
from ingestion.models.webhook import Event
from ingestion.services import alerts
from ingestion.services.engine import counters
from ingestion.services.events import announce
from ingestion.services.sources.options import Options
from ingestion.services.sources.status import locked_by_id, move
from ingestion.services.transactions import in_transaction
from ingestion.states import MailboxState, RunKind, RunStatus, SourceStatus

log = structlog.get_logger(__name__)

#: Who starts the syncs that nobody asked for.
SCHEDULE = "schedule"

#: So many of what could not be read are named in a run's message, and so much of each name.
NAMED = 3
_NAME_CHARS = 100


def start(source: IngestionSource, *, kind: RunKind, actor: str) -> tuple[Run, bool]:
    """Return the unfinished run of a source, or a new one, and whether it is new.

    Call inside a transaction that holds the source's row lock.
    """
    unfinished = Run.objects.filter(source=source, finished_at=None).first()
    if unfinished and not _finish_if_settled(source, unfinished.pk):
        return unfinished, False
    _retry_folders(source)
    run = Run.objects.create(source=source, kind=kind, actor=actor)
    IngestionSource.objects.filter(pk=source.pk).update(
        last_sync_started_at=Now(), next_sync_at=None
    )
    run.refresh_from_db()
    about = {"source": str(source.pk), "run": str(run.pk), "kind": run.kind}
    transaction.on_commit(lambda: log.info("run_started", **about))
    return run, True


def _retry_folders(source: IngestionSource) -> None:
    """Somebody asked: folders that could not be read wait no longer."""
    waiting = Folder.objects.filter(mailbox__source=source, not_before__gt=Now())
    owners = Mailbox.objects.filter(pk__in=waiting.values("mailbox")).order_by("pk")
    mailboxes = list(owners.select_for_update().values_list("pk", flat=True))
    if mailboxes:
        waiting.filter(mailbox__in=mailboxes).update(not_before=None)


#: Of runs that were just begun: lists the mailbox of each, which stands behind whoever waits, and
#: still waits for its retry.
_LISTED = """
WITH run AS (
    UPDATE ingestion_run r
       SET discovered_at = now(), mailboxes_total = 1, not_before = now() +
           (SELECT make_interval(secs => coalesce((s.options->>'syncIntervalSeconds')::int, 300))
              FROM ingestion_ingestionsource s WHERE s.id = r.source_id)
      FROM ingestion_mailbox m
     WHERE r.id = ANY(%(runs)s) AND m.id = ANY(%(mailboxes)s) AND m.source_id = r.source_id
       AND m.state = 'active'
 RETURNING r.id, m.id AS mailbox_id)
UPDATE ingestion_mailbox
   SET run_id = run.id, handed_out_at = NULL, not_before = greatest(not_before, now())
  FROM run WHERE ingestion_mailbox.id = run.mailbox_id"""


def start_syncs(
    source_ids: Collection[uuid.UUID],
    *,
    only_mailboxes: Collection[uuid.UUID] = (),
) -> None:
    """Start a scheduled sync of each source, by a few statements; an unfinished run lists its
    mailboxes anew. Those of which `only_mailboxes` has the only mailbox need not list theirs.

    Call inside a transaction that holds the sources' row locks.
    """
    if not source_ids:
        return
    begun = [Run(source_id=pk, kind=RunKind.SYNC, actor=SCHEDULE) for pk in source_ids]
    Run.objects.bulk_create(begun, ignore_conflicts=True)  # one_unfinished_run_per_source
    _list_again(  # of some mailboxes alone: it becomes one of all (follow_now)
        Run.objects.filter(source__in=source_ids, finished_at=None, discovered_at__isnull=False)
    )
    if only_mailboxes:
        given = {"runs": [run.pk for run in begun], "mailboxes": list(only_mailboxes)}
        with connection.cursor() as cursor:
            cursor.execute(_LISTED, given)
    IngestionSource.objects.filter(pk__in=source_ids).update(
        last_sync_started_at=Now(), next_sync_at=None, handed_out_at=None
    )


#: A mailbox is not followed more often than this for the sake of rings.
_RINGS_SECONDS = 10

#: Of a run that mailboxes were added to: what is done is what is not owed any more.
_OWES_MORE = """
UPDATE ingestion_run r
   SET mailboxes_total = greatest(mailboxes_total, owed.n),
       mailboxes_done = greatest(0, mailboxes_done - %(more)s)
  FROM (SELECT count(*) AS n FROM ingestion_mailbox WHERE run_id = %(run)s) owed
 WHERE r.id = %(run)s"""


@in_transaction
def follow_now(source_id: uuid.UUID, mailboxes: Collection[uuid.UUID]) -> Collection[uuid.UUID]:
    """Have some mailboxes of a source followed without the others, and return those: not those that
    have work already, or were followed a moment ago. They become part of the run that is under way,
    or of one of their own, which leaves the time of the next sync of all as it is.
    """
    active = IngestionSource.objects.filter(
        pk=source_id, status=SourceStatus.ACTIVE, deleted_at=None
    )
    source = active.select_for_update(no_key=True).first()
    if source is None:
        return ()
    resting = Mailbox.objects.filter(
        pk__in=mailboxes,
        source=source,
        state=MailboxState.ACTIVE,
        run=None,
        last_synced_at__lt=Now() - dt.timedelta(seconds=_RINGS_SECONDS),
    )
    mine = list(resting.order_by("pk").select_for_update().values_list("pk", flat=True))
    run = Run.objects.filter(source=source, finished_at=None).select_for_update().first()
    if not mine or (run is not None and run.discovered_at is None):  # it is about to give work
        return ()
    if run is None:
        run = Run.objects.create(
            source=source,
            kind=RunKind.SYNC,
            actor=SCHEDULE,
            discovered_at=Now(),
            not_before=Now() + Options.of(source.options).sync_interval,
        )
        IngestionSource.objects.filter(pk=source.pk).update(last_sync_started_at=Now())
    Mailbox.objects.filter(pk__in=mine).update(run=run, not_before=Now(), handed_out_at=None)
    with connection.cursor() as cursor:
        cursor.execute(_OWES_MORE, {"run": run.pk, "more": len(mine)})
    return mine


def make_due_now(source: IngestionSource) -> None:
    """Let the dispatcher find at once what the source's unfinished run waits for."""
    Mailbox.objects.filter(source=source, run__isnull=False).update(
        not_before=Now(), handed_out_at=None
    )
    Run.objects.filter(source=source, finished_at=None).update(not_before=Now(), handed_out_at=None)


def follow_again(source: IngestionSource) -> None:
    """Have what the unfinished run is done with followed once more, so that what came until now is
    had: it lists the mailboxes anew, which gives those that are done with their work again, and the
    others follow again the folders that they are done with, after all others. Call inside a
    transaction that holds the source's row lock."""
    Run.objects.filter(source=source, finished_at=None).update(asked_at=Now())
    list_again(source)


def list_again(source: IngestionSource) -> None:
    """Have the unfinished run list the mailboxes anew: there may be others. Call inside a
    transaction that holds the source's row lock."""
    _list_again(Run.objects.filter(source=source, finished_at=None, discovered_at__isnull=False))


def _list_again(unfinished: QuerySet[Run]) -> None:
    unfinished.update(
        discovered_at=None, not_before=Now(), handed_out_at=None, attempts=0, failing_since=None
    )


#: Of each run: its source's interval, and whether it was listed a day ago, or a mailbox is done
#: with and none was followed to its end for an interval. Scalars: a join, or EXISTS, reads all
#: mailboxes once many runs are due.
_LONG_RUNS = """
SELECT due.id, due.interval,
       due.discovered_at < now() - interval '1 day'
    OR (SELECT true FROM ingestion_mailbox m
         WHERE m.source_id = due.source_id AND m.run_id IS NULL AND m.state = 'active' LIMIT 1)
   AND (SELECT true FROM ingestion_mailbox m
         WHERE m.source_id = due.source_id AND m.last_synced_at > now() - due.interval LIMIT 1)
       IS NULL
  FROM (SELECT r.id, r.source_id, r.discovered_at,
               (SELECT make_interval(secs => (s.options->>'syncIntervalSeconds')::int)
                  FROM ingestion_ingestionsource s WHERE s.id = r.source_id) AS interval
          FROM ingestion_run r
         WHERE r.finished_at IS NULL AND r.discovered_at IS NOT NULL AND r.not_before <= now()
         ORDER BY r.not_before LIMIT %(limit)s FOR UPDATE OF r SKIP LOCKED) due
"""


def follow_meanwhile(limit: int) -> None:
    """Follow again what long runs are done with, where no mailbox was followed to its end for an
    interval: one that imports for days, or fails, holds up the others no longer than that. (While
    they still end one after the other, all have their turn anyway, and the run comes to its end.)
    And list their mailboxes once a day: an address that one is opened by may be another's since.

    Looks at each run once in an interval. Opens its own transaction.
    """
    usual = Options.of({}).sync_interval
    again: list[uuid.UUID] = []
    later: dict[dt.timedelta, list[uuid.UUID]] = {}
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(_LONG_RUNS, {"limit": limit})
            for pk, interval, is_over in cursor.fetchall():
                (again if is_over else later.setdefault(interval or usual, [])).append(pk)
        if again:
            _list_again(Run.objects.filter(pk__in=again))
        for interval, pks in later.items():
            Run.objects.filter(pk__in=pks).update(not_before=Now() + interval)


def finish_if_done(run_id: uuid.UUID) -> bool:
    """Finish a run that owes nothing any more; tell whether this call did it.

    Call after the commit that settled a mailbox: of two workers that settle the last two at the
    same time, neither sees the other's row before. Opens its own transaction.
    """
    source_id = _settled(run_id).values_list("source_id", flat=True).first()
    if source_id is None:
        return False
    try:
        return _lock_and_finish(source_id, run_id)
    except LostRace:  # deleted; or others go first, and the dispatcher finds it settled
        return False


@in_transaction
def _lock_and_finish(source_id: uuid.UUID, run_id: uuid.UUID) -> bool:
    return _finish_if_settled(locked_by_id(source_id), run_id)


def _settled(run_id: uuid.UUID) -> QuerySet[Run]:
    return Run.objects.filter(
        pk=run_id, finished_at=None, discovered_at__isnull=False, mailboxes_due=None
    )


def _finish_if_settled(source: IngestionSource, run_id: uuid.UUID) -> bool:
    """Call under the source's row lock."""
    done = _settled(run_id).select_for_update(of=("self",)).first()
    if done is None:
        return False
    done.messages_failed, left_out = 0, []
    if has_trouble := _has_trouble(source):
        _count_failed(done)
        left_out = _left_out(source)
    status = RunStatus.INCOMPLETE if left_out else RunStatus.COMPLETED
    words = "; ".join([summary(done).rstrip("."), *left_out])
    rest = "The next sync goes on there." if left_out else ""
    message = " ".join(filter(None, (f"{words}.", rest, done.message, done.warning)))
    _finish(source, done, status, message, folders_fail=has_trouble)
    return True


def _has_trouble(source: IngestionSource) -> bool:
    """Tell whether any message, folder or mailbox could not be read, now or before. Mostly none:
    then nobody need ask which."""
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT EXISTS (SELECT 1 FROM ingestion_mailbox m WHERE m.source_id = %s AND (
                 m.last_error_code <> ''
                 OR EXISTS (SELECT 1 FROM ingestion_failedmessage WHERE mailbox_id = m.id)
                 OR EXISTS (SELECT 1 FROM ingestion_folder
                             WHERE mailbox_id = m.id AND failing_since IS NOT NULL)))""",
            [source.pk],
        )
        [(has_any,)] = cursor.fetchall()
    return bool(has_any)


def finish_unfinished(source: IngestionSource, *, failed: bool, message: str) -> None:
    """End the source's unfinished run, if any. Call inside a transaction."""
    run = Run.objects.filter(source=source, finished_at=None).first()
    if run is None:
        return
    Mailbox.objects.filter(run=run).update(run=None, messages_expected=0)
    _count_failed(run)
    _finish(source, run, RunStatus.FAILED if failed else RunStatus.STOPPED, message)


def _count_failed(run: Run) -> None:
    """What failed in this run may have been had in it too, at a later try."""
    run.messages_failed = FailedMessage.objects.filter(
        mailbox__source=run.source_id, first_failed_at__gte=run.started_at
    ).count()


def summary(run: Run) -> str:
    """Say in words what a run did: "1,999 archived, 1 failed"."""
    parts = [f"{run.messages_new:,} archived"]
    known = run.messages_done - run.messages_new
    if known > 0:
        parts.append(f"{known:,} recognised")
    if run.messages_failed:
        parts.append(f"{run.messages_failed:,} failed")
    if run.messages_gone:
        parts.append(f"{run.messages_gone:,} deleted at the provider meanwhile")
    return ", ".join(parts) + "."


def _left_out(source: IngestionSource) -> list[str]:
    """Say which mailboxes and folders could not be read to their end, and why."""
    tried = Mailbox.objects.filter(
        source=source, state__in=(MailboxState.ACTIVE, MailboxState.UNAVAILABLE)
    ).exclude(last_error_code="")
    failing = _failing_folders(source)
    said = []
    if count := tried.count():
        what = "1 mailbox was" if count == 1 else f"{count:,} mailboxes were"
        names = _with_codes(tried.values_list("address", "last_error_code")[:NAMED], count)
        said.append(f"{what} not copied to the end: {names}")
    if count := failing.count():
        what = "1 folder" if count == 1 else f"{count:,} folders"
        said.append(
            f"{what} could not be read: "
            + _with_codes(failing.values_list("path", "last_error_code")[:NAMED], count)
        )
    return said


def _failing_folders(source: IngestionSource) -> QuerySet[Folder]:
    return Folder.objects.filter(
        mailbox__source=source,
        mailbox__state=MailboxState.ACTIVE,
        failing_since__isnull=False,
        removed_at=None,
    )


def _with_codes(rows: Iterable[tuple[str, str]], count: int) -> str:
    return _listed([f"{_shown(name)} ({code})" for name, code in rows], count)


def named(names: Iterable[str], count: int) -> str:
    """Name some of so many. Names are a stranger's: no line of them is a line."""
    return _listed(list(map(_shown, names)), count)


def _listed(names: list[str], count: int) -> str:
    return ", ".join([*names, f"and {count - len(names):,} more"] if count > len(names) else names)


def _shown(name: str) -> str:
    printable = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return printable if len(printable) <= _NAME_CHARS else printable[: _NAME_CHARS - 1] + "…"


def _next_sync(
    source: IngestionSource, run: Run, *, folders_fail: bool
) -> CombinedExpression | Least | Now:
    """An interval from now, or sooner, when a folder that could not be read has its turn. After an
    import that took longer at once: mail came meanwhile, and folders were listed at its beginning.
    """
    interval = Options.of(source.options).sync_interval
    lasted = Run.objects.filter(pk=run.pk, started_at__lt=Now() - interval)
    if run.kind == RunKind.IMPORT and lasted.exists():
        return Now()
    usual = Now() + interval
    if not folders_fail:
        return usual
    soonest = _failing_folders(source).aggregate(at=Min("not_before"))["at"]
    return usual if soonest is None else Least(usual, Greatest(Value(soonest), Now()))


def _finish(
    source: IngestionSource,
    run: Run,
    status: RunStatus,
    message: str,
    *,
    folders_fail: bool = True,
) -> None:
    """`folders_fail`: whether any may, and would have its turn before the next sync of all."""
    if run.messages_new:
        counters.recount_locked(source.pk)  # a worker may have died before it did
    Run.objects.filter(pk=run.pk).update(
        status=status,
        message=message,
        finished_at=Now(),
        messages_failed=run.messages_failed,
        messages_total=F("messages_done") + run.messages_failed,
    )
    next_sync = _next_sync(source, run, folders_fail=folders_fail)
    changes: dict[str, object] = {
        "last_sync_finished_at": Now(),
        "last_sync_status_message": message,
        "next_sync_at": Coalesce("next_sync_at", next_sync),  # `follow_now` left it
    }
    ended = status in (RunStatus.COMPLETED, RunStatus.INCOMPLETE)
    if ended and run.kind == RunKind.IMPORT:
        changes["imported_at"] = Now()
    IngestionSource.objects.filter(pk=source.pk).update(**changes)
    if ended and source.status == SourceStatus.IMPORTING:
        move(source, SourceStatus.ACTIVE, reason=message, actor="ingestion")
    if ended and run.kind == RunKind.IMPORT:
        alerts.happened(AlertKind.IMPORT_FINISHED, source, message)
    about = {"run": str(run.pk), "kind": run.kind, "status": str(status), "message": message}
    counts = {"messagesNew": run.messages_new, "messagesFailed": run.messages_failed}
    announce(Event.RUN_FINISHED, source, about | counts)
    if run.messages_new or run.messages_failed or status != RunStatus.COMPLETED:
        # A sync without news is no news: there is one of each source every few minutes.
        said = {"source": str(source.pk), "run": str(run.pk), "status": str(status)}
        transaction.on_commit(lambda: log.info("run_finished", **said, messages=run.messages_new))
