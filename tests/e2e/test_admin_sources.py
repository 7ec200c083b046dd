"""An operator's day in a real browser: add a source, import it, watch, correct, stop, delete."""

import datetime as dt
from collections.abc import Callable
from typing import Any

from django.contrib.auth.models import User
from django.utils import timezone
from playwright.sync_api import Page, expect

from ingestion.models import AuditEvent, FailedMessage, IngestionSource, Message, Run
from tests.e2e.conftest import Visitor
from tests.e2e.rows import LATER, SECRET, a_folder, a_mailbox, a_source
from tests.servers.dovecot import Dovecot

SOURCES = "/admin/ingestion/ingestionsource/"


def _page_of(source: IngestionSource) -> str:
    return f"{SOURCES}{source.pk}/change/"


def _fill(page: Page, **fields: str) -> None:
    for name, value in fields.items():
        page.fill(f"[name=generic_imap__{name}]", value)


def _connect(page: Page, dovecot: Dovecot, name: str, password: str) -> None:
    _fill(page, host=dovecot.host, port=str(dovecot.tls_port), username=name, password=password)
    page.check("[name=generic_imap__allowInsecureCert]")


def _open_row(page: Page, name: str) -> None:
    page.locator("#result_list").get_by_text(name).first.click()
    page.wait_for_load_state()


def test_an_operator_adds_a_source_imports_it_and_reads_a_message_without_a_reload(
    operator: Visitor, dovecot: Dovecot
) -> None:
    name, password = dovecot.user()
    hostile = "<script>alert(1)</script>"
    bodies = [
        f"From: Ada <ada@example.com>\r\nTo: x@example.com\r\nSubject: Note {n}\r\n\r\nHello {n}\r\n"
        for n in range(400)
    ]
    bodies.append(f"From: a@example.com\r\nSubject: {hostile}\r\n\r\n<b>not bold</b>\r\n")
    dovecot.append(name, "INBOX", *(body.encode() for body in bodies))
    dovecot.append(name, "<img src=x onerror=alert(2)>", b"Subject: in a hostile folder\r\n\r\nx")

    page = operator.page
    operator.go(SOURCES)
    page.get_by_title("Add ingestion source").click()
    operator.shoot("ways")
    page.get_by_text("Any IMAP server").click()
    page.fill("[name=name]", "Ada's mail")
    _connect(page, dovecot, name, "wrong")
    page.get_by_role("button", name="Test").click()
    expect(page.get_by_text("✗ Log in")).to_be_visible()
    _connect(page, dovecot, name, password)
    page.get_by_role("button", name="Test").click()
    expect(page.get_by_text("✓ Read one message")).to_be_visible()
    expect(page.get_by_text("✗")).to_have_count(0)
    operator.shoot("test-before-save")
    assert not IngestionSource.objects.exists()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("“Ada's mail” is added.")).to_be_visible()
    assert IngestionSource.objects.get().owner.username == "admin"

    status = page.locator("[data-live=status]")
    expect(status).to_have_text("Authenticated")  # by itself
    page.get_by_role("link", name="History").click()
    expect(page.locator("[data-refresh=changes]")).to_contain_text("Credentials work.")
    expect(page.locator("[data-verbs] .is-primary")).to_contain_text("Import")
    operator.shoot("source-authenticated")
    page.get_by_role("button", name="Import").click()
    page.wait_for_load_state()
    expect(page.get_by_text("The import is under way.")).to_be_visible()
    page.evaluate("window.sameDocument = true")
    expect(status).to_have_text("Active")
    expect(page.locator("[data-live=messages]")).to_have_text("402")
    expect(page.locator("[data-refresh=runs]")).to_contain_text("402 archived")
    assert page.evaluate("window.sameDocument") is True, "The page was loaded again."
    operator.shoot("source-imported")

    page.get_by_role("link", name="402", exact=True).click()
    page.fill("#searchbar", str(Message.objects.get(subject=hostile).pk))
    page.press("#searchbar", "Enter")
    _open_row(page, hostile)
    expect(page.locator(".ing-mail-subject")).to_have_text(hostile)
    expect(page.locator(".ing-mail-text")).to_have_text("<b>not bold</b>")
    operator.shoot("message-hostile")
    operator.go("/admin/ingestion/folder/")
    expect(page.locator("#result_list")).to_contain_text("<img src=x onerror=alert(2)>")
    assert Message.objects.count() == 402


