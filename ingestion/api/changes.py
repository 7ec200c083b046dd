"""/api/v1/changes: the feed, for programs that keep a copy of what is where.

A request that waits holds a thread of the web process, but no database connection between two
looks. MAX_WAITING per process, and MAX_OF_A_USER of them, leave threads for everybody else.
"""

import contextlib
import socket
import time
from typing import Any

from django.db import connection
from drf_spectacular.utils import (
    OpenApiExample,
    OpenApiResponse,
    extend_schema,
    extend_schema_serializer,
)
from rest_framework import serializers
from rest_framework.exceptions import APIException, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from ingestion import feed
from ingestion.api import inputs
from ingestion.api.base import ApiViewSet
from ingestion.api.schema import ErrorOut
from ingestion.models import ArchiveChange, Placement
from ingestion.places import Places
from ingestion.services.operations import people

MAX_WAIT_SECONDS = 30
MAX_WAITING = 8  # of the 32 threads of one web process
MAX_OF_A_USER = 4
_TICK_SECONDS = 0.5

_waiting = Places(total=MAX_WAITING, per_user=MAX_OF_A_USER, retry_seconds=5)

KINDS = (
    *("message.placed", "placement.changed", "placement.removed"),
    *ArchiveChange.Kind.values,
)


class Gone(APIException):
    """The cursor leads nowhere any more; the text says what to do."""

    status_code = 410
    default_code = "cursor_of_another_database"
    default_detail = (
        "This cursor is of another database: this one was restored, moved or taken over by a"
        " standby since. Forget what you have, and read again from the beginning, without `after`."
    )


class ChangesQuery(inputs.Strict):
    after = serializers.CharField(
        required=False,
        max_length=200,
        help_text=(
            "`cursor` of the page before, or of the last change that you are done with. Left out:"
            ' from the beginning. "now": no changes, and the cursor of what comes from now on.'
        ),
    )
    limit = serializers.IntegerField(required=False, default=500, min_value=1, max_value=2000)
    wait = serializers.IntegerField(
        required=False,
        default=0,
        min_value=0,
        max_value=MAX_WAIT_SECONDS,
        help_text="Where there is no change yet, wait so many seconds for one.",
    )
    source = serializers.UUIDField(  # type: ignore[assignment] # Field.source
        required=False, help_text="Only this source's. The cursors are the same."
    )


class ChangeOut(serializers.Serializer[Any]):
    """One change. The last state is told, not each step to it.

    `message.placed`: a message is in a folder, and nothing of that changed since. A message that
    was just archived comes with its first. `placement.changed`: as it is now, with other labels,
    or back after it was removed. `placement.removed`: it is in this folder no more, as of
    `removedAt`; the message stays archived. A move is one removed, and one placed elsewhere.
    `message.erased`: message and placements are gone from the archive. `source.deleted`: so is all
    of the source. `folder.renamed`, `mailbox.renamed`: the new name, for all that is in it.

    A program may see a change again, and `placement.changed` or `placement.removed` of what it has
    not seen placed: store what is told by `placementId`. What a kind does not tell is null.
    """

    kind = serializers.ChoiceField(choices=KINDS)
    cursor = serializers.CharField(help_text="To go on behind this change.")
    sourceId = serializers.UUIDField(source="source_id")
    mailboxId = serializers.UUIDField(source="mailbox_id", allow_null=True)
    mailbox = serializers.CharField(allow_null=True, help_text="Its address, as it is now.")
    folderId = serializers.IntegerField(source="folder_id", allow_null=True)
    folder = serializers.CharField(allow_null=True, help_text="Its path, as it is now.")
    placementId = serializers.IntegerField(source="placement_id", allow_null=True)
    messageId = serializers.UUIDField(
        source="message_id", allow_null=True, help_text="As in /api/v1/emails/:id."
    )
    sha256 = serializers.CharField(allow_null=True)
    sizeBytes = serializers.IntegerField(source="size_bytes", allow_null=True)
    labels = serializers.ListField(child=serializers.CharField(), allow_null=True)
    firstSeenAt = serializers.DateTimeField(source="first_seen_at", allow_null=True)
    removedAt = serializers.DateTimeField(source="removed_at", allow_null=True)


