"""A database or Redis that can't be reached: said in words, as what it is and no bug."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def client(admin_user: User) -> Client:
    client = Client(raise_request_exception=False)
    client.force_login(admin_user)
    return client


@pytest.fixture
def away() -> Iterator[Callable[[], None]]:
    """`away()` has the next connection go to where no PostgreSQL is."""
    host = connection.settings_dict["HOST"]

    def leave() -> None:
        connection.close()
        connection.settings_dict["HOST"] = "/nowhere"

    yield leave
    connection.close()
    connection.settings_dict["HOST"] = host


def test_pages_and_the_api_say_that_the_database_is_away(
    client: Client, make_key: Callable[..., str], admin_user: User, away: Callable[[], None]
) -> None:
    key = {"Authorization": f"Bearer {make_key(admin_user)}"}
    away()
    for path in ("/admin/", "/account/", "/sources/00000000-0000-0000-0000-000000000000/"):
        page: Any = client.get(path)
        assert (page.status_code, "database can&#x27;t be reached" in page.content.decode()) == (
            *(503, True),
        )
        assert "/nowhere" not in page.content.decode()
        assert page["Retry-After"] == "60"
    answer: Any = Client(raise_request_exception=False).get("/api/v1/ingestion", headers=key)
    assert answer.status_code == 503
    assert answer.json()["errors"][0]["code"] == "service_unavailable"
    in_the_session: Any = client.get("/api/v1/ingestion")
    for one in (answer, in_the_session):
        assert (one.status_code, one["Retry-After"]) == (503, "60")


def test_the_document_tells_of_it_and_of_what_the_state_forbids(client: Client) -> None:
    answer = client.get("/api/schema", headers={"Accept": "application/vnd.oai.openapi+json"})
    operations = {
        f"{method.upper()} {path}": operation["responses"]
        for path, item in answer.json()["paths"].items()
        for method, operation in item.items()
        if "responses" in operation
    }
    assert len(operations) > 40
    for name, responses in operations.items():
        assert responses["503"]["headers"]["Retry-After"]["required"], name
        assert "409" in responses or not name.startswith(("POST ", "PUT ", "DELETE ")), name
    assert "409" in operations["GET /api/v1/oauth/callback"]


def test_probes_answer_whoever_is_signed_in(client: Client, away: Callable[[], None]) -> None:
    away()
    assert client.get("/healthz").status_code == 200
    ready: Any = client.get("/readyz")
    assert (ready.status_code, ready.content) == (503, b"database\n")


@pytest.mark.parametrize(
    ("statement", "status", "said"),
    [
        ("SET statement_timeout = 1; SELECT pg_sleep(5)", 503, "This takes too long"),
        ("SELECT 1 / 0", 500, "Something went wrong"),
    ],
)
def test_what_a_database_that_is_there_stops_is_told_and_what_it_refuses_stays_a_bug(
    client: Client, monkeypatch: pytest.MonkeyPatch, statement: str, status: int, said: str
) -> None:
    def fail(*_: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(statement)

    monkeypatch.setattr("ingestion.signin.own.second_step.has", fail)
    page: Any = client.get("/account/")
    assert (page.status_code, said in page.content.decode()) == (status, True)
    assert page.get("Retry-After") == ("300" if status == 503 else None)
    connection.close()
