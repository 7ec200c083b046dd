"""Who serves the queues, as the workers themselves say when they are asked."""

import importlib
from collections.abc import Callable
from typing import Any

from django.conf import settings

#: By which entry of the Procfile.
QUEUES = {"sync": "worker", "control": "control", "index": "index"}
PING_SECONDS = 2


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


def advice(queue: str) -> str:
    """Say what to do where nobody serves a queue."""
    return f"Start the Procfile's entry '{QUEUES[queue]}'; see its log if it is meant to run."
