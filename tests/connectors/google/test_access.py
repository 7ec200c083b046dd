"""What a check of Google's credentials proves and names, and where requests go."""

import base64
import hashlib
import json
import re
import socket
import ssl
import subprocess
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from googleapiclient.http import BatchHttpRequest

from connectors import redaction, registry
from connectors.config import ConfigError
from connectors.errors import ConnectorError, Fatal, NeedsReauth, RateLimited, Retryable
from connectors.google import client
from connectors.google.config import GoogleConfig
from connectors.types import Identity, RawMessage
from tests.servers import google_sources
from tests.servers.gmail import MAIL_SCOPE, USERS_SCOPE, Gmail
from tests.servers.gmail_http import Response
from tests.servers.stack import ROOT

ALICE = "alice@example.com"


@pytest.fixture
def google() -> Iterator[Gmail]:
    with Gmail() as server:
        server.add(ALICE).deliver(b"Subject: hi\r\n\r\n")
        yield server


def checked(google: Gmail, config: dict[str, Any], **environment: Any) -> Identity:
    given = google_sources.environment(google, **environment)
    with registry.build("google", config, given) as connector:
        return connector.check()


def refusal(google: Gmail, config: dict[str, Any]) -> ConnectorError:
    with pytest.raises((NeedsReauth, Fatal)) as caught:
        checked(google, config)
    return caught.value


# -- what a check says -------------------------------------------------------------------------


def test_a_domain_is_proven_by_its_directory_and_by_one_mailbox(google: Gmail) -> None:
    found = checked(google, google_sources.domain(google))
    assert (found.account, found.detail) == ("admin@example.com", "2 mailboxes of its domain")
    assert google.count("users.list") == google.count("getProfile") == 1


def test_no_log_line_shows_a_token_or_a_key(google: Gmail) -> None:
    config = google_sources.domain(google)
    checked(google, config)
    secrets = [*google.oauth.tokens, config["serviceAccountKeyJson"]["private_key"]]
    assert len(secrets) == 3
    assert {redaction.redact(secret) for secret in secrets} == {"***"}


def test_a_refresh_token_that_a_sign_in_gave_is_in_no_log_line(google: Gmail) -> None:
    account = google_sources.account(google, ALICE) | {"refreshToken": ""}
    consent = registry.consent("google", account, google_sources.environment(google))
    assert consent is not None
    verifier, back = "v" * 43, "http://localhost/"
    digest = hashlib.sha256(verifier.encode()).digest()
    challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    google.oauth.redirect_uris, google.oauth.signs_in_as = {back}, ALICE
    url = consent.authorize_url(redirect_uri=back, state="s", code_challenge=challenge)
    location = httpx.get(url, trust_env=False).headers["location"]
    [code] = urllib.parse.parse_qs(urllib.parse.urlsplit(location).query)["code"]
    given = consent.redeem(code=code, code_verifier=verifier, redirect_uri=back)
    assert redaction.redact(given["refreshToken"]) == "***"


def test_an_administrator_without_gmail_is_no_obstacle(google: Gmail) -> None:
    config = google_sources.domain(google)
    google.people[google_sources.ADMIN].licensed = False
    assert checked(google, config).account == google_sources.ADMIN


def test_an_account_is_proven_by_its_mail(google: Gmail) -> None:
    found = checked(google, google_sources.account(google, ALICE))
    assert (found.account, found.detail) == (ALICE, "1 message")


def _lacks(*scopes: str) -> Callable[[Gmail, dict[str, Any]], None]:
    def break_it(google: Gmail, _: dict[str, Any]) -> None:
        google.oauth.delegated = {MAIL_SCOPE, USERS_SCOPE} - set(scopes)

    return break_it


def _disabled(api: str) -> Callable[[Gmail, dict[str, Any]], None]:
    return lambda google, _: google.faults.disabled.add(api)


def _admin(address: str) -> Callable[[Gmail, dict[str, Any]], None]:
    return lambda _, config: config.update(impersonatedAdminEmail=address)


