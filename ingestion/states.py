"""Every state a source, mailbox or run can be in, and the table of allowed moves.

Read this module to know what can happen. It decides nothing by itself:
`ingestion.services.sources.status.move` is the only writer of a source's status.

    pending_auth --check passed--> auth_success --import--> importing --done--> active
         |                              |                      |                 |
         +--check failed--> error <-----+----------------------+-----------------+
                              |
                              +--resume/clear--> pending_auth (the credentials are proven again)

    auth_success, importing, active, error --pause--> paused --resume--> where it was
"""

from django.db import models


class SourceStatus(models.TextChoices):
    PENDING_AUTH = "pending_auth", "Pending authentication"
    AUTH_SUCCESS = "auth_success", "Authenticated"
    IMPORTING = "importing", "Importing"
    ACTIVE = "active", "Active"
    PAUSED = "paused", "Paused"
    ERROR = "error", "Error"


S = SourceStatus

#: What the service itself may do. Key: from; value: the states reachable from it.
MOVES: dict[SourceStatus, frozenset[SourceStatus]] = {
    S.PENDING_AUTH: frozenset({S.AUTH_SUCCESS, S.IMPORTING, S.ACTIVE, S.PAUSED, S.ERROR}),
    S.AUTH_SUCCESS: frozenset({S.PENDING_AUTH, S.IMPORTING, S.PAUSED, S.ERROR}),
    S.IMPORTING: frozenset({S.PENDING_AUTH, S.ACTIVE, S.PAUSED, S.ERROR}),
    S.ACTIVE: frozenset({S.PENDING_AUTH, S.PAUSED, S.ERROR}),
    S.PAUSED: frozenset({S.PENDING_AUTH, S.AUTH_SUCCESS, S.IMPORTING, S.ACTIVE, S.ERROR}),
    S.ERROR: frozenset({S.PENDING_AUTH, S.PAUSED}),
}

#: What a client may ask for by PUT {"status": ...}: pause, resume, clear an error.
#: Each maps to a verb of services/sources/verbs.py, so that it has the verb's side effects. From
#: paused only one of the four is possible at a time: where the source stands without the pause.
CLIENT_MOVES: dict[SourceStatus, frozenset[SourceStatus]] = {
    S.PENDING_AUTH: frozenset(),
    S.AUTH_SUCCESS: frozenset({S.PAUSED}),
    S.IMPORTING: frozenset({S.PAUSED}),
    S.ACTIVE: frozenset({S.PAUSED}),
    S.PAUSED: frozenset({S.PENDING_AUTH, S.AUTH_SUCCESS, S.IMPORTING, S.ACTIVE}),
    S.ERROR: frozenset({S.PENDING_AUTH, S.PAUSED}),
}

#: States in which a worker may do work for the source.
RUNNABLE = frozenset({S.AUTH_SUCCESS, S.IMPORTING, S.ACTIVE})


class RunKind(models.TextChoices):
    IMPORT = "import", "Import"
    SYNC = "sync", "Sync"


class RunStatus(models.TextChoices):
    RUNNING = "running", "Running"
    COMPLETED = "completed", "Completed"
    INCOMPLETE = "incomplete", "Incomplete"
    STOPPED = "stopped", "Stopped"
    FAILED = "failed", "Failed"


class MailboxState(models.TextChoices):
    ACTIVE = "active", "Followed"
    EXCLUDED = "excluded", "Excluded by options"
    UNAVAILABLE = "unavailable", "Unavailable at the provider"
    GONE = "gone", "No longer at the provider"


class ListAnew(models.TextChoices):
    NO = "", "No"
    BY_ID = "by_id", "Recognising what is archived by its ids"
    BY_BYTES = "by_bytes", "Recognising by bytes alone: the ids may name other messages now"


class ExportState(models.TextChoices):
    WAITING = "waiting", "Waiting"
    RUNNING = "running", "Running"
    DONE = "done", "Ready"
    FAILED = "failed", "Failed"
    EXPIRED = "expired", "Expired"


class FolderRole(models.TextChoices):
    NONE = "", "—"
    INBOX = "inbox", "Inbox"
    ALL = "all", "All mail"
    ARCHIVE = "archive", "Archive"
    SENT = "sent", "Sent"
    DRAFTS = "drafts", "Drafts"
    JUNK = "junk", "Junk"
    TRASH = "trash", "Trash"
    FLAGGED = "flagged", "Flagged"
