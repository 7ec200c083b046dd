"""A large domain: few statements list it, hand it out and count it; a bad mailbox delays nobody."""

import concurrent.futures
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext

from ingestion import freshness, queries
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
#: Statements that do not grow with each user: they go by hundreds.
FEW = USERS // 20


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
    run = Run.objects.get()

    with CaptureQueriesContext(connection) as asked:
        [work] = [work for work in due_work.hand_out() if work.kind == "discover"]
        due_work.do(work)
    assert len(asked) < FEW
    assert google.count("users.list") == 1 + USERS // 500  # the first is of the check
    assert Mailbox.objects.filter(run=run).count() == USERS

    with CaptureQueriesContext(connection) as asked:
        handed_out = [work for work in due_work.hand_out(limit=USERS) if work.kind == "mailbox"]
    assert len(asked) < FEW
    assert len(handed_out) == USERS

    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        chosen = Mailbox.objects.order_by("address").values_list("pk", flat=True)[:COPIED]
        stripes = [list(chosen)[number::WORKERS] for number in range(WORKERS)]
        list(pool.map(_work, stripes))
    assert Message.objects.count() == COPIED - 2  # the administrator has none, the bad one neither
    row = Mailbox.objects.get(address=bad.address)
    assert (row.attempts, row.last_error_code) == (1, "unavailable")
    assert row.run_id == run.pk  # it is tried again, later

    with CaptureQueriesContext(connection) as asked:
        judged = freshness.judged(queries.visible_sources(source.owner))
        [shown] = queries.with_counts(freshness.read(judged))
    [current] = shown.unfinished_runs
    assert (current.mailboxes_total, current.mailboxes_done) == (USERS, COPIED - 1)
    assert len(asked) < FEW
    assert not runs.finish_if_done(run.pk)

    IngestionSource.objects.filter(pk=source.pk).update(status="paused")


def _work(mailboxes: list[Any]) -> None:
    """Do the work of one worker."""
    for pk in mailboxes:
        sync.sync_mailbox(pk)
    connection.close()
