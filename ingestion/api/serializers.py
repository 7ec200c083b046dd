"""The shapes that come out. No cursor, token, key or password ever appears in one."""

import datetime as dt
import functools
import operator
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from django.contrib.auth.models import User
from django.db.models import Model, QuerySet
from drf_spectacular.utils import extend_schema_field, extend_schema_serializer
from rest_framework import serializers

from ingestion import expiry, freshness, queries
from ingestion.api.inputs import ProviderConfig, SourceOptions
from ingestion.models import (
    FailedMessage,
    Folder,
    IngestionSource,
    Mailbox,
    Message,
    Placement,
    Run,
    SavedSearch,
)
from ingestion.services.archive.reading import Reading
from ingestion.services.sources import configuration, same_account, trial
from ingestion.services.sources.options import Options

M = TypeVar("M", bound=Model)


class Moment(serializers.DateTimeField):
    """A moment as the database gives it, in UTC. DRF's own looks for the time zone each time, which
    is a tenth of a long list."""

    def to_representation(self, value: Any) -> str:
        moment: dt.datetime = value
        return moment.isoformat().replace("+00:00", "Z")


class Shape(serializers.Serializer[Any]):
    # Of rows of which a list may have a thousand: DRF finds out of each row anew how each field is
    # read, here that is found out once. No field of it is ever left out. A docstring would stand in
    # the document.

    def to_representation(self, instance: Any) -> dict[str, Any]:
        return {
            name: None if (value := read(instance)) is None else show(value)
            for name, read, show in self._plan
        }

    @functools.cached_property
    def _plan(self) -> list[tuple[str, Callable[[Any], Any], Callable[[Any], Any]]]:
        return [
            (str(field.field_name), field.to_representation, _as_it_is)
            if isinstance(field, serializers.SerializerMethodField)
            else (str(field.field_name), operator.attrgetter(str(field.source)), _shower(field))
            for field in self._readable_fields
        ]


def _as_it_is(value: Any) -> Any:
    return value


def _shower(field: Any) -> Callable[[Any], Any]:
    plain = (serializers.CharField, serializers.IntegerField, serializers.FloatField)
    return _as_it_is if isinstance(field, plain) else field.to_representation


class RowOut(serializers.ModelSerializer[M]):
    # A docstring would stand in the document. What comes out is always there, also where the model
    # has a default for it: a generated client must not take it for optional.

    def get_extra_kwargs(self) -> dict[str, dict[str, Any]]:
        return {name: {"read_only": True} for name in self.Meta.fields}


class RunOut(Shape, RowOut[Run]):
    mailboxesTotal = serializers.IntegerField(source="mailboxes_total")
    mailboxesDone = serializers.IntegerField(source="mailboxes_done")
    messagesTotal = serializers.IntegerField(source="messages_total")
    messagesDone = serializers.IntegerField(source="messages_done")
    messagesNew = serializers.IntegerField(source="messages_new")
    messagesFailed = serializers.IntegerField(source="messages_failed")
    bytesDone = serializers.IntegerField(source="bytes_done")
    messagesPerSecond = serializers.FloatField(source="messages_per_second", allow_null=True)
    etaSeconds = serializers.FloatField(source="eta_seconds", allow_null=True)
    startedAt = Moment(source="started_at")
    finishedAt = Moment(source="finished_at", allow_null=True)

    class Meta:
        model = Run
        fields = (
            *("id", "kind", "status", "message", "warning", "mailboxesTotal", "mailboxesDone"),
            *("messagesTotal", "messagesDone", "messagesNew", "messagesFailed", "bytesDone"),
            *("messagesPerSecond", "etaSeconds", "startedAt", "finishedAt"),
        )


class LeftOutOut(Shape):
    """A mailbox, or a folder of it, that is not archived now, with the reason. `since`: its last
    success, or its first failure."""

    mailbox = serializers.CharField()
    folder = serializers.CharField(allow_null=True)
    code = serializers.CharField()
    message = serializers.CharField()
    since = Moment(allow_null=True)
    retryAt = Moment(source="retry_at", allow_null=True)


class ReasonOut(Shape):
    """Why a source needs somebody. `code`: error, check_failing, sign_in_awaited, failing, late,
    mailboxes_unavailable, folders_failing or messages_failing."""

    code = serializers.CharField()
    message = serializers.CharField(source="text")
    since = Moment(allow_null=True)


#: Made once: making one costs more than what it does for a row.
_RUN, _LEFT_OUT, _REASON = RunOut(), LeftOutOut(), ReasonOut()


