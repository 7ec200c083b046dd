"""What needs somebody: the list on the first page, each line with the button that mends it."""

import dataclasses
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from django.http import HttpRequest

from ingestion import explaining, freshness, queries
from ingestion.admin import display, mending
from ingestion.admin.mending import Mend
from ingestion.freshness import Verdict
from ingestion.models import AlertKind
from ingestion.states import SourceStatus

#: So many lines of each kind; lists have the others.
MOST = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """A line. `url`: its page; `why`: sentences; `tone`: "danger" where something stands still,
    "warning" where it will; `badge`: its state in a word or two; `mend`: None where waiting is all
    that can be done, or the person who asks may not."""

    title: str
    url: str
    why: Sequence[str]
    tone: str = "danger"
    badge: str = ""
    mend: Mend | None = None


def worst(found: Iterable[Verdict]) -> list[uuid.UUID]:
    """Return the ids of the sources that need somebody most."""
    needing = sorted(filter(freshness.needs_somebody, found), key=_worst)
    return [one.pk for one in needing[:MOST]]


def items(request: HttpRequest, needing: Iterable[Any]) -> list[Item]:
    """Return all that needs somebody, the worst first. `needing`: sources that
    `freshness.read` has read. Costs a constant number of queries."""
    items = [*_sources(request, needing), *_alerts(request)]
    return sorted(items, key=lambda item: item.tone != "danger")


def _sources(request: HttpRequest, needing: Iterable[Any]) -> list[Item]:
    may_change = request.user.has_perm("ingestion.change_ingestionsource")
    return [
        Item(
            title=source.name,
            url=display.page_of(source),
            why=[display.in_labels(source, str(one)) for one in explaining.reasons(source)],
            tone=display.source_tone(source),
            badge=display.source_status(source),
            mend=mending.of(source) if may_change else None,
        )
        for source in needing
    ]


def _worst(one: Verdict) -> tuple[bool, bool, str]:
    """Sorts errors first, then what is not reached, each by name."""
    return one.status != SourceStatus.ERROR, not freshness.is_unreached(one), one.name


def _alerts(request: HttpRequest) -> list[Item]:
    """Return the alerts that are open of what no source's state says."""
    if not request.user.has_perm("ingestion.view_alert"):
        return []
    assert request.user.is_authenticated
    found = queries.visible_alerts(request.user).filter(ended_at=None)
    return [
        Item(
            title=alert.source.name if alert.source else AlertKind(alert.kind).label,
            url=display.page_of(alert.source or alert),
            why=[alert.message],
            tone="danger" if alert.kind in _STANDS_STILL else "warning",
            badge=_BADGES[alert.kind],
        )
        for alert in found.filter(kind__in=_BADGES)[:MOST]
    ]


_BADGES: dict[str, str] = {
    AlertKind.SECRET_EXPIRES: "Expires",
    AlertKind.ARCHIVE_CORRUPT: "Damaged",
    AlertKind.ARCHIVE_STORAGE: "Storage",
    AlertKind.ARCHIVE_IDLE: "Idle",
    AlertKind.INDEX_STUCK: "Search",
    AlertKind.WORKERS_SILENT: "Workers",
}
_STANDS_STILL = frozenset(
    {AlertKind.ARCHIVE_CORRUPT, AlertKind.ARCHIVE_STORAGE, AlertKind.WORKERS_SILENT}
)
