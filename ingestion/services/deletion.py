"""Removes what a deleted source left behind: rows in batches, then its packs, then its own row.

Every step is idempotent and the tombstone goes last, so a crash anywhere is only a delay.
"""

import uuid

import structlog
from django.db import connection, transaction

from ingestion.archive.store import store
from ingestion.models import IngestionSource

log = structlog.get_logger(__name__)

_BATCH_ROWS = 20_000
_MAILBOXES = "SELECT id FROM ingestion_mailbox WHERE source_id = %(source)s"
_FOLDERS = f"SELECT id FROM ingestion_folder WHERE mailbox_id IN ({_MAILBOXES})"

#: Children before parents. Each is deleted in batches of ctid, so that no transaction is long.
_STEPS = (
    ("ingestion_failedmessage", f"mailbox_id IN ({_MAILBOXES})"),
    ("ingestion_placement", f"folder_id IN ({_FOLDERS})"),
    ("ingestion_message", f"mailbox_id IN ({_MAILBOXES})"),
    ("ingestion_folder", f"mailbox_id IN ({_MAILBOXES})"),
    ("ingestion_mailbox", "source_id = %(source)s"),
    ("ingestion_pack", "source_id = %(source)s"),
    ("ingestion_run", "source_id = %(source)s"),
    ("ingestion_statuschange", "source_id = %(source)s"),
)


def delete_source(source_id: uuid.UUID) -> None:
    """Remove all of a tombstoned source. Does nothing to any other."""
    if not IngestionSource.objects.filter(pk=source_id, deleted_at__isnull=False).exists():
        return
    for table, condition in _STEPS:
        while _delete_batch(table, condition, source_id):
            pass
    store().delete_source(source_id)
    with transaction.atomic():
        IngestionSource.objects.filter(pk=source_id, deleted_at__isnull=False).delete()
    log.info("source_deleted", source=str(source_id))


def _delete_batch(table: str, condition: str, source_id: uuid.UUID) -> int:
    query = f"""DELETE FROM {table} WHERE ctid IN (
        SELECT ctid FROM {table} WHERE {condition} LIMIT %(limit)s)"""
    with connection.cursor() as cursor:
        cursor.execute(query, {"source": source_id, "limit": _BATCH_ROWS})
        return int(cursor.rowcount)
