"""Events: what happened that somebody may want to be told of. Written from every room.

An event has a type, a source or none, and data. Here it becomes a row for each webhook that wants
it, in the transaction of what happened: told at least once, and not where that was rolled back.
"""

import datetime as dt
from collections.abc import Mapping
from typing import Any

from django.contrib.auth.models import User
from django.db.models.functions import Now

from ingestion import queries
from ingestion.models import IngestionSource, WebhookDelivery, WebhookEndpoint
from ingestion.models.webhook import Event


def announce(
    event: Event,
    source: IngestionSource | None,
    data: Mapping[str, Any],
    *,
    once_in: dt.timedelta | None = None,
) -> None:
    """Owe an event to everybody who asked for it and may see its source; one without a source to
    staff who see all sources. `once_in`: not to whom the like was told so recently.

    Call inside the transaction that does it. No mail and no secrets in `data`, which is JSON.
    """
    wanting = WebhookEndpoint.objects.filter(
        enabled=True, owner__is_active=True, events__contains=[event]
    )
    about: dict[str, Any] = {"event": event, "source_id": source.pk if source else None}
    if once_in is not None:
        told = WebhookDelivery.objects.filter(**about, created_at__gt=Now() - once_in)
        wanting = wanting.exclude(pk__in=told.values("endpoint"))
    named = {"sourceId": str(source.pk), "sourceName": source.name} if source else {}
    WebhookDelivery.objects.bulk_create(
        [
            WebhookDelivery(endpoint=endpoint, data={**named, **data}, **about)
            for endpoint in wanting.select_related("owner")
            if _may_see(endpoint.owner, source)
        ]
    )


def _may_see(user: User, source: IngestionSource | None) -> bool:
    if source is None:
        return queries.sees_service(user)
    return queries.visible_sources(user).filter(pk=source.pk).exists()
