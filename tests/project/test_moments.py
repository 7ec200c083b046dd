"""Moments come out of the database as they went in, by a loader of our own."""

import datetime as dt
from collections.abc import Sequence

import pytest
from django.db import DataError, connection
from psycopg.pq import Format

from ingestion.moments import UtcLoader

pytestmark = pytest.mark.django_db

TIMESTAMPTZ_OID = 1184


def read(text: str) -> dt.datetime:
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s::timestamptz", [text])
        row: Sequence[dt.datetime] = cursor.fetchone()
        return row[0]


def test_moments_are_read_by_the_loader_of_our_own() -> None:
    """Django puts its own in the place of one that is of another time zone."""
    with connection.cursor() as cursor:
        loader = cursor.adapters.get_loader(TIMESTAMPTZ_OID, Format.TEXT)
    assert loader is UtcLoader


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-29 05:36:08.473261+00",
        "2026-11-29 05:36:08.4+00",
        "2026-11-29 05:36:08+00",
        "1883-11-18 12:03:58.000001+00",
        "0001-01-01 00:00:00+00",
        "9999-12-31 23:59:59.999999+00",
    ],
)
def test_a_moment_is_read_to_the_microsecond_and_in_utc(text: str) -> None:
    moment = read(text)
    assert moment == dt.datetime.fromisoformat(text)
    assert moment.tzinfo is dt.UTC


def test_a_moment_of_another_time_zone_is_the_same_moment() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL TIME ZONE 'Asia/Kathmandu'")
    assert read("2026-11-29 05:36:08.4+00") == dt.datetime(
        2026, 11, 29, 5, 36, 8, 400_000, tzinfo=dt.UTC
    )


@pytest.mark.parametrize("text", ["infinity", "44-03-15 12:00:00+00 BC", "10000-01-01 00:00:00+00"])
def test_what_no_datetime_can_be_is_an_error_and_no_other_moment(text: str) -> None:
    with pytest.raises(DataError):
        read(text)
