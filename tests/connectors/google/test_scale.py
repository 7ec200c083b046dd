"""A large domain: listing, dispatching and status stay fast, and one bad mailbox delays nobody."""

import concurrent.futures
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection

from ingestion import queries
from ingestion.models import IngestionSource, Mailbox, Message, Run
from ingestion.services.audit import Actor
from ingestion.services.engine import due_work, runs, sync
from ingestion.services.sources import configuration, credentials
from tests.servers import google_sources
from tests.servers.gmail import Gmail

pytestmark = pytest.mark.django_db(transaction=True)
ACTOR = Actor.system("test")
#: All are listed and dispatched; so many of them have their mail copied: the time of a test.
USERS, COPIED, WORKERS = 2_000, 120, 3


@pytest.fixture
def google(settings: Any, tmp_path: Path) -> Iterator[Gmail]:
    with Gmail() as server:
        settings.PROVIDER_ENDPOINTS = server.endpoints
        settings.PROVIDER_QUOTAS = {"google": google_sources.AMPLE}
        settings.ARCHIVE_DIR = tmp_path / "archive"
        yield server


def test_two_thousand_users_of_whom_one_fails_for_ever(google: Gmail) -> None:
    config = google_sources.domain(google)
    for number in range(USERS - 1):
        person = google.add(f"user{number:04}@example.com")
        person.deliver(b"Subject: %d\r\n\r\n" % number)
    bad = google.people["user0001@example.com"]
    google.faults.broken_people.add(bad.address)
    source = configuration.create(
        owner=User.objects.create_user("owner"), name="Large", provider="google",
        provider_config=config, auto_import=True, actor=ACTOR,
    )  # fmt: skip
    assert credentials.check(source, actor=ACTOR).ok
    took: dict[str, float] = {}
    run = Run.objects.get()

    began = time.monotonic()
    [work] = [work for work in due_work.hand_out() if work.kind == "discover"]
    due_work.do(work)
    took["directory"] = time.monotonic() - began
    assert google.count("users.list") == 1 + USERS // 500  # the first is of the check
    assert Mailbox.objects.filter(run=run).count() == USERS

    began = time.monotonic()
    handed_out = [work for work in due_work.hand_out(limit=USERS) if work.kind == "mailbox"]
    took["dispatch"] = time.monotonic() - began
    assert len(handed_out) == USERS

    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        chosen = Mailbox.objects.order_by("address").values_list("pk", flat=True)[:COPIED]
        stripes = [list(chosen)[number::WORKERS] for number in range(WORKERS)]
        durations = [seconds for stripe in pool.map(_work, stripes) for seconds in stripe]
    took["mailboxes"] = time.monotonic() - began
    assert Message.objects.count() == COPIED - 2  # the administrator has none, the bad one neither
    row = Mailbox.objects.get(address=bad.address)
    assert (row.attempts, row.last_error_code) == (1, "unavailable")
    assert row.run_id == run.pk  # it is tried again, later
    slowest = sorted(durations)[-2:]  # the bad one, and another

    began = time.monotonic()
    [shown] = queries.with_counts(queries.visible_sources(source.owner))
    current = queries.current_runs([shown])[source.pk]
    assert (current.mailboxes_total, current.mailboxes_done) == (USERS, COPIED - 1)
    assert not runs.finish_if_done(run.pk)
    took["status"] = time.monotonic() - began
    print({name: f"{seconds:.2f} s" for name, seconds in took.items()}, slowest)
    assert took["directory"] < 50
    assert took["dispatch"] < 30
    assert took["status"] < 10
    assert sum(durations) - slowest[-1] < 2 * took["mailboxes"] * WORKERS

    IngestionSource.objects.filter(pk=source.pk).update(status="paused")


def _work(mailboxes: list[Any]) -> list[float]:
    """Do the work of one worker; return how long each mailbox took."""
    durations: list[float] = []
    for pk in mailboxes:
        began = time.monotonic()
        sync.sync_mailbox(pk)
        durations.append(time.monotonic() - began)
    connection.close()
    return durations
