"""Runs a piece of work in a process of its own that dies by SIGKILL at a chosen step of it.

A step is the beginning or the end of an SQL statement, or a file opened or renamed below a
directory: whatever two steps enclose (a COMMIT, an fsync) is then either done or not, as in a crash.
The work's code knows nothing of it: SQL is watched by Django's execute_wrapper, files by an audit
hook. Nothing is cleaned up in the process that dies: no `finally`, no rollback, no release.

PostgreSQL misses a process some time after its end: what that had asked for last may come until
then, and its locks stay. Who waited for the end finds all of that over.
"""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from django.db import DEFAULT_DB_ALIAS, connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.db.backends.utils import CursorWrapper

from tests.servers.stack import wait_for


def dies(
    work: Callable[[], object], *, at_step: int | None, directory: Path, statements: bool = True
) -> bool:
    """Do `work` in a child process; return whether it was killed before its end.

    `at_step` counts from 1, over all threads; None: it does not die by itself, so somebody else may
    kill it. Without `statements` files alone are counted. Raises AssertionError where the work
    raised.
    """
    process = MortalProcess(work, at_step=at_step, directory=directory, statements=statements)
    with process:
        return process.wait()


class MortalProcess:
    """The child process. Enter it to start; `pid` is then known, `wait` tells how it ended."""

    def __init__(
        self,
        work: Callable[[], object],
        *,
        at_step: int | None,
        directory: Path,
        statements: bool = True,
    ) -> None:
        self._work, self._at_step, self._directory = work, at_step, str(directory)
        self._statements = statements
        self.pid = 0
        self._status: int | None = None

    def __enter__(self) -> Self:
        connections.close_all()  # a session must not be shared with the child
        self.pid = os.fork()
        if self.pid == 0:
            self._live()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is None:
            self.kill()
            self._reap()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> bool:
        """Return whether it was killed. Raises AssertionError where the work raised."""
        status = self._reap()
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, "the work raised: see stderr"
            return False
        return True

    def _reap(self) -> int:
        if self._status is None:
            self._status = os.waitpid(self.pid, 0)[1]
            with contextlib.closing(connection.copy()) as own, own.cursor() as cursor:
                wait_for(lambda: self._is_missed(cursor))
        return self._status

    def _is_missed(self, cursor: CursorWrapper) -> bool:
        """Whether PostgreSQL has ended all that the process had there."""
        cursor.execute(
            "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = %s)",
            [_name(self.pid)],
        )
        return bool(cursor.fetchone()[0])

    def _live(self) -> None:
        code = 1
        try:
            inherited = connections.all(initialized_only=True)
            assert all(one.connection is None for one in inherited), "it is the parent's session"
            options = connections.settings[DEFAULT_DB_ALIAS]["OPTIONS"]
            options["fallback_application_name"] = _name(os.getpid())
            if self._statements:
                connection_created.connect(self._watch)  # of every thread
            sys.addaudithook(self._count_file)
            self._work()
            code = 0
        except BaseException:  # noqa: BLE001 - the process ends here, and says why
            traceback.print_exc()
        finally:
            os._exit(code)

    def _watch(self, connection: BaseDatabaseWrapper, **_: Any) -> None:
        connection.execute_wrappers.append(self._count_statement)

    def _count_statement(
        self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any
    ) -> Any:
        self._step()
        result = execute(sql, params, many, context)
        self._step()
        return result

    def _count_file(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename") and str(arguments[0]).startswith(self._directory):
            self._step()

    def _step(self) -> None:
        if self._at_step is None:
            return
        self._at_step -= 1
        if self._at_step <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


def _name(pid: int) -> str:
    """What such a process is called in PostgreSQL."""
    return f"mortal process {pid}"
