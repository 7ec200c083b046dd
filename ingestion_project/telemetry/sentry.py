"""Errors for a Sentry: every line of the log from ERROR on is an event there.

sentry_sdk is what brings events there, and nothing more: see `telemetry`.
"""

import functools
import importlib.metadata
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import sentry_sdk
import structlog

from ingestion_project.telemetry import allowed

#: Of these an event would be about an event.
_OWN = ("sentry_sdk", "urllib3", "opentelemetry")
#: For so long a process that ends tells what it has not told yet.
_LAST_SECONDS = 2.0


class Handler(logging.Handler):
    """A handler of `LOGGING`. Sends in a thread of sentry_sdk's, for which only the end waits."""

    def __init__(self, dsn: str) -> None:
        super().__init__(logging.ERROR)
        self._dsn = dsn

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.split(".")[0] in _OWN:
            return
        try:
            _client(self._dsn, os.getpid()).capture_event(_event(record))
        except Exception:  # noqa: BLE001 - what it is about is in the log
            self.handleError(record)

    def close(self) -> None:
        if _client.cache_info().currsize:
            _client(self._dsn, os.getpid()).close(timeout=_LAST_SECONDS)
        super().close()


@functools.lru_cache(maxsize=1)
def _client(dsn: str, _process: int) -> sentry_sdk.Client:
    """Return the client of this process: its threads do not survive a fork."""
    return sentry_sdk.Client(
        dsn,
        default_integrations=False,
        auto_enabling_integrations=False,
        auto_session_tracking=False,
        send_client_reports=False,
        max_breadcrumbs=0,
        server_name="",
        release=importlib.metadata.version("ingestion"),
    )


def _event(record: logging.LogRecord) -> Any:
    ours: dict[str, Any] = record.msg if isinstance(record.msg, dict) else {}
    tags = allowed({**structlog.contextvars.get_contextvars(), **ours})
    event: dict[str, Any] = {
        "level": "fatal" if record.levelno >= logging.CRITICAL else "error",
        "logger": record.name,
        # The text of a foreign line may quote mail.
        "message": str(ours.get("event", f"a line of {record.name}")),
        "tags": {name: str(value) for name, value in tags.items()},
    }
    error = _error(record.exc_info or ours.get("exc_info"))
    if error is not None:
        event["exception"] = {"values": [_exception(one) for one in reversed(list(_chain(error)))]}
    return event


def _error(info: Any) -> BaseException | None:
    """Return the exception of what a line has as exc_info."""
    if isinstance(info, BaseException):
        return info
    if isinstance(info, tuple):
        return info[1] if isinstance(info[1], BaseException) else None
    return sys.exc_info()[1] if info else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _exception(error: BaseException) -> dict[str, Any]:
    """Return where and of which type: what an error says may be mail."""
    frames = [
        {
            "module": frame.f_globals.get("__name__", ""),
            "function": frame.f_code.co_name,
            "lineno": line,
        }
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    kind = type(error)
    return {"type": kind.__name__, "module": kind.__module__, "stacktrace": {"frames": frames}}
