"""Signing in at a real OpenID Connect provider, in a real browser; and what a second step is."""

import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from allauth.mfa.adapter import get_adapter
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import (
    format_hotp_value,
    hotp_value,
    yield_hotp_counters_from_time,
)
from allauth.socialaccount.models import SocialAccount
from django.contrib.auth.models import User
from django.core.cache import cache
from django.db import connection
from playwright.sync_api import Browser, ConsoleMessage, Page

from ingestion.models import AuditEvent
from ingestion.services.audit import SYSTEM
from ingestion.services.operations import credential_keys, groups, signing_in
from tests.e2e import conftest
from tests.servers import oidc

pytestmark = pytest.mark.django_db(transaction=True)

PASSWORD = "the-password-of-somebody"
#: sub -> what the provider tells.
PEOPLE = {
    "new": {"email": "new@example.org", "email_verified": True, "groups": ["mail-auditors"]},
    "known": {"email": "Ada@Example.org", "email_verified": True, "groups": ["mail-auditors"]},
    "thief": {"email": "ada@example.org", "email_verified": False, "groups": ["mail-auditors"]},
    "stranger": {"email": "s@example.org", "email_verified": True, "groups": ["lunch"]},
}


@pytest.fixture(scope="module")
def issuer(live_server: Any) -> Iterator[str]:
    callback = f"{live_server.url}/account/sso/callback/"
    with oidc.provider(PEOPLE, redirect_uri=callback) as address:
        yield address


def _use(settings: Any, issuer: str) -> None:
    settings.OIDC_ISSUER = issuer
    settings.OIDC_CLIENT_ID, settings.OIDC_NAME = oidc.CLIENT_ID, "Example login"
    settings.OIDC_GROUPS = {"mail-auditors": "Auditor"}
    app = {
        "provider_id": "sso", "name": "Example login", "client_id": oidc.CLIENT_ID,
        "secret": oidc.CLIENT_SECRET, "settings": {"server_url": issuer},
    }  # fmt: skip
    settings.SOCIALACCOUNT_PROVIDERS = {
        "openid_connect": {"OAUTH_PKCE_ENABLED": True, "APPS": [app]}
    }


