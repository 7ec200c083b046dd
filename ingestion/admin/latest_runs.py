"""The latest runs, with the many syncs that found nothing folded into a line."""

import dataclasses
import datetime as dt
import itertools
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from django.db.models import QuerySet

from ingestion.models import Run
from ingestion.states import RunKind, RunStatus

#: So many runs are looked at; what is older is in the list of runs.
_LOOKED_AT = 300


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """A run; or, without one, `syncs` in a row without news, the newest and the oldest of them."""

    run: Run | None = None
    syncs: int = 0
    sources: int = 0
    newest: dt.datetime | None = None
    oldest: dt.datetime | None = None


#: What is read of each run that is shown (`runs_table.html`): of its source the name alone, for the
#: rest of that row is as large as what people configured, and encrypted secrets.
_SHOWN = (
    *("source__name", "kind", "actor", "status", "message", "warning", "started_at"),
    "finished_at",
)


class _Seen(NamedTuple):
    """What is read of each run that is looked at: the whole of a row takes four times as long."""

    pk: uuid.UUID
    source: uuid.UUID
    kind: str
    status: str
    messages_new: int
    messages_failed: int
    messages_gone: int
    started_at: dt.datetime

    def is_quiet(self) -> bool:
        came = self.messages_new or self.messages_failed or self.messages_gone
        return self.kind == RunKind.SYNC and self.status == RunStatus.COMPLETED and not came


def lines(runs: QuerySet[Run], *, limit: int) -> list[Line]:
    """Return at most `limit` lines, the newest first. Two queries."""
    found = runs.filter(source__deleted_at=None).order_by("-started_at", "-id")
    seen = map(_Seen._make, found.values_list(*_Seen._fields)[:_LOOKED_AT])
    shown = list(itertools.islice(_folded(seen), limit))
    rows = Run.objects.select_related("source").only("source", *_SHOWN)
    whole = rows.in_bulk(group[0].pk for group in shown)
    return [_line(group, whole[group[0].pk]) for group in shown if group[0].pk in whole]


def _line(group: Sequence[_Seen], newest: Run) -> Line:
    if len(group) == 1:
        return Line(run=newest)
    return Line(
        syncs=len(group),
        sources=len({run.source for run in group}),
        newest=newest.started_at,
        oldest=group[-1].started_at,
    )


def _folded(seen: Iterable[_Seen]) -> Iterator[list[_Seen]]:
    """Yield runs one by one, and syncs in a row without news together."""
    for quiet, group in itertools.groupby(seen, key=_Seen.is_quiet):
        together = list(group)
        yield from [together] if quiet else [[run] for run in together]
