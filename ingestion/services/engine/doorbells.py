"""Listens to providers that tell of new mail at once, and lets whose bell rang have their turn now.

For sources with the option "listen", of providers that can (`Connector.watch`): a thread and a
connection each. Nothing depends on it. A ring only has a mailbox followed sooner; who is not
listened to, or whose ring is lost, is looked at in its turn as everybody else. Where there are
several processes of `control`, one listens.
"""

import threading
import time
import uuid
from collections.abc import Collection

import structlog
from django.db import DatabaseError, connection

from connectors.types import RemoteMailbox
from ingestion.models import IngestionSource, Mailbox
from ingestion.services.engine import backoff, claims, lease, looking, runs
from ingestion.services.sources import credentials
from ingestion.states import MailboxState, SourceStatus

log = structlog.get_logger(__name__)

#: So many sources are listened to at most: each is a connection that the server must bear.
MOST = 200
#: How soon a change of what is chosen is seen.
_LOOK_SECONDS = 10.0
#: How soon a thread sees that it is to end, and a ring is passed on that came while a sync ran.
_WAIT_SECONDS = 2.0
#: A watch is good for so long.
_DAY_SECONDS = 86_400.0
#: What failed after so long was well before.
_STEADY_SECONDS = 60.0
#: For how long the process that listens has its claim, which is lost unnoticed with its
#: connection: then two listen until it ends.
_CLAIM_SECONDS = 600.0

#: Of a source that is one account: a look is cheaper than a sync. Not more often than every ten
#: seconds, however often it rings. A look that is under way may be past what rang: it sees that it
#: is due since later than it began (`looking`).
_LOOK = """
UPDATE ingestion_ingestionsource
   SET next_sync_at = CASE
           WHEN next_sync_at <= now() AND handed_out_at IS NOT NULL THEN now()
           ELSE least(
               next_sync_at, greatest(now(), last_sync_finished_at + interval '10 seconds')) END
 WHERE id = %s AND status = 'active' AND next_sync_at IS NOT NULL AND provider = ANY(%s)"""


def ring(source_id: uuid.UUID, mailboxes: Collection[uuid.UUID]) -> Collection[uuid.UUID]:
    """Have mailboxes of a source followed now; return those of which that is so. Of the others work
    is under way, which may be past what rang: they are to be rung again."""
    with connection.cursor() as cursor:
        cursor.execute(_LOOK, [source_id, looking.one_account()])
        if cursor.rowcount:
            return mailboxes
    return runs.follow_now(source_id, mailboxes)


class Listener:
    """All that is listened to by this process. `keep_up` begins and ends what is to be."""

    def __init__(self) -> None:
        #: By source and version of its credentials: the thread, and what ends it.
        self._threads: dict[tuple[uuid.UUID, int], tuple[threading.Thread, threading.Event]] = {}

    def run(self) -> None:
        """Listen until the worker is told to end."""
        while not lease.leaving.is_set():
            try:
                if _wanted():
                    with claims.claimed("listen", claims.EVERYTHING) as mine:
                        self._stay(time.monotonic() + (_CLAIM_SECONDS if mine else 0), mine=mine)
                    continue
                self.end()
            except DatabaseError as error:
                log.warning("database_unavailable", error=type(error).__name__)
            connection.close()  # this thread's own
            time.sleep(_LOOK_SECONDS)
        self.end()

    def _stay(self, until: float, *, mine: bool) -> None:
        """Listen while there is somebody to listen to, or leave that to who does."""
        while True:
            if not mine:
                self.end()
            elif not self.keep_up():
                return
            connection.close()  # this thread's own
            time.sleep(_LOOK_SECONDS)
            if time.monotonic() >= until or lease.leaving.is_set():
                return

    def keep_up(self) -> bool:
        """Return whether there is anybody to listen to."""
        wanted = _wanted()
        for key in self._threads.keys() - wanted:
            _, ends = self._threads.pop(key)
            ends.set()
        for key in wanted - self._threads.keys():
            ends = threading.Event()
            thread = threading.Thread(
                target=_listen, args=(key[0], ends), name="listen", daemon=True
            )
            self._threads[key] = thread, ends
            thread.start()
        return bool(wanted)

    def end(self) -> None:
        """Listen to nobody any more, and wait until that is so."""
        for _, ends in self._threads.values():
            ends.set()
        for thread, _ in self._threads.values():
            thread.join()
        self._threads.clear()


def _wanted() -> set[tuple[uuid.UUID, int]]:
    """Return the sources to listen to, with the versions of their credentials."""
    chosen = IngestionSource.objects.filter(
        status=SourceStatus.ACTIVE, deleted_at=None, options__listen=True
    )
    return set(chosen.order_by("pk").values_list("pk", "credentials_version")[:MOST])


def _listen(source_id: uuid.UUID, ends: threading.Event) -> None:
    failures = 0
    while not ends.is_set():
        began = time.monotonic()
        try:
            if not _hear(source_id, ends):
                return
            failures = 0
        except Exception as error:  # noqa: BLE001 - the sync meets it too, and says what it is
            failures = failures + 1 if time.monotonic() - began < _STEADY_SECONDS else 1
            code = getattr(error, "code", type(error).__name__)
            log.info("not_listening", source=str(source_id), code=code)
        finally:
            connection.close()  # this thread's own
        ends.wait(backoff.delay(failures).total_seconds() if failures else 0)


def _hear(source_id: uuid.UUID, ends: threading.Event) -> bool:
    """Listen for a day, or until it is to end; False where the provider has no doorbell."""
    source = IngestionSource.objects.get(pk=source_id)
    active = Mailbox.objects.filter(source=source, state=MailboxState.ACTIVE)
    known = {
        RemoteMailbox(remote_id, address): pk
        for pk, remote_id, address in active.values_list("pk", "remote_id", "address")
    }
    if not known:  # it is unavailable, or excluded, and may come back
        connection.close()
        ends.wait(_LOOK_SECONDS)
        return True
    until = time.monotonic() + _DAY_SECONDS
    with credentials.connect(source) as connector:
        watch = connector.watch(list(known))
        if watch is None:
            log.info("no_doorbell", source=str(source_id))
            return False
        with watch:
            rang: set[uuid.UUID] = set()
            while not ends.is_set() and time.monotonic() < until:
                if rang:
                    rang -= set(ring(source_id, rang))
                connection.close()
                rang.update(known[mailbox] for mailbox in watch.wait(_WAIT_SECONDS))
    return True


def start() -> None:
    """Listen in the background for as long as this process lives."""
    threading.Thread(target=Listener().run, name="doorbells", daemon=True).start()
