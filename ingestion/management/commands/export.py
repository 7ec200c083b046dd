"""export: take mail out of the archive, into a file or into another mailbox."""

import contextlib
import getpass
import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from django.contrib.auth.models import User

from connectors.config import ConfigError
from connectors.generic_imap.config import ImapConfig
from ingestion.management.base import Exit, OperatorCommand, UsageError, write_no_more
from ingestion.management.meanwhile import Meanwhile
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
        "manifest, and the command ends with 1. Nothing is left under FILE unless it is whole. Or "
        "--to-imap: into another mailbox, with folders, flags and dates. Run again, also after it "
        "was killed, that puts nothing twice: what lies there is known by its bytes."
    )
    example = (
        'manage.py export --format maildir --source "Alice" --to alice.tar\n'
        'manage.py export --format eml --query "from:bank after:2024" --to - > bank.zip\n'
        "manage.py export --mailbox ada@example.com --to-imap imap.example.org --imap-user ada"
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
        imap = parser.add_argument_group("into another mailbox")
        imap.add_argument("--to-imap", metavar="HOST[:PORT]", help="its server (port: 993)")
        imap.add_argument("--imap-user", metavar="NAME", help="who logs in there")
        imap.add_argument(
            "--imap-password-env",
            metavar="VARIABLE",
            help="the environment variable with the password (default: it is asked for)",
        )
        imap.add_argument("--imap-password-file", metavar="FILE", help="the file with it")
        imap.add_argument(
            "--imap-encryption",
            choices=("tls", "starttls", "none"),
            default="tls",
            help="of the connection (default: tls)",
        )

    def perform(self, options: dict[str, Any]) -> Exit:
        if options["to_imap"]:
            return self._restore(options)
        if not options["format"] or not options["to"]:
            formats = ", ".join(FORMATS)
            raise UsageError(
                f"Say in which --format ({formats}), and --to which file, or - (stdout)."
            )
        query = self._query(options)
        selection = Selection(self._user(options), query)
        storage.require()
        seen: Writer | None = None
        written = 0
        try:
            with Meanwhile("Exporting") as shown, _new_file(options["to"], self.as_json) as file:
                jobs.taken_by(self.actor, query=query, how=options["format"])

                def on_progress(writer: Writer, _: Message) -> None:
                    nonlocal seen
                    seen = writer
                    if (writer.done + writer.unreadable) % 100 == 0:
                        done = outcome(writer.done, writer.unreadable)
                        shown.count(f"{done}, {size(written)}")

                for chunk in streamed(selection, options["format"], on_progress=on_progress):
                    file.write(chunk)
                    written += len(chunk)
        except BrokenPipeError:
            write_no_more()
            self.say("Who read the export closed it: what it has is cut.")
            return Exit.PROBLEM
        done, unreadable = (seen.done, seen.unreadable) if seen else (0, 0)
        if self.as_json:
            told = {"messages": done, "unreadable": unreadable, "unindexed": selection.unindexed}
            self.report({**told, "bytes": written}, "")
        else:
            self.say(f"{outcome(done, unreadable)}, {size(written)}.{selection.left_out()}")
        return Exit.PROBLEM if unreadable else Exit.OK

    def _restore(self, options: dict[str, Any]) -> Exit:
        from ingestion.services.archive.exports import restore  # noqa: PLC0415 - it takes 0.1 s

        if options["format"] or options["to"]:
            raise UsageError("--to-imap goes without --format and --to.")
        query = self._query(options)
        selection = Selection(self._user(options), query)
        config = _config(options)
        with Meanwhile("Putting") as shown:
            done = restore.restore(
                selection,
                config,
                about=query,
                actor=self.actor,
                on_failed=lambda message, why: self.say(f"{message.pk}: {why}"),
                on_progress=lambda d: shown.count(f"{d.put:,} put, {d.there:,} were there"),
            )
        document = {"put": done.put, "there": done.there, "failed": done.failed}
        text = f"{done.put:,} put, {done.there:,} were there, {done.failed:,} could not be put."
        self.report({**document, "unindexed": selection.unindexed}, text + selection.left_out())
        return Exit.PROBLEM if done.failed else Exit.OK

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


def _config(options: dict[str, Any]) -> ImapConfig:
    host, colon, port = options["to_imap"].rpartition(":")
    if not colon or not port.isdecimal():
        host, port = options["to_imap"], ""
    if not options["imap_user"]:
        raise UsageError("Say with --imap-user who logs in there.")
    encryption = options["imap_encryption"]
    try:
        return ImapConfig.parse(
            {
                "host": host,
                "port": int(port or (993 if encryption == "tls" else 143)),
                "secure": encryption == "tls",
                "startTls": encryption == "starttls",
                "username": options["imap_user"],
                "password": _password(options),
            }
        )
    except ConfigError as error:
        raise UsageError(str(error)) from None


def _password(options: dict[str, Any]) -> str:
    """Return the password, which stands in no argument: others on the machine see those."""
    variable, file = options["imap_password_env"], options["imap_password_file"]
    if variable:
        if variable not in os.environ:
            raise UsageError(f"There is no environment variable {variable}.")
        return os.environ[variable]
    if file:
        try:
            return Path(file).read_text(encoding="utf-8").rstrip("\r\n")
        except OSError as error:
            raise UsageError(f"{file} can't be read: {error.strerror}.") from None
    if not sys.stdin.isatty():
        raise UsageError("Give --imap-password-env or --imap-password-file: nobody can be asked.")
    return getpass.getpass("Password there: ")


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
    ours = True
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except FileExistsError:
        ours = False
        raise UsageError(
            f"{partial} is there: another export is writing it, or one that was killed left it."
            " Remove it then, or give another file."
        ) from None
    finally:
        if ours:
            partial.unlink(missing_ok=True)
