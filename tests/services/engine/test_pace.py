"""How often mailboxes are looked at: quiet ones more rarely, and at once when somebody asks."""

import datetime as dt
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from ingestion import freshness, pace
from ingestion.models import Folder, IngestionSource, Mailbox, Run
from ingestion.services.engine import due_work, sync
from ingestion.services.sources import discovery, verbs
from ingestion.states import ListAnew
from tests.servers.scripted_provider import Server
from tests.servers.scripted_source import ACTOR, start

pytestmark = pytest.mark.django_db(transaction=True)
MINUTE, HOUR = 60, 3600


def a_mailbox(owner: User, *, interval: int, quiet: float | None) -> Mailbox:
    """Return one that was synced just now, and to which nothing came for `quiet` seconds."""
    now = timezone.now()
    source = IngestionSource.objects.create(
        owner=owner, name="x", provider="generic_imap", status="active",
        options={"syncIntervalSeconds": interval},
    )  # fmt: skip
    last = None if quiet is None else now - dt.timedelta(seconds=quiet)
    return Mailbox.objects.create(
        source=source, remote_id="x", address="x", last_synced_at=now, last_mail_at=last
    )


@pytest.mark.parametrize(
    ("interval", "quiet", "expected"),
    [
        (5 * MINUTE, 0, 5 * MINUTE),
        (5 * MINUTE, None, 5 * MINUTE),  # nobody knows yet
        (5 * MINUTE, 2 * HOUR, 5 * MINUTE),
        (5 * MINUTE, 4 * HOUR, 10 * MINUTE),
        (5 * MINUTE, 300 * HOUR, 20 * MINUTE),
        (30 * MINUTE, 300 * HOUR, HOUR),
        (6 * HOUR, 3000 * HOUR, 6 * HOUR),
    ],
)
def test_the_longer_nothing_came_the_more_rarely_up_to_four_intervals_and_an_hour(
    interval: int, quiet: float | None, expected: float
) -> None:
    mailbox = a_mailbox(User.objects.create_user("p"), interval=interval, quiet=quiet)
    found = Mailbox.objects.annotate(pace=pace.seconds()).get(pk=mailbox.pk)
    assert found.pace == pytest.approx(expected, abs=1)


@pytest.mark.parametrize(("minutes", "late"), [(29, False), (31, True)])
def test_a_quiet_mailbox_is_late_by_its_own_turn(minutes: int, late: bool) -> None:
    mailbox = a_mailbox(User.objects.create_user("p"), interval=5 * MINUTE, quiet=300 * HOUR)
    ago = timezone.now() - dt.timedelta(minutes=minutes)
    Mailbox.objects.update(last_synced_at=ago)
    judged = freshness.judged(IngestionSource.objects.filter(pk=mailbox.source_id)).get()
    assert judged.is_late is late


def quiet_one_of_two(server: Server, source: IngestionSource) -> None:
    """Of two mailboxes that are followed nothing came to `b` for a week, and a sync is due."""
    server.accounts = ("a", "b")
    start(source)
    for mailbox in Mailbox.objects.all():
        sync.sync_mailbox(mailbox.pk)
    assert not Run.objects.filter(finished_at=None).exists()
    now = timezone.now()
    Mailbox.objects.filter(remote_id="a").update(last_mail_at=now)
    Mailbox.objects.filter(remote_id="b").update(last_mail_at=now - dt.timedelta(days=7))
    IngestionSource.objects.update(next_sync_at=now)


def given_work(source: IngestionSource) -> set[str]:
    """Begin what is due and list the mailboxes; return those that have work."""
    for work in due_work.hand_out():
        if work.kind == "discover":
            due_work.do_now(work)
    return set(Mailbox.objects.filter(run__isnull=False).values_list("remote_id", flat=True))


def test_a_scheduled_sync_leaves_quiet_mailboxes_their_rest(
    server: Server, source: IngestionSource
) -> None:
    quiet_one_of_two(server, source)
    assert given_work(source) == {"a"}
    run = Run.objects.get(finished_at=None)
    assert (run.mailboxes_total, run.mailboxes_done) == (2, 1)


def test_a_quiet_mailbox_has_its_turn_before_the_sync_after_would_be_too_late(
    server: Server, source: IngestionSource
) -> None:
    quiet_one_of_two(server, source)
    Mailbox.objects.update(last_synced_at=timezone.now() - dt.timedelta(minutes=16))
    assert given_work(source) == {"a", "b"}


def test_a_quiet_mailbox_that_owes_something_has_its_turn(
    server: Server, source: IngestionSource
) -> None:
    quiet_one_of_two(server, source)
    Mailbox.objects.filter(remote_id="b").update(last_error_code="unavailable")
    assert given_work(source) == {"a", "b"}


@pytest.mark.parametrize(
    "owing", [{"cursor": {}, "list_anew": ListAnew.BY_ID}, {"cursor": None}], ids=["anew", "first"]
)
@pytest.mark.parametrize(("left_out", "working"), [(["Old"], {"a"}), ([], {"a", "b"})])
def test_what_a_folder_owes_counts_where_it_is_wanted(
    server: Server,
    source: IngestionSource,
    left_out: list[str],
    working: set[str],
    owing: dict[str, Any],
) -> None:
    quiet_one_of_two(server, source)
    quiet = Mailbox.objects.get(remote_id="b")
    Folder.objects.create(mailbox=quiet, remote_id="Old", path="Old", **owing)
    IngestionSource.objects.update(options={"excludeFolders": left_out})
    assert given_work(source) == working


def test_whoever_asks_has_all_mailboxes_synced_at_once(
    server: Server, source: IngestionSource
) -> None:
    quiet_one_of_two(server, source)
    run = verbs.start_sync(source, actor=ACTOR)
    discovery.discover(run.pk)
    assert Mailbox.objects.filter(run=run).count() == 2


def test_whoever_asks_while_a_scheduled_sync_rests_some_has_all_of_them_too(
    server: Server, source: IngestionSource
) -> None:
    quiet_one_of_two(server, source)
    assert given_work(source) == {"a"}
    run = verbs.start_sync(source, actor=ACTOR)
    discovery.discover(run.pk)
    assert Mailbox.objects.filter(run=run).count() == 2


def test_whoever_asks_while_a_scheduled_sync_lists_its_mailboxes_has_all_of_them_too(
    server: Server, source: IngestionSource
) -> None:
    quiet_one_of_two(server, source)
    asked: list[object] = []

    def ask() -> None:
        if len(asked) < 3:  # once is enough to have all: who goes on asking delays nothing
            asked.append(verbs.start_sync(source, actor=ACTOR).pk)

    server.before_mailbox = ask
    assert given_work(source) == set()  # the listing had left one out: it is of no use any more
    assert given_work(source) == {"a", "b"}
    assert set(asked) == set(Run.objects.filter(finished_at=None).values_list("pk", flat=True))
