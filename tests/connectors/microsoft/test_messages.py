"""What becomes of single messages, mailboxes and state tokens."""

import gzip
import itertools
import time
import tracemalloc

import pytest

from connectors.errors import (
    MailboxUnavailable,
    MessageRefused,
    Unavailable,
)
from connectors.microsoft import listing
from connectors.types import MessageRef, Missing, RawMessage, SpooledBody
from tests.servers.graph import GraphServer, Request, Response, User
from tests.servers.graph.connectors import box, build, fetched, opened
from tests.servers.graph.words import error


def test_a_message_that_can_not_be_given_out_does_not_hold_up_the_others(
    server: GraphServer, alice: User
) -> None:
    bad, *good = (box(alice).deliver(b"message %d" % number) for number in range(10))
    answers = {"status": 500}

    def refuse(request: Request, user: User | None) -> Response | None:
        if request.segments[-1] == "$value" and request.segments[-2] == bad:
            return error(answers["status"], "ErrorMimeContentConversionFailed", "Failed.")
        return None

    server.faults.intercept = refuse
    for status in (500, 400):
        answers["status"] = status
        with build(server) as connector, opened(connector, alice) as session:
            found = fetched(session)
        assert isinstance(found[bad], Missing)
        assert isinstance(found[bad].error, MessageRefused)
        assert all(isinstance(found[remote_id], RawMessage) for remote_id in good)


def test_a_server_that_is_out_of_order_makes_no_failed_messages(
    server: GraphServer, alice: User
) -> None:
    for number in range(10):
        box(alice).deliver(b"message %d" % number)
    with build(server) as connector, opened(connector, alice) as session:
        folder = session.folders()[0]
        refs = [ref for page in session.changes(folder, None) for ref in page.added]
        server.faults.intercept = lambda _request, _user: error(503, "serviceNotAvailable", "x")
        with pytest.raises(Unavailable):
            list(session.fetch(folder, refs))


def test_a_message_that_is_too_large_is_refused_before_it_fills_the_disk(
    server: GraphServer, alice: User
) -> None:
    large = box(alice).deliver(b"x" * 300_000)
    environment = {"max_message_bytes": 100_000}
    with build(server, environment=environment) as connector, opened(connector, alice) as session:
        answer = fetched(session)[large]
    assert isinstance(answer.error, MessageRefused)
    assert answer.error.code == "too_large"


def test_what_packs_well_is_not_unpacked_at_once(server: GraphServer, alice: User) -> None:
    """A stranger may send what packs a thousand to one."""
    message = box(alice).deliver(b"message")
    whole = bytes(60_000_000)
    packed = gzip.compress(whole)
    server.faults.intercept = lambda request, _user: (
        Response(200, packed, {"Content-Encoding": "gzip"}, chunked=True)
        if request.path.endswith("$value")
        else None
    )
    with build(server) as connector, opened(connector, alice) as session:
        folder = session.folders()[0]
        tracemalloc.start()
        try:
            [answer] = session.fetch(folder, [MessageRef(message)])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert isinstance(answer, RawMessage)
    assert isinstance(answer.body, SpooledBody)
    got = b"".join(answer.body.chunks())
    answer.body.close()
    assert got == whole
    assert peak < 20_000_000


def test_few_large_messages_wait_on_disk(server: GraphServer, alice: User) -> None:
    refs = [MessageRef(box(alice).deliver(b"message %d" % number)) for number in range(30)]
    packed = gzip.compress(bytes(5_000_000))
    server.faults.intercept = lambda request, _user: (
        Response(200, packed, {"Content-Encoding": "gzip"})
        if request.path.endswith("$value")
        else None
    )
    with build(server) as connector, opened(connector, alice) as session:
        answers = session.fetch(session.folders()[0], refs)
        taken = [next(answers)]
        until = time.monotonic() + 1.0  # all thirty take half of that
        while time.monotonic() < until and server.count("$value") < len(refs):
            time.sleep(0.05)
        ahead = server.count("$value")
        for answer in itertools.chain(taken, answers):
            assert isinstance(answer, RawMessage)
            assert isinstance(answer.body, SpooledBody)
            answer.body.close()
    assert ahead < 12


def test_what_is_cut_off_within_gzip_is_no_message(server: GraphServer, alice: User) -> None:
    message = box(alice).deliver(b"message")
    packed = gzip.compress(b"0123456789" * 100)
    server.faults.intercept = lambda request, _user: (
        Response(200, packed[:-20], {"Content-Encoding": "gzip"})
        if request.path.endswith("$value")
        else None
    )
    with (
        build(server) as connector,
        opened(connector, alice) as session,
        pytest.raises(Unavailable),
    ):
        list(session.fetch(session.folders()[0], [MessageRef(message)]))


def test_a_mailbox_that_is_gone_or_forbidden_says_why(server: GraphServer, alice: User) -> None:
    with build(server) as connector, opened(connector, alice) as session:
        alice.mailbox = None
        with pytest.raises(MailboxUnavailable, match="no mailbox"):
            session.folders()
        server.tenant.policy = set()
        with pytest.raises(MailboxUnavailable, match="policy"):
            session.folders()


def test_a_state_token_is_replaced_now_and_then_also_where_nothing_changes(
    server: GraphServer, alice: User
) -> None:
    box(alice).deliver(b"message")
    with build(server) as connector, opened(connector, alice) as session:
        folder = session.folders()[0]
        [*_, last] = session.changes(folder, None)
        assert list(session.changes(folder, last.cursor)) == []
        old = {**last.cursor, "at": last.cursor["at"] - listing.REFRESH_SECONDS - 1}
        [page] = session.changes(folder, old)
    assert (page.added, page.removed) == ([], [])
    assert page.cursor["at"] >= last.cursor["at"]


def test_every_request_asks_for_ids_that_survive_a_move(server: GraphServer, alice: User) -> None:
    seen: list[Request] = []

    def look(request: Request, user: User | None) -> None:
        seen.append(request)

    server.faults.intercept = look
    box(alice).deliver(b"message")
    with build(server) as connector, opened(connector, alice) as session:
        fetched(session)
    assert seen
    assert all('IdType="ImmutableId"' in request.headers["prefer"] for request in seen)
    assert not [request for request in seen if "$filter" in request.query]