@extend_schema_serializer(many=False)
class ChangesOut(serializers.Serializer[Any]):
    """A page of the feed. Store `cursor` with what you made of the changes, and go on there.

    `more`: there is more already; ask again at once. A page may be empty and yet have more.
    """

    changes = ChangeOut(many=True)
    cursor = serializers.CharField()
    more = serializers.BooleanField()


_SOURCE = "0197c3a2-5d7e-7c11-9f53-3f0e7d6a1b20"
_PLACED: dict[str, Any] = {
    "kind": "message.placed",
    "cursor": "WyI4ZjE0ZTQ1ZmNlZWEiLDc1Myw0MTI5XQ",
    "sourceId": _SOURCE,
    "mailboxId": "0197c3a4-0b7d-4f0c-8a55-4c1e2d6f9a31",
    "mailbox": "ada@example.com",
    "folderId": 12,
    "folder": "Projects/Engine",
    "placementId": 4129,
    "messageId": "0197c3a5-77aa-7b42-8d10-9e4b5f6c7d80",
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "sizeBytes": 18230,
    "labels": ["\\Seen"],
    "firstSeenAt": "2026-11-28T09:15:04.123456Z",
    "removedAt": None,
}
_REMOVED = _PLACED | {
    "kind": "placement.removed",
    "cursor": "WyI4ZjE0ZTQ1ZmNlZWEiLDc2MCw0MTI5XQ",
    "removedAt": "2026-11-28T10:02:44.000000Z",
}
_DELETED: dict[str, Any] = dict.fromkeys(_PLACED) | {
    "kind": "source.deleted",
    "cursor": "WyI4ZjE0ZTQ1ZmNlZWEiLDc4OCw0MTMzXQ",
    "sourceId": _SOURCE,
}


def _example(name: str, *changes: dict[str, Any], more: bool = False) -> OpenApiExample:
    value = {"changes": list(changes), "cursor": changes[-1]["cursor"], "more": more}
    return OpenApiExample(name, value=value, response_only=True, status_codes=["200"])


class ChangesViewSet(ApiViewSet[Placement]):
    """What changed in the archive."""

    serializer_class = ChangesOut
    queryset = Placement.objects.none()

    @extend_schema(
        operation_id="listChanges",
        parameters=[ChangesQuery],
        responses={
            200: ChangesOut,
            410: OpenApiResponse(ErrorOut, "The cursor is of another database: read again."),
        },
        examples=[
            _example("A message came", _PLACED, more=True),
            _example("It was deleted at the provider", _REMOVED),
            _example("Somebody deleted the source", _DELETED),
        ],
    )
    def list(self, request: Request) -> Response:
        """Tell what changed after a cursor, in the order of commits.

        A program that stores the last cursor misses nothing, however many write at the same time.
        With `wait` the answer comes within about a second of the next change, or when so many
        seconds are over, with no changes. Four of a user may wait at a time, and eight of all in
        one process; others are answered 429.
        """
        wanted = self.query(ChangesQuery)
        wait = wanted["wait"]
        with _waiting.place(self.user.pk) if wait else contextlib.nullcontext():
            page = self._page(wanted, until=time.monotonic() + wait)
        shown = len(page.changes)
        people.mail_listed(query="", how="changes", shown=shown, actor=self.actor)
        return Response(ChangesOut(page).data)

    def _page(self, wanted: dict[str, Any], *, until: float) -> feed.Page:
        """Look until there is a change, or no time left."""
        after, limit, source = wanted.get("after", ""), wanted["limit"], wanted.get("source")
        while True:
            try:
                page = feed.page(self.user, after=after, limit=limit, source=source)
            except ValueError:
                raise ValidationError({"after": ["Not a cursor of this feed."]}) from None
            except feed.OtherDatabase:
                raise Gone from None
            left = until - time.monotonic()
            if page.changes or left <= 0 or after == feed.NOW or _hung_up(self.request):
                return page
            after = page.cursor
            if not page.more:
                connection.close()  # between two looks the thread needs none
                time.sleep(min(_TICK_SECONDS, left))  # a rhythm, not a wait for something


def _hung_up(request: Request) -> bool:
    """Tell whether the client is gone: nobody waits, and the place is another's."""
    connection = request.META.get("gunicorn.socket")
    if connection is None:
        return False
    try:
        return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"")
    except BlockingIOError:  # nothing to read: it listens
        return False
    except OSError:
        return True
