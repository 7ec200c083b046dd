"""What every command has in common: help with an example, --json, sources by name, exit codes.

A command subclasses OperatorCommand (or SourceCommand, when it is about sources) and writes
`perform`, which returns an exit code. Errors that services raise become one sentence on stderr and
an exit code here, so no command catches them.
"""

import argparse
import contextlib
import difflib
import json
import logging
import os
import signal
import sys
import textwrap
import uuid
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.core.management.base import BaseCommand
from django.core.serializers.json import DjangoJSONEncoder
from django.db import InterfaceError, OperationalError, ProgrammingError

from connectors.errors import ConnectorError
from ingestion.errors import InvalidInput, ServiceError
from ingestion.management import typed
from ingestion.management.presentation import Cell, fitted, printable, table, terminal_columns, tsv
from ingestion.models import IngestionSource
from ingestion.services.audit import Actor
from ingestion.services.transactions import others_are_in_the_way

EXIT_CODES = """exit codes:
  0  done, all is well
  1  refused, failed, or a problem was found: the message says what to do
  2  the command line is wrong: an unknown option, source or value
  3  some of it was done, not all: the report says which
  130  interrupted with Ctrl-C or SIGTERM"""


#: Options of every Django command that no operator needs: they work, and are not in the help.
_DJANGOS_OWN = frozenset(
    {
        *("--version", "--settings", "--pythonpath", "--traceback"),
        *("--no-color", "--force-color", "--skip-checks"),
    }
)


class Exit(IntEnum):
    """What a command ends with; EXIT_CODES says it to people."""

    OK = 0
    PROBLEM = 1
    USAGE = 2
    PARTIAL = 3
    INTERRUPTED = 130


class UsageError(Exception):
    """What was typed is wrong; the text says what would be right. Ends with Exit.USAGE."""


