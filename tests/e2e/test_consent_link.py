"""A person without a login connects their mailbox in their own browser, by an operator's link."""

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import expect

from ingestion.models import IngestionSource
from ingestion.services.audit import Actor
from ingestion.services.sources import configuration
from tests.e2e import conftest
from tests.e2e.conftest import Visitor
from tests.servers.dovecot import Dovecot
from tests.servers.gmail import Gmail

if TYPE_CHECKING:
    from tests.servers.stack import Service

ALICE = "alice@example.com"
Visit = Callable[[], Visitor]


@pytest.fixture
def google(running_google: Gmail, service: "Service") -> Iterator[Gmail]:
    running_google.add(ALICE)
    running_google.oauth.redirect_uris = {f"{service.url}/api/v1/oauth/callback"}
    running_google.oauth.signs_in_as = ALICE
    yield running_google
    running_google.oauth.refresh_tokens.clear()


def shoot(visitor: Visitor, name: str) -> None:
    """See that it fits a desk and a phone, in both themes, which here the browser chooses; keep
    pictures; go on on the phone."""
    conftest.shoot(visitor.page, f"consent-{name}", 1280, 400)
    for width in (1280, 400):
        visitor.page.set_viewport_size({"width": width, "height": 900})
        for theme in ("dark", "light"):
            visitor.page.emulate_media(color_scheme=theme)
            assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width


def link_of(operator: Visitor, source: IngestionSource) -> str:
    operator.go(f"/admin/ingestion/ingestionsource/{source.pk}/change/")
    operator.page.get_by_role("button", name="Link for its owner").click()
    expect(operator.page.get_by_label("Link", exact=True)).to_be_visible()
    operator.shoot("consent-link")
    operator.shoot("consent-link-phone", width=400)
    return operator.page.get_by_label("Link", exact=True).input_value()


def test_a_person_signs_in_at_google(
    operator: Visitor, visit: Visit, google: Gmail, admin_user: User
) -> None:
    config = {"clientId": google.oauth.client_id, "clientSecret": google.oauth.client_secret}
    source = configuration.create(
        owner=admin_user, name="Alice", provider="google",
        provider_config=config, actor=Actor.system("test"),
    )  # fmt: skip
    url = link_of(operator, source)
    person = visit()
    person.may_visit = (google.url,)
    sent: list[str] = []
    person.page.on("request", lambda request: sent.append(request.all_headers().get("referer", "")))
    page = person.page
    page.goto(url)
    expect(page.get_by_role("heading")).to_have_text("Connect your mailbox")
    expect(page.get_by_text("admin asks for your consent")).to_be_visible()
    assert page.url == f"{person.url}/connect/"
    shoot(person, "google")
    page.get_by_role("button", name="Go on to Google").click()
    expect(page.get_by_role("heading")).to_have_text("Thank you: it is connected")
    expect(page.get_by_text(ALICE)).to_be_visible()
    shoot(person, "done")
    assert page.url == f"{person.url}/connect/"
    assert url.partition("#")[2] not in "".join(sent)
    assert not any("/api/" in referrer or "/back/" in referrer for referrer in sent)
    operator.go(f"/admin/ingestion/ingestionsource/{source.pk}/change/")
    expect(operator.page.locator("[data-live=status]")).to_have_text(
        "Authenticated", timeout=180_000
    )


def test_a_person_types_in_their_own_password(
    operator: Visitor, visit: Visit, dovecot: Dovecot, admin_user: User
) -> None:
    account = dovecot.account(b"Subject: one\r\n\r\nbody\r\n")
    page = operator.page
    operator.go("/admin/ingestion/ingestionsource/add/?way=imap")
    page.fill("[name=name]", "Alice")
    page.fill("[name=generic_imap__host]", account.host)
    page.fill("[name=generic_imap__port]", str(account.port))
    page.fill("[name=generic_imap__username]", account.name)
    page.uncheck("[name=generic_imap__secure]")
    page.check("[name=generic_imap__passwordByOwner]")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("[data-live=message]")).to_contain_text(
        "Its owner is to give the password", timeout=180_000
    )
    source = IngestionSource.objects.get()
    person = visit()
    url = link_of(operator, source)
    person.page.goto(url)
    shoot(person, "password")
    person.page.fill("[name=secret]", account.password)
    person.page.get_by_role("button", name="Try it, and connect").click()
    expect(person.page.get_by_role("heading")).to_have_text("Thank you: it is connected")
    operator.go(f"/admin/ingestion/ingestionsource/{source.pk}/change/")
    expect(page.locator("[data-live=status]")).to_have_text("Authenticated")
    assert account.password not in page.content()
    person.page.goto(url)  # in the same tab, without loading the page anew
    expect(person.page.get_by_role("heading")).to_have_text("This link was used")
    shoot(person, "used")
    person.complaints.clear()  # the 410 that was meant


def test_a_link_that_is_of_no_use_says_so_without_a_script_too(
    visit: Visit, google: Gmail, admin_user: User
) -> None:
    person = visit()
    page = person.page
    person.go("/connect/")
    expect(page.get_by_label("Your link")).to_be_visible()
    shoot(person, "paste")
    page.fill("[name=token]", f"{person.url}/connect/#{'x' * 43}")
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_text(re.compile("There is no such link here"))).to_be_visible()
    person.complaints.clear()  # the 404 that was meant
