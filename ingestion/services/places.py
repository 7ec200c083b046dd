"""How many of this process's threads each kind of work may hold, so that none takes them all.

`control` has eight threads. Dispatching must find one at once, whatever deletions take minutes and
whatever servers say nothing; and one person's sources must not keep out another's.
"""

import collections
import contextlib
import threading
from collections.abc import Hashable, Iterator


class Places:
    """So many at a time, and so many of them for each owner. Thread-safe."""

    def __init__(self, total: int, *, each: int) -> None:
        self._total, self._each = total, each
        self._lock = threading.Lock()
        self._held: collections.Counter[Hashable] = collections.Counter()

    @contextlib.contextmanager
    def taken(self, owner: Hashable) -> Iterator[bool]:
        """Hold a place for the body; False where there is none: come again later."""
        with self._lock:
            free = self._held.total() < self._total and self._held[owner] < self._each
            if free:
                self._held[owner] += 1
        try:
            yield free
        finally:
            if free:
                with self._lock:
                    self._held[owner] -= 1


#: Of the eight threads of `control` (Procfile): two are always left for dispatching.
asking_providers = Places(4, each=2)
cleaning_up = Places(2, each=1)
