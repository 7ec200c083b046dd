"""Rows of lists: their links, which lead back to what was filtered, and their words."""

import re
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import resolve

from ingestion.models import IngestionSource

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