class OperatorCommand(BaseCommand):
    """Base of all our commands. Set `help` and `example`; `reports` adds --json.

    `asks_service`: whether there must be a service for it to be about."""

    example = ""
    reports = True
    asks_service = True
    requires_system_checks: list[str] = []  # `doctor` runs them, and `manage.py check`

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> Any:
        example = self.example.replace("manage.py", prog_name)
        parser = super().create_parser(
            prog_name,
            subcommand,
            epilog=f"example:\n{_indented(example)}\n\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **kwargs,
        )
        parser.description = textwrap.fill(self.help, 78, break_on_hyphens=False)
        for action in parser._actions:  # noqa: SLF001 - argparse has no other way to them
            if action.option_strings and action.option_strings[-1] in _DJANGOS_OWN:
                action.help = argparse.SUPPRESS
        parser.usage = _usage(parser)
        self._words = typed.Words(parser)
        return parser

    def add_arguments(self, parser: ArgumentParser) -> None:
        if self.reports:
            parser.add_argument(
                "--json", action="store_true", help="print one JSON document on stdout, alone"
            )
        self.add_own_arguments(parser)

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        """Add the command's own arguments."""

    def perform(self, options: dict[str, Any]) -> Exit:
        """Do it and return how it ended."""
        raise NotImplementedError

    def run_from_argv(self, argv: list[str]) -> None:
        # As Ctrl-C: leases are given back.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        super().run_from_argv(argv)

    def handle(self, *args: Any, **options: Any) -> None:
        del args
        self.as_json: bool = options.get("json", False)
        # People read our sentences, the service's log has the rest; -v 2 shows it here.
        with _log_level(logging.ERROR if options["verbosity"] < 2 else logging.INFO):
            code = self._perform(options) if self._has_service() else Exit.PROBLEM
        if code != Exit.OK:
            raise SystemExit(int(code))

    def _has_service(self) -> bool:
        if self.asks_service and settings.NO_SERVICE:
            self.say(settings.NO_SERVICE)
            return False
        return True

    def _perform(self, options: dict[str, Any]) -> Exit:
        """Tell of what happens to any program."""
        try:
            return self._perform_or_refuse(options)
        except KeyboardInterrupt:
            self.say("Interrupted.")
            return Exit.INTERRUPTED
        except BrokenPipeError:  # whoever read the output (head, less) has enough
            write_no_more()
            return Exit.OK
        except PermissionError:
            raise  # `command_line` says whose files they are
        except OSError as error:
            if error.filename is None:  # the output's disk is full
                write_no_more()
            where = "" if error.filename is None else f"{error.filename}: "
            self.say(f"{where}{error.strerror or error}.")
            return Exit.PROBLEM

    def _perform_or_refuse(self, options: dict[str, Any]) -> Exit:
        try:
            return self.perform(options)
        except UsageError as error:
            self.say(str(error))
            return Exit.USAGE
        except InvalidInput as error:
            for refusal in self._words.refusals(error.errors, options):
                self.say(refusal)
            return Exit.USAGE
        except (ServiceError, ConnectorError) as error:
            self.say(str(error))
            return Exit.PROBLEM
        except (OperationalError, InterfaceError) as error:
            self.say(_database_trouble(error))
            return Exit.PROBLEM
        except ProgrammingError as error:
            if "does not exist" not in str(error):
                raise
            self.say(
                f"The database is not up to date: {_first_line(error)}\nRun manage.py migrate."
            )
            return Exit.PROBLEM

    # -- output ------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Tell a person something, on stderr."""
        lines = "\n".join(printable(line) for line in text.splitlines())
        lines = fitted(lines, terminal_columns(self.stderr))
        self.stderr.write(lines, style_func=str)  # not all in red: much of it is no error

    def report(self, document: Any, text: str | Iterable[str]) -> None:
        """Print the result on stdout: the document with --json, else the text."""
        if self.as_json:
            self.stdout.write(json.dumps(document, indent=2, cls=DjangoJSONEncoder))
            return
        for lines in [text] if isinstance(text, str) else text:
            shown = "\n".join(map(printable, lines.split("\n")))
            self.stdout.write(fitted(shown, terminal_columns(self.stdout)))

    def report_rows(
        self,
        document: Any,
        columns: Sequence[str],
        rows: Sequence[Sequence[Cell]],
        *,
        numbers: set[str],
        nothing: str,
        spare: Sequence[str] = (),
    ) -> None:
        """Print a list: a table on a terminal, and into a pipe a line of each row, tabs between
        its cells (`presentation.plain`) and no head; where there is none, say `nothing` to the
        person."""
        if self.as_json:
            self.report(document, "")
        elif not rows:
            self.say(nothing)
        elif sys.stdout.isatty():
            self.report(document, table(columns, rows, numbers=numbers, spare=spare))
        else:
            self.stdout.write(tsv(rows))

    # -- who and what ------------------------------------------------------------------------------

    @property
    def actor(self) -> Actor:
        return Actor.command_line()

    def find_user(self, name: str) -> User:
        """Return an active user by name. Raises UsageError."""
        user = User.objects.filter(username=name, is_active=True).first()
        if user is None:
            names = User.objects.filter(is_active=True).values_list("username", flat=True)[:500]
            raise UsageError(
                f"There is no active user {name!r}.{_similar(name, list(names))} "
                "Make one in the admin, or with manage.py createsuperuser."
            )
        return user

    def owner(self, name: str | None) -> User:
        """Return whose a new source is: the user of this name, or the only administrator. Raises
        UsageError."""
        if name is not None:
            return self.find_user(name)
        administrators = list(User.objects.filter(is_superuser=True, is_active=True)[:2])
        if len(administrators) == 1:
            return administrators[0]
        raise UsageError(
            "Say with --owner whose source it is: there is not just one administrator."
        )

    def find_source(self, given: str) -> IngestionSource:
        """Return a source by its id or unique name. Raises UsageError."""
        sources = IngestionSource.objects.filter(deleted_at=None).select_related("owner")
        with contextlib.suppress(ValueError):
            by_id = sources.filter(pk=uuid.UUID(given)).first()
            if by_id is not None:
                return by_id
        named = list(sources.filter(name=given)[:10])
        if len(named) == 1:
            return named[0]
        if named:
            which = "".join(f"\n  {s.pk}  owned by {s.owner.get_username()}" for s in named)
            raise UsageError(f"{len(named)} sources have the name {given!r}. Give an id:{which}")
        names = list(sources.values_list("name", flat=True)[:2_000])
        raise UsageError(
            f"There is no source with the id or name {given!r}.{_similar(given, names)} "
            "source_status lists them all."
        )


class SourceCommand(OperatorCommand):
    """A command about one source, the first argument."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("source", metavar="SOURCE", help="its id, or its name if it is unique")
        super().add_arguments(parser)

    def perform(self, options: dict[str, Any]) -> Exit:
        return self.perform_on(self.find_source(options["source"]), options)

    def perform_on(self, source: IngestionSource, options: dict[str, Any]) -> Exit:
        """Do it to this source and return how it ended."""
        raise NotImplementedError


@contextlib.contextmanager
def _log_level(level: int) -> Iterator[None]:
    root = logging.getLogger()
    before = root.level
    root.setLevel(level)
    try:
        yield
    finally:
        root.setLevel(before)


def write_no_more() -> None:
    """Let what is still to be written to stdout go nowhere, without a word at the end."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage(parser: ArgumentParser) -> str:
    """Return what must be given: an error is to be seen, and not below thirty lines of options."""
    needed = [a for a in parser._actions if a.required or not a.option_strings]  # noqa: SLF001 - as above
    formatter = argparse.HelpFormatter(prog="")
    formatter.add_usage(None, needed, [], prefix="")
    return f"%(prog)s [options] {' '.join(formatter.format_help().split())}".rstrip()


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines())


def _database_trouble(error: Exception) -> str:
    if others_are_in_the_way(error):  # it answers
        return "Other work on the same rows was in the way. Run the command again."
    return (
        f"The database does not answer: {_first_line(error)}\n"
        "Start it (make run brings its own), or correct DATABASE_URL or VAR_DIR."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _similar(given: str, names: list[str]) -> str:
    close = difflib.get_close_matches(given, names, n=3)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
