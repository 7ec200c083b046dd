"""The statements about placements: which message is where, since when, with which labels."""

import contextlib
import uuid
from collections.abc import Collection, Iterable, Sequence

from django.db import IntegrityError, connection, transaction

from connectors.types import MessageRef
from ingestion.packs.record import cached
from ingestion.rows import array_literal, copied, element
from ingestion.services.engine.statements import ONE_BY_ONE, clear_failures, copy, pairs, run


@cached
def _labels_element(labels: tuple[str, ...]) -> str:
    """Write labels as one element: unnest() can't take arrays of arrays of any length."""
    return element(array_literal(labels))


@cached
def _labels_copied(labels: tuple[str, ...]) -> str:
    return copied(array_literal(labels))


def placed(folder_id: int, remote_ids: Sequence[str]) -> dict[str, str]:
    """Return the message id of each remote id that the folder has, or had, a placement of."""
    if not remote_ids:
        return {}
    return pairs(
        ONE_BY_ONE.format(
            "remote_id, message_id::text",
            "text",
            "ingestion_placement WHERE folder_id = %(owner)s AND remote_id = key",
        ),
        {"owner": folder_id, "keys": array_literal(remote_ids)},
    )


def there(folder_id: int, remote_ids: Iterable[str]) -> Collection[str]:
    """Return which of these have a placement in the folder now."""
    return pairs(
        ONE_BY_ONE.format(
            "remote_id, id",
            "text",
            "ingestion_placement WHERE folder_id = %(owner)s AND remote_id = key"
            " AND removed_at IS NULL",
        ),
        {"owner": folder_id, "keys": array_literal(remote_ids)},
    ).keys()


def stable(mailbox_id: uuid.UUID, stable_ids: Collection[str]) -> dict[str, str]:
    """Return the message id of each stable id that the mailbox has a placement of, but in folders
    whose ids are not trusted any more (`folders.distrust`), and but for drafts: what is sent of one
    may have its id and other bytes."""
    if not stable_ids:
        return {}
    return pairs(
        ONE_BY_ONE.format(
            "stable_id, message_id::text",
            "text",
            "ingestion_placement WHERE mailbox_id = %(owner)s AND stable_id = key"
            r" AND stable_id <> '' AND '\Draft' <> ALL(labels)"
            " AND folder_id <> ALL(ARRAY(SELECT id FROM ingestion_folder"
            " WHERE mailbox_id = %(owner)s AND list_anew = 'by_bytes')) LIMIT 1",
        ),
        {"owner": mailbox_id, "keys": array_literal(stable_ids)},
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
    copy(
        "ingestion_placement"
        " (mailbox_id, folder_id, message_id, remote_id, stable_id, thread_id, labels)",
        ["".join(lines)],
    )


def _told(ref: MessageRef) -> bool:
    return ref.labels is not None


def _restored(folder_id: int, remote_ids: Sequence[str]) -> Collection[str]:
    """Say of placements that they are there; return which exist."""
    if not remote_ids:
        return ()
    run(
        "UPDATE ingestion_placement SET removed_at = NULL WHERE folder_id = %(folder)s"
        " AND remote_id = ANY(%(ids)s::text[]) AND removed_at IS NOT NULL",
        {"folder": folder_id, "ids": array_literal(remote_ids)},
    )
    return placed(folder_id, remote_ids).keys()


def mark_removed(folder_id: int, remote_ids: Sequence[str]) -> None:
    """Mark placements as removed. What failed and is gone now is not to be retried."""
    clear_failures(folder_id, remote_ids)
    run(
        "UPDATE ingestion_placement SET removed_at = now()"
        " WHERE folder_id = %(folder)s AND remote_id = ANY(%(ids)s::text[]) AND removed_at IS NULL",
        {"folder": folder_id, "ids": array_literal(remote_ids)},
    )


def relabel(folder_id: int, changes: Sequence[tuple[str, tuple[str, ...]]]) -> None:
    """Give placements new labels, and failures: one that succeeds later is placed with those."""
    for table in ("placement", "failedmessage"):
        run(
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


#: Begins the remote id of a placement whose folder was listed by other ids since.
_RETIRED = "retired/"


def retire_ids(folder_id: int, *, stable: bool = True) -> None:
    """Keep a folder's placements, and let nothing be recognised by their ids any more. `stable`: by
    those of the messages neither, which are the mailbox's and not the folder's."""
    run(
        """UPDATE ingestion_placement
              SET remote_id = %(retired)s || id || '/' || remote_id,
                  stable_id = CASE WHEN %(stable)s THEN '' ELSE stable_id END
            WHERE folder_id = %(folder)s AND NOT starts_with(remote_id, %(retired)s)""",
        {"folder": folder_id, "retired": _RETIRED, "stable": stable},
    )


def is_retired(remote_id: str) -> bool:
    return remote_id.startswith(_RETIRED)


def before_retirement(remote_id: str) -> str:
    """Return the id that the provider gave."""
    return remote_id.split("/", 2)[2] if is_retired(remote_id) else remote_id


def let_go_of_retired(folder_id: int) -> None:
    """Let messages that were found again under new ids be there since they were first seen, and
    what is under those of before be removed.

    Call when the whole folder has been listed, in the transaction that says so; idempotent."""
    of = {"folder": folder_id, "retired": _RETIRED}
    run(
        """UPDATE ingestion_placement p SET first_seen_at = old.first_seen_at
             FROM (SELECT message_id, min(first_seen_at) AS first_seen_at
                     FROM ingestion_placement
                    WHERE folder_id = %(folder)s AND starts_with(remote_id, %(retired)s)
                    GROUP BY message_id) old
            WHERE p.folder_id = %(folder)s AND NOT starts_with(p.remote_id, %(retired)s)
              AND p.message_id = old.message_id AND p.first_seen_at > old.first_seen_at""",
        of,
    )
    run(
        "UPDATE ingestion_placement SET removed_at = now() WHERE folder_id = %(folder)s"
        " AND removed_at IS NULL AND starts_with(remote_id, %(retired)s)",
        of,
    )
