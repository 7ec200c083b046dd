"""Brings the database up to date beside those who use it: one process at a time, and waiting for
no lock so long that others stand.

Whoever wants a table for itself (ALTER TABLE) queues behind a long transaction, a backup's or an
export's, and every query of that table queues behind it. So a statement waits for moments, lets go,
and is tried again after a pause, until the lock is free; meanwhile it is told who has it.

    a migration in a transaction    is begun again as a whole, and gives back the locks that it has
    a statement in none             is tried again by itself
    CREATE INDEX CONCURRENTLY       waits as long as it takes: nobody queues behind it

A migration in no transaction that was killed goes on when it is run again: what it made is there.
Which migrations there are, and in which order, is Django's.
"""

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
from django.db import DatabaseError, InterfaceError, OperationalError, ProgrammingError
from django.db.backends.base.base import BaseDatabaseWrapper

from ingestion.services.transactions import others_are_in_the_way

_LOCK_ID = 7_153_092_441  # any number that nobody else takes as an advisory lock in this database
#: More than deadlock_timeout, 1 s, after which autovacuum gives way to who waits for it (and who
#: waits in a circle is broken off, before any lock is given up).
_WAIT = "2s"
_OURS = {
    "statement_timeout": "0",
    "lock_timeout": _WAIT,
    # The session of a process that was killed ends soon: else it would keep the next one away.
    "client_connection_check_interval": "5s",
}
_LOOK_SECONDS = 1.0
_PAUSES_SECONDS = (1, 2, 4, 8, 16, 30)

#: duplicate_column, duplicate_object, duplicate_table (which an index is too)
_THERE_ALREADY = frozenset({"42701", "42710", "42P07"})
_INDEX = re.compile(r'CREATE (?:UNIQUE )?INDEX CONCURRENTLY (?:IF NOT EXISTS )?("[^"]+")')

_SESSIONS = """
SELECT pid, coalesce(nullif(application_name, ''), backend_type, 'without a name'),
       coalesce(usename, 'none'), state,
       to_char(xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')
  FROM pg_stat_activity WHERE pid = ANY({pids}) ORDER BY xact_start NULLS LAST LIMIT 3
"""
_IN_THE_WAY = _SESSIONS.format(pids="pg_blocking_pids(%s)")
_MIGRATING = _SESSIONS.format(
    pids="""ARRAY(SELECT pid FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 1 AND (classid::bigint << 32) | objid::bigint = %s
      AND granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))"""
)

_TABLE = """SELECT relation::regclass::text FROM pg_locks
 WHERE pid = %s AND NOT granted AND relation IS NOT NULL"""

Say = Callable[[str], None]


@contextlib.contextmanager
def alone(connection: BaseDatabaseWrapper, *, say: Say) -> Iterator[None]:
    """Hold the database against others that would migrate it; within another of this process, too.

    It asks again and again: who waited within a statement would have a snapshot, for whose end
    CREATE INDEX CONCURRENTLY of the other waits, which is a deadlock.
    """
    asked = 0
    while not _ask(connection, "SELECT pg_try_advisory_lock(%s)", _LOCK_ID)[0][0]:
        if asked == 4 and (others := _ask(connection, _MIGRATING, _LOCK_ID)):
            say(
                f"Another process migrates this database: {_named(others)}. This one goes on by"
                " itself when that is done."
            )
        asked += 1
        time.sleep(0.5)
    try:
        yield
    finally:
        with contextlib.suppress(DatabaseError, InterfaceError):  # it ends with the session, too
            _ask(connection, "SELECT pg_advisory_unlock(%s)", _LOCK_ID)


def patiently(connection: BaseDatabaseWrapper, migrate: Callable[[], object], *, say: Say) -> None:
    """Call what migrates, alone, until no lock was in its way. No statement has a time-out."""
    patience = _Patience(connection, say)
    depth = len(connection.atomic_blocks)
    with alone(connection, say=say), patience.held():
        while True:
            try:
                migrate()
                return
            except OperationalError as error:
                # A schema editor whose deferred statements fail leaves its transaction open, and
                # with it all locks that it has (Django 5.2, BaseDatabaseSchemaEditor.__exit__).
                while len(connection.atomic_blocks) > depth:
                    connection.atomic_blocks[-1].__exit__(type(error), error, None)
                patience.pause(error)


