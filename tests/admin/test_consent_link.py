"""Consent links: what a person without a login may do with one, and what others can't."""

import contextlib
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from django.test import Client

from ingestion.admin import consent_page
from ingestion.models import AnsweredRequest, ApiKey, AuditEvent, ConsentLink, IngestionSource
from ingestion.services.audit import Actor
from ingestion.services.sources import configuration, consent_links
from tests.servers import people
from tests.servers.command_line import CommandLine
from tests.servers.dovecot import Account, Dovecot
from tests.servers.gmail import Gmail

ALICE = "alice@example.com"
BACK = "http://testserver/api/v1/oauth/callback"


@pytest.fixture
def google(running_google: Gmail, settings: Any) -> Iterator[Gmail]:
    settings.PROVIDER_ENDPOINTS = settings.PROVIDER_ENDPOINTS | running_google.endpoints
    running_google.add(ALICE)
    running_google.oauth.redirect_uris = {BACK}
    running_google.oauth.signs_in_as = ALICE
    yield running_google
    running_google.oauth.grants = None
    running_google.oauth.refresh_tokens.clear()


@pytest.fixture
def operator(transactional_db: None) -> User:
    cache.clear()  # the brakes of other tests
    return people.superuser("root")


@pytest.fixture
def gmail_source(google: Gmail, operator: User) -> IngestionSource:
    config = {"clientId": google.oauth.client_id, "clientSecret": google.oauth.client_secret}
    return configuration.create(
        owner=operator, name="Gmail", provider="google", provider_config=config, actor=ACTOR
    )


@pytest.fixture
def account(dovecot: Dovecot) -> Account:
    return dovecot.account(b"Subject: one\r\n\r\nbody\r\n")


@pytest.fixture
def imap_source(operator: User, account: Account) -> IngestionSource:
    config = {
        "host": account.host, "port": account.port, "secure": False,
        "username": account.name, "passwordByOwner": True,
    }  # fmt: skip
    return configuration.create(
        owner=operator, name="IMAP", provider="generic_imap", provider_config=config, actor=ACTOR
    )


ACTOR = Actor.system("test")


class Browser:
    """One person's browser: cookies, CSRF tokens, and what pages say."""

    def __init__(self) -> None:
        self.client = Client(enforce_csrf_checks=True)

    def get(self, path: str, **query: str) -> Any:
        return self.client.get(path, query)

    def post(self, path: str, **form: str) -> Any:
        page = self.client.get("/connect/").content.decode()
        seen = re.search(r'name="seen" value="(\w+)"', page)
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
        assert token
        given = {"csrfmiddlewaretoken": token[1], "seen": seen[1] if seen else ""} | form
        return self.client.post(path, given)

    def open(self, url: str) -> Any:
        """Open a link as the page's script does, and show where that leads."""
        answer = self.post("/connect/open/", token=url.partition("#")[2])
        return self.get("/connect/") if answer.status_code == 302 else answer

    def consents(self) -> dict[str, str]:
        """Go on to Google and consent there; return what it sends the browser back with."""
        answer = self.post("/connect/go/")
        assert answer.status_code == 200, answer.content
        provider = httpx.get(answer["Refresh"].partition("url=")[2], trust_env=False)
        assert provider.headers["location"].startswith(BACK), provider.text
        return dict(
            urllib.parse.parse_qsl(urllib.parse.urlsplit(provider.headers["location"]).query)
        )

    def comes_back(self, given: dict[str, str]) -> Any:
        sent_on = self.get("/api/v1/oauth/callback", **given)
        assert sent_on.status_code == 302
        return self.client.get(sent_on["Location"])


def made(source: IngestionSource, actor: Actor = ACTOR) -> str:
    _, token = consent_links.make(source, actor=actor)
    return consent_links.address(token, here="http://testserver")


def text(answer: Any) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", answer.content.decode()).split())


def test_a_link_stands_out_where_the_owner_has_yet_to_give_the_password(
    imap_source: IngestionSource, operator: User
) -> None:
    client = Client()
    client.force_login(operator)
    page = f"/admin/ingestion/ingestionsource/{imap_source.pk}/change/"
    standing_out = '<button class="ing-button is-primary" title="Its owner'
    shown = client.get(page).content.decode()
    assert standing_out in shown
    assert shown.count('<button class="ing-button is-primary') == 1, "not Verify too"
    consent_links.make(imap_source, actor=ACTOR)
    assert standing_out not in client.get(page).content.decode()


