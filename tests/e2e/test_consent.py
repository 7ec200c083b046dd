"""Signing in with Google over HTTP and in a browser: who may, once, and what is stored."""

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from django.contrib.auth.models import User
from playwright.sync_api import expect

from ingestion.models import AuditEvent, IngestionSource, Message
from tests.e2e.conftest import Visitor
from tests.servers.gmail import Gmail

if TYPE_CHECKING:
    from tests.servers.stack import Service

ALICE = "alice@example.com"


@pytest.fixture
def google(running_google: Gmail, service: "Service") -> Iterator[Gmail]:
    running_google.add(ALICE).deliver(b"Subject: hello\r\n\r\n")
    running_google.oauth.redirect_uris = {f"{service.url}/api/v1/oauth/callback"}
    running_google.oauth.signs_in_as = ALICE
    yield running_google
    running_google.oauth.grants = None
    running_google.oauth.refresh_tokens.clear()


@pytest.fixture
def source(api: httpx.Client, google: Gmail) -> dict[str, Any]:
    """A source that only lacks a person's consent."""
    config = {"clientId": google.oauth.client_id, "clientSecret": google.oauth.client_secret}
    answer = api.post(
        "/ingestion", json={"name": "Gmail", "provider": "google", "providerConfig": config}
    )
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def begun(api: httpx.Client, source: dict[str, Any]) -> str:
    """Begin a sign-in, consent at Google, and return where it sends the person back to."""
    answer = api.post(f"/ingestion/{source['id']}/oauth/authorize")
    assert answer.status_code == 200, answer.text
    page = httpx.get(answer.json()["authorizeUrl"], trust_env=False, verify=False)
    assert page.status_code == 302, page.text
    back = page.headers["location"]
    assert back.startswith(answer.json()["redirectUri"])
    return str(back)


def reason(answer: httpx.Response) -> str:
    assert answer.status_code == 400, answer.text
    return str(answer.json()["errors"][0]["detail"])


def status_of(api: httpx.Client, source: dict[str, Any]) -> str:
    return str(api.get(f"/ingestion/{source['id']}").json()["status"])


def test_a_program_signs_a_person_in_and_the_mail_is_imported(
    api: httpx.Client, source: dict[str, Any], google: Gmail, wait_for: Callable[..., Any]
) -> None:
    verdict = api.post(f"/ingestion/{source['id']}/verify").json()
    assert (verdict["ok"], verdict["code"]) == (False, "consent_needed")
    assert status_of(api, source) == "pending_auth"
    answer = api.get(begun(api, source))
    assert answer.status_code == 200, answer.text
    config = answer.json()["providerConfig"]
    assert (config["email"], config["refreshTokenSet"]) == (ALICE, True)
    wait_for(lambda: status_of(api, source) == "auth_success")
    api.post(f"/ingestion/{source['id']}/import")
    wait_for(lambda: status_of(api, source) == "active")
    assert Message.objects.get().subject == "hello"
    [token] = google.oauth.refresh_tokens
    shown = api.get(f"/ingestion/{source['id']}").text + str(
        AuditEvent.objects.values_list("changes")
    )
    assert token not in shown


def test_an_expired_consent_is_mended_by_signing_in_again(
    api: httpx.Client, source: dict[str, Any], google: Gmail, wait_for: Callable[..., Any]
) -> None:
    api.get(begun(api, source))
    wait_for(lambda: status_of(api, source) == "auth_success")
    google.oauth.refresh_tokens.clear()
    google.oauth.tokens.clear()
    api.post(f"/ingestion/{source['id']}/verify")
    found = api.get(f"/ingestion/{source['id']}").json()
    assert found["status"] == "error"
    assert "Sign in again" in str(IngestionSource.objects.get().status_message)
    assert api.get(begun(api, source)).status_code == 200
    wait_for(lambda: status_of(api, source) == "auth_success")


