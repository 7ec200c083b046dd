"""`make bench`: measure the service beside its peers, and say whether it is fast enough."""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from rich.console import Console

from bench import chart, limits, machine, page, profile, report, scenarios
from bench.results import Row
from bench.service import BenchError
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
    "sparse": limits.sparse,
    "huge": limits.huge,
    "dispatch": limits.dispatch,
}


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
    made.add_argument("--rounds", type=int, help="how often the contenders take turns")
    made.add_argument("--directory", type=Path, default=DIRECTORY, help="emptied at the start")
    return made


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    console = Console()
    if not console.is_terminal:  # a file or a pipe has room for the whole table
        console.width = max(console.width, 150)
    usual = QUICK if options.quick else Plan()
    plan = Plan(
        messages=options.messages or usual.messages,
        rounds=options.rounds or usual.rounds,
        quick=options.quick,
    )
    options.directory.mkdir(parents=True, exist_ok=True)
    names = options.only or (["import"] if options.quick else list(SCENARIOS))
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    rows: list[Row] = []
    fsyncs = [machine.fsync_milliseconds(options.directory)]
    try:
        with Stage(
            options.directory / "work", plan, lambda text: console.print(f"[dim]{text} …")
        ) as stage:
            if options.profile:
                profile.run(stage, options.directory / "profile", console)
                return 0
            for name in names:
                started = time.monotonic()
                rows.extend(SCENARIOS[name](stage))
                fsyncs.append(machine.fsync_milliseconds(options.directory))
                stage.say(f"{name}: {time.monotonic() - started:.0f} s")
    except BenchError as error:
        console.print(f"[red]{error}")
        return 2
    about = {**machine.describe(options.directory, fsyncs), "rounds": f"{plan.rounds} rounds"}
    report.show(rows, console)
    results = options.directory / "results.json"
    report.save(report.document(rows, about), results)
    console.print(" · ".join(about.values()))
    if not (options.quick or options.only or options.messages):
        page.update(ROOT / "docs" / "benchmarks.md", rows, about)
        chart.save(rows, ROOT / "docs" / "benchmarks.svg")
        console.print("Written: docs/benchmarks.md, docs/benchmarks.svg")
    console.print(f"All single figures: {results}")
    return 0


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    sys.exit(128 + number)  # what was started is ended on the way out


if __name__ == "__main__":
    sys.exit(main())
