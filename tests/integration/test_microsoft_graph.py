"""The Microsoft connector by itself, against Graph and a login on a socket: what it proves, says,
sends and keeps to."""

import datetime as dt
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from connectors import registry
from connectors.base import Connector, MailboxSession
from connectors.config import ConfigError
from connectors.errors import (
    ConnectorError,
    Fatal,
    MailboxUnavailable,
    MessageRefused,
    NeedsReauth,
    RateLimited,
    Unavailable,
)
from connectors.microsoft import listing
from connectors.microsoft.client import Graph, Pace
from connectors.microsoft.config import CLOUDS
from connectors.throttle import Budget, Local
from connectors.types import Missing, RawMessage, RemoteFolder
from tests.servers.graph import GraphServer, Mailbox, Refused, Request, Response, User
from tests.servers.graph.words import error


@pytest.fixture
def server() -> Iterator[GraphServer]:
    with GraphServer() as server:
        yield server


@pytest.fixture
def alice(server: GraphServer) -> User:
    return server.tenant.add_user("alice")


def box(user: User) -> Mailbox:
    assert user.mailbox is not None
    return user.mailbox


def build(server: GraphServer, *, environment: Any = None, **config: Any) -> Connector:
    given = {name: value for name, value in server.config(**config).items() if value is not None}
    return registry.build("microsoft", given, server.environment(**(environment or {})))


def problem_of(server: GraphServer, **config: Any) -> ConnectorError:
    with build(server, **config) as connector, pytest.raises(ConnectorError) as caught:
        connector.check()
    return caught.value


def opened(connector: Connector, user: User) -> MailboxSession:
    [mailbox] = [m for m in connector.mailboxes() if m.remote_id == user.id]
    return connector.open(mailbox)


def fetched(session: MailboxSession, folder: RemoteFolder | None = None) -> dict[str, Any]:
    folder = folder or session.folders()[0]
    refs = [ref for page in session.changes(folder, None) for ref in page.added]
    return {answer.ref.remote_id: answer for answer in session.fetch(folder, refs)}


# -- what the check proves and says --------------------------------------------------------------


def test_a_check_reads_the_users_and_a_mailbox(server: GraphServer) -> None:
    server.tenant.add_user("guest", kind="Guest", has_mailbox=False, plans=())
    server.tenant.add_user("unprovisioned", has_mailbox=False)
    server.tenant.add_user("alice")
    with build(server) as connector:
        identity = connector.check()
    assert identity.account == server.tenant.id
    assert "alice@contoso.example" in identity.detail
    assert server.count("/users") > 0
    assert server.count("/mailFolders/inbox/messages", status=200) == 1


@pytest.mark.parametrize(
    ("roles", "code", "named"),
    [
        ({"Mail.Read"}, "no_user_read", "User.Read.All"),
        ({"User.Read.All"}, "no_mail_read", "Mail.Read"),
        (set(), "no_user_read", "admin consent"),
    ],
)
def test_a_missing_permission_is_named(
    server: GraphServer, alice: User, roles: set[str], code: str, named: str
) -> None:
    server.tenant.roles = roles
    problem = problem_of(server)
    assert isinstance(problem, NeedsReauth)
    assert problem.code == code
    assert named in str(problem)


@pytest.mark.parametrize(
    ("refused", "code", "says"),
    [
        (Refused("invalid_client", 7000222, "expired"), "aadsts7000222", "expired"),
        (Refused("unauthorized_client", 700016, "not found"), "aadsts700016", "another tenant"),
        (Refused("invalid_client", 7000229, "missing"), "aadsts7000229", "admin consent"),
        (Refused("invalid_grant", 65001, "no consent"), "aadsts65001", "admin consent"),
        (Refused("invalid_grant", 53003, "blocked"), "aadsts53003", "conditional access"),
        (Refused("invalid_client", 7000112, "disabled"), "aadsts7000112", "disabled"),
        (Refused("invalid_client", 1234567, "new"), "needs_reauth", "AADSTS1234567"),
    ],
)
def test_what_the_login_refuses_is_said_in_plain_words(
    server: GraphServer, refused: Refused, code: str, says: str
) -> None:
    server.login.refuse = refused
    problem = problem_of(server)
    assert isinstance(problem, NeedsReauth)
    assert problem.code == code
    assert says in str(problem)
    assert "Trace ID" not in str(problem)


