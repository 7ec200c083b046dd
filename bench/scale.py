"""What ten million rows cost where a hundred thousand are: to import, follow, list, search, prove.

The archives are of rows alone (`bench.many_rows`), and kept in `rows-<number>` beside the bench's
work, until another `many_rows` would write others. Each round's import stays in both.
"""

import contextlib
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import many_rows, processes, scenarios
from bench.results import BenchError, Row, Sample, alternate, at_most, ratio
from bench.searching import run
from bench.service import Service, Source, clean_environ
from bench.stage import Stage
from tests.servers.stack import Supervised

FEW = 100_000
_TIMES_WORSE = 1.5
_ASKED = 100
_WORDINGS = 10
#: Pages of so many; of the few rows, a person has no more than 20.
_SEARCHES = {
    "rare word": (50, many_rows.RARE.format),
    "old word": (50, lambda _: many_rows.OLD),
    "word in every fourth mail": (50, lambda n: many_rows.EVERY_FOURTH.format(n % 4)),
    "from: a person": (20, lambda n: f"from:person{n}"),
}
_SIZES = """
SELECT c.relname, pg_relation_size(c.oid) / (SELECT count(*) FROM ingestion_message)::float
  FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid
 WHERE coalesce(i.indrelid, c.oid)::regclass::text IN ('ingestion_message', 'ingestion_placement')
   AND c.relkind IN ('r', 'i') ORDER BY coalesce(i.indrelid, c.oid), c.relkind DESC, 1"""


def scale(stage: Stage) -> Iterator[Row]:
    """The same of both archives, in turns."""
    many = stage.plan.scale
    with contextlib.ExitStack() as stack:
        services = {count: stack.enter_context(_archive(stage, count)) for count in (FEW, many)}
        sources: dict[int, Source] = {}

        def imported(count: int) -> Sample:
            sources[count] = services[count].connect(stage.main, port=stage.dovecot.port)
            return services[count].measure(sources[count])

        done: dict[str, Callable[[int], Sample]] = {
            "import": imported,
            "sync, nothing new": lambda n: services[n].measure(sources[n], verb="sync"),
            "list: newest": lambda n: _asked(services[n], *["/emails?pageSize=50"] * _ASKED),
            "list: newest of a source": lambda n: _asked(
                services[n], *[f"/emails?pageSize=50&source={sources[n].id}"] * _ASKED
            ),
            "the feed's first page": lambda n: _asked(services[n], *["/changes?limit=50"] * _ASKED),
            **{
                f"search: {name}": lambda n, asked=asked: _searched(services[n], *asked)  # type: ignore[misc] # bound now
                for name, asked in _SEARCHES.items()
            },
            "a message": lambda n: _messages(services[n], sources[n]),
            "verify": lambda n: services[n].verify(sources[n]),
        }
        for name, measure in done.items():
            stage.say(f"With {FEW:,} and {many:,} rows, in turns: {name}")
            few_row, many_row = (Row(name, f"{n:,} rows") for n in (FEW, many))
            alternate(
                stage.plan.rounds,
                [(few_row, lambda m=measure: m(FEW)), (many_row, lambda m=measure: m(many))],  # type: ignore[misc] # bound now
            )
            worse = ratio(many_row, few_row, figure="seconds")
            many_row.checks = [
                at_most("times the seconds", worse, _TIMES_WORSE, show="{:.2f}".format)
            ]
            if name == "import":
                for row in (few_row, many_row):
                    row.note = scenarios.told(scenarios.cpu_of_a_message(row))
            yield from (few_row, many_row)
        for name, size in services[many].ask(_SIZES):
            yield Row("bytes per message", str(name), note=f"{size:,.0f}")


@contextlib.contextmanager
def _archive(stage: Stage, messages: int) -> Iterator[Service]:
    """Run the service on an archive of so many rows, which is written where it is not there."""
    directory = stage.directory.parent / f"rows-{messages}"
    mark, made_of = directory / "made-of", _made_of()
    if not mark.exists() or mark.read_text() != made_of:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        stage.say(f"Writing {messages:,} rows")
        env = clean_environ(VAR_DIR=str(directory))
        servers = Supervised.start("--only-services", env=env, log=directory / "services.log")
        try:
            servers.wait_for_line("are ready", 120)
            run(env, "bench.many_rows", "--messages", str(messages))
        finally:
            servers.stop()
        mark.write_text(made_of)
    stage.say("Starting the service")
    with Service(directory, server_pid=stage.dovecot.pid) as service:
        yield service


def _made_of() -> str:
    """Say what an archive is made of. Migrations are run on it."""
    return hashlib.sha256(Path(many_rows.__file__).read_bytes()).hexdigest()


def _asked(service: Service, *paths: str) -> Sample:
    """Ask for these, one after the other; return what one took, and of whose CPU."""
    programs = service.supervised.children()
    pids = [programs["web"], programs["postgres"]]
    before, started = [processes.cpu_seconds(pid) for pid in pids], time.monotonic()
    for path in paths:
        service.get(path)
    seconds = time.monotonic() - started
    web, database = (
        (processes.cpu_seconds(pid) - earlier) / len(paths)
        for pid, earlier in zip(pids, before, strict=True)
    )
    return Sample(seconds=seconds / len(paths), cpu_seconds=web, database_cpu_seconds=database)


def _searched(service: Service, size: int, text: Callable[[int], str]) -> Sample:
    """Search in so many wordings, in turn; return what one page took. Raises BenchError where one
    finds nothing."""
    paths = [f"/emails?pageSize={size}&q={text(number)}" for number in range(_WORDINGS)]
    for path in paths:  # once for warmth
        if not service.get(path)["results"]:
            raise BenchError(f"GET {path} found nothing.")
    return _asked(service, *paths * (_ASKED // _WORDINGS))


def _messages(service: Service, source: Source) -> Sample:
    ids = service.some_messages(source, _ASKED)
    return _asked(service, *[f"/emails/{pk}" for pk in ids])