def test_a_running_import_moves_its_bar_and_ends_without_a_reload(
    operator: Visitor, admin_user: User
) -> None:
    source = a_source(admin_user, status="importing", imported_at=None)
    now = timezone.now()
    run = Run.objects.create(
        source=source,
        kind="import",
        actor="admin",
        discovered_at=now,
        not_before=now + LATER,
        messages_total=1000,
        messages_done=100,
        bytes_done=5_000_000,
    )
    a_mailbox(source, run=run)
    page = operator.go(SOURCES)
    bar = page.locator("#result_list .ing-progress")
    expect(bar).to_contain_text("10 %")
    expect(bar).to_contain_text("100 of 1,000 messages")
    operator.shoot("list-importing")
    operator.go("/admin/")
    expect(page.locator("[data-refresh=running] .ing-progress")).to_contain_text("10 %")
    operator.shoot("dashboard-importing")

    operator.go(_page_of(source))
    large = page.locator(".ing-progress-large .ing-progress")
    expect(large).to_contain_text("10 %")
    operator.shoot("source-importing")
    page.evaluate("window.sameDocument = true")
    Run.objects.filter(pk=run.pk).update(
        messages_done=600, messages_failed=1, progress_at=now + dt.timedelta(seconds=10)
    )
    expect(large).to_contain_text("60 %")
    expect(large).to_contain_text("1 failed")
    expect(page.locator("[data-live=counted]")).to_have_text(
        page.locator(".ing-progress-large [data-part=text]").inner_text()
    )
    expect(page.get_by_role("button", name="Import")).to_be_disabled()

    Run.objects.filter(pk=run.pk).update(
        status="completed", finished_at=now, message="999 archived, 1 failed."
    )
    IngestionSource.objects.filter(pk=source.pk).update(status="active", imported_at=now)
    expect(large).to_be_hidden()
    expect(page.locator("[data-live=status]")).to_have_text("Active")
    expect(page.get_by_role("button", name="Sync")).to_be_enabled()
    expect(page.locator("[data-refresh=runs]")).to_contain_text("999 archived, 1 failed.")
    assert page.evaluate("window.sameDocument") is True, "The page was loaded again."


def test_wrong_input_is_explained_at_its_field_and_echoes_no_secret(operator: Visitor) -> None:
    page = operator.go(f"{SOURCES}add/?way=any")
    page.fill("[name=name]", "Wrong")
    _fill(page, host="imap://example.com/", port="70000", username="ada", password=SECRET)
    page.fill("[name=options__syncIntervalSeconds]", "5")
    page.fill("[name=options__since]", "yesterday")
    page.get_by_role("button", name="Save").click()
    page.wait_for_load_state()
    said = {
        "generic_imap__port": "Must be at most 65535.",
        "options__syncIntervalSeconds": "Must be at least 30.",
        "options__since": "Enter a valid date.",
    }
    for field, text in said.items():
        expect(_row(page, field)).to_contain_text(text)
    operator.shoot("form-errors")
    _fill(page, port="993")
    page.check("[name=generic_imap__startTls]")
    page.get_by_role("button", name="Save").click()
    page.wait_for_load_state()
    expect(_row(page, "generic_imap__host")).to_contain_text("without a scheme or path")
    expect(_row(page, "generic_imap__startTls")).to_contain_text("Choose one")
    expect(_row(page, "generic_imap__password")).to_contain_text("Give a password")
    assert SECRET not in page.content()
    assert not IngestionSource.objects.exists()


def _row(page: Page, field: str) -> Any:
    """Return the row of the form in which a field stands."""
    return page.locator(f".field-{field}")


def test_secrets_are_in_no_page_and_an_empty_one_keeps_what_is_stored(
    operator: Visitor, admin_user: User
) -> None:
    source = a_source(admin_user)
    page = operator.page
    for path in ("/admin/", SOURCES, _page_of(source), f"{SOURCES}live/?id={source.pk}"):
        operator.go(path)
        assert SECRET not in page.content(), path
    operator.go(f"{_page_of(source)}?tab=settings")
    expect(_row(page, "generic_imap__password")).to_contain_text("Stored: leave empty to keep it.")
    page.fill("[name=name]", "Renamed")
    page.fill("[name=options__excludeFolders]", "Private/*\nTemp")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("“Renamed” is saved.")).to_be_visible()
    source.refresh_from_db()
    assert (source.name, source.secrets["password"]) == ("Renamed", SECRET)
    assert source.options["excludeFolders"] == ["Private/*", "Temp"]
    assert source.status == "active", "Nothing about the credentials changed."

    page.get_by_role("link", name="Settings").click()
    page.fill("[name=generic_imap__password]", "another-secret")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Its credentials are being checked.")).to_be_visible()
    source.refresh_from_db()
    assert source.secrets["password"] == "another-secret"
    assert "another-secret" not in page.content()
    recorded = AuditEvent.objects.filter(action="source.update").latest("id")
    assert recorded.actor == "admin"
    assert "another-secret" not in str(recorded.changes)


