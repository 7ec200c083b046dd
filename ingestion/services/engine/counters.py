"""The statements that count: what a transaction achieved, said of mailbox, run and source."""

import dataclasses
import operator
import uuid

from django.db import transaction

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


#: What a source has now is what its mailboxes have; what that is more than before came today. (What
#: is less, by the loss of rows, says nothing of a day.)
_RECOUNT = """
WITH before AS (
    SELECT message_count, archived_bytes FROM ingestion_ingestionsource WHERE id = %(source)s),
sums AS (
    SELECT coalesce(sum(message_count), 0) AS messages, coalesce(sum(archived_bytes), 0) AS bytes
      FROM ingestion_mailbox WHERE source_id = %(source)s),
moved AS (
    UPDATE ingestion_ingestionsource
       SET message_count = sums.messages, archived_bytes = sums.bytes
      FROM before, sums
     WHERE id = %(source)s
       AND (before.message_count, before.archived_bytes) <> (sums.messages, sums.bytes)
 RETURNING greatest(0, sums.messages - before.message_count) AS messages,
           greatest(0, sums.bytes - before.archived_bytes) AS bytes)
INSERT INTO ingestion_archivedday AS d (source_id, day, messages, size_bytes)
SELECT %(source)s, (now() AT TIME ZONE 'UTC')::date, messages, bytes
  FROM moved WHERE messages > 0 OR bytes > 0
    ON CONFLICT (source_id, day) DO UPDATE
   SET messages = d.messages + excluded.messages,
       size_bytes = d.size_bytes + excluded.size_bytes"""

#: Counters and days by one statement, which sees no message in one of them alone.
_COUNT_ANEW = """
WITH counted AS (
    SELECT (m.archived_at AT TIME ZONE 'UTC')::date AS day, count(*) AS messages,
           sum(m.size_bytes) AS bytes
      FROM ingestion_message m JOIN ingestion_mailbox b ON b.id = m.mailbox_id
     WHERE b.source_id = %(source)s GROUP BY 1),
gone AS (
    DELETE FROM ingestion_archivedday
     WHERE source_id = %(source)s AND day <> ALL (ARRAY(SELECT day FROM counted))),
days AS (
    INSERT INTO ingestion_archivedday (source_id, day, messages, size_bytes)
    SELECT %(source)s, day, messages, bytes FROM counted
        ON CONFLICT (source_id, day) DO UPDATE
       SET messages = excluded.messages, size_bytes = excluded.size_bytes)
UPDATE ingestion_ingestionsource
   SET message_count = n.messages, archived_bytes = n.bytes
  FROM (SELECT coalesce(sum(message_count), 0) AS messages,
               coalesce(sum(archived_bytes), 0) AS bytes
          FROM ingestion_mailbox WHERE source_id = %(source)s) n
 WHERE id = %(source)s"""


def recount_source(source_id: uuid.UUID) -> None:
    """Set the source's counters to the sums of its mailboxes', and let its day (ArchivedDay) have
    what they grew by. Of one that was deleted nothing is counted: its mailboxes go before it does.

    Not in the transaction that changes a mailbox: there, the source's row would be a lock that all
    mailboxes of a tenant wait for.
    """
    with transaction.atomic(savepoint=False):
        if _lock(source_id):
            recount_locked(source_id)


def recount_locked(source_id: uuid.UUID) -> None:
    """The same, under the source's row lock, which was taken before: the sums are of what is
    visible since then."""
    run(_RECOUNT, {"source": source_id})


def count_anew(source_id: uuid.UUID) -> None:
    """Set the source's counters to the sums of its mailboxes', and its days to what was archived
    on each, as its messages tell. Reads all of their rows. Opens its own transaction."""
    with transaction.atomic():
        if _lock(source_id):
            run(_COUNT_ANEW, {"source": source_id})


def _lock(source_id: uuid.UUID) -> bool:
    return bool(
        run(
            "SELECT 1 FROM ingestion_ingestionsource"
            " WHERE id = %(source)s AND deleted_at IS NULL FOR NO KEY UPDATE",
            {"source": source_id},
        )
    )
