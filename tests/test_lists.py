"""Lists cost as many queries of a hundred rows as of ten."""

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from bench import listing
from ingestion.models import Folder, IngestionSource
from tests.documents import indexed
from tests.e2e.rows import archived

#: In one window of the newest; how many windows a search takes `bench/finding.py` has.
_SEARCHES = ("/admin/mail/?q=word", "/admin/ingestion/message/?q=word", "/api/v1/emails?q=word")
pytestmark = pytest.mark.django_db


def counts(client: Client, addresses: list[str]) -> dict[str, int]:
    found = {}
    for address in addresses:
        with CaptureQueriesContext(connection) as queries:
            assert client.get(address, follow=True).status_code == 200, address
        # Not those that put off the end of the session, once in a while.
        found[address] = sum(one["sql"].startswith("SELECT") for one in queries)
    return found


def test_lists_cost_as_many_queries_of_a_hundred_rows_as_of_ten(archive_dir: object) -> None:
    admin = User.objects.create_superuser("admin")
    client = Client()
    client.force_login(admin)

    def grown_to(number: int) -> list[str]:
        addresses = list(listing.crowd(number))
        folder = Folder.objects.latest("pk")
        for message in archived(folder, *(b"Subject: %d\r\n\r\n" % n for n in range(number))):
            indexed(message, "word", thread=1)
        return [*addresses, *_SEARCHES]

    addresses = grown_to(10)
    assert len(addresses) > 40
    counts(client, addresses)  # what a process asks for once
    of_ten = counts(client, addresses)
    grown_to(100)
    assert IngestionSource.objects.count() == 100
    assert len(client.get(_SEARCHES[-1]).json()["results"]) == 50
    assert counts(client, addresses) == of_ten
