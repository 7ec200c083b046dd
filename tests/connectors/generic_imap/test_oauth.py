"""IMAP accounts that log in with OAuth: how often tokens are asked for, and that none is lost."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from connectors import registry
from connectors.base import Connector
from connectors.config import Environment
from connectors.errors import Fatal, NeedsReauth, RateLimited, Unavailable
from ingestion.services.sources import credentials
from tests.servers import imap_source
from tests.servers.graph import http
from tests.servers.imap_script import MODERN, ImapScript
from tests.servers.mortal import MortalProcess


class TokenServer:
    """Issues access tokens that ImapScript takes. `one_use`: each refresh token is good once."""

    def __init__(self, *, one_use: bool = False, seconds: object = 3_600) -> None:
        self.one_use, self.seconds = one_use, seconds
        self.good = "refresh-0"
        self.asked: list[str] = []
        self.access_token = "s3cret-canary"
        self.answer: Callable[[], http.Response] | None = None
        self.before_answering: Callable[[], object] = lambda: None
        self.url = ""

    def __call__(self, request: http.Request) -> http.Response:
        given = request.form()["refresh_token"]
        self.asked.append(given)
        self.before_answering()
        if self.answer is not None:
            return self.answer()
        if given != self.good:
            return http.Response.json({"error": "invalid_grant"}, 400)
        told = {"access_token": self.access_token}
        if self.seconds is not None:
            told["expires_in"] = self.seconds  # type: ignore[assignment] # also what is no number
        if self.one_use:
            self.good = told["refresh_token"] = f"refresh-{len(self.asked)}"
        return http.Response.json(told)


@contextlib.contextmanager
def serving(tokens: TokenServer) -> Iterator[ImapScript]:
    with (
        http.TlsServer(tokens) as tls,
        ImapScript(capabilities=(*MODERN, "AUTH=XOAUTH2")) as server,
    ):
        tokens.url = f"{tls.origin}/token"
        yield server


def config(server: ImapScript, tokens: TokenServer) -> dict[str, Any]:
    return {
        "host": server.host, "port": server.port, "secure": False, "username": server.name,
        "refreshToken": "refresh-0", "tokenUrl": tokens.url, "clientId": "c",
    }  # fmt: skip


def connector(server: ImapScript, tokens: TokenServer, **environment: Any) -> Connector:
    given: dict[str, Any] = {"timeout_seconds": 5, "extra_ca_file": http.ca_file()} | environment
    return registry.build("generic_imap", config(server, tokens), Environment(**given))


def test_a_refresh_token_that_is_exchanged_is_kept_before_it_is_used() -> None:
    kept: list[Any] = []
    tokens = TokenServer(one_use=True, seconds=None)

    @contextlib.contextmanager
    def exchanging() -> Iterator[dict[str, str]]:
        secrets: dict[str, str] = {}
        yield secrets
        kept.append((secrets, server.asked(b"AUTHENTICATE")))

    with serving(tokens) as server:
        used = connector(server, tokens, exchanging=exchanging)
        used.check()
        assert kept == [({"refreshToken": "refresh-1"}, [])]
        used.check()  # what this connector was made with is of no use any more
    assert tokens.asked == ["refresh-0", "refresh-1"]


@pytest.mark.django_db(transaction=True)
def test_a_refresh_token_of_one_use_survives_check_import_and_sync(
    settings: Any, archive_dir: Path
) -> None:
    settings.EXTRA_CA_FILE = http.ca_file()
    tokens = TokenServer(one_use=True, seconds=None)
    with serving(tokens) as server:
        server.inbox.deliver(b"Subject: one\r\n\r\n")
        source = imap_source.create(server, **config(server, tokens), password="")
        assert imap_source.imported(source).message == "1 archived."
        server.inbox.deliver(b"Subject: two\r\n\r\n")
        assert imap_source.synced(source).message == "1 archived."
        assert imap_source.archived(source) == imap_source.held_by(server)
    assert len(tokens.asked) == len(set(tokens.asked)) >= 3
    source.refresh_from_db()
    assert source.secrets["refreshToken"] == tokens.good


@pytest.mark.django_db(transaction=True)
def test_two_processes_that_ask_at_once_both_log_in_with_tokens_of_one_use(
    settings: Any, tmp_path: Path, wait_for: Callable[..., Any]
) -> None:
    settings.EXTRA_CA_FILE = http.ca_file()
    tokens = TokenServer(one_use=True, seconds=None)

    def until_both_are_there() -> None:
        wait_for(lambda: len(tokens.asked) > 2 or waits_for_a_lock())

    with serving(tokens) as server:
        source = imap_source.create(server, **config(server, tokens), password="")
        tokens.before_answering = until_both_are_there

        def check() -> None:
            assert credentials.check(source).ok

        with (
            MortalProcess(check, at_step=None, directory=tmp_path) as one,
            MortalProcess(check, at_step=None, directory=tmp_path) as other,
        ):
            one.wait()
            tokens.before_answering = lambda: None
            other.wait()
    assert tokens.asked == ["refresh-0", "refresh-1", "refresh-2"]
    source.refresh_from_db()
    assert source.secrets["refreshToken"] == tokens.good


def waits_for_a_lock() -> bool:
    with contextlib.closing(connection.copy()) as own, own.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        return cursor.fetchone() is not None


def test_an_access_token_is_used_for_as_long_as_it_is_good() -> None:
    tokens = TokenServer()
    with serving(tokens) as server:
        for _ in range(5):
            with connector(server, tokens) as used, used.open(next(used.mailboxes())) as session:
                session.folders()
        assert server.logins == 5
    assert len(tokens.asked) == 1


@pytest.mark.parametrize("seconds", [None, 0, -1, "soon", "nan", [3600]])
def test_an_access_token_of_unknown_life_is_used_once(seconds: object) -> None:
    tokens = TokenServer(seconds=seconds)
    with serving(tokens) as server:
        connector(server, tokens).check()
        connector(server, tokens).check()
    assert len(tokens.asked) == 2


def test_an_access_token_that_was_withdrawn_is_replaced_once() -> None:
    tokens = TokenServer()
    with serving(tokens) as server:
        connector(server, tokens).check()
        server.password = tokens.access_token = "s3cret-canary-2"
        connector(server, tokens).check()
        assert len(tokens.asked) == 2
        server.password = "another"
        with pytest.raises(NeedsReauth):
            connector(server, tokens).check()
        assert len(tokens.asked) == 3
        assert len(server.asked(b"AUTHENTICATE")) == 5


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, {"error": "invalid_grant"}, NeedsReauth),
        (400, {"error": "temporarily_unavailable"}, Fatal),
        (429, {}, RateLimited),
        (503, {}, Unavailable),
        (200, {"hello": "world"}, Fatal),
        (200, {"access_token": "two\nlines"}, Fatal),
    ],
)
def test_what_an_authorization_server_refuses(
    status: int, body: dict[str, str], error: type[Exception]
) -> None:
    tokens = TokenServer()
    tokens.answer = lambda: http.Response.json(body, status, Retry_After="7")
    with serving(tokens) as server, pytest.raises(error):
        connector(server, tokens).check()


@pytest.mark.parametrize(
    ("told", "seconds"),
    [("7", 7), ("Fri, 01 Jan 2100 00:00:00 GMT", 3_600), ("99999", 3_600), ("soon", None)],
)
def test_an_authorization_server_that_asks_to_wait_says_for_how_long(
    told: str, seconds: float | None
) -> None:
    tokens = TokenServer()
    tokens.answer = lambda: http.Response.json({}, 429, Retry_After=told)
    with serving(tokens) as server, pytest.raises(RateLimited) as caught:
        connector(server, tokens).check()
    assert caught.value.retry_after_seconds == seconds


def test_an_authorization_server_that_keeps_the_connection_open_has_answered() -> None:
    tokens = TokenServer()  # TlsServer keeps it open, whatever was asked for
    with serving(tokens) as server:
        # Who waited for its end would do so for longer than a test may take.
        connector(server, tokens, timeout_seconds=3_600).check()


def test_an_authorization_server_without_a_certificate_to_trust_is_named() -> None:
    tokens = TokenServer()
    with serving(tokens) as server, pytest.raises(Fatal, match="EXTRA_CA_FILE") as caught:
        connector(server, tokens, extra_ca_file="").check()
    assert caught.value.code == "certificate"
    assert not tokens.asked


def test_no_token_goes_to_a_private_address_where_that_is_forbidden() -> None:
    tokens = TokenServer()
    with serving(tokens) as server, pytest.raises(Fatal) as caught:
        connector(server, tokens, forbid_private_addresses=True).check()
    assert caught.value.code == "forbidden_address"
    assert not tokens.asked
