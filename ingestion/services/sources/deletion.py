"""Removes what a deleted source left behind: rows in batches, then its packs, then its own row.

Every step is idempotent and the tombstone goes last, so a crash anywhere is only a delay. One
session at a time removes a source: beside another, a batch that finds no row it can have would be
taken for the end of them, and the parents would go before their children.
"""

import uuid

import structlog
from django.db import connection, transaction

from ingestion.models import IngestionSource
from ingestion.packs.store import store
from ingestion.services.archive import storage
from ingestion.services.engine import lease
from ingestion.services.transactions import in_transaction

log = structlog.get_logger(__name__)

_BATCH_ROWS = 20_000
_MAILBOXES = "SELECT id FROM ingestion_mailbox WHERE source_id = %(source)s"
_FOLDERS = f"SELECT id FROM ingestion_folder WHERE mailbox_id IN ({_MAILBOXES})"

#: Children before parents. Each is deleted in batches of ctid, so that no transaction is long.
_STEPS = (
    ("ingestion_failedmessage", f"mailbox_id IN ({_MAILBOXES})"),
    ("ingestion_placement", f"folder_id IN ({_FOLDERS})"),
    ("ingestion_document", f"mailbox_id IN ({_MAILBOXES})"),
    ("ingestion_absentmessage", f"mailbox_id IN ({_MAILBOXES})"),
    ("ingestion_message", f"mailbox_id IN ({_MAILBOXES})"),
    ("ingestion_folder", f"mailbox_id IN ({_MAILBOXES})"),
    ("ingestion_mailbox", "source_id = %(source)s"),
    ("ingestion_pack", "source_id = %(source)s"),
    ("ingestion_run", "source_id = %(source)s"),
    ("ingestion_archivedday", "source_id = %(source)s"),
    ("ingestion_proof", "source_id = %(source)s"),
    ("ingestion_statuschange", "source_id = %(source)s"),
    ("ingestion_alertnotice", "source_id = %(source)s"),
    ("ingestion_alert", "source_id = %(source)s"),
    # What the feed tells of it since is that it was deleted.
    ("ingestion_archivechange", "source_id = %(source)s AND kind <> 'source.deleted'"),
)


def delete_source(source_id: uuid.UUID) -> None:
    """Remove all of a tombstoned source; nothing where it is not deleted. A worker that is told to
    end leaves the rest to the next.

    Opens its own transactions; `due_work` sees to it that one at a time does it.
    """
    tombstone = IngestionSource.objects.filter(pk=source_id, deleted_at__isnull=False)
    if tombstone.exists():
        with transaction.atomic():  # once who writes documents of it is done (`archive.documents`)
            tombstone.select_for_update().get()
        for table, condition in _STEPS:
            while _has_any(table, condition, source_id):
                if not _may_go_on():
                    return
                _delete_batch(table, condition, source_id)
        storage.require()  # beneath a mount point there is nothing to remove
        if not store().delete_source(source_id, may_go_on=_may_go_on):
            return
        with transaction.atomic():
            tombstone.delete()
        log.info("source_deleted", source=str(source_id))


def _may_go_on() -> bool:
    """Millions of rows and packs take longer than a deploy waits."""
    return not lease.leaving.is_set()


def _has_any(table: str, condition: str, source_id: uuid.UUID) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT EXISTS (SELECT 1 FROM {table} WHERE {condition})", {"source": source_id}
        )
        return bool(cursor.fetchone()[0])


@in_transaction
def _delete_batch(table: str, condition: str, source_id: uuid.UUID) -> None:
    query = f"""DELETE FROM {table} WHERE ctid IN (
        SELECT ctid FROM {table} WHERE {condition} LIMIT %(limit)s)"""
    with connection.cursor() as cursor:
        cursor.execute(query, {"source": source_id, "limit": _BATCH_ROWS})
