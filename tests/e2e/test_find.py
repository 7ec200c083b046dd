"""The search of everything in a real browser: its keys, and whose key "/" is."""

import re

from django.contrib.auth.models import User
from playwright.sync_api import expect

from tests.e2e.conftest import Visitor
from tests.e2e.rows import a_folder, a_mailbox, a_source, archived


def test_a_slash_opens_it_anywhere_but_where_it_is_the_mails_own(
    operator: Visitor, admin_user: User
) -> None:
    source = a_source(admin_user, "Sales")
    mailbox = a_mailbox(source, "ada@example.com")
    archived(a_folder(mailbox), b"Subject: hello\r\n\r\nx")
    page = operator.go("/admin/ingestion/mailbox/")
    dialog = page.get_by_role("dialog", name="Search")
    options = dialog.get_by_role("option")
    page.keyboard.press("/")
    expect(dialog).to_be_visible()
    expect(dialog.get_by_role("combobox")).to_be_focused()
    expect(options.first).to_contain_text("Dashboard")
    page.keyboard.type("ada")
    expect(options.first).to_contain_text("ada@example.com")
    expect(options.first).to_have_attribute("aria-selected", "true")
    page.keyboard.press("ArrowDown")
    expect(options.last).to_have_attribute("aria-selected", "true")
    expect(options.last).to_contain_text("Search mail for “ada”")
    operator.shoot("find")
    operator.shoot("find-phone", width=400)
    page.keyboard.press("ArrowDown")  # from the end to the beginning
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/mailbox/{mailbox.pk}/change/")

    operator.go("/admin/")
    page.keyboard.press("Control+k")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.get_by_role("link", name="Search").click()
    page.keyboard.type("hello")
    expect(options.last).to_contain_text("“hello”")
    options.last.click()
    page.wait_for_url(re.compile(r"/admin/mail/\?q=hello"))

    page.keyboard.press("/")
    expect(page.locator("[data-pane=search] [name=q]")).to_be_focused()
    expect(dialog).to_be_hidden()
    page.keyboard.type("/")
    expect(page.locator("[data-pane=search] [name=q]")).to_have_value("/")
    page.keyboard.press("Control+k")
    expect(dialog).to_be_visible()
