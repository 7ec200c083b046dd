"""What is due: each thing once, by whoever asks, and again when nobody came."""

import concurrent.futures
import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from connectors.errors import Unavailable
from ingestion.models import IngestionSource, Mailbox, Run
from ingestion.services.engine import due_work
from ingestion.services.sources import credentials, discovery, verbs
from tests.servers.scripted_provider import Server
from tests.servers.scripted_source import ACTOR, fill, finish, start

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_sync_asked_for_when_a_run_has_nothing_left_to_do_is_a_new_one(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 3)
    start(source)
    finish(source)
    settled = verbs.start_sync(source, actor=ACTOR)
    Run.objects.filter(pk=settled.pk).update(discovered_at=timezone.now())  # and not yet finished
    asked = verbs.start_sync(source, actor=ACTOR)
    assert asked.pk != settled.pk
    settled.refresh_from_db()
    assert settled.status == "completed"


def test_a_listing_is_not_handed_out_again_while_it_goes_on(
    server: Server, source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "_BATCH", 1)
    run = verbs.start_import(source, actor=ACTOR)
    credentials.check(source, actor=ACTOR)
    assert "discover" in [work.kind for work in due_work.hand_out()]
    long_ago = timezone.now() - dt.timedelta(seconds=due_work.HAND_OUT_AGAIN_SECONDS + 1)
    Run.objects.update(handed_out_at=long_ago)
    heard: list[list[str]] = []

    def listen() -> None:
        if Mailbox.objects.exists():  # the first is stored
            heard.append([work.kind for work in due_work.hand_out()])

    server.accounts, server.before_mailbox = ("a", "b"), listen
    assert due_work.do_now(due_work.Work("discover", run.pk))
    assert heard == [["mailbox"]]


def test_many_triggers_at_once_start_one_run(server: Server, source: IngestionSource) -> None:
    fill(server, 3)
    credentials.check(source, actor=ACTOR)

    def trigger(number: int) -> str:
        verb = verbs.start_import if number % 2 else verbs.start_sync
        try:
            return str(verb(source, actor=ACTOR).pk)
        finally:
            connection.close()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        runs = set(pool.map(trigger, range(16)))
    assert len(runs) == 1
    assert Run.objects.count() == 1


def test_work_is_handed_out_once_and_again_when_nobody_came(
    server: Server, source: IngestionSource
) -> None:
    start(source)
    assert [work.kind for work in due_work.hand_out()] == ["mailbox"]
    assert list(due_work.hand_out()) == []
    later = dt.timedelta(seconds=due_work.HAND_OUT_AGAIN_SECONDS + 1)
    Mailbox.objects.update(handed_out_at=timezone.now() - later)
    assert [work.kind for work in due_work.hand_out()] == ["mailbox"]


def test_a_schedule_starts_the_next_sync(server: Server, source: IngestionSource) -> None:
    fill(server, 3)
    start(source)
    finish(source)
    assert [work.kind for work in due_work.hand_out()] == ["index"]
    IngestionSource.objects.update(next_sync_at=timezone.now() - dt.timedelta(seconds=1))
    assert [work.kind for work in due_work.hand_out()] == ["discover"]
    assert Run.objects.get(finished_at=None).kind == "sync"


@pytest.mark.parametrize("kind", ["check", "discover"])
def test_what_is_handed_out_twice_is_done_once(
    server: Server, source: IngestionSource, kind: str
) -> None:
    """Neither beside the first, nor behind it: then it is not due any more."""
    run = verbs.start_import(source, actor=ACTOR)
    work = due_work.Work("check", source.pk)
    if kind == "discover":
        credentials.check(source, actor=ACTOR)
        work = due_work.Work("discover", run.pk)
    asked: list[str] = []

    def away() -> None:
        asked.append(kind)
        if len(asked) == 1:
            elsewhere(work)
        raise Unavailable("Away.")

    server.before_check = server.before_mailbox = away
    due_work.do(work)
    due_work.do(work)
    assert asked == [kind]


def test_what_another_does_just_before_the_claim_is_not_done_again(
    server: Server, source: IngestionSource
) -> None:
    work = due_work.Work("check", source.pk)
    asked: list[str] = []

    def away() -> None:
        asked.append("check")
        raise Unavailable("Away.")

    def overtaken(execute: Callable[..., Any], *arguments: Any) -> Any:
        answer = execute(*arguments)
        if not asked:  # it was found due, and nothing is claimed yet
            elsewhere(work)
        return answer

    server.before_check = away
    with connection.execute_wrapper(overtaken):
        assert not due_work.do_now(work)
    assert asked == ["check"]


def elsewhere(work: due_work.Work) -> None:
    """Do it as another worker does, by connections of its own."""

    def there() -> None:
        try:
            due_work.do(work)
        finally:
            connection.close()

    with concurrent.futures.ThreadPoolExecutor(1) as other:
        other.submit(there).result()
