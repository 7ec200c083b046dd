"""The bytes of a zip (PKWARE's APPNOTE 6.3.10), one file after the other, with zip64 where needed.

Python's `zipfile` keeps all names in memory until the end, and can't go on after it was killed.
Here the directory, which stands at the end, is gathered in a file.
"""

import dataclasses
import datetime as dt
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, Any

from connectors.types import CHUNK_BYTES, Body, SpooledBody

_STORED, _DEFLATED = 0, 8
_UTF8, _SIZES_FOLLOW = 0x0800, 0x0008
_MAX_32, _MAX_16 = 0xFFFFFFFF, 0xFFFF
_UNIX = 3 << 8
#: Mail is base64 for the most part: more takes longer, and makes it no smaller to speak of.
_LEVEL = 1


@dataclasses.dataclass
class _Entry:
    name: bytes
    at: dt.datetime
    offset: int
    method: int
    flags: int = _UTF8
    crc: int = 0
    packed: int = 0
    size: int = 0


class Zip:
    """Each method yields what is to be written next; `directory` takes what is to come at the end.

    `state` and `go_on` are for one that is killed: what was written after `state` is to be cut off.
    """

    def __init__(self, directory: IO[bytes]) -> None:
        self._directory = directory
        self._offset = self._count = 0
        self._open: _Entry | None = None
        self._deflating = _deflating()

    def state(self) -> dict[str, Any]:
        """Return where it is. A file that is `growing` must have been flushed."""
        entry = self._open
        growing = entry and [entry.offset, entry.crc, entry.packed, entry.size]
        return {"offset": self._offset, "count": self._count, "growing": growing}

    def go_on(self, state: dict[str, Any]) -> None:
        """Be where another one was."""
        self._offset, self._count = state["offset"], state["count"]
        self._directory.seek(0, os.SEEK_END)
        if self._open is not None and state["growing"]:
            entry = self._open
            entry.offset, entry.crc, entry.packed, entry.size = state["growing"]

    def file(self, name: str, body: Body, at: dt.datetime) -> Iterator[bytes]:
        """Add a file: compressed, unless it is large or gets no smaller."""
        entry = _Entry(name.encode(), at, self._offset, _STORED)
        chunks: Iterable[bytes]
        if isinstance(body, SpooledBody):
            entry.size = entry.packed = body.size
            for chunk in body.chunks():
                entry.crc = zlib.crc32(chunk, entry.crc)
            chunks = body.chunks()
        else:
            entry.size, entry.crc = len(body), zlib.crc32(body)
            deflating = _deflating()
            small = deflating.compress(body) + deflating.flush()
            if len(small) < len(body):
                entry.method = _DEFLATED
            kept = small if len(small) < len(body) else body
            entry.packed = len(kept)
            chunks = (kept,)
        yield from self._out(_local_header(entry))
        for chunk in chunks:
            yield from self._out(chunk)
        self._list(entry)

    # -- a file whose size nobody knows yet --------------------------------------------------------

    def begin(self, name: str, at: dt.datetime) -> Iterator[bytes]:
        """Begin a file that grows by `grow`."""
        self._open = _Entry(name.encode(), at, self._offset, _DEFLATED, _UTF8 | _SIZES_FOLLOW)
        yield from self._out(_local_header(self._open))

    def grow(self, chunk: bytes) -> Iterator[bytes]:
        entry = self._open
        assert entry is not None
        entry.crc, entry.size = zlib.crc32(chunk, entry.crc), entry.size + len(chunk)
        yield from self._packed(self._deflating.compress(chunk))

    def flush(self) -> Iterator[bytes]:
        """Have all of it written, in such a way that another compressor can go on."""
        yield from self._packed(self._deflating.flush(zlib.Z_FULL_FLUSH))
        self._deflating = _deflating()

    def end(self) -> Iterator[bytes]:
        """End the file that grew (APPNOTE 4.3.9, a descriptor of 64 bits)."""
        entry = self._open
        assert entry is not None
        yield from self._packed(self._deflating.flush())
        yield from self._out(struct.pack("<LLQQ", 0x08074B50, entry.crc, entry.packed, entry.size))
        self._list(entry)
        self._open = None

    @property
    def grown(self) -> int:
        """How many bytes the file that grows has."""
        return self._open.size if self._open else 0

    # -- the end -----------------------------------------------------------------------------------

    def finish(self) -> Iterator[bytes]:
        """Write the directory, and what says where it is (APPNOTE 4.3.12 to 4.3.16)."""
        begin = self._offset
        self._directory.flush()
        self._directory.seek(0)
        while chunk := self._directory.read(CHUNK_BYTES):
            yield from self._out(chunk)
        size, at, count = self._offset - begin, self._offset, self._count
        if count > _MAX_16 or max(size, begin) > _MAX_32 - 1:
            yield from self._out(
                struct.pack(
                    "<LQHHLLQQQQ",
                    *(0x06064B50, 44, _UNIX | 45, 45, 0, 0, count, count, size, begin),
                )
            )
            yield from self._out(struct.pack("<LLQL", 0x07064B50, 0, at, 1))
        count = min(count, _MAX_16)
        yield from self._out(
            struct.pack(
                "<LHHHHLLH",
                *(0x06054B50, 0, 0, count, count, min(size, _MAX_32), min(begin, _MAX_32), 0),
            )
        )

    def _packed(self, data: bytes) -> Iterator[bytes]:
        assert self._open is not None
        self._open.packed += len(data)
        yield from self._out(data)

    def _out(self, data: bytes) -> Iterator[bytes]:
        self._offset += len(data)
        if data:
            yield data

    def _list(self, entry: _Entry) -> None:
        self._count += 1
        self._directory.write(_listed(entry))


