"""IMAP logins: what a refusal means, which way gets in, and what answers that is no IMAP server."""

import base64
import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from connectors import registry
from connectors.base import Connector
from connectors.config import Environment
from connectors.errors import (
    ConnectorError,
    Fatal,
    NeedsReauth,
    RateLimited,
    Retryable,
    Unavailable,
)
from connectors.generic_imap import wire
from connectors.types import RawMessage
from tests.servers.graph import http
from tests.servers.imap_script import MODERN, PLAIN, Box, Client, ImapScript, Mail

Hook = Callable[[Client, bytes, bytes], bool]


def connector(server: Any, *, timeout_seconds: float = 5, **changes: Any) -> Connector:
    given = {
        "host": server.host, "port": server.port, "secure": False,
        "username": server.name, "password": server.password,
    }  # fmt: skip
    environment = Environment(
        timeout_seconds=timeout_seconds, extra_ca_file=http.ca_file(), connections_per_account=1
    )
    return registry.build("generic_imap", given | changes, environment)


def answering(start: bytes, said: bytes) -> Hook:
    """Answer commands that begin so, once they are complete, with a status."""

    def answer(client: Client, tag: bytes, command: bytes) -> bool:
        if not command.upper().startswith(start):
            return False
        if start == b"AUTHENTICATE":
            client.send(b"+ \r\n")
            client.file.readline()
        client.send(tag + b" " + said + b"\r\n")
        return True

    return answer


# -- what a refusal means --------------------------------------------------------------------------


@pytest.mark.parametrize("start", [b"LOGIN", b"AUTHENTICATE"])
@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"NO Server Unavailable. 15", Unavailable),  # Exchange
        (b"NO [ALERT] Account exceeded command or bandwidth limits. (Failure)", RateLimited),
        (b"NO [OVERQUOTA] Account exceeded command or bandwidth limits.", RateLimited),
        (b"NO [ALERT] Too many simultaneous connections. (Failure)", RateLimited),
        (b"NO [LIMIT] LOGIN Rate limit hit.", RateLimited),
        (b"NO [AUTHENTICATIONFAILED] Too many login attempts, try again later", RateLimited),
        (b"NO [AUTHENTICATIONFAILED] Temporary authentication failure", Unavailable),
        (b"NO [UNAVAILABLE] Temporary authentication failure. [host:2024-01-01]", Unavailable),
        (b"NO [UNAVAILABLE] Maximum number of connections from user+IP exceeded", Retryable),
        (b"NO Temporary authentication failure (rate-limit)", Unavailable),
        (b"NO Lookup failed abc123", Unavailable),  # Gmail
        (b"NO System I/O error", Unavailable),  # Cyrus
        (b"NO Mailbox is locked by POP server", Unavailable),
        (b"BYE too many connections", RateLimited),
        (b"NO [AUTHENTICATIONFAILED] Invalid credentials (Failure)", NeedsReauth),
        (b"NO [AUTHENTICATIONFAILED] Wrong password, please try again", NeedsReauth),
        (b"NO Invalid password, please try again", NeedsReauth),
        (b"NO [AUTHENTICATIONFAILED] The account is locked.", NeedsReauth),
        (b"NO [CONTACTADMIN] Account is blocked", Fatal),
        (b"NO [NONEXISTENT] No such user", NeedsReauth),
    ],
)
def test_passing_trouble_at_the_login_is_no_wrong_password(
    start: bytes, said: bytes, error: type[ConnectorError]
) -> None:
    with ImapScript(capabilities=(*PLAIN, "AUTH=PLAIN") if start != b"LOGIN" else PLAIN) as server:
        server.hooks.append(answering(start, said))
        with pytest.raises(error):
            connector(server).check()
        assert len(server.asked(b"LOGIN")) + len(server.asked(b"AUTHENTICATE")) == 1


# -- which way gets in -----------------------------------------------------------------------------


