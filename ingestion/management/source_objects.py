"""Sources as camelCase objects for programs, with the names of the HTTP API."""

from collections.abc import Iterable
from typing import Any

from ingestion import expiry, explaining, freshness, queries
from ingestion.management.presentation import run_object
from ingestion.models import IngestionSource
from ingestion.services.sources import configuration
from ingestion.services.sources.options import Options


def source_objects(chosen: Iterable[IngestionSource]) -> list[dict[str, Any]]:
    """Return sources as the API shows them, in the order given. A constant number of queries."""
    order = [source.pk for source in chosen]
    rows = freshness.judged(IngestionSource.objects.filter(pk__in=order))
    found = {source.pk: source for source in queries.with_counts(freshness.read(rows))}
    return [_source_object(found[pk]) for pk in order if pk in found]


def source_object(source: IngestionSource) -> dict[str, Any]:
    """Return one source as the API shows it."""
    return source_objects([source])[0]


def _source_object(source: Any) -> dict[str, Any]:
    return {
        "id": source.pk,
        "name": source.name,
        "provider": source.provider,
        "status": source.status,
        "statusMessage": source.status_message,
        "options": Options.shown(source.options),
        "providerConfig": configuration.public_config(source),
        "lastSyncStartedAt": source.last_sync_started_at,
        "lastSyncFinishedAt": source.last_sync_finished_at,
        "lastSyncStatusMessage": source.last_sync_status_message,
        "nextSyncAt": source.next_sync_at,
        "archivedUpTo": source.archived_up_to,
        "incomplete": [_left_out_object(one) for one in explaining.left_out(source)],
        "attention": [
            {"code": reason.code, "message": reason.text, "since": reason.since}
            for reason in explaining.reasons(source)
        ],
        "credentialsExpireOn": expiry.of(source),
        "mailboxCount": source.mailbox_count,
        "messageCount": source.message_count,
        "archivedBytes": source.archived_bytes,
        "failedMessageCount": source.failed_message_count,
        "currentRun": next(map(run_object, source.unfinished_runs), None),
        "createdAt": source.created_at,
        "updatedAt": source.updated_at,
    }


def _left_out_object(one: explaining.LeftOut) -> dict[str, Any]:
    return {
        "mailbox": one.mailbox,
        "folder": one.folder,
        "code": one.code,
        "message": one.message,
        "since": one.since,
        "retryAt": one.retry_at,
    }
