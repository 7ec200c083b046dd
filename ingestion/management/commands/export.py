"""export: take mail out of the archive, into a file."""

import contextlib
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from django.contrib.auth.models import User
from django.utils import timezone

from ingestion.management.base import Exit, OperatorCommand, UsageError
from ingestion.management.counter import Counting
from ingestion.management.presentation import size
from ingestion.models import Message
from ingestion.search import query as language
from ingestion.services.archive import storage
from ingestion.services.archive.exports import jobs
from ingestion.services.archive.exports.formats import FORMATS, Writer
from ingestion.services.archive.exports.selection import Selection
from ingestion.services.archive.exports.stream import outcome, streamed


class Command(OperatorCommand):
    help = (
        "Take mail out of the archive: all of it, or what a query, a source or a mailbox narrows "
        "it to, as one file. mbox: a zip of an mbox (mboxrd); maildir: a tar of Maildirs; eml: a "
        "zip of .eml files. In each are a manifest and checksums, and README.txt says how to check "
        "and undo it. Messages are verified as they are read: one that is damaged is named in the "
        "manifest, and the command ends with 1. Nothing is left under FILE unless it is whole."
    )
    example = (
        'manage.py export --format maildir --source "Alice" --to alice.tar\n'
        'manage.py export --format eml --query "from:bank after:2024" --to - > bank.zip'
    )

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--query", default="", metavar="QUERY", help="what is looked for")
        parser.add_argument("--source", metavar="SOURCE", help="only of this source: id or name")
        parser.add_argument("--mailbox", metavar="ADDRESS", help="only of this mailbox")
        parser.add_argument(
            "--user", metavar="NAME", help="only what this user may see (default: everything)"
        )
        parser.add_argument("--format", choices=FORMATS, help="of the file")
        parser.add_argument("--to", metavar="FILE", help="a new file; - for standard output")

    def perform(self, options: dict[str, Any]) -> Exit:
        if not options["format"] or not options["to"]:
            raise UsageError("Say in which --format, and --to which file (- for standard output).")
        query = self._query(options)
        selection = Selection(self._user(options), query, until=timezone.now())
        storage.require()
        seen: Writer | None = None
        written = 0
        with Counting("Exporting") as counting, _new_file(options["to"], self.as_json) as file:
            jobs.taken_by(self.actor, query=query, how=options["format"])

            def on_progress(writer: Writer, _: Message) -> None:
                nonlocal seen
                seen = writer
                if (writer.done + writer.unreadable) % 100 == 0:
                    done = outcome(writer.done, writer.unreadable)
                    counting.show(f"{done}, {size(written)}")

            for chunk in streamed(selection, options["format"], on_progress=on_progress):
                file.write(chunk)
                written += len(chunk)
        done, unreadable = (seen.done, seen.unreadable) if seen else (0, 0)
        if self.as_json:
            self.report({"messages": done, "unreadable": unreadable, "bytes": written}, "")
        else:
            self.say(f"{outcome(done, unreadable)}, {size(written)}.")
        return Exit.PROBLEM if unreadable else Exit.OK

    def _user(self, options: dict[str, Any]) -> User:
        """Return who looks: whoever has the machine sees everything."""
        if options["user"]:
            return self.find_user(options["user"])
        return User(is_active=True, is_staff=True, is_superuser=True)

    def _query(self, options: dict[str, Any]) -> str:
        try:
            parts = [language.parse(options["query"])]
            if options["source"]:
                parts.append(language.term("source", str(self.find_source(options["source"]).pk)))
            if options["mailbox"]:
                parts.append(language.term("mailbox", options["mailbox"]))
        except language.QueryError as error:
            raise UsageError(f"--query: {error} (at character {error.position + 1})") from None
        return str(language.all_of(*parts))


@contextlib.contextmanager
def _new_file(name: str, as_json: bool) -> Iterator[IO[bytes]]:
    """Open a file that has its name once it is whole, or standard output."""
    if name == "-":
        if as_json or sys.stdout.isatty():
            raise UsageError("Standard output is for people here. Give a file, or a pipe.")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(name)
    if path.exists() or not path.parent.is_dir():
        raise UsageError(f"{path} is there already, or its directory is not. Give a new file.")
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
