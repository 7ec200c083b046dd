"""How the connector gets its tokens, and that it goes nowhere else."""

import contextlib
import datetime as dt
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from connectors import registry
from connectors.config import ConfigError
from connectors.errors import (
    Fatal,
    NeedsReauth,
    Unavailable,
)
from connectors.microsoft.config import CLOUDS
from tests.servers.graph import GraphServer, Request, Response, User
from tests.servers.graph.connectors import box, build, fetched, opened, problem_of


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


@pytest.mark.parametrize("by", ["Graph", "the login"])
@pytest.mark.parametrize("signs_in", [False, True])
def test_a_connection_that_breaks_after_a_token_was_refused_is_an_outage(
    server: GraphServer, alice: User, by: str, signs_in: bool
) -> None:
    given: dict[str, Any] = {}
    if signs_in:
        token = server.login.refresh_token_of(alice)
        given = {"tenantId": "common", "email": alice.mail, "refreshToken": token}
    broken = Response(200, body=b"cut off", cut_after=0)

    def cut(request: Request, user: User | None) -> Response | None:
        return broken if server.count(status=401) else None

    with build(server, **given) as connector:
        list(connector.mailboxes())
        server.login.expire_tokens()
        if by == "Graph":
            server.faults.intercept = cut
        else:
            server.login.refuse = broken
        with pytest.raises(Unavailable):
            list(connector.mailboxes())


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


def test_a_login_elsewhere_does_not_send_the_secret_to_yet_another_place(
    server: GraphServer,
) -> None:
    with GraphServer() as real:
        server.login.origin = real.origin  # it names this one in its openid-configuration
        assert isinstance(problem_of(server), Fatal)
        assert real.log == []


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


def test_a_rotated_refresh_token_is_kept_before_its_access_token_is_used(
    server: GraphServer, alice: User
) -> None:
    kept: list[tuple[str, int]] = []

    @contextlib.contextmanager
    def exchanging() -> Iterator[dict[str, str]]:
        secrets: dict[str, str] = {}
        yield secrets
        kept.append((secrets["refreshToken"], server.count("/v1.0/")))

    first = server.login.refresh_token_of(alice)
    person = {"refreshToken": first, "email": alice.mail, "tenantId": "common"}
    with build(server, environment={"exchanging": exchanging}, **person) as connector:
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
