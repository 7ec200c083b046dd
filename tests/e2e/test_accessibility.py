"""axe-core finds nothing serious on any page, in both themes, on a wide screen and on a phone.

The pages are those that the URL patterns name, filled in with rows that are there: a new page is
looked at without a line here. axe-core comes by npm (tests/servers/node/package.json).
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import Group, User
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver
from django.utils import timezone
from playwright.sync_api import Page, expect

from ingestion.models import (
    Alert,
    AlertKind,
    AlertNotice,
    AlertRule,
    AuditEvent,
    ConsentLink,
    Export,
    FailedMessage,
    IngestionSource,
    Message,
    Run,
    SavedSearch,
    StatusChange,
    WebhookEndpoint,
)
from ingestion.services.audit import Actor
from ingestion.services.operations.alerting import digest, mail, watch, words
from ingestion.services.sources import configuration, consent_links
from ingestion.signin import clothes
from tests.e2e.conftest import ADMIN_PASSWORD, Visitor, dress
from tests.e2e.rows import LATER, a_folder, a_mailbox, a_source, archived
from tests.servers.stack import ROOT

AXE = ROOT / "tests/servers/node/node_modules/axe-core/axe.min.js"
#: What shows mail itself, whose HTML is its sender's.
_MAIL = {"ingestion_message_html", "ingestion_message_preview"}
_NO_PAGES = {"", "logout", "view_on_site"}
#: Of models, but made of the same templates, with other names in them: one of each is looked at.
_HISTORY = "_history"
#: Pages that no pattern alone tells.
_MORE = (
    "/admin/ingestion/ingestionsource/add/?way=any",
    *(f"/admin/ingestion/ingestionsource/add/?way={way}" for way in ("gmail", "tenant", "imap")),
    "/admin/mail/?q=no-such-word",
    "/account/",
    "/account/second-step/",
    "/account/second-step/totp/activate/",
    "/account/second-step/webauthn/add/",
    "/connect/",
    "/api/docs",
    "/api/docs/errors",
    "/api/docs/introduction",
)
#: (width, dark)
_LOOKS = ((1280, False), (390, True))

_RUN = """async () => {
    // No preload: it fetches and parses the style sheets once more, for rules about sound alone.
    // And no rule whose findings are all milder than what is told: a rule's impact is that of each.
    const mild = axe._audit.rules.filter(rule => ["minor", "moderate"].includes(rule.impact));
    const rules = Object.fromEntries(mild.map(rule => [rule.id, {enabled: false}]));
    const looked = {iframes: false, preload: false, resultTypes: ["violations"], rules};
    const found = await axe.run(document, looked);
    return found.violations
        .filter(one => ["serious", "critical"].includes(one.impact))
        .flatMap(one => one.nodes.map(node => `${one.id}: ${node.html.slice(0, 160)} (${
            [...node.any, ...node.all, ...node.none].map(check => check.message).join(" ")})`));
}"""


@pytest.fixture
def rows(admin_user: User, make_key: Callable[..., str]) -> None:
    """Something in every table that a page shows."""
    now = timezone.now()
    source = a_source(admin_user)
    a_source(admin_user, "Out of order", status="error", status_message="There is no such host.")
    run = Run.objects.create(
        source=source, kind="sync", actor="tests", discovered_at=now, not_before=now + LATER
    )
    folder = a_folder(a_mailbox(source, run=run, last_error="Connection refused."))
    archived(
        folder,
        b"From: Ada <ada@example.com>\r\nTo: bob@example.com\r\nSubject: Plans\r\n"
        b"Content-Type: text/html\r\n\r\n<p>Hello</p>",
        b"Subject: two\r\n\r\nSee https://example.com/",
    )
    FailedMessage.objects.create(
        mailbox=folder.mailbox, folder=folder, remote_id="1:9", code="message_refused",
        reason="The server answered NO.", not_before=now + LATER,
    )  # fmt: skip
    StatusChange.objects.create(
        source=source, from_status="importing", to_status="active", actor="tests"
    )
    AuditEvent.objects.create(actor="tests", action="paused", source_id=source.pk, changes={"a": 1})
    SavedSearch.objects.create(owner=admin_user, name="Bills", query="subject:bill")
    Export.objects.create(
        owner=admin_user, format="mbox", state="done", finished_at=now, expires_at=now + LATER
    )
    WebhookEndpoint.objects.create(
        owner=admin_user, url="https://example.com/hook", events=[], ring_not_before=now + LATER
    )
    Group.objects.get_or_create(name="Readers")
    make_key(admin_user)


def _patterns(resolver: URLResolver, before: str = "/") -> Iterator[tuple[str, str]]:
    for one in resolver.url_patterns:
        if isinstance(one, URLResolver):
            yield from _patterns(one, before + str(one.pattern))
        elif isinstance(one, URLPattern):
            yield before + str(one.pattern), one.name or ""


def _filled_in(pattern: str) -> str | None:
    """Return an address of the pattern; None where there is no row for it."""
    app, _, rest = pattern.removeprefix("/admin/").partition("/")
    known = {"number": "1", "what": "form", "object_id": "", "id": "", "pk": ""}
    if (app, rest.partition("/")[0]) in {
        (model._meta.app_label, model._meta.model_name) for model in apps.get_models()
    }:
        row = apps.get_model(app, rest.partition("/")[0])._default_manager.first()
    else:  # the mailbox page's
        row = SavedSearch.objects.first() if "searches" in pattern else Message.objects.first()
    if row is None:
        return None
    return re.sub(r"<(?:\w+:)?(\w+)>", lambda part: known[part[1]] or str(row.pk), pattern)


def addresses(client: Client) -> list[str]:
    """Return the addresses of all pages that a superuser can open, which no form is sent to."""
    own = IngestionSource.objects.values_list("pk", flat=True)[0]
    page = f"/admin/ingestion/ingestionsource/{own}/change/"
    tabs = [f"{page}?tab={tab}" for tab in ("settings", "messages", "history")]
    found = [*_MORE, f"/sources/{own}/", *tabs]
    histories = set()
    for pattern, name in _patterns(get_resolver()):
        if not pattern.startswith("/admin/") or "(?P" in pattern or name in _MAIL | _NO_PAGES:
            continue
        path = _filled_in(pattern)
        if path is None:
            continue
        answer = client.get(path)
        if answer.status_code != 200 or answer.streaming or b"<html" not in answer.content:
            continue
        if name.endswith(_HISTORY):
            templates = tuple(template.name for template in answer.templates)
            if templates in histories:
                continue
            histories.add(templates)
        found.append(path)
    return list(dict.fromkeys(found))


def look(page: Page, where: str) -> Iterator[str]:
    """Yield what axe-core finds serious, in each look."""
    for width, dark in _LOOKS:
        page.set_viewport_size({"width": width, "height": 900})
        dress(page, dark=dark)
        for found in page.evaluate(_RUN):
            yield f"{where} at {width} px, {'dark' if dark else 'light'}: {found}"


@pytest.mark.long(seconds=70)
def test_nothing_serious_is_found_on_any_page(
    visit: Callable[[], Visitor], admin_user: User, rows: None
) -> None:
    client = Client()
    client.force_login(admin_user)
    pages = addresses(client)
    assert len(pages) > 40, pages
    visitor = visit()
    visitor.context.add_init_script(path=AXE)  # sent once, not for each page
    visitor.page.emulate_media(reduced_motion="reduce")
    found: list[str] = []

    def open_and_look(path: str) -> None:
        visitor.go(path)
        if path == "/api/docs":
            visitor.page.wait_for_selector(".opblock")
        found.extend(look(visitor.page, path))

    open_and_look("/admin/login/")
    visitor.log_in("admin", ADMIN_PASSWORD)
    for path in pages:
        open_and_look(path)
    visitor.go("/admin/")
    visitor.page.keyboard.press("/")
    visitor.page.keyboard.type("sales")
    expect(visitor.page.locator('.ing-found[aria-selected="true"]')).to_contain_text("Source")
    found.extend(look(visitor.page, "the search of every page"))
    open_and_look("/no-such-page/")
    visitor.complaints.clear()  # the 404 that was meant
    assert found == [], f"{len(found)}:\n" + "\n".join(found)


def by_links(source: IngestionSource) -> Iterator[tuple[str, str]]:
    """Yield the pages of a consent link: one that is open, and of no use any more; by what they
    are called."""
    now, before = timezone.now(), timezone.now() - LATER
    yield "nothing", Client().post("/connect/open/", {"token": "cut"}).content.decode()
    elsewhere = Client().get("/connect/back/", {"state": "x", "code": "y"})
    yield "elsewhere", elsewhere.content.decode()
    for name, state in {
        "open": {},
        "used": {"used_at": now},
        "expired": {"expires_at": before},
        "withdrawn": {"revoked_at": now},
    }.items():
        link, token = consent_links.make(source, actor=Actor.system("tests"))
        ConsentLink.objects.filter(pk=link.pk).update(**state)
        person = Client()
        assert person.post("/connect/open/", {"token": token}).status_code == 302
        yield name, person.get("/connect/").content.decode()
        if name == "open":
            given = {"secret": "wrong", "seen": consent_links.as_shown(link)}
            tries = [person.post("/connect/give/", given) for _ in range(11)]
            yield "refused", tries[0].content.decode()
            yield "wait", tries[-1].content.decode()


def mails(owner: User) -> Iterator[tuple[str, str]]:
    """Yield the HTML of mails that the service sends."""
    rule = AlertRule.objects.create(
        owner=owner,
        name="On call",
        recipients=["ops@example.com"],
        kinds=AlertKind.values,
        digest="daily",
    )
    watch.look_at_sources()
    opened = list(Alert.objects.filter(ended_at=None))
    assert opened
    owed = list(rule.notices.select_related("alert", "source"))
    ended = AlertNotice(
        pk=0, alert=opened[0], source=opened[0].source, kind=opened[0].kind, change="ended",
        message="It is well again.", created_at=timezone.now(),
    )  # fmt: skip
    for name, told in {
        "test": words.of_test(rule, opened),
        "alerts": words.of_notices(rule, [*owed, ended]),
        "digest": digest.of(rule),
    }.items():
        [(html, _)] = mail.written(told, rule.recipients).alternatives
        yield name, str(html)


@pytest.mark.long(seconds=30)
def test_nothing_serious_is_found_in_what_went_wrong_at_links_and_in_mails(
    visit: Callable[[], Visitor], admin_user: User, rows: None, settings: Any
) -> None:
    settings.PUBLIC_URL = "https://mail.example.com"
    source = configuration.create(
        owner=admin_user, name="Grace", provider="generic_imap", actor=Actor.system("tests"),
        provider_config={
            "host": "127.0.0.1", "port": 1, "username": "grace@example.com", "passwordByOwner": True,
        },
    )  # fmt: skip
    went_wrong = {
        "bad-request": clothes.bad_request(),
        "not-allowed": clothes.not_allowed(),
        "not-found": clothes.not_found(),
        "away": clothes.away(),
        "failed": clothes.failed("It is in the log."),
        "form-too-old": clothes.form_too_old("/admin/"),
    }
    pages = {name: answer.content.decode() for name, answer in went_wrong.items()}
    pages |= {f"link-{name}": html for name, html in by_links(source)}
    pages |= {f"mail-{name}": html for name, html in mails(admin_user)}
    visitor = visit()
    visitor.context.add_init_script(path=AXE)
    page = visitor.page
    shown = ""
    page.route("**/shown", lambda route: route.fulfill(body=shown, content_type="text/html"))
    found: list[str] = []
    for name, shown in pages.items():  # noqa: B007 - the route's
        visitor.go("/shown")
        found.extend(look(page, name))
        visitor.shoot(name, width=1280)
        visitor.shoot(f"{name}-phone", width=390)
    assert found == [], f"{len(found)}:\n" + "\n".join(found)
