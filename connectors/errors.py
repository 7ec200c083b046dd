"""Errors of providers, named by what the caller must do. No text here ever holds a secret.

    Retryable     wait (retry_after_seconds, or backoff), then go on from the last cursor
      RateLimited, Unavailable
    NeedsReauth   stop; a person must give new credentials
    CursorExpired list the folder again from the beginning (what is archived is recognised)
      IdsReused   and recognise by bytes alone: the ids recorded may name other messages now
    Skippable     this one message or folder can't be had; record it, go on with the others
      MessageGone, MessageRefused, FolderGone, FolderRefused
    MailboxUnavailable  this one mailbox can't be had (suspended, no licence); the others go on
    Fatal         configuration or protocol: trying again the same way can't help

Every class has a stable `code` for rows, metrics and clients; the text is one sentence for people
that says what happened and what to do. Anything else that escapes a connector is a bug.
"""


class ConnectorError(Exception):
    code = "connector_error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class Retryable(ConnectorError):
    code = "retryable"

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: float | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.retry_after_seconds = retry_after_seconds


class RateLimited(Retryable):
    code = "rate_limited"


class Unavailable(Retryable):
    code = "unavailable"


class NeedsReauth(ConnectorError):
    code = "needs_reauth"


class CursorExpired(ConnectorError):
    code = "cursor_expired"


class IdsReused(CursorExpired):
    """What is recorded under this folder's ids may be other messages now: a server that was
    restored or renumbered and did not say so by UIDVALIDITY (RFC 9051 section 2.3.1.1)."""

    code = "ids_reused"


class Skippable(ConnectorError):
    code = "skippable"


class MessageGone(Skippable):
    """The provider no longer has the message: deleted between listing and download."""

    code = "message_gone"


class MessageRefused(Skippable):
    """The provider has the message and does not hand it out (NO, BAD, NIL, too large).

    `of_item`: the answer is about this very message (too large, can't be converted), so that any
    number of them in a row is no outage: see `connectors.outages`.
    """

    code = "message_refused"

    def __init__(self, message: str, *, code: str | None = None, of_item: bool = False) -> None:
        super().__init__(message, code=code)
        self.of_item = of_item


class FolderGone(Skippable):
    """The provider says that the folder does not exist: it was deleted or renamed since it was
    listed. Never raised for a folder that merely can't be read."""

    code = "folder_gone"


class FolderRefused(Skippable):
    """The folder is there, and the provider does not let it be opened or listed now (no permission,
    damaged, in use, an error without a reason). The session can go on with the other folders; this
    one is retried by itself."""

    code = "folder_refused"


class MailboxUnavailable(ConnectorError):
    code = "mailbox_unavailable"


class Fatal(ConnectorError):
    code = "fatal"
