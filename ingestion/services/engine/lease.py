"""The lease of a mailbox: one owner at a time, fenced by a token, kept alive while work goes on.

    with lease.acquire(mailbox_id) as held: ... held.fence() inside every transaction ...

Times are the database's own, so workers' clocks don't matter; and a lease that seems to reach
further than a lease can (the database's clock was set back) counts as expired.

A worker that was killed is replaced at once: the lease names the database session that took it, and
a session that is gone can't come back. One that merely sleeps keeps its lease until it expires.
"""

import datetime as dt
import mmap
import threading
import time
import uuid
from types import TracebackType
from typing import Any, Self

import structlog
from django.db import DatabaseError, connection

from ingestion.errors import LeaseLost
from ingestion.states import RUNNABLE

log = structlog.get_logger(__name__)

#: A worker that hangs is replaced after this long at most; the dispatcher adds its own few seconds.
LEASE_SECONDS = 20
RENEW_SECONDS = 5


class _Leaving:
    """An event for this process and those that it forks. Not multiprocessing's, whose lock stays
    with whoever is killed while it asks: then SIGTERM's handler waits for it, and all leases do."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 1)

    def is_set(self) -> bool:
        return self._shared[0] != 0

    def set(self) -> None:
        self._shared[0] = 1

    def clear(self) -> None:
        self._shared[0] = 0


#: Set when this worker is told to end, and heard by the processes that it forked: all leases are
#: given back at the next message, so that a deploy looks to nobody like a death.
leaving = _Leaving()
_LISTEN_SECONDS = 0.5

#: Whether the row's source is runnable. As a scalar: a join, or EXISTS, would read all sources
#: once the planner expects some hundred rows.
SOURCE_RUNNABLE = """(SELECT s.deleted_at IS NULL AND s.status = ANY(%(runnable)s)
                 FROM ingestion_ingestionsource s WHERE s.id = source_id)"""

#: A mailbox owes its run something by now, and nobody works under its lease. Behind a pooler that
#: hands one session to several workers NOT EXISTS only looks away: then the lease expires, as
#: everybody's does.
DUE = f"""run_id IS NOT NULL AND not_before <= now() AND {SOURCE_RUNNABLE}
   AND (lease_expires_at IS NULL OR lease_expires_at < now()
        OR lease_expires_at > now() + 2 * %(lease)s
        OR NOT EXISTS (SELECT 1 FROM pg_stat_get_activity(lease_session_pid) a
                        WHERE a.backend_start = lease_session_started_at))"""

_ACQUIRE = f"""
UPDATE ingestion_mailbox
   SET lease_token = lease_token + 1,
       lease_expires_at = now() + %(lease)s,
       lease_session_pid = a.pid,
       lease_session_started_at = a.backend_start,
       handed_out_at = NULL,
       -- Leases are given back; one that was not had a holder who died.
       worker_deaths = worker_deaths + CASE WHEN lease_expires_at IS NULL THEN 0 ELSE 1 END
  FROM pg_stat_get_activity(pg_backend_pid()) a
 WHERE id = %(id)s AND {DUE}
RETURNING lease_token, worker_deaths, now()
"""

_RENEW = f"""
UPDATE ingestion_mailbox
   SET lease_expires_at = now() + %(lease)s
 WHERE id = %(id)s AND lease_token = %(token)s AND lease_expires_at IS NOT NULL
RETURNING run_id IS NOT NULL AND {SOURCE_RUNNABLE}
"""

_FENCE = """
UPDATE ingestion_mailbox SET lease_expires_at = now() + %(lease)s
 WHERE id = %(id)s AND lease_token = %(token)s
RETURNING run_id
"""

_RELEASE = """
UPDATE ingestion_mailbox SET lease_expires_at = NULL
 WHERE id = %(id)s AND lease_token = %(token)s
"""


class Lease:
    """A lease that is held. `stopping` is set when the work must end: paused, deleted or lost.

    `deaths`: how many holders before this one never gave it back, in a row. `given_back`: whether
    what settled the mailbox gave it back, so that nothing is left to do. `began`: when it was
    taken, by the database's clock.
    """

    def __init__(self, mailbox_id: uuid.UUID, token: int, deaths: int, began: dt.datetime) -> None:
        self.mailbox_id = mailbox_id
        self.token = token
        self.deaths = deaths
        self.began = began
        self.given_back = False
        self.stopping = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def fence(self) -> uuid.UUID | None:
        """Lock the mailbox's row and prove that it is still ours, inside a transaction. Returns the
        run that it owes its work.

        Raises LeaseLost: let the transaction roll back, write nothing more.
        """
        with connection.cursor() as cursor:
            cursor.execute(_FENCE, self._parameters())
            row = cursor.fetchone()
        if row is None:
            self.stopping.set()
            raise LeaseLost("Another worker took over this mailbox.")
        owed: uuid.UUID | None = row[0]
        return owed

    def _renew(self) -> None:
        try:
            renewed = time.monotonic()
            while not self._closing.wait(_LISTEN_SECONDS):
                if leaving.is_set():
                    self.stopping.set()
                if time.monotonic() - renewed >= RENEW_SECONDS:
                    renewed = time.monotonic()
                    self._renew_once()
        finally:
            connection.close()  # this thread's own

    def _renew_once(self) -> None:
        try:
            with connection.cursor() as cursor:
                cursor.execute(_RENEW, self._parameters())
                row = cursor.fetchone()
        except DatabaseError as error:
            # The database restarts: try again. If it takes long, fence() says who owns the lease.
            log.warning("lease_not_renewed", error=type(error).__name__)
            connection.close()
            return
        if row is None or not row[0]:
            self.stopping.set()

    def _parameters(self) -> dict[str, Any]:
        return {**parameters(), "id": self.mailbox_id, "token": self.token}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._thread.join()
        if not self.given_back:
            self.give_back()

    def give_back(self) -> None:
        """Let the next one have the mailbox at once. Idempotent; never raises."""
        try:
            self._release()
        except DatabaseError:
            # A statement that was interrupted (Ctrl-C) leaves a connection that takes no other.
            connection.close()
            try:
                self._release()
            except DatabaseError as failure:
                log.warning("lease_not_released", error=type(failure).__name__)  # it expires

    def _release(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute(_RELEASE, self._parameters())


def acquire(mailbox_id: uuid.UUID) -> Lease | None:
    """Take the lease of a mailbox that is due; None where there is nothing to do, it is held, or
    this worker is about to end."""
    if leaving.is_set():
        return None
    with connection.cursor() as cursor:
        cursor.execute(_ACQUIRE, {**parameters(), "id": mailbox_id})
        row = cursor.fetchone()
    return Lease(mailbox_id, *row) if row else None


def parameters() -> dict[str, Any]:
    """Return what DUE and SOURCE_RUNNABLE refer to."""
    return {
        "lease": dt.timedelta(seconds=LEASE_SECONDS),
        "runnable": [str(status) for status in RUNNABLE],
    }
