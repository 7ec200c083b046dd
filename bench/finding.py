"""Measures what search costs in the archive that VAR_DIR or DATABASE_URL names (`bench.corpus`).

A process of its own, for it needs Django's settings. `python -m bench.finding MESSAGES SUBSET`
prints JSON: "queries", each with its times in milliseconds; "tables", each with its bytes. A time
is that of a page of 50: from the text of a query to the rows that the API and the admin show. Plain
ILIKE is asked over the same kind of text, of SUBSET messages, in a table of its own.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.db import connection

from bench import generated
from bench.asked import PAGE, Query, queries
from ingestion_project import bootstrap

#: Each query is asked so often in each wording, after once for warmth; no longer than this in all.
VARIANTS, TURNS = 10, 4
SECONDS = 10.0


def main(messages: int, subset: int) -> None:
    if bootstrap.main():
        raise SystemExit(1)
    importlib.import_module("ingestion_project.wsgi")  # as the process that answers has it
    clock = Clock()
    asked = [_ours(query, clock) for query in queries(messages)]
    _write_texts(subset)
    asked += [_ilike(query, clock) for query in queries(subset) if query.ilike]
    print(json.dumps({"queries": asked, "tables": _tables()}))


class Clock:
    """Times calls: by the wall's clock, and by the CPU of this process and its database session."""

    def __init__(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            self._session = Path(f"/proc/{cursor.fetchone()[0]}/schedstat")

    def timed(self, call: Callable[[], Any]) -> tuple[float, float]:
        """Return milliseconds, and milliseconds of CPU; of this process alone where the database
        is on another machine."""
        cpu, started = self._cpu(), time.perf_counter()
        call()
        taken = time.perf_counter() - started
        return taken * 1000, (self._cpu() - cpu) * 1000

    def _cpu(self) -> float:
        """Linux' Documentation/scheduler/sched-stats.rst: first is the time on the CPU, in ns."""
        theirs = int(self._session.read_text().split()[0]) if self._session.exists() else 0
        return time.process_time() + theirs / 1e9


def turns(
    ask: Callable[[int], Any], clock: Clock, *, behind: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Ask each wording once for warmth, then all in turn; call `behind` after each, untimed."""
    taken = []
    for measured, count in ((False, VARIANTS), (True, VARIANTS * TURNS)):
        begun = time.monotonic()
        for turn in range(count):
            times = clock.timed(lambda: ask(turn % VARIANTS))  # noqa: B023 - called at once
            behind()
            if measured:
                taken.append(times)
            if time.monotonic() - begun > SECONDS / 2:
                break
    return {"milliseconds": [t for t, _ in taken], "cpu_milliseconds": [t for _, t in taken]}


def _ours(query: Query, clock: Clock) -> dict[str, Any]:
    from django.contrib.auth.models import User  # noqa: PLC0415 - after django.setup()

    from ingestion.search.facets import facets  # noqa: PLC0415 - as above
    from ingestion.search.pages import Search  # noqa: PLC0415 - as above
    from ingestion.search.query import parse  # noqa: PLC0415 - as above

    user = User.objects.get(username="reader" if query.as_reader else "admin")
    cursor = _cursor(query.skipped) if query.skipped else ""

    def page(number: int) -> None:
        search = Search(user, parse(query.text(number)))
        found = search.page(sort=query.sort, cursor=cursor, size=PAGE)
        for message in found.messages:
            assert message.mailbox.source.name
            assert message.document.preview is not None
            assert all(place.folder.path for place in message.placements.all())
        if query.counted:
            search.count()
        if query.faceted:
            facets(search)

    times = turns(page, clock)
    count = Search(user, parse(query.text(0))).count()
    hits = f"{count.number:,}{'+' * count.more} hits"
    return {"name": query.name, "contender": "ours", "hits": hits, **times}


def _cursor(skipped: int) -> str:
    from ingestion.search.pages import Cursor  # noqa: PLC0415 - after django.setup()
    from ingestion.search.readings import Key  # noqa: PLC0415 - as above

    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT date, message_id FROM ingestion_document ORDER BY date DESC, message_id DESC"
            " OFFSET %s LIMIT 1",
            [skipped - 1],
        )
        return str(Cursor(Key(*cursor.fetchone())))


# -- plain ILIKE ---------------------------------------------------------------------------------


def _write_texts(count: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS bench_text")
        cursor.execute("CREATE TABLE bench_text (id uuid, date timestamptz, text text)")
        with cursor.cursor.copy("COPY bench_text FROM STDIN") as copy:
            for block in generated.blocks(count):
                for mail in generated.mails(block, seed=1):
                    copy.write_row((mail.id, mail.date, mail.digest.text.replace("\n", " ")))
        cursor.execute("CREATE INDEX ON bench_text (date, id)")
        cursor.execute("VACUUM ANALYZE bench_text")


def _ilike(query: Query, clock: Clock) -> dict[str, Any]:
    assert query.ilike
    wanted = query.ilike

    def page(number: int) -> None:
        patterns = [f"%{word}%" for word in wanted(number)]
        texts = " AND ".join(["text ILIKE %s"] * len(patterns))
        if "dates" in query.name:
            texts += " AND date >= '2019-01-01' AND date < '2021-01-01'"
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT id FROM bench_text WHERE {texts} ORDER BY date DESC, id DESC LIMIT {PAGE}",
                patterns,
            )
            cursor.fetchall()

    return {"name": query.name, "contender": "ILIKE", "hits": "", **turns(page, clock)}


# -- bytes ---------------------------------------------------------------------------------------

_OF_TABLES = """
SELECT c.relname, NULL, pg_table_size(c.oid) FROM pg_class c WHERE c.relname = ANY(%(tables)s)
UNION ALL
SELECT t.relname, c.relname, pg_relation_size(c.oid)
  FROM pg_class t JOIN pg_index i ON i.indrelid = t.oid JOIN pg_class c ON c.oid = i.indexrelid
 WHERE t.relname = ANY(%(tables)s) ORDER BY 1, 2 NULLS FIRST
"""
TABLES = ("ingestion_message", "ingestion_placement", "ingestion_document")


def _tables() -> list[tuple[str, str | None, int]]:
    """Return (table, index or None, bytes)."""
    with connection.cursor() as cursor:
        cursor.execute(_OF_TABLES, {"tables": list(TABLES)})
        return list(cursor.fetchall())


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:3]))