class SourceOut(Shape, RowOut[IngestionSource]):
    """The source object. Made by `present_sources` of what came through `source_rows`.

    `archivedUpTo`: the oldest successful sync of the mailboxes it follows, null until each was
    synced once. `incomplete`: what is not archived now, at most 20 mailboxes and 20 folders.
    `attention`: why it needs somebody, empty where it needs nobody. `lastSyncFinishedAt` is the
    last try, whatever came of it. `credentialsExpireOn`: as told in `options`, or as a certificate
    says itself.
    """

    archivedUpTo = Moment(source="archived_up_to", allow_null=True)
    credentialsExpireOn = serializers.SerializerMethodField()
    incomplete = serializers.SerializerMethodField()
    attention = serializers.SerializerMethodField()

    statusMessage = serializers.CharField(source="status_message")
    providerConfig = serializers.SerializerMethodField()
    options = serializers.SerializerMethodField()
    lastSyncStartedAt = Moment(source="last_sync_started_at", allow_null=True)
    lastSyncFinishedAt = Moment(source="last_sync_finished_at", allow_null=True)
    lastSyncStatusMessage = serializers.CharField(source="last_sync_status_message")
    nextSyncAt = Moment(source="next_sync_at", allow_null=True)
    mailboxCount = serializers.IntegerField(source="mailbox_count")
    messageCount = serializers.IntegerField(source="message_count")
    archivedBytes = serializers.IntegerField(source="archived_bytes")
    failedMessageCount = serializers.IntegerField(source="failed_message_count")
    currentRun = serializers.SerializerMethodField()
    createdAt = Moment(source="created_at")
    updatedAt = Moment(source="updated_at")

    class Meta:
        model = IngestionSource
        fields: tuple[str, ...] = (
            *("id", "name", "provider", "status", "statusMessage", "options", "providerConfig"),
            *("lastSyncStartedAt", "lastSyncFinishedAt", "lastSyncStatusMessage", "nextSyncAt"),
            *("archivedUpTo", "incomplete", "attention", "credentialsExpireOn"),
            *("mailboxCount", "messageCount", "archivedBytes", "failedMessageCount"),
            *("currentRun", "createdAt", "updatedAt"),
        )

    @extend_schema_field(ProviderConfig(read_only=True))
    def get_providerConfig(self, source: IngestionSource) -> dict[str, Any]:  # noqa: N802 - the API's name
        return configuration.public_config(source)

    @extend_schema_field(SourceOptions(read_only=True))
    def get_options(self, source: IngestionSource) -> dict[str, Any]:
        return Options.of(source.options).as_json()

    @extend_schema_field(serializers.DateField(allow_null=True))
    def get_credentialsExpireOn(self, source: IngestionSource) -> str | None:  # noqa: N802 - the API's name
        day = expiry.of(source)
        return day.isoformat() if day else None

    @extend_schema_field(LeftOutOut(many=True))
    def get_incomplete(self, source: IngestionSource) -> list[dict[str, Any]]:
        return [_LEFT_OUT.to_representation(one) for one in freshness.left_out(source)]

    @extend_schema_field(ReasonOut(many=True))
    def get_attention(self, source: IngestionSource) -> list[dict[str, Any]]:
        return [_REASON.to_representation(reason) for reason in freshness.reasons(source)]

    @extend_schema_field(RunOut(allow_null=True))
    def get_currentRun(self, source: IngestionSource) -> dict[str, Any] | None:  # noqa: N802 - the API's name
        run = self.context["runs"].get(source.pk)
        return _RUN.to_representation(run) if run else None


class OneSourceOut(SourceOut):
    """A source that was asked for alone. `warnings`: sentences about what is allowed and perhaps
    not meant, such as that another source archives the same account."""

    warnings = serializers.SerializerMethodField()

    class Meta(SourceOut.Meta):
        fields = (*SourceOut.Meta.fields, "warnings")

    def get_warnings(self, source: IngestionSource) -> list[str]:
        return same_account.of_source(source, user=self.context["user"])


#: What no list shows: of a thousand rows each moment takes a hundredth of the time.
NOT_SHOWN = ("handed_out_at", "deleted_at", "imported_at", "proven_at", "check_not_before")


def source_rows(sources: QuerySet[IngestionSource]) -> QuerySet[IngestionSource]:
    """Annotate what `present_sources` needs."""
    return freshness.judged(sources)


