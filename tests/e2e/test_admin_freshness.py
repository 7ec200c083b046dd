"""What an operator sees of sources that are up to date, and of those that are not."""

import datetime as dt
import re
from typing import TYPE_CHECKING

import httpx
import pytest
from django.contrib.auth.models import User
from django.utils import timezone
from playwright.sync_api import expect

from ingestion.models import FailedMessage, Folder, IngestionSource, Mailbox, Run
from tests.e2e.conftest import Visitor
from tests.e2e.rows import LATER, a_folder, a_mailbox, a_source

if TYPE_CHECKING:
    from tests.servers.stack import Service

REFUSED = (
    "Can't connect to imap.example.com:993 (Connection refused). Check host, port and firewall."
)
PHONE = 400


def ago(**span: float) -> dt.datetime:
    return timezone.now() - dt.timedelta(**span)


def a_run(source: IngestionSource, minutes: int, message: str, status: str = "completed") -> Run:
    return Run.objects.create(
        source=source, kind="sync", status=status, actor="schedule", message=message,
        started_at=ago(minutes=minutes), finished_at=ago(minutes=minutes), discovered_at=ago(minutes=minutes),
    )  # fmt: skip


@pytest.fixture
def sources(admin_user: User) -> dict[str, IngestionSource]:
    """Bob is well; Alice's server is gone for 27 minutes; Tom's tenant lacks this and that."""
    found = {name: a_source(admin_user, name) for name in ("Alice", "Bob", "Tom & Sons")}
    for source in found.values():
        IngestionSource.objects.filter(pk=source.pk).update(
            last_sync_finished_at=ago(seconds=40), last_sync_status_message="0 archived."
        )
    alice, bob, tom = found.values()
    a_mailbox(
        alice, "alice@example.com", last_synced_at=ago(minutes=27), last_error=REFUSED,
        last_error_code="unavailable", message_count=45, attempts=6,
    )  # fmt: skip
    a_mailbox(bob, "bob@example.com", last_synced_at=ago(seconds=40), message_count=400)
    one = a_mailbox(tom, "one@example.com", last_synced_at=ago(minutes=2), message_count=12_345)
    a_mailbox(
        tom, "old@example.com", state="unavailable", last_synced_at=ago(days=12),
        state_reason="It has no licence for Exchange.", last_error_code="mailbox_unavailable",
    )  # fmt: skip
    a_folder(
        one, "Shared/Accounting", failing_since=ago(hours=5), attempts=7, last_error_code="noperm",
        last_error="The server says: Permission denied.", not_before=timezone.now() + LATER,
    )  # fmt: skip
    FailedMessage.objects.create(
        mailbox=one, folder=a_folder(one), remote_id="1:7", code="message_refused",
        reason="The server says: internal error.", not_before=timezone.now() + LATER,
    )  # fmt: skip
    for minutes in (1, 6, 11):
        a_run(bob, minutes, "0 archived.")
    a_run(
        alice,
        2,
        f"0 archived. 1 mailbox could not be reached: alice@example.com. {REFUSED}",
        "incomplete",
    )
    a_run(
        tom,
        3,
        "1,999 archived, 1 failed; 1 folder could not be read: Shared/Accounting (NOPERM).",
        "incomplete",
    )
    return found


def test_the_first_page_says_what_is_not_up_to_date_and_takes_it_back(
    operator: Visitor, sources: dict[str, IngestionSource]
) -> None:
    page = operator.go("/admin/")
    status = page.get_by_role("status").first
    expect(status).to_contain_text(
        re.compile(r"Alice has not been reached since .* \(27 min ago\): Can't connect")
    )
    attention = page.locator("[data-refresh=attention]")
    expect(attention).to_contain_text("Active, late")
    expect(attention).to_contain_text("Shared/Accounting (one@example.com): The server says")
    expect(attention).to_contain_text("old@example.com: It has no licence for Exchange")
    expect(attention).not_to_contain_text("Bob")
    expect(page.locator("[data-refresh=runs] [data-tone=warning]").first).to_have_text("Incomplete")
    operator.shoot("late-dashboard")
    operator.shoot("late-dashboard-phone", width=PHONE)
    Mailbox.objects.filter(address="alice@example.com").update(
        last_synced_at=timezone.now(), last_error="", last_error_code="", attempts=0
    )
    page = operator.go("/admin/")
    expect(page.get_by_role("status").first).to_contain_text(
        re.compile(r"All 3 sources are archived up to .* \(2 min ago\)")
    )
    expect(page.locator("[data-refresh=attention]")).not_to_contain_text("Alice")
    Mailbox.objects.filter(address="old@example.com").update(state="gone")
    Folder.objects.update(failing_since=None)
    FailedMessage.objects.all().delete()
    page = operator.go("/admin/")
    expect(page.locator("[data-refresh=attention]")).to_contain_text("Nothing.")
    operator.shoot("fresh-dashboard")


