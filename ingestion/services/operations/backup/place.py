"""The files of a backup: which there are, what they say, and that only one process changes them."""

import contextlib
import dataclasses
import datetime as dt
import fcntl
import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Self

from ingestion.errors import NotAllowedNow
from ingestion.packs.directory import DirectoryStore
from ingestion.packs.store import PackStore
from ingestion.services.operations.inventory import Listed

_FORMAT = 2
#: At the packs: of which installation they are, and which directory lists them.
_MARK, _LISTED_IN = "backup of ", " in "
_CHUNK_BYTES = 1 << 20
_NAME = re.compile(r"\d{8}-\d{6}-\d{3}")


@dataclasses.dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup is. `lost`: packs that the dump names and nobody had any more, or
    could read. `differing`: packs that had other bytes in it than in the archive, of which its list
    proves nothing."""

    name: str
    taken_at: dt.datetime
    archive_id: str
    migrations: tuple[str, ...]  # "app.name" of each that the dump has
    postgres: int  # the server's major version
    dump_bytes: int
    dump_sha256: str
    packs: int
    pack_bytes: int
    packs_sha256: str  # of the list
    messages: int
    lost: tuple[str, ...]
    differing: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read it. Raises NotAllowedNow where it can't be."""
        try:
            given: dict[str, Any] = json.loads(path.read_bytes())
            if given.pop("format") != _FORMAT:
                raise NotAllowedNow(f"{path} is of another version of this software: use that one.")
            given["taken_at"] = dt.datetime.fromisoformat(given["taken_at"])
            given |= {name: tuple(given[name]) for name in ("migrations", "lost", "differing")}
            return cls(**given)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise NotAllowedNow(
                f"{path} can't be read as what a backup is ({type(error).__name__}). Name another"
                " backup of the same directory: backup --list has them."
            ) from error

    def dumps(self) -> bytes:
        return json.dumps(
            {"format": _FORMAT, **dataclasses.asdict(self)}, indent=1, default=str
        ).encode()


