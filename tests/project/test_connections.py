"""A worker keeps its connection to the database from task to task."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection

from ingestion import dispatching
from ingestion.models import Run
from ingestion.services.sources import verbs
from tests.servers import imap_source
from tests.servers.imap_script import ImapScript

pytestmark = pytest.mark.long(seconds=30)

_SESSIONS = """SELECT a.pid, m.lease_session_started_at = a.backend_start FROM ingestion_mailbox m
    JOIN pg_stat_get_activity(m.lease_session_pid) a ON true WHERE m.source_id = %s"""


@pytest.fixture
def server() -> Iterator[ImapScript]:
    with ImapScript() as server:
        yield server


@pytest.mark.usefixtures("service")
def test_syncs_share_the_session_of_their_worker_and_one_that_is_gone_is_replaced(
    server: ImapScript, wait_for: Callable[..., Any]
) -> None:
    source = imap_source.create(server)

    def follow(verb: Callable[..., Run]) -> int:
        """Have a worker follow the mailbox; return the session that it did so in, which is there
        still."""
        run = verb(source, actor=imap_source.ACTOR)
        dispatching.on_commit(source)
        wait_for(lambda: Run.objects.filter(pk=run.pk, status="completed").exists())
        source.refresh_from_db()
        with connection.cursor() as cursor:
            cursor.execute(_SESSIONS, [source.pk])
            [(pid, is_the_same)] = cursor.fetchall()
        assert is_the_same
        return int(pid)

    used = {follow(verbs.start_import), *(follow(verbs.start_sync) for _ in range(3))}
    assert len(used) <= 2  # one of each process of the worker
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pid, 5000) FROM unnest(%s) pid", [list(used)])
    assert follow(verbs.start_sync) not in used
