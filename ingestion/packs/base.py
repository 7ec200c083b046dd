"""What a store of packs is: write once, verify on every read, never overwrite.

    <source id>, <pack id>     immutable, durable
    a mark                     whose archive it is (`archive.storage`)

`packs.directory` keeps them as files, `packs.s3` as objects; `packs.store` has the one of this
deployment. Knows nothing of the database. A pack without a row (a crash between the two) is an
orphan, which `archive.housekeeping` collects; a row without a pack can't be: packs come first.
"""

import abc
import contextlib
import dataclasses
import datetime as dt
import hashlib
import io
import os
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import IO, Self, cast

from connectors.types import SPOOL_BYTES, Body, SpooledBody, tmpdir
from ingestion.errors import ArchiveUnavailable, Corrupt, ServiceError
from ingestion.packs.format import (
    Chunked,
    Damaged,
    Entry,
    Extent,
    HashingReader,
    append,
    begin,
    compressor,
    damage,
    read,
    scan,
    write,
)

_CHUNK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class PackFile:
    """A pack as it lies in the store. `partial`: it was never committed."""

    source_id: uuid.UUID
    pack_id: uuid.UUID
    size_bytes: int
    modified_at: dt.datetime
    partial: bool = False


class PackWriter(abc.ABC):
    """One new pack. Nothing of it remains unless `commit` returned.

    `file` is unbuffered: the packing process appends to it by its descriptor, others by `append`.
    `committed`: whether `commit` returned.
    """

    def __init__(self, pack_id: uuid.UUID, file: IO[bytes]) -> None:
        self.pack_id = pack_id
        self.file = file  # closed by commit or __exit__
        self.committed = False

    def append(self, records: Iterable[tuple[str, bytes | Chunked]]) -> list[Extent]:
        """Add records, each a header's JSON object and a body, as `packs.format.append` does."""
        return append(self.file, self.pack_id.hex, records, compressor())

    def fill(self, chunks: Iterable[bytes]) -> bytes:
        """Write a whole pack's bytes as they are; return their SHA-256."""
        digest = hashlib.sha256()
        for chunk in chunks:
            digest.update(chunk)
            write(self.file, chunk)
        return digest.digest()

    def commit(self) -> int:
        """Make the pack durable; return its size in bytes. Raises OSError, FileExistsError where
        another one is there."""
        size_bytes = self.file.seek(0, os.SEEK_END)
        self._keep()
        self.committed = True
        return size_bytes

    @abc.abstractmethod
    def remove(self) -> None:
        """Delete the pack after its commit: no row will ever name it. Idempotent."""

    def drop(self) -> None:
        """Leave nothing of it, committed or not: no row will ever name it."""
        if self.committed:
            self.remove()
        else:
            self.file.close()
            self._discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.committed:
            self.drop()

    @abc.abstractmethod
    def _keep(self) -> None:
        """Make what is in `file` durable under the pack's name, and close it."""

    @abc.abstractmethod
    def _discard(self) -> None:
        """Leave nothing behind of a pack that is not kept."""


