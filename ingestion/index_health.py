"""How much of what is archived can be found: one definition for all pages.

By packs, so that it costs the same on ten million messages.
"""

import datetime as dt
from typing import Any, NamedTuple

from django.db.models import Count, F, Min, OuterRef, Q, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce, JSONObject

from ingestion.models import INDEX_VERSION, IngestionSource, Pack

#: Also by an earlier version: what it read is found until it is read again.
_FOUND = Q(index_version__gt=0)
_UNREADABLE = Q(index_version__lt=INDEX_VERSION, index_attempts__gt=0)
_SUMS = {
    "messages": Coalesce(Sum("message_count"), 0),
    "indexed": Coalesce(Sum("message_count", filter=_FOUND), 0),
    "outdated": Coalesce(
        Sum("message_count", filter=_FOUND & Q(index_version__lt=INDEX_VERSION)), 0
    ),
    "defects": Coalesce(Sum("index_defects", filter=_FOUND), 0),
    "unreadable_packs": Count("pk", filter=_UNREADABLE),
}


class Health(NamedTuple):
    """Of the messages that are archived: how many are indexed, and of those how many are to be read
    again and how many are not indexed in whole. `unreadable_packs` can't be read, for the first
    time or again, and are tried again."""

    messages: int = 0
    indexed: int = 0
    outdated: int = 0
    defects: int = 0
    unreadable_packs: int = 0

    @property
    def waiting(self) -> int:
        return self.messages - self.indexed

    def __str__(self) -> str:
        """Say "99,812 of 100,445 indexed, 3 with defects"."""
        return self.told(" indexed")

    def told(self, verb: str = "") -> str:
        """Say it with another verb, or with none where that is said already."""
        told = f"{self.indexed:,} of {self.messages:,}{verb}"
        if self.outdated:
            told += f", {self.outdated:,} to be read again"
        if self.defects:
            told += f", {self.defects:,} with defects"
        if self.unreadable_packs:
            noun = "pack" if self.unreadable_packs == 1 else "packs"
            told += f", {self.unreadable_packs:,} {noun} can't be read"
        return told


def as_object(health: Health) -> dict[str, int]:
    """Return it as the API shows it."""
    return {
        "indexedMessages": health.indexed,
        "unindexedMessages": health.waiting,
        "outdatedMessages": health.outdated,
        "indexDefects": health.defects,
        "unreadablePacks": health.unreadable_packs,
    }


def with_health(sources: QuerySet[IngestionSource]) -> QuerySet[Any]:
    """Annotate what `of` reads."""
    packs = Pack.objects.filter(source=OuterRef("pk")).order_by().values("source")
    sums = packs.annotate(sums=JSONObject(**_SUMS)).values("sums")
    return sources.annotate(index_sums=Subquery(sums))


def of(source: Any) -> Health:
    """Return the health of a source that came through `with_health`."""
    return Health(**(source.index_sums or {}))


def in_all(sources: QuerySet[IngestionSource]) -> Health:
    """Return the health of sources together."""
    return Health(
        **Pack.objects.filter(source__in=sources.order_by().values("pk")).aggregate(**_SUMS)
    )


def waiting_since(sources: QuerySet[IngestionSource]) -> dt.datetime | None:
    """Return since when a pack waits that was never indexed and can be; None where none does."""
    waiting = Pack.objects.filter(
        source__in=sources.order_by().values("pk"), index_version=0, index_attempts=0
    )
    found: dt.datetime | None = waiting.aggregate(at=Min(F("index_not_before")))["at"]
    return found
