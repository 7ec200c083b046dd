"""System checks of our own settings, part of `manage.py check` and `manage.py doctor`.

They look at settings and the file system alone; whether servers answer is `operations.doctor`.
"""

import os
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register  # noqa: A004 - Django's name for it

from connectors import net, registry
from connectors.errors import Unavailable

_MIN_KEY_CHARS = 32
#: One PUT takes 5 GB; a pack may hold a group of messages beside the largest.
_MAX_OBJECT_BYTES = 4_900_000_000


@register(Tags.security)
def encryption_keys(app_configs: Any, **_: Any) -> list[CheckMessage]:
    """E001 no key, as where there is no service; E002 a key twice or empty."""
    del app_configs
    keys: list[str] = settings.ENCRYPTION_KEYS
    if settings.NO_SERVICE:
        return [Error(settings.NO_SERVICE, id="ingestion.E001")]
    if not keys:
        return [
            Error(
                "ENCRYPTION_KEYS is empty, so credentials can't be stored.",
                hint=_NEW_KEY,
                id="ingestion.E001",
            )
        ]
    if len(set(keys)) != len(keys) or not all(key.strip() == key and key for key in keys):
        return [
            Error(
                "ENCRYPTION_KEYS holds an empty key, one twice, or one with spaces around it.",
                hint="Separate different keys by commas alone; the newest comes first.",
                id="ingestion.E002",
            )
        ]
    return []


_NEW_KEY = "Make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'"


@register(Tags.security, deploy=True)
def encryption_key_strength(app_configs: Any, **_: Any) -> list[CheckMessage]:
    """W001 the key that encrypts is short."""
    del app_configs
    keys: list[str] = settings.ENCRYPTION_KEYS
    if keys and len(keys[0]) < _MIN_KEY_CHARS:
        text = f"The first of ENCRYPTION_KEYS has fewer than {_MIN_KEY_CHARS} characters."
        return [Warning(text, hint=_NEW_KEY, id="ingestion.W001")]
    return []


@register(Tags.security, deploy=True)
def private_addresses(app_configs: Any, **_: Any) -> list[CheckMessage]:
    """W002 users of a public installation can have it connect to any host of its own network."""
    del app_configs
    if not settings.HTTPS or settings.FORBID_PRIVATE_ADDRESSES:
        return []
    return [
        Warning(
            "Whoever may create sources can have this machine connect to any private address.",
            hint="Set FORBID_PRIVATE_ADDRESSES=1 where users are strangers to its network.",
            id="ingestion.W002",
        )
    ]


@register(Tags.compatibility)
def provider_plugins(app_configs: Any, **_: Any) -> list[CheckMessage]:
    """W003 a provider of another package is left out. No error: it would stop all the others."""
    del app_configs
    return [
        Warning(
            text,
            hint="Correct or remove that package, and restart every process: meanwhile its sources "
            "are not followed.",
            id="ingestion.W003",
        )
        for text in registry.LEFT_OUT
    ]


@register(Tags.files)
def archive_directory(app_configs: Any, **_: Any) -> list[CheckMessage]:
    """E003 ARCHIVE_DIR can't be written, or can't be made."""
    del app_configs
    if settings.ARCHIVE_URL:
        return []
    existing: Path = settings.ARCHIVE_DIR
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return []
    return [
        Error(
            f"ARCHIVE_DIR {settings.ARCHIVE_DIR} can't be written by this user.",
            hint="Make it writable for the service's user, mount it, or set another.",
            id="ingestion.E003",
        )
    ]


@register(Tags.compatibility)
def object_store(app_configs: Any, **_: Any) -> list[CheckMessage]:
    """E006 a pack may be larger than one request to an object store; E007 a lock without one."""
    del app_configs
    found: list[CheckMessage] = []
    if settings.ARCHIVE_URL and settings.MAX_MESSAGE_BYTES > _MAX_OBJECT_BYTES:
        found.append(
            Error(
                f"MAX_MESSAGE_BYTES is more than an object store takes at once"
                f" ({_MAX_OBJECT_BYTES:,}).",
                hint="Set it lower.",
                id="ingestion.E006",
            )
        )
    if settings.ARCHIVE_LOCK_DAYS < 0 or (settings.ARCHIVE_LOCK_DAYS and not settings.ARCHIVE_URL):
        found.append(
            Error(
                "ARCHIVE_LOCK_DAYS is for an object store, and not less than 0.",
                hint="Leave it out, or set ARCHIVE_URL to a bucket with Object Lock.",
                id="ingestion.E007",
            )
        )
    return found


@register(Tags.files)
def extra_ca_file(app_configs: Any, **_: Any) -> list[CheckMessage]:
    """E004 EXTRA_CA_FILE can't be read."""
    del app_configs
    try:
        net.tls_context(verify=True, extra_ca_file=settings.EXTRA_CA_FILE)
    except Unavailable as error:
        return [
            Error(
                f"{error} So no TLS connection works.",
                hint="Name a file of PEM certificates that this user may read, or leave it out.",
                id="ingestion.E004",
            )
        ]
    return []


@register(Tags.compatibility)
def engine_limits(app_configs: Any, **_: Any) -> list[CheckMessage]:
    """E005 a number that must be positive is not."""
    del app_configs
    names = (
        "API_REQUESTS_PER_MINUTE",
        "CELERY_WORKER_CONCURRENCY",
        "IMAP_CONNECTIONS_PER_ACCOUNT",
        "MAX_MESSAGE_BYTES",
        "NETWORK_TIMEOUT_SECONDS",
    )
    return [
        Error(f"{name.removeprefix('CELERY_')} must be more than 0.", id="ingestion.E005")
        for name in names
        if getattr(settings, name) <= 0
    ]
