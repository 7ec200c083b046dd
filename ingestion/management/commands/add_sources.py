"""add_sources: connect many accounts at once, from a CSV file."""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.contrib.auth.models import User
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ingestion import dispatching
from ingestion.amounts import counted
from ingestion.errors import InvalidInput
from ingestion.management import given
from ingestion.management.base import Exit, OperatorCommand, UsageError
from ingestion.management.presentation import printable
from ingestion.services.sources import account_lists
from ingestion.services.sources import options as source_options
from ingestion.services.sources.account_lists import Row, Tried

_RESULTS = {
    "faulty": "✗ faulty",
    "right": "✓ right",
    "failed": "✗ test failed",
    "passed": "✓ test passed",
    "refused": "✗ refused",
    "added": "✓ added",
    "known": "– left out",
    "unproven": "✗ added, test failed",
}
_BAD = frozenset({"faulty", "failed", "refused", "unproven"})


class Command(OperatorCommand):
    help = (
        "Add many accounts from a CSV file: its first line names the columns, each other line is "
        "an account. Columns are name, way (gmail, icloud, imap ...) and the fields of "
        "providerConfig; --template prints a file to begin with. Every line is "
        "looked at before anything is stored, then each account is tried, several at a time, and "
        "what passed is added. Accounts that are archived already are left out, so that a mended "
        "file can be given again. Ends with 3 where some lines need you and not all. In UTF-8; "
        "separated by commas, semicolons or tabs. Delete the file afterwards: it has the passwords."
    )
    example = (
        "manage.py add_sources --template > accounts.csv\n"
        "manage.py add_sources accounts.csv --check\n"
        "manage.py add_sources accounts.csv --auto-import --exclude-folders 'Lists/*'"
    )

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "file", nargs="?", metavar="FILE", help="the CSV file, or - for standard input"
        )
        parser.add_argument(
            "--owner", metavar="USER", help="whose they are (default: the only administrator)"
        )
        parser.add_argument(
            "--auto-import", action="store_true", help="import as soon as the credentials work"
        )
        less = parser.add_mutually_exclusive_group()
        less.add_argument("--template", action="store_true", help="print a file to begin with")
        less.add_argument("--check", action="store_true", help="only look at the lines")
        less.add_argument("--test", action="store_true", help="only try them, and add nothing")
        less.add_argument("--no-test", action="store_true", help="add them without a test")
        less.add_argument(
            "--all",
            action="store_true",
            help="add also those whose test failed, and those that are archived already",
        )
        given.add_options(parser)

    def perform(self, options: dict[str, Any]) -> Exit:
        if options["template"]:
            self.report({"columns": account_lists.columns()}, account_lists.TEMPLATE.rstrip())
            return Exit.OK
        source_options.parse(given.chosen_options(options))
        owner = None if options["check"] or options["test"] else self.owner(options["owner"])
        rows = account_lists.read(self._content(options["file"]), user=None)
        self._results: dict[int, dict[str, Any]] = {}
        good = []
        for row in rows:
            if row.faults:
                self._note(row, "faulty", " ".join(row.faults))
            elif row.warnings and not options["all"]:
                self._note(row, "known", f"{' '.join(row.warnings)} --all adds it too.")
            else:
                good.append(row)
                self._note(row, "right", " ".join(row.warnings))
        if not options["check"] and not options["no_test"]:
            good = self._test(good, options)
        if owner is not None:
            self._add(good, owner, options)
        return self._reported(rows)

    def _content(self, path: str | None) -> bytes:
        if path is None:
            raise UsageError("Say which FILE. --template prints one to begin with.")
        most = account_lists.MAX_BYTES + 1
        try:
            if path == "-":
                return sys.stdin.buffer.read(most)
            with Path(path).open("rb") as file:
                return file.read(most)
        except OSError as error:
            raise UsageError(f"{path} can't be read: {error.strerror}.") from error

    def _test(self, rows: Sequence[Row], options: dict[str, Any]) -> list[Row]:
        """Try them, and return those that are to be added, in the order of the file."""
        console = Console(stderr=True, highlight=False)
        bar = Progress(
            TextColumn("Testing"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]} failed"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        results: list[Tried] = []
        with bar:
            task = bar.add_task("", total=len(rows), failed=0)
            for result in account_lists.tried(rows, given.chosen_options(options)):
                results.append(result)
                self._note(result.row, "passed" if result.ok else "failed", result.text)
                bar.update(task, advance=1, failed=sum(not one.ok for one in results))
                if bar.disable:
                    mark = "✓" if result.ok else "✗"
                    self.say(f"{mark} line {result.row.line}, {result.row.name}: {result.text}")
        wanted = [one.row for one in results if one.ok or options["all"]]
        return sorted(wanted, key=lambda row: row.line)

    def _add(self, rows: Sequence[Row], owner: User, options: dict[str, Any]) -> None:
        for row, made in account_lists.store(
            rows,
            owner=owner,
            options=given.chosen_options(options),
            auto_import=options["auto_import"],
            actor=self.actor,
        ):
            if isinstance(made, InvalidInput):
                self._note(row, "refused", str(made))
            else:
                dispatching.on_commit(made)
                tested = self._results[row.line]
                result = "unproven" if tested["result"] == "failed" else "added"
                self._note(row, result, tested["message"], source=made.pk)

    def _note(self, row: Row, result: str, text: str, *, source: Any = None) -> None:
        self._results[row.line] = {
            "line": row.line,
            "name": row.name,
            "provider": row.provider,
            "account": row.account,
            "result": result,
            "message": text,
            "warnings": list(row.warnings),
            "sourceId": source,
        }

    def _reported(self, rows: Sequence[Row]) -> Exit:
        lines = [self._results[row.line] for row in rows]
        bad = sum(line["result"] in _BAD for line in lines)
        added = sum(line["sourceId"] is not None for line in lines)
        self.report_rows(
            {"added": added, "bad": bad, "lines": lines},
            ("Line", "Name", "Account", "Result", "What"),
            [
                (
                    str(line["line"]),
                    line["name"],
                    line["account"],
                    _RESULTS[line["result"]],
                    printable(line["message"]),
                )
                for line in lines
            ],
            numbers={"Line"},
            nothing="",
        )
        need = f"{bad:,} that {'needs' if bad == 1 else 'need'} you"
        self.say(f"{counted(len(lines), 'account')}: {added:,} added, {need}.")
        if not bad:
            return Exit.OK
        return Exit.PARTIAL if bad < len(lines) else Exit.PROBLEM
