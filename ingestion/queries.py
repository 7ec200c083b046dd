"""Reads that more than one interface shows. Each costs a constant number of queries."""

import base64
import binascii
import dataclasses
import datetime as dt
import json
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from django.contrib.auth.models import AnonymousUser, User
from django.db import connection
from django.db.models import Count, Exists, OuterRef, Q, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce

from ingestion.models import (
    FEW_SOURCES,
    Alert,
    FailedMessage,
    Folder,
    IngestionSource,
    Mailbox,
    Message,
    Pack,
    Placement,
    WebhookEndpoint,
)


def visible_sources(user: User | AnonymousUser) -> QuerySet[IngestionSource]:
    """Return the sources that a user may see: their own; all of them for permitted staff."""
    sources = IngestionSource.objects.filter(deleted_at=None)
    if sees_service(user):
        return sources
    return sources.filter(owner_id=user.pk)


def hidden_sources(user: User) -> QuerySet[IngestionSource]:
    """Return the sources that a user may not see. Of one that was deleted nobody can tell any
    more."""
    there = IngestionSource.objects.filter(deleted_at=None)
    return there.exclude(pk__in=visible_sources(user).values("pk"))


def with_counts(sources: Iterable[IngestionSource]) -> list[Any]:
    """Return sources with a `mailbox_count` and a `failed_message_count`."""
    found = list(sources)
    mailboxes = _number_by("source", Mailbox.objects.all(), found)
    failures = _number_by("mailbox__source", FailedMessage.objects.all(), found)
    for source in found:
        vars(source)["mailbox_count"] = mailboxes.get(source.pk, 0)
        vars(source)["failed_message_count"] = failures.get(source.pk, 0)
    return found


def _number_by(
    path: str, rows: QuerySet[Any], sources: list[IngestionSource]
) -> dict[uuid.UUID, int]:
    """Count the rows of each source, which stands at `path` of a row."""
    if len(sources) <= FEW_SOURCES:
        rows = rows.filter(**{f"{path}__in": [source.pk for source in sources]})
    return dict(rows.order_by().values_list(path).annotate(n=Count("*")))


def _count(grouped: QuerySet[Any, Any]) -> Coalesce:
    return Coalesce(Subquery(grouped.annotate(n=Count("*")).values("n")), 0)


def stats(source: IngestionSource) -> dict[str, int]:
    """Return how much is archived of a source, and how many bytes its packs take."""
    packs = Pack.objects.filter(source=source).aggregate(n=Count("pk"), size=Sum("size_bytes"))
    return {
        "mailboxes": Mailbox.objects.filter(source=source).count(),
        "folders": Folder.objects.filter(mailbox__source=source, removed_at=None).count(),
        "messages": source.message_count,
        "failures": FailedMessage.objects.filter(mailbox__source=source).count(),
        "archivedBytes": source.archived_bytes,
        "storedBytes": packs["size"] or 0,
        "packs": packs["n"],
    }


def folders_with_counts(source: IngestionSource) -> QuerySet[Folder]:
    """Return a source's folders; annotates `message_count`, `failed_message_count`.

    Counts what lies in each folder now. The counting is done for the rows that are read alone:
    read a page of them.
    """
    here = Placement.objects.filter(folder=OuterRef("pk"), removed_at=None).order_by()
    failures = FailedMessage.objects.filter(folder=OuterRef("pk")).order_by()
    return (
        Folder.objects.filter(mailbox__source=source, removed_at=None)
        .annotate(
            message_count=_count(here.values("folder")),
            failed_message_count=_count(failures.values("folder")),
        )
        .select_related("mailbox")
        .order_by("mailbox__address", "mailbox", "path", "pk")
    )


