"""The transaction of a verb, begun again where PostgreSQL broke it off for another's sake."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import structlog
from django.db import OperationalError, connection, transaction

from ingestion.errors import LostRace

log = structlog.get_logger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_TRIES = 4
#: serialization_failure and deadlock_detected: the same transaction may succeed if it is begun
#: again (PostgreSQL's manual, "Serialization Failure Handling").
_BROKEN_OFF = frozenset({"40001", "40P01"})
_LOCK_NOT_AVAILABLE = "55P03"
#: Class of program_limit_exceeded: a row too large for an index, say. Django calls it operational.
_LIMIT_EXCEEDED = "54"

#: What a transaction that lasts begins with: it idles for as long as the work takes, whatever the
#: server allows to others. (Before version 17 there is no transaction_timeout.)
LASTS = """SELECT set_config(name, '0', true) FROM pg_settings
    WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout')"""


def others_went_first(error: Exception) -> bool:
    """Tell whether the database is there, and only had others go first: what was to be done may be
    begun again at once. So it is, too, where the verb that met it has tried that in vain."""
    return isinstance(error, LostRace) or _sqlstate(error) in _BROKEN_OFF


def others_are_in_the_way(error: Exception) -> bool:
    """The same, or others have a lock for longer than was waited for: to be tried again later."""
    return others_went_first(error) or _sqlstate(error) == _LOCK_NOT_AVAILABLE


def is_beyond_a_limit(error: Exception) -> bool:
    """Tell whether the database is there, and never takes what it was given."""
    return _sqlstate(error).startswith(_LIMIT_EXCEEDED)


def _sqlstate(error: Exception) -> str:
    return getattr(error.__cause__, "sqlstate", None) or ""


def raise_if_interrupted(error: BaseException) -> None:
    """Raise KeyboardInterrupt where it came within a statement that ends a transaction: Django then
    ends the transaction once more, and what that raises stands in front of it."""
    before: BaseException | None = error
    while before is not None:
        if isinstance(before, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        before = before.__context__


def in_transaction(verb: Callable[P, R]) -> Callable[P, R]:
    """Run a verb in a transaction of its own, again at once where that deadlocked with another's.

    The verb reads anew the rows that it changes (`sources.status.locked`): a try before may have
    changed objects. Within a transaction it is a part of that one, which alone can begin again.
    Raises LostRace where others go first again and again.
    """

    @functools.wraps(verb)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        for _ in range(_TRIES):
            try:
                with transaction.atomic():
                    return verb(*args, **kwargs)
            except OperationalError as error:
                if connection.in_atomic_block or not others_went_first(error):
                    raise
                log.info("deadlock", verb=verb.__qualname__)
        raise LostRace("Other work on the same rows was in the way. Try again.")

    return run
