"""What a beat costs with 10,000 sources of which 100 are due: by plan and count, not by the clock."""

import datetime as dt
import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.db.models import Model
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from ingestion.models import INDEX_VERSION, IngestionSource, Mailbox, Pack, Run
from ingestion.services.engine import due_work, looking

SOURCES, DUE = 10_000, 100
#: Tables that grow with the number of sources: reading one from end to end is too much for a beat.
_GROWING = {
    *("ingestion_ingestionsource", "ingestion_mailbox", "ingestion_pack", "ingestion_run"),
}


@pytest.fixture
def sources(transactional_db: None) -> None:
    """10,000 sources with a mailbox and two finished runs each; of each kind of work 100 are due.

    By name: 1-100 a sync, 101-200 a listing of mailboxes, 201-300 a mailbox, 301-400 a check of the
    credentials, 401-500 deletion, 501-600 a pack.
    """
    now = timezone.now()
    long_ago, later = now - dt.timedelta(hours=1), now + dt.timedelta(days=1)
    owner = User.objects.create_user("many")
    one = IngestionSource.objects.create(
        owner=owner, name="0", provider="generic_imap", status="active", next_sync_at=later
    )
    finished = Run.objects.create(
        source=one, kind="sync", actor="schedule", finished_at=long_ago, discovered_at=long_ago
    )
    Mailbox.objects.create(source=one, remote_id="me", address="me@example.com")
    Pack.objects.create(source=one, size_bytes=1, message_count=1, index_version=INDEX_VERSION)
    multiply(IngestionSource, f"generate_series(1, {SOURCES}) n", name="n::text")
    others = "ingestion_ingestionsource s CROSS JOIN generate_series(1, 2) WHERE s.name <> '0'"
    multiply(Run, others, source_id="s.id")
    multiply(Pack, others, source_id="s.id")
    multiply(Mailbox, "ingestion_ingestionsource s WHERE s.name <> '0'", source_id="s.id")
    due = {
        start: IngestionSource.objects.filter(name__in=[str(start + n) for n in range(1, DUE + 1)])
        for start in range(0, 600, 100)
    }
    due[0].update(next_sync_at=long_ago)
    due[300].update(status="pending_auth", check_not_before=long_ago)
    due[400].update(deleted_at=long_ago)
    Pack.objects.filter(source__in=due[500]).update(index_version=0, index_not_before=long_ago)
    usual = {"kind": "sync", "actor": "schedule", "not_before": long_ago}
    Run.objects.bulk_create(Run(source=source, **usual) for source in due[100].defer("secrets"))
    for source in due[200].defer("secrets"):
        run = Run.objects.create(source=source, discovered_at=long_ago, **usual)
        Mailbox.objects.filter(source=source).update(run=run, not_before=long_ago)
    assert finished.finished_at
    with connection.cursor() as cursor:
        cursor.execute(f"ANALYZE {', '.join(sorted(_GROWING))}")


def multiply(model: type[Model], rows: str, **columns: str) -> None:
    """Copy the table's only row for each of `rows`, with these columns' values and a new id."""
    table, names = model._meta.db_table, [str(f.column) for f in model._meta.concrete_fields]
    values = [{"id": "gen_random_uuid()", **columns}.get(name, f"o.{name}") for name in names]
    with connection.cursor() as cursor:
        cursor.execute(
            f"WITH o AS (SELECT * FROM {table} LIMIT 1) INSERT INTO {table} ({', '.join(names)})"
            f" SELECT {', '.join(values)} FROM o CROSS JOIN {rows}"
        )


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def planned(statement: str) -> list[dict[str, Any]]:
    """Return the nodes of a statement's plan."""
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN (FORMAT JSON) " + statement.replace("%", "%%"), [])
        (answer,) = cursor.fetchone() or ("[]",)
    [whole] = json.loads(answer) if isinstance(answer, str) else answer
    return list(nodes(whole["Plan"]))


def explained(statement: str) -> set[tuple[str, str]]:
    """Return (kind of node, table) of a statement's plan."""
    return {
        (node["Node Type"], node["Relation Name"])
        for node in planned(statement)
        if "Relation Name" in node
    }


def counted(queries: CaptureQueriesContext) -> list[str]:
    ends = ("BEGIN", "COMMIT", "SAVEPOINT", "RELEASE")
    return [query["sql"] for query in queries if not query["sql"].startswith(ends)]


def test_a_beat_reads_what_is_due_and_nothing_else(sources: None) -> None:
    with CaptureQueriesContext(connection) as queries:
        handed_out = list(due_work.hand_out())
    kinds = [work.kind for work in handed_out]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "delete": 100, "check": 100, "discover": 100, "look": 1, "mailbox": 100, "index": 16,
    }  # fmt: skip
    statements = counted(queries)
    assert len(statements) <= len(due_work.KINDS) + 6, statements
    plans = {statement: explained(statement) for statement in statements}
    read = {table for plan in plans.values() for _, table in plan}
    assert read >= _GROWING  # the plans were understood
    for statement, plan in plans.items():
        assert not plan & {("Seq Scan", table) for table in _GROWING}, (plan, statement)
    with CaptureQueriesContext(connection) as queries:
        assert {work.kind for work in due_work.hand_out()} == {"index", "look"}
    assert len(counted(queries)) <= len(due_work.KINDS) + 3


def test_the_few_to_be_synced_are_found_beside_all_that_wait_for_a_look(sources: None) -> None:
    """Of a provider that is not installed, too: its sync says so."""
    long_ago = timezone.now() - dt.timedelta(hours=1)
    due = IngestionSource.objects.filter(next_sync_at__isnull=False)
    due.update(next_sync_at=long_ago)
    for name, provider in (("11", "google"), ("12", "google"), ("13", "microsoft"), ("14", "gone")):
        due.filter(name=name).update(provider=provider)
    due.filter(name="12").update(next_sync_at=timezone.now() + dt.timedelta(days=1))
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE ingestion_ingestionsource")
    with CaptureQueriesContext(connection) as queries:
        due_work._start_scheduled_syncs(1_000)
    started = Run.objects.filter(finished_at=None, source__next_sync_at=None)
    assert set(started.values_list("source__name", flat=True)) >= {"11", "13", "14"}
    assert started.filter(source__name="12").count() == 0
    read = [found for found in counted(queries) if "RECURSIVE" in found or "SKIP LOCKED" in found]
    assert len(read) == 1 + 3
    for statement in read:
        tables = [node for node in planned(statement) if "Relation Name" in node]
        assert {node.get("Index Name") for node in tables} == {"source_due_by_provider"}, statement


def test_what_was_looked_at_is_found_by_its_id_while_all_are_due(sources: None) -> None:
    """After an outage, of which the planner has not heard: it expects none that is due."""
    due = IngestionSource.objects.filter(next_sync_at__isnull=False)
    due.update(next_sync_at=timezone.now() + dt.timedelta(days=1))
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE ingestion_ingestionsource")
    due.update(next_sync_at=timezone.now() - dt.timedelta(hours=1))
    taken = looking._take(50)
    with transaction.atomic(), CaptureQueriesContext(connection) as queries:
        assert looking._still_due(taken) == taken
    [statement] = counted(queries)
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN " + statement.replace("%", "%%"), [])
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "source_due_sync" not in plan
    assert "Seq Scan" not in plan