class _Patience:
    def __init__(self, connection: BaseDatabaseWrapper, say: Say) -> None:
        self._connection, self._say = connection, say
        self._pauses = 0
        self._table = ""
        self._holders: list[Any] = []

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Have each statement of this connection wait for moments."""
        self._connection.ensure_connection()
        self._raw("; ".join(f"SET {name} = '{value}'" for name, value in _OURS.items()))
        try:
            with self._connection.execute_wrapper(self._execute):
                yield
        finally:
            with contextlib.suppress(psycopg.Error):  # of a session that is gone
                self._raw("; ".join(f"RESET {name}" for name in _OURS))

    def pause(self, error: OperationalError) -> None:
        """Say who has the lock, and wait. Raises what is another error."""
        if not others_are_in_the_way(error):
            raise error
        seconds = _PAUSES_SECONDS[min(self._pauses, len(_PAUSES_SECONDS) - 1)]
        self._pauses += 1
        what = self._table or "what it needs"
        if self._holders:
            held = f"{_named(self._holders)} has it"
            pid = self._holders[0][0]
            end = f" Where that can't be waited for: SELECT pg_terminate_backend({pid})."
        else:
            held, end = "another session has it", ""
        self._say(
            f"A migration can't have {what} for itself yet: {held}. It keeps nobody waiting, tries"
            f" again in {seconds} s, and goes on by itself when that transaction has ended.{end}"
        )
        time.sleep(seconds)

    def _execute(
        self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any
    ) -> Any:
        if self._connection.in_atomic_block:
            with self._watched():
                return execute(sql, params, many, context)
        if (index := _INDEX.match(sql)) and self._is_built(index[1]):
            return None
        while True:
            try:
                with self._as_long_as_it_takes() if "CONCURRENTLY" in sql else self._watched():
                    return execute(sql, params, many, context)
            except OperationalError as error:
                self.pause(error)
            except ProgrammingError as error:
                if getattr(error.__cause__, "sqlstate", "") not in _THERE_ALREADY:
                    raise
                return None  # of a run before, which was killed

    def _is_built(self, index: str) -> bool:
        """Tell whether an index is there; of one that was broken off, remove what there is."""
        found = self._raw(
            "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", index
        )
        if found and not found[0][0]:
            with self._as_long_as_it_takes():
                self._raw(f"DROP INDEX CONCURRENTLY {index}")
            return False
        return bool(found)

    @contextlib.contextmanager
    def _as_long_as_it_takes(self) -> Iterator[None]:
        self._raw("SET lock_timeout = 0")
        try:
            with self._watched(tell=True):
                yield
        finally:
            with contextlib.suppress(psycopg.Error):  # of a session that is gone
                self._raw(f"SET lock_timeout = '{_WAIT}'")

    @contextlib.contextmanager
    def _watched(self, *, tell: bool = False) -> Iterator[None]:
        """Learn from another session whom a statement waits for. `tell`: say it, too."""
        pid, ended = self._connection.connection.info.backend_pid, threading.Event()
        watch = threading.Thread(target=self._watch, args=(pid, ended, tell))
        watch.start()
        try:
            yield
        finally:
            ended.set()
            watch.join()

    def _watch(self, pid: int, ended: threading.Event, tell: bool) -> None:
        told: list[Any] = []
        self._holders = []
        other = self._connection.copy()
        try:
            while not ended.wait(_LOOK_SECONDS):
                found = _ask(other, _IN_THE_WAY, pid)
                if not found:
                    continue
                self._holders = found
                self._table = next((table for (table,) in _ask(other, _TABLE, pid)), "")
                if tell and found != told:
                    told = found
                    self._say(
                        f"An index is built beside who writes. It waits for {_named(found)}, and"
                        " nobody waits for it: it goes on by itself when that has ended."
                    )
        except (DatabaseError, InterfaceError):
            pass  # then it is not told
        finally:
            other.close()

    def _raw(self, sql: str, *params: Any) -> list[Any]:
        """Ask outside of what is tried again."""
        cursor = self._connection.connection.execute(sql, params or None)
        return list(cursor.fetchall()) if cursor.description else []


def _ask(connection: BaseDatabaseWrapper, sql: str, *params: Any) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall())


def _named(sessions: list[Any]) -> str:
    """Say "process 4711 (pg_dump, user ingestion, in a transaction since 02:14 UTC)"."""
    return ", and ".join(
        f"process {pid} ({name}, user {user}"
        + (f", in a transaction since {since} UTC" if since else "")
        + (", idle" if state == "idle in transaction" else "")
        + ")"
        for pid, name, user, state, since in sessions
    )
