"""Packs in a directory.

<root>/<source id>/<pack id>.pack         immutable, durable
<root>/<source id>/.<any id>.partial      being written; worthless after a crash
<root>/.installation                      the mark
"""

import contextlib
import datetime as dt
import errno
import io
import os
import secrets
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from ingestion.packs.base import PackFile, PackStore, PackWriter

MARK = ".installation"


class DirectoryStore(PackStore):
    setting = "ARCHIVE_DIR"

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.name, self.mark_name = str(root), str(self.root / MARK)

    def copier(self, source_id: uuid.UUID, pack_id: uuid.UUID) -> PackWriter:
        return _Writer(self._directory(source_id), pack_id)

    def holds(self, source_id: uuid.UUID, pack_id: uuid.UUID) -> bool:
        return self._path(source_id, pack_id).exists()

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

    def sources(self) -> Iterator[uuid.UUID]:
        for name in _names(self.root):
            found = _uuid(name)
            if found:
                yield found

    def delete(self, pack: PackFile) -> None:
        name = f".{pack.pack_id}.partial" if pack.partial else f"{pack.pack_id}.pack"
        (self._directory(pack.source_id) / name).unlink(missing_ok=True)

    def delete_source(self, source_id: uuid.UUID) -> None:
        directory = self._directory(source_id)
        for pack in self.packs(source_id):
            self.delete(pack)
        shutil.rmtree(directory, ignore_errors=True)  # what is left is no pack
        if directory.exists():
            raise OSError(errno.ENOTEMPTY, "A source's directory can't be removed", str(directory))

    def mark(self) -> str | None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return (self.root / MARK).read_text(errors="replace").strip()
        return None

    def write_mark(self, text: str) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        partial = self.root / f"{MARK}.partial"
        with partial.open("w") as file:
            file.write(f"{text}\n")
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self.root / MARK)
        _fsync_directory(self.root)

    def try_out(self) -> float:
        self.root.mkdir(parents=True, exist_ok=True)
        path = self.root / f".doctor-{secrets.token_hex(8)}"
        began = time.monotonic()
        try:
            with path.open("xb") as file:
                file.write(b"\0" * 4096)
                file.flush()
                os.fsync(file.fileno())
        finally:
            path.unlink(missing_ok=True)
        return time.monotonic() - began

    def room(self) -> tuple[int, int] | None:
        usage = shutil.disk_usage(self.root)
        return usage.free, usage.total

    def _file(
        self,
        source_id: uuid.UUID,
        pack_id: uuid.UUID,
        expected_bytes: int = 0,  # noqa: ARG002 - the kernel reads ahead
    ) -> io.RawIOBase:
        return self._path(source_id, pack_id).open("rb", buffering=0)

    def _directory(self, source_id: uuid.UUID) -> Path:
        return self.root / str(uuid.UUID(str(source_id)))

    def _path(self, source_id: uuid.UUID, pack_id: uuid.UUID) -> Path:
        return self._directory(source_id) / f"{uuid.UUID(str(pack_id))}.pack"


class _Writer(PackWriter):
    def __init__(self, directory: Path, pack_id: uuid.UUID) -> None:
        self._directory = directory
        # Not the pack's id: what a copy that was killed left behind is in nobody's way.
        self._partial = directory / f".{uuid.uuid4()}.partial"
        self._path = directory / f"{pack_id}.pack"
        _make_durable_directory(directory)
        super().__init__(pack_id, self._partial.open("x+b", buffering=0))

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)

    def _keep(self) -> None:
        os.fsync(self.file.fileno())
        self.file.close()
        if self._path.exists():
            raise FileExistsError(errno.EEXIST, "Another pack is there", str(self._path))
        self._partial.rename(self._path)
        _fsync_directory(self._directory)

    def _discard(self) -> None:
        self._partial.unlink(missing_ok=True)


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
