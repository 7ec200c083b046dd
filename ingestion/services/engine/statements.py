"""The statements of the capture transaction: a thousand rows cost one round trip.

Values go as PostgreSQL's own text forms (`ingestion.rows`). Those of packs, messages, failures and
folders are here, `placements` and `counters` have theirs in modules of their own.
"""

import datetime as dt
import json
import os
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from django.db import connection

from connectors.types import Cursor, MessageRef
from ingestion.packs.format import Extent
from ingestion.rows import COLUMNS, array_literal


def new_message_ids(count: int) -> Iterator[str]:
    """Make UUIDv7 (RFC 9562 s5.7): what is archived together lies together in the index.

    As hexadecimal digits: a UUID object costs as much as to hash a message.
    """
    first = f"{time.time_ns() // 1_000_000:012x}7"
    noise = os.urandom(9 * count).hex()  # one system call for all
    for start in range(0, 18 * count, 18):
        random = noise[start : start + 18]
        yield f"{first}{random[:3]}8{random[3:]}"


def _bytes(values: Iterable[bytes]) -> str:
    return "{" + ",".join(['"\\\\x' + value.hex() + '"' for value in values]) + "}"


def run(query: str, parameters: Mapping[str, Any]) -> int:
    """Return how many rows it changed."""
    with connection.cursor() as cursor:
        cursor.execute(query, parameters)
        return int(cursor.rowcount)


def pairs(query: str, parameters: Mapping[str, Any]) -> dict[Any, Any]:
    """Return what it finds, by its first column."""
    with connection.cursor() as cursor:
        cursor.execute(query, parameters)
        return dict(cursor.fetchall())


def copy(into: str, parts: Iterable[bytes | str]) -> None:
    """Insert rows in COPY's text format. Raises Django's errors, as every statement does."""
    with (
        connection.wrap_database_errors,
        connection.cursor() as cursor,
        cursor.cursor.copy(f"COPY {into} FROM STDIN") as copy,
    ):
        for part in parts:
            copy.write(part)


# -- what is known -----------------------------------------------------------------------------

#: One search of the index a key. `= ANY(keys)` lets the planner read all of a mailbox or folder
#: instead, which it does as long as it has no statistics: in every first import. OFFSET 0 keeps it
#: from turning this into that.
ONE_BY_ONE = """SELECT found.* FROM unnest(%(keys)s::{1}[]) AS key
    CROSS JOIN LATERAL (SELECT {0} FROM {2} OFFSET 0) AS found"""


def known_hashes(mailbox_id: uuid.UUID, hashes: Collection[bytes]) -> dict[bytes, str]:
    """Return the message id of each hash that the mailbox has archived."""
    if not hashes:
        return {}
    return pairs(
        ONE_BY_ONE.format(
            "sha256, id::text",
            "bytea",
            "ingestion_message WHERE mailbox_id = %(owner)s AND sha256 = key",
        ),
        {"owner": mailbox_id, "keys": _bytes(hashes)},
    )


def failed(folder_id: int, remote_ids: Sequence[str]) -> dict[str, int]:
    """Return the number of attempts of each remote id that is recorded as failed."""
    if not remote_ids:
        return {}
    return pairs(
        "SELECT remote_id, attempts FROM ingestion_failedmessage"
        " WHERE folder_id = %(folder)s AND remote_id = ANY(%(ids)s::text[])",
        {"folder": folder_id, "ids": array_literal(remote_ids)},
    )


def known_counts(folder_ids: Sequence[int]) -> dict[int, int]:
    """Return how many messages of each folder are placed there, or failed; those that have any."""
    return pairs(
        """SELECT folder, count(*) FROM (
             SELECT p.folder_id FROM ingestion_placement p
              WHERE p.folder_id = ANY(%(ids)s) AND p.removed_at IS NULL
             UNION ALL
             SELECT f.folder_id FROM ingestion_failedmessage f WHERE f.folder_id = ANY(%(ids)s)
           ) AS known(folder) GROUP BY folder""",
        {"ids": list(folder_ids)},
    )


def has_any(folder_id: int) -> bool:
    """Tell whether anything of the folder is recorded, archived or failed."""
    return _is(
        "EXISTS (SELECT 1 FROM ingestion_placement WHERE folder_id = %(id)s)"
        " OR EXISTS (SELECT 1 FROM ingestion_failedmessage WHERE folder_id = %(id)s)",
        {"id": folder_id},
    )


def has_messages(mailbox_id: uuid.UUID) -> bool:
    """Tell whether anything of the mailbox is archived."""
    return _is(
        "EXISTS (SELECT 1 FROM ingestion_message WHERE mailbox_id = %(id)s)", {"id": mailbox_id}
    )


def _is(condition: str, parameters: Mapping[str, Any]) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {condition}", parameters)
        row = cursor.fetchone()
    return bool(row and row[0])


# -- what becomes visible ----------------------------------------------------------------------


def insert_pack(pack_id: uuid.UUID, source_id: uuid.UUID, size_bytes: int, count: int) -> None:
    run(
        "INSERT INTO ingestion_pack (id, source_id, size_bytes, message_count)"
        " VALUES (%(id)s, %(source)s, %(size)s, %(count)s)",
        {"id": pack_id, "source": source_id, "size": size_bytes, "count": count},
    )


