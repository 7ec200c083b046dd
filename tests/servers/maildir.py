"""A Maildir as mail programs use it, beneath the MAILDIR_ROOT of the tests."""

import itertools
import os
import shutil
import stat
from pathlib import Path
from typing import Any

_NUMBERS = itertools.count(1_700_000_000)


class Maildir:
    """`directory` is what a source of it names. Messages are named by their ids."""

    def __init__(self, directory: str, *, token: str) -> None:
        self.directory, self.token = directory, token
        self.path = Path(os.environ["MAILDIR_ROOT"], directory)
        _make(self.path)
        (self.path / ".archive-token").write_text(f"{token}\n")

    @property
    def config(self) -> dict[str, Any]:
        """The providerConfig."""
        return {"directory": self.directory, "token": self.token}

    def deliver(self, body: bytes, *, folder: str = ".") -> str:
        """Deliver as cr.yp.to/proto/maildir.html says: written in tmp, then renamed into new."""
        if not (self.path / folder).is_dir():
            _make(self.path / folder)
        name = f"{next(_NUMBERS)}.M1P1.host"
        written = self.path / folder / "tmp" / name
        written.write_bytes(body)
        written.rename(self.path / folder / "new" / name)
        return name

    def file(self, name: str) -> Path:
        """Return where a message is now."""
        [found] = self.path.rglob(f"{name}*")
        return found

    def flag(self, name: str) -> None:
        """Mark as important, and move out of new, as mail readers do."""
        self.file(name).rename(self.path / "cur" / f"{name}:2,F")

    def restore(self) -> None:
        """Put a copy, as from a backup, in the place of the directory."""
        copy = self.path.with_name(f"{self.path.name}.copy")
        shutil.copytree(self.path, copy)
        shutil.rmtree(self.path)
        copy.rename(self.path)

    def fail(self, name: str) -> bytes:
        """Let opening a message fail as on a device that is gone (ENXIO); return what it was."""
        file = self.file(name)
        body = file.read_bytes()
        file.unlink()
        os.mknod(file, stat.S_IFSOCK | 0o600)
        return body

    def mend(self, name: str, body: bytes) -> None:
        file = self.file(name)
        file.unlink()
        file.write_bytes(body)


def _make(path: Path) -> None:
    for place in ("cur", "new", "tmp"):
        (path / place).mkdir(parents=True)
