"""Server-sent events: a source's progress, once a second, for as long as there is any.

A stream holds a thread of the web process but no database connection between two looks. It ends
with the run, and after MAX_SECONDS: EventSource connects again by itself. MAX_STREAMS per process,
and MAX_OF_A_USER of them, leave threads for everybody else.
"""

import time
import uuid
from collections.abc import Iterator
from typing import Any, Self

from django.contrib.auth.models import User
from django.db import connection
from rest_framework.renderers import JSONRenderer

from ingestion import queries
from ingestion.api import source_serializers
from ingestion.places import Places

MAX_SECONDS = 300
MAX_STREAMS = 16  # of the 32 threads of one web process
MAX_OF_A_USER = 6
_TICK_SECONDS = 1.0
_RECONNECT_MILLISECONDS = 5000

_SHOWN = (
    *("status", "statusMessage", "messageCount", "archivedBytes", "failedMessageCount"),
    *("archivedUpTo", "incomplete", "currentRun"),
)

_places = Places(
    total=MAX_STREAMS, per_user=MAX_OF_A_USER, retry_seconds=_RECONNECT_MILLISECONDS / 1000
)


class Progress(Iterator[bytes]):
    """The bytes of one stream. Raises Throttled when made while too many are open.

    Yields `progress` events while a run is under way, comments while nothing changes, then one
    `end` event. The server calls `close`, also for a client that is gone before the first byte.
    """

    def __init__(self, source_id: uuid.UUID, user: User) -> None:
        _places.take(user.pk)
        self._user_id = user.pk
        self._open = True
        self._events = _events(source_id, user)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        return next(self._events)

    def close(self) -> None:
        """Give the place back. Idempotent."""
        if self._open:
            self._open = False
            _places.give_back(self._user_id)


def _events(source_id: uuid.UUID, user: User) -> Iterator[bytes]:
    yield f"retry: {_RECONNECT_MILLISECONDS}\n\n".encode()
    until = time.monotonic() + MAX_SECONDS
    said = b""
    while time.monotonic() < until:
        source = _look(source_id, user)
        event = _event(source)
        yield event if event != said else b": nothing new\n\n"  # finds out who is gone
        if source is None or source["currentRun"] is None:
            return
        said = event
        time.sleep(_TICK_SECONDS)  # the rhythm of the stream, not a wait for something


def _look(source_id: uuid.UUID, user: User) -> dict[str, Any] | None:
    """Return the source object as it is now; None where it is gone."""
    try:
        visible = queries.visible_sources(user).filter(pk=source_id)
        return next(
            iter(source_serializers.present_sources(source_serializers.source_rows(visible))), None
        )
    finally:
        connection.close()  # between two looks the thread needs none


def _event(source: dict[str, Any] | None) -> bytes:
    data: dict[str, Any] = {"status": "deleted"}
    if source is not None:
        data = {name: source[name] for name in _SHOWN}
    name = "end" if source is None or source["currentRun"] is None else "progress"
    return b"event: %s\ndata: %s\n\n" % (name.encode(), JSONRenderer().render(data))
