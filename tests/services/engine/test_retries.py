"""How often the service asks again: never a login too many, never before the server's own time.

On a real socket (tests/servers/imap_script.py), which counts the logins. Times are put back in the
rows instead of waited for.
"""

import datetime as dt
import itertools
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db.models import Model
from django.utils import timezone

from ingestion.models import IngestionSource, Mailbox, Run
from ingestion.services.audit import Actor
from ingestion.services.engine import backoff, due_work
from ingestion.services.sources import configuration, verbs
from tests.servers.imap_script import Client, ImapScript

pytestmark = pytest.mark.django_db(transaction=True)
ACTOR = Actor.system("test")


@pytest.fixture
def server() -> Iterator[ImapScript]:
    with ImapScript() as script:
        script.inbox.deliver(b"Subject: one\r\n\r\n1")
        yield script


@pytest.fixture
def source(server: ImapScript) -> IngestionSource:
    return configuration.create(
        owner=User.objects.create_user("retries"),
        name="Retries",
        provider="generic_imap",
        provider_config={
            "host": server.host, "port": server.port, "secure": False,
            "username": server.name, "password": server.password,
        },
        actor=ACTOR,
    )  # fmt: skip


def work() -> None:
    """Do all that is due, as dispatcher and workers do, until nothing is due any more."""
    while handed_out := list(due_work.hand_out()):
        for one in handed_out:
            due_work.do(one)


def an_hour_passes() -> None:
    """Put the times of all rows back."""
    fields: tuple[tuple[type[Model], tuple[str, ...]], ...] = (
        (IngestionSource, ("check_not_before", "next_sync_at", "handed_out_at")),
        (Run, ("not_before", "handed_out_at")),
        (Mailbox, ("not_before", "handed_out_at")),
    )
    for model, names in fields:
        for row in model._default_manager.all():
            past = {
                name: getattr(row, name) - dt.timedelta(hours=1)
                for name in names
                if getattr(row, name) is not None
            }
            model._default_manager.filter(pk=row.pk).update(**past)


def logins(server: ImapScript) -> int:
    return len(server.asked(b"LOGIN "))


def refusing(answer: bytes) -> Callable[[Client, bytes, bytes], bool]:
    def refuse(client: Client, tag: bytes, command: bytes) -> bool:
        if not command.startswith(b"LOGIN "):
            return False
        client.send(tag + b" " + answer + b"\r\n")
        return True

    return refuse


def assert_waits(row: Any, field: str, began: dt.datetime, least: float, most: float) -> None:
    """Whoever began to wait since `began` does so for so many seconds; whenever that was."""
    row.refresh_from_db()
    until = getattr(row, field)
    assert (until - began).total_seconds() >= least
    assert (until - timezone.now()).total_seconds() <= most


def imported(server: ImapScript, source: IngestionSource) -> None:
    verbs.start_import(source, actor=ACTOR)
    work()
    source.refresh_from_db()
    assert source.status == "active"
    server.commands.clear()


def test_a_wrong_password_is_tried_once_and_never_again(
    server: ImapScript, source: IngestionSource
) -> None:
    server.password = "changed"
    for _ in range(3):
        work()
        an_hour_passes()
    source.refresh_from_db()
    assert source.status == "error"
    assert "check user name and password" in source.status_message
    assert logins(server) == 1


def test_a_password_that_stops_working_is_tried_thrice_in_an_hour_and_then_not_at_all(
    server: ImapScript, source: IngestionSource
) -> None:
    imported(server, source)
    server.password = "changed"
    verbs.start_sync(source, actor=ACTOR)
    waits = [600.0, 3000.0]  # a server in trouble refuses right passwords too
    for attempt, seconds in enumerate([*waits, 0.0], 1):
        began = timezone.now()
        work()
        assert logins(server) == attempt
        if seconds:
            source.refresh_from_db()
            assert source.status == "active"
            assert_waits(Mailbox.objects.get(), "not_before", began, seconds, seconds * 1.1)
            work()  # its time has not come
            assert logins(server) == attempt
        an_hour_passes()
    source.refresh_from_db()
    assert source.status == "error"
    assert "check user name and password" in source.status_message
    for _ in range(3):
        work()
        an_hour_passes()
    assert logins(server) == 3


def test_other_trouble_before_does_not_make_one_refusal_the_last(
    server: ImapScript, source: IngestionSource
) -> None:
    imported(server, source)
    verbs.start_sync(source, actor=ACTOR)
    for answer in (b"NO [UNAVAILABLE] later", b"NO [UNAVAILABLE] later", b"NO who are you?"):
        server.hooks[:] = [refusing(answer)]
        work()
        an_hour_passes()
    source.refresh_from_db()
    assert source.status == "active"
    server.hooks.clear()
    work()
    assert Run.objects.latest("started_at").message == "0 archived."


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        (b"NO [LIMIT] slow down", 60),
        (b"NO [OVERQUOTA] too much today", 300),
        (b"NO Request is throttled. Suggested Backoff Time: 299961 milliseconds", 299.961),
    ],
)
def test_the_servers_own_wait_is_kept(
    server: ImapScript, source: IngestionSource, answer: bytes, seconds: float
) -> None:
    server.hooks.append(refusing(answer))
    began = timezone.now()
    work()
    assert_waits(source, "check_not_before", began, seconds, seconds * 1.1)
    assert source.status == "pending_auth"
    work()
    assert logins(server) == 1
    server.hooks.clear()
    an_hour_passes()
    imported(server, source)
    server.hooks.append(refusing(answer))
    verbs.start_sync(source, actor=ACTOR)
    began = timezone.now()
    work()
    work()
    assert_waits(Mailbox.objects.get(), "not_before", began, seconds, seconds * 1.1)
    assert logins(server) == 1
    source.refresh_from_db()
    assert source.status == "active"


def test_a_server_that_is_down_is_asked_less_and_less_often(
    server: ImapScript, source: IngestionSource
) -> None:
    imported(server, source)
    server.hooks.append(refusing(b"NO [UNAVAILABLE] maintenance"))
    verbs.start_sync(source, actor=ACTOR)
    for seconds in (2, 4, 8, 16, 32):
        began = timezone.now()
        work()
        waiting = Mailbox.objects.get()
        assert_waits(waiting, "not_before", began, seconds * 0.75, seconds * 1.25)
        an_hour_passes()
    assert logins(server) == 5
    work()  # the sixth: the run gives up, and the schedule tries again
    run = Run.objects.latest("started_at")
    assert (run.status, logins(server)) == ("incomplete", 6)
    assert "maintenance" in run.message
    server.hooks.clear()
    an_hour_passes()
    work()
    assert Run.objects.latest("started_at").message == "0 archived."


def test_waits_grow_are_spread_and_end() -> None:
    means = [
        statistics.fmean(backoff.delay(attempt).total_seconds() for _ in range(200))
        for attempt in range(1, 13)
    ]
    assert all(later > 1.5 * earlier for earlier, later in itertools.pairwise(means[:9]))
    assert max(means) < 700
    together = {backoff.delay(3).total_seconds() for _ in range(100)}
    told = {backoff.delay(1, server_seconds=60).total_seconds() for _ in range(100)}
    for waits in (together, told):  # who failed together does not come back together
        assert len(waits) > 90
        assert max(waits) - min(waits) > 0.05 * min(waits)
    assert min(told) >= 60
    assert backoff.delay(1, server_seconds=7_200).total_seconds() >= 7_200
    assert backoff.delay(1, server_seconds=1e9).total_seconds() < 100_000  # for a day at most