def present_sources(rows: Iterable[IngestionSource]) -> list[dict[str, Any]]:
    """Return the source objects of what came through `source_rows`."""
    found = queries.with_counts(rows)
    context = {"runs": queries.current_runs(found)}
    return list(SourceOut(found, many=True, context=context).data)


def present_source(source: IngestionSource, *, user: User) -> dict[str, Any]:
    """Return the object of one source that came through `source_rows`."""
    found = queries.with_counts([source])
    context = {"runs": queries.current_runs(found), "user": user}
    return dict(OneSourceOut(found[0], context=context).data)


class StartedOut(serializers.Serializer[Any]):
    message = serializers.CharField()
    run = RunOut()


class VerdictOut(serializers.Serializer[Any]):
    """What the check of the credentials found. `code` is "ok", or says what is wrong."""

    ok = serializers.BooleanField()
    code = serializers.CharField()
    message = serializers.CharField()


class StepOut(serializers.Serializer[Any]):
    """What came of one step. `code` is "ok", or says what is wrong."""

    name = serializers.ChoiceField(choices=list(trial.STEPS))
    title = serializers.CharField()
    ok = serializers.BooleanField()
    code = serializers.CharField()
    message = serializers.CharField(source="text")


class TrialOut(serializers.Serializer[Any]):
    """What came of a configuration that was tried: all steps, or up to the one that failed.
    `warnings`: as of a source."""

    ok = serializers.BooleanField()
    steps = StepOut(many=True)
    warnings = serializers.ListField(child=serializers.CharField())


class SignInOut(serializers.Serializer[Any]):
    """Where to send the person. `redirectUri` must be registered with the provider."""

    authorizeUrl = serializers.CharField(source="url")
    redirectUri = serializers.CharField(source="redirect_uri")


class ConsentLinkOut(serializers.Serializer[Any]):
    """A link for the owner of the account. `url` is in this answer alone: only its hash is kept."""

    url = serializers.CharField()
    expiresAt = Moment(source="expires_at")


class RetriedOut(serializers.Serializer[Any]):
    retried = serializers.IntegerField()


class MailboxOut(Shape, RowOut[Mailbox]):
    stateReason = serializers.CharField(source="state_reason")
    messageCount = serializers.IntegerField(source="message_count")
    archivedBytes = serializers.IntegerField(source="archived_bytes")
    lastSyncedAt = Moment(source="last_synced_at", allow_null=True)
    lastErrorCode = serializers.CharField(source="last_error_code")
    lastError = serializers.CharField(source="last_error")

    class Meta:
        model = Mailbox
        fields = (
            *("id", "address", "state", "stateReason", "messageCount", "archivedBytes"),
            *("lastSyncedAt", "lastErrorCode", "lastError"),
        )


class FailureOut(Shape, RowOut[FailedMessage]):
    mailbox = serializers.CharField(source="mailbox.address")
    folder = serializers.CharField(source="folder.path")
    remoteId = serializers.CharField(source="remote_id")
    sizeBytes = serializers.IntegerField(source="size_bytes", allow_null=True)
    retryAt = Moment(source="not_before")
    firstFailedAt = Moment(source="first_failed_at")
    lastFailedAt = Moment(source="last_failed_at")

    class Meta:
        model = FailedMessage
        fields = (
            *("id", "mailbox", "folder", "remoteId", "sizeBytes", "code", "reason", "attempts"),
            *("retryAt", "firstFailedAt", "lastFailedAt"),
        )


class FolderOut(Shape, RowOut[Folder]):
    """A folder and how much of it is archived. `remoteCount` is the provider's own count.

    `failingSince`: the folder can't be read, for the reason in `lastError`, and is tried again at
    `retryAt`.
    """

    mailbox = serializers.CharField(source="mailbox.address")
    messages = serializers.IntegerField(source="message_count")
    failures = serializers.IntegerField(source="failed_message_count")
    remoteCount = serializers.IntegerField(source="remote_count", allow_null=True)
    listedAt = Moment(source="listed_at", allow_null=True)
    failingSince = Moment(source="failing_since", allow_null=True)
    lastErrorCode = serializers.CharField(source="last_error_code")
    lastError = serializers.CharField(source="last_error")
    retryAt = Moment(source="not_before", allow_null=True)

    class Meta:
        model = Folder
        fields = (
            *("id", "mailbox", "path", "role", "messages", "failures", "remoteCount", "listedAt"),
            *("failingSince", "lastErrorCode", "lastError", "retryAt"),
        )


