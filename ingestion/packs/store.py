"""The pack store on a local directory: write once, verify on every read, never overwrite.

    <root>/<source id>/<pack id>.pack         immutable, durable
    <root>/<source id>/.<pack id>.partial     being written; worthless after a crash

Knows nothing of the database. A pack without a row (a crash between the two) is an orphan that
`archive.housekeeping` collects; a row without a pack can't be, because packs come first.
"""

import contextlib
import dataclasses
import datetime as dt
import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from django.conf import settings

from connectors.types import SPOOL_BYTES, Body, SpooledBody
from ingestion.errors import Corrupt
from ingestion.packs.format import (
    Chunked,
    Damaged,
    Entry,
    Extent,
    HashingReader,
    append,
    begin,
    compressor,
    scan,
)

__all__ = ["Entry", "Extent", "PackFile", "PackStore", "PackWriter", "store"]


def store() -> "PackStore":
    """The archive of this deployment (settings.ARCHIVE_DIR)."""
    return PackStore(settings.ARCHIVE_DIR)


@dataclasses.dataclass(frozen=True, slots=True)
class PackFile:
    """A pack as it lies in the store. `partial`: it was never committed."""

    source_id: uuid.UUID
    pack_id: uuid.UUID
    size_bytes: int
    modified_at: dt.datetime
    partial: bool = False


class PackWriter:
    """One new pack. Nothing of it remains unless `commit` returned.

    `file` is unbuffered: the packing process appends to it by its descriptor, others by `append`.
    """

    def __init__(self, directory: Path, source_id: uuid.UUID) -> None:
        self.pack_id = uuid.uuid4()
        self._directory = directory
        self._partial = directory / f".{self.pack_id}.partial"
        self._committed = False
        _make_durable_directory(directory)
        self.file = self._partial.open("x+b", buffering=0)  # closed by commit or __exit__
        try:
            begin(self.file, self.pack_id, {"source": str(source_id)})
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def append(self, records: Iterable[tuple[str, bytes | Chunked]]) -> list[Extent]:
        """Add records, each a header's JSON object and a body, as `packs.format.append` does."""
        return append(self.file, self.pack_id.hex, records, compressor())

    def remove(self) -> None:
        """Delete the pack after its commit: no row will ever name it. Idempotent."""
        (self._directory / f"{self.pack_id}.pack").unlink(missing_ok=True)

    def commit(self) -> int:
        """Make the pack durable under its final name; return its size in bytes."""
        size_bytes = self.file.seek(0, os.SEEK_END)
        os.fsync(self.file.fileno())
        self.file.close()
        self._partial.rename(self._directory / f"{self.pack_id}.pack")
        _fsync_directory(self._directory)
        self._committed = True
        return size_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._committed:
            self.file.close()
            self._partial.unlink(missing_ok=True)


