"""A process that is killed for a test's sake."""

import os
import signal
import threading
from pathlib import Path

import pytest
from django.contrib.auth.models import Group
from django.db import connection

from tests.servers.mortal import dies
from tests.servers.stack import wait_for

#: As one statement, its client may be gone before the row comes.
LATE = "DO $$ BEGIN PERFORM pg_sleep(0.5); INSERT INTO auth_group (name) VALUES ('late'); END $$"


@pytest.mark.django_db(transaction=True)
def test_what_it_asked_for_last_has_come_once_its_end_was_waited_for() -> None:
    def ask() -> None:
        with connection.cursor() as cursor:
            cursor.execute(LATE)

    def is_asked() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT 1 FROM pg_stat_activity WHERE query = %s AND state = 'active'", [LATE]
            )
            return cursor.fetchone() is not None

    def ask_and_die() -> None:
        threading.Thread(target=ask, daemon=True).start()
        wait_for(is_asked)
        os.kill(os.getpid(), signal.SIGKILL)

    assert dies(ask_and_die, at_step=None, directory=Path("/nowhere"))
    assert Group.objects.filter(name="late").exists()
