"""Messages that could not be had: which are due, and trying them again because somebody asked.

`engine.sync` fetches them.
"""

from collections.abc import Collection, Iterator

from django.db.models import QuerySet
from django.db.models.functions import Now

from connectors.types import MessageRef
from ingestion.models import FailedMessage, IngestionSource, Mailbox
from ingestion.services.audit import Actor, audit
from ingestion.services.sources import verbs
from ingestion.services.sources.status import locked
from ingestion.services.transactions import in_transaction
from ingestion.states import ListAnew

_RETRY_ROWS = 2_000


def due(mailbox: Mailbox) -> QuerySet[FailedMessage]:
    """Return what is due, without what is known by an id that may be another message's by now: the
    listing of its folder says which."""
    found = FailedMessage.objects.filter(mailbox=mailbox, not_before__lte=Now())
    return found.exclude(folder__list_anew=ListAnew.BY_BYTES)


def batches(mailbox: Mailbox) -> Iterator[list[FailedMessage]]:
    """Yield what is due, each once; a server that refused everything left any number."""
    after = 0
    while True:
        found = due(mailbox).filter(pk__gt=after).order_by("pk")
        rows = list(found.defer("reason")[:_RETRY_ROWS])
        if not rows:
            return
        yield rows
        after = rows[-1].pk


def reference(row: FailedMessage) -> MessageRef:
    return MessageRef(
        remote_id=row.remote_id,
        size_bytes=row.size_bytes,
        stable_id=row.stable_id,
        received_at=row.received_at,
        labels=tuple(row.labels),
    )


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
