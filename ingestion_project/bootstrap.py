"""Makes the secrets, checks the settings, brings the database up to date, makes the first admin.

Run before the service starts.

`python -m ingestion_project.bootstrap`: safe to run again, and from several machines at once.
"""

import os
import re
import secrets
import sys
import time
from collections.abc import Callable

import django
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import OperationalError

from ingestion.errors import ArchiveAway
from ingestion_project import secret_files
from ingestion_project.embedded import Local

_FIRST_TOLD_SECONDS, _TOLD_SECONDS = 5.0, 60.0
#: Short until it is told: a local server starts. An object store need not be asked so often.
_FIRST_PAUSE_SECONDS, _PAUSE_SECONDS = 0.2, 5.0
#: What a server says that will say no again. libpq tells no SQLSTATE of it; who says it in another
#: language is waited for.
_NO = re.compile(
    r"authentication failed|does not exist|pg_hba\.conf|not permitted|password supplied"
    r"|permission denied|not currently accepting|not support SSL|certificate verify failed"
    r"|does not match host name"
)


def main() -> int:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ingestion_project.settings")
    try:
        secret_files.read()
        if "DATABASE_URL" not in os.environ:
            Local.of_environment().make_secrets()
        django.setup()
    except ImproperlyConfigured as error:
        print(error, file=sys.stderr)
        return 1
    from django.db import connection  # noqa: PLC0415 - needs the settings

    from ingestion.services.operations import migrating  # noqa: PLC0415 - likewise

    try:
        call_command("check")
    except SystemCheckError as error:  # else each process would say it with a traceback
        print(error, file=sys.stderr)
        return 1
    if trouble := _once_it_answers(database_trouble):
        print(f"{trouble}\nIs DATABASE_URL right?", file=sys.stderr)
        return 1
    call_command("migrate", interactive=False, verbosity=0)
    # Before the first user: the password is told once.
    if trouble := _once_it_answers(archive_trouble):
        print(trouble, file=sys.stderr)
        return 1
    try:
        with migrating.alone(connection, say=lambda text: print(text, file=sys.stderr)):
            password = create_first_admin(password=os.environ.get("ADMIN_PASSWORD", ""))
    except ValidationError as error:
        print(
            f"ADMIN_PASSWORD can't be the first user's password: {' '.join(error.messages)}\n"
            "Set a better one, or none: then one is made and printed once.",
            file=sys.stderr,
        )
        return 1
    if password:
        print(
            f"Made the first admin user. Log in as: admin   password: {password}\n"
            "This password is shown only now. `manage.py changepassword admin` sets another."
        )
    return 0


def archive_trouble() -> str:
    """Return why mail could not be archived or exported here, "" where it can: better told now.
    Raises ArchiveAway."""
    from django.conf import settings  # noqa: PLC0415 - needs the environment

    from ingestion.services.archive import storage  # noqa: PLC0415 - needs the settings

    try:
        storage.require_writable()
        storage.claim(settings.EXPORT_DIR, "EXPORT_DIR")
    except ArchiveAway:
        raise
    except OSError as error:
        return str(error)
    return ""


def create_first_admin(*, password: str = "") -> str:
    """Make the superuser `admin` unless there is a superuser; return the password to show.

    Returns "" when there was one already, or when the caller chose the password. Raises
    ValidationError where that is too easy to guess.
    """
    from django.contrib.auth import (  # noqa: PLC0415 - needs the settings
        get_user_model,
        password_validation,
    )

    users = get_user_model().objects
    if users.filter(is_superuser=True).exists():
        return ""
    chosen = password or secrets.token_urlsafe(12)
    password_validation.validate_password(chosen, users.model(username="admin"))
    users.create_superuser("admin", password=chosen)
    return "" if password else chosen


def database_trouble() -> str:
    """Return why the server lets nobody in, "" where it does. Raises OperationalError where it does
    not answer yet."""
    from django.db import connection  # noqa: PLC0415 - needs the settings

    try:
        connection.ensure_connection()
    except OperationalError as error:
        if _NO.search(str(error)):
            return f"The database refuses: {error}"
        raise
    return ""


def _once_it_answers(ask: Callable[[], str]) -> str:
    """Return what `ask` does, once the database and the store answer. That may last: after a power
    cut other machines come up later, and nobody starts the service again that gave up."""
    from django.db import connection  # noqa: PLC0415 - needs the settings

    tell_at, pause = time.monotonic() + _FIRST_TOLD_SECONDS, _FIRST_PAUSE_SECONDS
    while True:
        try:
            return ask()
        except OperationalError as error:
            connection.close()  # else one that is broken is asked again
            why, setting = f"The database can't be used yet: {error}", "DATABASE_URL"
        except ArchiveAway as error:
            why, setting = str(error), "ARCHIVE_URL"
        if time.monotonic() > tell_at:
            print(
                f"{why}\nThe start waits for it, and goes on by itself. Is {setting} right?",
                file=sys.stderr,
                flush=True,
            )
            tell_at, pause = time.monotonic() + _TOLD_SECONDS, _PAUSE_SECONDS
        time.sleep(pause)


if __name__ == "__main__":
    sys.exit(main())
