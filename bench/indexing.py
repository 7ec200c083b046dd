"""The index stage: what it takes of a core, and what an import loses while it is at work."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from bench import processes, scenarios
from bench.results import BenchError, Row, Sample, alternate, at_least, ratio
from bench.service import Service
from bench.stage import Stage

_PATIENCE_SECONDS = 900.0
_READER = b"ingestion.mail.child"


def index(stage: Stage) -> Iterator[Row]:
    """Index what was imported while the index stage stood still; then import beside it."""
    account, port = stage.main, stage.dovecot.port
    name = f"indexing {account.messages:,} × {account.size / account.messages / 1000:.0f} kB"
    alone = Row(name, "index alone")
    without, beside = Row(name, "import, nothing indexed"), Row(name, "import beside it")
    with stage.another_service() as service:
        imported = scenarios.ours(service, account, port=port)

        def with_index_held() -> Sample:
            with service.supervised.standing_still("index"):
                return imported()

        def beside_index() -> Sample:
            with_index_held()  # gives it something to do all the while
            sample = imported()
            if not service.unindexed():
                raise BenchError("Everything was indexed before the import was done.")
            wait(service)
            return sample

        def index_alone() -> Sample:
            wait(service)
            with_index_held()
            return _index(service, alone)

        stage.say("Importing and indexing, in turns")
        alternate(
            stage.plan.rounds,
            [(alone, index_alone), (without, with_index_held), (beside, beside_index)],
        )
    beside.checks = [at_least("of the rate without", ratio(beside, without), 0.9)]
    beside.note = f"{os.cpu_count()} cores, which they share with the server and the database"
    yield from (alone, without, beside)


def _index(service: Service, row: Row) -> Sample:
    """Measure until all is indexed, and the CPU of indexers, their readers and PostgreSQL."""
    messages = service.unindexed()
    programs = service.supervised.children()
    before, started = _cpu(programs), time.monotonic()
    wait(service)
    seconds = time.monotonic() - started
    index, reader, database = (b - a for a, b in zip(before, _cpu(programs), strict=True))
    each = [f"{1e6 * used / messages:,.0f}" for used in (index - reader, reader, database)]
    row.note = (
        f"{messages / (index + database):,.0f} messages a second and core; CPU a message: indexer "
        f"{each[0]}, reader {each[1]}, PostgreSQL {each[2]} us"
    )
    return Sample(
        seconds=seconds, messages=messages, cpu_seconds=index, database_cpu_seconds=database
    )


def _cpu(programs: dict[str, int]) -> tuple[float, float, float]:
    index = programs["index"]
    readers = [
        pid for pid in processes.tree(index) if _READER in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    return (
        processes.cpu_seconds(index),
        sum(map(processes.cpu_seconds, readers)),
        processes.cpu_seconds(programs["postgres"]),
    )


def wait(service: Service) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while service.unindexed():
        if time.monotonic() > deadline:
            raise BenchError(f"Not indexed after {_PATIENCE_SECONDS:.0f} s.")
        time.sleep(0.2)
