"""How much room the archive has, how fast it grows, and so for how long that is enough."""

import dataclasses
import datetime as dt

from django.core.cache import cache
from django.db.models import Min, Sum
from django.utils import timezone

from ingestion.models import Pack
from ingestion.packs.store import store

MIN_FREE_BYTES = 1_000_000_000
LOW_FREE_SHARE = 0.05
#: A pack needs as much (engine.commit).
_FULL_BYTES = 16_000_000
_MEASURED_DAYS = 7
_KEY = "ingestion:archive_growth"
#: The sum reads all packs of a week, of which each sync with new mail makes one.
_MEASURED_EVERY_SECONDS = 3_600


@dataclasses.dataclass(frozen=True, slots=True)
class Room:
    """Of where the archive is, in bytes."""

    free: int
    total: int
    per_day: float

    @property
    def days_left(self) -> float | None:
        """For how long it is enough if it goes on like this; None where nothing grows."""
        return self.free / self.per_day if self.per_day else None

    @property
    def is_low(self) -> bool:
        return self.free < MIN_FREE_BYTES or self.free < self.total * LOW_FREE_SHARE

    @property
    def is_full(self) -> bool:
        return self.free < _FULL_BYTES


def room() -> Room | None:
    """Measure it; None where there is no limit to be known. Raises OSError where the archive can't
    be read."""
    found = store().room()
    return Room(*found, per_day()) if found else None


def per_day() -> float:
    """How many bytes a day the archive grows by."""
    known = cache.get_or_set(_KEY, _bytes_per_day, timeout=_MEASURED_EVERY_SECONDS)
    return float(known or 0.0)


def _bytes_per_day() -> float:
    """What packs of the last week take, by the days since the first of them."""
    now = timezone.now()
    since = now - dt.timedelta(days=_MEASURED_DAYS)
    week = Pack.objects.filter(created_at__gt=since).aggregate(
        size=Sum("size_bytes"), first=Min("created_at")
    )
    if not week["size"]:
        return 0.0
    days = (now - week["first"]) / dt.timedelta(days=1)
    return float(week["size"] / min(max(days, 1.0), _MEASURED_DAYS))