def test_a_secret_that_expired_a_wrong_one_and_a_wrong_tenant_are_told_apart(
    server: GraphServer, alice: User
) -> None:
    server.login.expired_secrets.add("old-secret")
    assert problem_of(server, clientSecret="old-secret").code == "aadsts7000222"
    assert problem_of(server, clientSecret="wrong").code == "aadsts7000215"
    assert problem_of(server, tenantId="fabrikam.example").code == "aadsts90002"
    other = "00000000-0000-0000-0000-000000000000"
    assert problem_of(server, clientId=other).code == "aadsts700016"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_login_that_is_out_of_order_is_no_wrong_secret(server: GraphServer, status: int) -> None:
    server.login.refuse = Response.json({}, status, Retry_After="60")
    problem = problem_of(server)
    assert isinstance(problem, Unavailable | RateLimited)
    if isinstance(problem, RateLimited):
        assert problem.retry_after_seconds == 60


def test_a_policy_that_forbids_every_mailbox_is_told_from_a_missing_permission(
    server: GraphServer,
) -> None:
    users = [server.tenant.add_user(f"user{number}") for number in range(20)]
    server.tenant.policy = {users[-1].id}
    problem = problem_of(server)
    assert isinstance(problem, Fatal)
    assert problem.code == "access_policy"
    assert "checkMailbox" in str(problem)
    with build(server, checkMailbox=users[-1].principal_name) as connector:
        assert users[-1].principal_name in connector.check().detail


def test_a_tenant_without_any_mailbox_is_not_called_good(server: GraphServer) -> None:
    assert problem_of(server).code == "no_mailbox"
    server.tenant.add_user("unprovisioned", has_mailbox=False)
    assert problem_of(server).code == "no_mailbox"


def test_a_check_takes_no_longer_than_it_may(server: GraphServer, alice: User) -> None:
    server.faults.intercept = lambda _request, _user: error(429, "TooMany", "x", Retry_After="60")
    began = time.monotonic()
    assert isinstance(problem_of(server), RateLimited)
    assert time.monotonic() - began < 2


def test_a_certificate_that_nobody_trusts_is_named(server: GraphServer) -> None:
    connector = build(server, environment={"extra_ca_file": ""})
    with connector, pytest.raises(Fatal) as caught:
        connector.check()
    assert caught.value.code == "certificate"
    assert "EXTRA_CA_FILE" in str(caught.value)


# -- the login -----------------------------------------------------------------------------------


def certificate() -> tuple[x509.Certificate, str, str]:
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ingestion")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return made, made.public_bytes(pem).decode(), private.decode()


def test_a_certificate_logs_in_with_a_signed_assertion(server: GraphServer, alice: User) -> None:
    made, public, private = certificate()
    given = {
        "clientSecret": None,
        "certificatePem": public,
        "certificatePrivateKeyPem": private,
    }
    assert problem_of(server, **given).code == "aadsts700027"  # not uploaded yet
    server.login.certificates.append(made)
    with build(server, **given) as connector:
        assert connector.check().account == server.tenant.id


def test_wrong_configurations_are_refused_by_field_and_echo_no_key(server: GraphServer) -> None:
    _, public, private = certificate()
    _, _, other = certificate()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"tenantId": None}, "tenantId"),
        ({"tenantId": "common"}, "tenantId"),
        ({"tenantId": "a/b"}, "tenantId"),
        ({"clientSecret": None}, "clientSecret"),
        ({"certificatePem": public, "certificatePrivateKeyPem": private}, "clientSecret"),
        ({"clientSecret": None, "certificatePem": public}, "certificatePrivateKeyPem"),
        ({"clientSecret": None, "certificatePrivateKeyPem": private}, "certificatePem"),
        (
            {"clientSecret": None, "certificatePem": public, "certificatePrivateKeyPem": other},
            "certificatePrivateKeyPem",
        ),
        (
            {"clientSecret": None, "certificatePem": "no", "certificatePrivateKeyPem": private},
            "certificatePem",
        ),
        ({"cloud": "mars"}, "cloud"),
        ({"refreshToken": "x"}, "email"),
    ]
    for changes, wrong in cases:
        with pytest.raises(ConfigError) as caught:
            build(server, **changes)
        assert list(caught.value.errors) == [wrong]
        assert private[40:80] not in str(caught.value.errors)