class PackStore(abc.ABC):
    """Of its methods those raise OSError that can't do what they say: ArchiveUnavailable among it.

    Corrupt alone says something of what is archived. PermissionError is of this user, any other of
    this machine or the store."""

    #: For people: which one it is, what sets that, and where its mark is. Without a secret.
    name: str
    setting: str
    mark_name: str
    #: Whether a pack takes long to be made durable, so that several should be on their way.
    slow = False
    #: For so long after it was written nobody gets the room of a pack back, whoever deletes it.
    locked_for = dt.timedelta(0)

    # -- writing -----------------------------------------------------------------------------------

    def writer(self, source_id: uuid.UUID) -> PackWriter:
        """Begin a new pack."""
        writer = self.copier(source_id, uuid.uuid4())
        try:
            begin(writer.file, writer.pack_id, {"source": str(source_id)})
        except BaseException:
            writer.__exit__(None, None, None)
            raise
        return writer

    @abc.abstractmethod
    def copier(self, source_id: uuid.UUID, pack_id: uuid.UUID) -> PackWriter:
        """Begin a pack that has its id already; its file is empty."""

    # -- reading -----------------------------------------------------------------------------------

    def open(
        self,
        source_id: uuid.UUID,
        pack_id: uuid.UUID,
        extent: Extent,
        *,
        sha256: bytes,
        size: int,
    ) -> Body:
        """Return a message's bytes, checked against `sha256` and `size` before any is handed out.

        Large ones come as SpooledBody: close it. Raises Corrupt, and ArchiveUnavailable where
        nothing is known of it, as the store is away.
        """
        where = f"message {sha256.hex()[:12]} in pack {pack_id}"
        try:
            with self._opened(source_id, pack_id, extent.length) as file:
                chunks = _verified(HashingReader(file, extent), sha256, size)
                return b"".join(chunks) if size <= SPOOL_BYTES else _spooled(chunks, size)
        except FileNotFoundError as error:
            raise self._not_there(f"{where}: the pack") from error
        except Damaged as error:
            raise Corrupt(f"{where}: {error}. Restore the pack from a backup.") from error

    def scan(
        self,
        source_id: uuid.UUID,
        pack_id: uuid.UUID,
        *,
        on_damage: Callable[[Corrupt], None] | None = None,
    ) -> Iterator[Entry]:
        """Yield a pack's records without reading bodies. Raises Corrupt where it is missing, and
        at the first bad record, unless `on_damage` takes those: then it goes on behind each. Raises
        ArchiveUnavailable as `open` does."""

        def tell(error: Damaged) -> None:
            corrupt = Corrupt(f"pack {pack_id}: {error}. Restore it from a backup.")
            if on_damage is None:
                raise corrupt from error
            on_damage(corrupt)

        try:
            raw = cast("io.RawIOBase", self._opened(source_id, pack_id))
            with io.BufferedReader(raw) as file:
                yield from scan(file, pack_id, on_damage=tell)
        except FileNotFoundError as error:
            raise self._not_there(f"pack {pack_id}") from error
        except Damaged as error:
            tell(error)

    def chunks(self, source_id: uuid.UUID, pack_id: uuid.UUID) -> Iterator[bytes]:
        """Yield all of a pack's bytes as they are. Raises FileNotFoundError, and Corrupt where the
        disk can't read some of them."""
        try:
            with self._opened(source_id, pack_id) as file:
                while chunk := read(file, _CHUNK_BYTES):
                    yield chunk
        except Damaged as error:
            raise Corrupt(f"pack {pack_id}: {error}.") from error

    def sha256(self, source_id: uuid.UUID, pack_id: uuid.UUID) -> bytes:
        """Hash all of a pack's bytes. Raises what `chunks` does."""
        digest = hashlib.sha256()
        for chunk in self.chunks(source_id, pack_id):
            digest.update(chunk)
        return digest.digest()

    def _opened(
        self, source_id: uuid.UUID, pack_id: uuid.UUID, expected_bytes: int = 0
    ) -> IO[bytes]:
        """Do as `_file` does. Raises Damaged where the disk can't read where the pack lies."""
        try:
            return cast("IO[bytes]", self._file(source_id, pack_id, expected_bytes))
        except OSError as error:
            raise damage(error) from error

    def _not_there(self, what: str) -> ServiceError:
        """Return what it means that a pack can't be found. An empty mount point has no mark, and
        nothing is known of any pack then."""
        if self.mark() is None:
            return ArchiveUnavailable(
                f"{self.name} has no mark of an archive: is its volume mounted?"
                " Nothing is known of any message until it is."
            )
        return Corrupt(f"{what} is missing. Restore it from a backup.")

    @abc.abstractmethod
    def _file(
        self, source_id: uuid.UUID, pack_id: uuid.UUID, expected_bytes: int = 0
    ) -> io.RawIOBase:
        """Open a pack to be read anywhere, where `expected_bytes` will be read in a row. Raises
        FileNotFoundError, now or when it is read."""

    def fresh(self) -> "PackStore":
        """Return the same store, with nothing remembered of what was read before."""
        return self

    # -- looking around and removing ---------------------------------------------------------------

    @abc.abstractmethod
    def holds(self, source_id: uuid.UUID, pack_id: uuid.UUID) -> bool:
        """Whether a committed pack is there."""

    def packs(self, source_id: uuid.UUID | None = None) -> Iterator[PackFile]:
        """Yield every pack of a source, or of all, committed or partial, in no order."""
        if source_id is not None:
            yield from self._packs_of(source_id)
            return
        for owner in self.sources():
            yield from self._packs_of(owner)

    @abc.abstractmethod
    def _packs_of(self, source_id: uuid.UUID) -> Iterator[PackFile]:
        """Yield every pack of a source. Memory does not grow with their number."""

    @abc.abstractmethod
    def sources(self) -> Iterator[uuid.UUID]:
        """Yield the ids of the sources that have a place here."""

    @abc.abstractmethod
    def delete(self, pack: PackFile) -> None:
        """Remove one, by its own name alone: a partial one may have been committed since it was
        listed. Idempotent."""

    @abc.abstractmethod
    def delete_source(
        self, source_id: uuid.UUID, *, may_go_on: Callable[[], bool] = lambda: True
    ) -> bool:
        """Remove every pack of a source, and return whether all are gone: `may_go_on` is asked
        before each batch. Idempotent."""

    # -- whose it is, and how it does --------------------------------------------------------------

    @abc.abstractmethod
    def mark(self) -> str | None:
        """Read what `write_mark` wrote last; None where nobody did, or all of it is away."""

    @abc.abstractmethod
    def write_mark(self, text: str) -> None:
        """Write the mark durably, in place of the one before."""

    @abc.abstractmethod
    def try_out(self) -> float:
        """Write a little durably, as packs are written, and remove it; return the seconds it
        took."""

    def room(self) -> tuple[int, int] | None:
        """Return how many bytes are free, of how many; None where nobody knows."""
        return None


def _verified(reader: HashingReader, sha256: bytes, size: int) -> Iterator[bytes]:
    """Pass chunks on; those of a whole message are what was archived once this ends."""
    for chunk in reader.chunks():
        if reader.size > size:
            raise Damaged("it holds more bytes than were archived")
        yield chunk
    if reader.size != size or reader.digest() != sha256:
        raise Damaged("SHA-256 differs")


def _spooled(chunks: Iterable[bytes], size: int) -> SpooledBody:
    with contextlib.ExitStack() as stack:
        with told_of_tmpdir():
            spool = stack.enter_context(tempfile.TemporaryFile(buffering=0))
        for chunk in chunks:
            with told_of_tmpdir():
                write(spool, chunk)
        stack.pop_all()
    return SpooledBody(spool, size)


@contextlib.contextmanager
def told_of_tmpdir() -> Iterator[None]:
    """A disk that is full says nothing of what should go there: raise ArchiveUnavailable."""
    try:
        yield
    except OSError as error:
        raise ArchiveUnavailable(
            f"{tmpdir()} can't hold a large message or an attachment: {error.strerror}."
            " Make room there, or set TMPDIR to a directory on a disk."
        ) from error