class PackStore:
    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def writer(self, source_id: uuid.UUID) -> PackWriter:
        return PackWriter(self._directory(source_id), source_id)

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

        Large ones come as SpooledBody: close it. Raises Corrupt.
        """
        where = f"message {sha256.hex()[:12]} in pack {pack_id}"
        try:
            with self._path(source_id, pack_id).open("rb", buffering=0) as file:
                reader = HashingReader(file, extent)
                body: Body
                if size <= SPOOL_BYTES:
                    body = b"".join(_bounded(reader, size))
                else:
                    spool = tempfile.TemporaryFile()  # noqa: SIM115 - closed by SpooledBody.close
                    body = SpooledBody(spool, size)
                    for chunk in _bounded(reader, size):
                        spool.write(chunk)
        except FileNotFoundError as error:
            raise Corrupt(f"{where}: the pack is missing. Restore it from a backup.") from error
        except Damaged as error:
            raise Corrupt(f"{where}: {error}. Restore the pack from a backup.") from error
        if reader.size != size or reader.digest() != sha256:
            if isinstance(body, SpooledBody):
                body.close()
            raise Corrupt(f"{where}: SHA-256 differs. Restore the pack from a backup.")
        return body

    def scan(
        self,
        source_id: uuid.UUID,
        pack_id: uuid.UUID,
        *,
        on_damage: Callable[[Corrupt], None] | None = None,
    ) -> Iterator[Entry]:
        """Yield a pack's records without reading bodies. Raises Corrupt where it is missing, and
        at the first bad record, unless `on_damage` takes those: then it goes on behind each."""

        def tell(error: Damaged) -> None:
            corrupt = Corrupt(f"pack {pack_id}: {error}. Restore it from a backup.")
            if on_damage is None:
                raise corrupt from error
            on_damage(corrupt)

        try:
            with self._path(source_id, pack_id).open("rb") as file:
                yield from scan(file, pack_id, on_damage=tell)
        except FileNotFoundError as error:
            raise Corrupt(f"pack {pack_id} is missing. Restore it from a backup.") from error

    def holds(self, source_id: uuid.UUID, pack_id: uuid.UUID) -> bool:
        """Whether a committed pack is there."""
        return self._path(source_id, pack_id).exists()

    def packs(self, source_id: uuid.UUID | None = None) -> Iterator[PackFile]:
        """Yield every pack in the store, committed or partial, in no order."""
        if source_id is not None:
            yield from self._packs_of(source_id)
            return
        for owner in self.sources():
            yield from self._packs_of(owner)

    def sources(self) -> Iterator[uuid.UUID]:
        """Yield the ids of the sources that have a directory here."""
        for name in _names(self.root):
            found = _uuid(name)
            if found:
                yield found

    def delete(self, pack: PackFile) -> None:
        """Remove one file, by its own name alone: a partial one may have been committed since it
        was listed. Idempotent."""
        name = f".{pack.pack_id}.partial" if pack.partial else f"{pack.pack_id}.pack"
        (self._directory(pack.source_id) / name).unlink(missing_ok=True)

    def delete_source(self, source_id: uuid.UUID) -> None:
        """Remove every pack of a source. Idempotent."""
        directory = self._directory(source_id)
        for pack in self.packs(source_id):
            self.delete(pack)
        shutil.rmtree(directory, ignore_errors=True)  # what is left is no pack
        if directory.exists():
            raise OSError(errno.ENOTEMPTY, "A source's directory can't be removed", str(directory))

    def _directory(self, source_id: uuid.UUID) -> Path:
        return self.root / str(uuid.UUID(str(source_id)))

    def _path(self, source_id: uuid.UUID, pack_id: uuid.UUID) -> Path:
        return self._directory(source_id) / f"{uuid.UUID(str(pack_id))}.pack"

    def _packs_of(self, source_id: uuid.UUID) -> Iterator[PackFile]:
        directory = self._directory(source_id)
        for name in _names(directory):
            stem, dot, kind = name.removeprefix(".").rpartition(".")
            found = _uuid(stem)
            if not dot or kind not in ("pack", "partial") or not found:
                continue
            try:
                about = (directory / name).stat()
            except FileNotFoundError:
                continue  # committed, collected or deleted in between
            modified = dt.datetime.fromtimestamp(about.st_mtime, dt.UTC)
            yield PackFile(source_id, found, about.st_size, modified, kind == "partial")


def _bounded(reader: HashingReader, size: int) -> Iterator[bytes]:
    """Pass chunks on until there are more bytes than the row says: then it is not our message."""
    for chunk in reader.chunks():
        if reader.size > size:
            raise Damaged("it holds more bytes than were archived")
        yield chunk


def _names(directory: Path) -> Iterator[str]:
    """Yield the names in a directory, as many as there may be; none where it does not exist."""
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            yield entry.name


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


def _make_durable_directory(directory: Path) -> None:
    if directory.is_dir():
        return
    directory.mkdir(parents=True, exist_ok=True)
    _fsync_directory(directory.parent)
    _fsync_directory(directory.parent.parent)


def _fsync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