def test_a_token_is_asked_for_once_and_again_when_graph_refuses_it(
    server: GraphServer, alice: User
) -> None:
    ids = [box(alice).deliver(b"message %d" % number) for number in range(40)]
    with build(server) as connector, build(server) as another:
        assert list(connector.mailboxes()) == list(another.mailboxes())
        assert server.login.issued == 1
        server.login.expire_tokens()
        with opened(connector, alice) as session:
            assert sorted(fetched(session)) == sorted(ids)
    assert server.login.issued == 2
    assert server.count(status=401) <= 4


def test_a_token_that_graph_goes_on_refusing_needs_a_person(
    server: GraphServer, alice: User
) -> None:
    server.login.token_seconds = -1
    assert isinstance(problem_of(server), NeedsReauth)
    assert server.login.issued == 2


def test_nothing_goes_anywhere_but_where_the_settings_point(
    server: GraphServer, alice: User
) -> None:
    """Instance discovery included, which msal does by itself for authorities it does not know."""
    box(alice).deliver(b"message")
    reached: list[Any] = []
    watching = threading.Event()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if watching.is_set() and event in ("socket.connect", "socket.getaddrinfo"):
            reached.append((event, arguments[1] if event == "socket.connect" else arguments[:2]))

    sys.addaudithook(hook)  # stays, and does nothing once `watching` is cleared
    watching.set()
    try:
        token = server.login.refresh_token_of(alice)
        person = {"refreshToken": token, "email": alice.principal_name}
        for config in ({}, {"cloud": "usgov"}, person):
            with build(server, **config) as connector:
                connector.check()
                with opened(connector, alice) as session:
                    assert len(fetched(session)) == 1
    finally:
        watching.clear()
    host, _, port = server.origin.removeprefix("https://").partition(":")
    assert reached
    assert {target for _, target in reached} == {(host, int(port))}
    assert server.count("/discovery/instance") == 0


def test_each_cloud_has_its_own_addresses(server: GraphServer) -> None:
    hosts = {cloud: (place.login, place.graph) for cloud, place in CLOUDS.items()}
    assert hosts == {
        "global": ("https://login.microsoftonline.com", "https://graph.microsoft.com"),
        "usgov": ("https://login.microsoftonline.us", "https://graph.microsoft.us"),
        "usgovdod": ("https://login.microsoftonline.us", "https://dod-graph.microsoft.us"),
        "china": ("https://login.chinacloudapi.cn", "https://microsoftgraph.chinacloudapi.cn"),
    }
    config = registry.PROVIDERS["microsoft"].config.parse(server.config(cloud="china"))
    elsewhere: Any = config
    assert elsewhere.where(server.environment(endpoints={})).graph == CLOUDS["china"].graph
    assert elsewhere.where(server.environment()).graph == server.origin


def test_a_link_to_another_host_is_not_followed(server: GraphServer, alice: User) -> None:
    def lead_away(request: Request, user: User | None) -> Response | None:
        if request.path.endswith("/delta"):
            link = "https://graph.example/v1.0/users/x"
            return Response.json({"value": [], "@odata.nextLink": link})
        return None

    server.faults.intercept = lead_away
    with build(server) as connector, opened(connector, alice) as session, pytest.raises(Fatal):
        fetched(session)


# -- one person's mailbox ------------------------------------------------------------------------


def test_a_rotated_refresh_token_is_kept_before_its_access_token_is_used(
    server: GraphServer, alice: User
) -> None:
    kept: list[tuple[str, int]] = []

    def keep(secrets: Any) -> None:
        kept.append((secrets["refreshToken"], server.count("/v1.0/")))

    first = server.login.refresh_token_of(alice)
    person = {"refreshToken": first, "email": alice.mail, "tenantId": "common"}
    with build(server, environment={"keep_secrets": keep}, **person) as connector:
        assert connector.check().account == alice.mail
        box(alice).deliver(b"message")
        with opened(connector, alice) as session:
            assert len(fetched(session)) == 1
    [(token, requests_before)] = kept
    assert requests_before == 0
    assert token != first
    assert token in server.login.refresh_tokens
    assert first not in server.login.refresh_tokens
    with build(server, **{**person, "refreshToken": token}) as again:
        assert again.check().account == alice.mail
    assert server.login.issued == 1  # the token of before is still good


