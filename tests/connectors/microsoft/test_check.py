"""What a check of the credentials proves, and what it says where they are no good."""

import socket
from urllib.parse import quote

import pytest

from connectors.errors import (
    Fatal,
    NeedsReauth,
    RateLimited,
    Unavailable,
)
from connectors.microsoft import connector as microsoft
from connectors.types import RemoteMailbox
from tests.servers.graph import GraphServer, Refused, Response, User
from tests.servers.graph.connectors import box, build, opened, problem_of
from tests.servers.graph.words import error


def test_a_check_reads_the_users_and_a_mailbox(server: GraphServer) -> None:
    server.tenant.add_user("guest", kind="Guest", has_mailbox=False, plans=())
    server.tenant.add_user("unprovisioned", has_mailbox=False)
    large = box(server.tenant.add_user("alice")).deliver(b"x" * 20_000_000)
    with build(server) as connector:
        identity = connector.check()
    assert server.count(f"/messages/{quote(large)}/$value", status=200) == 1  # and not all of it
    assert identity.account == server.tenant.id
    assert "alice@contoso.example" in identity.detail
    assert server.count("/users") > 0
    assert server.count("/mailFolders/inbox/messages", status=200) == 1


@pytest.mark.parametrize(
    ("roles", "code", "named"),
    [
        ({"Mail.Read"}, "no_user_read", "User.Read.All"),
        ({"User.Read.All"}, "no_mail_read", "Mail.Read"),
        ({"User.Read.All", "Mail.ReadBasic.All"}, "no_mail_read", "Mail.Read"),
        (set(), "no_user_read", "admin consent"),
    ],
)
@pytest.mark.parametrize("has_mail", [True, False])
def test_a_missing_permission_is_named(
    server: GraphServer, alice: User, roles: set[str], code: str, named: str, has_mail: bool
) -> None:
    if has_mail:
        box(alice).deliver(b"message")
    server.tenant.roles = roles
    problem = problem_of(server)
    assert isinstance(problem, NeedsReauth)
    assert problem.code == code
    assert named in str(problem)


def test_a_permission_that_was_granted_after_a_check_is_seen_by_the_next(
    server: GraphServer, alice: User
) -> None:
    server.tenant.roles = set()
    assert problem_of(server).code == "no_user_read"
    server.tenant.roles = {"User.Read.All"}
    assert problem_of(server).code == "no_mail_read"
    with build(server) as connector:
        session = opened(connector, alice)
        with pytest.raises(NeedsReauth):
            session.folders()
    server.tenant.roles = {"User.Read.All", "Mail.Read"}
    with build(server) as connector:
        assert opened(connector, alice).folders()
        assert connector.check().account == server.tenant.id


def test_a_permission_that_was_granted_after_a_token_was_issued_is_seen_at_once(
    server: GraphServer, alice: User
) -> None:
    """Also where this process was not refused, but another one."""
    server.tenant.roles = {"User.Read.All"}
    with build(server) as connector, build(server) as another:
        [mailbox] = list(connector.mailboxes())
        server.tenant.roles = {"User.Read.All", "Mail.Read"}
        assert connector.check().account == server.tenant.id
        server.tenant.roles = {"User.Read.All"}
        server.login.expire_tokens()
        list(connector.mailboxes())
        server.tenant.roles = {"User.Read.All", "Mail.Read"}
        assert another.open(mailbox).folders()


def test_a_permission_to_list_users_that_was_granted_after_a_token_was_issued_is_seen_at_once(
    server: GraphServer, alice: User
) -> None:
    server.tenant.roles = {"Mail.Read"}
    with build(server) as connector:
        session = connector.open(RemoteMailbox(alice.id, "alice"))
        assert session.folders()
        server.tenant.roles = {"User.Read.All", "Mail.Read"}
        assert [mailbox.remote_id for mailbox in connector.mailboxes()] == [alice.id]


def test_a_missing_permission_is_named_also_where_there_is_time_to_ask_only_once(
    server: GraphServer, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token in hand says nothing of today, and to find that out would take all the time."""
    monkeypatch.setattr(microsoft, "_CHECK_SECONDS", 2.5)
    server.tenant.roles = {"User.Read.All"}
    with build(server) as connector:
        list(connector.mailboxes())
        server.latency_seconds = 0.9
        for _ in range(2):
            with pytest.raises(NeedsReauth) as caught:
                connector.check()
            assert caught.value.code == "no_mail_read"


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


@pytest.mark.parametrize("status", [302, 403, 404, 429, 500, 503])
@pytest.mark.parametrize("is_json", [True, False])
def test_a_login_that_is_out_of_order_is_no_wrong_secret(
    server: GraphServer, status: int, is_json: bool
) -> None:
    server.login.refuse = Response.json({}, status, Retry_After="60")
    if not is_json:
        server.login.refuse.body = b"<html>Sorry</html>"
    problem = problem_of(server)
    assert isinstance(problem, Unavailable | RateLimited)
    if isinstance(problem, RateLimited):
        assert problem.retry_after_seconds == 60


def test_a_host_that_does_not_exist_is_named(
    server: GraphServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    problem = problem_of(server)
    assert problem.code == "unknown_host"
    assert "There is no host named" in str(problem)


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


@pytest.mark.parametrize("retry_after", ["9", "60"])
def test_a_check_takes_no_longer_than_it_may(
    server: GraphServer, alice: User, retry_after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(microsoft, "_CHECK_SECONDS", 8.0)
    server.faults.intercept = lambda _request, _user: error(
        429, "TooMany", "x", Retry_After=retry_after
    )
    assert isinstance(problem_of(server), RateLimited)
    assert server.count(status=429) == 1  # who waits that long, asks again


def test_a_certificate_that_nobody_trusts_is_named(server: GraphServer) -> None:
    connector = build(server, environment={"extra_ca_file": ""})
    with connector, pytest.raises(Fatal) as caught:
        connector.check()
    assert caught.value.code == "certificate"
    assert "EXTRA_CA_FILE" in str(caught.value)