def test_lists_and_pages_tell_the_last_success_beside_the_last_try(
    operator: Visitor, sources: dict[str, IngestionSource]
) -> None:
    page = operator.go("/admin/ingestion/ingestionsource/")
    row = page.locator("#result_list tr", has_text="Alice")
    expect(row).to_contain_text("Active, late")
    expect(row).to_contain_text("27 min ago")
    expect(row).to_contain_text("tried 4")
    expect(row).to_contain_text("Connection refused")
    operator.shoot("late-sources")
    page = operator.go("/admin/ingestion/ingestionsource/?show=attention")
    expect(page.locator("#result_list")).not_to_contain_text("Bob")
    page = operator.go(f"/admin/ingestion/ingestionsource/{sources['Alice'].pk}/change/")
    state = page.get_by_label("State", exact=True)
    expect(state).to_contain_text("Not up to date: Can't connect")
    operator.shoot("late-source")
    operator.shoot("late-source-phone", width=PHONE)
    page = operator.go(f"/admin/ingestion/ingestionsource/{sources['Tom & Sons'].pk}/change/")
    expect(page.get_by_text("Folders that could not be read")).to_be_visible()
    expect(page.locator("[data-refresh=left-out]")).to_contain_text("Permission denied")
    operator.shoot("incomplete-source")
    page = operator.go("/admin/ingestion/folder/?trouble=failing")
    expect(page.locator("#result_list tbody tr")).to_have_count(1)
    operator.shoot("failing-folders")


_SOURCE = "/admin/ingestion/ingestionsource/{}/change/"


@pytest.mark.parametrize(
    "place",
    ["/admin/", *(f"{_SOURCE}?tab={tab}" for tab in ("", "settings", "messages", "history"))],
)
def test_nothing_scrolls_sideways_on_a_phone(
    operator: Visitor, sources: dict[str, IngestionSource], place: str
) -> None:
    operator.page.set_viewport_size({"width": PHONE, "height": 900})
    page = operator.go(place.format(sources["Alice"].pk))
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE
    narrow = page.evaluate(
        "[...document.querySelectorAll('.ing-table td')].filter(td => td.textContent.trim().length > 20"
        " && td.getBoundingClientRect().width < 80).map(td => td.textContent.trim())"
    )
    assert narrow == []


def test_programs_are_told_the_same(service: "Service", api: httpx.Client, owner: User) -> None:
    source = a_source(owner, "Alice")
    mailbox = a_mailbox(
        source, last_synced_at=ago(minutes=27), last_error=REFUSED, last_error_code="unavailable"
    )
    a_folder(
        mailbox, "Shared", failing_since=ago(hours=5), last_error_code="noperm",
        last_error="Permission denied.", not_before=timezone.now() + LATER,
    )  # fmt: skip
    told = api.get(f"/ingestion/{source.pk}").json()
    assert (
        told["archivedUpTo"]
        == api.get(f"/ingestion/{source.pk}/mailboxes").json()[0]["lastSyncedAt"]
    )
    assert [(one["folder"], one["code"]) for one in told["incomplete"]] == [
        (None, "unavailable"),
        ("Shared", "noperm"),
    ]
    assert [one["code"] for one in told["attention"]] == ["late", "folders_failing"]
    stats = api.get(f"/ingestion/{source.pk}/stats").json()
    assert stats["byFolder"][0]["lastError"] == "Permission denied."
    (listed,) = api.get("/ingestion").json()
    assert listed["incomplete"] == told["incomplete"]
    Mailbox.objects.update(last_synced_at=timezone.now(), last_error="", last_error_code="")
    Folder.objects.update(failing_since=None)
    told = api.get(f"/ingestion/{source.pk}").json()
    assert (told["incomplete"], told["attention"]) == ([], [])
