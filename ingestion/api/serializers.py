"""The shapes that go in and out. What is right is decided by the services; these only present."""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from connectors.registry import PROVIDERS
from ingestion.models import FailedMessage, IngestionSource, Mailbox, Message, Placement, Run
from ingestion.services import sources
from ingestion.services.options import Options
from ingestion.states import SourceStatus

_PROVIDERS = [(p.slug, p.label) for p in PROVIDERS.values()]


class _Strict(serializers.Serializer[Any]):
    """Refuses what it does not know, by name."""

    not_writable: tuple[str, ...] = ()

    def to_internal_value(self, data: Any) -> Any:
        unknown = {
            name: ["Read-only." if name in self.not_writable else "Unknown field."]
            for name in data
            if name not in self.fields
        }
        if unknown:
            raise serializers.ValidationError(unknown)
        return super().to_internal_value(data)


_READ_ONLY = (
    *("id", "lastSyncStartedAt", "lastSyncFinishedAt", "lastSyncStatusMessage", "nextSyncAt"),
    *("mailboxCount", "messageCount", "archivedBytes", "failedMessageCount", "currentRun"),
    *("createdAt", "updatedAt", "statusMessage"),
)


class CreateIngestionSource(_Strict):
    """CreateIngestionSourceDto."""

    not_writable = (*_READ_ONLY, "status")
    name = serializers.CharField(max_length=200, trim_whitespace=False)
    provider = serializers.ChoiceField(choices=_PROVIDERS)
    providerConfig = serializers.DictField()
    options = serializers.DictField(required=False)
    autoImport = serializers.BooleanField(default=False)


class UpdateIngestionSource(_Strict):
    """UpdateIngestionSourceDto: all fields are optional."""

    not_writable = (*_READ_ONLY, "autoImport")
    name = serializers.CharField(max_length=200, required=False, trim_whitespace=False)
    provider = serializers.ChoiceField(choices=_PROVIDERS, required=False)
    providerConfig = serializers.DictField(required=False)
    options = serializers.DictField(required=False)
    status = serializers.ChoiceField(choices=SourceStatus.choices, required=False)


class ListQuery(serializers.Serializer[Any]):
    provider = serializers.ChoiceField(choices=_PROVIDERS, required=False)
    status = serializers.ChoiceField(choices=SourceStatus.choices, required=False)
    search = serializers.CharField(required=False, max_length=200)
    page = serializers.IntegerField(required=False, min_value=1, max_value=1_000_000)
    pageSize = serializers.IntegerField(required=False, min_value=1, max_value=1000)


class EmailQuery(serializers.Serializer[Any]):
    source = serializers.UUIDField(required=False)  # type: ignore[assignment] # the API's name
    mailbox = serializers.UUIDField(required=False)
    folder = serializers.IntegerField(required=False, min_value=1, max_value=2**62)
    sender = serializers.CharField(required=False, max_length=200)
    subject = serializers.CharField(required=False, max_length=200)
    receivedFrom = serializers.DateTimeField(required=False)
    receivedBefore = serializers.DateTimeField(required=False)
    cursor = serializers.CharField(required=False, max_length=500)
    pageSize = serializers.IntegerField(required=False, default=50, min_value=1, max_value=500)


class RetryFailures(_Strict):
    ids = serializers.ListField(
        child=serializers.IntegerField(min_value=1, max_value=2**62),
        required=False,
        max_length=1000,
    )


class RunOut(serializers.ModelSerializer[Run]):
    mailboxesTotal = serializers.IntegerField(source="mailboxes_total")
    mailboxesDone = serializers.IntegerField(source="mailboxes_done")
    messagesTotal = serializers.IntegerField(source="messages_total")
    messagesDone = serializers.IntegerField(source="messages_done")
    messagesNew = serializers.IntegerField(source="messages_new")
    messagesFailed = serializers.IntegerField(source="messages_failed")
    bytesDone = serializers.IntegerField(source="bytes_done")
    messagesPerSecond = serializers.FloatField(source="messages_per_second", allow_null=True)
    etaSeconds = serializers.FloatField(source="eta_seconds", allow_null=True)
    startedAt = serializers.DateTimeField(source="started_at")
    finishedAt = serializers.DateTimeField(source="finished_at", allow_null=True)

    class Meta:
        model = Run
        fields = (
            *("id", "kind", "status", "message", "warning", "mailboxesTotal", "mailboxesDone"),
            *("messagesTotal", "messagesDone", "messagesNew", "messagesFailed", "bytesDone"),
            *("messagesPerSecond", "etaSeconds", "startedAt", "finishedAt"),
        )