def ways(server: ImapScript) -> list[bytes]:
    return [c.split()[0] for c in server.commands if c.startswith((b"LOGIN", b"AUTHENTICATE"))]


@pytest.mark.parametrize("name", ["corp\\me\\shared", "me@example.com/shared"])
def test_a_name_that_plain_does_not_know_gets_in_by_login(name: str) -> None:
    with ImapScript(capabilities=(*PLAIN, "AUTH=PLAIN")) as server:
        server.name = name
        server.hooks.append(answering(b"AUTHENTICATE", b"NO AUTHENTICATE failed."))
        assert connector(server).check().account == name
        assert ways(server) == [b"AUTHENTICATE", b"LOGIN"]


@pytest.mark.parametrize(
    "said",
    [
        b"BAD Error in IMAP command",
        b"NO Unsupported authentication mechanism",
        b"NO [CANNOT] PLAIN is not available",
    ],
)
def test_a_mechanism_that_is_listed_and_not_had_is_done_without(said: bytes) -> None:
    with ImapScript(capabilities=(*PLAIN, "AUTH=PLAIN")) as server:
        server.hooks.append(answering(b"AUTHENTICATE", said))
        connector(server).check()
        assert ways(server) == [b"AUTHENTICATE", b"LOGIN"]


@pytest.mark.parametrize("said", [b"BAD what?", b"NO go away", b"NO [AUTHENTICATIONFAILED] no"])
def test_a_mechanism_that_is_refused_before_the_password_is_seen_is_done_without(
    said: bytes,
) -> None:
    def refuse(client: Client, tag: bytes, command: bytes) -> bool:
        if command.startswith(b"AUTHENTICATE"):
            client.send(tag + b" " + said + b"\r\n")
        return command.startswith(b"AUTHENTICATE")

    with ImapScript(capabilities=(*PLAIN, "AUTH=PLAIN")) as server:
        server.hooks.append(refuse)
        connector(server).check()
        assert ways(server) == [b"AUTHENTICATE", b"LOGIN"]


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"NO [AUTHENTICATIONFAILED] Invalid credentials", NeedsReauth),
        (b"NO Unknown user or wrong password", NeedsReauth),
        (b"NO Account disabled", NeedsReauth),
        (b"NO [PRIVACYREQUIRED] PLAIN is not allowed here", Fatal),
        (b"NO [CONTACTADMIN] Unsupported", Fatal),
    ],
)
def test_a_wrong_password_is_said_once(said: bytes, error: type[ConnectorError]) -> None:
    with ImapScript(capabilities=(*PLAIN, "AUTH=PLAIN")) as server:
        server.hooks.append(answering(b"AUTHENTICATE", said))
        with pytest.raises(error):
            connector(server).check()
        assert ways(server) == [b"AUTHENTICATE"]


def test_a_goodbye_in_the_middle_of_a_login_says_why() -> None:
    def hang_up(client: Client, _tag: bytes, command: bytes) -> bool:
        if command.startswith(b"AUTHENTICATE"):
            client.send(b"* BYE Maintenance until noon\r\n")
            client.end()
        return command.startswith(b"AUTHENTICATE")

    with ImapScript(capabilities=(*PLAIN, "AUTH=PLAIN")) as server:
        server.hooks.append(hang_up)
        with pytest.raises(Unavailable, match="Maintenance until noon"):
            connector(server).check()


def test_what_asks_to_wait_is_not_asked_again_by_another_way() -> None:
    with ImapScript(capabilities=(*PLAIN, "AUTH=PLAIN")) as server:
        server.hooks.append(answering(b"AUTHENTICATE", b"BAD too many login attempts"))
        with pytest.raises(RateLimited):
            connector(server).check()
        assert ways(server) == [b"AUTHENTICATE"]


