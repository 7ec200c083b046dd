"""Brings back into the feed what a restored dump put beyond its end.

The ids of transactions begin anew in a new cluster, and the rows of a dump keep those of the old
one. Until the new one has counted up to them, `ingestion.feed` would take them for transactions to
come, and read none of them.
"""

import structlog

from ingestion.services.engine import statements as sql
from ingestion.services.transactions import in_transaction

log = structlog.get_logger(__name__)

_BATCH_ROWS = 20_000

#: Visible, and of a transaction that has not begun: it is another cluster's.
_BRING_BACK = """
UPDATE {table} SET changed_xid = pg_current_xact_id() WHERE id = ANY(ARRAY(
    SELECT id FROM {table} WHERE changed_xid >= pg_snapshot_xmax(pg_current_snapshot())
     ORDER BY changed_xid, id LIMIT %(limit)s))
"""


def bring_back_feed() -> int:
    """Have rows of another cluster stand in the feed as changed now; return how many there were.
    Opens its own transactions, one for some thousand rows. Idempotent; costs nothing where there
    are none."""
    count = 0
    for table in ("ingestion_placement", "ingestion_archivechange"):
        while changed := _batch(table):
            count += changed
    _let_doorbells_begin_again()
    if count:
        log.warning("feed_brought_back", count=count)
    return count


@in_transaction
def _batch(table: str) -> int:
    return sql.run(_BRING_BACK.format(table=table), {"limit": _BATCH_ROWS})


@in_transaction
def _let_doorbells_begin_again() -> None:
    """Of webhooks: they would wait for what comes behind where the other cluster was."""
    sql.run(
        "UPDATE ingestion_webhookendpoint SET rung_xid = '0', rung_id = 0"
        " WHERE rung_xid >= pg_snapshot_xmax(pg_current_snapshot())",
        {},
    )