def labels_with_counts(folders: Iterable[Folder], *, rows: int) -> list[tuple[str, int]]:
    """Return the labels of what lies in folders now, each with how many messages have it.

    Looks at about `rows` placements at most: where there are more, counts are of these.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT label, count(*) FROM (SELECT labels FROM ingestion_placement"
            " WHERE folder_id = ANY(%s) AND removed_at IS NULL LIMIT %s) AS here,"
            " unnest(labels) AS label GROUP BY label ORDER BY lower(label), label",
            [[folder.pk for folder in folders], rows],
        )
        return list(cursor.fetchall())


def failures_by_code(*, rows: int) -> list[tuple[str, int, str]]:
    """Return (code, how many, a reason of one of them) of failed messages, the most first.

    Looks at `rows` of them at most: where there are more, counts are of these.
    """
    with connection.cursor() as cursor:
        # Not by a join: few mailboxes are of deleted sources.
        cursor.execute(
            "SELECT code, count(*), max(reason) FROM (SELECT code, reason"
            " FROM ingestion_failedmessage WHERE mailbox_id NOT IN (SELECT m.id FROM"
            " ingestion_mailbox m JOIN ingestion_ingestionsource s ON s.id = m.source_id"
            " WHERE s.deleted_at IS NOT NULL) LIMIT %s) AS found GROUP BY code ORDER BY 2 DESC, 1",
            [rows],
        )
        return list(cursor.fetchall())


_PLACEMENT_ROWS = 5_000


def placements_of(folder: Folder) -> Iterator[list[tuple[int, str]]]:
    """Yield (id, remote id) of what lies in a folder now, some thousand at a time, by remote id.

    Each list is a query of its own: rows may change between two of them.
    """
    here = Placement.objects.filter(folder=folder, removed_at=None)
    after = ""
    while (
        rows := list(
            here.filter(remote_id__gt=after)
            .order_by("remote_id")  # by placement_identity; by pk it may read every folder's
            .values_list("pk", "remote_id")[:_PLACEMENT_ROWS]
        )
    ):
        yield rows
        after = rows[-1][1]


def visible_webhooks(user: User | AnonymousUser) -> QuerySet[WebhookEndpoint]:
    """Return the webhooks that a user may see: their own; all of them for permitted staff."""
    if user.is_staff and user.has_perm("ingestion.view_webhookendpoint"):
        return WebhookEndpoint.objects.all()
    return WebhookEndpoint.objects.filter(owner_id=user.pk)


def sees_service(user: User | AnonymousUser) -> bool:
    """Tell whether a user is told of what concerns the whole service: who may see all sources."""
    return user.is_staff and user.has_perm("ingestion.view_ingestionsource")


class Hearers:
    """Tells of many people whether they are told of sources, and of the service (None): of what
    they may see. Each person is asked for once."""

    def __init__(self, sources: Iterable[uuid.UUID | None]) -> None:
        self._sources = {pk for pk in sources if pk}
        self._told: dict[int, set[uuid.UUID | None]] = {}

    def __call__(self, user: User, source: uuid.UUID | None) -> bool:
        if user.pk not in self._told:
            seen = visible_sources(user).filter(pk__in=self._sources)
            service = {None} if sees_service(user) else set()
            self._told[user.pk] = {*seen.values_list("pk", flat=True), *service}
        return source in self._told[user.pk]


def visible_alerts(user: User | AnonymousUser) -> QuerySet[Alert]:
    """Return the alerts that a user may see: of visible sources, and of the service."""
    ours = Q(source__in=visible_sources(user))
    found = Alert.objects.filter(ours | Q(source=None) if sees_service(user) else ours)
    return found.select_related("source")


# -- messages ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class MessageFilter:
    """What `messages` is narrowed to; None or "" does not narrow."""

    source: uuid.UUID | None = None
    mailbox: uuid.UUID | None = None
    folder: int | None = None
    sender: str = ""
    subject: str = ""
    received_from: dt.datetime | None = None
    received_before: dt.datetime | None = None


def reads_mail(user: User | AnonymousUser) -> bool:
    """Tell whether a user may read any mail: of their own sources at least.

    Staff need the permission to see messages for that, also in sources that they made: a source's
    state is an operator's business, the mail in it is not.
    """
    return not user.is_staff or user.has_perm("ingestion.view_message")


def sees_all_mail(user: User | AnonymousUser) -> bool:
    """Tell whether a user may see everybody's mail."""
    return user.is_staff and reads_mail(user) and user.has_perm("ingestion.view_ingestionsource")


