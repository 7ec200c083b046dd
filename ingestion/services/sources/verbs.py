"""What people and programs do with a source: pause, resume, import, sync, fail, delete it.

Status changes only through `sources.status.move`, by the table of moves in `ingestion.states`.
"""

from typing import Any

from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone

from ingestion.crypto import Secrets
from ingestion.errors import InvalidInput, NotAllowedNow
from ingestion.models import IngestionSource, Mailbox, Run
from ingestion.services import alerts
from ingestion.services.audit import Actor, audit
from ingestion.services.engine import runs
from ingestion.services.sources.status import locked, move
from ingestion.services.transactions import in_transaction
from ingestion.states import CLIENT_MOVES, RunKind, SourceStatus


@in_transaction
def pause(source: IngestionSource, *, actor: Actor) -> IngestionSource:
    """Stop all work; running work stops within one page. Twice is fine. Opens its own transaction.

    Raises NotAllowedNow for a source whose credentials are not proven yet.
    """
    source = locked(source)
    if source.status != SourceStatus.PAUSED:
        _pause(source, actor)
    source.refresh_from_db()
    return source


def _pause(source: IngestionSource, actor: Actor) -> None:
    if source.status == SourceStatus.PENDING_AUTH:
        raise NotAllowedNow(
            "The source's credentials are still being checked. Pause it when that is done."
        )
    source.hold = True
    source.save(update_fields=["hold"])
    move(source, SourceStatus.PAUSED, reason=f"Paused by {actor.name}.", actor=actor)
    audit(actor, "source.pause", source, {})


@in_transaction
def resume(source: IngestionSource, *, actor: Actor) -> IngestionSource:
    """Go on where pause or an error stopped. A source that runs is left alone.

    Opens its own transaction.
    """
    source = locked(source)
    if source.status in (SourceStatus.PAUSED, SourceStatus.ERROR):
        _resume(source, actor)
    source.refresh_from_db()
    return source


def _resume(source: IngestionSource, actor: Actor) -> None:
    source.hold = False
    source.save(update_fields=["hold"])
    to = natural_status(source)
    if to == SourceStatus.PENDING_AUTH:
        recheck(source, reason=f"Resumed by {actor.name}.", actor=actor)
    else:
        move(source, to, reason=f"Resumed by {actor.name}.", actor=actor)
    runs.make_due_now(source)
    IngestionSource.objects.filter(pk=source.pk, next_sync_at__gt=Now()).update(next_sync_at=Now())
    audit(actor, "source.resume", source, {})


@in_transaction
def start_import(source: IngestionSource, *, actor: Actor) -> Run:
    """Start the import, or return the run that is under way. Opens its own transaction.

    From pending_auth or error the credentials are checked first. Raises NotAllowedNow when paused.
    """
    return begin_run(locked(source), RunKind.IMPORT, actor)


@in_transaction
def start_sync(source: IngestionSource, *, actor: Actor) -> Run:
    """Sync now, or return the run that is under way; a source never imported imports. What such a
    run is done with is followed again, so that what came since is had too.

    Raises NotAllowedNow when paused. Opens its own transaction.
    """
    source = locked(source)
    kind = RunKind.SYNC if source.imported_at else RunKind.IMPORT
    run = begin_run(source, kind, actor)
    runs.follow_again(source)
    return run


def fail(source: IngestionSource, reason: str, *, actor: Actor | str, code: str = "") -> None:
    """Move to error and end the unfinished run: an operator must act. Call inside a transaction."""
    source.proven_at = None
    source.save(update_fields=["proven_at"])
    move(source, SourceStatus.ERROR, reason=reason, code=code, actor=actor)
    say(source, reason, code=code)
    runs.finish_unfinished(source, failed=True, message=reason)