@pytest.mark.parametrize(
    ("config", "capabilities", "advice"),
    [
        ({}, ("AUTH=XOAUTH2",), r"Turn on TLS \(secure or startTls"),
        ({"secure": True}, ("AUTH=XOAUTH2",), "only OAuth.*Microsoft"),
        ({"secure": True}, (), "no password in any way"),
    ],
)
def test_a_server_that_takes_no_password_says_what_it_takes(
    config: dict[str, Any], capabilities: tuple[str, ...], advice: str
) -> None:
    listed = " ".join(("IMAP4rev1", "LOGINDISABLED", *capabilities)).encode()
    with speaking(b"* OK [CAPABILITY " + listed + b"] hi\r\n", tls=bool(config)) as server:
        with pytest.raises(Fatal, match=advice) as caught:
            connector(server, **config).check()
        assert caught.value.code == "login_disabled"


def test_an_error_of_oauthbearer_is_answered_as_its_standard_says() -> None:
    said: list[bytes] = []

    def refuse(client: Client, tag: bytes, command: bytes) -> bool:
        if not command.startswith(b"AUTHENTICATE"):
            return False
        client.send(b"+ \r\n")
        client.file.readline()
        client.send(b"+ " + base64.b64encode(b'{"status":"invalid_token"}') + b"\r\n")
        said.append(base64.b64decode(client.file.readline()))
        client.send(tag + b" NO SASL failed\r\n")
        return True

    with ImapScript(capabilities=(*PLAIN, "AUTH=OAUTHBEARER")) as server:
        server.hooks.append(refuse)
        with pytest.raises(NeedsReauth, match="SASL failed"):
            connector(server, password="", accessToken="wrong-canary").check()
    assert said == [b"\1"]  # RFC 7628 section 3.2.3


# -- what answers ----------------------------------------------------------------------------------


class Speaker:
    host, name, password = "127.0.0.1", "me@example.com", "s3cret-canary"

    def __init__(self, port: int) -> None:
        self.port = port