@pytest.fixture
def page(browser: Browser, live_server: Any) -> Iterator[Page]:
    cache.clear()
    groups.make_ready()
    context = browser.new_context(base_url=live_server.url)
    context.set_default_timeout(180_000)
    found, complaints = context.new_page(), []

    def said(message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text and live_server.url in found.url:
            complaints.append(message.text)

    found.on("console", said)
    yield found
    context.close()
    assert complaints == []


def come(page: Page, who: str) -> str:
    """Sign in at the provider as somebody; return what the page says then."""
    page.context.clear_cookies()
    page.goto("/admin/login/")
    page.get_by_role("link", name="Continue with Example login").click()
    page.fill("input[name=login]", who)
    page.fill("input[name=password]", "any")
    page.click("button[type=submit]")
    page.get_by_role("button", name="Continue").click()
    page.wait_for_url(re.compile("localhost.*(/admin/$|/account/)"))
    return page.inner_text("body")


def shoot(page: Page, name: str) -> None:
    conftest.shoot(page, f"account-{name}", 1280, 400, full_page=True)


def test_who_the_provider_vouches_for_comes_in_and_nobody_else(
    page: Page, issuer: str, settings: Any
) -> None:
    _use(settings, issuer)
    ada = User.objects.create_user("ada", "ada@example.org", PASSWORD)
    page.goto("/admin/login/")
    shoot(page, "sign-in")

    assert "does not vouch" in come(page, "thief")
    shoot(page, "refused")
    assert not ada.groups.exists()
    assert "in no group" in come(page, "stranger")
    assert User.objects.count() == 1

    come(page, "new")
    assert page.url.endswith("/admin/")
    new = User.objects.get(email="new@example.org")
    assert (new.is_staff, new.is_superuser, new.has_usable_password()) == (True, False, False)
    assert [group.name for group in new.groups.all()] == ["Auditor"]

    for _ in range(2):
        come(page, "known")
        assert page.url.endswith("/admin/")
    assert User.objects.count() == 2
    assert [group.name for group in ada.groups.all()] == ["Auditor"]
    assert User.objects.get(pk=ada.pk).check_password(PASSWORD), "their password stays"
    page.goto("/admin/no/such/page")
    shoot(page, "not-found")
    verbs = AuditEvent.objects.values_list("action", flat=True)
    assert [v for v in verbs.order_by("id") if v.startswith("session.")] == [
        *("session.refused", "session.refused"), *["session.begin"] * 3,
    ]  # fmt: skip


def test_another_issuer_names_other_people_by_the_same_subjects(
    page: Page, issuer: str, live_server: Any, settings: Any
) -> None:
    """OpenID Connect Core 1.0, 5.7: a subject is unique within its issuer alone."""
    _use(settings, issuer)
    come(page, "new")
    accounts = SocialAccount.objects
    assert accounts.update(provider="sso") == 1  # as the version before has it
    migration = import_module("ingestion.migrations.0041_single_sign_on_names_the_issuer")
    with connection.cursor() as cursor:
        cursor.execute(migration._COPIES)
    User.objects.update(email="")

    callback = f"{live_server.url}/account/sso/callback/"
    people = {"new": PEOPLE["new"] | {"email": "other@example.org"}}
    with oidc.provider(people, redirect_uri=callback) as another:
        _use(settings, another)
        for _ in range(2):
            come(page, "new")
    _use(settings, issuer)
    come(page, "new")
    came = AuditEvent.objects.filter(action="session.begin").order_by("pk")
    first, *others, last = (event.user_id for event in came)
    assert first == last
    assert others == [User.objects.get(email="other@example.org").pk] * 2
    assert User.objects.count() == 2


def test_a_provider_that_is_none_gives_a_sentence(
    page: Page, live_server: Any, settings: Any
) -> None:
    _use(settings, f"{live_server.url}/healthz")
    page.goto("/admin/login/")
    page.get_by_role("link", name="Continue with Example login").click()
    assert "does not answer as an OpenID Connect provider should" in page.inner_text("body")


def test_with_sso_only_no_password_is_looked_at(client: Any, issuer: str, settings: Any) -> None:
    _use(settings, issuer)
    User.objects.create_superuser("root", password=PASSWORD)
    settings.SSO_ONLY = True
    for url in ("/admin/login/", "/admin/login/?next=/admin/"):
        answer = client.post(url, {"username": "root", "password": PASSWORD})
        assert (answer.status_code, "_auth_user_id" in client.session) == (403, False)
    assert 'name="password"' not in client.get("/admin/login/").content.decode()
    assert client.get("/account/sso/login/?process=connect").status_code != 200


def _code(secret: str) -> str:
    counter = next(iter(yield_hotp_counters_from_time()))
    return str(format_hotp_value(hotp_value(secret, counter)))


def test_a_second_step_is_set_up_and_asked_for(page: Page, client: Any) -> None:
    user = User.objects.create_superuser("root", password=PASSWORD)
    page.goto("/admin/login/")
    page.fill("input[name=username]", "root")
    page.fill("input[name=password]", PASSWORD)
    page.click("button[type=submit]")
    page.wait_for_url(re.compile("/admin/$"))
    page.goto("/account/")
    shoot(page, "account")
    page.goto("/account/second-step/totp/activate/")
    page.fill("input[name=password]", PASSWORD)  # asked again: the screen may be left unlocked
    page.click("main button")
    page.wait_for_selector("input[name=code]")
    shoot(page, "totp")
    secret = page.input_value("input[readonly], input[disabled]")
    page.fill("input[name=code]", _code(secret))
    page.click("main button[type=submit], main button.button")
    page.wait_for_url(re.compile("recovery-codes|second-step/$"))
    shoot(page, "recovery-codes")
    stored = Authenticator.objects.get(user=user, type="totp").data["secret"]
    assert secret not in stored
    assert get_adapter().decrypt(stored) == secret

    cache.clear()  # the code just used may come again: a phone shows it for half a minute
    answer = client.post("/admin/login/", {"username": "root", "password": PASSWORD})
    assert (answer.status_code, "_auth_user_id" in client.session) == (302, False)
    assert client.get("/admin/").status_code == 302
    step = answer["Location"]
    for _ in range(signing_in.TRIES_PER_USER):
        client.post(step, {"code": "000000"})
    client.post(step, {"code": _code(secret)})
    assert "_auth_user_id" not in client.session, "the right code is not looked at any more"
    cache.clear()
    client.post(step, {"code": _code(secret)})
    assert "_auth_user_id" in client.session


def test_secrets_of_the_second_step_go_to_the_new_key(settings: Any) -> None:
    user = User.objects.create_user("ada")
    secret = get_adapter().encrypt("JBSWY3DPEHPK3PXP")
    row = Authenticator.objects.create(user=user, type="totp", data={"secret": secret})
    old = list(settings.ENCRYPTION_KEYS)
    settings.ENCRYPTION_KEYS = settings.FERNET_KEYS = ["a-new-key-of-more-than-32-characters", *old]
    found = credential_keys.rotate(actor=SYSTEM)
    assert (found.second_steps, found.reencrypted, found.unreadable) == (1, 1, [])
    settings.ENCRYPTION_KEYS = settings.FERNET_KEYS = ["a-new-key-of-more-than-32-characters"]
    row.refresh_from_db()
    assert get_adapter().decrypt(row.data["secret"]) == "JBSWY3DPEHPK3PXP"
