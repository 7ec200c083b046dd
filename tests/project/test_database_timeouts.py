"""A database that vanishes, or a lock that nobody gives back, holds no thread for ever."""

import threading
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction

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


def test_who_waits_for_a_lock_is_told_and_goes_on(owner: Any) -> None:
    taken, end = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SELECT 1 FROM auth_user FOR UPDATE")
                taken.set()
                end.wait(20)
        finally:
            connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(20)
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
