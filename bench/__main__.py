"""`make bench`: measure the service beside its peers, and say whether it is fast enough."""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from rich.console import Console

from bench import (
    chart,
    header_fields,
    indexing,
    limits,
    lists,
    machine,
    object_store,
    orphans,
    page,
    polling,
    profile,
    report,
    scale,
    scenarios,
    searching,
    starts,
)
from bench.results import BenchError, Row
from bench.stage import QUICK, Plan, Stage

ROOT = Path(__file__).resolve().parents[1]
DIRECTORY = ROOT / "var" / "bench"

SCENARIOS: dict[str, Callable[[Stage], Iterator[Row]]] = {
    "import": scenarios.imports,
    "latency": scenarios.latency,
    "large": scenarios.large,
    "tls": scenarios.tls,
    "workers": scenarios.workers,
    "no-change": limits.no_change,
    "silent": scenarios.silent,
    "sparse": limits.sparse,
    "huge": limits.huge,
    "dispatch": limits.dispatch,
    "polls": polling.polls,
    "headers": header_fields.headers,
    "index": indexing.index,
    "s3": object_store.object_store,
    "orphans": orphans.orphans,
    "lists": lists.lists,
    "search": searching.search,
    "scale": scale.scale,
    "starts": starts.starts,
}
#: What takes long (an hour and 20 GB; 220,000 packs to write) is done only where it is asked for.
_ASKED_FOR = {"orphans", "scale"}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="make bench", description=__doc__)
    made.add_argument("--quick", action="store_true", help="the import alone, fewer messages")
    made.add_argument(
        "--only", action="append", choices=SCENARIOS, metavar="NAME", help=", ".join(SCENARIOS)
    )
    made.add_argument(
        "--profile", action="store_true", help="instead, see where an import's time goes"
    )
    made.add_argument("--messages", type=int, help="instead of 20,000")
    made.add_argument("--corpus", type=int, help="instead of 1,000,000 messages to search and list")
    made.add_argument("--accounts", type=int, help="instead of 2,000 mailboxes that are followed")
    made.add_argument("--scale", type=int, help="instead of 10,000,000 rows, beside 100,000")
    made.add_argument("--rounds", type=int, help="how often the contenders take turns")
    made.add_argument(
        "--directory", type=Path, default=DIRECTORY, help="on a real disk; its work/ is emptied"
    )
    return made


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    console = Console()
    if not console.is_terminal:  # a file or a pipe has room for the whole table
        console.width = max(console.width, 150)
    usual = QUICK if options.quick else Plan()
    plan = Plan(
        messages=options.messages or usual.messages,
        rounds=options.rounds or usual.rounds,
        corpus=options.corpus or usual.corpus,
        scale=options.scale or usual.scale,
        accounts=options.accounts or usual.accounts,
        quick=options.quick,
    )
    usually = [name for name in SCENARIOS if name not in _ASKED_FOR]
    names = options.only or (["import"] if options.quick else usually)
    directory: Path = options.directory
    directory.mkdir(parents=True, exist_ok=True)
    if machine.disk(directory).startswith("tmpfs"):
        console.print(f"{directory} is in memory, where an fsync costs nothing: --directory")
        return 2
    stage = Stage(directory / "work", plan, lambda text: console.print(f"[dim]{text} …"))
    if options.profile:
        with stage:
            profile.run(stage, directory / "profile", console)
        return 0
    fsyncs = [machine.fsync_milliseconds(directory)]
    found: dict[str, list[Row]] = {name: [] for name in names}
    failed = []
    with stage:
        for name in names:
            started = time.monotonic()
            try:
                found[name].extend(SCENARIOS[name](stage))
            except BenchError as error:
                failed.append(name)
                found[name].append(Row(name, "failed", note=str(error)))
            stage.say(f"{name}: {time.monotonic() - started:.0f} s")
            fsyncs.append(machine.fsync_milliseconds(directory))
    about = {**machine.describe(directory, fsyncs), "rounds": f"{plan.rounds} rounds"}
    _tell(_all(found), about, console, directory / "results.json")
    if not options.quick:
        whole = {name: rows for name, rows in found.items() if name not in failed}
        _write(whole, about, options, everything=not failed, console=console)
    return 2 if failed else 0


def _all(found: dict[str, list[Row]]) -> list[Row]:
    return [row for rows in found.values() for row in rows]


def _write(
    found: dict[str, list[Row]],
    about: dict[str, str],
    options: argparse.Namespace,
    *,
    everything: bool,
    console: Console,
) -> None:
    """Write into docs/ what was measured, by scenario, as its pages say. `everything`: nothing that
    was asked for failed."""
    docs = ROOT / "docs"
    written = []
    if searched := found.pop("search", None):
        page.update_search(docs / "benchmarks.md", searched, about)
        chart.save(searched, docs / "search.svg")
        written += ["docs/benchmarks.md on search", "docs/search.svg"]
    if listed := found.pop("lists", None):
        page.update_lists(docs / "benchmarks.md", listed, about)
        written.append("docs/benchmarks.md on lists")
    if (stored := found.get("s3")) and everything and not options.messages:
        page.update_object_store(docs / "object-store.md", stored, about)
        written.append("docs/object-store.md on speed and requests")
    is_other_plan = options.messages or options.corpus or options.accounts
    if everything and not (options.only or is_other_plan):
        page.update(docs / "benchmarks.md", _all(found), about)
        chart.save(_all(found), docs / "benchmarks.svg")
        written += ["docs/benchmarks.md", "docs/benchmarks.svg"]
    if written:
        console.print(f"Written: {', '.join(written)}")


def _tell(rows: list[Row], about: dict[str, str], console: Console, results: Path) -> None:
    report.show(rows, console)
    console.print(" · ".join(about.values()))
    report.save(report.document(rows, about), results)
    console.print(f"All single figures: {results}")


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    sys.exit(128 + number)  # what was started is ended on the way out


if __name__ == "__main__":
    sys.exit(main())