def _clock(google: Gmail, _: dict[str, Any]) -> None:
    google.oauth.clock_offset = 7_200


def _key_deleted(google: Gmail, _: dict[str, Any]) -> None:
    google.oauth.key_deleted = True


def _nobody_has_gmail(google: Gmail, _: dict[str, Any]) -> None:
    for person in google.people.values():
        person.licensed = False


LINE = f"add client ID 104000000000000000001 with the scopes {USERS_SCOPE},{MAIL_SCOPE}"


@pytest.mark.parametrize(
    ("break_it", "code", "said"),
    [
        (_lacks(MAIL_SCOPE), "scope_not_delegated", [f"account: {MAIL_SCOPE}. In", LINE]),
        (_lacks(USERS_SCOPE), "scope_not_delegated", [f"account: {USERS_SCOPE}. In", LINE]),
        (_lacks(USERS_SCOPE, MAIL_SCOPE), "scope_not_delegated", [f"{USERS_SCOPE} and {MAIL_SCOPE}", LINE]),
        (_disabled("gmail"), "api_disabled", ["Gmail API", "library/gmail.googleapis.com?project=project-1"]),
        (_disabled("admin"), "api_disabled", ["Admin SDK API", "library/admin.googleapis.com?project=project-1"]),
        (_admin(ALICE), "wrong_admin", [ALICE, "impersonatedAdminEmail"]),
        (_admin("nobody@example.com"), "wrong_admin", ["nobody@example.com", "impersonatedAdminEmail"]),
        (_clock, "clock_skew", ["clock"]),
        (_key_deleted, "key_unknown", ["Create a new key"]),
        (_nobody_has_gmail, "no_mailbox", ["licence"]),
    ],
    ids=[
        "mail scope", "users scope", "both scopes", "Gmail API", "Admin API", "no admin",
        "unknown admin", "clock", "key", "no mailbox",
    ],
)  # fmt: skip
def test_a_check_of_a_domain_names_what_is_missing(
    google: Gmail, break_it: Callable[[Gmail, dict[str, Any]], None], code: str, said: list[str]
) -> None:
    config = google_sources.domain(google)
    break_it(google, config)
    error = refusal(google, config)
    assert error.code == code
    for words in said:
        assert words in str(error)
    assert "PRIVATE KEY" not in str(error)


def test_a_check_of_an_account_names_what_is_wrong(google: Gmail) -> None:
    config = google_sources.account(google, ALICE)
    assert refusal(google, config | {"clientSecret": "wrong"}).code == "wrong_client"
    assert refusal(google, config | {"refreshToken": "1//revoked"}).code == "sign_in_again"
    google.add("bob@example.com")
    assert refusal(google, config | {"email": "bob@example.com"}).code == "other_account"
    narrow = google.oauth.grant(ALICE, "https://www.googleapis.com/auth/gmail.labels")
    assert refusal(google, config | {"refreshToken": narrow}).code == "scope_not_granted"


def test_a_check_ends_in_time_where_google_only_puts_off(google: Gmail) -> None:
    config = google_sources.domain(google)
    google.faults.too_many = 1.0
    for retry_after in ("9", "60"):
        google.faults.retry_after = retry_after
        google.calls.clear()
        with pytest.raises(Retryable):
            checked(google, config, timeout_seconds=3)  # a step; two and a half are allowed
        assert len(google.calls) == 1  # who waits that long, asks again