class SourceOut(serializers.ModelSerializer[IngestionSource]):
    """The source object. Needs `queries.with_counts` and `runs` in its context."""

    statusMessage = serializers.CharField(source="status_message")
    providerConfig = serializers.SerializerMethodField()
    options = serializers.SerializerMethodField()
    lastSyncStartedAt = serializers.DateTimeField(source="last_sync_started_at", allow_null=True)
    lastSyncFinishedAt = serializers.DateTimeField(source="last_sync_finished_at", allow_null=True)
    lastSyncStatusMessage = serializers.CharField(source="last_sync_status_message")
    nextSyncAt = serializers.DateTimeField(source="next_sync_at", allow_null=True)
    mailboxCount = serializers.IntegerField(source="mailbox_count")
    messageCount = serializers.IntegerField(source="message_count")
    archivedBytes = serializers.IntegerField(source="archived_bytes")
    failedMessageCount = serializers.IntegerField(source="failed_message_count")
    currentRun = serializers.SerializerMethodField()
    createdAt = serializers.DateTimeField(source="created_at")
    updatedAt = serializers.DateTimeField(source="updated_at")

    class Meta:
        model = IngestionSource
        fields = (
            *("id", "name", "provider", "status", "statusMessage", "options", "providerConfig"),
            *("lastSyncStartedAt", "lastSyncFinishedAt", "lastSyncStatusMessage", "nextSyncAt"),
            *("mailboxCount", "messageCount", "archivedBytes", "failedMessageCount"),
            *("currentRun", "createdAt", "updatedAt"),
        )

    @extend_schema_field(serializers.DictField())
    def get_providerConfig(self, source: IngestionSource) -> dict[str, Any]:  # noqa: N802
        return sources.public_config(source)

    @extend_schema_field(serializers.DictField())
    def get_options(self, source: IngestionSource) -> dict[str, Any]:
        return Options.of(source.options).as_json()

    @extend_schema_field(RunOut(allow_null=True))
    def get_currentRun(self, source: IngestionSource) -> dict[str, Any] | None:  # noqa: N802
        run = self.context["runs"].get(source.pk)
        return RunOut(run).data if run else None


class StartedOut(serializers.Serializer[Any]):
    message = serializers.CharField()
    run = RunOut()


class VerdictOut(serializers.Serializer[Any]):
    ok = serializers.BooleanField()
    code = serializers.CharField()
    message = serializers.CharField()


class RetriedOut(serializers.Serializer[Any]):
    retried = serializers.IntegerField()


class MailboxOut(serializers.ModelSerializer[Mailbox]):
    stateReason = serializers.CharField(source="state_reason")
    messageCount = serializers.IntegerField(source="message_count")
    archivedBytes = serializers.IntegerField(source="archived_bytes")
    lastSyncedAt = serializers.DateTimeField(source="last_synced_at", allow_null=True)
    lastError = serializers.CharField(source="last_error")

    class Meta:
        model = Mailbox
        fields = (
            *("id", "address", "state", "stateReason", "messageCount", "archivedBytes"),
            *("lastSyncedAt", "lastError"),
        )


class FailureOut(serializers.ModelSerializer[FailedMessage]):
    mailbox = serializers.CharField(source="mailbox.address")
    folder = serializers.CharField(source="folder.path")
    remoteId = serializers.CharField(source="remote_id")
    sizeBytes = serializers.IntegerField(source="size_bytes", allow_null=True)
    retryAt = serializers.DateTimeField(source="not_before")
    firstFailedAt = serializers.DateTimeField(source="first_failed_at")
    lastFailedAt = serializers.DateTimeField(source="last_failed_at")

    class Meta:
        model = FailedMessage
        fields = (
            *("id", "mailbox", "folder", "remoteId", "sizeBytes", "code", "reason", "attempts"),
            *("retryAt", "firstFailedAt", "lastFailedAt"),
        )


class StatsOut(serializers.Serializer[Any]):
    messages = serializers.IntegerField()
    archivedBytes = serializers.IntegerField()
    storedBytes = serializers.IntegerField()
    packs = serializers.IntegerField()
    folders = serializers.IntegerField()
    failures = serializers.IntegerField()


class PlacementOut(serializers.ModelSerializer[Placement]):
    folder = serializers.CharField(source="folder.path")
    folderId = serializers.IntegerField(source="folder_id")
    remoteId = serializers.CharField(source="remote_id")
    firstSeenAt = serializers.DateTimeField(source="first_seen_at")
    removedAt = serializers.DateTimeField(source="removed_at", allow_null=True)

    class Meta:
        model = Placement
        fields = ("folder", "folderId", "remoteId", "labels", "firstSeenAt", "removedAt")


class EmailOut(serializers.ModelSerializer[Message]):
    sourceId = serializers.UUIDField(source="mailbox.source_id")
    mailbox = serializers.CharField(source="mailbox.address")
    sha256 = serializers.CharField(source="sha256_hex")
    sizeBytes = serializers.IntegerField(source="size_bytes")
    receivedAt = serializers.DateTimeField(source="received_at", allow_null=True)
    archivedAt = serializers.DateTimeField(source="archived_at")
    sentAt = serializers.DateTimeField(source="sent_at", allow_null=True)
    messageId = serializers.CharField(source="message_id")
    placements = PlacementOut(many=True)

    class Meta:
        model = Message
        fields = (
            *("id", "sourceId", "mailbox", "sha256", "sizeBytes", "receivedAt", "archivedAt"),
            *("subject", "sender", "recipients", "sentAt", "messageId", "defects", "placements"),
        )


class EmailPage(serializers.Serializer[Any]):
    results = EmailOut(many=True)
    nextCursor = serializers.CharField(allow_blank=True)
