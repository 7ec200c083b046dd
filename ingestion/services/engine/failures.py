"""Messages that could not be had: trying them again because somebody asked."""

from collections.abc import Collection

from django.db.models.functions import Now

from ingestion.models import FailedMessage, IngestionSource, Mailbox
from ingestion.services.audit import Actor, audit
from ingestion.services.sources import verbs
from ingestion.services.sources.status import locked
from ingestion.services.transactions import in_transaction


@in_transaction
def retry(source: IngestionSource, *, actor: Actor, ids: Collection[int] | None = None) -> int:
    """Make failed messages due now (all, or those of `ids`) and start a sync; return how many.

    Raises NotAllowedNow when the source is paused, LostRace. Opens its own transaction.
    """
    source = locked(source)
    failed = FailedMessage.objects.filter(mailbox__source=source)
    if ids is not None:
        failed = failed.filter(pk__in=ids)
    # A worker that holds a mailbox's row writes its failures next: see engine.runs.
    owners = Mailbox.objects.filter(pk__in=failed.values("mailbox")).order_by("pk")
    list(owners.select_for_update(no_key=True).values_list("pk", flat=True))
    count = failed.update(not_before=Now())
    if count:
        audit(actor, "source.retry_failures", source, {"count": count})
        verbs.start_sync(source, actor=actor)
    return count
