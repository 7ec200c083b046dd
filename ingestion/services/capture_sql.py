"""The statements of the capture transaction, over arrays: a thousand rows cost one round trip."""

import datetime as dt
import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from django.db import connection

from connectors.types import Cursor, MessageRef


def array_literal(values: Sequence[str]) -> str:
    """Write a PostgreSQL text[] literal; unnest() can't take arrays of arrays of any length."""
    if not values:
        return "{}"
    quoted = (
        '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\0", "") + '"'
        for value in values
    )
    return "{" + ",".join(quoted) + "}"


def _run(query: str, parameters: Mapping[str, Any]) -> int:
    with connection.cursor() as cursor:
        cursor.execute(query, parameters)
        return int(cursor.rowcount)


def known_hashes(mailbox_id: uuid.UUID, hashes: Collection[bytes]) -> dict[bytes, uuid.UUID]:
    """Return the message id of each hash that the mailbox has archived."""
    if not hashes:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT sha256, id FROM ingestion_message WHERE mailbox_id = %s AND sha256 = ANY(%s)",
            (mailbox_id, list(hashes)),
        )
        return {bytes(sha256): pk for sha256, pk in cursor.fetchall()}


def insert_pack(pack_id: uuid.UUID, source_id: uuid.UUID, size_bytes: int, count: int) -> None:
    _run(
        "INSERT INTO ingestion_pack (id, source_id, size_bytes, message_count)"
        " VALUES (%(id)s, %(source)s, %(size)s, %(count)s)",
        {"id": pack_id, "source": source_id, "size": size_bytes, "count": count},
    )


def insert_messages(
    mailbox_id: uuid.UUID, pack_id: uuid.UUID, columns: Mapping[str, list[Any]]
) -> int:
    """Insert messages; return how many were new."""
    return _run(
        """INSERT INTO ingestion_message
             (mailbox_id, pack_id, id, sha256, size_bytes, pack_offset, pack_length, received_at,
              subject, sender, recipients, sent_at, message_id, defects)
           SELECT %(mailbox)s, %(pack)s, id, sha256, size_bytes, pack_offset, pack_length,
                  received_at, subject, sender, recipients, sent_at, message_id, defects::text[]
             FROM unnest(%(id)s::uuid[], %(sha256)s::bytea[], %(size_bytes)s::bigint[],
                         %(pack_offset)s::bigint[], %(pack_length)s::bigint[],
                         %(received_at)s::timestamptz[], %(subject)s::text[], %(sender)s::text[],
                         %(recipients)s::text[], %(sent_at)s::timestamptz[],
                         %(message_id)s::text[], %(defects)s::text[])
               AS n(id, sha256, size_bytes, pack_offset, pack_length, received_at, subject, sender,
                    recipients, sent_at, message_id, defects)
           ON CONFLICT (mailbox_id, sha256) DO NOTHING""",
        {**columns, "mailbox": mailbox_id, "pack": pack_id},
    )


def upsert_placements(
    mailbox_id: uuid.UUID, folder_id: int, rows: Sequence[tuple[MessageRef, uuid.UUID]]
) -> int:
    """Place messages in a folder; return how many placements are new. One that was removed and is
    there again is the same placement."""
    if not rows:
        return 0
    unique = {ref.remote_id: (ref, message) for ref, message in rows}
    with connection.cursor() as cursor:
        cursor.execute(
            """INSERT INTO ingestion_placement AS p
                 (mailbox_id, folder_id, message_id, remote_id, stable_id, thread_id, labels)
               SELECT %(mailbox)s, %(folder)s, message_id, remote_id, stable_id, thread_id,
                      labels::text[]
                 FROM unnest(%(message)s::uuid[], %(remote)s::text[], %(stable)s::text[],
                             %(thread)s::text[], %(labels)s::text[])
                   AS n(message_id, remote_id, stable_id, thread_id, labels)
               ON CONFLICT (folder_id, remote_id) DO UPDATE
                 SET removed_at = NULL, labels = EXCLUDED.labels
               RETURNING (xmax = 0)""",
            {
                "mailbox": mailbox_id,
                "folder": folder_id,
                "message": [message for _, message in unique.values()],
                "remote": list(unique),
                "stable": [ref.stable_id for ref, _ in unique.values()],
                "thread": [ref.thread_id for ref, _ in unique.values()],
                "labels": [array_literal(ref.labels) for ref, _ in unique.values()],
            },
        )
        return sum(1 for (new,) in cursor.fetchall() if new)


