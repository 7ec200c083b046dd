"""Secrets from files, as containers and systemd hand them over: NAME_FILE in place of NAME."""

import os
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

NAMES = (
    "ADMIN_PASSWORD",
    "DATABASE_URL",
    "EMAIL_URL",
    "ENCRYPTION_KEYS",
    "METRICS_TOKEN",
    "OIDC_CLIENT_SECRET",
    "REDIS_URL",
    "SECRET_KEY",
    "SENTRY_DSN",
)


def read() -> None:
    """Give each setting of which a file is named its value, without the file's last line end.

    Raises ImproperlyConfigured where a file can't be read, or a setting is given twice.
    """
    for name in NAMES:
        path = os.environ.pop(f"{name}_FILE", "")
        if not path:
            continue
        if name in os.environ:
            raise ImproperlyConfigured(f"Set {name} or {name}_FILE, not both.")
        try:
            os.environ[name] = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ImproperlyConfigured(
                f"The file that {name}_FILE names can't be read: {why}."
            ) from None