def sources_of_mail(user: User | AnonymousUser) -> QuerySet[IngestionSource]:
    """Return the sources whose mail a user may see: their own, see `reads_mail`, or all of them."""
    sources = IngestionSource.objects.filter(deleted_at=None)
    if not reads_mail(user):
        return sources.none()
    return sources if sees_all_mail(user) else sources.filter(owner_id=user.pk)


def visible_messages(user: User | AnonymousUser) -> QuerySet[Message]:
    """Return the archived messages that a user may see."""
    return Message.objects.filter(mailbox__source__in=sources_of_mail(user))


def message(user: User | AnonymousUser, pk: uuid.UUID) -> Message | None:
    """Return a message that a user may see, with its source and what is indexed of it."""
    found = visible_messages(user).select_related("mailbox__source", "document")
    return found.defer("document__words", "document__numbers").filter(pk=pk).first()


def conversation(user: User | AnonymousUser, message: Message, *, limit: int) -> list[Message]:
    """Return the other messages of a message's thread in its mailbox, eldest first, with their
    documents. Empty where it is not indexed."""
    if not hasattr(message, "document"):
        return []
    thread = message.document.thread
    found = visible_messages(user).filter(
        document__mailbox=message.mailbox_id, document__thread=thread
    )
    others = (
        found.exclude(pk=message.pk)
        .select_related("document")
        .defer("document__words", "document__numbers")
    )
    return list(others.order_by("document__date", "pk")[:limit])


def messages(
    user: User | AnonymousUser, wanted: MessageFilter, *, cursor: str, size: int
) -> tuple[list[Message], str]:
    """Return a page of messages, newest archived first, and the cursor of the next ("" at the end).

    Costs the same at any depth: the cursor is a position in the index. What has a folder, sender or
    subject is looked for row by row from there; a folder's are also those that have left it.
    Raises ValueError for a cursor that this function did not make.
    """
    found = visible_messages(user)
    if wanted.source:
        found = found.filter(mailbox__source=wanted.source)
    if wanted.mailbox:
        found = found.filter(mailbox=wanted.mailbox)
    if wanted.folder:
        in_folder = Placement.objects.filter(message=OuterRef("pk"), folder=wanted.folder)
        found = found.filter(Exists(in_folder))
    if wanted.sender:
        found = found.filter(sender__icontains=wanted.sender)
    if wanted.subject:
        found = found.filter(subject__icontains=wanted.subject)
    if wanted.received_from:
        found = found.filter(received_at__gte=wanted.received_from)
    if wanted.received_before:
        found = found.filter(received_at__lt=wanted.received_before)
    if cursor:
        at, after = _read_cursor(cursor)
        # The first condition alone is a range of the index, which the OR would not be.
        found = found.filter(archived_at__lte=at)
        found = found.filter(Q(archived_at__lt=at) | Q(pk__lt=after))
    page = list(
        found.order_by("-archived_at", "-pk")
        .select_related("mailbox")
        .prefetch_related("placements__folder")[: size + 1]
    )
    if len(page) <= size:
        return page, ""
    return page[:size], _write_cursor(page[size - 1])


def _write_cursor(last: Message) -> str:
    position = json.dumps([last.archived_at.isoformat(), str(last.pk)])
    return base64.urlsafe_b64encode(position.encode()).decode()


def _read_cursor(cursor: str) -> tuple[dt.datetime, uuid.UUID]:
    try:
        at, after = json.loads(base64.urlsafe_b64decode(cursor))
        moment = dt.datetime.fromisoformat(at)
        return moment.astimezone(dt.UTC), uuid.UUID(after)
    except (binascii.Error, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError("not a cursor") from error
