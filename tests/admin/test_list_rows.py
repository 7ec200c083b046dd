"""Rows of lists: their links, which lead back to what was filtered, and their words."""

import datetime as dt
import re
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import resolve
from django.utils import timezone

from ingestion.admin import live
from ingestion.models import FailedMessage, IngestionSource
from tests.e2e.rows import a_folder, a_mailbox, a_source

pytestmark = pytest.mark.django_db


def test_a_row_leads_to_its_page_and_from_there_back_to_the_filtered_list(
    admin_client: Client, admin_user: User
) -> None:
    hostile = "<script>alert(1)</script>"
    source = IngestionSource.objects.create(
        owner=admin_user, name=hostile, provider="generic_imap", status="paused"
    )
    address = "/admin/ingestion/ingestionsource/"
    for query in ("", "?show=paused&q=alert"):
        page = admin_client.get(address + query).content.decode()
        assert hostile not in page
        assert "&lt;script&gt;alert(1)" in page
        [link] = re.findall(rf'href="({address}{source.pk}/change/[^"]*)"', page)
        kept = parse_qs(urlsplit(link).query).get("_changelist_filters", [""])
        assert unquote(kept[0]) == query.removeprefix("?")


def test_a_row_with_another_kind_of_id_leads_to_its_page(
    admin_client: Client, admin_user: User
) -> None:
    page = admin_client.get("/admin/auth/user/").content.decode()
    [link] = re.findall(r'href="(/admin/auth/user/[^"]+/change/)"', page)
    assert resolve(link).kwargs == {"object_id": str(admin_user.pk)}


def test_failures_of_sources_are_counted_without_reading_those_of_others(admin_user: User) -> None:
    sources = [a_source(admin_user, f"Source {number}") for number in range(10)]
    mailboxes = [a_mailbox(source, str(n)) for source in sources for n in range(10)]
    for mailbox, failures in ((mailboxes[0], 5_000), (mailboxes[1], 7), (mailboxes[10], 3)):
        folder = a_folder(mailbox)
        FailedMessage.objects.bulk_create(
            FailedMessage(
                mailbox=mailbox, folder=folder, remote_id=str(n), not_before=timezone.now()
            )
            for n in range(failures)
        )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    with CaptureQueriesContext(connection) as queries:
        found = live.read(IngestionSource.objects.filter(pk__in=[one.pk for one in sources]))
    totals = {source.name: source.failure_total for source in found}
    assert sorted(totals.values()) == [0] * 8 + [3, live.FAILURES_CAP]
    assert totals["Source 1"] == 3
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN ANALYZE {queries[0]['sql']}")
        plan = "\n".join(line for (line,) in cursor)
    assert "ingestion_failedmessage" in plan
    assert "Seq Scan on ingestion_failedmessage" not in plan, plan


def test_sources_are_sorted_by_up_to_when_they_are_archived(
    admin_client: Client, admin_user: User
) -> None:
    now = timezone.now()
    for name, hours in (("Yesterday", 24), ("Now", 0), ("Never", None)):
        source = a_source(admin_user, name)
        synced = None if hours is None else now - dt.timedelta(hours=hours)
        a_mailbox(source, last_synced_at=synced)
        a_mailbox(source, "bob@example.com", last_synced_at=now)

    def names(query: str) -> list[str]:
        page = admin_client.get(f"/admin/ingestion/ingestionsource/?{query}")
        return [source.name for source in page.context["cl"].result_list]

    assert names("o=6") == ["Yesterday", "Now", "Never"]
    assert names("o=-6") == ["Never", "Now", "Yesterday"]
    assert names("o=6&show=attention") == ["Yesterday"]
