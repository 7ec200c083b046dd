"""How long to wait before trying again: exponential, with jitter, never less than a server asks for
(but for a day at most)."""

import datetime as dt
import secrets

_JITTER = secrets.SystemRandom()
_FIRST_SECONDS = 2.0
_LONGEST_SECONDS = 600.0
_LONGEST_ASKED_SECONDS = 86_400.0
#: Servers in trouble refuse right passwords too, so that the login of a source that was proven must
#: be refused three times within an hour; and a wrong one is not tried often enough to be locked.
_REFUSED_LOGIN_SECONDS = (600.0, 3000.0)


def delay(attempts: int, *, server_seconds: float | None = None) -> dt.timedelta:
    """Return the wait after the `attempts`-th failure in a row (from 1): about ten minutes at most,
    or what the server asks for.

    The jitter keeps a thousand mailboxes that failed together from coming back together.
    """
    seconds = min(_LONGEST_SECONDS, _FIRST_SECONDS * 2 ** min(attempts - 1, 16))
    return spread(seconds, server_seconds=server_seconds)


def spread(seconds: float, *, server_seconds: float | None = None) -> dt.timedelta:
    """Return about `seconds`, and not before the server's own time; of that, at most a day."""
    own = seconds * _JITTER.uniform(0.75, 1.25)
    asked = min(_LONGEST_ASKED_SECONDS, server_seconds or 0.0) * _JITTER.uniform(1.0, 1.1)
    return dt.timedelta(seconds=max(own, asked))


def refused_login(attempts: int) -> dt.timedelta | None:
    """Return the wait after the `attempts`-th refused login in a row (from 1); None: it is no
    accident, a person must look."""
    if attempts > len(_REFUSED_LOGIN_SECONDS):
        return None
    return spread(0.0, server_seconds=_REFUSED_LOGIN_SECONDS[attempts - 1])


def failure_delay(attempts: int) -> dt.timedelta:
    """Return the wait before one failed message is tried again: 1, 4, 16 minutes ... one day."""
    seconds = min(86_400.0, 60.0 * 4 ** min(attempts - 1, 8))
    return dt.timedelta(seconds=seconds * _JITTER.uniform(0.9, 1.1))


def folder_delay(attempts: int) -> dt.timedelta:
    """Return the wait before a folder that can't be read is tried again: half a minute, two, eight,
    half an hour, one hour."""
    seconds = min(3600.0, 30.0 * 4 ** min(attempts - 1, 8))
    return dt.timedelta(seconds=seconds * _JITTER.uniform(0.9, 1.1))