def test_a_person_signs_in_by_a_link_that_an_owner_made(
    google: Gmail, gmail_source: IngestionSource, owner: User
) -> None:
    IngestionSource.objects.update(owner=owner)  # no staff
    key = ApiKey.objects.create(user=owner, name="tests", scopes=["read", "write"])[1]
    headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "one"}
    address = f"/api/v1/ingestion/{gmail_source.pk}/consent-link"
    answer: Any = Client().post(address, content_type="application/json", headers=headers)
    assert answer.status_code == 201, answer.content
    url = answer.json()["url"]
    again: Any = Client().post(address, content_type="application/json", headers=headers)
    assert again.json() == answer.json()
    token = url.partition("#")[2]
    assert url == f"http://testserver/connect/#{token}"
    kept = [*ConsentLink.objects.values(), *AnsweredRequest.objects.values()]
    assert token not in str(kept)
    person = Browser()
    assert "owner asks for your consent" in text(person.open(url))
    landed = person.comes_back(person.consents())
    assert (landed.status_code, landed["Location"]) == (302, "/connect/")
    assert f"The mail of {ALICE}" in text(person.get("/connect/"))
    gmail_source.refresh_from_db()
    assert gmail_source.config["email"] == ALICE
    assert gmail_source.secrets["refreshToken"] in google.oauth.refresh_tokens
    used = AuditEvent.objects.get(action="consent_link.use")
    assert (used.source_id, used.address, used.user) == (gmail_source.pk, "127.0.0.1", None)
    assert AuditEvent.objects.get(action="consent_link.create").user == owner
    later = Browser().open(url)
    assert later.status_code == 410
    assert "works once" in text(later)
    assert ALICE not in text(later)


def test_a_sign_in_belongs_to_the_browser_that_began_it(
    gmail_source: IngestionSource, operator: User
) -> None:
    url = made(gmail_source)
    person, stranger, other = Browser(), Browser(), Browser()
    person.open(url)
    given = person.consents()
    assert "in this browser first" in text(stranger.comes_back(given))
    other.open(url)  # who has the link too, has another browser all the same
    assert "Begin it again" in text(other.comes_back(given))
    operator_s = Client()
    operator_s.force_login(operator)
    answer: Any = operator_s.get("/api/v1/oauth/callback", given, follow=True)
    assert answer.status_code == 403
    assert not IngestionSource.objects.get().secrets.get("refreshToken")
    assert person.comes_back(given).status_code == 302
    assert person.comes_back(given).status_code == 410  # once
    assert IngestionSource.objects.get().secrets["refreshToken"]


def test_of_two_who_consent_the_first_has_it(gmail_source: IngestionSource) -> None:
    url = made(gmail_source)
    first, second = Browser(), Browser()
    first.open(url)
    second.open(url)
    of_first, of_second = first.consents(), second.consents()
    assert first.comes_back(of_first).status_code == 302
    stored = IngestionSource.objects.get().secrets["refreshToken"]
    assert second.comes_back(of_second).status_code == 410
    assert IngestionSource.objects.get().secrets["refreshToken"] == stored


def test_who_comes_second_while_the_first_is_at_it_changes_nothing(
    gmail_source: IngestionSource,
) -> None:
    link, token = consent_links.make(gmail_source, actor=ACTOR)
    given = {}
    for browser in ("first", "second"):
        seen = consent_links.as_shown(link)
        url = consent_links.begin(link, browser=browser, seen=seen, redirect_uri=BACK)
        location = httpx.get(url, trust_env=False).headers["location"]
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(location).query))
        given[browser] = {name: query[name] for name in ("state", "code")}
    opened_before = consent_links.by_token(token)
    assert opened_before
    consent_links.finish(link, browser="first", **given["first"], address=None)
    stored = IngestionSource.objects.get().secrets["refreshToken"]
    with pytest.raises(consent_links.NotOpen):
        consent_links.finish(opened_before, browser="second", **given["second"], address=None)
    assert IngestionSource.objects.get().secrets["refreshToken"] == stored


def test_another_account_than_the_source_names_is_refused(
    google: Gmail, gmail_source: IngestionSource
) -> None:
    google.add("bob@example.com")
    change = {"providerConfig": {"email": "bob@example.com"}}
    configuration.update(gmail_source, changes=change, actor=ACTOR)
    person = Browser()
    person.open(made(gmail_source))
    refused = person.comes_back(person.consents())
    assert refused.status_code == 400
    assert ALICE in text(refused)
    google.oauth.signs_in_as = "bob@example.com"
    assert person.comes_back(person.consents()).status_code == 302


