"""Server-sent events: a source's progress, once a second, for as long as there is any.

A stream holds a web thread, so it ends when the run does, and after MAX_SECONDS: clients of
EventSource reconnect by themselves.
"""

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

from django.db import connection
from rest_framework.renderers import BaseRenderer, JSONRenderer

from ingestion import queries
from ingestion.api import serializers
from ingestion.models import IngestionSource

MAX_SECONDS = 300
_TICK_SECONDS = 1.0


class EventStreamRenderer(BaseRenderer):
    """Lets a client ask for text/event-stream; errors are JSON all the same."""

    media_type = "text/event-stream"
    format = "events"
    charset = None

    def render(self, data: Any, *args: Any, **kwargs: Any) -> bytes:
        return JSONRenderer().render(data)


def progress(source_id: uuid.UUID) -> Iterator[bytes]:
    """Yield `progress` events until no run is under way, then one `end` event."""
    until = time.monotonic() + MAX_SECONDS
    while time.monotonic() < until:
        found = queries.with_counts(IngestionSource.objects.filter(pk=source_id, deleted_at=None))
        source = found.first()
        run = queries.current_runs([source]).get(source_id) if source else None
        state = _state(source, run) if source else {"status": "deleted"}
        connection.close()  # between two looks the thread needs none
        yield _event("progress" if run else "end", state)
        if run is None:
            return
        time.sleep(_TICK_SECONDS)  # the rhythm of the stream, not a wait for something


def _state(source: IngestionSource, run: Any) -> dict[str, Any]:
    context = {"runs": {source.pk: run} if run else {}}
    shown = serializers.SourceOut(source, context=context).data
    names = ("status", "statusMessage", "messageCount", "archivedBytes", "currentRun")
    return {name: shown[name] for name in (*names, "failedMessageCount")}


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, default=str)}\n\n".encode()
