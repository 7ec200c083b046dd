"""Listens to providers that tell of new mail at once, and lets whose bell rang have their turn now.

For sources with the option "listen", of providers that can (`Connector.watch`): a thread and a
connection each. Nothing depends on it. A ring only moves the time of the next look; who is not
listened to, or whose ring is lost, is looked at in its turn as everybody else. Each process of
`control` listens: where there are several, a mailbox rings several times, which costs nothing.
"""

import threading
import time
import uuid

import structlog
from django.db import DatabaseError, connection

from connectors.types import RemoteMailbox
from ingestion.models import IngestionSource, Mailbox
from ingestion.services.engine import backoff, lease
from ingestion.services.sources import credentials
from ingestion.states import MailboxState, SourceStatus

log = structlog.get_logger(__name__)

#: So many mailboxes are listened to at most: each is a connection that the server must bear.
MOST = 200
#: How soon a change of what is chosen is seen.
_LOOK_SECONDS = 10.0
#: How soon a thread sees that it is to end, and a ring is passed on that came while a sync ran.
_WAIT_SECONDS = 2.0

#: Not more often than every ten seconds, however often it rings.
_RING = """
UPDATE ingestion_ingestionsource
   SET next_sync_at = least(
           next_sync_at, greatest(now(), last_sync_finished_at + interval '10 seconds'))
 WHERE id = %s AND status = 'active' AND next_sync_at IS NOT NULL"""


def ring(source_id: uuid.UUID) -> bool:
    """Have a source looked at now; False where a sync is under way, or it is not followed."""
    with connection.cursor() as cursor:
        cursor.execute(_RING, [source_id])
        return bool(cursor.rowcount)


class Listener:
    """All that is listened to by this process. `keep_up` begins and ends what is to be."""

    def __init__(self) -> None:
        #: By source and version of its credentials: the thread, and what ends it.
        self._threads: dict[tuple[uuid.UUID, int], tuple[threading.Thread, threading.Event]] = {}

    def run(self) -> None:
        """Listen until the worker is told to end."""
        while not lease.leaving.is_set():
            try:
                self.keep_up()
            except DatabaseError as error:
                log.warning("database_unavailable", error=type(error).__name__)
            finally:
                connection.close()  # this thread's own
            time.sleep(_LOOK_SECONDS)
        self.end()

    def keep_up(self) -> None:
        chosen = IngestionSource.objects.filter(
            status=SourceStatus.ACTIVE, deleted_at=None, options__listen=True
        )
        wanted = set(chosen.order_by("pk").values_list("pk", "credentials_version")[:MOST])
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

    def end(self) -> None:
        """Listen to nobody any more, and wait until that is so."""
        for _, ends in self._threads.values():
            ends.set()
        for thread, _ in self._threads.values():
            thread.join()


def _listen(source_id: uuid.UUID, ends: threading.Event) -> None:
    failures = 0
    while not ends.is_set():
        try:
            if not _hear(source_id, ends):
                return
            failures = 0
        except Exception as error:  # noqa: BLE001 - the sync meets it too, and says what it is
            failures += 1
            log.info("not_listening", source=str(source_id), error=type(error).__name__)
        finally:
            connection.close()  # this thread's own
        ends.wait(backoff.delay(failures).total_seconds() if failures else 0)


def _hear(source_id: uuid.UUID, ends: threading.Event) -> bool:
    """Listen on one connection until it is to end; False where there is nothing to listen to."""
    mailbox = (
        Mailbox.objects.select_related("source")
        .filter(source=source_id, state=MailboxState.ACTIVE)
        .first()
    )
    if mailbox is None:
        return False
    with credentials.connect(mailbox.source) as connector:
        watch = connector.watch(RemoteMailbox(mailbox.remote_id, mailbox.address))
        if watch is None:
            log.info("no_doorbell", source=str(source_id))
            return False
        with watch:
            rang = True  # whatever came while nobody listened
            while not ends.is_set():
                if rang:
                    rang = not ring(source_id)
                    connection.close()
                rang = watch.wait(_WAIT_SECONDS) or rang
    return True


def start() -> None:
    """Listen in the background for as long as this process lives."""
    threading.Thread(target=Listener().run, name="doorbells", daemon=True).start()
