"""What beat goes by."""

import time
from typing import Any

from celery.beat import Scheduler

from ingestion_project.celery import app


def test_a_clock_that_is_set_back_stops_nothing() -> None:
    """An hour back, and beat would send nothing for an hour: it goes by a clock that nobody sets."""
    entries: list[Any] = list(Scheduler(app).schedule.values())
    assert "ingestion.tasks.dispatch" in {entry.task for entry in entries}
    for entry in entries:
        for now in (entry.last_run_at, entry.default_now(), entry.schedule.now()):
            assert 0 <= time.monotonic() - now.timestamp() < 60
