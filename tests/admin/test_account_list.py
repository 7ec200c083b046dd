"""What the page of many accounts asks the service for, and who may ask."""

import json
from typing import Any

import pytest
from django.test import Client

from ingestion.models import IngestionSource
from tests.servers import people

LIST = "/admin/ingestion/ingestionsource/add-many/"
FILE = "name,host,username,password\nA,h.example,a,secret-of-a\nB,,b,secret-of-b\n"


@pytest.fixture
def client(transactional_db: None) -> Client:
    client = Client()
    client.force_login(people.superuser("root"))
    return client


def asked(client: Client, what: str, **form: str) -> list[dict[str, Any]]:
    answer: Any = client.post(f"{LIST}{what}/", {"text": FILE} | form)
    assert answer.status_code == 200
    assert "no-store" in answer["Cache-Control"]
    content = b"".join(answer.streaming_content)
    assert b"secret-of" not in content
    return [json.loads(line) for line in content.splitlines()]


def test_only_chosen_lines_without_faults_are_stored(client: Client) -> None:
    assert [bool(row["faults"]) for row in asked(client, "check")] == [False, True]
    assert asked(client, "save", lines="3,4,x") == []
    [saved] = asked(client, "save", lines="2,3", auto_import="on")
    source = IngestionSource.objects.get()
    assert (saved["line"], saved["ok"], source.auto_import) == (2, True, True)
    [wrong] = asked(client, "check", text="nonsense")
    assert "Unknown columns" in wrong["error"]


def test_it_is_for_those_who_may_add_sources(client: Client) -> None:
    assert client.get(f"{LIST}check/").status_code == 405
    assert client.post(f"{LIST}check/", {"text": "x" * 10_000_000}).status_code in (400, 413)
    client.force_login(people.staff("viewer", "view_ingestionsource"))
    for path in ("", "accounts.csv"):
        assert client.get(LIST + path).status_code == 403
    assert client.post(f"{LIST}save/", {"text": FILE, "lines": "2"}).status_code == 403
