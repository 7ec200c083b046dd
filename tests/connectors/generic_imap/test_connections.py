"""Connections to IMAP servers that break, hang, are refused or turn us away."""

import gc
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.conf import settings

from connectors import net, parallel
from connectors.errors import (
    ConnectorError,
    Fatal,
    MessageGone,
    NeedsReauth,
    RateLimited,
    Retryable,
    Unavailable,
)
from connectors.generic_imap import connector as imap
from connectors.generic_imap import replies, wire
from connectors.types import RawMessage, RemoteFolder
from tests.servers.imap_connector import (
    connector,
    content,
    fetched,
    fill,
    listed,
    opened,
    read,
    refs_of,
)
from tests.servers.imap_script import Client, ImapScript


@pytest.mark.parametrize("end", ["drop", "bye", "silence"])
def test_what_arrived_whole_is_kept_and_the_rest_is_tried_again(
    server: ImapScript, end: str
) -> None:
    server.capabilities.append("AUTH=PLAIN")  # by IMAPClient, which takes the time limit off
    fill(server.inbox, 20)
    over = threading.Event()

    def fail(client: Client, uid: int) -> None:
        if uid == 10:
            if end == "drop":
                client.send(b"* 10 FETCH (UID 10 BODY[] {500}\r\nonly a part")
                client.hang_up()
            elif end == "bye":
                client.send(b"* BYE [UNAVAILABLE] restarting\r\n")
                client.hang_up()
            else:
                over.wait(60)

    server.before_each_mail = fail
    got: list[int] = []
    with opened(server, timeout_seconds=2 if end == "silence" else 30) as session:
        refs = refs_of(listed(session))
        with pytest.raises(Retryable):
            for answer in session.fetch(RemoteFolder("INBOX", "INBOX"), refs):
                assert isinstance(answer, RawMessage)
                got.append(int(answer.ref.remote_id.partition(":")[2]))
        over.set()
    assert got == list(range(1, 10))


def test_a_giant_literal_is_refused_before_any_memory_is_taken(server: ImapScript) -> None:
    fill(server.inbox, 3)
    server.inbox.mails[2].answer = b"{4294967295}\r\nx"
    with opened(server) as session:
        refs = refs_of(listed(session))
        answers: list[Any] = []
        with pytest.raises(Retryable):
            answers.extend(session.fetch(RemoteFolder("INBOX", "INBOX"), refs))
    assert all(not isinstance(a, RawMessage) or a.ref.remote_id == "1:1" for a in answers)


def slow(_client: Client, uid: int) -> None:
    if uid % 10 == 0:
        time.sleep(0.01)


def test_a_second_connection_that_is_refused_is_done_without(server: ImapScript) -> None:
    server.max_connections = 1
    server.before_each_mail = slow
    fill(server.inbox, 1_500, size=3_000)
    with opened(server, connections_per_account=2) as session:
        assert len(read(session, refs_of(listed(session)))) == 1_500
    assert server.turned_away == 1


def test_further_connections_are_opened_for_a_slow_server_alone(server: ImapScript) -> None:
    fill(server.inbox, 1_500, size=3_000)
    with opened(server, connections_per_account=2) as session:
        refs = refs_of(listed(session))
        for number, _ in enumerate(fetched(session, refs)):
            if number % 10 == 0:
                time.sleep(0.01)  # the archive is what takes the time
        assert server.logins == 1
        server.before_each_mail = slow
        assert len(read(session, refs)) == 1_500
        assert server.logins == 2
        assert len(read(session, refs)) == 1_500
        assert server.logins == 2  # those there are serve again


def test_large_messages_of_unknown_size_get_a_further_connection_too(server: ImapScript) -> None:
    server.before_each_mail = slow
    fill(server.inbox, 300, size=200_000)
    with opened(server, connections_per_account=2) as session:
        assert len(read(session, refs_of(listed(session)))) == 300
    assert server.logins == 2


