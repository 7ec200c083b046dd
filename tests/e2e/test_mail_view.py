"""The mail view in a real browser: by keyboard, narrow, with a stranger's worst mail, with a search kept."""

import datetime as dt
import re

from django.contrib.auth.models import User
from django.db import transaction
from django.utils import timezone
from playwright.sync_api import expect

from ingestion.models import INDEX_VERSION, Folder, Pack, SavedSearch
from tests.documents import a_file, indexed
from tests.e2e.conftest import Visitor
from tests.e2e.rows import a_folder, a_mailbox, a_source, archived

_HOSTILE = "<img src=x onerror=alert(1)>" + "\u202e" + "x" * 10_000


@transaction.atomic  # whole and indexed before the service's own indexing looks
def _an_archive(owner: User) -> Folder:
    folder = a_folder(a_mailbox(a_source(owner)), "INBOX", role="inbox")
    mails = [
        ("Ada Nowak <ada@example.com>", "The first invoice", "Please find the invoice attached."),
        (f"{_HOSTILE} <x@example.com>", _HOSTILE, f"{_HOSTILE} {{{{ 7*7 }}}}"),
        ("שלום <shalom@example.com>", "שלום עולם (1)", "טקסט בעברית"),
        *((f"Person {n} <p{n}@example.com>", f"Subject {n}", f"Words {n}") for n in range(57)),
    ]
    bodies = [
        f"From: {sender}\r\nSubject: {subject}\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n{text}".encode()
        for sender, subject, text in mails
    ]
    newest = timezone.now()
    for number, (message, (_, _, text)) in enumerate(
        zip(archived(folder, *bodies), mails, strict=True)
    ):
        indexed(
            message,
            text,
            date=newest - dt.timedelta(hours=number),
            attachments=(a_file("invoice.pdf"),) if number == 0 else (),
        )
    Pack.objects.update(index_version=INDEX_VERSION)
    return folder


def test_mail_is_read_by_keyboard_at_any_width(operator: Visitor, admin_user: User) -> None:
    _an_archive(admin_user)
    page = operator.go("/admin/")
    page.locator("#nav-sidebar a[href='/admin/mail/']").click()
    rows, message = page.locator(".mail-row"), page.locator(".mail-message")
    expect(rows).to_have_count(50)
    expect(page.get_by_text("60 messages", exact=True)).to_be_visible()
    operator.shoot("mail")

    page.keyboard.press("j")  # the first row is where one is
    page.keyboard.press("j")
    expect(rows.nth(1)).to_be_focused()
    page.keyboard.press("k")
    page.keyboard.press("o")
    expect(message).to_contain_text("Please find the invoice attached.")
    expect(message).to_be_focused()
    expect(page).to_have_title("The first invoice | Mail")
    expect(rows.nth(0)).to_have_attribute("aria-current", "true")
    first = page.url
    page.keyboard.press("j")  # what a stranger sent stays text, and in its place
    expect(message).to_contain_text("<img src=x onerror=alert(1)>")
    expect(message).to_contain_text("{{ 7*7 }}")
    operator.shoot("mail-hostile")
    assert page.evaluate(
        "[...document.querySelectorAll('.mail > *')].every(e => e.scrollWidth <= e.clientWidth)"
    )
    page.go_back()
    expect(message).to_contain_text("Please find the invoice attached.")
    page.reload()
    assert page.url == first
    expect(message).to_contain_text("Please find the invoice attached.")
    expect(rows).to_have_count(50)
    page.keyboard.press("u")
    expect(rows.nth(0)).to_be_focused()
    page.keyboard.press("k")
    expect(page.get_by_role("status")).to_have_text("This is the first message.")

    rows.nth(49).focus()  # over the end of a page, and back
    page.keyboard.press("j")
    expect(rows).to_have_count(10)
    expect(rows.nth(0)).to_be_focused()

    page.keyboard.press("?")
    expect(page.get_by_role("heading", name="Keyboard")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("invoice")
    page.keyboard.press("Enter")
    expect(rows).to_have_count(1)
    page.keyboard.press("s")
    page.keyboard.type("Bills")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Saved as “Bills”.")).to_be_visible()
    assert SavedSearch.objects.get().query == "invoice"
    page.get_by_role("link", name="All mail").click()
    expect(rows).to_have_count(50)
    page.get_by_role("link", name="Bills").click()
    expect(rows).to_have_count(1)
    expect(page.get_by_label("Search mail")).to_have_value("invoice")
    page.get_by_role("button", name="Rename “Bills”").click()
    page.keyboard.press("Control+a")
    page.keyboard.type("Invoices")
    page.keyboard.press("Enter")
    expect(page.get_by_text("It is called “Invoices” now.")).to_be_visible()
    page.get_by_role("button", name="Remove “Invoices”").click()
    expect(page.get_by_text("“Invoices” is removed.")).to_be_visible()
    assert not SavedSearch.objects.exists()


def test_a_request_that_another_overtakes_leaves_no_pane_busy(
    operator: Visitor, admin_user: User
) -> None:
    folder = _an_archive(admin_user)
    page = operator.go(f"/admin/mail/?mailbox={folder.mailbox_id}")
    page.route("**/*folder=*", lambda _: None)  # no answer
    page.locator("[data-pane=places]").get_by_role("link", name=re.compile("INBOX")).click()
    expect(page.locator("[data-pane=list]")).to_have_attribute("aria-busy", "true")
    page.locator(".mail-row").first.click()
    expect(page.locator(".mail-message")).to_contain_text("Please find the invoice attached.")
    expect(page.locator("[data-pane][aria-busy]")).to_have_count(0)


def test_a_phone_shows_one_pane_at_a_time(operator: Visitor, admin_user: User) -> None:
    folder = _an_archive(admin_user)
    page = operator.page
    page.set_viewport_size({"width": 400, "height": 800})
    operator.go(f"/admin/mail/?mailbox={folder.mailbox_id}")
    places, listed, message = (
        page.locator(f"[data-pane={name}]") for name in ("places", "list", "message")
    )
    expect(listed).to_be_visible()
    expect(places).to_be_hidden()
    expect(message).to_be_hidden()
    listed.get_by_role("link", name="ada@example.com").click()
    expect(places).to_be_visible()
    expect(listed).to_be_hidden()
    places.get_by_role("link", name=re.compile("INBOX")).click()
    expect(listed).to_be_visible()
    page.locator(".mail-row").nth(1).click()
    expect(message).to_be_visible()
    expect(listed).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    operator.shoot("mail-phone", width=400)
    page.set_viewport_size({"width": 400, "height": 800})
    message.get_by_role("link", name="List").click()
    expect(listed).to_be_visible()
    expect(page.locator(".mail-row").nth(1)).to_be_focused()


def test_the_mail_view_works_without_its_script(operator: Visitor, admin_user: User) -> None:
    _an_archive(admin_user)
    operator.page.route("**/mail.js*", lambda route: route.abort())
    page = operator.go("/admin/mail/")
    page.locator(".mail-row").first.click()
    page.wait_for_url(re.compile("/admin/mail/[0-9a-f-]{36}/"))
    expect(page.locator(".mail-message")).to_contain_text("Please find the invoice attached.")
    page.get_by_label("Search mail").fill("Subject")
    page.keyboard.press("Enter")
    page.wait_for_url("**/admin/mail/?q=Subject")
    expect(page.locator(".mail-row").first).to_contain_text("Subject 0")
