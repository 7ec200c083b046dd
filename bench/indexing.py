"""The index stage: what it takes of a core, and what an import loses while it is at work."""

import time
from collections.abc import Iterator

from bench import processes, scenarios
from bench.results import BenchError, Row, Sample, alternate, at_least, ratio
from bench.service import Service
from bench.stage import Stage

#: How long indexing alone is watched, and for how many messages: it writes 200 together.
_SECONDS, _AT_LEAST = 8.0, 2_000
_PATIENCE_SECONDS = 200.0


def index(stage: Stage) -> Iterator[Row]:
    """Import while the index stage stands still, and while it is at work on what that left, in
    turns; then let it work alone."""
    account, port = stage.main, stage.dovecot.port
    name = f"indexing {account.messages:,} × {account.size / account.messages / 1000:.0f} kB"
    alone = Row(name, "index alone")
    without, beside = Row(name, "import, nothing indexed"), Row(name, "import beside it")
    with stage.another_service() as service:
        imported = scenarios.ours(service, account, port=port)

        def beside_index() -> Sample:
            with service.indexing():
                sample = imported()
            if not service.unindexed():
                raise BenchError("Everything was indexed before the import was done.")
            return sample

        stage.say("Importing beside the index stage and without it, in turns")
        alternate(stage.plan.rounds, [(without, imported), (beside, beside_index)])
        stage.say("Indexing")
        alternate(stage.plan.rounds, [(alone, lambda: _index(service, alone))])
    beside.checks = [at_least("of the rate without", ratio(beside, without), 0.9)]
    for row in (without, beside):
        row.note = scenarios.told(scenarios.cpu_of_a_message(row))
    yield from (alone, without, beside)


def _index(service: Service, row: Row) -> Sample:
    """Let it work for some seconds; measure the CPU of indexers and PostgreSQL."""
    programs = service.supervised.children()
    count, before, started = service.documents(), _cpu(programs), time.monotonic()
    with service.indexing():
        while _goes_on(service, count, time.monotonic() - started):
            time.sleep(0.2)
    seconds, messages = time.monotonic() - started, service.documents() - count
    index, database = (b - a for a, b in zip(before, _cpu(programs), strict=True))
    if not messages:
        raise BenchError(f"Nothing was indexed in {seconds:.0f} s.")
    each = [f"{1e6 * used / messages:,.0f}" for used in (index, database)]
    row.note = (
        f"{messages / (index + database):,.0f} messages a second and core; CPU a message: index, "
        f"its readers too, {each[0]}, PostgreSQL {each[1]} us"
    )
    return Sample(
        seconds=seconds, messages=messages, cpu_seconds=index, database_cpu_seconds=database
    )


def _goes_on(service: Service, count: int, seconds: float) -> bool:
    if not service.unindexed() or seconds > _PATIENCE_SECONDS:
        return False
    return seconds < _SECONDS or service.documents() - count < _AT_LEAST


def _cpu(programs: dict[str, int]) -> tuple[float, float]:
    index, postgres = (processes.cpu_seconds(programs[name]) for name in ("index", "postgres"))
    return index, postgres