@in_transaction
def delete(source: IngestionSource, *, actor: Actor) -> None:
    """Take the source out of every answer at once; `sources.deletion` removes the rest.

    Webhooks are told that its alerts are over, while their owners may still see it.
    Raises LostRace where it was deleted before. Opens its own transaction.
    """
    alerts.end_all(source.pk, "The source was deleted.")
    source = locked(source)
    source.deleted_at = timezone.now()
    source.secrets = Secrets()  # of no more use, so it is not kept while the rest goes
    source.save(update_fields=["deleted_at", "secrets"])
    # Every worker that holds a lease of this source finds its token gone at the next commit.
    Mailbox.objects.filter(source=source).update(
        lease_token=F("lease_token") + 1, lease_expires_at=None, run=None
    )
    audit(actor, "source.delete", source, {"name": source.name})


def move_for_client(source: IngestionSource, to: Any, actor: Actor) -> None:
    """Pause or resume, as a client asks for by a status. Call under the source's row lock.

    Raises InvalidInput, NotAllowedNow.
    """
    try:
        wanted = SourceStatus(to)
    except ValueError:
        known = ", ".join(SourceStatus.values)
        raise InvalidInput({"status": [f"Must be one of: {known}."]}) from None
    here = SourceStatus(source.status)
    if wanted == here:
        return
    allowed = CLIENT_MOVES[here]
    if here == SourceStatus.PAUSED:
        allowed = frozenset({natural_status(source)})
    if wanted not in allowed:
        names = ", ".join(sorted(allowed)) or "none"
        raise NotAllowedNow(f"From {here} a client may move to: {names}. Not to {wanted}.")
    if wanted == SourceStatus.PAUSED:
        _pause(source, actor)
    else:
        _resume(source, actor)


def begin_run(source: IngestionSource, kind: RunKind, actor: Actor) -> Run:
    """Start a run, or return the one that is under way. Call under the source's row lock, which
    makes two of these wait for each other. Raises NotAllowedNow when paused."""
    if source.status == SourceStatus.PAUSED:
        raise NotAllowedNow("The source is paused. Resume it first.")
    if source.status == SourceStatus.ERROR:
        recheck(source, reason=f"Started by {actor.name}.", actor=actor)
    run, created = runs.start(source, kind=kind, actor=actor.name)
    if created:
        audit(actor, f"source.{kind}", source, {"run": str(run.pk)})
        if kind == RunKind.IMPORT and source.status == SourceStatus.AUTH_SUCCESS:
            move(source, SourceStatus.IMPORTING, reason="Import started.", actor=actor)
    runs.make_due_now(source)
    return run


def recheck(source: IngestionSource, *, reason: str, actor: Actor) -> None:
    """Go to pending_auth, due at once; a check that passes returns to where the source was.

    Call under the source's row lock.
    """
    source.proven_at = None
    source.check_attempts = 0
    source.handed_out_at = None
    source.check_not_before = Now()
    source.credentials_version += 1  # what was asked before says nothing of what is asked now
    source.save(
        update_fields=[
            "proven_at",
            "check_attempts",
            "handed_out_at",
            "check_not_before",
            "credentials_version",
        ]
    )
    if source.status != SourceStatus.PENDING_AUTH:
        move(source, SourceStatus.PENDING_AUTH, reason=reason, actor=actor)


def natural_status(source: IngestionSource) -> SourceStatus:
    """Where a source stands that nothing holds back."""
    if source.proven_at is None:
        return SourceStatus.PENDING_AUTH
    if source.imported_at is not None:
        return SourceStatus.ACTIVE
    importing = Run.objects.filter(source=source, finished_at=None).exists()
    return SourceStatus.IMPORTING if importing else SourceStatus.AUTH_SUCCESS


def say(source: IngestionSource, message: str, *, code: str) -> None:
    """Tell why nothing is archived yet, also where clients look for what the last sync did."""
    source.status_message = source.last_sync_status_message = message
    source.status_code = code
    source.save(update_fields=["status_message", "last_sync_status_message", "status_code"])
