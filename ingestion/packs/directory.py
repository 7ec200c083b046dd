"""Packs in a directory.

    <root>/<source id>/<xx>/<pack id>.pack       immutable, durable; xx is how its id begins
    <root>/<source id>/<xx>/.<any id>.partial    being written; worthless after a crash
    <root>/<source id>/<pack id>.pack            of before; and in a copy of a bucket
    <root>/.installation                         the mark

A million packs of a source are four thousand in each of its directories.
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
from collections.abc import Callable, Iterator
from pathlib import Path

from ingestion.packs.base import PackFile, PackStore, PackWriter

MARK = ".installation"
#: Of a pack's id, as many as make 256 directories.
_FAN_DIGITS = 2


class DirectoryStore(PackStore):
    setting = "ARCHIVE_DIR"

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.name, self.mark_name = str(root), str(self.root / MARK)

    def copier(self, source_id: uuid.UUID, pack_id: uuid.UUID) -> PackWriter:
        return _Writer(self, source_id, pack_id)

    def holds(self, source_id: uuid.UUID, pack_id: uuid.UUID) -> bool:
        return any(path.exists() for path in self.paths(source_id, f"{pack_id}.pack"))

    def _packs_of(self, source_id: uuid.UUID) -> Iterator[PackFile]:
        directory = self._directory(source_id)
        for name in _names(directory):
            if len(name) == _FAN_DIGITS:
                for within in _names(directory / name):
                    yield from _pack_file(source_id, directory / name / within)
            else:
                yield from _pack_file(source_id, directory / name)

    def sources(self) -> Iterator[uuid.UUID]:
        for name in _names(self.root):
            found = _uuid(name)
            if found:
                yield found

    def delete(self, pack: PackFile) -> None:
        name = f".{pack.pack_id}.partial" if pack.partial else f"{pack.pack_id}.pack"
        for path in self.paths(pack.source_id, name):
            path.unlink(missing_ok=True)

    def delete_source(
        self, source_id: uuid.UUID, *, may_go_on: Callable[[], bool] = lambda: True
    ) -> bool:
        directory = self._directory(source_id)
        for pack in self.packs(source_id):
            if not may_go_on():
                return False
            self.delete(pack)
        shutil.rmtree(directory, ignore_errors=True)  # what is left is no pack
        if directory.exists():
            raise OSError(errno.ENOTEMPTY, "A source's directory can't be removed", str(directory))
        return True

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
        path, of_before = self.paths(source_id, f"{pack_id}.pack")
        try:
            return io.FileIO(path)
        except (FileNotFoundError, NotADirectoryError):
            return io.FileIO(of_before)

    def _directory(self, source_id: uuid.UUID) -> Path:
        return self.root / str(uuid.UUID(str(source_id)))

    def paths(self, source_id: uuid.UUID, name: str) -> tuple[Path, Path]:
        """Return where a pack, or a half of one, is written by its name, and where it may be that
        was written before there were directories."""
        directory = self._directory(source_id)
        return directory / name.removeprefix(".")[:_FAN_DIGITS] / name, directory / name


class _Writer(PackWriter):
    def __init__(self, store: DirectoryStore, source_id: uuid.UUID, pack_id: uuid.UUID) -> None:
        self._path, self._of_before = store.paths(source_id, f"{pack_id}.pack")
        # Not the pack's id: what a copy that was killed left behind is in nobody's way.
        own = f".{str(pack_id)[:_FAN_DIGITS]}{str(uuid.uuid4())[_FAN_DIGITS:]}.partial"
        self._partial, _ = store.paths(source_id, own)
        _make_durable_directory(self._path.parent)
        super().__init__(pack_id, self._partial.open("x+b", buffering=0))

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)

    def _keep(self) -> None:
        os.fsync(self.file.fileno())
        self.file.close()
        for path in (self._path, self._of_before):
            if path.exists():
                raise FileExistsError(errno.EEXIST, "Another pack is there", str(path))
        self._partial.rename(self._path)
        _fsync_directory(self._path.parent)

    def _discard(self) -> None:
        self._partial.unlink(missing_ok=True)


def _pack_file(source_id: uuid.UUID, path: Path) -> Iterator[PackFile]:
    """Yield what a file is, where it is a pack or the half of one."""
    stem, dot, kind = path.name.removeprefix(".").rpartition(".")
    pack_id = _uuid(stem)
    if not dot or kind not in ("pack", "partial") or not pack_id:
        return
    with contextlib.suppress(FileNotFoundError):  # committed, collected or deleted in between
        about = path.stat()
        modified = dt.datetime.fromtimestamp(about.st_mtime, dt.UTC)
        yield PackFile(source_id, pack_id, about.st_size, modified, kind == "partial")


def _names(directory: Path) -> Iterator[str]:
    """Yield the names in a directory, as many as there may be; none where it does not exist."""
    missing = FileNotFoundError, NotADirectoryError
    with contextlib.suppress(*missing), os.scandir(directory) as entries:
        for entry in entries:
            yield entry.name


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


#: Directories that are there after a crash, as far as this process has seen to it.
_durable: set[Path] = set()
_MOST_KNOWN = 4096


def _make_durable_directory(directory: Path) -> None:
    """Have a directory of packs be there after a crash, whoever made it: once for each in a
    process, for another may have made it an instant ago."""
    source, archive = list(directory.parents)[:2]
    for one in (archive, source, directory):
        if not one.is_dir():
            _durable.discard(one)
            one.mkdir(parents=True, exist_ok=True)
        if one not in _durable:
            _fsync_directory(one.parent)
            if len(_durable) >= _MOST_KNOWN:
                _durable.clear()
            _durable.add(one)


def _fsync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
