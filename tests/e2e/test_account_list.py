"""Many accounts from a file, in the admin: looked at, tested, added, and reported by line."""

import csv
import io
from pathlib import Path

from django.contrib.auth.models import User
from playwright.sync_api import expect

from ingestion.models import AuditEvent, IngestionSource
from tests.e2e.conftest import Visitor
from tests.servers.dovecot import Dovecot

HEAD = "name;host;port;secure;username;password"
FORMULA = '=HYPERLINK("http://evil.example")'


def test_a_file_is_looked_at_tested_added_and_reported(
    operator: Visitor, dovecot: Dovecot, tmp_path: Path, admin_user: User
) -> None:
    good, bad = dovecot.account(b"Subject: one\r\n\r\n\r\n"), dovecot.account()
    quoted = FORMULA.replace('"', '""')
    lines = [
        HEAD,
        f'"{quoted}";{good.host};{good.port};no;{good.name};{good.password}',
        f"<img src=x onerror=alert(1)>;{bad.host};{bad.port};no;{bad.name};secret-of-bad",
        "Faulty;;;;faulty;secret-of-faulty",
    ]
    file = tmp_path / "accounts.csv"
    file.write_text("\ufeff" + "\r\n".join(lines))
    page = operator.page
    operator.go("/admin/ingestion/ingestionsource/add/")
    page.get_by_role("link", name="Many accounts").click()
    page.locator("[data-part=file]").set_input_files(file)
    expect(page.get_by_text("3 accounts in “accounts.csv”, 1 faulty")).to_be_visible()
    expect(page.get_by_text("host: This field is required.")).to_be_visible()
    assert not IngestionSource.objects.exists()
    operator.shoot("account-list", width=1280)
    page.get_by_role("button", name="Test 2 accounts").click()
    expect(page.get_by_text("1 account passed, 1 failed.")).to_be_visible()
    operator.shoot("account-list-tested", width=1280)
    operator.shoot("account-list-phone", width=400)
    assert not IngestionSource.objects.exists()
    page.get_by_label("Import each as soon as").check()
    page.get_by_role("button", name="Add 1 that passed").click()
    expect(page.get_by_text("1 account added of 3.")).to_be_visible()
    source = IngestionSource.objects.get()
    assert (source.name, source.owner, source.auto_import) == (FORMULA, admin_user, True)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download a report").click()
    report = Path(download.value.path()).read_text(encoding="utf-8-sig")
    told = list(csv.reader(io.StringIO(report)))
    assert [line[3] for line in told] == ["result", "Added", "Failed", "Faulty"]
    assert told[1][1] == f"'{FORMULA}"
    page.locator("[data-part=file]").set_input_files(file)  # mended, say
    expect(page.get_by_text("So it is left out, unless you add all.")).to_be_visible()
    page.get_by_role("button", name="Test 2 accounts").click()
    expect(page.get_by_text("1 account passed, 1 failed.")).to_be_visible()
    expect(page.get_by_role("button", name="Add all 2")).to_be_visible()
    expect(page.get_by_role("button", name="that passed")).to_have_count(0)
    everything = page.content() + report + str(list(AuditEvent.objects.values()))
    assert not any(secret in everything for secret in (good.password, "secret-of-"))


def test_files_that_are_none_are_refused_by_the_page(operator: Visitor, tmp_path: Path) -> None:
    page = operator.page
    operator.go("/admin/ingestion/ingestionsource/add-many/")
    with page.expect_download() as download:
        page.get_by_role("link", name="A file to begin with").click()
    chooser = page.locator("[data-part=file]")
    chooser.set_input_files(download.value.path())
    expect(page.get_by_text("2 accounts in")).to_be_visible()
    for content, said in (
        (b"x" * 10_000_000, "is larger than 1 MB"),
        (b"name\xff", "It is not in UTF-8"),
        (b"name,hots\nA,h\n", "Unknown columns in its first line: “hots”"),
    ):
        file = tmp_path / "wrong.csv"
        file.write_bytes(content)
        chooser.set_input_files(file)
        expect(page.get_by_text(said)).to_be_visible()
        expect(page.get_by_role("button", name="Test")).to_have_count(0)
    chooser.set_input_files(download.value.path())
    expect(page.get_by_text("2 accounts in")).to_be_visible()
    page.context.clear_cookies()
    page.get_by_role("button", name="Test").click()
    expect(page.get_by_text("No answer: the service answered 403. Try it again.")).to_be_visible()
    assert operator.complaints.pop().startswith("403 for POST")