@contextlib.contextmanager
def speaking(first: bytes, then: bytes = b"", *, tls: bool = False) -> Iterator[Speaker]:
    """A server that says `first`, and `then` once it is spoken to."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = listener.accept()
                with contextlib.suppress(OSError):
                    _speak(
                        http._server_context().wrap_socket(plain, server_side=True)
                        if tls
                        else plain
                    )

    def _speak(connection: socket.socket) -> None:
        with connection:
            connection.sendall(first)
            if connection.recv(1_000) and then:
                connection.sendall(then)
            while connection.recv(1_000):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield Speaker(listener.getsockname()[1])
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("server", "secure", "advice", "code"),
    [
        (speaking(b"", _BAD_REQUEST), False, "web server", "not_imap"),
        (speaking(b"", _BAD_REQUEST, tls=True), True, "web server", "not_imap"),
        (speaking(b"", b"\x15\x03\x01\x00\x02\x02\x46"), False, r"Turn on TLS \(secure", "tls"),
        (speaking(b"220 mail.example.com ESMTP\r\n"), False, "does not speak IMAP", "not_imap"),
        (speaking(b"+OK POP3 ready\r\n"), False, "does not speak IMAP", "not_imap"),
        (speaking(b"\x00\x01\x02"), False, "does not speak IMAP", "not_imap"),
        (speaking(b"* OK ready\r\n"), True, "does not speak TLS", "tls"),
    ],
    ids=["http", "https", "tls_alert", "smtp", "pop3", "binary", "plain_on_a_tls_port"],
)
def test_what_is_no_imap_server_is_named_at_once(
    server: contextlib.AbstractContextManager[Speaker], secure: bool, advice: str, code: str
) -> None:
    with server as speaker, pytest.raises(Fatal, match=advice) as caught:
        connector(speaker, secure=secure, timeout_seconds=20).check()
    assert caught.value.code == code


def test_a_silent_port_is_told_to_look_like_one_for_tls() -> None:
    with speaking(b"") as silent, pytest.raises(Unavailable, match="TLS is off") as caught:
        connector(silent, timeout_seconds=0.5).check()
    assert "tried again" not in str(caught.value).lower()  # whoever tries says so


def test_a_tls_port_that_is_spoken_to_in_the_clear_is_named() -> None:
    context = http._server_context()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with contextlib.suppress(ssl.SSLError, OSError):
                context.wrap_socket(connection, server_side=True)
            connection.close()

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(ConnectorError, match="secure"):
            connector(Speaker(listener.getsockname()[1]), timeout_seconds=0.5).check()


def test_what_a_greeting_tells_is_not_asked_for() -> None:
    with ImapScript(capabilities=PLAIN) as server:
        server.greeting = b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] ready\r\n"
        connector(server).check()
        assert server.commands[0].startswith(b"AUTHENTICATE PLAIN")


# -- servers that take one command at a time -------------------------------------------------------


def waiting(client: Client, patience_seconds: float) -> bytes:
    """What the client has sent already: it may have come in one piece with the command before."""
    client.socket.setblocking(False)
    try:
        if not client.file.peek():
            select.select([client.socket], [], [], patience_seconds)
        return client.file.peek()
    finally:
        client.socket.setblocking(True)


@contextlib.contextmanager
def hasty(reaction: str) -> Iterator[ImapScript]:
    """A server that does what is said where a command comes before the last was answered."""
    seen = threading.Event()

    def react(client: Client, tag: bytes, command: bytes) -> bool:
        # The answer takes its time, until a command came early for the first time: however busy
        # the machine, what the client sends without waiting is there by then.
        early = waiting(client, 0.05 if seen.is_set() else 0.6)
        if not early:
            return False
        seen.set()
        if reaction == "drops":
            client.end()
        elif reaction == "refuses":
            client.file.read(len(early))
            client.send(tag + b" OK\r\n" + early.split(b" ")[0] + b" BAD too early\r\n")
        else:
            client.file.read(len(early))
            client.send(tag + b" OK\r\n")
        return True

    with ImapScript(capabilities=(*PLAIN, "ID")) as server:
        server.boxes[b"Work"] = Box(validity=5)
        server.hooks.append(react)
        yield server


@pytest.mark.parametrize("reaction", ["drops", "refuses", "loses"])
def test_a_server_that_takes_one_command_at_a_time_is_asked_so(reaction: str) -> None:
    with hasty(reaction) as server:
        used = connector(server, timeout_seconds=20)
        assert used.check().detail == "2 folders"
        logins = server.logins
        with used.open(next(iter(used.mailboxes()))) as session:
            states = [folder.state["uidvalidity"] for folder in session.folders()]
            assert sorted(states) == [1, 5]
            assert server.logins == logins + 1  # remembered
            for number in range(450):  # three commands' worth
                server.inbox.deliver(b"Subject: %d\r\n\r\n" % number)
            inbox = next(folder for folder in session.folders() if folder.role == "inbox")
            refs = [ref for page in session.changes(inbox, None) for ref in page.added]
            assert sum(isinstance(a, RawMessage) for a in session.fetch(inbox, refs)) == 450
        assert server.logins == logins + 1


def test_a_listing_that_breaks_once_makes_no_server_slow(
    server: ImapScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drop(client: Client, _tag: bytes, command: bytes) -> bool:
        if command.startswith(b"LIST"):
            server.hooks.clear()
            client.end()
        return command.startswith(b"LIST")

    server.hooks.append(drop)
    with contextlib.closing(_session(server)) as session:
        assert len(session.folders()) == 1
        assert not session._first.wire.one_at_a_time
    assert server.logins == 2


# -- names that need a literal ---------------------------------------------------------------------


@pytest.mark.parametrize("literals", ["", "LITERAL+", "LITERAL-"])
def test_a_folder_with_a_raw_name_is_listed_among_others(literals: str) -> None:
    with ImapScript(capabilities=("IMAP4REV1", literals)) as server:
        for index, name in enumerate((b"A", "Entwürfe".encode(), b"Z", b"tab\tand\x01")):
            server.boxes[name] = Box(validity=10 + index)
        with contextlib.closing(_session(server)) as session:
            found = {folder.state.get("uidvalidity") for folder in session.folders()}
        assert found == {1, 10, 11, 12, 13}


def test_a_name_that_a_server_refuses_as_a_literal_costs_its_folder_alone() -> None:
    with ImapScript(capabilities=("IMAP4REV1",)) as server:
        server.refuses_literals = True
        server.boxes["Entwürfe".encode()] = Box(validity=7)
        server.boxes[b"Z"] = Box(validity=8)
        with contextlib.closing(_session(server)) as session:
            states = {f.path: f.state.get("uidvalidity") for f in session.folders()}
        assert sorted(states.values(), key=str) == [1, 8, None]


def _session(server: ImapScript) -> Any:
    used = connector(server, timeout_seconds=20)
    return used.open(next(iter(used.mailboxes())))


# -- slow replies ----------------------------------------------------------------------------------


def test_a_slow_and_steady_reply_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire.Wire.renew, "__defaults__", (2.0,))
    monkeypatch.setattr(wire, "_COMMAND_SECONDS", 2.0)

    def search_slowly(client: Client, _tag: bytes, command: bytes) -> bool:
        if command.startswith(b"UID SEARCH"):
            for tenth in range(10):
                client.send(b"* OK Searched %d0%% of the mailbox, ETA 0:01\r\n" % tenth)
                time.sleep(0.3)
        return False

    with ImapScript(capabilities=MODERN) as server:
        server.inbox.mails[1] = Mail(b"Subject: x\r\n\r\n")
        server.inbox.next_uid = 2
        server.hooks.append(search_slowly)
        with contextlib.closing(_session(server)) as session:
            inbox = next(folder for folder in session.folders() if folder.role == "inbox")
            assert sum(len(page.added) for page in session.changes(inbox, None)) == 1


def test_many_folders_that_are_slowly_and_steadily_told_of_are_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire.Wire.renew, "__defaults__", (2.0,))
    monkeypatch.setattr(wire, "_COMMAND_SECONDS", 2.0)

    def take_time(_client: Client, _tag: bytes, command: bytes) -> bool:
        if command.startswith(b"STATUS"):
            time.sleep(0.3)
        return False

    with ImapScript(capabilities=PLAIN) as server:
        for number in range(9):
            server.boxes[b"%d" % number] = Box(validity=number + 5)
        server.hooks.append(take_time)
        with contextlib.closing(_session(server)) as session:
            assert len(session.folders()) == 10
        assert server.logins == 1


def test_what_is_told_of_a_folder_without_end_fills_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "MAX_REPLY_BYTES", 100_000)

    def say_on(client: Client, _tag: bytes, command: bytes) -> bool:
        if command.startswith(b"STATUS"):
            with contextlib.suppress(OSError):
                while True:
                    client.send(b"* STATUS INBOX (MESSAGES 1)\r\n" * 100)
        return False

    with ImapScript(capabilities=PLAIN) as server:
        server.hooks.append(say_on)
        with (
            contextlib.closing(_session(server)) as session,
            pytest.raises(Unavailable, match="without end"),
        ):
            session.folders()


def test_a_reply_without_an_end_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_REPLY_SECONDS", 1.0)

    def say_on(client: Client, _tag: bytes, command: bytes) -> bool:
        if command.startswith(b"UID SEARCH"):
            with contextlib.suppress(OSError):
                while True:
                    client.send(b"* OK still searching\r\n")
                    time.sleep(0.05)
        return False

    with ImapScript(capabilities=MODERN) as server:
        server.inbox.mails[1] = Mail(b"Subject: x\r\n\r\n")
        server.inbox.next_uid = 2
        server.hooks.append(say_on)
        with contextlib.closing(_session(server)) as session:
            inbox = next(folder for folder in session.folders() if folder.role == "inbox")
            with pytest.raises(Unavailable):
                list(session.changes(inbox, None))
