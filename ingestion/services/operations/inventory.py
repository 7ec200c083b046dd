"""Packs by their ids, on disk: there may be millions, and memory is the same for all of them.

A temporary file without a name, as SQLite makes it in TMPDIR: it goes with the process that has it.
"""

import sqlite3
import uuid
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_BATCH_ROWS = 2_000
_MAKE = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -16000;
CREATE TABLE pack (id BLOB PRIMARY KEY, source_id BLOB, size_bytes INTEGER, sha256 BLOB)
    WITHOUT ROWID;
BEGIN;
"""


class Listed(NamedTuple):
    """A pack, as a row or a list names it. `sha256` is b"" where nobody has hashed it yet."""

    source_id: uuid.UUID
    pack_id: uuid.UUID
    size_bytes: int
    sha256: bytes


class Inventory:
    """For one thread."""

    def __init__(self, packs: Iterable[Listed] = ()) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.executescript(_MAKE)
        self.add(packs)

    def add(self, packs: Iterable[Listed]) -> None:
        """Have them be in it, in place of what was there by their ids."""
        self._db.executemany("REPLACE INTO pack VALUES (?, ?, ?, ?)", map(_row, packs))

    def remove(self, pack_id: uuid.UUID) -> None:
        self._db.execute("DELETE FROM pack WHERE id = ?", (pack_id.bytes,))

    def get(self, pack_id: uuid.UUID) -> Listed | None:
        found = self._db.execute("SELECT * FROM pack WHERE id = ?", (pack_id.bytes,)).fetchone()
        return _listed(found) if found else None

    def sha256(self, pack_id: uuid.UUID) -> bytes | None:
        found = self.get(pack_id)
        return found.sha256 if found else None

    def __contains__(self, pack_id: uuid.UUID) -> bool:
        return self.get(pack_id) is not None

    def __iter__(self) -> Iterator[Listed]:
        """Yield all, by their ids. It may be changed meanwhile."""
        after = b""
        while rows := self._db.execute(
            "SELECT * FROM pack WHERE id > ? ORDER BY id LIMIT ?", (after, _BATCH_ROWS)
        ).fetchall():
            yield from map(_listed, rows)
            after = rows[-1][0]

    def totals(self) -> tuple[int, int]:
        """Return how many there are, and their bytes."""
        count, size = self._db.execute(
            "SELECT count(*), coalesce(sum(size_bytes), 0) FROM pack"
        ).fetchone()
        return count, size


def _row(pack: Listed) -> tuple[bytes, bytes, int, bytes]:
    return pack.pack_id.bytes, pack.source_id.bytes, pack.size_bytes, pack.sha256


def _listed(row: tuple[bytes, bytes, int, bytes]) -> Listed:
    pack_id, source_id, size_bytes, sha256 = row
    return Listed(uuid.UUID(bytes=source_id), uuid.UUID(bytes=pack_id), size_bytes, sha256)