def insert_messages(rows: Iterable[bytes]) -> None:
    """Insert message rows (`rows.message`). The caller owns the mailbox (its lease, or its
    row's lock) and knows that it has none of these hashes; where that is wrong, the database says
    IntegrityError."""
    copy(f"ingestion_message ({COLUMNS})", rows)


def date_messages(times: Sequence[tuple[str, dt.datetime]]) -> None:
    """Say when messages, by id, were archived: not now, as the database takes it to be."""
    run(
        """UPDATE ingestion_message m SET archived_at = n.archived_at
             FROM unnest(%(ids)s::uuid[], %(times)s::timestamptz[]) AS n(id, archived_at)
            WHERE m.id = n.id""",
        {"ids": [pk for pk, _ in times], "times": [time for _, time in times]},
    )


def hold_source(source_id: uuid.UUID) -> bool:
    """Tell whether a source is there, and keep it from being removed while the transaction lasts.
    What was deleted before is gone (`sources.deletion`)."""
    return bool(
        run(
            """SELECT 1 FROM ingestion_ingestionsource
                WHERE id = %(source)s AND deleted_at IS NULL FOR KEY SHARE""",
            {"source": source_id},
        )
    )


def move_messages(pack_id: uuid.UUID, extents: Mapping[uuid.UUID, Extent]) -> int:
    """Say where in another pack messages lie from now on; those they leave have so many less.
    Return how many there were."""
    return run(
        """WITH n AS (
             SELECT * FROM unnest(%(ids)s::uuid[], %(starts)s::bigint[], %(lengths)s::bigint[])
                        AS n(id, start, length)),
           left_pack AS (
             SELECT m.pack_id, count(*) AS number FROM ingestion_message m JOIN n USING (id)
              GROUP BY m.pack_id),
           counted AS (
             UPDATE ingestion_pack p SET message_count = p.message_count - l.number
               FROM left_pack l WHERE p.id = l.pack_id)
           UPDATE ingestion_message m
              SET pack_id = %(pack)s, pack_offset = n.start, pack_length = n.length
             FROM n WHERE m.id = n.id""",
        {
            "pack": pack_id,
            "ids": list(extents),
            "starts": [extent.offset for extent in extents.values()],
            "lengths": [extent.length for extent in extents.values()],
        },
    )


def store_cursor(folder_id: int, cursor: Cursor, *, listed: bool, since: dt.date | None) -> None:
    """`since`: mail received before that was left out behind this cursor."""
    run(
        "UPDATE ingestion_folder SET cursor = %(cursor)s::jsonb, listed_since = %(since)s,"
        " listed_at = CASE WHEN %(listed)s THEN now() ELSE listed_at END WHERE id = %(folder)s",
        {
            "folder": folder_id,
            "cursor": json.dumps(dict(cursor)),
            "listed": listed,
            "since": since,
        },
    )


def store_counts(counts: Mapping[int, int | None]) -> None:
    """Store how many messages the provider tells of each folder."""
    if counts:
        run(
            """UPDATE ingestion_folder f SET remote_count = n.count
                 FROM unnest(%(ids)s::bigint[], %(counts)s::bigint[]) AS n(id, count)
                WHERE f.id = n.id""",
            {"ids": list(counts), "counts": list(counts.values())},
        )


def clear_failures(folder_id: int, remote_ids: Sequence[str]) -> None:
    if remote_ids:
        run(
            "DELETE FROM ingestion_failedmessage"
            " WHERE folder_id = %(folder)s AND remote_id = ANY(%(ids)s::text[])",
            {"folder": folder_id, "ids": array_literal(remote_ids)},
        )


def upsert_failure(
    mailbox_id: uuid.UUID,
    folder_id: int,
    ref: MessageRef,
    *,
    code: str,
    reason: str,
    attempts: int,
    wait: dt.timedelta,
) -> None:
    """Record that a message could not be had, to be tried again after `wait`."""
    run(
        """INSERT INTO ingestion_failedmessage
             (mailbox_id, folder_id, remote_id, stable_id, size_bytes, received_at, labels, code,
              reason, attempts, not_before)
           VALUES (%(mailbox)s, %(folder)s, %(remote)s, %(stable)s, %(size)s, %(received)s,
                   %(labels)s::text[], %(code)s, %(reason)s, %(attempts)s, now() + %(wait)s)
           ON CONFLICT (folder_id, remote_id) DO UPDATE
             SET code = EXCLUDED.code, reason = EXCLUDED.reason, attempts = EXCLUDED.attempts,
                 not_before = EXCLUDED.not_before, last_failed_at = now(),
                 size_bytes = coalesce(EXCLUDED.size_bytes, ingestion_failedmessage.size_bytes)""",
        {
            "mailbox": mailbox_id,
            "folder": folder_id,
            "remote": ref.remote_id,
            "stable": ref.stable_id,
            "size": ref.size_bytes,
            "received": ref.received_at,
            "labels": array_literal(ref.labels or ()),
            "code": code,
            "reason": reason,
            "attempts": attempts,
            "wait": wait,
        },
    )
