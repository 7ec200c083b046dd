"""Places for requests that hold a thread of web for long: few, and fewer for one user."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from rest_framework.exceptions import Throttled

#: Of all kinds together, of the 32 threads of a web process: the others answer everybody else.
MAX_HELD = 24


#: What a page says of it.
FULL = "Too many tests run at the moment. Wait for one of them to end, then try again."


class Places:
    """At most `total` at a time in this process, and at most `per_user` of them one user's. All
    kinds of places together are at most MAX_HELD.

    Whoever gets none is told 429 with Retry-After: `retry_seconds`; pages say it, FULL.
    """

    _held = threading.BoundedSemaphore(MAX_HELD)

    def __init__(self, *, total: int, per_user: int, retry_seconds: float) -> None:
        self._total, self._per_user, self._retry_seconds = total, per_user, retry_seconds
        self._lock = threading.Lock()
        self._taken: Counter[int] = Counter()

    def take(self, user_id: int) -> None:
        """Take a place; `give_back` it once. Raises Throttled."""
        with self._lock:
            full = self._taken[user_id] >= self._per_user or self._taken.total() >= self._total
            if full or not self._held.acquire(blocking=False):
                raise Throttled(wait=self._retry_seconds)
            self._taken[user_id] += 1

    def give_back(self, user_id: int) -> None:
        with self._lock:
            self._taken[user_id] -= 1
            self._taken += Counter()  # keeps users with a place alone
            self._held.release()

    @contextmanager
    def place(self, user_id: int) -> Iterator[None]:
        """Hold a place. Raises Throttled."""
        self.take(user_id)
        try:
            yield
        finally:
            self.give_back(user_id)
