"""The bytes of a tar (POSIX pax), one file after the other. Pure, and keeps nothing of them."""

import datetime as dt
import tarfile
from collections.abc import Iterator

from connectors.types import Body, SpooledBody

_BLOCK = 512


class Tar:
    """Each method yields what is to be written next."""

    def file(self, name: str, body: Body, at: dt.datetime) -> Iterator[bytes]:
        size = body.size if isinstance(body, SpooledBody) else len(body)
        yield _header(name, at, size=size)
        if isinstance(body, SpooledBody):
            yield from body.chunks()
        else:
            yield body
        yield bytes(-size % _BLOCK)

    def link(self, name: str, target: str, at: dt.datetime) -> Iterator[bytes]:
        """Name a file of this tar once more."""
        yield _header(name, at, kind=tarfile.LNKTYPE, target=target)

    def directory(self, name: str, at: dt.datetime) -> Iterator[bytes]:
        yield _header(name, at, kind=tarfile.DIRTYPE)

    def finish(self) -> Iterator[bytes]:
        yield bytes(2 * _BLOCK)


def _header(
    name: str, at: dt.datetime, *, size: int = 0, kind: bytes = tarfile.REGTYPE, target: str = ""
) -> bytes:
    about = tarfile.TarInfo(name)
    about.type, about.size, about.linkname = kind, size, target
    about.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    about.mtime = max(0, int(at.timestamp()))
    return about.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")
