"""Times that can't be: stored while the database's clock was ahead, and now far in the future.

Leases and due work look away from such times themselves (`lease.DUE`, `due_work`). Whatever else
waits for a time, or compares with one, would do so until the clock is there again: for a year, if
it was a year ahead. Here those are brought back.
"""

import structlog

from ingestion.services.engine import statements as sql
from ingestion.services.transactions import in_transaction

log = structlog.get_logger(__name__)

#: Nothing that is tried again waits as long (engine.backoff: a day, and a tenth of it).
_RETRY = "now() + interval '2 days'"
_OWN_INTERVAL = "now() + interval '1 minute' + make_interval(secs => {})"
#: A mailbox waits only after an error.
_MAILBOX_RETRY = f"CASE WHEN last_error_code = '' THEN now() ELSE {_RETRY} END"
_SECONDS = "coalesce(({}options->>'syncIntervalSeconds')::int, 300)"
_OF_ITS_SOURCE = f"""(SELECT {_SECONDS.format("s.")} FROM ingestion_ingestionsource s
                       WHERE s.id = source_id)"""

#: Table, column, the furthest that it can be, and what is put instead.
_TIMES = (
    ("ingestionsource", "next_sync_at", _OWN_INTERVAL.format(_SECONDS.format("")), "now()"),
    ("ingestionsource", "check_not_before", _RETRY, "now()"),
    ("ingestionsource", "imported_at", "now()", "now()"),  # else a silence is not told of
    # Of a run whose mailboxes are listed: when it is looked at again (runs.follow_meanwhile).
    ("run", "not_before", f"greatest({_RETRY}, {_OWN_INTERVAL.format(_OF_ITS_SOURCE)})", "now()"),
    ("run", "started_at", "now()", "now()"),  # else no folder is followed since, until then
    ("run", "finished_at", "now()", "now()"),  # else it took until then
    ("run", "asked_at", "now()", "now()"),
    ("mailbox", "not_before", _MAILBOX_RETRY, "now()"),
    ("mailbox", "last_synced_at", "now()", "now()"),  # else it looks fresh until then
    ("mailbox", "archived_up_to", "now()", "now()"),
    ("mailbox", "last_mail_at", "now()", "now()"),
    ("folder", "not_before", _RETRY, "NULL"),
    ("folder", "followed_at", "now()", "NULL"),  # else no sync looks at it until then
    ("folder", "missing_since", "now()", "now()"),  # else it counts as there until then
    ("failedmessage", "not_before", _RETRY, "now()"),
    ("pack", "index_not_before", _RETRY, "now()"),
    ("export", "not_before", _RETRY, "now()"),
    ("webhookdelivery", "not_before", _RETRY, "now()"),
    ("webhookendpoint", "ring_not_before", _RETRY, "now()"),
    ("webhookendpoint", "silent_until", _RETRY, "now()"),
    ("alertrule", "not_before", _RETRY, "now()"),
    ("alertrule", "digest_at", "now() + interval '8 days'", "now()"),
    ("alertnotice", "created_at", "now()", "now()"),  # else it is not owed until then
    ("alert", "well_since", "now()", "now()"),  # else it is not over until then
)


def bring_back() -> int:
    """Make due what waits for a time that can't be; return how many times were. Idempotent.

    Reads these tables from end to end: for now and then, not for each beat.
    """
    count = sum(_bring_back(*times) for times in _TIMES)
    if count:
        log.warning("times_brought_back", count=count)
    return count


@in_transaction
def _bring_back(table: str, column: str, furthest: str, instead: str) -> int:
    return sql.run(
        f"UPDATE ingestion_{table} SET {column} = {instead} WHERE {column} > {furthest}", {}
    )
