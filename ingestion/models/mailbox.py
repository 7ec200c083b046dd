"""Mailbox (with its lease) and Folder (with its cursor): who owns the work, and how far it is.

A mailbox owes work to `run` while that is set; it is due when `not_before` has passed and nobody
holds its lease. The lease is a fence: every commit of a worker says `WHERE lease_token = mine`.
"""

import uuid

from django.db import models
from django.db.models.functions import Now

from ingestion.models.run import Run
from ingestion.models.source import IngestionSource
from ingestion.states import FolderRole, ListAnew, MailboxState


class Mailbox(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    source = models.ForeignKey(IngestionSource, models.CASCADE, related_name="mailboxes")
    remote_id = models.TextField(help_text="The provider's immutable id of the account.")
    address = models.TextField()
    state = models.CharField(
        max_length=16, choices=MailboxState.choices, default=MailboxState.ACTIVE
    )
    state_reason = models.TextField(blank=True)

    run = models.ForeignKey(
        Run,
        models.SET_NULL,
        null=True,
        blank=True,
        related_name="mailboxes_due",
        help_text="The run that this mailbox still owes work to.",
    )
    not_before = models.DateTimeField(db_default=Now())
    attempts = models.PositiveIntegerField(
        default=0, help_text="Failures since the last progress: sets the backoff."
    )
    failing_since = models.DateTimeField(
        null=True, editable=False, help_text="Each try has failed since, but to be asked to wait."
    )
    last_error_code = models.CharField(max_length=64, blank=True)
    last_error = models.TextField(blank=True)
    handed_out_at = models.DateTimeField(null=True, editable=False)

    lease_token = models.BigIntegerField(default=0, editable=False)
    lease_expires_at = models.DateTimeField(null=True, editable=False)
    # Which database session took the lease: once that is gone, so is its worker.
    lease_session_pid = models.IntegerField(null=True, editable=False)
    lease_session_started_at = models.DateTimeField(null=True, editable=False)

    worker_deaths = models.PositiveIntegerField(
        default=0, editable=False, help_text="Workers that died under its lease, in a row."
    )

    messages_expected = models.BigIntegerField(
        default=0, editable=False, help_text="Of the run's total, what is not done yet."
    )
    message_count = models.BigIntegerField(default=0)
    archived_bytes = models.BigIntegerField(default=0)
    last_synced_at = models.DateTimeField(null=True, blank=True)
    archived_up_to = models.DateTimeField(
        null=True,
        editable=False,
        help_text="What came before is archived: when the last sync that succeeded began.",
    )
    last_mail_at = models.DateTimeField(
        null=True,
        editable=False,
        help_text="When mail last came to the archive, or went: its pace follows from that.",
    )
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["address", "id"]
        verbose_name_plural = "mailboxes"
        constraints = [
            models.UniqueConstraint(fields=["source", "remote_id"], name="mailbox_identity"),
        ]
        indexes = [
            models.Index(
                fields=["not_before"],
                name="mailbox_due",
                condition=models.Q(run__isnull=False),
            ),
            models.Index(
                fields=["source", "failing_since"],
                name="mailbox_failing",
                condition=models.Q(failing_since__isnull=False),
            ),
            models.Index(
                fields=["source"],
                name="mailbox_unavailable",
                condition=models.Q(state=MailboxState.UNAVAILABLE),
            ),
        ]

    def __str__(self) -> str:
        return self.address


class Folder(models.Model):
    mailbox = models.ForeignKey(Mailbox, models.CASCADE, related_name="folders")
    remote_id = models.TextField(help_text="What the provider calls it.")
    stable_id = models.TextField(blank=True, help_text="Survives a rename, e.g. MAILBOXID.")
    path = models.TextField(help_text='For people: "/" between levels.')
    role = models.CharField(max_length=16, choices=FolderRole.choices, blank=True)
    cursor = models.JSONField(null=True, blank=True, help_text="Opaque but to the connector.")
    listed_at = models.DateTimeField(
        null=True,
        help_text="When the whole folder had been listed; null during the first import.",
    )
    listed_since = models.DateField(
        null=True, help_text='The option "since" that the cursor holds for: null for all mail.'
    )
    list_anew = models.CharField(
        max_length=8,
        choices=ListAnew.choices,
        blank=True,
        help_text="Whether the next sync lists the folder from the beginning.",
    )
    followed_at = models.DateTimeField(
        null=True,
        help_text="When the slice began that was done with it, before others of the mailbox were.",
    )
    remote_count = models.BigIntegerField(null=True, help_text="The provider's own count.")
    missing_since = models.DateTimeField(null=True, help_text="No listing had it since.")
    removed_at = models.DateTimeField(null=True, help_text="When it was gone at the provider.")

    # A folder that can't be read is tried again by itself, and the others go on.
    not_before = models.DateTimeField(null=True, help_text="Not to be tried again before.")
    attempts = models.PositiveIntegerField(
        default=0, help_text="Failures since it could be read: sets the backoff."
    )
    failing_since = models.DateTimeField(null=True)
    last_error_code = models.CharField(max_length=64, blank=True)
    last_error = models.TextField(blank=True)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["path", "id"]
        constraints = [
            models.UniqueConstraint(fields=["mailbox", "remote_id"], name="folder_identity"),
        ]
        indexes = [
            models.Index(
                fields=["mailbox"],
                name="folder_failing",
                condition=models.Q(failing_since__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return self.path
