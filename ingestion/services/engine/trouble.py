"""What an error means: one ladder for all who ask a provider.

A check of credentials, a listing of mailboxes and a slice of work each say only what an action does
to their own row. None of them acts for credentials that are no longer the stored ones: what became
of those says nothing of these (`IngestionSource.credentials_version`).
"""

import dataclasses
import datetime as dt
import enum

from django.conf import settings
from django.db import InterfaceError, OperationalError
from django.db.models import Case, When
from django.db.models.functions import Coalesce, Now

from connectors import errors
from connectors.config import ConfigError
from connectors.types import tmpdir
from ingestion.errors import ArchiveUnavailable, LeaseLost, LostRace
from ingestion.services.engine import backoff
from ingestion.services.transactions import is_beyond_a_limit


class Action(enum.Enum):
    """What is to be done, whoever does it."""

    RETRY = "wait, and go on: time alone may mend it"
    REAUTH = "the login is refused: now and again by accident, else a person must look"
    MAILBOX = "this one mailbox can't be had; the others go on"
    FOLDER = "this one folder can't be had; the others go on"
    STOP = "trying again the same way can't help: an operator must act"
    BUG = "it is our fault: log it, and go on later"


#: By the class of what connectors raise. Any other error of theirs is a bug.
_ACTIONS: dict[type[errors.ConnectorError], Action] = {
    errors.Retryable: Action.RETRY,
    errors.NeedsReauth: Action.REAUTH,
    errors.MailboxUnavailable: Action.MAILBOX,
    errors.Skippable: Action.FOLDER,
    errors.Fatal: Action.STOP,
}
#: Of a mailbox, or of the run that lists them, that failed: since when it does. Where no error
#: stood in the row, it was well until now, whatever a worker of an older version left there.
FAILING_SINCE = Case(When(last_error_code="", then=Now()), default=Coalesce("failing_since", Now()))
#: Waiting can help against these.
_PASSING = frozenset({Action.RETRY, Action.FOLDER, Action.BUG})


@dataclasses.dataclass(frozen=True, slots=True)
class Trouble:
    """`code` is for rows and clients, `text` for people. `asks_to_wait`: the provider answers, and
    is only asked too much."""

    action: Action
    code: str
    text: str
    retry_after_seconds: float | None = None
    asks_to_wait: bool = False

    def failures(self, attempts: int, last_code: str) -> int:
        """Return how many failures in a row this is, after `attempts` of which the last had
        `last_code`. Refused logins are counted by themselves: a bad network before one says
        nothing about the password."""
        counted = self.action is not Action.REAUTH or last_code == self.code
        return attempts + 1 if counted else 1

    def wait(self, failures: int) -> dt.timedelta | None:
        """Return how long to wait after so many failures in a row; None: waiting can't help."""
        if self.action in _PASSING:
            return backoff.delay(failures, server_seconds=self.retry_after_seconds)
        if self.action is Action.REAUTH:
            return backoff.refused_login(failures)
        return None


def of(error: Exception) -> Trouble:
    """Return what an error means that came out of asking a provider.

    Raises `error` itself where that is no trouble of a provider's: the row is somebody else's by
    now (LeaseLost, LostRace), or the database is away, and nobody can be told in rows.
    """
    away = isinstance(error, OperationalError | InterfaceError) and not is_beyond_a_limit(error)
    if away or isinstance(error, LeaseLost | LostRace):
        raise error
    if isinstance(error, ConfigError):
        return Trouble(Action.STOP, "invalid_config", f"The configuration is not valid: {error}.")
    if isinstance(error, errors.ConnectorError):
        wish = error.retry_after_seconds if isinstance(error, errors.Retryable) else None
        for kind, action in _ACTIONS.items():
            if isinstance(error, kind):
                waits = isinstance(error, errors.RateLimited)
                return Trouble(action, error.code[:64], str(error), wish, waits)
    # Not with the error's own text, which may quote anything.
    text = f"Internal error ({type(error).__name__}): a bug. The log has the details."
    return Trouble(Action.BUG, "internal_error", text)


def of_archive(error: OSError) -> Trouble:
    """Return what it means that the archive can't be written."""
    if isinstance(error, ArchiveUnavailable):
        return Trouble(Action.RETRY, error.code, str(error))
    what = tmpdir() if settings.ARCHIVE_URL else f"ARCHIVE_DIR, or {tmpdir()}"
    reason = f"The archive can't be written ({error.strerror or type(error).__name__})."
    return Trouble(Action.RETRY, "storage", f"{reason} Free space or mend {what}.")