def mark_removed(folder_id: int, remote_ids: Sequence[str]) -> None:
    _run(
        "UPDATE ingestion_placement SET removed_at = now()"
        " WHERE folder_id = %(folder)s AND remote_id = ANY(%(ids)s) AND removed_at IS NULL",
        {"folder": folder_id, "ids": list(remote_ids)},
    )


def relabel(folder_id: int, changes: Sequence[tuple[str, tuple[str, ...]]]) -> None:
    _run(
        """UPDATE ingestion_placement p SET labels = n.labels::text[]
             FROM unnest(%(ids)s::text[], %(labels)s::text[]) AS n(remote_id, labels)
            WHERE p.folder_id = %(folder)s AND p.remote_id = n.remote_id
              AND p.labels IS DISTINCT FROM n.labels::text[]""",
        {
            "folder": folder_id,
            "ids": [remote_id for remote_id, _ in changes],
            "labels": [array_literal(labels) for _, labels in changes],
        },
    )


def store_cursor(folder_id: int, cursor: Cursor, *, listed: bool) -> None:
    _run(
        "UPDATE ingestion_folder SET cursor = %(cursor)s::jsonb,"
        " listed_at = CASE WHEN %(listed)s THEN now() ELSE listed_at END WHERE id = %(folder)s",
        {"folder": folder_id, "cursor": json.dumps(dict(cursor)), "listed": listed},
    )


def clear_failures(folder_id: int, remote_ids: Sequence[str]) -> None:
    if remote_ids:
        _run(
            "DELETE FROM ingestion_failedmessage"
            " WHERE folder_id = %(folder)s AND remote_id = ANY(%(ids)s)",
            {"folder": folder_id, "ids": list(remote_ids)},
        )


def failure_attempts(folder_id: int, remote_id: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT attempts FROM ingestion_failedmessage WHERE folder_id = %s AND remote_id = %s",
            (folder_id, remote_id),
        )
        row = cursor.fetchone()
    return row[0] if row else 0


def upsert_failure(
    mailbox_id: uuid.UUID,
    folder_id: int,
    ref: MessageRef,
    *,
    code: str,
    reason: str,
    attempts: int,
    not_before: dt.datetime,
) -> None:
    _run(
        """INSERT INTO ingestion_failedmessage
             (mailbox_id, folder_id, remote_id, stable_id, size_bytes, received_at, labels, code,
              reason, attempts, not_before)
           VALUES (%(mailbox)s, %(folder)s, %(remote)s, %(stable)s, %(size)s, %(received)s,
                   %(labels)s::text[], %(code)s, %(reason)s, %(attempts)s, %(not_before)s)
           ON CONFLICT (folder_id, remote_id) DO UPDATE
             SET code = EXCLUDED.code, reason = EXCLUDED.reason, attempts = EXCLUDED.attempts,
                 not_before = EXCLUDED.not_before, last_failed_at = now()""",
        {
            "mailbox": mailbox_id,
            "folder": folder_id,
            "remote": ref.remote_id,
            "stable": ref.stable_id,
            "size": ref.size_bytes,
            "received": ref.received_at,
            "labels": array_literal(ref.labels),
            "code": code,
            "reason": reason,
            "attempts": attempts,
            "not_before": not_before,
        },
    )


def count(
    run_id: uuid.UUID,
    mailbox_id: uuid.UUID,
    source_id: uuid.UUID,
    *,
    messages: int,
    stored_bytes: int,
    placed: int,
    failed: int,
    gone: int,
    fetched_bytes: int,
) -> None:
    """Move the counters of the run, the mailbox and the source."""
    given = {
        "run": run_id,
        "mailbox": mailbox_id,
        "source": source_id,
        "messages": messages,
        "stored": stored_bytes,
        "placed": placed,
        "failed": failed,
        "gone": gone,
        "fetched": fetched_bytes,
    }
    _run(
        """UPDATE ingestion_run
              SET messages_done = messages_done + %(placed)s,
                  messages_new = messages_new + %(messages)s,
                  messages_failed = messages_failed + %(failed)s,
                  messages_gone = messages_gone + %(gone)s,
                  bytes_done = bytes_done + %(fetched)s, progress_at = now(), warning = ''
            WHERE id = %(run)s""",
        given,
    )
    for table, key in (("mailbox", "mailbox"), ("ingestionsource", "source")):
        extra = ", attempts = 0, last_error_code = '', last_error = ''" if key == "mailbox" else ""
        if messages or extra:
            _run(
                f"""UPDATE ingestion_{table}
                       SET message_count = message_count + %(messages)s,
                           archived_bytes = archived_bytes + %(stored)s{extra}
                     WHERE id = %({key})s""",
                given,
            )
