"""Copies packs from one store to another, several at a time, each proven by its SHA-256.

A pack that is copied is read back from where it went; one that lies there already is read and
compared. What that means is for the caller: `moving`, and `backup`.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import sqlite3
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeVar

from django.db import connection

from connectors.types import tmpdir
from ingestion.errors import ArchiveUnavailable, Corrupt
from ingestion.packs.store import PackFile, PackStore

#: Requests take their time, and a core compares 500 MB/s.
_AT_ONCE = 4
T = TypeVar("T")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True, slots=True)
class Copied:
    """What came of a pack.

    copied   it was not there, and is now, bit for bit
    there    it was there already, bit for bit
    gone     it is not here any more, and nothing was written
    damaged  what is here is not what it is known to be, or can't be read; nothing was written
    differs  what is there has other bytes, or can't be read, and was left alone
    """

    pack: PackFile
    outcome: Literal["copied", "there", "gone", "damaged", "differs"]
    sha256: bytes = b""


def copied(
    packs: Iterable[PackFile],
    here: PackStore,
    there: PackStore,
    *,
    known: Callable[[uuid.UUID], bytes | None] = lambda _: None,
) -> Iterator[Copied]:
    """Have packs be there as they are here; yield what came of each, in order. `known`, asked in
    this thread: the SHA-256 that one is known to have. Passes over what was never committed.

    It may take hours, and a server may end sessions that idle: the database is connected anew by
    who asks it next. Call outside a transaction.
    """
    connection.close()
    whole = ((pack, known(pack.pack_id)) for pack in packs if not pack.partial)
    yield from at_once(lambda one: _copy(one[0], here, there, one[1]), whole)


def at_once(act: Callable[[T], R], on: Iterable[T]) -> Iterator[R]:
    """Yield what `act` returns for each, in order, a few ahead in threads."""
    waiting: collections.deque[concurrent.futures.Future[R]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE, "copying") as threads:
        try:
            for each in on:
                waiting.append(threads.submit(act, each))
                if len(waiting) > 2 * _AT_ONCE:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise


def _copy(pack: PackFile, here: PackStore, there: PackStore, known: bytes | None) -> Copied:
    name = pack.source_id, pack.pack_id
    try:
        theirs = _hashed(there, pack)
    except FileNotFoundError:
        try:
            with there.copier(*name) as copy:
                ours = copy.fill(here.chunks(*name))
                if known not in (None, ours):
                    return Copied(pack, "damaged", ours)
                copy.commit()
        except FileNotFoundError:
            return Copied(pack, "gone")  # deleted, or collected, meanwhile
        except Corrupt:
            return Copied(pack, "damaged")
        return Copied(pack, "copied" if _hashed(there, pack) == ours else "differs", ours)
    try:
        ours = known or here.sha256(*name)
    except FileNotFoundError:
        return Copied(pack, "gone")
    except Corrupt:
        return Copied(pack, "damaged")
    return Copied(pack, "there" if theirs == ours else "differs", ours)


def _hashed(there: PackStore, pack: PackFile) -> bytes:
    """Return the SHA-256 of a copy; b"" of one that can't be read. Raises FileNotFoundError."""
    try:
        return there.sha256(pack.source_id, pack.pack_id)
    except Corrupt:
        return b""


@contextlib.contextmanager
def told_in_words(
    there: str, then: str = "Make room, or mend it, and run this again: it goes on."
) -> Iterator[None]:
    """Turn what a disk refuses into ArchiveUnavailable, with what to do then."""
    try:
        yield
    except ArchiveUnavailable:
        raise
    except OSError as error:
        where = error.filename or there
        raise ArchiveUnavailable(f"{where}: {error.strerror or error}. {then}") from error
    except sqlite3.Error as error:  # of a list that is too long for memory
        raise ArchiveUnavailable(f"{tmpdir()}: {error}. {then}") from error
