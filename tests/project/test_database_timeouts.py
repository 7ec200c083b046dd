"""A database that vanishes, or a lock that nobody gives back, holds no thread for ever."""

import os
import subprocess
import sys
import threading
from typing import Any

import pytest
from django.conf import settings
from django.db import OperationalError, connection, transaction

from ingestion_project import run

pytestmark = pytest.mark.django_db(transaction=True)


def shown(name: str) -> str:
    with connection.cursor() as cursor:
        cursor.execute(f"SHOW {name}")
        return str(cursor.fetchone()[0])


def test_statements_and_locks_have_an_end() -> None:
    connection.close()
    assert (shown("statement_timeout"), shown("lock_timeout")) == ("10min", "1min")
    parameters = connection.connection.info.get_parameters()
    assert parameters["connect_timeout"] == "10"
    assert parameters["tcp_user_timeout"] == "15000"
    # Four keepalives get lost before that is over: with fewer, one packet would do.
    idle, interval = (int(parameters[f"keepalives_{name}"]) for name in ("idle", "interval"))
    assert idle + 3 * interval < 15
    assert "tcp_keepalives_idle=30" in parameters["options"]  # reads as 0 on a Unix socket


def test_a_statement_of_a_page_ends_sooner_unless_the_url_says_otherwise() -> None:
    def options(*arguments: str, url: str) -> str:
        code = (
            "from ingestion_project.settings import DATABASES;"
            "print(DATABASES['default']['OPTIONS']['options'])"
        )
        env = {**os.environ, "DATABASE_URL": url, "SECRET_KEY": "x" * 50}
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=env | {"ENCRYPTION_KEYS": "y" * 40},
            cwd=settings.BASE_DIR,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    web = run._procfile(settings.BASE_DIR)["web"].split()[1:]
    worker = run._procfile(settings.BASE_DIR)["worker"].split()[1:]
    url = "postgres://nobody@127.0.0.1/none"
    assert "statement_timeout=30s" in options(*web, url=url)
    assert "statement_timeout=10min" in options(*worker, url=url)
    assert "statement_timeout" not in options(*web, url=f"{url}?options=-c%20jit%3Don")


def test_who_waits_for_a_lock_is_told_and_goes_on(owner: Any) -> None:
    taken, end = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SELECT 1 FROM auth_user FOR UPDATE")
                taken.set()
                end.wait(240)
        finally:
            connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(120)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '200ms'")
            with pytest.raises(OperationalError, match="lock timeout"):
                cursor.execute("SELECT 1 FROM auth_user FOR UPDATE")
            cursor.execute("SELECT 1")
    finally:
        end.set()
        thread.join()
        connection.close()
