"""What the threads of a download hand to its caller: in chunks, as much as fits in memory."""

import collections
import contextlib
import threading
import time
from collections.abc import Iterable

from connectors.types import SPOOL_BYTES, Missing, RawMessage

_CHUNK_BYTES = 500_000
_CHUNK_MESSAGES = 64
#: What a message is taken for before any came: the first commands ask for few.
_FIRST_GUESS_BYTES = 50_000
#: More gains nothing: what waits for a caller that is slower than the server waits at its end too.
_WAITING_BYTES = 4_000_000

Answer = RawMessage | Missing
#: Some answers, what ended a thread, or None: a thread has ended.
Item = list[Answer] | BaseException | None


class Stopped(Exception):
    """The caller wants no more."""


class Outbox:
    """A queue of at most _WAITING_BYTES, or of one item."""

    def __init__(self) -> None:
        self._items: collections.deque[tuple[Item, int]] = collections.deque()
        self._bytes = 0
        self._closed = False
        self._changed = threading.Condition()
        self._came, self._came_bytes = 0, 0
        #: How long the caller has waited for an item.
        self.waited_seconds = 0.0

    def put(self, item: Item, size: int) -> None:
        """Wait for room. Raises Stopped where nobody reads any more, but for signs of the end."""
        with self._changed:
            while size and self._bytes and self._bytes + size > _WAITING_BYTES and not self._closed:
                self._changed.wait()
            if self._closed and size:
                raise Stopped
            self._items.append((item, size))
            self._bytes += size
            if isinstance(item, list):
                self._came += len(item)
                self._came_bytes += size
            self._changed.notify_all()

    @property
    def has_items(self) -> bool:
        return bool(self._items)

    @property
    def average_bytes(self) -> int:
        """What a message has to be expected to have, by those that came."""
        return self._came_bytes // self._came if self._came else _FIRST_GUESS_BYTES

    def get(self) -> Item:
        with self._changed:
            if not self._items:
                since = time.monotonic()
                while not self._items:
                    self._changed.wait()
                self.waited_seconds += time.monotonic() - since
            item, size = self._items.popleft()
            self._bytes -= size
            if self._bytes <= _WAITING_BYTES // 2:  # not for each chunk: to wake a thread costs
                self._changed.notify_all()
            return item

    def close(self) -> None:
        """Let go of threads that wait for room."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def discard(self) -> None:
        while self._items:
            item, _ = self._items.popleft()
            if isinstance(item, list):
                discard(item)


class Sender:
    """Gathers one thread's answers into chunks: a queue operation per message would cost more."""

    def __init__(self, out: Outbox) -> None:
        self._out = out
        self._chunk: list[Answer] = []
        self._bytes = 0

    def add(self, answer: Answer) -> None:
        self._chunk.append(answer)
        if isinstance(answer, RawMessage):
            body = answer.body
            self._bytes += len(body) if isinstance(body, bytes) else SPOOL_BYTES
        if len(self._chunk) >= _CHUNK_MESSAGES or self._bytes >= _CHUNK_BYTES:
            self.flush()

    def flush(self) -> bool:
        """Hand the chunk over, waiting for room; tell whether there was one."""
        if not self._chunk:
            return False
        chunk, size = self._chunk, self._bytes
        self._chunk, self._bytes = [], 0
        try:
            self._out.put(chunk, size + 1)
        except Stopped:
            discard(chunk)
            raise
        return True

    def give_up(self) -> None:
        """Hand on what is whole, if somebody still wants it. Idempotent."""
        with contextlib.suppress(Stopped):
            self.flush()


def discard(answers: Iterable[Answer]) -> None:
    """Free what nobody wants."""
    for answer in answers:
        if isinstance(answer, RawMessage):
            answer.close()
