"""Writes the results into docs/benchmarks.md, between two marks; the prose around them stays."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.report import COLUMNS, cells
from bench.results import Row

START = "<!-- results: `make bench` writes what follows -->"
END = "<!-- end of results -->"


def update(path: Path, rows: Sequence[Row], about: Mapping[str, str]) -> None:
    """Replace what stands between the marks. Raises ValueError where they are missing."""
    text = path.read_text()
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"{path} must have the lines {START!r} and {END!r}.")
    path.write_text(f"{before}{START}\n\n{section(rows, about)}\n{END}{after}")


def section(rows: Sequence[Row], about: Mapping[str, str]) -> str:
    """Return the table and what it was measured on, as Markdown."""
    headings = ["scenario", "contender", *(name for name, _, _ in COLUMNS), "reached (to reach)"]
    lines = [
        " · ".join(about.values()),
        "",
        "![Rates of the import, and how far each target was passed or missed](benchmarks.svg)",
        "",
        _line(headings),
        _line(["---", "---", *("--:" for _ in COLUMNS), "---"]),
    ]
    for row in rows:
        words = [f"{'✓' if c.reached else '**✗**'} {c.text}" for c in row.checks]
        words += [row.note] * bool(row.note)
        lines.append(_line([row.scenario, row.contender, *cells(row), "<br>".join(words)]))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