def test_a_wrong_password_is_said_in_words_and_corrected_in_the_form(
    operator: Visitor, dovecot: Dovecot
) -> None:
    name, password = dovecot.user()
    page = operator.go(f"{SOURCES}add/?way=any")
    page.fill("[name=name]", "Typo")
    _connect(page, dovecot, name, "not the password")
    page.get_by_role("button", name="Save").click()
    status = page.locator("[data-live=status]")
    expect(status).to_have_text("Error")
    expect(page.locator("[data-live=message]")).to_contain_text("password", ignore_case=True)
    operator.shoot("source-error")
    page.get_by_role("button", name="Verify").click()
    page.wait_for_load_state()
    expect(page.locator(".errornote")).to_contain_text("password", ignore_case=True)
    page.get_by_role("link", name="Edit password").click()
    expect(page.locator("[name=generic_imap__password]")).to_be_focused()
    page.fill("[name=generic_imap__password]", password)
    page.get_by_role("button", name="Save").click()
    page.wait_for_load_state()
    expect(status).to_have_text("Authenticated")


def test_bulk_actions_report_what_was_done_and_what_was_refused(
    operator: Visitor, admin_user: User
) -> None:
    running = a_source(admin_user, "Running")
    paused = a_source(admin_user, "Halted", status="paused", hold=True)
    pending = a_source(admin_user, "<b>New</b>", status="pending_auth", proven_at=None)
    page = operator.go(SOURCES)
    for source in (running, paused, pending):
        page.check(f"input.action-select[value='{source.pk}']")
    operator.shoot("list-selected")
    page.select_option("select[name=action]", "pause_selected")
    page.get_by_role("button", name="Run").click()
    page.wait_for_load_state()
    expect(page.get_by_text("2 done, 1 refused.")).to_be_visible()
    refused = page.locator("#content tr", has_text="Refused")
    expect(refused).to_contain_text("<b>New</b>")
    expect(refused).to_contain_text("still being checked")
    operator.shoot("bulk-report")
    assert set(IngestionSource.objects.values_list("name", "status")) == {
        ("Running", "paused"),
        ("Halted", "paused"),
        ("<b>New</b>", "pending_auth"),
    }


def test_the_buttons_pause_resume_and_retry_call_the_services(
    operator: Visitor, admin_user: User
) -> None:
    source = a_source(admin_user)
    mailbox = a_mailbox(source)
    FailedMessage.objects.create(
        mailbox=mailbox,
        folder=a_folder(mailbox),
        remote_id="1:7",
        code="message_refused",
        reason="<i>refused</i>",
        not_before=timezone.now() + LATER,
    )
    page = operator.go(_page_of(source))
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_text("Paused. Running work stops")).to_be_visible()
    expect(page.get_by_role("button", name="Retry failed")).to_be_disabled()
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_text("Resumed.", exact=True)).to_be_visible()
    page.get_by_role("button", name="Retry failed").click()
    expect(page.get_by_text("1 failed message is tried again now.")).to_be_visible()
    assert FailedMessage.objects.get().not_before <= timezone.now()
    assert Run.objects.filter(source=source, kind="sync").exists()
    actions = set(AuditEvent.objects.values_list("action", flat=True))
    assert {"source.pause", "source.resume", "source.retry_failures"} <= actions


def test_deletion_in_bulk_happens_in_the_background(
    operator: Visitor, admin_user: User, wait_for: Callable[..., Any]
) -> None:
    gone, kept = a_source(admin_user, "Goes"), a_source(admin_user, "Stays")
    mailbox = a_mailbox(gone)
    page = operator.go(SOURCES)
    page.check(f"input.action-select[value='{gone.pk}']")
    page.select_option("select[name=action]", "delete_selected")
    page.get_by_role("button", name="Run").click()
    expect(page.locator("#content")).to_contain_text("0 archived messages, 0 B, 1 mailbox")
    page.get_by_label("Type Goes to confirm").fill("goes")
    page.get_by_role("button", name="Delete this source").click()
    expect(page.get_by_text("That is not its name. Nothing was deleted.")).to_be_visible()
    operator.shoot("delete")
    page.get_by_label("Type Goes to confirm").fill("Goes")
    page.get_by_role("button", name="Delete this source").click()
    expect(page.get_by_text("1 deleted, 0 refused.")).to_be_visible()
    page.get_by_role("link", name="Back to the list").click()
    expect(page.locator("#result_list")).to_contain_text("Stays")
    expect(page.locator("#result_list")).not_to_contain_text("Goes")
    wait_for(lambda: not IngestionSource.objects.filter(pk=gone.pk).exists())
    assert not type(mailbox).objects.filter(pk=mailbox.pk).exists()
    assert IngestionSource.objects.get() == kept
