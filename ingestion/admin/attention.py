"""What needs somebody: the list on the first page, each line with the button that mends it.

A new kind of line is a function in WATCHES.
"""

import dataclasses
from collections.abc import Callable, Sequence

from django.db.models import Case, When
from django.http import HttpRequest

from ingestion import freshness
from ingestion.admin import display, mending
from ingestion.admin.mending import Mend
from ingestion.models import IngestionSource
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


def items(request: HttpRequest) -> list[Item]:
    """Return all that needs somebody, the worst first. Each watch costs a constant number of
    queries."""
    found = [item for watch in WATCHES for item in watch(request)]
    return sorted(found, key=lambda item: item.tone != "danger")


def _sources(request: HttpRequest) -> list[Item]:
    sources = IngestionSource.objects.filter(deleted_at=None)
    worst = Case(When(status=SourceStatus.ERROR, then=0), When(is_late=True, then=1), default=2)
    needing = freshness.judged(sources).filter(needs_attention=True).order_by(worst, "name")
    may_change = request.user.has_perm("ingestion.change_ingestionsource")
    return [
        Item(
            title=source.name,
            url=display.page_of(source),
            why=[str(reason) for reason in freshness.reasons(source)],
            tone=display.source_tone(source),
            badge=display.source_status(source),
            mend=mending.of(source) if may_change else None,
        )
        for source in needing[:MOST]
    ]


#: Each gives the lines of one kind, for who may see them.
WATCHES: tuple[Callable[[HttpRequest], list[Item]], ...] = (_sources,)
