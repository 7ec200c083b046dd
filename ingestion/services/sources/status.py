"""The only writer of a source's status. The table of moves is `ingestion.states`."""

import uuid

from django.db.models.functions import Now

from ingestion.errors import LostRace, NotAllowedNow
from ingestion.models import IngestionSource, Mailbox, Run, StatusChange
from ingestion.models.webhook import Event
from ingestion.services.audit import Actor
from ingestion.services.events import announce
from ingestion.states import MOVES, RUNNABLE, SourceStatus


def move(
    source: IngestionSource, to: SourceStatus, *, reason: str, actor: Actor | str, code: str = ""
) -> None:
    """Change the status, or raise NotAllowedNow or LostRace. Call inside a transaction. `code`: of
    the error that is the reason.

    Writes WHERE status = the one in `source`, so of two movers one is told that it lost.
    """
    old = SourceStatus(source.status)
    if to not in MOVES[old]:
        raise NotAllowedNow(
            f"A source that is {old.label.lower()} can't become {to.label.lower()}."
        )
    changed = IngestionSource.objects.filter(pk=source.pk, status=old, deleted_at=None).update(
        status=to, status_message=reason, status_code=code, updated_at=Now()
    )
    if changed != 1:
        raise LostRace("The source was changed at the same time. Read it again.")
    StatusChange.objects.create(
        source=source,
        from_status=old,
        to_status=to,
        reason=reason,
        actor=actor if isinstance(actor, str) else actor.name,
    )
    source.status, source.status_message, source.status_code = to, reason, code
    if to in RUNNABLE and old not in RUNNABLE:  # what failed before is tried anew
        for rows in (Mailbox.objects, Run.objects.filter(finished_at=None)):
            rows.filter(source=source, failing_since__isnull=False).update(failing_since=None)
    if to == SourceStatus.ERROR:
        announce(Event.SOURCE_ERROR, source, {"message": reason})


def locked(source: IngestionSource) -> IngestionSource:
    """Read the source again and lock its row. Raises LostRace where it was deleted.

    Rows that refer to it can be inserted meanwhile: a capture must not wait for us.
    """
    return locked_by_id(source.pk)


def locked_by_id(pk: uuid.UUID) -> IngestionSource:
    """As `locked`, where nobody has read it before."""
    rows = IngestionSource.objects.select_for_update(no_key=True)
    found = rows.filter(pk=pk, deleted_at=None)
    try:
        return found.get()
    except IngestionSource.DoesNotExist:
        raise LostRace("The source was deleted.") from None
