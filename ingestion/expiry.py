"""When a source's credentials expire: as somebody told it, or as its certificate says."""

import datetime as dt

from django.utils import timezone

from connectors import registry
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


def days_left(day: dt.date) -> int:
    """Return in how many days that is; less than 1: they have expired."""
    return (day - timezone.now().date()).days