@pytest.mark.parametrize("abandoned", [False, True])
def test_nobody_waits_for_a_further_login_that_hangs(server: ImapScript, abandoned: bool) -> None:
    def hang(_client: Client, _tag: bytes, command: bytes) -> bool:
        return command.startswith(b"LOGIN") and server.logins == 1

    server.hooks.append(hang)
    server.before_each_mail = slow
    fill(server.inbox, 1_500, size=3_000)
    # Who waited for it would do so for longer than a test may take.
    with opened(server, timeout_seconds=3_600, connections_per_account=2) as session:
        answers = fetched(session, refs_of(listed(session)))
        for _ in range(1_000 if abandoned else 1_500):
            next(answers)
        if abandoned:
            answers.close()  # type: ignore[attr-defined] # a generator
        assert next(answers, None) is None
        assert len(server.asked(b"LOGIN")) == 2
        # Nobody was refused a further one: the next large folder has it.
        server.hooks.clear()
        assert len(read(session, refs_of(listed(session)))) == 1_500
    assert server.logins == (3 if abandoned else 2)
    assert not [thread for thread in threading.enumerate() if thread.name == "imap"]


def test_who_hangs_before_a_word_is_said_is_waited_for_once(
    server: ImapScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A firewall that drops a second connection, say: nobody can end that wait on purpose."""
    given_up = threading.Event()
    asked: list[str] = []

    def hang(host: str, *_: Any, **__: Any) -> socket.socket:
        asked.append(host)
        given_up.wait(60)
        raise Unavailable(f"{host} did not answer in time.")

    server.before_each_mail = slow
    fill(server.inbox, 1_500, size=3_000)
    with opened(server, connections_per_account=2) as session:
        refs = refs_of(listed(session))
        monkeypatch.setattr(net, "connect", hang)
        answers = fetched(session, refs)
        for _ in refs:
            next(answers)
        threading.Timer(0.2, given_up.set).start()
        assert next(answers, None) is None
        assert len(read(session, refs)) == 1_500
    assert len(asked) == 1


def test_an_idle_connection_that_the_server_ended_does_no_harm(server: ImapScript) -> None:
    server.before_each_mail = slow
    fill(server.inbox, 1_500, size=3_000)
    with opened(server, connections_per_account=2) as session:
        refs = refs_of(listed(session))
        assert len(read(session, refs)) == 1_500
        server.end_all_but_the_first()
        assert len(read(session, refs)) == 1_500
    assert server.logins == 2


def test_a_connection_is_used_again_whose_thread_takes_its_time_to_end(
    server: ImapScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = parallel.Pool._run

    def run_and_dawdle(self: parallel.Pool, worker: parallel.Worker) -> None:
        run(self, worker)
        time.sleep(0.05)

    monkeypatch.setattr(parallel.Pool, "_run", run_and_dawdle)
    fill(server.inbox, 3)
    with opened(server) as session:
        refs = refs_of(listed(session))
        assert len(read(session, refs)) == len(read(session, refs)) == 3
    assert server.logins == 1


def test_where_one_connection_is_told_to_wait_no_other_asks_on(server: ImapScript) -> None:
    fill(server.inbox, 5_000, size=3_000)
    server.before_each_mail = slow

    first: list[Client] = []

    def throttle(client: Client, tag: bytes, command: bytes) -> bool:
        first.append(client)
        if b"BODY" in command and client is not first[0]:
            client.send(tag + b" NO [LIMIT] Too many requests\r\n")
            return True
        return False

    server.hooks.append(throttle)
    with opened(server, connections_per_account=2) as session:
        refs = refs_of(listed(session))
        with pytest.raises(RateLimited):
            read(session, refs)
    assert len(server.asked(b"BODY")) <= 15, "of 27 that there are"


def test_a_download_that_is_left_within_a_chunk_frees_its_large_bodies(server: ImapScript) -> None:
    server.inbox.deliver(b"small")
    server.inbox.deliver(b"x" * 4_500_000)

    def at_once(client: Client, tag: bytes, command: bytes) -> bool:
        if b"BODY" in command:
            said = [
                b"* %d FETCH (UID %d BODY[] {%d}\r\n%s)\r\n" % (uid, uid, len(m.body), m.body)
                for uid, m in server.inbox.mails.items()
            ]
            client.send(b"".join(said) + tag + b" OK\r\n")
        return b"BODY" in command

    server.hooks.append(at_once)
    with opened(server) as session:
        answers = fetched(session, refs_of(listed(session)))
        assert content(next(answers)) == b"small"
        answers.close()  # type: ignore[attr-defined] # a generator
        del answers
        gc.collect()  # no ResourceWarning, which would be an error


def test_bodies_that_nobody_asked_for_end_some_time(
    server: ImapScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "_MAX_UNASKED", 1_000)
    fill(server.inbox, 1)

    def flood(client: Client, _tag: bytes, command: bytes) -> bool:
        while b"BODY" in command:
            client.send(b"* 1 FETCH (UID 7 FLAGS () BODY[] {1}\r\nx)\r\n" * 100)
        return False

    server.hooks.append(flood)
    with opened(server, timeout_seconds=30) as session:
        refs = refs_of(listed(session))
        with pytest.raises(Unavailable, match="nobody asked for"):
            read(session, refs)


def test_long_sparse_sets_fit_the_command_lines_of_strict_servers(server: ImapScript) -> None:
    for number in range(1_500):
        server.inbox.deliver(b"x", uid=2_000_000_001 + 2 * number)
    with opened(server) as session:
        refs = refs_of(listed(session))
        assert len(read(session, refs)) == 1_500


def test_removed_messages_cost_one_look_up_and_not_one_each(server: ImapScript) -> None:
    fill(server.inbox, 50)

    def vanish(_client: Client, _tag: bytes, command: bytes) -> bool:
        if b"BODY" in command:
            for uid in range(10, 40):
                server.inbox.mails.pop(uid, None)
        return False

    server.hooks.append(vanish)
    with opened(server) as session:
        got = read(session, refs_of(listed(session)))
    assert len(got) == 50
    assert {uid for uid in got if isinstance(got[uid], MessageGone)} == set(range(10, 40))
    assert len(server.asked(b"SEARCH")) == 2


@pytest.mark.parametrize("answer", [b"BAD Unknown command", b"NO not now"])
def test_a_server_that_refuses_qresync_is_not_asked_for_what_vanished(
    server: ImapScript, answer: bytes
) -> None:
    def refuse(client: Client, tag: bytes, command: bytes) -> bool:
        if command.startswith(b"ENABLE"):
            client.send(tag + b" " + answer + b"\r\n")
        return command.startswith(b"ENABLE")

    server.hooks.append(refuse)
    fill(server.inbox, 5)
    with opened(server) as session:
        cursor = listed(session)[-1].cursor
    server.inbox.expunge(3)
    with opened(server) as session:
        [page] = [page for page in listed(session, cursor) if page.present is not None]
    assert page.present is not None
    assert [uid for uid in range(1, 6) if f"1:{uid}" not in page.present] == [3]
    assert not server.asked(b"VANISHED")


@pytest.mark.parametrize("answer", [b"BAD Unknown command", b"NO not now", b"OK done"])
def test_nobody_waits_for_the_answers_to_id_and_enable(server: ImapScript, answer: bytes) -> None:
    """They come together with the next one, and may say anything."""
    server.capabilities.append("ID")
    kept: list[bytes] = []

    def answer_late(client: Client, tag: bytes, command: bytes) -> bool:
        if command.startswith((b"ID ", b"ENABLE")):
            kept.append(tag + b" " + answer + b"\r\n")
            return True
        client.send(b"".join(kept))
        kept.clear()
        return False

    server.hooks.append(answer_late)
    fill(server.inbox, 3)
    with opened(server) as session:
        assert len(read(session, refs_of(listed(session)))) == 3
    assert [len(server.asked(word)) for word in (b"ID (", b"ENABLE")] == [1, 1]


@pytest.mark.parametrize(
    ("greeting", "error"),
    [
        (b"* BYE Too many connections, try later\r\n", Retryable),
        (b"* BYE [UNAVAILABLE] maintenance\r\n", Unavailable),
        (b"220 mail.example.com ESMTP\r\n", Fatal),
    ],
)
def test_a_greeting_that_turns_us_away_stops_no_source(
    server: ImapScript, greeting: bytes, error: type[ConnectorError]
) -> None:
    server.greeting = greeting
    with pytest.raises(error):
        connector(server).check()


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (b"NO [UNAVAILABLE] Temporary authentication failure", Unavailable),
        (b"NO Temporary authentication failure, try again", Retryable),
        (b"NO Request is throttled. Suggested Backoff Time: 12000 milliseconds", RateLimited),
        (b"NO User is authenticated but not connected", Unavailable),
        (b"NO [AUTHENTICATIONFAILED] bad", NeedsReauth),
        (b"NO go away", NeedsReauth),
    ],
)
def test_a_refused_login_is_what_the_server_means(
    server: ImapScript, refusal: bytes, error: type[ConnectorError]
) -> None:
    def refuse(client: Client, tag: bytes, command: bytes) -> bool:
        if command.startswith(b"LOGIN"):
            client.send(tag + b" " + refusal + b"\r\n")
        return command.startswith(b"LOGIN")

    server.hooks.append(refuse)
    with pytest.raises(error) as caught:
        connector(server).check()
    if b"12000" in refusal:
        assert isinstance(caught.value, RateLimited)
        assert caught.value.retry_after_seconds == 12.0


def test_a_refused_list_is_tried_again(server: ImapScript) -> None:
    def refuse(client: Client, tag: bytes, command: bytes) -> bool:
        if command.startswith(b"LIST"):
            client.send(tag + b" NO not now\r\n")
        return command.startswith(b"LIST")

    server.hooks.append(refuse)
    with pytest.raises(Retryable), opened(server) as session:
        session.folders()


@pytest.mark.parametrize("mechanism", ["LOGIN", "AUTH=PLAIN"])
@pytest.mark.parametrize(
    ("name", "password"),
    [("two words", 'qu"o\\te'), ("me@example.com", "pässwörd €"), ("ünï@example.com", "x y")],
)
def test_any_name_and_password_gets_in(
    server: ImapScript, mechanism: str, name: str, password: str
) -> None:
    server.name, server.password = name, password
    if mechanism != "LOGIN":
        server.capabilities.append(mechanism)
    assert connector(server).check().account == name


def test_the_error_document_of_xoauth2_is_answered_with_an_empty_line(server: ImapScript) -> None:
    server.capabilities.append("AUTH=XOAUTH2")
    with pytest.raises(NeedsReauth, match="SASL failed"):
        connector(server, password="", accessToken="wrong-canary").check()


def test_a_server_that_echoes_the_password_finds_it_nowhere(server: ImapScript) -> None:
    import base64

    secret = server.password
    encoded = base64.b64encode(f"\0{server.name}\0{secret}".encode()).decode()
    server.inbox.refusal = f"NO [SERVERBUG] {secret} {encoded}".encode()
    with pytest.raises(ConnectorError) as caught:
        connector(server).check()
    assert secret not in str(caught.value)
    assert encoded not in str(caught.value)


def test_a_check_of_a_dripping_server_ends_within_fifteen_seconds(
    server: ImapScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert imap._CHECK_SECONDS < 15
    monkeypatch.setattr(imap, "_CHECK_SECONDS", 1.0)
    lines, sent = 1_000, list[int]()

    def drip(client: Client, _tag: bytes, command: bytes) -> bool:
        if command.startswith(b"LIST"):
            for _ in range(lines):
                client.send(b"* OK wait\r\n")
                sent.append(1)
                time.sleep(0.1)
        return False

    server.hooks.append(drip)
    with pytest.raises(Retryable):
        connector(server, timeout_seconds=30).check()
    assert len(sent) < lines


def test_a_greeting_that_stalls_is_tried_again(server: ImapScript) -> None:
    """Its end must not be taken for the answer of a server of another protocol."""
    server.greeting = b"* OK"

    def go_on(client: Client, _tag: bytes, command: bytes) -> bool:
        if command.startswith(b"CAPABILITY"):
            client.send(b" ready\r\n")
        return False

    server.hooks.append(go_on)
    with pytest.raises(Unavailable, match="did not answer in time"):
        connector(server, timeout_seconds=0.5).check()


@pytest.mark.parametrize("take", [wire.Wire.body, wire.Wire.skip])
def test_a_message_may_take_no_longer_than_a_worker_may_live(
    take: Callable[[wire.Wire, int], object],
) -> None:
    """Else three workers are killed at it, and it is taken for what kills them."""
    ours, theirs = socket.socketpair()
    theirs.close()
    connection = wire.Wire(ours, name="here", timeout_seconds=30)
    with pytest.raises(Unavailable):
        take(connection, 1_000_000_000)
    connection.close()
    assert connection.deadline - time.monotonic() < settings.CELERY_TASK_TIME_LIMIT - 600
