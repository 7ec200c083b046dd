"""Writes the results into docs/benchmarks.md, between two marks; the prose around them stays."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.report import COLUMNS, cells
from bench.results import Row

START = "<!-- results: `make bench` writes what follows -->"
END = "<!-- end of results -->"
SEARCH = "<!-- search: `make bench ONLY=search` writes what follows -->"
SEARCH_END = "<!-- end of search -->"
LISTS = "<!-- lists: `make bench ONLY=lists` writes what follows -->"
LISTS_END = "<!-- end of lists -->"
OBJECT_STORE = "<!-- s3: `make bench ONLY=s3` writes what follows -->"
OBJECT_STORE_END = "<!-- end of s3 -->"


def update(path: Path, rows: Sequence[Row], about: Mapping[str, str]) -> None:
    """Replace what stands between the marks. Raises ValueError where they are missing."""
    _replace(path, (START, END), section(rows, about))


def update_search(path: Path, rows: Sequence[Row], about: Mapping[str, str]) -> None:
    """Replace what `searching` found. Raises ValueError where the marks are missing."""
    picture = "![How far each page was below or above its target](search.svg)"
    lines = [" · ".join(about.values()), "", picture, ""]
    lines += [_line(["asked for", "contender", "", "figures"]), _line(["---"] * 4)]
    lines += [_line([row.scenario, row.contender, _reached(row), row.note]) for row in rows]
    _replace(path, (SEARCH, SEARCH_END), "\n".join(lines) + "\n")


def update_lists(path: Path, rows: Sequence[Row], about: Mapping[str, str]) -> None:
    """Replace what `lists` found. Raises ValueError where the marks are missing."""
    lines = [" · ".join(about.values()), "", _line(["list", "", "figures"]), _line(["---"] * 3)]
    lines += [_line([row.contender, _reached(row), row.note]) for row in rows]
    _replace(path, (LISTS, LISTS_END), "\n".join(lines) + "\n")


def update_object_store(path: Path, rows: Sequence[Row], about: Mapping[str, str]) -> None:
    """Replace what `object_store` measured and counted. Raises ValueError where the marks are
    missing."""
    lines = [" · ".join(about.values()), "", _line(["", "", "seconds", "msg/s", ""])]
    lines.append(_line(["---", "---", "--:", "--:", "---"]))
    lines += [_line([row.scenario, row.contender, *cells(row)[:2], _words(row)]) for row in rows]
    _replace(path, (OBJECT_STORE, OBJECT_STORE_END), "\n".join(lines) + "\n")


def _replace(path: Path, marks: tuple[str, str], section: str) -> None:
    text = path.read_text()
    before, start, rest = text.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not (start and end):
        raise ValueError(f"{path} must have the lines {marks[0]!r} and {marks[1]!r}.")
    path.write_text(f"{before}{marks[0]}\n\n{section}\n{marks[1]}{after}")


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
    lines += [_line([row.scenario, row.contender, *cells(row), _words(row)]) for row in rows]
    return "\n".join(lines) + "\n"


def _words(row: Row) -> str:
    return "<br>".join(text for text in (_reached(row), row.note) if text)


def _reached(row: Row) -> str:
    return "<br>".join(f"{'✓' if c.reached else '**✗**'} {c.text}" for c in row.checks)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
