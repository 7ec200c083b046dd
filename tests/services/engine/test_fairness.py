"""Who waits longest comes first, and nobody's work takes all the threads."""

import datetime as dt
import random
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from celery.signals import before_task_publish
from django.contrib.auth.models import User
from django.utils import timezone

from ingestion import tasks
from ingestion.models import AlertRule, IngestionSource, Mailbox, Run
from ingestion.services.engine import due_work, heartbeat, looking, runs
from ingestion.services.engine.places import Places
from tests.e2e.rows import a_mailbox, a_source
from tests.servers import receiver
from tests.servers.imap_script import ImapScript
from tests.servers.stack import ROOT

if TYPE_CHECKING:
    from tests.servers.stack import Service

SOURCES = 40


def test_work_is_handed_out_in_the_order_of_how_long_each_waits(owner: User) -> None:
    source = a_source(owner, status="importing")
    run = Run.objects.create(source=source, kind="import", discovered_at=timezone.now())
    waited = [f"m{number}" for number in range(200)]
    now = timezone.now()
    shuffled = random.Random(1).sample(waited, len(waited))
    Mailbox.objects.bulk_create(
        Mailbox(
            source=source, remote_id=name, address=name, run=run,
            not_before=now - dt.timedelta(seconds=1_000 - waited.index(name)),
        )
        for name in shuffled
    )  # fmt: skip
    names = dict(Mailbox.objects.values_list("pk", "address"))
    assert [names[work.pk] for work in due_work.hand_out() if work.kind == "mailbox"] == waited


def test_who_is_given_work_stands_behind_who_waits_for_a_retry(owner: User) -> None:
    """However long ago its mailbox was last told when to be at work."""
    now = timezone.now()
    failed, quiet = a_source(owner, "failed", status="importing"), a_source(owner, "quiet")
    run = Run.objects.create(source=failed, kind="import", discovered_at=now)
    waits = a_mailbox(failed, run=run, not_before=now - dt.timedelta(minutes=10))
    new = a_mailbox(quiet, not_before=now - dt.timedelta(days=30))
    runs.start_syncs([quiet.pk], only_mailboxes=[new.pk])
    handed_out = [work.pk for work in due_work.hand_out() if work.kind == "mailbox"]
    assert handed_out == [waits.pk, new.pk]


def test_places_are_bounded_in_all_and_for_each() -> None:
    places = Places[str](3, each=2)
    with places.taken("a") as one, places.taken("a") as two, places.taken("a") as three:
        assert (one, two, three) == (True, True, False)
        with places.taken("b") as four, places.taken("c") as five:
            assert (four, five) == (True, False)
        with places.taken("c") as six:
            assert six
    with places.taken("a") as again:
        assert again


def test_places_are_given_back_after_an_error() -> None:
    places = Places[str](1, each=1)
    for _ in range(3):
        with pytest.raises(ValueError, match="once"), places.taken("a") as free:
            assert free
            raise ValueError("once")


def test_who_finds_no_place_stands_in_line_and_owners_take_turns() -> None:
    places = Places[str](2, each=1)
    with places.taken("a"), places.taken("b"):
        for work in ("a1", "a2", "b1", "b2", "a1"):
            with places.taken(work[0], work) as free:
                assert not free
        assert places.next() is None
    assert [places.next() for _ in range(5)] == ["a1", "b1", "a2", "b2", None]


def test_two_threads_of_control_are_always_left_for_dispatching() -> None:
    [threads] = re.findall(
        r"--queues control .*--concurrency (\d+)", (ROOT / "Procfile").read_text()
    )
    kept = {kind.places for kind in due_work.KINDS.values() if kind.places}
    spoken_for = sum(places._total for places in kept) + looking._looking._total
    assert spoken_for == int(threads) - 2


def test_housekeeping_has_its_turn_while_two_people_delete_many_sources() -> None:
    def stand_in_line(owner: int) -> None:
        with due_work.cleaning_up.taken(owner, due_work.Work("delete", uuid.uuid4())) as free:
            assert not free

    sent: list[str] = []

    def note(sender: str, **_: Any) -> None:
        sent.append(sender)

    with due_work.cleaning_up.taken(1), due_work.cleaning_up.taken(2):
        for owner in (1, 1, 2, 2):
            stand_in_line(owner)
        tasks.housekeeping()
    before_task_publish.connect(note)
    try:
        while work := due_work.cleaning_up.next():
            tasks._hand_out(work)
    finally:
        before_task_publish.disconnect(note)
    names = [name.removeprefix("ingestion.tasks.") for name in sent]
    assert names == ["do", "do", "housekeeping", "do", "do"]


@pytest.mark.django_db(transaction=True)
def test_alerts_do_not_wait_for_the_owners_webhooks(owner: User) -> None:
    """Whose server may say nothing for days, while each try takes 15 s."""
    with receiver.running() as at:
        rule = AlertRule.objects.create(owner=owner, name="Ping", way="ping", url=at.url)
        places = due_work.KINDS["deliver"].places
        assert places is not None
        with places.taken(owner.pk) as taken:
            assert taken
            due_work.do(due_work.Work("alert", rule.pk))
        assert [came.body for came in at.came] == [b"All is well."]


@pytest.mark.long(seconds=15)
def test_one_persons_many_sources_do_not_wait_to_be_handed_out_again(
    service: "Service", api: httpx.Client, wait_for: Callable[..., Any]
) -> None:
    """Checks that take no time: what finds no place has one as soon as another is done."""
    with ImapScript() as script:
        for number in range(SOURCES):
            config = {
                "host": "127.0.0.1", "port": script.port, "secure": False,
                "username": "me@example.com", "password": script.password,
            }  # fmt: skip
            body = {"name": f"{number}", "provider": "generic_imap", "providerConfig": config}
            assert api.post("/ingestion", json=body).status_code == 201
        unchecked = IngestionSource.objects.filter(status="pending_auth")
        IngestionSource.objects.update(status="pending_auth", proven_at=None, handed_out_at=None)
        wait_for(lambda: not unchecked.exists(), due_work.HAND_OUT_AGAIN_SECONDS * SOURCES / 10)


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=500) as server:
        yield int(server.getsockname()[1])


@pytest.mark.long(seconds=15)
def test_one_persons_silent_servers_do_not_keep_out_another(
    service: "Service",
    api: httpx.Client,
    owner: User,
    other_user: User,
    make_key: Callable[..., str],
    silent: int,
    wait_for: Callable[..., Any],
) -> None:
    """Each check waits 6 s and more; there are eight threads."""

    def body(name: str, port: int) -> dict[str, Any]:
        config = {
            "host": "127.0.0.1",
            "port": port,
            "secure": False,
            "username": "u",
            "password": "p",
        }
        return {"name": name, "provider": "generic_imap", "providerConfig": config}

    for number in range(40):
        assert api.post("/ingestion", json=body(f"silent {number}", silent)).status_code == 201
    headers = {"Authorization": f"Bearer {make_key(other_user)}"}
    made = api.post("/ingestion", json=body("other", 1), headers=headers).json()
    pk = uuid.UUID(made["id"])
    wait_for(lambda: IngestionSource.objects.get(pk=pk).check_attempts > 0)
    beats = []
    for _ in range(10):
        beats.append(heartbeat.last().seconds or 0.0)
        time.sleep(1)  # the silent ones are at it meanwhile
    assert max(beats) < 15, "the dispatcher had to wait for threads"
