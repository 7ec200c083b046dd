"""The admin's other pages in a real browser: empty, huge, hostile, forbidden, damaged."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from django.conf import settings
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils import timezone
from playwright.sync_api import expect

from connectors import registry
from connectors.config import Config, field
from ingestion.models import (
    ApiKey,
    AuditEvent,
    FailedMessage,
    IngestionSource,
    Mailbox,
    Message,
    Run,
    StatusChange,
)
from tests.e2e.conftest import ADMIN_PASSWORD, Visitor
from tests.e2e.rows import LATER, SECRET, a_folder, a_mailbox, a_source, archived
from tests.servers import people

if TYPE_CHECKING:
    from tests.servers.stack import Service

INGESTION = "/admin/ingestion/"
LISTS = {
    "ingestionsource": "ingestion sources",
    "mailbox": "mailboxes",
    "folder": "folders",
    "run": "runs",
    "failedmessage": "failed messages",
    "message": "messages",
    "statuschange": "status changes",
    "auditevent": "audit events",
    "apikey": "API keys",
    "webhookendpoint": "webhooks",
}
HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>"


def test_every_page_works_with_nothing_to_show(operator: Visitor) -> None:
    page = operator.go("/admin/")
    expect(page.get_by_text("No mailbox is archived yet.")).to_be_visible()
    operator.shoot("dashboard-empty")
    for model, name in LISTS.items():
        people.forget_all()  # the sign-in, and who looked at lists of mail
        operator.go(f"{INGESTION}{model}/")
        expect(page.get_by_text(f"No {name} yet")).to_be_visible()
        operator.go(f"{INGESTION}{model}/?q=%3Cb%3E%25_'")
        expect(page.get_by_text("Nothing matches")).to_be_visible()
    operator.shoot("list-nothing-matches")
    for path in (
        "/admin/auth/user/",
        "/admin/auth/group/",
        f"{INGESTION}ingestionsource/add/?way=any",
    ):
        operator.go(path)
        expect(page.locator("#content")).to_be_visible()
    page.set_viewport_size({"width": 1280, "height": 900})
    operator.go("/admin/auth/group/add/")
    expect(page.locator(".selector")).to_contain_text("Can view message")
    assert "email address" not in page.inner_text(".selector"), "it has no page"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_list_of_very_many_messages_opens_without_counting_them_all(
    operator: Visitor, admin_user: User
) -> None:
    mailbox = a_mailbox(a_source(admin_user))
    (first,) = archived(a_folder(mailbox), b"Subject: the first\r\n\r\nx")
    # "archived_at" is set, so that pages of equal times would not be the test's own fault.
    start = timezone.now() + dt.timedelta(seconds=1)
    Message.objects.bulk_create(
        Message(
            mailbox=mailbox,
            sha256=number.to_bytes(32, "big"),
            size_bytes=1,
            pack=first.pack,
            pack_offset=0,
            pack_length=1,
            subject=f"Message {number}",
            archived_at=start + dt.timedelta(milliseconds=number),
        )
        for number in range(10_500)
    )
    page = operator.go(f"{INGESTION}message/")
    expect(page.get_by_text("10,000+ messages")).to_be_visible()
    expect(page.locator("#result_list")).to_contain_text("Message 10499")
    operator.shoot("messages-many")
    for found in (str(first.pk), first.sha256_hex):
        operator.go(f"{INGESTION}message/?q={found}")
        expect(page.locator("#result_list tbody tr")).to_have_count(1)
        expect(page.locator("#result_list")).to_contain_text("the first")


def test_the_number_of_queries_does_not_grow_with_the_rows(
    admin_user: User, django_assert_max_num_queries: Callable[..., Any]
) -> None:
    client = Client()
    client.force_login(admin_user)

    def rows(count: int) -> None:
        for number in range(count):
            source = a_source(admin_user, f"Source {number}")
            mailbox = a_mailbox(source, run=_run(source))
            folder = a_folder(mailbox)
            archived(folder, b"Subject: one\r\n\r\n" + str(source.pk).encode())
            _failure(folder)
            StatusChange.objects.create(
                source=source, from_status="importing", to_status="active", actor="tests"
            )

    rows(2)
    paths = ["/admin/", *(f"{INGESTION}{model}/" for model in LISTS)]
    client.get("/admin/")  # a session's first request writes down when it was
    few = {path: _queries(client, path) for path in paths}
    rows(8)
    assert {path: _queries(client, path) for path in paths} == few
    ids = "&".join(f"id={pk}" for pk in IngestionSource.objects.values_list("pk", flat=True))
    # Session, user, sources, their runs, and what is left out: mailboxes and folders.
    with django_assert_max_num_queries(6):
        client.get(f"{INGESTION}ingestionsource/live/?{ids}")


def _queries(client: Client, path: str) -> int:
    from django.db import connection  # the test's database
    from django.test.utils import CaptureQueriesContext

    with CaptureQueriesContext(connection) as queries:
        assert client.get(path).status_code == 200
    return len(queries)


def _run(source: IngestionSource) -> Run:
    now = timezone.now()
    return Run.objects.create(
        source=source, kind="sync", actor="tests", discovered_at=now, not_before=now + LATER
    )


def _failure(folder: Any, **about: Any) -> FailedMessage:
    usual = {"remote_id": "1:9", "code": "message_refused", "reason": "The server answered NO."}
    return FailedMessage.objects.create(
        mailbox=folder.mailbox,
        folder=folder,
        not_before=timezone.now() + LATER,
        **(usual | about),
    )


def test_hostile_names_and_mail_are_text_on_every_page(operator: Visitor, admin_user: User) -> None:
    source = a_source(admin_user, HOSTILE, status_message=HOSTILE)
    mailbox = a_mailbox(
        source, HOSTILE, state="unavailable", state_reason=HOSTILE, attempts=1, last_error=HOSTILE
    )
    folder = a_folder(mailbox, f"../{HOSTILE}", cursor={"x": HOSTILE})
    body = (
        f"From: {HOSTILE} <a@example.com>\r\nTo: {HOSTILE}\r\nSubject: {HOSTILE}\r\n"
        f'Content-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\nContent-Type: text/html\r\n\r\n'
        f"<p>Dear reader</p>{HOSTILE}&lt;script&gt;alert(3)&lt;/script&gt;\r\n--b\r\n"
        f'Content-Type: image/svg+xml; name="{HOSTILE}.svg"\r\n\r\n<svg onload=alert(4)>\r\n--b--'
    )
    (message,) = archived(folder, body.encode())
    failed = _failure(folder, remote_id=HOSTILE, code=HOSTILE[:60], reason=HOSTILE)
    run = _run(source)
    Run.objects.filter(pk=run.pk).update(warning=HOSTILE, actor=HOSTILE, messages_total=9)
    change = StatusChange.objects.create(
        source=source, from_status="active", to_status="error", reason=HOSTILE, actor=HOSTILE
    )
    event = AuditEvent.objects.create(
        actor=HOSTILE, action=HOSTILE[:60], source_id=source.pk, changes={HOSTILE: HOSTILE}
    )
    page = operator.go("/admin/")
    expect(page.locator("#content")).to_contain_text(HOSTILE)
    for row in (source, mailbox, folder, run, failed, message, change, event):
        model = row._meta.model_name
        operator.go(f"{INGESTION}{model}/")
        expect(page.locator("#content")).to_contain_text(HOSTILE[:40])
        operator.go(f"{INGESTION}{model}/{row.pk}/change/")
        expect(page.locator("#content")).to_contain_text(HOSTILE[:40])
        assert page.locator("#content script:has-text('alert'), #content img").count() == 0
    operator.go(f"{INGESTION}message/{message.pk}/change/")
    expect(page.frame_locator(".ing-paper").locator("body")).to_contain_text("Dear reader")
    page.get_by_role("tab", name="Text").click()
    expect(page.locator(".ing-mail-text")).to_contain_text("Dear reader")
    expect(page.locator(".ing-mail-text")).to_contain_text("<script>alert(3)</script>")
    operator.shoot("message")
    operator.go(f"{INGESTION}ingestionsource/{source.pk}/delete/")
    expect(page.locator("#content")).to_contain_text(HOSTILE)


def test_a_message_shows_its_text_other_version_attachments_and_headers(
    operator: Visitor, admin_user: User
) -> None:
    recipients = ", ".join(f"person{n}@example.com" for n in range(400))
    body = (
        f"From: a@example.com\r\nTo: {recipients}\r\nSubject: Offer\r\nX-Old: Gr\u00fc\u00dfe\u202e\r\n"
        'Content-Type: multipart/mixed; boundary="a"\r\n\r\n--a\r\n'
        'Content-Type: multipart/alternative; boundary="b"\r\n\r\n'
        "--b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nYour program can't show HTML.\r\n"
        "--b\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<head><p>Pay <b>now</b></p>\r\n--b--\r\n"
        '--a\r\nContent-Type: application/pdf; name="=?utf-8?q?R=C3=A9sum=C3=A9.pdf?="\r\n\r\n'
        f"{'x' * 2_000}\r\n--a\r\nContent-Type: message/rfc822\r\n\r\n"
        "Subject: I agree\r\n\r\nto pay\r\n--a--\r\n"
    ).encode()
    (message,) = archived(a_folder(a_mailbox(a_source(admin_user))), body)
    page = operator.go(f"{INGESTION}message/{message.pk}/change/")
    content = page.locator("#content")
    expect(page.frame_locator(".ing-paper").locator("body")).to_have_text("Pay now")
    page.get_by_role("tab", name="HTML").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Text")).to_be_focused()
    expect(page.locator(".ing-mail-text").first).to_have_text("Your program can't show HTML.")
    expect(page.get_by_text("Pay now")).to_be_hidden()
    page.get_by_text("The words of its HTML version").click()
    expect(page.get_by_text("Pay now")).to_be_visible()
    rows = page.locator(".ing-attachment")
    expect(rows.nth(0)).to_contain_text("Résumé.pdf")
    expect(rows.nth(0)).to_contain_text("2.0 kB")
    expect(rows.nth(1)).to_contain_text("I agree")
    expect(rows.nth(1)).to_contain_text("attached message (message/rfc822)")
    expect(content).not_to_contain_text("to pay")
    page.keyboard.press("Tab")
    page.get_by_role("tab", name="Headers").click()
    expect(page.get_by_role("row", name="X-Old")).to_contain_text("Grüße")
    expect(page.get_by_text("and 392 more")).to_be_visible()
    operator.shoot("message-parts", width=1280)
    operator.shoot("message-parts-narrow", width=400)
    page.set_viewport_size({"width": 400, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_download_is_the_exact_mail_and_a_damaged_one_is_refused_in_words(
    operator: Visitor, admin_user: User, tmp_path: Path
) -> None:
    body = b"Subject: bytes\r\n\r\n" + bytes(range(256)) * 40
    (message,) = archived(a_folder(a_mailbox(a_source(admin_user))), body)
    page = operator.go(f"{INGESTION}message/{message.pk}/change/")
    expect(page.locator("#content")).to_contain_text(message.sha256_hex)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download .eml").click()
    download.value.save_as(tmp_path / "mail.eml")
    assert (tmp_path / "mail.eml").read_bytes() == body
    assert download.value.suggested_filename == f"{message.received_at:%Y-%m-%d} bytes.eml"

    (pack,) = Path(settings.ARCHIVE_DIR).rglob(f"{message.pack_id}.pack")
    damaged = bytearray(pack.read_bytes())
    damaged[message.pack_offset + message.pack_length // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(damaged)
    operator.go(f"{INGESTION}message/{message.pk}/change/")
    expect(page.get_by_role("alert")).to_contain_text("Restore the pack from a backup")
    operator.shoot("message-damaged")
    page.get_by_role("link", name="Download .eml").click()
    expect(page.get_by_text("Not downloaded.")).to_be_visible()


def test_failed_messages_show_why_and_are_tried_again_on_request(
    operator: Visitor, admin_user: User
) -> None:
    folder = a_folder(a_mailbox(a_source(admin_user)), "Archive/2024")
    failed = [_failure(folder, remote_id=f"1:{n}", attempts=n) for n in (1, 2, 3)]
    other = a_folder(a_mailbox(a_source(admin_user, "Halted", status="paused")))
    refused = _failure(other)
    page = operator.go(f"{INGESTION}failedmessage/")
    expect(page.locator("#result_list")).to_contain_text("The server answered NO.")
    operator.shoot("failures")
    for row in (*failed[:2], refused):
        page.check(f"input.action-select[value='{row.pk}']")
    page.select_option("select[name=action]", "retry_selected")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_text("“Sales”: 2 failed messages are tried again now.")).to_be_visible()
    expect(page.get_by_text("“Halted”: The source is paused.")).to_be_visible()
    due = FailedMessage.objects.filter(not_before__lte=timezone.now())
    assert set(due) == set(failed[:2])


def test_an_api_key_is_shown_once_works_and_is_revoked(
    operator: Visitor, service: "Service"
) -> None:
    page = operator.go(f"{INGESTION}apikey/add/")
    page.fill("[name=name]", "Backup script")
    page.get_by_role("button", name="Save").click()
    shown = page.get_by_label("API key")
    expect(shown).to_be_visible()
    operator.shoot("key-created")
    key = shown.input_value()
    headers = {"Authorization": f"Bearer {key}"}
    sources = f"{service.url}/api/v1/ingestion"
    assert httpx.get(sources, headers=headers, trust_env=False, verify=False).status_code == 200
    row = ApiKey.objects.get()
    operator.go(f"{INGESTION}apikey/")
    expect(page.locator("#result_list")).to_contain_text("Backup script")
    assert key not in page.content()
    operator.go(f"{INGESTION}apikey/{row.pk}/change/")
    assert key not in page.content()
    page.get_by_role("link", name="Delete API key").click()
    page.get_by_role("button", name="Yes").click()
    page.wait_for_load_state()
    assert httpx.get(sources, headers=headers, trust_env=False, verify=False).status_code == 401
    actions = list(AuditEvent.objects.values_list("action", flat=True))
    assert actions[:3] == ["key.revoke", "key.create", "session.begin"]


@pytest.mark.parametrize("may", ["nothing", "view", "change"])
def test_staff_see_and_do_what_their_permissions_allow(
    visit: Callable[[], Visitor], admin_user: User, other_user: User, may: str
) -> None:
    source = a_source(admin_user)
    other_user.is_staff = True
    other_user.save()
    if may != "nothing":
        wanted = ["view_ingestionsource", *(["change_ingestionsource"] if may == "change" else [])]
        other_user.user_permissions.set(Permission.objects.filter(codename__in=wanted))
    visitor = visit()
    visitor.let_in(other_user)
    page, change = visitor.page, f"{INGESTION}ingestionsource/{source.pk}/change/"
    if may == "nothing":
        visitor.go("/admin/")
        expect(page.locator("#content")).not_to_contain_text("Sales")
        assert visitor.go(change).title().startswith("This page is not for you")
        visitor.complaints.clear()
    else:
        visitor.go(change)
        expect(page.locator("#content")).to_contain_text("Messages archived")
        assert page.get_by_role("button", name="Pause").count() == (may == "change")
        visitor.go(f"{change}?tab=settings")
        assert page.get_by_role("button", name="Save").count() == (may == "change")
        assert page.get_by_role("link", name="Delete ingestion source").count() == 0
        assert SECRET not in page.content()
    client = Client()
    client.force_login(other_user)
    verb = client.post(f"{INGESTION}ingestionsource/{source.pk}/do/", {"verb": "pause"})
    assert verb.status_code == (302 if may == "change" else 403)
    source.refresh_from_db()
    assert source.status == ("paused" if may == "change" else "active")
    live = client.get(f"{INGESTION}ingestionsource/live/?id={source.pk}")
    assert live.status_code == (403 if may == "nothing" else 200)


def test_a_verb_needs_a_post_with_a_csrf_token(admin_user: User) -> None:
    source = a_source(admin_user)
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    address = f"{INGESTION}ingestionsource/{source.pk}/do/"
    assert client.get(address, {"verb": "pause"}).status_code == 405
    assert client.post(address, {"verb": "pause"}).status_code == 403
    assert Client().post(address, {"verb": "pause"}).status_code in (302, 403)
    source.refresh_from_db()
    assert source.status == "active"


def test_filters_answer_operators_questions(operator: Visitor, admin_user: User) -> None:
    a_source(admin_user, "Fine")
    broken = a_source(admin_user, "Broken", status="error", status_message="Wrong password.")
    late = a_source(admin_user, "Late")
    IngestionSource.objects.filter(pk=late.pk).update(
        status="paused", next_sync_at=timezone.now() - dt.timedelta(hours=1)
    )
    failing = a_source(admin_user, "Failing")
    _failure(a_folder(a_mailbox(failing)))
    busy = a_source(admin_user, "Busy")
    a_mailbox(busy, run=_run(busy))
    asked = {
        "attention": {"Broken", "Failing"},
        "running": {"Busy"},
        "failing": {"Failing"},
        "paused": {"Late"},
        "new": set[str](),
    }
    page = operator.page
    for question, names in asked.items():
        operator.go(f"{INGESTION}ingestionsource/?show={question}")
        found = page.locator("#result_list .field-title .ing-two > span:first-child")
        assert set(found.all_inner_texts()) == names, question
    operator.go("/admin/")
    expect(page.locator("[data-refresh=attention]")).to_contain_text("Wrong password.")
    page.get_by_role("link", name="Broken").click()
    page.wait_for_url(f"**/{broken.pk}/change/")
    for model in ("mailbox", "run", "message", "failedmessage", "folder", "statuschange"):
        operator.go(f"{INGESTION}{model}/")
        page.locator("#changelist a").filter(has_text="Filters").first.click()
        expect(page.get_by_role("button", name="Apply Filters")).to_be_visible()
    operator.shoot("filters")
    operator.go(f"{INGESTION}message/")
    page.locator("#changelist a").filter(has_text="Filters").first.click()
    page.locator("#changelist-filter .select2-selection").first.click()
    expect(page.locator(".select2-results__option").filter(has_text="Busy")).to_be_visible()
    lookup = "mailbox__source__id__exact"
    operator.go(f"{INGESTION}failedmessage/?{lookup}={failing.pk}")
    expect(page.locator("#result_list tbody tr")).to_have_count(1)
    operator.go(f"{INGESTION}failedmessage/?{lookup}={busy.pk}")
    expect(page.get_by_text("Nothing matches")).to_be_visible()
    assert Mailbox.objects.count() == 2


def test_the_form_asks_for_the_fields_of_the_chosen_provider(
    operator: Visitor, admin_user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page is made in this process, which knows one provider more than the service."""
    import dataclasses  # annotations of a Config must not be postponed
    import types

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class PigeonConfig(Config):
        loft: str = field("Loft")
        keyPem: str = field("Key", secret=True, default="", max_length=100_000)  # noqa: N815 - a field of the API

    module = types.ModuleType("pigeon.config")
    module.LABEL = "Carrier pigeon"  # type: ignore[attr-defined] # a module made here
    module.CONFIG = PigeonConfig  # type: ignore[attr-defined] # a module made here
    monkeypatch.setitem(__import__("sys").modules, "pigeon.config", module)
    monkeypatch.setitem(__import__("sys").modules, "pigeon", types.ModuleType("pigeon"))
    pigeon = registry.Provider("pigeon", "pigeon")
    monkeypatch.setitem(registry.PROVIDERS, "pigeon", pigeon)
    client = Client()
    assert client.login(username="admin", password=ADMIN_PASSWORD)
    address = f"{INGESTION}ingestionsource/add/?way=any"
    made = client.get(address).content.decode()
    page = operator.page
    page.route(f"**{address}", lambda route: route.fulfill(body=made, content_type="text/html"))
    operator.go(address)
    host, loft = page.locator("[name=generic_imap__host]"), page.locator("[name=pigeon__loft]")
    page.select_option("select[name=provider]", "generic_imap")
    expect(host).to_be_visible()
    expect(loft).to_be_hidden()
    page.select_option("select[name=provider]", "pigeon")
    expect(loft).to_be_visible()
    expect(host).to_be_hidden()
    expect(page.locator("textarea[name=pigeon__keyPem]")).to_be_visible()
    operator.shoot("form-other-provider")
    answer = client.post(address, {"name": "P", "provider": "pigeon"}).content.decode()
    assert answer.count("This field is required.") == 1, "Only the chosen provider's fields count."


def test_the_documentation_of_the_api_renders_with_our_own_assets(visit: Any) -> None:
    visitor = visit()
    page = visitor.go("/api/docs")
    expect(page.get_by_text("/api/v1/ingestion/{id}/import").first).to_be_visible()
    visitor.shoot("api-docs")
    page.emulate_media(color_scheme="dark")
    page.reload()
    expect(page.locator("html.dark-mode")).to_have_css("background-color", "rgb(28, 32, 34)")
    page.evaluate("localStorage.setItem('_x_adminTheme', JSON.stringify('light'))")
    page.reload()
    expect(page.locator("html:not(.dark-mode) .opblock").first).to_be_visible()
