"""Measures what a beat costs the database. A process of its own, for it needs Django's settings.

`python -m bench.beats SOURCES DUE ROUNDS` fills the database of VAR_DIR, then hands out due work
twice per round: once with DUE sources that are due, once with nothing new. Prints JSON: for each
beat {"milliseconds", "statements", "handed_out"}. The time is a client's: from sending each
statement (COMMITs included) until its answer.
"""

import datetime as dt
import json
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import django

from ingestion_project import bootstrap

_FINISHED_RUNS = 3
_BATCH = 2_000


class Stopwatch:
    """Sums the time of a connection's statements and commits."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.statements = 0

    def __call__(self, execute: Callable[..., Any], *arguments: Any) -> Any:
        return self.timed(execute)(*arguments)

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                self.seconds += time.perf_counter() - started
                self.statements += 1

        return measured


def main(sources: int, due: int, rounds: int) -> None:
    if bootstrap.main():
        raise SystemExit(1)
    django.setup()
    _fill(sources)
    beats = []
    for number in range(rounds):
        _make_due(due, number)
        beats += [_beat(), _beat()]
    if [beat["handed_out"] for beat in beats] != [due, 0] * rounds:
        raise SystemExit(f"What was due was not what was handed out: {beats}")
    print(json.dumps(beats))


def _beat() -> dict[str, float]:
    from django.db import connection  # noqa: PLC0415 - after django.setup()

    from ingestion.services.engine import due_work  # noqa: PLC0415 - after django.setup()

    watch = Stopwatch()
    connection.ensure_connection()
    raw = connection.connection
    raw.commit = watch.timed(type(raw).commit.__get__(raw))
    with connection.execute_wrapper(watch):
        handed_out = sum(1 for _ in due_work.hand_out())
    del raw.commit
    return {
        "milliseconds": watch.seconds * 1000,
        "statements": watch.statements,
        "handed_out": handed_out,
    }


def _fill(count: int) -> None:
    """Make sources as they are after some weeks: imported, followed, with a history of runs."""
    from django.contrib.auth.models import User  # noqa: PLC0415 - after django.setup()
    from django.db import connection  # noqa: PLC0415 - after django.setup()
    from django.utils import timezone  # noqa: PLC0415 - after django.setup()

    from ingestion.models import IngestionSource, Mailbox, Run  # noqa: PLC0415 - as above

    owner, now = User.objects.get(username="admin"), timezone.now()
    sources = [
        IngestionSource(
            owner=owner,
            name=f"Source {number}",
            provider="microsoft",  # one account alone is looked at first, and begins nothing
            config={"tenantId": f"tenant{number}.example.com", "clientId": str(uuid.uuid4())},
            status="active",
            proven_at=now,
            imported_at=now,
            next_sync_at=now + dt.timedelta(days=1, seconds=number),
            check_not_before=now,
        )
        for number in range(count)
    ]
    IngestionSource.objects.bulk_create(sources, batch_size=_BATCH)
    Mailbox.objects.bulk_create(
        [Mailbox(source=s, remote_id=s.name, address=s.name, not_before=now) for s in sources],
        batch_size=_BATCH,
    )
    Run.objects.bulk_create(
        [
            Run(
                source=source,
                kind="sync",
                status="completed",
                actor="schedule",
                discovered_at=now,
                not_before=now,
                started_at=now - dt.timedelta(minutes=5 * age),
                finished_at=now - dt.timedelta(minutes=5 * age),
            )
            for source in sources
            for age in range(_FINISHED_RUNS)
        ],
        batch_size=_BATCH,
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


def _make_due(count: int, number: int) -> None:
    """End what the round before began, and let the time of the next `count` sources have come."""
    from django.utils import timezone  # noqa: PLC0415 - after django.setup()

    from ingestion.models import IngestionSource, Run  # noqa: PLC0415 - as above

    now = timezone.now()
    Run.objects.filter(finished_at=None).update(
        finished_at=now, discovered_at=now, status="completed"
    )
    names = [f"Source {n}" for n in range(number * count, (number + 1) * count)]
    IngestionSource.objects.filter(name__in=names).update(next_sync_at=now)


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:4]))
