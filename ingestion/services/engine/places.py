"""How many of this process's threads each kind of work may hold, so that none takes them all.

`control` has sixteen threads. Dispatching must find one at once, whatever deletions take minutes
and whatever servers say nothing; and one person's sources must not keep out another's.
"""

import collections
import contextlib
import threading
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Places(Generic[T]):
    """So many at a time, and so many of them for each owner. Who finds none stands in line, for as
    long as this process lives. Thread-safe."""

    def __init__(self, total: int, *, each: int) -> None:
        self._total, self._each = total, each
        self._lock = threading.Lock()
        self._held: collections.Counter[Hashable] = collections.Counter()
        #: The owner whose turn is next comes first; of each the work, none of it twice.
        self._lines: dict[Hashable, dict[T, None]] = {}

    @contextlib.contextmanager
    def taken(self, owner: Hashable, work: T | None = None) -> Iterator[bool]:
        """Hold a place for the body; False where there is none. Then `work` stands in line."""
        with self._lock:
            free = self._is_free(owner)
            if free:
                self._held[owner] += 1
            elif work is not None:
                self._lines.setdefault(owner, {})[work] = None
        try:
            yield free
        finally:
            if free:
                with self._lock:
                    self._held[owner] -= 1

    def next(self) -> T | None:
        """Take out of line what would find a place now: owners in turn, of each what came first."""
        with self._lock:
            for owner, line in self._lines.items():
                if self._is_free(owner):
                    work = next(iter(line))
                    del self._lines[owner], line[work]
                    if line:
                        self._lines[owner] = line  # behind the other owners
                    return work
        return None

    def _is_free(self, owner: Hashable) -> bool:
        return self._held.total() < self._total and self._held[owner] < self._each
