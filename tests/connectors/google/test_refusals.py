"""What Gmail refuses of one message, and how much else that stops: nothing."""

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ingestion.models import FailedMessage, Folder, IngestionSource, Mailbox, Placement
from ingestion.services.engine import sync
from ingestion.services.sources import credentials, discovery, verbs
from tests.connectors.google.test_connector import (  # noqa: F401 - fixtures
    ACTOR,
    account,
    add,
    alice,
    finished,
    google,
    imported,
)
from tests.servers import gmail as gmail_server
from tests.servers import gmail_store, google_sources
from tests.servers.gmail import Gmail
from tests.servers.gmail_http import Request, Response
from tests.servers.gmail_store import Person

pytestmark = pytest.mark.django_db(transaction=True)

Refusal = tuple[int, str, str]
PRECONDITION = (400, "failedPrecondition", "Precondition check failed.")


def _body(number: int) -> bytes:
    return b"Subject: %d\r\n\r\nBody %d\r\n" % (number, number)


@pytest.fixture
def refuse(google: Gmail, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:  # noqa: F811 - a fixture
    """`refuse(answer)`: have the scripted Gmail answer a get of an id with `answer(id)`, if any."""
    real = google._done

    def install(answer: Callable[[str], Refusal | None]) -> None:
        def done(short: str, path: Any, one: Any, query: Any, person: Any) -> Any:
            refusal = answer(path["id"]) if short == "messages.get" else None
            if refusal is None:
                return real(short, path, one, query, person)
            return gmail_server._refusal(*refusal)

        monkeypatch.setattr(google, "_done", done)

    return install


def _placed() -> set[str]:
    return set(Placement.objects.filter(removed_at=None).values_list("remote_id", flat=True))


def test_one_precondition_that_fails_once_costs_nothing(
    alice: Person,  # noqa: F811 - a fixture
    account: IngestionSource,  # noqa: F811 - a fixture
    refuse: Callable[..., None],
) -> None:
    ids = [alice.deliver(_body(number)) for number in range(20)]
    seen: list[str] = []

    def once(remote_id: str) -> Refusal | None:
        seen.append(remote_id)
        return PRECONDITION if len(seen) == 5 else None

    refuse(once)
    imported(account)
    assert _placed() == set(ids)
    assert Mailbox.objects.get().state == "active"


def test_a_token_that_ends_at_the_last_try_is_renewed_all_the_same(
    google: Gmail,  # noqa: F811 - a fixture
    alice: Person,  # noqa: F811 - a fixture
    add: Callable[..., IngestionSource],  # noqa: F811 - a fixture
) -> None:
    alice.deliver(_body(1))
    gets = itertools.count(1)

    def three_refusals_and_the_token_ends(method: str, *_: str) -> None:
        if method == "messages.get":
            number = next(gets)
            google.faults.too_many = float(number <= 3)
            if number == 3:
                google.oauth.tokens.clear()

    google.before_call = three_refusals_and_the_token_ends
    assert imported(add(google_sources.domain(google))).message == "1 archived."


def test_a_message_that_a_replica_has_not_got_yet_is_archived(
    alice: Person,  # noqa: F811 - a fixture
    account: IngestionSource,  # noqa: F811 - a fixture
    refuse: Callable[..., None],
) -> None:
    late, _gone, there = (alice.deliver(_body(number)) for number in range(3))
    asked: list[str] = []

    def not_at_first(remote_id: str) -> Refusal | None:
        asked.append(remote_id)
        is_there = remote_id == there or (remote_id == late and asked.count(late) > 1)
        return None if is_there else (404, "notFound", "Requested entity was not found.")

    refuse(not_at_first)
    assert imported(account).message == "2 archived, 1 deleted at the provider meanwhile."
    assert _placed() == {late, there}


@pytest.mark.parametrize("answer", [PRECONDITION, (403, "forbidden", "No permission")])
def test_a_message_that_is_always_refused_fails_alone(
    alice: Person,  # noqa: F811 - a fixture
    account: IngestionSource,  # noqa: F811 - a fixture
    refuse: Callable[..., None],
    answer: Refusal,
) -> None:
    ids = [alice.deliver(_body(number)) for number in range(10)]
    refuse(lambda remote_id: answer if remote_id == ids[4] else None)
    imported(account)
    assert _placed() == set(ids) - {ids[4]}
    assert FailedMessage.objects.get().remote_id == ids[4]
    account.refresh_from_db()
    assert account.status == "active"


def test_bodies_that_are_all_refused_are_an_outage(
    alice: Person,  # noqa: F811 - a fixture
    account: IngestionSource,  # noqa: F811 - a fixture
    refuse: Callable[..., None],
) -> None:
    for number in range(30):
        alice.deliver(_body(number))
    assert credentials.check(account, actor=ACTOR).ok
    refuse(lambda _: (403, "forbidden", "No permission"))
    run = verbs.start_import(account, actor=ACTOR)
    discovery.discover(run.pk)
    sync.sync_mailbox(Mailbox.objects.get().pk)
    assert not FailedMessage.objects.exists()
    assert not any(Folder.objects.values_list("cursor", flat=True))
    assert Mailbox.objects.get().last_error_code == "refuses_all"


@pytest.mark.parametrize("status", [403, 404])
def test_what_answers_in_googles_place_says_nothing_of_the_mail(
    google: Gmail,  # noqa: F811 - a fixture
    alice: Person,  # noqa: F811 - a fixture
    account: IngestionSource,  # noqa: F811 - a fixture
    monkeypatch: pytest.MonkeyPatch,
    status: int,
) -> None:
    """A gateway that is deployed anew, or a proxy on the way that blocks."""
    monkeypatch.setattr("connectors.google.client._backoff", lambda *_: 0.0)
    ids = {alice.deliver(_body(number)) for number in range(5)}
    assert credentials.check(account, actor=ACTOR).ok
    real, begun = google._call, threading.Event()

    def call(request: Request) -> Response:
        if "/messages/" in request.path:
            begun.set()
        return Response(status, b"<html>default backend") if begun.is_set() else real(request)

    monkeypatch.setattr(google, "_call", call)
    run = verbs.start_import(account, actor=ACTOR)
    discovery.discover(run.pk)
    sync.sync_mailbox(Mailbox.objects.get().pk)
    account.refresh_from_db()
    assert account.status == "importing"
    assert Mailbox.objects.get().last_error_code == "unavailable"
    monkeypatch.setattr(google, "_call", real)
    assert finished(account).message == "5 archived."
    assert _placed() == ids


def test_chats_are_left_out_and_an_empty_message_is_refused(
    alice: Person,  # noqa: F811 - a fixture
    account: IngestionSource,  # noqa: F811 - a fixture
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mail = alice.deliver(_body(1))
    bare = alice.deliver(b"", {"CHAT"})
    alice.deliver(b"From: bob@example.com", {"CHAT"})
    alice.deliver(b"", {"CHAT"})
    empty = alice.deliver(b"")
    real = gmail_store.message

    def without_raw(message: Any, how: Any) -> Any:
        found = real(message, how)
        if message.id == bare:
            found.pop("raw", None)
        return found

    monkeypatch.setattr(gmail_server, "message", without_raw)
    imported(account)
    assert _placed() == {mail}
    assert FailedMessage.objects.get().remote_id == empty