class StatsOut(serializers.Serializer[Any]):
    """How much is archived, and what it takes. `byFolder` is one page of the folders."""

    mailboxes = serializers.IntegerField()
    folders = serializers.IntegerField()
    messages = serializers.IntegerField()
    failures = serializers.IntegerField()
    archivedBytes = serializers.IntegerField(help_text="Of the messages as they were served.")
    storedBytes = serializers.IntegerField(help_text="Of the packs, which are compressed.")
    packs = serializers.IntegerField()
    indexedMessages = serializers.IntegerField(
        help_text="That search, lists by date and threads know of."
    )
    unindexedMessages = serializers.IntegerField(help_text="That wait to be indexed.")
    indexDefects = serializers.IntegerField(
        help_text="Of the indexed ones, those of which a part could not be read or was cut."
    )
    unreadablePacks = serializers.IntegerField(
        help_text="Packs whose messages can't be indexed: they are missing, or out of reach."
    )
    byFolder = FolderOut(many=True)


class PlacementOut(Shape, RowOut[Placement]):
    folder = serializers.CharField(source="folder.path")
    folderId = serializers.IntegerField(source="folder_id")
    remoteId = serializers.CharField(source="remote_id")
    firstSeenAt = Moment(source="first_seen_at")
    removedAt = Moment(source="removed_at", allow_null=True)

    class Meta:
        model = Placement
        fields = ("folder", "folderId", "remoteId", "labels", "firstSeenAt", "removedAt")


class EmailOut(RowOut[Message]):
    sourceId = serializers.UUIDField(source="mailbox.source_id")
    mailboxId = serializers.UUIDField(source="mailbox_id")
    mailbox = serializers.CharField(source="mailbox.address")
    sha256 = serializers.CharField(source="sha256_hex")
    sizeBytes = serializers.IntegerField(source="size_bytes")
    receivedAt = Moment(source="received_at", allow_null=True)
    archivedAt = Moment(source="archived_at")
    sentAt = Moment(source="sent_at", allow_null=True)
    messageId = serializers.CharField(source="message_id")
    placements = PlacementOut(many=True)

    class Meta:
        model = Message
        fields = (
            *("id", "sourceId", "mailboxId", "mailbox", "sha256", "sizeBytes", "receivedAt"),
            *("archivedAt", "subject", "sender", "recipients", "sentAt", "messageId", "defects"),
            "placements",
        )


class HeadersOut(serializers.Serializer[Any]):
    """Header fields beside the others, each where the email has it. `references`: eldest first."""

    replyTo = serializers.CharField(required=False)
    sender = serializers.CharField(required=False, help_text="The Sender header, not From.")
    bcc = serializers.CharField(required=False)
    resentFrom = serializers.CharField(required=False)
    resentTo = serializers.CharField(required=False)
    inReplyTo = serializers.CharField(required=False)
    references = serializers.ListField(child=serializers.CharField(), required=False)


class AttachmentOut(serializers.Serializer[Any]):
    """`number` is its place in `/emails/{id}/attachments/{number}`; size and SHA-256 are of what is
    downloaded there. `inline`: it belongs into the text, such as a picture."""

    number = serializers.IntegerField(min_value=1)
    name = serializers.CharField(allow_blank=True)
    type = serializers.CharField()
    sizeBytes = serializers.IntegerField(source="size_bytes")
    sha256 = serializers.CharField()
    inline = serializers.BooleanField()


