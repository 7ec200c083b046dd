"""The sign of life that handing out work leaves in the cache: when it last ran, with which keys.

Whoever asks needs none of the engine for that, and may be told that the cache is away.
"""

import time
from typing import NamedTuple

from django.conf import settings
from django.core.cache import cache

from ingestion.crypto import key_id

_AT, _KEYS = "ingestion:dispatched_at", "ingestion:key_ids"


class Heartbeat(NamedTuple):
    """`seconds`: how long ago work was last handed out anywhere, and `keys`: the ids of the
    ENCRYPTION_KEYS it was done with; None where nothing is remembered, or the cache is away."""

    seconds: float | None = None
    keys: list[str] | None = None
    cache_answers: bool = True

    def younger_than(self, seconds: float) -> bool:
        """Whether work was handed out within so many seconds."""
        return self.seconds is not None and self.seconds < seconds


def beat() -> None:
    """Raises RedisError where the cache is away."""
    cache.set(_AT, time.time(), timeout=None)
    cache.set(_KEYS, [key_id(key) for key in settings.ENCRYPTION_KEYS], timeout=None)


def last() -> Heartbeat:
    """Return what the cache remembers."""
    from redis import RedisError  # noqa: PLC0415 - a tenth of the start of a command that won't ask

    try:
        found = cache.get_many([_AT, _KEYS])
    except (RedisError, OSError):
        return Heartbeat(cache_answers=False)
    at: float | None = found.get(_AT)
    # A clock that was set back shows one that has stopped as of the future.
    return Heartbeat(None if at is None else abs(time.time() - at), found.get(_KEYS))
