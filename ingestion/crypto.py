"""Secrets at rest: a JSON column encrypted with rotatable Fernet keys (settings.FERNET_KEYS).

The first key encrypts, all of them decrypt. A row is decrypted when its secrets are used, not when
it is read: one that no key reads stops nobody who does not need it. A wrong key raises, it never
returns ciphertext.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.core.exceptions import FieldError
from django.db import models
from django.utils.crypto import salted_hmac
from fernet_fields import EncryptedField
from fernet_fields.hkdf import derive_fernet_key

from connectors import redaction
from ingestion.errors import CredentialsUnreadable


def key_id(key: str) -> str:
    """Return a name for a key that tells nothing of it, the same in every process."""
    return salted_hmac("ingestion.crypto.key_id", key, algorithm="sha256").hexdigest()[:16]


def encrypted(text: str) -> str:
    """Return a text as it may lie in the database."""
    return _fernet().encrypt(text.encode()).decode()


def decrypted(token: str) -> str:
    """Return the text again. Raises CredentialsUnreadable where no key decrypts it."""
    try:
        return _fernet().decrypt(token.encode()).decode()
    except InvalidToken:
        raise CredentialsUnreadable from None


def _fernet() -> MultiFernet:
    return MultiFernet([Fernet(derive_fernet_key(key)) for key in settings.FERNET_KEYS])


class Secrets(Mapping[str, str]):
    """The secret half of a providerConfig. Its repr shows nothing of it, and no log line does.

    Using one of a row that no key decrypts raises CredentialsUnreadable; ask `readable` before.
    """

    def __init__(
        self,
        plain: Mapping[str, str] | None = None,
        *,
        decrypt: Callable[[], Mapping[str, str]] | None = None,
        names: Callable[[], frozenset[str]] | None = None,
    ) -> None:
        self._plain = dict(plain or {}) if decrypt is None else None
        self._decrypt = decrypt
        self._names = names
        redaction.remember((plain or {}).values())

    @property
    def readable(self) -> bool:
        """Whether one of the keys decrypts it."""
        try:
            self._read()
        except CredentialsUnreadable:
            return False
        return True

    @property
    def names(self) -> frozenset[str]:
        """Those that are set, for pages that say no more of them; none where no key decrypts them.

        A list of all sources asks each: no value is kept for that, which would push out of
        `redaction` those that are in use.
        """
        if self._names is None:
            return _set(self._plain or {})
        try:
            return self._names()
        except CredentialsUnreadable:
            return frozenset()

    def __getitem__(self, name: str) -> str:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __repr__(self) -> str:
        return "Secrets(...)"

    __str__ = __repr__

    def _read(self) -> dict[str, str]:
        if self._plain is None:
            assert self._decrypt is not None
            self._plain = dict(self._decrypt())
            redaction.remember(self._plain.values())
        return self._plain


def _set(plain: Mapping[str, str]) -> frozenset[str]:
    return frozenset(name for name, value in plain.items() if value)


class EncryptedJSONField(EncryptedField, models.TextField):  # type: ignore[misc, type-arg] # untyped base
    """A JSON object of strings, encrypted.

    `update()` and `bulk_update()` with SQL expressions would store the encrypted *text of the
    expression* and destroy the value (django-fernet-fields-v2 0.9), so both are refused.
    """

    def get_db_prep_save(self, value: Any, connection: Any) -> Any:
        if hasattr(value, "as_sql"):
            raise FieldError(f"{self.name}: an encrypted field takes plain values, save() the row.")
        plain = json.dumps(dict(value), sort_keys=True)
        return super().get_db_prep_save(plain, connection)

    def from_db_value(self, value: Any, *_: Any) -> Any:
        if value is None:
            return None
        token = bytes(value)
        return Secrets(
            decrypt=functools.partial(self._decrypted, token),
            names=functools.partial(self.names_in, token),
        )

    def _decrypted(self, token: bytes) -> Mapping[str, str]:
        if not settings.FERNET_KEYS:
            raise CredentialsUnreadable
        try:
            found: dict[str, str] = json.loads(self.fernet.decrypt(token))
        except InvalidToken:
            raise CredentialsUnreadable from None
        return found

    @functools.cached_property
    def names_in(self) -> Callable[[bytes], frozenset[str]]:
        """Tell what a ciphertext has: always the same, so it is decrypted for that once."""
        return functools.lru_cache(maxsize=10_000)(lambda token: _set(self._decrypted(token)))

    def to_python(self, value: Any) -> Any:
        return value