def test_a_state_is_of_use_once_and_to_who_began(
    api: httpx.Client, source: dict[str, Any], service: "Service", other_user: User,
    make_key: Callable[..., str],
) -> None:  # fmt: skip
    back = begun(api, source)
    other = {"Authorization": f"Bearer {make_key(other_user)}"}
    assert "Begin it again" in reason(httpx.get(back, headers=other, trust_env=False, verify=False))
    assert httpx.get(back, trust_env=False, verify=False).status_code == 401
    reader = {"Authorization": f"Bearer {make_key(IngestionSource.objects.get().owner, ('read',))}"}
    assert httpx.get(back, headers=reader, trust_env=False, verify=False).status_code == 403
    assert IngestionSource.objects.get().secrets.get("refreshToken") is None
    assert api.get(back).status_code == 200
    assert "Begin it again" in reason(api.get(back))
    assert "Begin it again" in reason(api.get("/oauth/callback?state=made-up&code=4/x"))
    assert "Begin it again" in reason(api.get("/oauth/callback"))


@pytest.mark.parametrize(
    ("grants", "said"),
    [("", "access_denied"), ("https://www.googleapis.com/auth/gmail.labels", "not granted")],
)
def test_a_consent_that_was_not_given_is_said(
    api: httpx.Client, source: dict[str, Any], google: Gmail, grants: str, said: str
) -> None:
    google.oauth.grants = grants
    assert said in reason(api.get(begun(api, source)))
    assert status_of(api, source) == "pending_auth"


def test_another_account_than_the_sources_is_refused(
    api: httpx.Client, source: dict[str, Any], google: Gmail
) -> None:
    google.add("bob@example.com")
    api.put(f"/ingestion/{source['id']}", json={"providerConfig": {"email": "bob@example.com"}})
    said = reason(api.get(begun(api, source)))
    assert ALICE in said
    assert "bob@example.com" in said
    assert IngestionSource.objects.get().secrets.get("refreshToken") is None


def test_only_sources_that_sign_in_have_a_sign_in(api: httpx.Client, service: "Service") -> None:
    config = {"host": "127.0.0.1", "port": 1, "username": "u", "password": "p"}
    body = {"name": "IMAP", "provider": "generic_imap", "providerConfig": config}
    made = api.post("/ingestion", json=body).json()
    answer = api.post(f"/ingestion/{made['id']}/oauth/authorize")
    assert answer.status_code == 409
    assert api.post("/ingestion/none/oauth/authorize").status_code == 404


def test_an_operator_signs_in_with_one_button(operator: Visitor, google: Gmail) -> None:
    operator.may_visit = (google.url,)
    page = operator.page
    operator.go("/admin/ingestion/ingestionsource/add/?way=any")
    page.fill("[name=name]", "Alice's Gmail")
    page.select_option("[name=provider]", "google")
    page.fill("[name=google__clientId]", google.oauth.client_id)
    page.fill("[name=google__clientSecret]", google.oauth.client_secret)
    page.get_by_role("button", name="Save").click()
    expect(page.locator("[data-live=message]")).to_contain_text(
        "Sign in with Google to grant access.", timeout=180_000
    )
    expect(page.locator("button.is-primary")).to_have_text(re.compile("Sign in with Google"))
    operator.shoot("source-sign-in")
    page.get_by_role("button", name="Sign in with Google").click()
    page.wait_for_url(re.compile(r"/admin/ingestion/ingestionsource/.*/change/"))
    expect(page.get_by_text("Signed in.")).to_be_visible()
    expect(page.locator("[data-live=status]")).to_have_text("Authenticated")
    google.oauth.grants = ""
    page.get_by_role("button", name="Sign in with Google").click()
    expect(
        page.get_by_text("Not signed in. Access was not granted (access_denied)")
    ).to_be_visible()
    assert page.url.endswith("/change/"), "where the button is"
    operator.shoot("source-sign-in-refused")


def test_a_browser_that_is_not_logged_in_logs_in_first(
    api: httpx.Client, source: dict[str, Any], visit: Callable[[], Visitor]
) -> None:
    back = begun(api, source)
    stranger = visit()
    stranger.page.goto(back)
    assert "/admin/login/?next=" in stranger.page.url