def test_another_person_who_signed_in_is_refused(server: GraphServer, alice: User) -> None:
    bob = server.tenant.add_user("bob")
    token = server.login.refresh_token_of(bob)
    problem = problem_of(server, refreshToken=token, email=alice.mail)
    assert problem.code == "other_person"
    assert "bob@contoso.example signed in" in str(problem)


# -- pace ----------------------------------------------------------------------------------------


class Noting(Local):
    """Tells when somebody was asked to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()

    def pause(self, budget: Budget, seconds: float) -> None:
        super().pause(budget, seconds)
        self.asked.set()


def test_retry_after_is_honoured_to_the_second_by_all_workers(
    server: GraphServer, alice: User
) -> None:
    for number in range(30):
        box(alice).deliver(b"message %d" % number)
    refused_at: list[float] = []

    def refuse_once(request: Request, user: User | None) -> Response | None:
        if request.path.endswith("$value") and not refused_at:
            refused_at.append(time.monotonic())
            return error(429, "TooManyRequests", "Wait.", Retry_After="2")
        return None

    throttle = Noting()
    shared = {"throttle": throttle}
    with (
        build(server, environment=shared) as one,
        build(server, environment=shared) as other,
        opened(one, alice) as downloading,
        opened(other, alice) as listing_folders,
    ):
        folder = downloading.folders()[0]
        refs = [ref for page in downloading.changes(folder, None) for ref in page.added]
        server.faults.intercept = refuse_once
        worker = threading.Thread(target=lambda: list(downloading.fetch(folder, refs)))
        worker.start()
        assert throttle.asked.wait(10)
        listing_folders.folders()
        worker.join()
    since = [(e.at - refused_at[0], e.path) for e in server.log if e.user and e.at > refused_at[0]]
    listed = min(after for after, path in since if path.endswith("/mailFolders"))
    assert 2.0 <= listed < 3.0
    # Those that were under way when one was refused are answered at once; then nobody asks.
    assert not [after for after, _ in since if 0.5 < after < 2.0]
    assert server.count(status=429) == 1


def test_who_waits_for_a_turn_when_graph_says_to_wait_waits_for_both(server: GraphServer) -> None:
    asked = threading.Event()

    class Slow(Local):
        def reserve(self, costs: Sequence[tuple[Budget, float]]) -> float:
            asked.set()
            return 0.5

    config: Any = registry.PROVIDERS["microsoft"].config.parse(server.config())
    graph = Graph(config, server.environment(throttle=Slow()))
    try:
        pace = Pace(graph, graph.budgets("somebody"))
        waiting = threading.Thread(target=lambda: pace.get("/users"))
        waiting.start()
        assert asked.wait(10)
        until = time.monotonic() + 1.5
        pace.pause(1.5)
        waiting.join()
    finally:
        graph.close()
    [request] = [entry for entry in server.log if entry.path == "/v1.0/users"]
    assert until <= request.at < until + 1.0


def test_a_longer_wait_is_left_to_the_engine(server: GraphServer, alice: User) -> None:
    box(alice).deliver(b"message")
    server.faults.intercept = lambda request, _user: (
        error(429, "TooManyRequests", "Wait.", Retry_After="120")
        if request.path.endswith("$value")
        else None
    )
    with (
        build(server) as connector,
        opened(connector, alice) as session,
        pytest.raises(RateLimited) as caught,
    ):
        fetched(session)
    assert caught.value.retry_after_seconds == 120


def test_what_is_allowed_is_used_and_hardly_anything_refused(
    server: GraphServer, alice: User
) -> None:
    """10,000 requests in 10 minutes, scaled: 300 in 6 seconds, and never more than 4 at a time."""
    window, allowed = 6.0, 300
    for number in range(330):
        box(alice).deliver(b"message %d" % number)
    server.latency_seconds = 0.01
    quotas = {"microsoft": {"mailbox": allowed, "window_seconds": window, "application": 1e6}}
    with (
        build(server, environment={"quotas": quotas}) as connector,
        opened(connector, alice) as session,
    ):
        server.limit = (allowed, window)
        assert len(fetched(session)) == 330
    requests = [entry for entry in server.log if entry.user]
    began = requests[0].at
    in_window = [entry for entry in requests if entry.at < began + window]
    assert len(in_window) >= 0.95 * allowed
    assert server.count(status=429) < 0.01 * len(requests)
    assert server.most_concurrent <= 4


# -- messages and folders ------------------------------------------------------------------------


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
