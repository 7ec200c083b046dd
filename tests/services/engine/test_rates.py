"""How fast a run is, and how long the rest takes: over the last seconds, never over a pause."""

import datetime as dt
import uuid

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.db.models import F
from django.utils import timezone

from ingestion.models import Mailbox, Run
from ingestion.services.engine import counters
from tests.e2e.rows import a_mailbox, a_source


@pytest.fixture
def run(owner: User, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run whose clock is that of the test's transaction: it stands still but for `let_pass`."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT now()")
        (now,) = cursor.fetchone()
    monkeypatch.setattr(timezone, "now", lambda: now)
    mailbox = a_mailbox(a_source(owner))
    run = Run.objects.create(source=mailbox.source, kind="import", messages_total=100_000)
    Mailbox.objects.filter(pk=mailbox.pk).update(run=run)
    return run


def archive(run: Run, count: int) -> None:
    """Count messages as a commit does."""
    mailbox_id: uuid.UUID = Mailbox.objects.values_list("pk", flat=True).get(run=run)
    with transaction.atomic():
        counters.count(run.pk, mailbox_id, counters.Progress(messages=count, placed=count))
    run.refresh_from_db()


def let_pass(run: Run, seconds: float) -> None:
    """Let time pass: all that the run remembers is so much longer ago."""
    span = dt.timedelta(seconds=seconds)
    stamps = ("started_at", "progress_at", "rate_since", "rate_next_at")
    Run.objects.filter(pk=run.pk).update(**{name: F(name) - span for name in stamps})
    run.refresh_from_db()


def archive_for(run: Run, seconds: int, *, per_second: int) -> None:
    for _ in range(seconds):
        archive(run, per_second)
        let_pass(run, 1)


def test_less_than_ten_seconds_tell_no_rate_and_no_end(run: Run) -> None:
    archive_for(run, 9, per_second=300)
    assert run.messages_per_second is None
    assert run.eta_seconds is None
    archive_for(run, 1, per_second=300)
    assert run.messages_per_second == pytest.approx(300)


def test_the_rate_is_that_of_the_last_seconds(run: Run) -> None:
    archive_for(run, 60, per_second=1)
    archive_for(run, 32, per_second=500)
    assert run.messages_per_second == pytest.approx(500)
    left = 100_000 - 60 - 32 * 500
    assert run.eta_seconds == pytest.approx(left / 500)


def test_a_pause_counts_neither_before_nor_after_it(run: Run) -> None:
    archive_for(run, 40, per_second=500)
    let_pass(run, 3_600)
    assert run.messages_per_second is None  # an hour ago says nothing about now
    archive_for(run, 12, per_second=200)
    assert run.messages_per_second == pytest.approx(200)


def test_a_run_that_ended_tells_its_mean(run: Run) -> None:
    archive(run, 900)
    assert run.progress_at is not None
    Run.objects.filter(pk=run.pk).update(
        started_at=run.progress_at - dt.timedelta(seconds=90), finished_at=run.progress_at
    )
    run.refresh_from_db()
    assert run.messages_per_second == pytest.approx(10)
    assert run.eta_seconds is None
