"""The statements of the capture transaction: a thousand rows cost one round trip.

Values go as PostgreSQL's own text forms (`ingestion.rows`).
"""

import contextlib
import dataclasses
import datetime as dt
import json
import operator
import os
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from django.db import IntegrityError, connection, transaction

from connectors.types import Cursor, MessageRef
from ingestion.models.run import RATE_WINDOW
from ingestion.packs.format import Extent
from ingestion.packs.record import cached
from ingestion.rows import COLUMNS, array_literal, copied, element


def new_message_ids(count: int) -> Iterator[str]:
    """Make UUIDv7 (RFC 9562 s5.7): what is archived together lies together in the index.

    As hexadecimal digits: a UUID object costs as much as to hash a message.
    """
    first = f"{time.time_ns() // 1_000_000:012x}7"
    noise = os.urandom(9 * count).hex()  # one system call for all
    for start in range(0, 18 * count, 18):
        random = noise[start : start + 18]
        yield f"{first}{random[:3]}8{random[3:]}"


@cached
def _labels_element(labels: tuple[str, ...]) -> str:
    """Write labels as one element: unnest() can't take arrays of arrays of any length."""
    return element(array_literal(labels))


@cached
def _labels_copied(labels: tuple[str, ...]) -> str:
    return copied(array_literal(labels))


def _bytes(values: Iterable[bytes]) -> str:
    return "{" + ",".join(['"\\\\x' + value.hex() + '"' for value in values]) + "}"


def _run(query: str, parameters: Mapping[str, Any]) -> int:
    with connection.cursor() as cursor:
        cursor.execute(query, parameters)
        return int(cursor.rowcount)


def _pairs(query: str, parameters: Mapping[str, Any]) -> dict[Any, Any]:
    with connection.cursor() as cursor:
        cursor.execute(query, parameters)
        return dict(cursor.fetchall())


# -- what is known -----------------------------------------------------------------------------

#: One search of the index a key. `= ANY(keys)` lets the planner read all of a mailbox or folder
#: instead, which it does as long as it has no statistics: in every first import. OFFSET 0 keeps it
#: from turning this into that.
_ONE_BY_ONE = """SELECT found.* FROM unnest(%(keys)s::{1}[]) AS key
    CROSS JOIN LATERAL (SELECT {0} FROM {2} OFFSET 0) AS found"""


def known_hashes(mailbox_id: uuid.UUID, hashes: Collection[bytes]) -> dict[bytes, str]:
    """Return the message id of each hash that the mailbox has archived."""
    if not hashes:
        return {}
    return _pairs(
        _ONE_BY_ONE.format(
            "sha256, id::text",
            "bytea",
            "ingestion_message WHERE mailbox_id = %(owner)s AND sha256 = key",
        ),
        {"owner": mailbox_id, "keys": _bytes(hashes)},
    )


def placed(folder_id: int, remote_ids: Iterable[str]) -> dict[str, str]:
    """Return the message id of each remote id that the folder has, or had, a placement of."""
    return _pairs(
        _ONE_BY_ONE.format(
            "remote_id, message_id::text",
            "text",
            "ingestion_placement WHERE folder_id = %(owner)s AND remote_id = key",
        ),
        {"owner": folder_id, "keys": array_literal(remote_ids)},
    )


def stable(mailbox_id: uuid.UUID, stable_ids: Collection[str]) -> dict[str, str]:
    """Return the message id of each stable id that the mailbox has a placement of, but in folders
    whose ids are not trusted any more (`folders.distrust`)."""
    if not stable_ids:
        return {}
    return _pairs(
        _ONE_BY_ONE.format(
            "stable_id, message_id::text",
            "text",
            "ingestion_placement WHERE mailbox_id = %(owner)s AND stable_id = key"
            " AND stable_id <> '' AND folder_id <> ALL(ARRAY(SELECT id FROM ingestion_folder"
            " WHERE mailbox_id = %(owner)s AND list_anew = 'by_bytes')) LIMIT 1",
        ),
        {"owner": mailbox_id, "keys": array_literal(stable_ids)},
    )


def failed(folder_id: int, remote_ids: Sequence[str]) -> dict[str, int]:
    """Return the number of attempts of each remote id that is recorded as failed."""
    if not remote_ids:
        return {}
    return _pairs(
        "SELECT remote_id, attempts FROM ingestion_failedmessage"
        " WHERE folder_id = %(folder)s AND remote_id = ANY(%(ids)s::text[])",
        {"folder": folder_id, "ids": array_literal(remote_ids)},
    )


