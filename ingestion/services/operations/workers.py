"""Who serves the queues, as the workers themselves say when they are asked.

Who does not answer may be about to start, or be busy. So who looks again and again remembers in the
cache when each queue had an answer, and a queue is told to have no worker by that, everywhere.
"""

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from django.conf import settings
from django.core.cache import cache

#: By which entry of the Procfile.
QUEUES = {"sync": "worker", "control": "control", "index": "index"}
PING_SECONDS = 2

#: For so long nobody answers where a worker is started anew, or on a busy machine misses the time.
SILENT_SECONDS = 40.0
#: And where all of them start at once: minutes, on a slow machine.
STARTING_SECONDS = 180.0
_STARTED_KEY = "ingestion:control_started_at"  # last
_AWAITED_KEY, _ANSWERED_KEY = "ingestion:queues_awaited_since", "ingestion:queues_answered_at"

#: `starting`: nobody has answered since it is awaited, and that is not long ago.
State = Literal["served", "starting", "gone"]


def ask(question: Callable[[Any], Any]) -> Any:
    """Ask the workers, by Celery's remote control; None where the broker is away."""
    from kombu.exceptions import OperationalError  # noqa: PLC0415 - a --help needs no Celery
    from redis import RedisError  # noqa: PLC0415 - as above

    app = importlib.import_module(settings.TASKS_APP).app
    try:
        return question(app.control)
    except (OperationalError, RedisError, OSError):
        return None


def serving() -> dict[str, list[str]]:
    """Return the names of those that serve each queue. Takes PING_SECONDS."""
    told = ask(lambda workers: workers.inspect(timeout=PING_SECONDS).active_queues()) or {}
    return {
        queue: sorted(
            name for name, taken in told.items() if any(q["name"] == queue for q in taken)
        )
        for queue in QUEUES
    }


def starting() -> None:
    """Give the workers of all queues the time to start: `control` does, and mostly they with it.
    Where it dies again and again before that time is over, a queue that never had an answer is
    given no more: it would be starting for ever. Raises RedisError where the cache is away."""
    now = time.time()
    awaited = dict.fromkeys(QUEUES, now)
    if _is_within(STARTING_SECONDS, cache.get(_STARTED_KEY), now):
        answered = cache.get(_ANSWERED_KEY) or {}
        before = cache.get(_AWAITED_KEY) or {}
        awaited |= {queue: since for queue, since in before.items() if queue not in answered}
    kept = {_STARTED_KEY: now, _AWAITED_KEY: awaited, _ANSWERED_KEY: {}}
    cache.set_many(kept, timeout=None)


def remember(served: Mapping[str, Sequence[str]]) -> None:
    """Remember which queues have an answer, by `serving`. Where the cache was lost, all start now.
    Raises RedisError where it is away."""
    now = time.time()
    cache.add(_AWAITED_KEY, dict.fromkeys(QUEUES, now), timeout=None)
    answered = {queue: now for queue, names in served.items() if names}
    cache.set(_ANSWERED_KEY, (cache.get(_ANSWERED_KEY) or {}) | answered, timeout=None)


def states(served: Mapping[str, Sequence[str]]) -> dict[str, State]:
    """Return how each queue is, by `serving` and what is remembered: who looks only once, where
    nobody does, finds those gone that don't answer. Raises RedisError where the cache is away."""
    now, awaited = time.time(), cache.get(_AWAITED_KEY) or {}
    answered = cache.get(_ANSWERED_KEY) or {}

    def state(queue: str) -> State:
        if served[queue] or _is_within(SILENT_SECONDS, answered.get(queue), now):
            return "served"
        starts = queue not in answered and _is_within(STARTING_SECONDS, awaited.get(queue), now)
        return "starting" if starts else "gone"

    return {queue: state(queue) for queue in served}


def _is_within(seconds: float, at: float | None, now: float) -> bool:
    """Whether that is so near to now. Far ahead it is of a clock that was set back since."""
    return at is not None and abs(now - at) < seconds


def advice(queue: str) -> str:
    """Say what to do where nobody serves a queue."""
    return f"Start the Procfile's entry '{QUEUES[queue]}'; see its log if it is meant to run."
