"""Runs: start one, make its work due, finish it when nothing of it is owed any more.

Row locks are taken in one order everywhere, so that nobody waits in a circle: source, mailbox, run.
"""

import uuid
from collections.abc import Collection

from django.db import transaction
from django.db.models import F, QuerySet
from django.db.models.functions import Now

from ingestion.errors import LostRace
from ingestion.models import FailedMessage, IngestionSource, Mailbox, Run
from ingestion.services import capture_sql as sql
from ingestion.services.options import Options
from ingestion.services.status import locked, move
from ingestion.states import MailboxState, RunKind, RunStatus, SourceStatus


def start(source: IngestionSource, *, kind: RunKind, actor: str) -> tuple[Run, bool]:
    """Return the unfinished run of a source, or a new one, and whether it is new.

    Call inside a transaction that holds the source's row lock.
    """
    unfinished = Run.objects.filter(source=source, finished_at=None).first()
    if unfinished and not _finish_if_settled(source, unfinished.pk):
        return unfinished, False
    run = Run.objects.create(source=source, kind=kind, actor=actor)
    IngestionSource.objects.filter(pk=source.pk).update(
        last_sync_started_at=Now(), next_sync_at=None
    )
    run.refresh_from_db()
    return run, True


def start_syncs(source_ids: Collection[uuid.UUID], *, actor: str) -> None:
    """Start a sync of each source that has no unfinished run: two statements for any number.

    Call inside a transaction that holds the sources' row locks.
    """
    if not source_ids:
        return
    Run.objects.bulk_create(
        [Run(source_id=pk, kind=RunKind.SYNC, actor=actor) for pk in source_ids],
        ignore_conflicts=True,  # one_unfinished_run_per_source
    )
    IngestionSource.objects.filter(pk__in=source_ids).update(
        last_sync_started_at=Now(), next_sync_at=None
    )


def make_due_now(source: IngestionSource) -> None:
    """Let the dispatcher find at once what the source's unfinished run waits for."""
    Mailbox.objects.filter(source=source, run__isnull=False).update(not_before=Now(), rung_at=None)
    Run.objects.filter(source=source, finished_at=None).update(not_before=Now(), rung_at=None)


def finish_if_done(run_id: uuid.UUID) -> bool:
    """Finish a run that owes nothing any more; tell whether this call did it.

    Call after the commit that settled a mailbox: of two workers that settle the last two at the
    same time, neither sees the other's row before. Opens its own transaction.
    """
    found = _settled(run_id).first()
    if found is None:
        return False
    with transaction.atomic():
        try:
            source = locked(found.source)
        except LostRace:  # deleted
            return False
        return _finish_if_settled(source, run_id)


def _settled(run_id: uuid.UUID) -> QuerySet[Run]:
    return Run.objects.filter(
        pk=run_id, finished_at=None, discovered_at__isnull=False, mailboxes_due=None
    )


def _finish_if_settled(source: IngestionSource, run_id: uuid.UUID) -> bool:
    """Call under the source's row lock."""
    done = _settled(run_id).select_for_update(of=("self",)).first()
    if done is None:
        return False
    _finish(source, done, RunStatus.COMPLETED)
    return True


def finish_unfinished(source: IngestionSource, *, failed: bool, message: str) -> None:
    """End the source's unfinished run, if any. Call inside a transaction."""
    run = Run.objects.filter(source=source, finished_at=None).first()
    if run is None:
        return
    Mailbox.objects.filter(run=run).update(run=None)
    _finish(source, run, RunStatus.FAILED if failed else RunStatus.STOPPED, message)


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


def _left_behind(source: IngestionSource) -> str:
    """Say that mailboxes left the run before they were followed to the end, where any did."""
    followed = Mailbox.objects.filter(source=source, state=MailboxState.ACTIVE)
    count = followed.exclude(last_error_code="").count()
    if not count:
        return ""
    what = "1 mailbox was" if count == 1 else f"{count:,} mailboxes were"
    return f"{what} not copied to the end: the next sync goes on there."


def _finish(
    source: IngestionSource, run: Run, status: RunStatus, message: str | None = None
) -> None:
    """`message`: by default what the run did, what it left, and its warning."""
    # What failed in this run may have been had in it too, at a later try.
    run.messages_failed = FailedMessage.objects.filter(
        mailbox__source=source, first_failed_at__gte=run.started_at
    ).count()
    if message is None:
        message = " ".join(filter(None, (summary(run), _left_behind(source), run.warning)))
    sql.recount_source(source.pk)  # a worker may have died before it did
    Run.objects.filter(pk=run.pk).update(
        status=status,
        message=message,
        finished_at=Now(),
        messages_failed=run.messages_failed,
        messages_total=F("messages_done") + run.messages_failed,
    )
    changes: dict[str, object] = {
        "last_sync_finished_at": Now(),
        "last_sync_status_message": message,
        "next_sync_at": Now() + Options.of(source.options).sync_interval,
    }
    if status == RunStatus.COMPLETED and run.kind == RunKind.IMPORT:
        changes["imported_at"] = Now()
    IngestionSource.objects.filter(pk=source.pk).update(**changes)
    if status == RunStatus.COMPLETED and source.status == SourceStatus.IMPORTING:
        move(source, SourceStatus.ACTIVE, reason=message, actor="ingestion")
