"""How long to wait before trying again: exponential, with jitter, never less than asked for."""

import datetime as dt
import secrets

_JITTER = secrets.SystemRandom()
_FIRST_SECONDS = 2.0
_LONGEST_SECONDS = 600.0


def delay(attempts: int, *, server_seconds: float | None = None) -> dt.timedelta:
    """Return the wait after the `attempts`-th failure in a row (from 1), at most about an hour.

    The jitter keeps a thousand mailboxes that failed together from coming back together.
    """
    seconds = min(_LONGEST_SECONDS, _FIRST_SECONDS * 2 ** min(attempts - 1, 16))
    return spread(seconds, server_seconds=server_seconds)


def spread(seconds: float, *, server_seconds: float | None = None) -> dt.timedelta:
    """Return about `seconds`, and not before the server's own time; at most an hour."""
    own = seconds * _JITTER.uniform(0.75, 1.25)
    asked = (server_seconds or 0.0) * _JITTER.uniform(1.0, 1.1)
    return dt.timedelta(seconds=min(3600.0, max(own, asked)))


def failure_delay(attempts: int) -> dt.timedelta:
    """Return the wait before one failed message is tried again: 1, 4, 16 minutes ... one day."""
    seconds = min(86_400.0, 60.0 * 4 ** min(attempts - 1, 8))
    return dt.timedelta(seconds=seconds * _JITTER.uniform(0.9, 1.1))


def folder_delay(attempts: int) -> dt.timedelta:
    """Return the wait before a folder that can't be read is tried again: half a minute, two, eight,
    half an hour, one hour."""
    seconds = min(3600.0, 30.0 * 4 ** min(attempts - 1, 8))
    return dt.timedelta(seconds=seconds * _JITTER.uniform(0.9, 1.1))
