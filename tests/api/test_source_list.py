"""The list of all sources, however many there are."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import DatabaseError, connection
from django.test import Client

from ingestion.models import FEW_SOURCES, IngestionSource, Mailbox

pytestmark = pytest.mark.django_db(transaction=True)
ALL = "/api/v1/ingestion"
NUMBER = FEW_SOURCES + 30


@pytest.fixture
def sources(admin_user: User) -> list[IngestionSource]:
    """So many that they come in two parts, some of which need somebody."""
    made = IngestionSource.objects.bulk_create(
        IngestionSource(
            owner=admin_user,
            name=f"Source {n:03}",
            provider="generic_imap",
            config={"host": "imap.example.org", "username": f"person{n}"},
            status="error" if n % 7 == 0 else "active",
            status_message="There is no such host." if n % 7 == 0 else "",
        )
        for n in range(NUMBER)
    )
    Mailbox.objects.bulk_create(
        Mailbox(
            source=source,
            remote_id="a",
            address="a@example.org",
            state="unavailable" if n % 5 == 0 else "active",
            state_reason="The mailbox is suspended." if n % 5 == 0 else "",
        )
        for n, source in enumerate(made)
    )
    return made


def parts(client: Client, address: str = ALL) -> Iterator[bytes]:
    answer: Any = client.get(address)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.headers["Cache-Control"] == "private, no-store"
    assert answer.streaming
    return iter(answer.streaming_content)


def test_many_come_in_parts_that_are_one_array_of_what_the_pages_have(
    admin_client: Client, sources: list[IngestionSource]
) -> None:
    found = json.loads(b"".join(parts(admin_client)))
    assert [one["id"] for one in found] == [str(source.pk) for source in sources]
    assert sum(bool(one["incomplete"]) for one in found) == NUMBER // 5
    pages: list[Any] = []
    for page in (1, 2):
        pages += admin_client.get(f"{ALL}?pageSize={FEW_SOURCES}&page={page}").json()
    assert found == pages


def test_a_source_that_is_deleted_or_turns_into_another_meanwhile_is_left_out(
    admin_client: Client, sources: list[IngestionSource]
) -> None:
    broken = [source for source in sources if source.status == "error"]
    assert len(broken) <= FEW_SOURCES
    assert len(admin_client.get(f"{ALL}?status=error").json()) == len(broken)  # few: all at once
    coming = parts(admin_client, f"{ALL}?search=source")
    first = next(coming)
    IngestionSource.objects.filter(pk=sources[-1].pk).delete()
    IngestionSource.objects.filter(pk=sources[-2].pk).update(name="Another")
    found = json.loads(first + b"".join(coming))
    assert [one["name"] for one in found] == [source.name for source in sources[:-2]]

    coming = parts(admin_client)
    first = next(coming)
    IngestionSource.objects.filter(name__gte=sources[FEW_SOURCES - 1].name).delete()
    assert len(json.loads(first + b"".join(coming))) == FEW_SOURCES  # the last part is empty


def test_what_was_cut_off_is_not_taken_for_all(
    admin_client: Client, sources: list[IngestionSource], end_session: Callable[[], None]
) -> None:
    coming = parts(admin_client)
    begun = next(coming)
    end_session()
    with pytest.raises(DatabaseError):
        begun += next(coming)
    assert json.loads(begun + b"]")  # which is all that it lacks
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(begun)


@pytest.fixture
def end_session() -> Iterator[Callable[[], None]]:
    """`end_session()` has PostgreSQL end the session that the answer is read by."""

    def end() -> None:
        other = connection.copy()
        try:
            with connection.cursor() as cursor, other.cursor() as by:
                cursor.execute("SELECT pg_backend_pid()")
                by.execute("SELECT pg_terminate_backend(%s, 5000)", cursor.fetchone())
        finally:
            other.close()

    yield end
    connection.close()
