"""The latest runs, with the many syncs that found nothing folded into a line."""

import dataclasses
import datetime as dt
import itertools
from collections.abc import Iterator

from django.db.models import QuerySet

from ingestion.models import IngestionSource, Run
from ingestion.states import RunKind, RunStatus

#: So many runs are looked at; what is older is in the list of runs.
_LOOKED_AT = 300
#: To read moments takes as long as all the rest of a row.
_NOT_SHOWN = (
    *("discovered_at", "not_before", "handed_out_at", "asked_at", "progress_at"),
    *("rate_since", "rate_next_at"),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """A run; or, without one, `syncs` in a row without news, the newest and the oldest of them."""

    run: Run | None = None
    syncs: int = 0
    sources: int = 0
    newest: dt.datetime | None = None
    oldest: dt.datetime | None = None


def lines(runs: QuerySet[Run], *, limit: int) -> list[Line]:
    """Return at most `limit` lines, the newest first. Two queries."""
    found = runs.filter(source__deleted_at=None).order_by("-started_at", "-id")
    found = found.defer(*_NOT_SHOWN)[:_LOOKED_AT]
    shown = list(itertools.islice(_folded(found), limit))
    # The names alone, and of those that are shown: a source's row has much else.
    ids = {line.run.source_id for line in shown if line.run}
    names = IngestionSource.objects.only("name").in_bulk(ids)
    for line in shown:
        if line.run:
            line.run.source = names[line.run.source_id]
    return shown


def _folded(found: QuerySet[Run]) -> Iterator[Line]:
    for quiet, group in itertools.groupby(found, key=_is_quiet):
        together = list(group)
        if quiet and len(together) > 1:
            yield Line(
                syncs=len(together),
                sources=len({run.source_id for run in together}),
                newest=together[0].started_at,
                oldest=together[-1].started_at,
            )
        else:
            yield from (Line(run=run) for run in together)


def _is_quiet(run: Run) -> bool:
    came = run.messages_new or run.messages_failed or run.messages_gone
    return run.kind == RunKind.SYNC and run.status == RunStatus.COMPLETED and not came
