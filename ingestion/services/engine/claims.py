"""The claim on due work: one at a time does it, however often it was handed out.

It goes with the database connection that holds it, so a worker that died claims nothing. (A mailbox
is claimed by its lease instead, which also says whose writes count.)
"""

import contextlib
import time
import uuid
from collections.abc import Iterator

from django.db import Error, connection
from django.db.backends.utils import CursorWrapper

from ingestion.services.transactions import LASTS

#: Nobody has a claim on the row for the work of %(kind)s.
FREE = """hashtext(%(kind)s || id::text)::oid <> ALL (ARRAY(
    SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND classid = hashtext('due work')::oid
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())))"""

_CLAIM = """SELECT pg_try_advisory_xact_lock{shared}(
    hashtext('due work'), hashtext(%(kind)s || %(id)s::text))"""
_POLL_SECONDS = 0.2
#: For work that is of no one row.
EVERYTHING = uuid.UUID(int=0)


@contextlib.contextmanager
def claimed(kind: str, pk: uuid.UUID) -> Iterator[bool]:
    """Have the only claim on this work for the body; False where another has it."""
    with _transaction() as cursor:
        cursor.execute(_CLAIM.format(shared=""), {"kind": kind, "id": pk})
        yield bool(cursor.fetchone()[0])


@contextlib.contextmanager
def held_off(kind: str, pk: uuid.UUID) -> Iterator[None]:
    """Have nobody claim this work for the body; any number may hold it off. Waits for who has a
    claim."""
    with _transaction() as cursor:
        while True:
            cursor.execute(_CLAIM.format(shared="_shared"), {"kind": kind, "id": pk})
            if cursor.fetchone()[0]:
                break
            time.sleep(_POLL_SECONDS)
        yield


@contextlib.contextmanager
def _transaction() -> Iterator[CursorWrapper]:
    """A transaction on a connection of its own, so that the work can't lose its claim with one that
    broke; a lock of the session would stay behind in a pooler. It locks no row."""
    own = connection.copy()
    try:
        with own.cursor() as cursor:
            cursor.execute(f"BEGIN; {LASTS}")
            yield cursor
    finally:
        # By itself the server would let go only once it sees that the connection is closed.
        with contextlib.suppress(Error):  # it is broken
            own.rollback()
        own.close()
