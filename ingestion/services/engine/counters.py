"""The statements that count: what a transaction achieved, said of mailbox, run and source."""

import dataclasses
import operator
import uuid

from django.db import connection, transaction

from ingestion.models.run import RATE_WINDOW
from ingestion.services.engine.statements import run


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
    run(
        """UPDATE ingestion_mailbox
              SET message_count = message_count + %(messages)s,
                  archived_bytes = archived_bytes + %(stored_bytes)s,
                  messages_expected = greatest(
                      0, messages_expected - %(placed)s - %(failed)s - %(gone)s),
                  attempts = 0, failing_since = NULL, last_error_code = '', last_error = '',
                  last_mail_at = now()
            WHERE id = %(mailbox)s""",
        given,
    )
    run(
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
    run(
        "UPDATE ingestion_mailbox SET messages_expected = greatest(0, messages_expected + %(more)s)"
        " WHERE id = %(mailbox)s",
        given,
    )
    run(
        """UPDATE ingestion_run
              SET messages_total = greatest(
                  messages_total + %(more)s, messages_done + messages_gone)
            WHERE id = %(run)s""",
        given,
    )


def recount_source(source_id: uuid.UUID) -> None:
    """Set the source's counters to the sums of its mailboxes', and let its day (ArchivedDay) have
    what they grew by.

    Not in the transaction that changes a mailbox: there, the source's row would be a lock that all
    mailboxes of a tenant wait for.
    """
    with transaction.atomic(savepoint=False), connection.cursor() as cursor:
        # The lock first, in a statement of its own, so that the sums are of what is visible then.
        cursor.execute(
            "SELECT message_count, archived_bytes FROM ingestion_ingestionsource"
            " WHERE id = %s FOR NO KEY UPDATE",
            (source_id,),
        )
        before = cursor.fetchone()
        cursor.execute(
            """UPDATE ingestion_ingestionsource s
                  SET message_count = n.messages, archived_bytes = n.bytes
                 FROM (SELECT coalesce(sum(message_count), 0) AS messages,
                              coalesce(sum(archived_bytes), 0) AS bytes
                         FROM ingestion_mailbox WHERE source_id = %(source)s) n
                WHERE s.id = %(source)s
                  AND (s.message_count, s.archived_bytes) <> (n.messages, n.bytes)
            RETURNING s.message_count, s.archived_bytes""",
            {"source": source_id},
        )
        after = cursor.fetchone()
        if before is None or after is None:
            return
        cursor.execute(
            """INSERT INTO ingestion_archivedday AS d (source_id, day, messages, size_bytes)
               VALUES (%s, (now() AT TIME ZONE 'UTC')::date, %s, %s)
               ON CONFLICT (source_id, day) DO UPDATE
                  SET messages = d.messages + excluded.messages,
                      size_bytes = d.size_bytes + excluded.size_bytes""",
            (source_id, *map(operator.sub, after, before)),
        )
