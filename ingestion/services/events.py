"""Events: what happened that somebody may want to be told of. Written from every room.

An event has a type, a source or none, and data. Here it becomes a row for each webhook that wants
it, in the transaction of what happened: told at least once, and not where that was rolled back.
"""

import dataclasses
import datetime as dt
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from django.db import connection
from django.db.models import QuerySet
from django.db.models.functions import Now

from ingestion import queries
from ingestion.models import IngestionSource, WebhookDelivery, WebhookEndpoint
from ingestion.models.webhook import Event


@dataclasses.dataclass(frozen=True, slots=True)
class Happening:
    """An event of a source, or of the service. No mail and no secrets in `data`, which is JSON."""

    event: Event
    source: IngestionSource | None
    data: Mapping[str, Any]

    @property
    def source_id(self) -> uuid.UUID | None:
        return self.source.pk if self.source else None

    @property
    def named(self) -> dict[str, str]:
        if self.source is None:
            return {}
        return {"sourceId": str(self.source.pk), "sourceName": self.source.name}


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
    happened, told = Happening(event, source, data), WebhookDelivery.objects.none()
    if once_in is not None:
        told = WebhookDelivery.objects.filter(
            event=event,
            source_id=happened.source_id,
            created_at__range=(Now() - once_in, Now()),  # not by a clock that was ahead
        )
    _owe([happened], told)


def announce_all(happened: Sequence[Happening]) -> None:
    """Owe many events at once, each as `announce` does. The number of queries goes with how many
    people have webhooks."""
    _owe(happened, WebhookDelivery.objects.none())


def _owe(happened: Sequence[Happening], told: QuerySet[WebhookDelivery]) -> None:
    """`told`: their endpoints are not told again."""
    endpoints = WebhookEndpoint.objects.filter(
        enabled=True, owner__is_active=True, events__overlap=[one.event for one in happened]
    ).exclude(pk__in=told.values("endpoint"))
    may_hear = queries.Hearers(one.source_id for one in happened)
    owed = [
        WebhookDelivery(
            endpoint=endpoint,
            event=one.event,
            source_id=one.source_id,
            data={**one.named, **one.data},
        )
        for endpoint in endpoints.select_related("owner")
        for one in happened
        if one.event in endpoint.events and may_hear(endpoint.owner, one.source_id)
    ]
    there = held("webhookendpoint", {one.endpoint_id for one in owed})
    WebhookDelivery.objects.bulk_create([one for one in owed if one.endpoint_id in there])


_HOLD = "SELECT id FROM ingestion_{} WHERE id = ANY(%s) ORDER BY id FOR KEY SHARE"


def held(table: str, ids: Collection[Any]) -> set[Any]:
    """Return which of these rows are there, and will be until the end of the transaction: only then
    PostgreSQL asks for what is referred to, and refuses all of it where somebody deleted one."""
    if not ids:
        return set()
    with connection.cursor() as cursor:
        cursor.execute(_HOLD.format(table), (list(ids),))
        return {pk for (pk,) in cursor.fetchall()}
