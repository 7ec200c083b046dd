"""The API over HTTP against the running service: the reference's paths, methods and codes.

Each entry of REFERENCE quotes what the API was asked to be; tests/meta/test_reference.py has all of
its endpoints and responses, and compares.
"""

import email
import hashlib
import json
import socket
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test.utils import CaptureQueriesContext

from ingestion.models import ApiKey, AuditEvent, IngestionSource
from tests.servers import imap_source
from tests.servers.dovecot import Dovecot

if TYPE_CHECKING:
    from tests.servers.stack import Service

CANARY = "canary-s3cret"
NOWHERE = {"host": "127.0.0.1", "port": 1, "secure": False, "username": "u", "password": CANARY}
BODY = {"name": "Mail", "provider": "generic_imap", "providerConfig": NOWHERE}

REFERENCE = [
    ("POST /api/v1/ingestion", "201 Created: The newly created ingestion source.", 201),
    ("GET /api/v1/ingestion", "200 OK: An array of ingestion source objects.", 200),
    ("GET /api/v1/ingestion/:id", "200 OK: The ingestion source object.", 200),
    ("GET /api/v1/ingestion/:none", "404 Not Found: Ingestion source not found.", 404),
    ("PUT /api/v1/ingestion/:id", "200 OK: The updated ingestion source object.", 200),
    ("PUT /api/v1/ingestion/:none", "404 Not Found: Ingestion source not found.", 404),
    ("POST /api/v1/ingestion/:id/import", "202 Accepted: The initial import was triggered successfully.", 202),
    ("POST /api/v1/ingestion/:none/import", "404 Not Found: Ingestion source not found.", 404),
    ("POST /api/v1/ingestion/:id/sync", "202 Accepted: The force sync was triggered successfully.", 202),
    ("POST /api/v1/ingestion/:none/sync", "404 Not Found: Ingestion source not found.", 404),
    ("POST /api/v1/ingestion/:proven/pause", "200 OK: The updated ingestion source object with a paused status.", 200),
    ("POST /api/v1/ingestion/:none/pause", "404 Not Found: Ingestion source not found.", 404),
    ("DELETE /api/v1/ingestion/:id", "204 No Content: The ingestion source was deleted successfully.", 204),
    ("DELETE /api/v1/ingestion/:none", "404 Not Found: Ingestion source not found.", 404),
]  # fmt: skip


@pytest.fixture
def source(api: httpx.Client, owner: User) -> IngestionSource:
    """A source whose server is not there: nothing happens to it during a test."""
    answer = api.post("/ingestion", json=BODY)
    assert answer.status_code == 201, answer.text
    return IngestionSource.objects.get(pk=answer.json()["id"])


def address(path: str, source: IngestionSource) -> str:
    if ":proven" in path:
        IngestionSource.objects.filter(pk=source.pk).update(status="auth_success")
    for name in (":id", ":proven"):
        path = path.replace(name, str(source.pk))
    return path.replace(":none", str(uuid.uuid4())).removeprefix("/api/v1")


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize(("endpoint", "quote", "code"), REFERENCE, ids=lambda v: str(v)[:40])
def test_the_reference(
    api: httpx.Client, source: IngestionSource, endpoint: str, quote: str, code: int, slash: str
) -> None:
    method, path = endpoint.split()
    body = {"POST /api/v1/ingestion": BODY, "PUT /api/v1/ingestion/:id": {"name": "New"}}.get(
        endpoint
    )
    answer = api.request(method, address(path, source) + slash, json=body)
    assert answer.status_code == code == int(quote[:3]), answer.text
    if "array" in quote:
        assert [entry["id"] for entry in answer.json()] == [str(source.pk)]
    if "paused status" in quote:
        assert answer.json()["status"] == "paused"
    if code == 404:
        assert answer.json()["type"] == "client_error"