def _deflating() -> Any:
    return zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)


def _dos(at: dt.datetime) -> tuple[int, int]:
    """Return a time and a date of MS-DOS, which go from 1980 to 2107."""
    moment = at.astimezone(dt.UTC)
    year = min(max(moment.year, 1980), 2107)
    return (
        moment.hour << 11 | moment.minute << 5 | moment.second // 2,
        (year - 1980) << 9 | moment.month << 5 | moment.day,
    )


def _local_header(entry: _Entry) -> bytes:
    follow = bool(entry.flags & _SIZES_FOLLOW)
    extra, packed, size = b"", entry.packed, entry.size
    if follow or max(packed, size) >= _MAX_32:
        extra = struct.pack("<HHQQ", 1, 16, size, packed)
        packed = size = _MAX_32
    version = 45 if extra else 20
    fields = (version, entry.flags, entry.method, *_dos(entry.at), entry.crc, packed, size)
    lengths = (len(entry.name), len(extra))
    return struct.pack("<LHHHHHLLLHH", 0x04034B50, *fields, *lengths) + entry.name + extra


def _listed(entry: _Entry) -> bytes:
    large = [n for n in (entry.size, entry.packed, entry.offset) if n >= _MAX_32]
    extra = struct.pack(f"<HH{len(large)}Q", 1, 8 * len(large), *large) if large else b""
    # A version below that of the file's own header confuses some.
    version = 45 if large or entry.flags & _SIZES_FOLLOW else 20
    packed, size, offset = (min(n, _MAX_32) for n in (entry.packed, entry.size, entry.offset))
    return (
        struct.pack(
            "<LHHHHHHLLLHHHHHLL",
            *(0x02014B50, _UNIX | version, version, entry.flags, entry.method, *_dos(entry.at)),
            *(
                entry.crc,
                packed,
                size,
                len(entry.name),
                len(extra),
                0,
                0,
                0,
                0o100644 << 16,
                offset,
            ),
        )
        + entry.name
        + extra
    )
