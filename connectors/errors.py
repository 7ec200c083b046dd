"""Errors of providers, named by what the caller must do. No text here ever holds a secret.

    Retryable     wait (retry_after_seconds, or backoff), then go on from the last cursor
      RateLimited, Unavailable
    NeedsReauth   stop; a person must give new credentials
    CursorExpired list the folder again from the beginning (what is archived is recognised)
    Skippable     this one message or folder can't be had; record it, go on with the others
      MessageGone, MessageRefused, FolderGone
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


class Skippable(ConnectorError):
    code = "skippable"


class MessageGone(Skippable):
    """The provider no longer has the message: deleted between listing and download."""

    code = "message_gone"


class MessageRefused(Skippable):
    """The provider has the message and does not hand it out (NO, BAD, NIL, too large)."""

    code = "message_refused"


class FolderGone(Skippable):
    """The folder was deleted or renamed between listing and opening."""

    code = "folder_gone"


class MailboxUnavailable(ConnectorError):
    code = "mailbox_unavailable"


class Fatal(ConnectorError):
    code = "fatal"
