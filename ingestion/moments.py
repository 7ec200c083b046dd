"""Moments as PostgreSQL writes them, read by the interpreter itself: a list of a thousand rows has
four thousand of them, and Django's loader takes 4 us of each."""

import datetime as dt
from typing import Any

from django.db.backends.signals import connection_created
from django.dispatch import receiver
from psycopg.types.datetime import TimestamptzLoader


class UtcLoader(TimestamptzLoader):
    """Reads "2026-11-29 05:36:08.47+00". What is no such moment, such as one BC, is left to
    psycopg's, with its errors."""

    timezone = dt.UTC  # Django puts its own in place of a loader of another

    def load(self, data: Any) -> dt.datetime:
        try:
            return dt.datetime.fromisoformat(str(data, "ascii"))
        except ValueError:
            return super().load(data)


@receiver(connection_created)
def _load_moments(connection: Any, **_: Any) -> None:
    connection.connection.adapters.register_loader("timestamptz", UtcLoader)