@pytest.mark.parametrize("status", [200, 403, 502, 503])
@pytest.mark.parametrize(
    "kind", [google_sources.domain, lambda g: google_sources.account(g, ALICE)]
)
def test_a_token_server_that_is_out_of_order_is_no_refused_sign_in(
    google: Gmail,
    kind: Callable[[Gmail], dict[str, Any]],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = kind(google)
    monkeypatch.setattr(google.oauth, "token", lambda _: Response(status, b"<html>Error</html>"))
    with pytest.raises(Retryable):
        checked(google, config)


def test_an_answer_of_the_api_that_is_no_json_is_no_bug(
    google: Gmail, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = google_sources.account(google, ALICE)
    monkeypatch.setattr(google, "_call", lambda _: Response(200, b"<html>Sorry</html>"))
    with pytest.raises(Retryable):
        checked(google, config)


def test_who_must_prove_anew_who_they_are_is_told_to_sign_in(
    google: Gmail, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = google_sources.account(google, ALICE)
    told = {"error": "invalid_grant", "error_subtype": "invalid_rapt"}
    answer = Response(400, json.dumps(told).encode())
    monkeypatch.setattr(google.oauth, "token", lambda _: answer)
    assert refusal(google, config).code == "sign_in_again"


def test_no_answer_makes_everybody_wait_longer_than_an_hour(google: Gmail) -> None:
    google.faults.too_many, google.faults.retry_after = 1.0, "90000"
    config = google_sources.account(google, ALICE)
    connector = registry.build("google", config, google_sources.environment(google))
    with (
        connector,
        connector.open(next(connector.mailboxes())) as session,
        pytest.raises(RateLimited) as caught,
    ):
        session.folders()
    assert 3_590 < (caught.value.retry_after_seconds or 0) <= 3_600


def test_every_code_is_explained_in_the_documentation() -> None:
    explained = (ROOT / "docs" / "google.md").read_text()
    codes = {
        code
        for path in (ROOT / "connectors" / "google").glob("*.py")
        for code in re.findall(r'code ?= ?"(\w+)"', path.read_text())
    }
    table = "".join(line for line in explained.splitlines() if line.startswith("| `"))
    assert len(codes) > 10
    assert [code for code in sorted(codes) if f"`{code}`" not in table] == []
    assert f"{USERS_SCOPE},{MAIL_SCOPE}" in explained


# -- where requests go -------------------------------------------------------------------------


@pytest.fixture
def asked_hosts(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Every host whose address anything asks for; only the loopback gets an answer."""
    hosts: set[str] = set()
    resolve = socket.getaddrinfo

    def ask(host: Any, *args: Any, **kwargs: Any) -> Any:
        hosts.add(str(host))
        assert host in {"127.0.0.1", "localhost"}, f"Something asked for {host}"
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    return hosts


def test_nothing_goes_to_google_where_the_settings_point_elsewhere(
    google: Gmail, asked_hosts: set[str]
) -> None:
    """Whatever the key itself says about where its tokens are issued."""
    config = google_sources.domain(google)
    config["serviceAccountKeyJson"]["token_uri"] = "https://169.254.169.254/token"
    environment = google_sources.environment(google)
    with registry.build("google", config, environment) as connector:
        connector.check()
        for mailbox in connector.mailboxes():
            with connector.open(mailbox) as session:
                [folder] = session.folders()
                for page in session.changes(folder, None):
                    list(session.fetch(folder, page.added))
    consent = registry.consent(
        "google", google_sources.account(google, ALICE) | {"refreshToken": ""}, environment
    )
    assert consent is not None
    with pytest.raises(NeedsReauth):
        consent.redeem(code="none", code_verifier="v" * 43, redirect_uri="http://localhost/")
    assert asked_hosts == {"127.0.0.1"}


def test_a_batch_of_the_official_client_is_answered_part_by_part(google: Gmail) -> None:
    """The scripted Google answers the client's own batches as documented."""
    config = google_sources.account(google, ALICE)
    [name] = google.people[ALICE].mail
    connector = registry.build("google", config, google_sources.environment(google))
    answers: dict[str, Any] = {}
    with connector, connector.open(next(connector.mailboxes())) as session:
        session.folders()  # issues a token
        [token] = google.oauth.tokens
        batch = BatchHttpRequest(batch_uri=f"{google.url}/batch/gmail/v1")
        for asked in (name, "ffff"):
            request = client.gmail(google.url).messages.get(userId="me", id=asked, format="raw")
            request.headers["authorization"] = f"Bearer {token}"
            batch.add(request, callback=lambda i, a, e: answers.update({i: e or a}))
        batch.execute(http=session.mailbox._main.http)  # type: ignore[attr-defined] # Gmail's
    found, missing = answers.values()
    assert found["id"] == name
    assert missing.resp.status == 404


def test_a_private_authority_is_trusted_where_the_settings_name_it(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with Gmail(tls=tls) as google:
        google.add(ALICE).deliver(b"over TLS")
        config = google_sources.account(google, ALICE)
        assert refusal(google, config).code == "certificate"
        environment = google_sources.environment(google, extra_ca_file=str(certificate))
        connector = registry.build("google", config, environment)
        with connector, connector.open(next(connector.mailboxes())) as session:
            [folder] = session.folders()
            refs = [ref for page in session.changes(folder, None) for ref in page.added]
            [answer] = session.fetch(folder, refs)
        assert isinstance(answer, RawMessage)
        assert answer.body == b"over TLS"


# -- configuration -----------------------------------------------------------------------------

KEY = {
    "type": "service_account", "project_id": "p", "private_key_id": "i", "client_id": "1",
    "private_key": "-----BEGIN PRIVATE KEY-----canary", "client_email": "a@p.iam",
}  # fmt: skip
ADMIN = {"impersonatedAdminEmail": "admin@example.com"}
CLIENT = {"clientId": "c", "clientSecret": "canary"}


@pytest.mark.parametrize("key", [KEY, json.dumps(KEY)], ids=["object", "string"])
def test_a_key_is_taken_as_an_object_or_as_a_string(key: Any) -> None:
    config = GoogleConfig.parse({"serviceAccountKeyJson": key, **ADMIN})
    assert config.is_domain
    assert config.key["private_key"] == KEY["private_key"]
    assert not config.awaits_consent()


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({}, {"serviceAccountKeyJson"}),
        ({"serviceAccountKeyJson": "canary{", **ADMIN}, {"serviceAccountKeyJson"}),
        ({"serviceAccountKeyJson": {"type": "authorized_user"}, **ADMIN}, {"serviceAccountKeyJson"}),
        ({"serviceAccountKeyJson": KEY | {"private_key": ""}, **ADMIN}, {"serviceAccountKeyJson"}),
        ({"serviceAccountKeyJson": KEY | {"private_key": "canary"}, **ADMIN}, {"serviceAccountKeyJson"}),
        ({"serviceAccountKeyJson": KEY}, {"impersonatedAdminEmail"}),
        ({"serviceAccountKeyJson": KEY, **ADMIN, "clientId": "c"}, {"clientId"}),
        ({"clientId": "c"}, {"clientSecret"}),
        (CLIENT | {"refreshToken": "canary"}, {"email"}),
        (CLIENT | {"email": "nobody"}, {"email"}),
        (CLIENT | ADMIN, {"impersonatedAdminEmail"}),
        (CLIENT | {"token_uri": "https://evil.example"}, {"token_uri"}),
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_refused_by_field(given: dict[str, Any], wrong: set[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        GoogleConfig.parse(given)
    assert set(caught.value.errors) == wrong
    assert "canary" not in str(caught.value.errors)


def test_a_client_without_a_token_waits_for_somebody_to_sign_in() -> None:
    assert GoogleConfig.parse(CLIENT).awaits_consent()


def test_one_kind_of_credentials_replaces_the_other() -> None:
    stored = {**CLIENT, "refreshToken": "r", "email": "a@b.c"}
    assert GoogleConfig.superseded({"serviceAccountKeyJson": KEY}, stored) >= set(stored)
    assert GoogleConfig.superseded(CLIENT, {"serviceAccountKeyJson": "k"}) >= {
        "serviceAccountKeyJson"
    }
    assert GoogleConfig.superseded({"clientId": "other"}, stored) == {"refreshToken"}
    assert GoogleConfig.superseded({"clientId": "c"}, stored) == set()