def known_counts(folder_ids: Sequence[int]) -> dict[int, int]:
    """Return how many messages of each folder are placed there, or failed; those that have any."""
    return _pairs(
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
    _run(
        "INSERT INTO ingestion_pack (id, source_id, size_bytes, message_count)"
        " VALUES (%(id)s, %(source)s, %(size)s, %(count)s)",
        {"id": pack_id, "source": source_id, "size": size_bytes, "count": count},
    )


def insert_messages(rows: Iterable[bytes]) -> None:
    """Insert message rows (rows.MessageRow.line). The caller owns the mailbox (its lease, or its
    row's lock) and knows that it has none of these hashes; where that is wrong, the database says
    IntegrityError."""
    _copy(f"ingestion_message ({COLUMNS})", rows)


def date_messages(times: Sequence[tuple[str, dt.datetime]]) -> None:
    """Say when messages, by id, were archived: not now, as the database takes it to be."""
    _run(
        """UPDATE ingestion_message m SET archived_at = n.archived_at
             FROM unnest(%(ids)s::uuid[], %(times)s::timestamptz[]) AS n(id, archived_at)
            WHERE m.id = n.id""",
        {"ids": [pk for pk, _ in times], "times": [time for _, time in times]},
    )


def move_messages(pack_id: uuid.UUID, extents: Mapping[uuid.UUID, Extent]) -> None:
    """Say where in another pack messages lie from now on."""
    _run(
        """UPDATE ingestion_message m
              SET pack_id = %(pack)s, pack_offset = n.start, pack_length = n.length
             FROM unnest(%(ids)s::uuid[], %(starts)s::bigint[], %(lengths)s::bigint[])
                  AS n(id, start, length)
            WHERE m.id = n.id""",
        {
            "pack": pack_id,
            "ids": list(extents),
            "starts": [extent.offset for extent in extents.values()],
            "lengths": [extent.length for extent in extents.values()],
        },
    )


#: COPY takes three round trips (a savepoint), and was slower for fewer rows than this.
_WORTH_A_COPY = 50


def upsert_placements(
    mailbox_id: uuid.UUID, folder_id: int, rows: Sequence[tuple[MessageRef, str]], *, fresh: bool
) -> int:
    """Place messages in a folder; return how many placements are new. One that was removed and is
    there again is the same placement; where the labels are not told it keeps those it has. What is
    listed again as it was, as after an expired cursor, writes nothing.

    `fresh`: the folder should have none of them, so that COPY can be tried first: half the work."""
    unique = {ref.remote_id: (ref, message) for ref, message in rows}
    if fresh and len(unique) > _WORTH_A_COPY:
        with contextlib.suppress(IntegrityError), transaction.atomic():
            _copy_placements(mailbox_id, folder_id, unique.values())
            return len(unique)
    for remote_id in _restored(folder_id, [r for r, (ref, _) in unique.items() if not _told(ref)]):
        del unique[remote_id]
    if not unique:
        return 0
    refs = [ref for ref, _ in unique.values()]
    with connection.cursor() as cursor:
        cursor.execute(
            """WITH placed AS (
               INSERT INTO ingestion_placement AS p
                 (mailbox_id, folder_id, message_id, remote_id, stable_id, thread_id, labels)
               SELECT %(mailbox)s, %(folder)s, message_id, remote_id, stable_id, thread_id,
                      labels::text[]
                 FROM unnest(%(message)s::uuid[], %(remote)s::text[], %(stable)s::text[],
                             %(thread)s::text[], %(labels)s::text[])
                   AS n(message_id, remote_id, stable_id, thread_id, labels)
               ON CONFLICT (folder_id, remote_id) DO UPDATE
                 SET removed_at = NULL, labels = EXCLUDED.labels,
                     thread_id = coalesce(nullif(EXCLUDED.thread_id, ''), p.thread_id)
                 WHERE p.removed_at IS NOT NULL OR p.labels IS DISTINCT FROM EXCLUDED.labels
                    OR EXCLUDED.thread_id NOT IN ('', p.thread_id)
               RETURNING (xmax = 0) AS is_new)
               SELECT count(*) FILTER (WHERE is_new) FROM placed""",
            {
                "mailbox": mailbox_id,
                "folder": folder_id,
                "message": "{" + ",".join([message for _, message in unique.values()]) + "}",
                "remote": array_literal(unique),
                "stable": array_literal([ref.stable_id for ref in refs]),
                "thread": array_literal([ref.thread_id for ref in refs]),
                "labels": "{" + ",".join([_labels_element(ref.labels or ()) for ref in refs]) + "}",
            },
        )
        row = cursor.fetchone()
    return int(row[0]) if row else 0


def _copy_placements(
    mailbox_id: uuid.UUID, folder_id: int, rows: Iterable[tuple[MessageRef, str]]
) -> None:
    start = f"{mailbox_id.hex}\t{folder_id}\t"
    lines = [
        f"{start}{message}\t{copied(ref.remote_id)}\t{copied(ref.stable_id)}\t"
        f"{copied(ref.thread_id)}\t{_labels_copied(ref.labels or ())}\n"
        for ref, message in rows
    ]
    _copy(
        "ingestion_placement"
        " (mailbox_id, folder_id, message_id, remote_id, stable_id, thread_id, labels)",
        ["".join(lines)],
    )


def _copy(into: str, parts: Iterable[bytes | str]) -> None:
    """Insert rows in COPY's text format. Raises Django's errors, as every statement does."""
    with (
        connection.wrap_database_errors,
        connection.cursor() as cursor,
        cursor.cursor.copy(f"COPY {into} FROM STDIN") as copy,
    ):
        for part in parts:
            copy.write(part)


def _told(ref: MessageRef) -> bool:
    return ref.labels is not None


def _restored(folder_id: int, remote_ids: Sequence[str]) -> Collection[str]:
    """Say of placements that they are there; return which exist."""
    if not remote_ids:
        return ()
    _run(
        "UPDATE ingestion_placement SET removed_at = NULL WHERE folder_id = %(folder)s"
        " AND remote_id = ANY(%(ids)s::text[]) AND removed_at IS NOT NULL",
        {"folder": folder_id, "ids": array_literal(remote_ids)},
    )
    return placed(folder_id, remote_ids).keys()


def mark_removed(folder_id: int, remote_ids: Sequence[str]) -> None:
    """Mark placements as removed. What failed and is gone now is not to be retried."""
    clear_failures(folder_id, remote_ids)
    _run(
        "UPDATE ingestion_placement SET removed_at = now()"
        " WHERE folder_id = %(folder)s AND remote_id = ANY(%(ids)s::text[]) AND removed_at IS NULL",
        {"folder": folder_id, "ids": array_literal(remote_ids)},
    )


def relabel(folder_id: int, changes: Sequence[tuple[str, tuple[str, ...]]]) -> None:
    """Give placements new labels, and failures: one that succeeds later is placed with those."""
    for table in ("placement", "failedmessage"):
        _run(
            f"""UPDATE ingestion_{table} p SET labels = n.labels::text[]
                 FROM unnest(%(ids)s::text[], %(labels)s::text[]) AS n(remote_id, labels)
                WHERE p.folder_id = %(folder)s AND p.remote_id = n.remote_id
                  AND p.labels IS DISTINCT FROM n.labels::text[]""",
            {
                "folder": folder_id,
                "ids": array_literal([remote_id for remote_id, _ in changes]),
                "labels": "{" + ",".join([_labels_element(labels) for _, labels in changes]) + "}",
            },
        )


def store_cursor(folder_id: int, cursor: Cursor, *, listed: bool, since: dt.date | None) -> None:
    """`since`: mail received before that was left out behind this cursor."""
    _run(
        "UPDATE ingestion_folder SET cursor = %(cursor)s::jsonb, listed_since = %(since)s,"
        " listed_at = CASE WHEN %(listed)s THEN now() ELSE listed_at END WHERE id = %(folder)s",
        {
            "folder": folder_id,
            "cursor": json.dumps(dict(cursor)),
            "listed": listed,
            "since": since,
        },
    )


#: Begins the remote id of a placement whose folder was listed by other ids since.
_RETIRED = "retired/"


def retire_ids(folder_id: int) -> None:
    """Keep a folder's placements, and let nothing be recognised by their ids any more."""
    _run(
        """UPDATE ingestion_placement
              SET remote_id = %(retired)s || id || '/' || remote_id, stable_id = ''
            WHERE folder_id = %(folder)s AND NOT starts_with(remote_id, %(retired)s)""",
        {"folder": folder_id, "retired": _RETIRED},
    )


def is_retired(remote_id: str) -> bool:
    return remote_id.startswith(_RETIRED)


def before_retirement(remote_id: str) -> str:
    """Return the id that the provider gave."""
    return remote_id.split("/", 2)[2] if is_retired(remote_id) else remote_id


def keep_first_seen(folder_id: int) -> None:
    """Let messages that were found again under new ids be there since they were first seen.

    Call when the whole folder has been listed; idempotent."""
    _run(
        """UPDATE ingestion_placement p SET first_seen_at = old.first_seen_at
             FROM (SELECT message_id, min(first_seen_at) AS first_seen_at
                     FROM ingestion_placement
                    WHERE folder_id = %(folder)s AND starts_with(remote_id, %(retired)s)
                    GROUP BY message_id) old
            WHERE p.folder_id = %(folder)s AND NOT starts_with(p.remote_id, %(retired)s)
              AND p.message_id = old.message_id AND p.first_seen_at > old.first_seen_at""",
        {"folder": folder_id, "retired": _RETIRED},
    )


def clear_failures(folder_id: int, remote_ids: Sequence[str]) -> None:
    if remote_ids:
        _run(
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
    _run(
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


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """What a transaction achieved. `bool()`: whether that is anything. A new cursor is nothing: a
    mailbox that fails over and over at one folder may get one of another each time."""

    messages: int = 0
    stored_bytes: int = 0
    placed: int = 0
    failed: int = 0
    gone: int = 0
    fetched_bytes: int = 0

    def __add__(self, other: "Progress") -> "Progress":
        mine, more = dataclasses.astuple(self), dataclasses.astuple(other)
        return Progress(*map(operator.add, mine, more))

    def __bool__(self) -> bool:
        return any((self.messages, self.placed, self.failed, self.gone))


#: Nothing came for so long that what came before says nothing about what comes.
_RESTS = "(progress_at IS NULL OR progress_at < now() - 2 * %(window)s)"
_ROLLS = "rate_next_at < now() - %(window)s"


def count(run_id: uuid.UUID, mailbox_id: uuid.UUID, progress: Progress) -> None:
    """Move the counters of the mailbox and the run."""
    given = {"run": run_id, "mailbox": mailbox_id, **dataclasses.asdict(progress)}
    _run(
        """UPDATE ingestion_mailbox
              SET message_count = message_count + %(messages)s,
                  archived_bytes = archived_bytes + %(stored_bytes)s,
                  messages_expected = greatest(
                      0, messages_expected - %(placed)s - %(failed)s - %(gone)s),
                  attempts = 0, last_error_code = '', last_error = ''
            WHERE id = %(mailbox)s""",
        given,
    )
    _run(
        f"""UPDATE ingestion_run
              SET messages_done = messages_done + %(placed)s,
                  messages_new = messages_new + %(messages)s,
                  messages_failed = messages_failed + %(failed)s,
                  messages_gone = messages_gone + %(gone)s,
                  messages_total = greatest(
                      messages_total, messages_done + messages_gone + %(placed)s + %(gone)s),
                  bytes_done = bytes_done + %(fetched_bytes)s, progress_at = now(), warning = '',
                  -- Two marks, a window apart: from the older one a rate is told (models.run).
                  (rate_since, rate_from) =
                      (SELECT CASE WHEN {_RESTS} THEN now() WHEN {_ROLLS} THEN rate_next_at
                                   ELSE rate_since END,
                              CASE WHEN {_RESTS} THEN messages_done WHEN {_ROLLS}
                                   THEN rate_next_from ELSE rate_from END),
                  (rate_next_at, rate_next_from) =
                      (SELECT CASE WHEN {_RESTS} OR {_ROLLS} THEN now() ELSE rate_next_at END,
                              CASE WHEN {_RESTS} OR {_ROLLS} THEN messages_done
                                   ELSE rate_next_from END)
            WHERE id = %(run)s""",
        given | {"window": RATE_WINDOW},
    )


def expect(run_id: uuid.UUID, mailbox_id: uuid.UUID, more: int) -> None:
    """Let the run's total count `more` messages of a mailbox that are still to be done."""
    given = {"run": run_id, "mailbox": mailbox_id, "more": more}
    _run(
        "UPDATE ingestion_mailbox SET messages_expected = greatest(0, messages_expected + %(more)s)"
        " WHERE id = %(mailbox)s",
        given,
    )
    _run(
        """UPDATE ingestion_run
              SET messages_total = greatest(
                  messages_total + %(more)s, messages_done + messages_gone)
            WHERE id = %(run)s""",
        given,
    )


def recount_source(source_id: uuid.UUID) -> None:
    """Set the source's counters to the sums of its mailboxes'.

    Not in the transaction that changes a mailbox: there, the source's row would be a lock that all
    mailboxes of a tenant wait for.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        # The lock first, in a statement of its own, so that the sums are of what is visible then.
        cursor.execute(
            "SELECT 1 FROM ingestion_ingestionsource WHERE id = %s FOR NO KEY UPDATE", (source_id,)
        )
        cursor.execute(
            """UPDATE ingestion_ingestionsource s
                  SET message_count = n.messages, archived_bytes = n.bytes
                 FROM (SELECT coalesce(sum(message_count), 0) AS messages,
                              coalesce(sum(archived_bytes), 0) AS bytes
                         FROM ingestion_mailbox WHERE source_id = %(source)s) n
                WHERE s.id = %(source)s
                  AND (s.message_count, s.archived_bytes) <> (n.messages, n.bytes)""",
            {"source": source_id},
        )
