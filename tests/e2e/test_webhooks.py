"""/api/v1/webhooks over HTTP against the running service: who may, what is shown, what arrives."""

import re
import time
import uuid
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from django.contrib.auth.models import User

from ingestion.models import AnsweredRequest, Placement, WebhookEndpoint
from tests.e2e import rows
from tests.servers import people, receiver
from tests.servers.receiver import Receiver
from tests.servers.stack import ROOT

if TYPE_CHECKING:
    from tests.servers.stack import Service

PATH = "/webhooks"
API_PAGE = (ROOT / "docs/api.md").read_text()
EVENTS = ["source.error", "run.finished", "archive.changed", "archive.corrupt"]

#: Method, path below the webhook's, body, and what owner and staff who may look are answered.
REQUESTS: list[tuple[str, str, dict[str, Any] | None, int, int]] = [
    ("GET", "", None, 200, 200),
    ("GET", "/deliveries", None, 200, 200),
    ("PUT", "", {"events": ["source.error"]}, 200, 403),
    ("POST", "/rotate-secret", {}, 200, 403),
    ("POST", "/test", {}, 200, 403),
    ("DELETE", "", None, 204, 403),
]
NAMES = [f"{method} {path}" for method, path, *_ in REQUESTS]


@pytest.fixture
def at() -> Iterator[Receiver]:
    with receiver.running() as running:
        yield running


@pytest.fixture
def hook(api: httpx.Client, at: Receiver) -> dict[str, Any]:
    answer = api.post(PATH, json={"url": at.url, "events": EVENTS})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def _as(user: User, make_key: Callable[..., str], *scopes: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {make_key(user, scopes or ('read', 'write'))}"}


@pytest.mark.parametrize(("method", "path", "body", "owners", "staffs"), REQUESTS, ids=NAMES)
def test_who_may_what(
    api: httpx.Client,
    hook: dict[str, Any],
    make_key: Callable[..., str],
    other_user: User,
    method: str,
    path: str,
    body: dict[str, Any] | None,
    owners: int,
    staffs: int,
) -> None:
    url = f"{PATH}/{hook['id']}{path}"
    nobody = api.request(method, url, json=body, headers={"Authorization": ""})
    assert nobody.status_code == 401
    other = api.request(method, url, json=body, headers=_as(other_user, make_key))
    assert other.status_code == 404
    blind = people.staff("blind", "view_ingestionsource", "view_message")
    assert api.request(method, url, json=body, headers=_as(blind, make_key)).status_code == 404
    looks = people.staff("looks", "view_webhookendpoint")
    looked = api.request(method, url, json=body, headers=_as(looks, make_key))
    assert looked.status_code == staffs, looked.text
    answer = api.request(method, url, json=body)
    assert answer.status_code == owners, answer.text


def test_a_key_needs_the_scope_of_what_it_does(
    api: httpx.Client, hook: dict[str, Any], make_key: Callable[..., str], owner: User
) -> None:
    reads = _as(owner, make_key, "read")
    body = {"url": hook["url"], "events": EVENTS}
    assert api.get(PATH, headers=reads).status_code == 200
    assert api.post(PATH, json=body, headers=reads).status_code == 403
    writes = _as(owner, make_key, "write")
    assert api.get(PATH, headers=writes).status_code == 403


def test_the_secret_is_shown_once(api: httpx.Client, hook: dict[str, Any]) -> None:
    assert hook["secret"].startswith("whsec_")
    url = f"{PATH}/{hook['id']}"
    shown = api.get(url).json()
    assert {**shown, "secret": hook["secret"]} == hook
    rotated = api.post(f"{url}/rotate-secret").json()["secret"]
    assert rotated != hook["secret"]
    everything = api.get(PATH).text + api.get(url).text + api.put(url, json={}).text
    assert hook["secret"] not in everything
    assert rotated not in everything


def test_an_answer_with_a_secret_is_repeated_and_kept_encrypted(
    api: httpx.Client, at: Receiver
) -> None:
    key = {"Idempotency-Key": str(uuid.uuid4())}
    body = {"url": at.url, "events": EVENTS}
    first, again = (api.post(PATH, json=body, headers=key) for _ in range(2))
    assert (first.json(), again.headers["Idempotent-Replayed"]) == (again.json(), "true")
    url, key = f"{PATH}/{first.json()['id']}/rotate-secret", {"Idempotency-Key": "rotate"}
    rotated = [api.post(url, headers=key).json()["secret"] for _ in range(2)]
    assert rotated[0] == rotated[1] != first.json()["secret"]
    kept = str(list(AnsweredRequest.objects.values()))
    assert first.json()["id"] not in kept
    assert not [secret for secret in (first.json()["secret"], rotated[0]) if secret[6:] in kept]


@pytest.mark.parametrize(
    ("body", "attr"),
    [
        ({"events": EVENTS}, "url"),
        ({"url": "ftp://example.com", "events": EVENTS}, "url"),
        ({"url": "https://example.com", "events": ["nothing"]}, "events.0"),
        ({"url": "https://example.com", "events": []}, "events"),
        ({"url": "https://example.com", "events": EVENTS, "secret": "x"}, "secret"),
    ],
)
def test_what_is_wrong_is_named(api: httpx.Client, body: dict[str, Any], attr: str) -> None:
    answer = api.post(PATH, json=body)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["attr"] == attr


def test_a_test_says_what_the_server_answered(
    api: httpx.Client, hook: dict[str, Any], at: Receiver
) -> None:
    url = f"{PATH}/{hook['id']}"
    assert api.post(f"{url}/test").json() == {
        "ok": True,
        "status": 204,
        "message": "It answered 204.",
    }
    came = at.came[0]
    assert came.verified(hook["secret"])["type"] == "webhook.test"
    of_the_page: dict[str, Any] = {"time": time}
    [check] = re.findall(r"^```python\n(import base64.*?)^```$", API_PAGE, re.MULTILINE | re.DOTALL)
    exec(check, of_the_page)
    is_ours = of_the_page["is_from_the_archive"]
    assert is_ours(hook["secret"], came.headers, came.body)
    assert not is_ours(hook["secret"], came.headers, came.body + b" ")
    of_the_page["time"] = SimpleNamespace(time=lambda: time.time() + 301)
    assert not is_ours(hook["secret"], came.headers, came.body)
    at.status = 500
    assert api.post(f"{url}/test").json()["ok"] is False
    told = api.get(f"{url}/deliveries").json()
    assert [(row["event"], row["outcome"], row["attempts"]) for row in told] == [
        *(("webhook.test", "given_up", 1), ("webhook.test", "delivered", 1)),
    ]
    assert told[1]["id"] == at.came[0].headers["webhook-id"]
    assert len(at.came) == 2, "a test is not tried again"


def test_the_service_tells_of_changes_by_itself(
    service: "Service",
    api: httpx.Client,
    hook: dict[str, Any],
    owner: User,
    at: Receiver,
    wait_for: Callable[..., Any],
) -> None:
    rows.archived(rows.a_folder(rows.a_mailbox(rows.a_source(owner))), b"Subject: one\r\n\r\n")
    wait_for(lambda: [came for came in at.came if came.event == "archive.changed"])
    [came] = at.came
    cursor = came.verified(hook["secret"])["data"]["cursor"]
    assert api.get("/changes", params={"after": cursor}).json()["changes"] == []
    wait_for(lambda: api.get(f"{PATH}/{hook['id']}").json()["lastDeliveredAt"])
    at.status = 410
    Placement.objects.update(labels=["new"])
    wait_for(lambda: not WebhookEndpoint.objects.get().enabled)
    assert len(at.came) == 2