class InThreadOut(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    date = Moment(source="document.date")
    sender = serializers.CharField()
    subject = serializers.CharField()


class HtmlOut(serializers.Serializer[Any]):
    """`markup` is sanitised; show it in a sandboxed frame all the same. `remote`: so many pictures
    elsewhere were left out."""

    markup = serializers.CharField(allow_blank=True)
    remote = serializers.IntegerField()
    notes = serializers.ListField(child=serializers.CharField())


class ReadEmailOut(EmailOut):
    """An email with what it says.

    `indexed`: whether `headers` and `thread` are known. They and `attachments` are also known where
    `text` is. `thread`: the other emails of its conversation in this mailbox, 100 at most. `notes`
    say what `text` is not.
    """

    indexed = serializers.SerializerMethodField()
    indexDefects = serializers.SerializerMethodField()
    headers = serializers.SerializerMethodField()
    attachments = serializers.SerializerMethodField()
    thread = serializers.SerializerMethodField()
    text = serializers.SerializerMethodField()
    notes = serializers.SerializerMethodField()
    html = serializers.SerializerMethodField()

    class Meta:
        model = Message
        fields = (
            *(*EmailOut.Meta.fields, "indexed", "indexDefects", "headers", "attachments", "thread"),
            *("text", "notes", "html"),
        )

    @property
    def _read(self) -> Reading | None:
        read: Reading | None = self.context["read"]
        return read

    def get_indexed(self, message: Message) -> bool:
        return hasattr(message, "document")

    def get_indexDefects(self, message: Message) -> list[str]:  # noqa: N802 - the API's name
        return message.document.defects if hasattr(message, "document") else []

    @extend_schema_field(HeadersOut)
    def get_headers(self, message: Message) -> dict[str, Any]:
        if hasattr(message, "document"):
            return dict(message.document.fields)
        return self._read.named.fields if self._read else {}

    @extend_schema_field(AttachmentOut(many=True))
    def get_attachments(self, message: Message) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = []
        if self._read:
            listed = [attachment._asdict() for attachment in self._read.contents.attachments]
        elif hasattr(message, "document"):
            listed = message.document.attachments
        numbered = [one | {"number": number} for number, one in enumerate(listed, 1)]
        return list(AttachmentOut(numbered, many=True).data)

    @extend_schema_field(InThreadOut(many=True))
    def get_thread(self, _message: Message) -> list[dict[str, Any]]:
        return list(InThreadOut(self.context["thread"], many=True).data)

    def get_text(self, _message: Message) -> str | None:
        return self._read.contents.text if self._read else None

    def get_notes(self, _message: Message) -> list[str]:
        return list(self._read.contents.notes) if self._read else []

    @extend_schema_field(HtmlOut(allow_null=True))
    def get_html(self, _message: Message) -> dict[str, Any] | None:
        return dict(HtmlOut(self._read.html).data) if self._read and self._read.html else None


class PieceOut(serializers.Serializer[Any]):
    """A part of a text, and whether the query asks for it. It is text, never markup."""

    text = serializers.CharField()
    found = serializers.BooleanField()


class HighlightOut(serializers.Serializer[Any]):
    """The subject, and an excerpt of the text, which is empty where the words stand elsewhere."""

    subject = PieceOut(many=True)
    text = PieceOut(many=True)


class FoundEmailOut(EmailOut):
    """An email. In a search it has `preview`, null for a key without the scope `export`; and
    `highlight`: null without `highlight=true`, and where the email could not be read in the time
    that a page has for it."""

    preview = serializers.CharField(source="document.preview", required=False, allow_null=True)
    highlight = HighlightOut(required=False, allow_null=True)

    class Meta:
        model = Message
        fields = (*EmailOut.Meta.fields, "preview", "highlight")

    def to_representation(self, instance: Message) -> dict[str, Any]:
        shown: dict[str, Any] = super().to_representation(instance)
        if "preview" in shown and not self.context["may_read"]:
            shown["preview"] = None  # it is the beginning of the text
        return shown


class CountOut(serializers.Serializer[Any]):
    """How many are found; `more`: there are more than that."""

    number = serializers.IntegerField()
    more = serializers.BooleanField()


class FacetValueOut(serializers.Serializer[Any]):
    """`query`: the term that narrows a search to it."""

    text = serializers.CharField()
    count = serializers.IntegerField(source="number")
    query = serializers.CharField()


class FacetsOut(serializers.Serializer[Any]):
    """How what is found divides, over the `of` newest hits; `more`: there are more than those."""

    of = serializers.IntegerField()
    more = serializers.BooleanField()
    values = serializers.DictField(child=FacetValueOut(many=True))


@extend_schema_serializer(many=False)
class EmailPage(serializers.Serializer[Any]):
    """Emails, newest archived first. `nextCursor` is empty on the last page."""

    results = EmailOut(many=True)
    nextCursor = serializers.CharField(allow_blank=True)


@extend_schema_serializer(many=False)
class FoundPage(serializers.Serializer[Any]):
    """Emails in the order asked for. `nextCursor` is empty on the last page, and so is
    `previousCursor`, which a search has, on the first."""

    results = FoundEmailOut(many=True)
    nextCursor = serializers.CharField(allow_blank=True)
    previousCursor = serializers.CharField(allow_blank=True, required=False)
    count = CountOut(required=False)
    facets = FacetsOut(required=False)


class SavedSearchOut(serializers.ModelSerializer[SavedSearch]):
    createdAt = Moment(source="created_at")

    class Meta:
        model = SavedSearch
        fields = ("id", "name", "query", "createdAt")
