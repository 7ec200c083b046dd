"""Reads packs of an object store by ranges, and keeps what was read last.

What is asked for is a few kilobytes at a time, message after message; a request takes tens of
milliseconds and is paid for. So blocks are fetched, more at once the longer somebody reads on, and
some stay in memory, shared by all who read. A pack never changes, so a block is never stale: but
who wants to know what the store holds *now* takes a cache of their own (`PackStore.fresh`).
"""

import collections
import io
import threading
from collections.abc import Callable

BLOCK_BYTES = 1 << 17
#: 4 MB: a request more for each of those costs no time to speak of.
_MAX_RUN = 32
#: 32 MB in all, which is more than the packs are that a worker makes of usual mail.
_CAPACITY = 256
_PACKS = 64

#: Gets (key, first byte, number of bytes); returns the bytes there are, and the object's size.
Fetch = Callable[[str, int, int], tuple[bytes, int]]


class Blocks:
    """The blocks read last, of any number of objects. Thread-safe."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._lock = threading.Lock()
        self._blocks: collections.OrderedDict[tuple[str, int], bytes] = collections.OrderedDict()
        #: Of each object: its size, the block behind the last that was fetched, and how many then.
        self._objects: collections.OrderedDict[str, tuple[int, int, int]]
        self._objects = collections.OrderedDict()

    def size(self, key: str) -> int:
        """Return an object's size. Raises FileNotFoundError."""
        with self._lock:
            known = self._objects.get(key)
        if known is None:
            self.block(key, 0)
            return self.size(key)
        return known[0]

    def block(self, key: str, number: int, *, wanted: int = 1) -> bytes:
        """Return a block of an object, empty behind its end. At least `wanted` are fetched, if
        any. Raises FileNotFoundError."""
        with self._lock:
            size, after, run = self._objects.get(key, (-1, 0, 0))
            found = self._blocks.get((key, number))
            if found is not None and size >= 0:  # else a block outlived what is known of its object
                self._blocks.move_to_end((key, number))
                return found
        if 0 <= size <= number * BLOCK_BYTES:
            return b""
        # Somebody reads on, perhaps having skipped a body.
        run = 2 * run if after <= number <= after + run else 1
        run = min(max(run, wanted, 1), _MAX_RUN)
        data, size = self._fetch(key, number * BLOCK_BYTES, run * BLOCK_BYTES)
        with self._lock:
            self._objects[key] = size, number + run, run
            self._objects.move_to_end(key)
            for at in range(0, len(data), BLOCK_BYTES):
                self._blocks[key, number + at // BLOCK_BYTES] = data[at : at + BLOCK_BYTES]
            while len(self._blocks) > _CAPACITY:
                self._blocks.popitem(last=False)
            while len(self._objects) > _PACKS:
                self._objects.popitem(last=False)
        return data[:BLOCK_BYTES]


class ObjectFile(io.RawIOBase):
    """An object as a file to read anywhere. Raises FileNotFoundError when it is first read.

    `expected_bytes`: so many will be read from wherever the reading begins.
    """

    def __init__(self, blocks: Blocks, key: str, expected_bytes: int) -> None:
        super().__init__()
        self._blocks, self._key, self._position = blocks, key, 0
        self._end = expected_bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position}.get(whence)
        self._position = offset + (self._blocks.size(self._key) if base is None else base)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override] # narrower
        number, at = divmod(self._position, BLOCK_BYTES)
        block = self._blocks.block(self._key, number, wanted=-(-(at + self._end) // BLOCK_BYTES))
        count = max(0, min(len(buffer), len(block) - at))
        buffer[:count] = block[at : at + count]
        self._position += count
        self._end = max(0, self._end - count)
        return count