class Place:
    """A directory of backups. `packs`: where their packs are, else in the directory too."""

    def __init__(self, root: Path, packs: PackStore | None = None) -> None:
        self.root, self._databases = root, root / "databases"
        self._id = root / "directory-id"
        self.packs = packs or DirectoryStore(root / "packs")

    # -- reading -----------------------------------------------------------------------------------

    @property
    def begun(self) -> bool:
        """Whether there was ever a backup here."""
        return self._id.exists()

    def manifests(self, on_damage: Callable[[NotAllowedNow], None] | None = None) -> list[Manifest]:
        """Return the backups that are complete, the newest first. Raises NotAllowedNow where one
        can't be read, unless `on_damage` takes it."""
        found = []
        for path in sorted(self._databases.glob("*.json"), reverse=True):
            try:
                found.append(Manifest.read(path))
            except NotAllowedNow as error:
                if on_damage is None:
                    raise
                on_damage(error)
        return found

    def chosen(self, name: str | None = None) -> Manifest:
        """Return the backup of this name, or the newest. Raises NotAllowedNow."""
        if not self._databases.is_dir():
            raise NotAllowedNow(f"{self.root} is no directory of backups.")
        path = self._databases / f"{name}.json"
        if name is None:
            path = max(self._databases.glob("*.json"), default=path)
        if not path.is_file():
            what = f"no backup {name}" if name else "no complete backup"
            raise NotAllowedNow(f"There is {what} in {self.root}. backup --list has what there is.")
        return Manifest.read(path)

    def archive_id(self) -> str:
        """Return whose packs these are, as they tell themselves. Raises NotAllowedNow."""
        mark = self.packs.mark() or ""
        if not mark.startswith(_MARK):
            raise NotAllowedNow(f"{self.packs.name} has no packs of a backup.")
        return mark.removeprefix(_MARK).partition(_LISTED_IN)[0]

    def listed(self, of: Manifest) -> Iterator[Listed]:
        """Yield the packs of a backup. Raises NotAllowedNow where the list is damaged."""
        path = self._path(of.name, "packs")
        if not path.is_file() or hash_file(path) != of.packs_sha256:
            raise NotAllowedNow(
                f"{path} is missing or damaged, so that nobody can tell which packs belong to"
                f" {of.name}. Name another backup: backup --list has them."
            )
        with path.open() as file:
            for line in file:
                sha256, size, source_id, pack_id = line.split()
                yield Listed(
                    uuid.UUID(source_id), uuid.UUID(pack_id), int(size), bytes.fromhex(sha256)
                )

    def dump(self, of: Manifest) -> Path:
        """Return the file of a dump, having compared its SHA-256. Raises NotAllowedNow."""
        path = self._path(of.name, "dump")
        if not path.is_file() or hash_file(path) != of.dump_sha256:
            raise NotAllowedNow(
                f"{path} is missing, or not what was written: the database of {of.name} can't be"
                " had from it. Name another backup (backup --list), or restore --packs-only and"
                " make the rows again with rebuild_archive_index."
            )
        return path

    # -- writing -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def ours(self, archive_id: str) -> Iterator[None]:
        """Hold it for this installation's backups. What broken ones left half-written goes, before
        and behind: where the disk is full, its room is wanted.

        Raises NotAllowedNow where another installation's are in it, another directory has its packs
        where these are, or a backup is under way.
        """
        self._databases.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise NotAllowedNow(f"A backup into {self.root} is under way already.") from None
            self._require_ours(archive_id)
            self._tidy()
            try:
                yield
            finally:
                self._tidy()

    def _tidy(self) -> None:
        complete = {path.stem for path in self._databases.glob("*.json")}
        for path in self._databases.iterdir():
            if path.suffix == ".partial" or path.stem not in complete:
                path.unlink()

    def _require_ours(self, archive_id: str) -> None:
        of_version_before = _MARK + archive_id
        ours = f"{of_version_before}{_LISTED_IN}{self._directory_id()}"
        mark = self.packs.mark()
        if mark == ours:
            return
        if mark is None and next(self.packs.packs(), None) is not None:
            raise NotAllowedNow(
                f"{self.packs.name} has packs, and is no backup. Name an empty place."
            )
        if mark in (None, of_version_before):
            # Not the archive's own mark: nobody must take it for one, and write to it.
            self.packs.write_mark(ours)
        elif mark.startswith(of_version_before + _LISTED_IN):
            theirs = mark.partition(_LISTED_IN)[2]
            raise NotAllowedNow(
                f"{self.packs.name} has the packs of another directory of backups. Two can't share"
                " them: each would remove what only the other lists. Name another place with"
                f" --packs. If that directory is lost for good, write its id, {theirs}, into"
                f" {self._id} and run this again: packs that only its backups listed go then."
            )
        else:
            raise NotAllowedNow(
                f"{self.packs.name} is not for backups of this installation ({archive_id}), but:"
                f" {mark}. Name an empty place."
            )

    def _directory_id(self) -> str:
        if not self._id.is_file():
            with durable(self._id) as file:
                file.write(f"{uuid.uuid4()}\n".encode())
        return self._id.read_text().strip()

    def name_at(self, moment: dt.datetime) -> str:
        """Name a backup that is made then. It comes behind all that are there, also where those are
        of a clock that was ahead: else it would be taken for the oldest, and go first."""
        name = f"{moment:%Y%m%d-%H%M%S-}{moment.microsecond // 1000:03}"
        stems = (path.stem for path in self._databases.glob("*.json"))
        ahead = max((stem for stem in stems if stem >= name and _NAME.fullmatch(stem)), default="")
        if not ahead:
            return name
        digits = f"{int(ahead.replace('-', '')) + 1:017}"
        return f"{digits[:8]}-{digits[8:14]}-{digits[14:]}"

    def partial_dump(self, name: str) -> Path:
        """Where a dump is written; `keep` makes it one."""
        return self._path(name, "dump.partial")

    def write_list(self, name: str, packs: Iterable[Listed]) -> str:
        """Write the list of a backup durably; return its SHA-256."""
        digest = hashlib.sha256()
        with durable(self._path(name, "packs")) as file:
            for pack in packs:
                line = f"{pack.sha256.hex()} {pack.size_bytes} {pack.source_id} {pack.pack_id}\n"
                digest.update(line.encode())
                file.write(line.encode())
        return digest.hexdigest()

    def keep(self, manifest: Manifest) -> None:
        """Make a backup of its files: all of them are durable then."""
        partial = self.partial_dump(manifest.name)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.rename(self._path(manifest.name, "dump"))
        with durable(self._path(manifest.name, "json")) as file:
            file.write(manifest.dumps())

    def remove(self, manifest: Manifest) -> None:
        """Remove a backup, but for its packs. Idempotent."""
        for kind in ("json", "dump", "packs"):
            self._path(manifest.name, kind).unlink(missing_ok=True)

    def _path(self, name: str, kind: str) -> Path:
        return self._databases / f"{name}.{kind}"


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def durable(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that is at its name whole, or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
