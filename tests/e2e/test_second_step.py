"""Security keys, recovery codes and the demand for a second step, in a real browser; and the pages
that say that something did not work."""

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from allauth.mfa.adapter import get_adapter
from allauth.mfa.models import Authenticator
from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
from allauth.mfa.totp.internal import auth as totp
from django.contrib.auth.models import User
from django.core.cache import cache
from django.test import Client
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page

from ingestion.models import AuditEvent
from ingestion.services.operations import signing_in
from tests.e2e import conftest

pytestmark = pytest.mark.django_db(transaction=True)
PASSWORD = "the-password-of-somebody"
STEPS = "/account/second-step/"


@pytest.fixture
def context(browser: Browser, live_server: Any) -> Iterator[BrowserContext]:
    cache.clear()
    made = browser.new_context(base_url=live_server.url, viewport={"width": 1280, "height": 900})
    made.set_default_timeout(180_000)
    complaints: list[str] = []

    def said(message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text:
            complaints.append(message.text)

    made.on("console", said)
    yield made
    made.close()
    assert complaints == []


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


@pytest.fixture
def root() -> User:
    return User.objects.create_superuser("root", password=PASSWORD)


def sign_in(page: Page) -> None:
    page.goto("/admin/login/")
    page.fill("input[name=username]", "root")
    page.fill("input[name=password]", PASSWORD)
    page.click("button[type=submit]")


def shoot(page: Page, name: str) -> None:
    conftest.shoot(page, name, 1280, 390, full_page=True)


def plug_in_a_key(page: Page) -> Any:
    """Give the browser a security key that says yes to all (WebAuthn level 3, section 11)."""
    session = page.context.new_cdp_session(page)
    session.send("WebAuthn.enable")
    options = {
        "protocol": "ctap2", "transport": "internal", "hasResidentKey": True,
        "hasUserVerification": True, "isUserVerified": True, "automaticPresenceSimulation": True,
    }  # fmt: skip
    session.send("WebAuthn.addVirtualAuthenticator", {"options": options})
    return session


def test_a_security_key_is_added_asked_for_and_taken_away(page: Page, root: User) -> None:
    plug_in_a_key(page)
    sign_in(page)
    page.wait_for_url(re.compile("/admin/$"))
    page.goto(STEPS)
    shoot(page, "second-step-none")
    page.goto(f"{STEPS}webauthn/add/")
    page.fill("input[name=password]", PASSWORD)  # asked again: the screen may be left unlocked
    page.click("main button")
    page.get_by_role("heading", name="Add a security key").wait_for()
    assert page.input_value("input[name=name]") == "Key 1"
    page.fill("input[name=name]", "Blue key")
    shoot(page, "security-key-add")
    page.click("#mfa_webauthn_add")
    page.wait_for_url(re.compile("recovery-codes|webauthn/$"))
    [key] = Authenticator.objects.filter(user=root, type="webauthn")
    assert key.wrap().name == "Blue key"
    page.goto(f"{STEPS}webauthn/")
    shoot(page, "security-keys")
    page.click("main a[href*=edit]")
    page.get_by_role("heading", name="Rename “Blue key”").wait_for()
    shoot(page, "security-key-rename")
    page.click("main button[type=submit]")
    page.wait_for_url(re.compile("webauthn/$"))
    page.goto(STEPS)
    shoot(page, "second-step-key")

    page.context.clear_cookies()
    sign_in(page)
    page.wait_for_url(re.compile("/account/second-step/authenticate/"))
    shoot(page, "security-key-ask")
    assert page.locator("main button").first.inner_text() == "Use a security key"
    assert page.locator("main .field label").inner_text() == "Recovery code", "there is no app"
    assert Client().get("/admin/").status_code == 302
    page.click("#mfa_webauthn_authenticate")
    page.wait_for_url(re.compile("/admin/$"))
    begun = AuditEvent.objects.filter(action="session.begin").latest("pk")
    assert begun.changes["how"] == ["password", "webauthn"]

    page.goto(f"{STEPS}webauthn/")
    page.click("main a[href*=remove]")
    page.fill("input[name=password]", PASSWORD)
    page.click("main button")
    page.wait_for_url(re.compile("remove/$"))
    page.get_by_role("heading", name="Remove “Blue key”?").wait_for()
    shoot(page, "security-key-remove")
    page.click("main button[type=submit]")
    page.wait_for_url(re.compile("second-step/(webauthn/)?$"))
    assert not Authenticator.objects.filter(user=root, type="webauthn").exists()
    page.context.clear_cookies()
    sign_in(page)
    page.wait_for_url(re.compile("/admin/$"))


def test_an_app_is_set_up_asked_for_and_taken_away(page: Page, root: User) -> None:
    sign_in(page)
    page.wait_for_url(re.compile("/admin/$"))
    page.goto(f"{STEPS}totp/activate/")
    page.get_by_role("heading", name="Is it you?").wait_for()
    page.fill("input[name=password]", PASSWORD)
    page.click("main button")
    page.get_by_role("heading", name="Set up codes of an app").wait_for()
    shoot(page, "app-set-up")
    secret = page.get_by_label("Secret").input_value()
    page.get_by_label("Code of your app").fill("12")
    page.click("main button[type=submit]")
    page.get_by_text("wrong, used already or too old").wait_for()
    page.get_by_label("Code of your app").fill(code_of_app(secret))
    page.click("main button[type=submit]")
    page.get_by_text("Codes of your app are asked for from now on.").wait_for()
    shoot(page, "app-is-set-up")

    cache.clear()  # which codes were used
    page.context.clear_cookies()
    sign_in(page)
    page.wait_for_url(re.compile("authenticate/"))
    page.get_by_label("Code of your app, or recovery code").fill(code_of_app(secret))
    page.click("main button[type=submit]")
    page.wait_for_url(re.compile("/admin/$"))
    page.goto(f"{STEPS}totp/deactivate/")
    page.get_by_role("link", name="Use a code").click()
    shoot(page, "is-it-you-code")
    cache.clear()
    page.get_by_label("Code of your app, or recovery code").fill(code_of_app(secret))
    page.click("main button")
    page.get_by_role("heading", name="Remove codes of an app?").wait_for()
    shoot(page, "app-remove")
    page.click("main button[type=submit]")
    page.get_by_text("Codes of an app are removed.").wait_for()
    assert not Authenticator.objects.exists()


def code_of_app(secret: str) -> str:
    """Return the code that an app shows now (RFC 6238)."""
    return str(totp.format_hotp_value(totp.hotp_value(secret, int(time.time()) // 30)))


def test_a_recovery_code_lets_in_once(page: Page, root: User) -> None:
    Authenticator.objects.create(
        user=root, type="totp", data={"secret": get_adapter().encrypt("JBSWY3DPEHPK3PXP")}
    )
    code, *others = RecoveryCodes.activate(root).get_unused_codes()
    sign_in(page)
    page.wait_for_url(re.compile("authenticate/"))
    shoot(page, "second-step-ask")
    assert page.locator("main .field label").inner_text() == "Code of your app, or recovery code"
    assert page.locator("#webauthn_form").count() == 0
    page.fill("input[name=code]", code)
    page.click("main button[type=submit]")
    page.wait_for_url(re.compile("/admin/$"))
    page.goto(STEPS)
    shoot(page, "second-step-codes")
    assert "9" in page.inner_text("main"), "how many are left"
    page.goto(f"{STEPS}recovery-codes/")
    page.get_by_role("heading", name="Is it you?").wait_for()
    shoot(page, "is-it-you")
    page.fill("input[name=password]", PASSWORD)
    page.click("main button")
    page.get_by_text("9 of 10 are left").wait_for()
    assert page.get_by_label("Unused codes").locator("li").all_inner_texts() == others
    shoot(page, "recovery-codes")
    page.get_by_role("link", name="New codes").click()
    page.get_by_text("The 9 that are left let nobody in any more.").wait_for()
    shoot(page, "recovery-codes-new")
    page.goto("/account/")
    shoot(page, "account")
    page.context.clear_cookies()
    sign_in(page)
    page.wait_for_url(re.compile("authenticate/"))
    page.fill("input[name=code]", code)
    page.click("main button[type=submit]")
    page.get_by_text("wrong, used already or too old").wait_for()


def test_who_must_have_a_second_step_comes_to_no_other_page_before(
    page: Page, root: User, settings: Any
) -> None:
    settings.REQUIRE_SECOND_FACTOR = True
    sign_in(page)
    page.wait_for_url(re.compile("/account/second-step/$"))
    assert "asks staff for a second step" in page.inner_text("main")
    shoot(page, "second-step-required")
    for path in ("/admin/", "/admin/ingestion/message/", "/admin/mail/"):
        page.goto(path)
        assert page.url.endswith(STEPS)
    assert page.request.get("/api/v1/ingestion").status == 403
    Authenticator.objects.create(
        user=root, type="totp", data={"secret": get_adapter().encrypt("JBSWY3DPEHPK3PXP")}
    )
    page.goto("/admin/")
    assert page.url.endswith("/admin/")


def test_what_did_not_work_is_said_in_the_products_clothes(
    page: Page, root: User, live_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.goto("/admin/login/")
    page.context.clear_cookies()
    page.fill("input[name=username]", "root")
    page.fill("input[name=password]", PASSWORD)
    page.click("button[type=submit]")
    page.get_by_role("heading", name="This form is too old").wait_for()
    shoot(page, "form-too-old")
    for _ in range(signing_in.TRIES_PER_USER):
        Client().post("/admin/login/", {"username": "root", "password": "wrong"})
    sign_in(page)
    page.get_by_text("Too many passwords").wait_for()
    shoot(page, "too-many-tries")
    cache.clear()
    sign_in(page)
    page.wait_for_url(re.compile("/admin/$"))

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr("ingestion.signin.own.second_step.has", fails)
    page.goto("/account/")
    page.get_by_role("heading", name="Something went wrong").wait_for()
    assert "on purpose" not in page.content()
    shoot(page, "went-wrong")
    page.goto("/no-such-page/")
    shoot(page, "nothing-here")
