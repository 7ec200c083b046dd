"""The shapes of sources, and of what is done with them and found in them. No cursor, token, key or
password ever appears in one."""

from collections.abc import Iterable
from typing import Any

from django.contrib.auth.models import User
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from ingestion import expiry, explaining, freshness, queries
from ingestion.api.inputs import ProviderConfig, SourceOptions
from ingestion.api.serializers import Moment, RowOut, Shape
from ingestion.models import FailedMessage, Folder, IngestionSource, Mailbox, Run
from ingestion.services.sources import configuration, same_account, trial
from ingestion.services.sources.options import Options


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

    `archivedUpTo`: when the oldest successful sync of the mailboxes it follows began, null until
    each was synced once. `incomplete`: what is not archived now, at most 20 mailboxes and 20
    folders. `attention`: why it needs somebody, empty where it needs nobody. `lastSyncFinishedAt`
    is the last try, whatever came of it. `credentialsExpireOn`: as told in `options`, or as a
    certificate says itself.
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
        return Options.shown(source.options)

    @extend_schema_field(serializers.DateField(allow_null=True))
    def get_credentialsExpireOn(self, source: IngestionSource) -> str | None:  # noqa: N802 - the API's name
        day = expiry.of(source)
        return day.isoformat() if day else None

    @extend_schema_field(LeftOutOut(many=True))
    def get_incomplete(self, source: IngestionSource) -> list[dict[str, Any]]:
        return [_LEFT_OUT.to_representation(one) for one in explaining.left_out(source)]

    @extend_schema_field(ReasonOut(many=True))
    def get_attention(self, source: IngestionSource) -> list[dict[str, Any]]:
        return [_REASON.to_representation(reason) for reason in explaining.reasons(source)]

    @extend_schema_field(RunOut(allow_null=True))
    def get_currentRun(self, source: Any) -> dict[str, Any] | None:  # noqa: N802 - the API's name
        return next(map(_RUN.to_representation, source.unfinished_runs), None)


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
    """Annotate what `present_sources` needs, of a page at the most."""
    return freshness.judged(sources)


def present_sources(rows: Iterable[IngestionSource]) -> list[dict[str, Any]]:
    """Return the source objects of what came through `source_rows`."""
    return list(SourceOut(queries.with_counts(freshness.read(rows)), many=True).data)


def present_source(source: IngestionSource, *, user: User) -> dict[str, Any]:
    """Return the object of one source that came through `source_rows`."""
    [found] = queries.with_counts(freshness.read([source]))
    return dict(OneSourceOut(found, context={"user": user}).data)


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
    """What came of a configuration that was tried: all steps, or up to the one that failed, but for
    those that the provider tells nothing of. `warnings`: as of a source."""

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
    outdatedMessages = serializers.IntegerField(
        help_text="Of the indexed ones, those that are to be read again, as by a newer version:"
        " they are found meanwhile as they were read before."
    )
    indexDefects = serializers.IntegerField(
        help_text="Of the indexed ones, those of which a part could not be read or was cut."
    )
    unreadablePacks = serializers.IntegerField(
        help_text="Packs whose messages can't be indexed: they are missing, or out of reach."
    )
    byFolder = FolderOut(many=True)
