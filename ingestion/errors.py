"""What a service refuses, named by what the caller must do.

Interfaces (API, admin, commands) turn these into a 4xx, a message or an exit code; anything else
that escapes a service is a bug and is shown as one. Provider errors are in `connectors.errors`.
"""

from connectors.errors import Retryable


class ServiceError(Exception):
    """A request that was understood and refused. `code` is stable; the text is for people."""

    code = "refused"

    @property
    def words(self) -> str:
        """What to say on a page."""
        return str(self)


class InvalidInput(ServiceError):
    """The input is wrong: correct it. `errors`: dotted camelCase field path -> reasons."""

    code = "invalid"

    def __init__(self, errors: dict[str, list[str]]) -> None:
        self.errors = errors
        super().__init__("; ".join(f"{field}: {' '.join(why)}" for field, why in errors.items()))

    @property
    def words(self) -> str:
        """The reasons alone: a page's reader has typed into none of the API's fields."""
        return " ".join(reason for reasons in self.errors.values() for reason in reasons)


class NotAllowedNow(ServiceError):
    """The source's state forbids this: do what the message says, then ask again (HTTP 409)."""

    code = "not_allowed_now"


class LostRace(NotAllowedNow):
    """Somebody else changed the source at the same time: read it again (HTTP 409)."""

    code = "lost_race"


class ChangedMeanwhile(LostRace):
    """The source is not as it was when the change was thought of: look again (HTTP 412)."""

    code = "changed_meanwhile"

    def __init__(self) -> None:
        super().__init__(
            "Somebody changed it since you read it. Read it again, and make your change on top of "
            "theirs."
        )


class LeaseLost(ServiceError):
    """Another worker owns this mailbox now: stop, write nothing more."""

    code = "lease_lost"


class CredentialsUnreadable(ServiceError, Retryable):
    """None of the keys decrypts a source's credentials: they are back once the key is.

    For the engine a provider that is away: nothing is lost, and it is tried again later.
    """

    code = "credentials_unreadable"

    def __init__(self) -> None:
        super().__init__(
            "None of ENCRYPTION_KEYS reads the stored credentials. Put the key back that they "
            "were stored with and restart, or set the credentials anew."
        )


class Corrupt(ServiceError):
    """Archived bytes do not match their SHA-256, or are missing. Restore the pack from a backup."""

    code = "corrupt"


class ArchiveUnavailable(ServiceError, OSError):
    """The archive can't be asked, or written, now: do what the text says, or wait. Nothing is known
    of any message by that."""

    code = "storage"


class ArchiveAway(ArchiveUnavailable):
    """It does not answer, or is busy: wait, and ask again."""


class WrongArchive(ArchiveUnavailable):
    """It is not this installation's archive: its volume is not mounted, or is another."""
