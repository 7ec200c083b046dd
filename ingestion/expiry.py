"""When a source's credentials expire: as somebody told it, or as its certificate says."""

import datetime as dt
import inspect
from collections.abc import Iterator

from django.db.models import Q, QuerySet
from django.db.models.fields.json import KT
from django.utils import timezone

from connectors import registry
from connectors.config import Config
from ingestion.models import IngestionSource

#: The option of a source that somebody gives.
OPTION = "credentialsExpireOn"


def of(source: IngestionSource) -> dt.date | None:
    """Return the first day (UTC) on which they are not good any more; None where nobody knows."""
    told = source.options.get(OPTION)
    known = [registry.get(source.provider).config.expires_on(source.config)]
    if told:
        known.append(dt.date.fromisoformat(told))
    return min((day for day in known if day is not None), default=None)


def known(sources: QuerySet[IngestionSource]) -> Iterator[tuple[IngestionSource, dt.date]]:
    """Yield each of the sources of which somebody knows, and the day. Of the others, which are
    most, no row is read."""
    nobodys = inspect.getattr_static(Config, "expires_on")
    may_say = [
        slug
        for slug, provider in registry.PROVIDERS.items()
        if inspect.getattr_static(provider.config, "expires_on") is not nobodys
    ]
    asked = sources.alias(told=KT(f"options__{OPTION}"))
    for source in asked.filter(Q(told__isnull=False) | Q(provider__in=may_say)):
        day = of(source)
        if day is not None:
            yield source, day


def days_left(day: dt.date) -> int:
    """Return in how many days that is; less than 1: they have expired."""
    return (day - timezone.now().date()).days
