"""Secrets at rest: a JSON column encrypted with rotatable Fernet keys (settings.FERNET_KEYS).

The first key encrypts, all of them decrypt. A wrong key raises, it never returns ciphertext.
"""

import json
from typing import Any

from django.core.exceptions import FieldError
from django.db import models
from fernet_fields import EncryptedField


class Secrets(dict[str, str]):
    """The secret half of a providerConfig. Its repr shows the names alone."""

    def __repr__(self) -> str:
        return f"Secrets({', '.join(sorted(self))})"

    __str__ = __repr__


class EncryptedJSONField(EncryptedField, models.TextField):  # type: ignore[misc, type-arg] # untyped base
    """A JSON object of strings, encrypted.

    `update()` and `bulk_update()` with SQL expressions would store the encrypted *text of the
    expression* and destroy the value (django-fernet-fields-v2 0.9), so both are refused.
    """

    def get_db_prep_save(self, value: Any, connection: Any) -> Any:
        if hasattr(value, "as_sql"):
            raise FieldError(f"{self.name}: an encrypted field takes plain values, save() the row.")
        return super().get_db_prep_save(json.dumps(value, sort_keys=True), connection)

    def from_db_value(self, value: Any, expression: Any, connection: Any, *args: Any) -> Any:
        plain = super().from_db_value(value, expression, connection, *args)
        return None if plain is None else Secrets(json.loads(plain))

    def to_python(self, value: Any) -> Any:
        return value