def test_a_link_ends(gmail_source: IngestionSource, operator: User) -> None:
    person = Browser()
    first = made(gmail_source)
    second = made(gmail_source, Actor("root", operator))
    assert "was withdrawn" in text(person.open(first))
    assert person.open(second).status_code == 200
    given = person.consents()
    User.objects.update(is_active=False)  # its maker left
    assert person.get("/connect/").status_code == 410
    assert person.post("/connect/go/").status_code == 410
    assert person.comes_back(given).status_code == 410
    User.objects.update(is_active=True)
    ConsentLink.objects.update(expires_at="2026-01-01T00:00Z")
    assert "has expired" in text(person.get("/connect/"))
    assert person.comes_back(given).status_code == 410
    third = made(gmail_source)
    assert person.open(third).status_code == 200
    consent_links.revoke(gmail_source, actor=ACTOR)
    assert "was withdrawn" in text(person.get("/connect/"))
    fourth = made(gmail_source)
    IngestionSource.objects.update(deleted_at="2026-01-01T00:00Z")
    assert person.open(fourth).status_code == 404
    assert person.open("#made-up").status_code == 404
    assert not IngestionSource.objects.get().secrets.get("refreshToken")


def test_a_person_gives_their_own_password(
    imap_source: IngestionSource, account: Account, dovecot: Dovecot
) -> None:
    person = Browser()
    page = person.open(made(imap_source))
    assert f"mail server {account.host} alone" in text(page)
    assert "connection to this server is not encrypted" in text(page)
    wrong = person.post("/connect/give/", secret="not-it")
    assert wrong.status_code == 400
    assert "Log in" in text(wrong)
    assert not IngestionSource.objects.get().secrets
    done = person.post("/connect/give/", secret=account.password)
    assert done.status_code == 302, text(done)
    assert "it is connected" in text(person.get("/connect/"))
    assert IngestionSource.objects.get().secrets == {"password": account.password}
    kept = str(list(AuditEvent.objects.values()))
    assert account.password not in kept
    assert "not-it" not in kept


def test_a_password_goes_to_the_server_that_was_shown(
    imap_source: IngestionSource, account: Account
) -> None:
    person = Browser()
    person.open(made(imap_source))
    page = person.get("/connect/").content.decode()
    token, seen = re.findall(r'value="(\w{32,})"', page)[:2]
    change = {"providerConfig": {"host": "elsewhere.example.com"}}
    configuration.update(imap_source, changes=change, actor=ACTOR)
    form = {"csrfmiddlewaretoken": token, "seen": seen, "secret": account.password}
    answer: Any = person.client.post("/connect/give/", form)
    assert answer.status_code == 400
    assert "nothing was stored" in text(answer)
    assert "elsewhere.example.com" in text(answer)
    assert not IngestionSource.objects.get().secrets


def test_what_is_changed_while_a_person_consents_is_shown_to_them_first(
    gmail_source: IngestionSource,
) -> None:
    person = Browser()
    person.open(made(gmail_source))
    given = person.consents()
    configuration.update(gmail_source, changes={"options": {"includeTrash": True}}, actor=ACTOR)
    refused = person.comes_back(given)
    assert (refused.status_code, "nothing was stored" in text(refused)) == (400, True)
    assert not IngestionSource.objects.get().secrets.get("refreshToken")
    assert person.comes_back(person.consents()).status_code == 302


def test_a_page_grants_access_to_the_link_that_it_showed(
    imap_source: IngestionSource, account: Account, other_user: User
) -> None:
    """Somebody with a source just like it has the person's browser open their link meanwhile."""
    twin = configuration.create(
        owner=other_user, name="IMAP", provider="generic_imap",
        provider_config=imap_source.config, actor=ACTOR,
    )  # fmt: skip
    assert configuration.version(twin) == configuration.version(imap_source)
    person = Browser()
    person.open(made(imap_source))
    token, seen = re.findall(r'value="(\w{32,})"', person.get("/connect/").content.decode())[:2]
    person.open(made(twin))
    form = {"csrfmiddlewaretoken": token, "seen": seen, "secret": account.password}
    answer: Any = person.client.post("/connect/give/", form)
    assert (answer.status_code, "nothing was stored" in text(answer)) == (400, True)
    assert not any(source.secrets for source in IngestionSource.objects.all())


