"""Columns that Django has no field for."""

from typing import Any

from django.db import models


class Xid8Field(models.Field):  # type: ignore[type-arg] # Django's takes none
    """The id of a transaction: 64 bits, which never wrap round (PostgreSQL's manual, 8.19)."""

    def db_type(self, connection: Any) -> str:  # noqa: ARG002 - Django's
        return "xid8"

    def from_db_value(self, value: Any, *_: Any) -> int | None:
        return None if value is None else int(value)

    def get_prep_value(self, value: Any) -> Any:
        """As text: PostgreSQL compares an xid8 with no number."""
        return str(value) if isinstance(value, int) else value


class CurrentTransaction(models.Func):
    """The id of the transaction that the row is written in, subtransactions being part of it."""

    function = "pg_current_xact_id"
    output_field = Xid8Field()