@pytest.mark.parametrize(
    "endpoint", sorted({entry[0] for entry in REFERENCE if ":none" not in entry[0]})
)
def test_access_authenticated(
    service: "Service", other_user: User, make_key: Callable[..., str], source: IngestionSource,
    endpoint: str,
) -> None:  # fmt: skip
    """Access: Authenticated. Anonymous 401; somebody else's source 404; a read key can't write."""
    method, path = endpoint.split()
    url = f"{service.url}/api/v1{address(path, source)}"

    def ask(key: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.request(
            method,
            url,
            headers=headers,
            json=BODY if method == "POST" else {},
            trust_env=False,
            verify=False,
        )

    anonymous = ask("")
    assert anonymous.status_code == 401
    assert anonymous.headers["WWW-Authenticate"].startswith("Bearer")
    assert ask("no-such-key").status_code == 401
    if ":" in path:
        assert ask(make_key(other_user)).status_code == 404
    if method != "GET":
        assert ask(make_key(source.owner, ("read",))).status_code == 403
    else:
        assert ask(make_key(source.owner, ("write",))).status_code == 403
    revoked = make_key(source.owner)
    ApiKey.objects.filter(token_key=revoked[:15]).delete()
    assert ask(revoked).status_code == 401


def test_staff_see_what_djangos_permissions_allow(
    service: "Service", other_user: User, make_key: Callable[..., str], source: IngestionSource
) -> None:
    other_user.is_staff = True
    other_user.save()
    url = f"{service.url}/api/v1/ingestion/{source.pk}"
    headers = {"Authorization": f"Bearer {make_key(other_user)}"}

    def ask(method: str) -> int:
        return httpx.request(
            method, url, headers=headers, json={}, trust_env=False, verify=False
        ).status_code

    assert ask("GET") == 404
    other_user.user_permissions.add(Permission.objects.get(codename="view_ingestionsource"))
    assert (ask("GET"), ask("PUT"), ask("DELETE")) == (200, 403, 403)
    other_user.user_permissions.add(Permission.objects.get(codename="delete_ingestionsource"))
    assert ask("DELETE") == 204


BAD: list[tuple[str, Any, str]] = [
    ("nothing at all", {}, "name"),
    ("an empty name", {**BODY, "name": ""}, "name"),
    ("a name of 201 characters", {**BODY, "name": "x" * 201}, "name"),
    ("a name with a line end", {**BODY, "name": "a\nb"}, "name"),
    ("a name with a C1 control", {**BODY, "name": "a\x9b31mb"}, "name"),
    ("a name with DEL", {**BODY, "name": "a\x7f"}, "name"),
    ("a name that is turned round", {**BODY, "name": "a\u202eb"}, "name"),
    ("a user name with a control", {**BODY, "providerConfig": {**NOWHERE, "username": "a\x9bb"}}, "providerConfig.username"),
    ("an unknown provider", {**BODY, "provider": "carrier_pigeon"}, "provider"),
    ("an unknown field", {**BODY, "colour": "red"}, "colour"),
    ("a read-only field", {**BODY, "messageCount": 3}, "messageCount"),
    ("a config that is a list", {**BODY, "providerConfig": []}, "providerConfig"),
    ("a missing host", {**BODY, "providerConfig": {**NOWHERE, "host": ""}}, "providerConfig.host"),
    ("a URL as host", {**BODY, "providerConfig": {**NOWHERE, "host": "imap://x/"}}, "providerConfig.host"),
    ("a port of 0", {**BODY, "providerConfig": {**NOWHERE, "port": 0}}, "providerConfig.port"),
    ("a port as text", {**BODY, "providerConfig": {**NOWHERE, "port": "993"}}, "providerConfig.port"),
    ("true as port", {**BODY, "providerConfig": {**NOWHERE, "port": True}}, "providerConfig.port"),
    ("no password", {**BODY, "providerConfig": {**NOWHERE, "password": ""}}, "providerConfig.password"),
    ("TLS twice", {**BODY, "providerConfig": {**NOWHERE, "secure": True, "startTls": True}}, "providerConfig.startTls"),
    ("an unknown config field", {**BODY, "providerConfig": {**NOWHERE, "foo": 1}}, "providerConfig.foo"),
    ("another type", {**BODY, "providerConfig": {**NOWHERE, "type": "google"}}, "providerConfig.type"),
    ("an unknown option", {**BODY, "options": {"foo": 1}}, "options.foo"),
    ("too short an interval", {**BODY, "options": {"syncIntervalSeconds": 5}}, "options.syncIntervalSeconds"),
    ("a date that is none", {**BODY, "options": {"since": "31.01.2024"}}, "options.since"),
    ("globs as a text", {**BODY, "options": {"includeFolders": "*"}}, "options.includeFolders"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "body", "field"), BAD, ids=[entry[0] for entry in BAD])
def test_bad_input_is_a_400_that_names_the_field_and_stores_nothing(
    api: httpx.Client, what: str, body: Any, field: str
) -> None:
    answer = api.post("/ingestion", json=body)
    assert answer.status_code == 400, answer.text
    assert field in [error["attr"] for error in answer.json()["errors"]]
    assert CANARY not in answer.text
    assert not IngestionSource.objects.exists()


#: Method, path, body, and the field or parameter that the answer must name.
BAD_ELSEWHERE: list[tuple[str, str, Any, str]] = [
    ("PUT", "/ingestion/:id", {"name": ""}, "name"),
    ("PUT", "/ingestion/:id", {"name": " "}, "name"),
    ("PUT", "/ingestion/:id", {"name": 7}, "name"),
    ("PUT", "/ingestion/:id", {"name": None}, "name"),
    ("PUT", "/ingestion/:id", {"status": "flying"}, "status"),
    ("PUT", "/ingestion/:id", {"provider": "carrier_pigeon"}, "provider"),
    ("PUT", "/ingestion/:id", {"providerConfig": {"port": 70_000}}, "providerConfig.port"),
    ("PUT", "/ingestion/:id", {"providerConfig": {"host": "a b"}}, "providerConfig.host"),
    ("PUT", "/ingestion/:id", {"providerConfig": "text"}, "providerConfig"),
    ("PUT", "/ingestion/:id", {"options": {"foo": 1}}, "options.foo"),
    ("PUT", "/ingestion/:id", {"options": {"includeFolders": [1]}}, "options.includeFolders"),
    ("PUT", "/ingestion/:id", {"autoImport": True}, "autoImport"),
    ("PUT", "/ingestion/:id", {"createdAt": "2024-01-01"}, "createdAt"),
    ("POST", "/ingestion/:id/sync", {"force": True}, "force"),
    ("POST", "/ingestion/:id/failures/retry", {"ids": ["1"]}, "ids.0"),
    ("POST", "/ingestion/:id/failures/retry", {"ids": [0]}, "ids.0"),
    ("POST", "/ingestion/:id/failures/retry", {"ids": 1}, "ids"),
    ("GET", "/ingestion?page=0", None, "page"),
    ("GET", "/ingestion?pageSize=many", None, "pageSize"),
    ("GET", "/ingestion?provider=carrier_pigeon", None, "provider"),
    ("GET", "/ingestion?status=asleep", None, "status"),
    ("GET", "/ingestion?search=%00", None, "search"),
    ("GET", "/ingestion?colour=red", None, "colour"),
    ("GET", "/ingestion?page=1&page=2", None, "page"),
    ("GET", "/ingestion/:id/runs?pageSize=1001", None, "pageSize"),
    ("GET", "/ingestion/:id/stats?mailbox=x", None, "mailbox"),
    ("GET", "/emails?source=x", None, "source"),
    ("GET", "/emails?folder=x", None, "folder"),
    ("GET", "/emails?receivedFrom=yesterday", None, "receivedFrom"),
    ("GET", "/emails?cursor=nonsense", None, "cursor"),
    ("GET", "/emails?pageSize=0", None, "pageSize"),
]


def test_bad_bodies_and_queries_are_400s_that_name_the_field_and_change_nothing(
    api: httpx.Client, source: IngestionSource
) -> None:
    IngestionSource.objects.update(status="error")  # nothing is due: only a request may change it
    before = IngestionSource.objects.values().get()
    for method, path, body, field in BAD_ELSEWHERE:
        answer = api.request(method, address(path, source), json=body)
        assert answer.status_code == 400, (method, path, body, answer.text)
        assert field in [error["attr"] for error in answer.json()["errors"]], (path, body)
        assert all(error["detail"] for error in answer.json()["errors"])
    assert IngestionSource.objects.values().get() == before


@pytest.mark.parametrize(
    "raw",
    [b"{", b'{"name": NaN}', b"[]", b"\xff", b'{"name": "\\ud800"}', b'{"name": "\\u0000"}',
     b'{"a":' * 3000 + b"1" + b"}" * 3000, b'{"name": "a", "name": "b"}', b"null"],
)  # fmt: skip
def test_malformed_json_is_a_400_in_the_same_format(api: httpx.Client, raw: bytes) -> None:
    answer = api.post("/ingestion", content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["errors"]


def test_other_refusals_have_the_same_format(api: httpx.Client, source: IngestionSource) -> None:
    refusals = {
        404: api.get("/ingestion/not-a-uuid"),
        405: api.delete("/ingestion"),
        415: api.post("/ingestion", content=b"x", headers={"Content-Type": "text/plain"}),
        409: api.post(f"/ingestion/{source.pk}/pause"),  # its credentials are not proven
        400: api.get("/ingestion?status=asleep"),
    }
    for code, answer in refusals.items():
        assert answer.status_code == code, answer.text
        assert answer.json()["errors"][0]["detail"]
    assert api.get("/ingestion?search=%00").status_code == 400
    assert api.get("/no-such-thing").json()["type"] == "client_error"
    assert api.get("/emails?cursor=nonsense").status_code == 400


def test_put_is_partial_keeps_secrets_and_names_the_allowed_moves(
    api: httpx.Client, source: IngestionSource
) -> None:
    url = f"/ingestion/{source.pk}"
    answer = api.put(url, json={"providerConfig": {"host": "127.0.0.1", "password": ""}})
    assert answer.json()["providerConfig"]["host"] == "127.0.0.1"
    assert answer.json()["providerConfig"]["passwordSet"] is True
    source.refresh_from_db()
    assert source.secrets["password"] == CANARY
    IngestionSource.objects.filter(pk=source.pk).update(status="active")
    refused = api.put(url, json={"status": "importing"})
    assert refused.status_code == 409
    assert "paused" in refused.text
    for password, status in (("new", "active"), ("newer", "paused")):
        IngestionSource.objects.filter(pk=source.pk).update(status=status, hold=status == "paused")
        given = {"providerConfig": {"password": password}, "status": status}
        answer = api.put(url, json=given)
        assert (answer.status_code, answer.json()["status"]) == (200, "pending_auth"), status
    IngestionSource.objects.filter(pk=source.pk).update(status="active", hold=False)
    assert api.put(url, json={"status": "paused"}).json()["status"] == "paused"
    assert api.post(f"{url}/sync").status_code == 409
    assert api.post(f"{url}/import").status_code == 409


def test_no_secret_is_in_any_answer_or_audit(
    api: httpx.Client, source: IngestionSource, wait_for: Callable[..., Any]
) -> None:
    wait_for(lambda: "Can't connect" in api.get(f"/ingestion/{source.pk}").text)
    pages = [
        f"/ingestion/{source.pk}{path}"
        for path in ("", "/runs", "/mailboxes", "/failures", "/stats", "/events")
    ]
    for page in (*pages, "/ingestion", "/emails"):
        answer = api.get(page)
        assert answer.status_code == 200, page
        assert CANARY not in answer.text
    assert CANARY not in str(list(AuditEvent.objects.values()))
    with connection.cursor() as cursor:
        cursor.execute("SELECT s::text FROM ingestion_ingestionsource s")
        assert CANARY not in str(cursor.fetchall())


#: Of every endpoint of the reference.
UNEXPECTED = "500 Internal Server Error: An unexpected error occurred."


@pytest.fixture
def broken_table(source: IngestionSource) -> Iterator[None]:
    """A database that is not what the service expects."""
    rename = "ALTER TABLE ingestion_ingestionsource RENAME COLUMN {} TO {}"
    with connection.cursor() as cursor:
        cursor.execute(rename.format("options", "options_away"))
        try:
            yield
        finally:
            cursor.execute(rename.format("options_away", "options"))


def test_an_unexpected_error_is_a_500_with_an_id_and_nothing_else(
    api: httpx.Client, source: IngestionSource, broken_table: None
) -> None:
    for endpoint in dict.fromkeys(entry[0] for entry in REFERENCE if ":none" not in entry[0]):
        method, path = endpoint.split()
        path = path.replace(":proven", ":id").replace(":id", str(source.pk))
        body = {"POST /api/v1/ingestion": BODY, "PUT /api/v1/ingestion/:id": {"name": "New"}}
        answer = api.request(method, path.removeprefix("/api/v1"), json=body.get(endpoint))
        assert answer.status_code == 500 == int(UNEXPECTED[:3]), endpoint
        assert answer.json()["type"] == "server_error"
        [error] = answer.json()["errors"]
        assert error["detail"].startswith("Something went wrong. Tell the operator this id: ")
        for told in ("Traceback", "column", "SELECT", "options", CANARY):
            assert told not in answer.text, endpoint


def test_credentials_that_no_key_reads_are_hidden_and_can_be_given_anew(
    api: httpx.Client, source: IngestionSource
) -> None:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE ingestion_ingestionsource SET secrets = 'gAAAAA-broken-ciphertext'")
    [listed] = api.get("/ingestion").json()
    assert listed["providerConfig"]["passwordSet"] is False
    assert "ciphertext" not in str(listed)
    url = f"/ingestion/{source.pk}"
    incomplete = api.put(url, json={"providerConfig": {"host": "127.0.0.2"}})
    assert incomplete.status_code == 400
    assert "providerConfig.password" in [error["attr"] for error in incomplete.json()["errors"]]
    given = api.put(url, json={"providerConfig": {"password": "new"}})
    assert given.json()["providerConfig"]["passwordSet"] is True


def test_a_thousand_sources_cost_a_constant_number_of_queries(
    service: "Service", api: httpx.Client, owner: User, client: Any
) -> None:
    IngestionSource.objects.bulk_create(  # none of them is ever due
        IngestionSource(
            owner=owner,
            name=f"Source {number:04}",
            provider="generic_imap",
            config={key: value for key, value in NOWHERE.items() if key != "password"},
            status="error",
        )
        for number in range(1000)
    )
    client.force_login(owner)
    client.get("/api/v1/ingestion")  # a session's first request writes down when it was
    counts = []
    for url in (
        "/api/v1/ingestion",
        f"/api/v1/ingestion/{IngestionSource.objects.latest('name').pk}",
    ):
        with CaptureQueriesContext(connection) as queries:
            answer = client.get(url)
        assert answer.status_code == 200
        counts.append(len(queries))
    assert counts[0] <= 8, counts  # with the run that tells since when nothing succeeds
    assert counts[1] <= 10, counts  # and whether somebody else archives the same account
    page = api.get("/ingestion?page=2&pageSize=100&search=source")
    assert page.json()[0]["name"] == "Source 0100"
    assert page.headers["X-Total-Count"] == "1000"
    assert 'rel="next"' in page.headers["Link"]


def test_from_a_password_to_exact_bytes(
    api: httpx.Client, dovecot: Dovecot, wait_for: Callable[..., Any]
) -> None:
    bodies = [
        f"Subject: mail {n}\r\nFrom: a@example.com\r\n\r\n{n}\r\n".encode() for n in range(25)
    ]
    account = dovecot.account(*bodies)
    created = api.post(
        "/ingestion",
        json={**BODY, "providerConfig": imap_source.config(account), "autoImport": True},
    )
    assert created.json()["status"] == "pending_auth"
    url = f"/ingestion/{created.json()['id']}"
    done = wait_for(lambda: (s := api.get(url).json())["status"] == "active" and s)
    assert (done["messageCount"], done["mailboxCount"], done["failedMessageCount"]) == (25, 1, 0)
    assert done["archivedBytes"] == sum(map(len, bodies))
    listed: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = api.get(
            "/emails", params={"pageSize": 10, "cursor": cursor} if cursor else {"pageSize": 10}
        ).json()
        listed += page["results"]
        cursor = page["nextCursor"]
        if not cursor:
            break
    assert len({entry["id"] for entry in listed}) == 25
    for entry in listed:
        raw = api.get(f"/emails/{entry['id']}/raw")
        assert raw.content in bodies
        assert raw.headers["Content-Type"] == "message/rfc822"
        assert raw.headers["ETag"] == f'"{hashlib.sha256(raw.content).hexdigest()}"'
        assert email.message_from_bytes(raw.content)["Subject"] == entry["subject"]
    url_of_last = f"/emails/{listed[-1]['id']}"
    tag = f'"{listed[-1]["sha256"]}"'
    same = api.get(f"{url_of_last}/raw", headers={"If-None-Match": tag})
    assert same.status_code == 304
    assert api.get(url_of_last).json()["placements"][0]["folder"] == "INBOX"
    dovecot.append(account.name, "Later", b"Subject: later\r\n\r\n")
    first = api.post(f"{url}/sync").json()["run"]["id"]
    wait_for(lambda: api.get(url).json()["messageCount"] == 26)
    wait_for(lambda: api.get(f"{url}/runs").json()[0]["finishedAt"])
    assert api.get(f"{url}/runs").json()[0]["id"] == first
    assert api.post(f"{url}/verify").json()["ok"] is True
    assert "event: end" in api.get(f"{url}/events").text
    assert api.delete(url).status_code == 204
    assert api.get(url).status_code == 404
    assert api.get("/emails").json()["results"] == []
    wait_for(lambda: not IngestionSource.objects.exists())


def test_the_document_and_its_page_are_served_without_other_hosts(service: "Service") -> None:
    document = httpx.get(
        f"{service.url}/api/schema?format=json", trust_env=False, verify=False
    ).json()
    paths = set(document["paths"])
    for endpoint, _, _ in REFERENCE:
        path = endpoint.split()[1].replace(":id", "{id}").replace(":none", "{id}")
        assert path.replace(":proven", "{id}") in paths
    page = httpx.get(f"{service.url}/api/docs", trust_env=False, verify=False)
    assert page.status_code == 200
    assert "//cdn" not in page.text
    assert json.dumps(document)


def test_a_body_that_is_not_in_chunks_as_it_says_is_a_400(service: "Service") -> None:
    """Before anybody is asked for a key."""
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(
            b"POST /api/v1/ingestion HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: application/json\r\nConnection: close\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"
        )
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"client_error"' in answer


def test_the_document_takes_nothing_from_its_address(api: httpx.Client) -> None:
    place = str(api.base_url).replace("/v1/", "/schema")
    plain = api.get(place)
    assert plain.status_code == 200
    for query in ("version=1%0d%0aX", "version=%22", "lang=x"):
        asked = api.get(f"{place}?{query}")
        assert (asked.status_code, asked.content) == (200, plain.content)
        assert "%0d" not in str(asked.headers)
    assert api.get(place, headers={"Accept": "application/json"}).json()["openapi"]
