"""What people see of the results: one table on the terminal."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.results import Row

#: Heading, figure, how it is shown.
COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("seconds", "seconds", "{:,.2f}".format),
    ("msg/s", "messages_per_second", "{:,.0f}".format),
    ("MB/s", "megabytes_per_second", "{:,.1f}".format),
    ("CPU s", "cpu_seconds", "{:,.2f}".format),
    ("…server", "server_cpu_seconds", "{:,.2f}".format),
    ("…database", "database_cpu_seconds", "{:,.2f}".format),
    ("peak MB", "rss_bytes", lambda value: f"{value / 1e6:,.0f}"),
)


def cells(row: Row) -> list[str]:
    """Return the row's figures in the order of COLUMNS, "" where there is none."""
    medians = [(row.median(figure), show) for _, figure, show in COLUMNS]
    return ["" if value is None else show(value) for value, show in medians]


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the table, with the columns that any row fills; what was not reached stands out."""
    table = Table(header_style="bold", pad_edge=False)
    for name in ("scenario", "contender"):
        table.add_column(name, no_wrap=True)
    figures = list(zip(*map(cells, rows), strict=True))
    shown = [number for number, column in enumerate(figures) if any(column)]
    for number in shown:
        table.add_column(COLUMNS[number][0], justify="right", no_wrap=True)
    table.add_column("reached (to reach)", min_width=30, overflow="fold")
    before = ""
    for row in rows:
        if before and row.scenario != before:
            table.add_section()
        found = cells(row)
        table.add_row(
            row.scenario if row.scenario != before else "",
            row.contender,
            *(found[number] for number in shown),
            _words(row),
        )
        before = row.scenario
    console.print(table)


def _words(row: Row) -> Text:
    text = Text()
    for check in row.checks:
        mark, style = ("✓", "green") if check.reached else ("✗", "red")
        text.append(f"{mark} {check.text}\n", style)
    text.append(row.note, "dim")
    text.rstrip()
    return text


def document(rows: Sequence[Row], about: dict[str, str]) -> dict[str, Any]:
    """Return everything, with all single figures, as JSON has it."""
    return {"about": about, "rows": [asdict(row) for row in rows]}


def save(found: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