def test_passwords_and_tokens_are_not_guessed(imap_source: IngestionSource) -> None:
    person = Browser()
    person.open(made(imap_source))
    IngestionSource.objects.update(config=imap_source.config | {"port": 1})
    codes = [person.post("/connect/give/", secret=f"guess {n}") for n in range(11)]
    assert [answer.status_code for answer in codes] == [400] * 10 + [429]
    assert 0 < int(codes[-1]["Retry-After"]) <= 300
    opened = [person.post("/connect/open/", token=f"guess {n}") for n in range(60)]
    assert [answer.status_code for answer in opened[-2:]] == [404, 429]


def test_passwords_are_tried_by_few_at_a_time(imap_source: IngestionSource) -> None:
    """Each holds a thread of web for as long as a server takes."""
    person = Browser()
    person.open(made(imap_source))
    with contextlib.ExitStack() as held:
        for number in range(8):
            held.enter_context(consent_page._trials.place(number))
        refused = person.post("/connect/give/", secret="x")
        assert (refused.status_code, int(refused["Retry-After"]) > 0) == (429, True)
    assert person.post("/connect/give/", secret="wrong").status_code == 400


def test_nothing_of_a_link_stays_in_caches_referrers_or_frames(
    imap_source: IngestionSource, gmail_source: IngestionSource
) -> None:
    person = Browser()
    answers = [person.get("/connect/"), person.open(made(imap_source))]
    person.open(made(gmail_source))
    answers += [person.get("/connect/"), person.post("/connect/go/")]
    answers += [person.get("/connect/back/", state="link.x"), Browser().get("/connect/back/")]
    for answer in answers:
        assert "no-store" in answer["Cache-Control"]
        assert answer["Referrer-Policy"] in ("no-referrer", "same-origin")
        assert "frame-ancestors 'none'" in answer["Content-Security-Policy"]
        assert "unsafe" not in answer["Content-Security-Policy"]
    leaving = person.post("/connect/go/")
    assert leaving["Referrer-Policy"] == "no-referrer"
    assert b"<form" not in leaving.content
    [cookie] = [c for c in person.client.cookies.values() if c.key == "consent_link"]
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Lax", "/connect/")
    forged = Client()
    forged.cookies["consent_link"] = str(ConsentLink.objects.first())
    assert "paste it here" in text(forged.get("/connect/"))
    assert Client(enforce_csrf_checks=True).post("/connect/give/").status_code == 403


def test_who_may_make_and_revoke_links(
    imap_source: IngestionSource, owner: User, manage: CommandLine, settings: Any
) -> None:
    def tried(user: User, method: str = "post", scopes: tuple[str, ...] = ("write",)) -> int:
        key = ApiKey.objects.create(user=user, name="tests", scopes=list(scopes))[1]
        address = f"/api/v1/ingestion/{imap_source.pk}/consent-link"
        answer: Any = getattr(Client(), method)(
            address, content_type="application/json", headers={"Authorization": f"Bearer {key}"}
        )
        return int(answer.status_code)

    assert tried(owner) == 404
    assert tried(people.staff("viewer", "view_ingestionsource")) == 403
    changes = people.staff("changes", "view_ingestionsource", "change_ingestionsource")
    assert [tried(changes), tried(changes, "delete")] == [201, 204]
    ConsentLink.objects.all().delete()
    IngestionSource.objects.update(owner=owner)
    assert tried(owner, scopes=("read",)) == 403
    assert [tried(owner), tried(owner, "delete"), tried(owner, "get")] == [201, 204, 403]
    assert ConsentLink.objects.get().revoked_at
    link = manage.here("sign_in_source", "IMAP", "--link", "--hours", "2", "--json")
    assert link.code == 0, link.stderr
    assert Browser().open(link.json()["url"]).status_code == 200
    assert manage.here("sign_in_source", "IMAP", "--link", "--hours", "0").code == 2
    settings.PUBLIC_URL = "https://mail.example.com"
    elsewhere = manage.here("sign_in_source", "IMAP", "--link")
    assert elsewhere.stdout.startswith("https://mail.example.com/connect/#")
    tenant = {"tenantId": "x.org", "clientId": "c", "clientSecret": "s"}
    configuration.create(
        owner=owner, name="Tenant", provider="microsoft", provider_config=tenant, actor=ACTOR
    )
    assert manage.here("sign_in_source", "Tenant", "--link").code == 1
